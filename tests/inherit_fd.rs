//! Pipes to processes that are not frozen: thaw is told what they become.

mod common;

use common::{CRYOPOD, Program, can_thaw, cryopod, scratch, stderr};
use std::fs;
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

/// Reads lines from 5, and writes each to 6 and 7.
const PROGRAM: &str = r#"
    use IO::Handle;
    open(my $in, "<&=", 5) or die; open(my $out, ">&=", 6) or die; open(my $more, ">&=", 7) or die;
    $_->autoflush(1) for $out, $more;
    $| = 1; print "READY\n";
    select(undef, undef, undef, 0.005) until -e "go";
    use Fcntl;
    die if fcntl($in, F_GETFL, 0) & O_NONBLOCK;
    while (my $line = <$in>) { print $out "out $line"; print $more "more $line"; }
    print "PASS\n";
"#;

/// The other ends are our own.
struct Piped {
    dir: tempfile::TempDir,
    program: Program,
    ends: [std::io::PipeWriter; 1],
    outputs: [std::io::PipeReader; 2],
}

impl Piped {
    fn start() -> Self {
        let dir = scratch();
        let (read_end, writer) = std::io::pipe().expect("a pipe");
        let (reader, write_end) = std::io::pipe().expect("a pipe");
        let (other_reader, other_end) = std::io::pipe().expect("a pipe");
        // Opened anew: what is inherited is closed for programs of tests.
        let path = |end: &dyn AsRawFd| format!("/proc/{}/fd/{}", std::process::id(), end.as_raw_fd());
        let redirect = format!(
            "exec perl -e \"$0\" 5<{} 6>{} 7>{}",
            path(&read_end),
            path(&write_end),
            path(&other_end)
        );
        let mut command = Command::new("bash");
        command.args(["-c", &redirect, PROGRAM]).current_dir(dir.path());
        let mut program = Program::start(&mut command);
        program.wait_for(|line| line == "READY");
        Piped {
            dir,
            program,
            ends: [writer],
            outputs: [reader, other_reader],
        }
    }

    fn image(&self) -> PathBuf {
        self.dir.path().join("app.img")
    }

    /// What descriptor `number` of the program shows as.
    fn name(&self, number: i32) -> String {
        let link = fs::read_link(format!("/proc/{}/fd/{number}", self.program.pid)).expect("a descriptor");
        link.to_string_lossy().into_owned()
    }
}

fn thaw(image: &Path, options: &[String], redirections: &str) -> Output {
    let script = format!("exec \"$0\" thaw \"$@\" {redirections}");
    let mut command = Command::new("bash");
    command.args(["-c", &script, CRYOPOD]).args(options).arg(image);
    command.stdin(Stdio::null()).output().expect("bash can be run")
}

#[test]
fn each_becomes_what_it_is_given() {
    if !can_thaw() {
        return;
    }
    let mut piped = Piped::start();
    let (image, names) = (piped.image(), [5, 6, 7].map(|number| piped.name(number)));
    std::io::Write::write_all(&mut piped.ends[0], b"unread\n").expect("a pipe takes bytes");
    let freeze = cryopod(&[&"freeze", &piped.program.pid.to_string(), &"-o", &image]);
    assert!(freeze.status.success(), "{}", stderr(&freeze));
    // Stdin was /dev/null, so that 5 may become thaw's unless something else is said; stdout and stderr are taken.
    let told = names[1..]
        .iter()
        .filter(|name| stderr(&freeze).contains(&format!("--inherit-fd '{name}=FD'")));
    assert_eq!(told.count(), 2, "{}", stderr(&freeze));
    piped.program.wait();
    common::reap_orphans();

    let refused = thaw(&image, &[], "");
    assert_eq!(refused.status.code(), Some(126), "{}", stderr(&refused));
    for name in &names[1..] {
        let wanted = format!("--inherit-fd '{name}=FD'");
        assert!(
            stderr(&refused).contains(&wanted),
            "{wanted:?} is not in {}",
            stderr(&refused)
        );
    }

    let dir = piped.dir.path();
    fs::write(dir.join("go"), "").expect("a file");
    fs::write(dir.join("in"), "second\n").expect("a file");
    let options =
        [(&names[0], 11), (&names[1], 12), (&names[2], 13)].map(|(name, fd)| format!("--inherit-fd={name}={fd}"));
    let file = |name: &str| dir.join(name).display().to_string();
    let redirections = format!("11<{} 12>{} 13>{}", file("in"), file("out"), file("more"));
    let thawed = thaw(&image, &options, &redirections);
    assert!(thawed.status.success(), "{}", stderr(&thawed));
    let read = |name: &str| fs::read_to_string(dir.join(name)).expect("it was written");
    assert_eq!(read("out"), "out unread\nout second\n");
    assert_eq!(read("more"), "more unread\nmore second\n");
    // Nothing of it came out of the old pipes.
    let [mut first, _] = piped.outputs;
    drop(piped.ends);
    let mut rest = String::new();
    std::io::Read::read_to_string(&mut first, &mut rest).expect("an end");
    assert_eq!(rest, "");
}

#[test]
fn what_cannot_be_given_is_refused() {
    if !can_thaw() {
        return;
    }
    let mut piped = Piped::start();
    let (image, names) = (piped.image(), [5, 6, 7].map(|number| piped.name(number)));
    piped.program.freeze_with(&image, &[]);
    piped.program.wait();
    common::reap_orphans();
    let options = |first: &str| {
        let all = [(first, 11), (names[1].as_str(), 12), (names[2].as_str(), 13)];
        all.map(|(name, fd)| format!("--inherit-fd={name}={fd}"))
    };
    let null = "11</dev/null 12>/dev/null 13>/dev/null";
    let other = thaw(&image, &options("pipe:[1]"), null);
    assert_eq!(other.status.code(), Some(126));
    assert!(stderr(&other).contains("--inherit-fd pipe:[1]"), "{}", stderr(&other));
    let write_only = thaw(&image, &options(&names[0]), "11>/dev/null 12>/dev/null 13>/dev/null");
    assert_eq!(write_only.status.code(), Some(126));
    assert!(
        stderr(&write_only).contains("cannot be read"),
        "{}",
        stderr(&write_only)
    );
    let closed = thaw(&image, &options(&names[0]), "");
    assert_eq!(closed.status.code(), Some(2));
    assert!(stderr(&closed).contains("no open descriptor"), "{}", stderr(&closed));
}
