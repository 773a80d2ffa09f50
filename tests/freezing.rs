//! What freeze refuses, what it does when writing fails, and what it leaves behind. The program is unharmed by all of it.

mod common;

use common::{CRYOPOD, Program, can_thaw, cryopod, exists, scratch, state, stderr, wait_until};
use cryopod::image::read::Reader;
use nix::sys::signal::Signal;
use nix::unistd::Pid;
use std::fs;
use std::io::{Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::Duration;

/// A program that works until it is told to check itself, in a directory that has room for images.
struct Target {
    program: Program,
    dir: tempfile::TempDir,
}

const COUNT_UNTIL_GO: &str = r#"my $n = 0; print "READY\n"; until (-e "go") { $n++; select(undef, undef, undef, 0.002) }
    print $n > 0 ? "PASS\n" : "FAIL\n";"#;

impl Target {
    fn start() -> Self {
        let dir = scratch();
        let program = Program::perl(COUNT_UNTIL_GO, dir.path());
        Target { program, dir }
    }

    fn pid(&self) -> String {
        self.program.pid.to_string()
    }

    fn image(&self) -> PathBuf {
        self.dir.path().join("app.img")
    }

    fn freeze(&self, image: &Path, options: &[&str]) -> Output {
        let mut command = Command::new(CRYOPOD);
        command.args(["freeze", &self.pid(), "-o"]).arg(image).args(options);
        command.output().expect("cryopod can be run")
    }

    /// The program goes on as if nothing had happened.
    fn unharmed(self) {
        assert_ne!(state(self.program.pid), Some('T'), "the program was left stopped");
        fs::write(self.dir.path().join("go"), "").expect("the directory takes a file");
        self.program.expect_pass();
    }
}

fn assert_code(output: &Output, code: i32) {
    assert_eq!(output.status.code(), Some(code), "{}", stderr(output));
}

#[test]
fn cryopod_does_not_freeze_itself_or_its_ancestors() {
    let dir = scratch();
    let image = dir.path().join("app.img").display().to_string();
    for script in ["exec \"$0\" freeze $$ -o \"$1\"", "\"$0\" freeze $$ -o \"$1\"; exit $?"] {
        let freeze = Command::new("sh")
            .args(["-c", script, CRYOPOD, &image])
            .output()
            .expect("sh is there");
        assert_code(&freeze, 3);
        assert!(!Path::new(&image).exists());
    }
}

#[test]
fn a_kernel_thread_is_refused() {
    if !fs::read_to_string("/proc/2/status").is_ok_and(|status| status.contains("kthreadd")) {
        return common::skipped("process 2 is not a kernel thread here (a container?)");
    }
    let dir = scratch();
    let freeze = cryopod(&[&"freeze", &"2", &"-o", &dir.path().join("app.img")]);
    assert_code(&freeze, 3);
    assert!(stderr(&freeze).contains("kernel thread"), "{}", stderr(&freeze));
}

#[test]
fn a_zombie_is_refused() {
    let dir = scratch();
    let mut child = Command::new("true").spawn().expect("true(1) is there");
    let pid = child.id() as i32;
    wait_until("the child has ended", || state(pid) == Some('Z'));
    let freeze = cryopod(&[&"freeze", &pid.to_string(), &"-o", &dir.path().join("app.img")]);
    child.wait().expect("it is our child");
    assert_code(&freeze, 3);
    assert!(stderr(&freeze).contains("zombie"), "{}", stderr(&freeze));
}

#[test]
fn a_traced_process_is_refused_with_its_tracer() {
    let target = Target::start();
    let pid = Pid::from_raw(target.program.pid);
    nix::sys::ptrace::seize(pid, nix::sys::ptrace::Options::empty()).expect("our own child can be traced");
    let freeze = target.freeze(&target.image(), &[]);
    assert_code(&freeze, 3);
    assert!(
        stderr(&freeze).contains(&format!("{}", nix::unistd::gettid())),
        "{}",
        stderr(&freeze)
    );
    nix::sys::ptrace::interrupt(pid).expect("we trace it");
    nix::sys::wait::waitpid(pid, None).expect("we trace it");
    nix::sys::ptrace::detach(pid, None).expect("it is stopped");
    target.unharmed();
}

#[test]
fn a_missing_directory_fails_before_anything_stops() {
    let target = Target::start();
    let freeze = target.freeze(&target.dir.path().join("nowhere/app.img"), &[]);
    assert_code(&freeze, 1);
    assert!(stderr(&freeze).contains("nowhere"), "{}", stderr(&freeze));
    target.unharmed();
}

#[test]
fn a_full_device_leaves_the_program_running() {
    let target = Target::start();
    let freeze = target.freeze(Path::new("/dev/full"), &[]);
    assert_code(&freeze, 1);
    assert!(
        stderr(&freeze).contains("No space left on device"),
        "{}",
        stderr(&freeze)
    );
    target.unharmed();
}

#[test]
fn a_full_disk_leaves_the_program_running_and_no_file() {
    if !can_thaw() {
        return; // root it takes, to mount a disk
    }
    let disk = scratch();
    let mount = Command::new("mount")
        .args(["-t", "tmpfs", "-o", "size=64k", "none"])
        .arg(disk.path())
        .status();
    if !mount.is_ok_and(|status| status.success()) {
        return common::skipped("cannot mount a small disk here");
    }
    let target = Target::start();
    let freeze = target.freeze(&disk.path().join("app.img"), &["--compress", "none"]);
    let left = fs::read_dir(disk.path()).expect("it is mounted").count();
    let unmounted = Command::new("umount")
        .arg(disk.path())
        .status()
        .expect("umount is there");
    assert_code(&freeze, 1);
    assert!(
        stderr(&freeze).contains("No space left on device"),
        "{}",
        stderr(&freeze)
    );
    assert_eq!(left, 0, "something is left on the disk");
    assert!(unmounted.success());
    target.unharmed();
}

#[test]
fn a_file_is_replaced_by_a_complete_image_only() {
    let target = Target::start();
    let image = target.image();
    fs::write(&image, "what was there").expect("the directory takes a file");
    fs::set_permissions(&image, fs::Permissions::from_mode(0o644)).expect("it is ours");
    let gone = i32::MAX.to_string(); // above every pid_max
    assert_ne!(cryopod(&[&"freeze", &gone, &"-o", &image]).status.code(), Some(0));
    assert_eq!(fs::read_to_string(&image).expect("it is still there"), "what was there");
    let freeze = target.freeze(&image, &["--leave-running"]);
    assert_code(&freeze, 0);
    assert_eq!(
        fs::metadata(&image).expect("it was made").permissions().mode() & 0o777,
        0o600
    );
    assert_code(&cryopod(&[&"verify", &image]), 0);
    let names: Vec<_> = fs::read_dir(target.dir.path())
        .expect("it is ours")
        .flatten()
        .map(|e| e.file_name())
        .collect();
    assert_eq!(names, ["app.img"], "nothing but the image is left");
    target.unharmed();
}

#[test]
fn the_last_line_says_that_the_process_ended() {
    let mut target = Target::start();
    let (pid, image) = (target.pid(), target.image());
    let freeze = target.freeze(&image, &["--kill"]);
    assert_code(&freeze, 0);
    let said = String::from_utf8_lossy(&freeze.stdout).into_owned();
    let last = said.lines().last().expect("it says something");
    assert!(last.starts_with(&format!("pid {pid} ended; ")), "{last}");
    assert!(last.contains("app.img"), "{last}");
    target.program.wait();
}

/// What a reader that takes 40 MB a second gets of a program with 64 MB that compress well.
#[test]
fn a_slow_reader_gets_a_small_image() {
    let script = r#"my $heap = join ",", map { "{\"id\": $_, \"path\": \"/index.html\", \"user\": null}" } 1 .. 1400000; print "READY\n"; sleep 1 while 1"#;
    let dir = scratch();
    let program = Program::perl(script, dir.path());
    let mut command = Command::new(CRYOPOD);
    command.args(["-q", "freeze", &program.pid.to_string(), "--leave-running", "-o", "-"]);
    let mut freeze = command.stdout(Stdio::piped()).spawn().expect("cryopod can be run");
    let mut pipe = freeze.stdout.take().expect("it was asked for");
    let (mut image, mut buffer) = (Vec::new(), vec![0; 64 << 10]);
    loop {
        let read = pipe.read(&mut buffer).expect("it is a pipe");
        if read == 0 {
            break;
        }
        image.extend_from_slice(&buffer[..read]);
        std::thread::sleep(Duration::from_secs_f64(read as f64 / 40e6));
    }
    assert!(freeze.wait().expect("it is our child").success());
    let total = Reader::open(&image[..])
        .expect("an image")
        .list(&mut |_, _| ())
        .expect("a whole one");
    assert!(total.stored_bytes > 60 << 20, "{total:?}");
    assert!(total.file_bytes * 4 < total.stored_bytes, "{total:?}");
}

#[test]
fn each_way_to_compress_gives_a_whole_image() {
    let target = Target::start();
    let mut sizes = Vec::new();
    for (how, jobs) in [("auto", "0"), ("zstd", "1"), ("zstd:19", "3"), ("none", "2")] {
        let options = ["--leave-running", "--compress", how, "--jobs", jobs];
        assert_code(&target.freeze(&target.image(), &options), 0);
        assert_code(&cryopod(&[&"verify", &target.image()]), 0);
        sizes.push(fs::metadata(target.image()).expect("it was made").len());
    }
    assert!(sizes[1..3].iter().all(|size| size * 2 < sizes[3]), "{sizes:?}");
    assert!(sizes[0] <= sizes[3], "{sizes:?}");
    target.unharmed();
}

#[test]
fn a_dry_run_writes_nothing() {
    let target = Target::start();
    let freeze = target.freeze(&target.image(), &["--dry-run"]);
    assert_code(&freeze, 0);
    assert!(!target.image().exists());
    target.unharmed();
}

/// As after ^Z of a program whose interval timer fires: nobody may see its signal before it goes on.
#[test]
fn a_signal_that_waits_for_a_stopped_process_is_left_to_wait() {
    let mut target = Target::start();
    target.program.signal_program(Signal::SIGSTOP);
    wait_until("it is stopped", || state(target.program.pid) == Some('T'));
    target.program.signal_program(Signal::SIGUSR1);
    let output = target.freeze(&target.image(), &[]);
    assert_code(&output, 3);
    assert!(stderr(&output).contains("kill -CONT"), "{}", stderr(&output));
    // A stopped task that is detached wakes up in the kernel to stop again (__ptrace_unlink()). One that really goes on dies of SIGUSR1.
    wait_until("it is stopped again", || state(target.program.pid) == Some('T'));
    std::thread::sleep(std::time::Duration::from_millis(50));
    assert_eq!(state(target.program.pid), Some('T'), "it went on");
    target.program.signal_program(Signal::SIGCONT);
    assert_eq!(target.program.wait().signal(), Some(Signal::SIGUSR1 as i32));
}

#[test]
fn a_process_left_stopped_is_resumed_or_ended() {
    let mut target = Target::start();
    assert_code(&target.freeze(&target.image(), &["--leave-stopped"]), 0);
    assert_eq!(state(target.program.pid), Some('T'));
    assert_code(&cryopod(&[&"resume", &target.pid()]), 0);
    wait_until("the program goes on", || state(target.program.pid) != Some('T'));
    assert_code(&cryopod(&[&"end", &target.pid()]), 3); // it is not stopped
    assert_code(&target.freeze(&target.image(), &["--leave-stopped"]), 0);
    let pid = target.pid();
    let end = std::thread::spawn(move || cryopod(&[&"end", &pid]));
    target.program.wait();
    assert_code(&end.join().expect("it does not panic"), 0);
}

#[test]
fn an_image_into_a_pipe_leaves_the_process_stopped() {
    let target = Target::start();
    let freeze = cryopod(&[&"freeze", &target.pid(), &"-o", &"-"]);
    assert_code(&freeze, 0);
    assert_eq!(state(target.program.pid), Some('T'));
    fs::write(target.image(), &freeze.stdout).expect("the directory takes a file");
    assert_code(&cryopod(&[&"verify", &target.image()]), 0);
    assert_code(&cryopod(&[&"resume", &target.pid()]), 0);
    wait_until("the program goes on", || state(target.program.pid) != Some('T'));
    target.unharmed();
}

#[test]
fn a_reader_that_dies_half_way_leaves_the_program_running() {
    let target = Target::start();
    for options in [&[][..], &["--end"], &["--leave-stopped"], &["--leave-running"]] {
        let mut freeze = Command::new(CRYOPOD)
            .args(["freeze", &target.pid(), "--compress", "none", "-o", "-"])
            .args(options)
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("cryopod can be run");
        let mut reader = freeze.stdout.take().expect("it was asked for");
        reader.read_exact(&mut [0; 5000]).expect("an image is longer than that");
        drop(reader);
        let freeze = freeze.wait_with_output().expect("it is our child");
        assert_code(&freeze, 1);
        assert!(stderr(&freeze).contains("Broken pipe"), "{}", stderr(&freeze));
        assert!(exists(target.program.pid), "{options:?}");
        wait_until("the program goes on", || {
            state(target.program.pid).is_some_and(|state| !matches!(state, 'T' | 't'))
        });
    }
    target.unharmed();
}

/// Its writer is not frozen, and may go on to write while the image is written.
#[test]
fn bytes_that_come_too_late_for_the_image_are_told() {
    let dir = scratch();
    let script = r#"my $data = "x" x 3000000; print "READY\n"; <STDIN>"#;
    let mut program = Program::perl_reading(script, dir.path(), Stdio::piped());
    let mut stdin = program.stdin();
    let mut freeze = Command::new(CRYOPOD)
        .args([
            "freeze",
            &program.pid.to_string(),
            "--compress",
            "none",
            "--end",
            "-o",
            "-",
        ])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("cryopod can be run");
    let mut image = freeze.stdout.take().expect("it was asked for");
    // Behind the state, for which the pipe was looked at.
    image
        .read_exact(&mut [0; 100_000])
        .expect("an image is longer than that");
    stdin.write_all(b"late\n").expect("a pipe takes that");
    image.read_to_end(&mut Vec::new()).expect("it is a pipe");
    let freeze = freeze.wait_with_output().expect("it is our child");
    assert_code(&freeze, 0);
    assert!(
        stderr(&freeze).contains("5 bytes came into fd 0"),
        "{}",
        stderr(&freeze)
    );
    assert_eq!(program.wait().signal(), Some(Signal::SIGKILL as i32));
}

#[test]
fn inspect_shows_what_was_frozen() {
    let target = Target::start();
    assert_code(&target.freeze(&target.image(), &["--leave-running"]), 0);
    let text = cryopod(&[&"inspect", &target.image()]);
    assert_code(&text, 0);
    let text = String::from_utf8_lossy(&text.stdout).into_owned();
    assert!(text.contains(&target.pid()) && text.contains("perl"), "{text}");
    let json = cryopod(&[&"inspect", &"--json", &target.image()]);
    assert_code(&json, 0);
    let json: serde_json::Value = serde_json::from_slice(&json.stdout).expect("it is JSON");
    assert!(json.is_object());
    target.unharmed();
}
