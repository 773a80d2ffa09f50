//! What is left when a freeze that ends its process dies half-way, when an image is damaged, and where a thawed program belongs.

mod common;

use common::frozen::Frozen;
use common::{CRYOPOD, Program, can_thaw, cryopod, scratch, state, status, stderr, wait_until};
use nix::unistd::Pid;
use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

/// Writes READY, and ends with 7 once there is a file named `go`.
const WORKER: &str = r#"my $data = "x" x 3000000; print "READY\n"; select(undef, undef, undef, 0.005) until -e "go";
    exit(length($data) == 3000000 ? 7 : 1)"#;

/// Either the process is there as it was, or its image is complete and it can be thawed: never neither, and never both at once.
#[test]
fn a_freeze_that_dies_before_the_process_ends_loses_nothing() {
    if !can_thaw() {
        return;
    }
    let (mut lived, mut ended) = (0, 0);
    let whole = time_of_a_freeze();
    for round in 0..40u32 {
        let dir = scratch();
        let image = dir.path().join("app.img");
        let mut program = Program::perl(WORKER, dir.path());
        let pid = program.pid;
        let mut freeze = Command::new(CRYOPOD)
            .args(["-q", "freeze", &pid.to_string(), "-o"])
            .arg(&image)
            .stdout(Stdio::null())
            .spawn()
            .expect("cryopod can be run");
        std::thread::sleep(whole * round / 30);
        freeze.kill().expect("it is our child");
        freeze.wait().expect("it is our child");
        if is_gone(pid) {
            assert_eq!(program.wait().code(), None, "it was killed by the freeze");
            let verified = cryopod(&[&"verify", &image]);
            assert!(verified.status.success(), "round {round}: {}", stderr(&verified));
            program = Program::thaw(&image, pid);
            ended += 1;
        } else {
            wait_until("the tracer is gone", || {
                status(pid, "TracerPid").as_deref() == Some("0")
            });
            assert_ne!(state(pid), Some('T'));
            if image.exists() {
                let second = cryopod(&[&"thaw", &image]);
                assert_eq!(second.status.code(), Some(126), "a second copy: {}", stderr(&second));
            }
            lived += 1;
        }
        fs::write(dir.path().join("go"), "").expect("the directory takes a file");
        assert_eq!(program.wait().code(), Some(7), "round {round}");
    }
    println!("40 freezes were killed: {lived} processes went on, {ended} had ended with a complete image");
    assert!(
        lived > 0 && ended > 0,
        "the kills were not spread over the freeze: {lived} and {ended}"
    );
}

/// So that the kills are spread over the whole of it, and a little beyond.
fn time_of_a_freeze() -> Duration {
    let dir = scratch();
    let program = Program::perl(WORKER, dir.path());
    let begun = Instant::now();
    let frozen = cryopod(&[
        &"-q",
        &"freeze",
        &program.pid.to_string(),
        &"-o",
        &dir.path().join("app.img"),
    ]);
    assert!(frozen.status.success(), "{}", stderr(&frozen));
    begun.elapsed()
}

/// What the kernel is still ending is given time; a zombie is gone.
fn is_gone(pid: i32) -> bool {
    let deadline = Instant::now() + Duration::from_millis(200);
    while Instant::now() < deadline {
        if matches!(state(pid), None | Some('Z')) {
            return true;
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    false
}

/// Bytes all over the image are flipped, one at a time, each time under a thaw that would run it.
#[test]
fn a_flipped_byte_builds_nothing() {
    let Some(Frozen { dir, image, .. }) = Frozen::perl(WORKER) else {
        return;
    };
    // Whatever a thaw left would be a child of ours from its end on. Its id alone tells nothing: programs beside us get it, too.
    nix::sys::prctl::set_child_subreaper(true).expect("PR_SET_CHILD_SUBREAPER");
    let children = || cryopod::tracer::children(Pid::this()).expect("our own");
    let whole = fs::read(&image).expect("the image is there");
    let damaged = dir.path().join("damaged.img");
    let step = whole.len() / 150;
    for at in (0..64)
        .chain((64..whole.len()).step_by(step))
        .chain(whole.len() - 64..whole.len())
    {
        let mut bytes = whole.clone();
        bytes[at] ^= 1 << (at % 8);
        fs::write(&damaged, &bytes).expect("the directory takes a file");
        let thaw = cryopod(&[&"thaw", &damaged]);
        assert!(
            matches!(thaw.status.code(), Some(125 | 126)),
            "byte {at}: {}: {}",
            thaw.status,
            stderr(&thaw)
        );
        assert_eq!(children(), [], "byte {at}: processes were left after {}", stderr(&thaw));
    }
}

/// A program whose session and group were led from outside joins thaw's; so whoever signals thaw's group reaches it.
#[test]
fn a_program_led_from_outside_joins_the_session_and_group_of_thaw() {
    let Some(Frozen { dir, image, pid }) = Frozen::perl(WORKER) else {
        return;
    };
    // A session of thaw's own, so that it is not by chance that of the tests.
    let mut command = Command::new("setsid");
    command
        .args(["--wait", CRYOPOD, "thaw"])
        .arg(&image)
        .current_dir(dir.path());
    let mut shell = command
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .expect("setsid can be run");
    wait_until("the program runs", || {
        fs::read_link(format!("/proc/{pid}/exe")).is_ok_and(|exe| exe != Path::new(CRYOPOD))
            && status(pid, "TracerPid").as_deref() == Some("0")
    });
    let thaw = status(pid, "PPid").expect("it runs").parse().expect("a number");
    assert_eq!(group_and_session(pid), group_and_session(thaw));
    assert_ne!(group_and_session(pid).1, group_and_session(std::process::id() as i32).1);
    fs::write(dir.path().join("go"), "").expect("the directory takes a file");
    assert_eq!(shell.wait().expect("it is our child").code(), Some(7));
}

/// Fields 5 and 6 of /proc/PID/stat (proc_pid_stat(5)).
fn group_and_session(pid: i32) -> (i32, i32) {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).expect("it runs");
    let (_, rest) = stat.rsplit_once(')').expect("a name ends with a parenthesis");
    let fields: Vec<&str> = rest.split_whitespace().collect();
    let number = |index: usize| fields[index].parse().expect("a number");
    (number(2), number(3))
}
