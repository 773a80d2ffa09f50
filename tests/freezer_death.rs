//! A freezer that is killed at any moment: the program that it had stopped goes on unharmed, and nothing of it stays behind.
//!
//! The programs watch their own registers, vector registers, timings and data, and tell of it in a shared file.

#[path = "common/build.rs"]
#[allow(dead_code)]
mod build;
#[path = "common/watched.rs"]
#[allow(dead_code)]
mod watched;

use std::io::Read;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use watched::{Watched, freeze_and_ask};

const CRYOPOD: &str = env!("CARGO_BIN_EXE_cryopod");
/// Names the target in the environment of a freezer: this test program once more, which only freezes, over and over.
const FREEZE_THIS: &str = "CRYOPOD_TEST_FREEZE_THIS";

#[test]
fn threads_in_many_calls_survive_100_dead_freezers() {
    survives(build::fixture("freezer/watched.c"), 60, 40);
}

#[test]
fn a_static_program_survives_60_dead_freezers() {
    survives(build::fixture("freezer/watched_static.c"), 30, 30);
}

#[test]
fn a_program_under_a_filter_survives_60_dead_freezers() {
    survives(build::fixture("freezer/filtered.c"), 40, 20);
}

#[test]
fn a_python_program_survives_60_dead_freezers() {
    survives(build::fixture("freezer/watched.py"), 30, 30);
}

#[test]
fn a_storm_of_signals_survives_80_dead_freezers() {
    survives(build::fixture("freezer/signalled.c"), 50, 30);
}

#[test]
fn a_critical_section_of_rseq_survives_30_dead_freezers() {
    survives(build::fixture("freezer/rseq.c"), 30, 0);
}

/// Most of these die while the program is copied, or while its memory is read from the copy.
#[test]
fn a_large_program_survives_80_dead_freezers() {
    survives(build::fixture("freezer/large.c"), 0, 80);
}

/// `in_loans`: freezers that do little but borrow registers; `commands`: whole `cryopod freeze`s.
fn survives(program: Command, in_loans: u32, commands: u32) {
    let target = Watched::start(program);
    let maps = target.maps();
    for death in 0..in_loans {
        kill_a_freezer_of(target.pid());
        target.assert_unharmed(&format!("after death {death} in loans"));
    }
    for death in 0..commands {
        end_a_command(target.pid(), Signal::SIGKILL);
        target.assert_unharmed(&format!("after death {death} of a command"));
    }
    freeze_and_ask(target.pid());
    target.assert_unharmed("after a last, whole freeze");
    assert_eq!(target.maps(), maps, "something of a freezer stays mapped");
}

/// What waits in a pseudo-terminal is taken and put back by a process that does not die with the freezer.
#[test]
fn pseudo_terminals_survive_60_dead_freezers() {
    let mut program = build::fixture("fd/pty.c");
    let mut child = program.stdout(Stdio::piped()).spawn().expect("the fixture starts");
    let mut said = std::io::BufReader::new(child.stdout.take().expect("a pipe"));
    let mut line = String::new();
    std::io::BufRead::read_line(&mut said, &mut line).expect("READY");
    let pid = Pid::from_raw(i32::try_from(child.id()).expect("a pid"));
    nix::sys::prctl::set_child_subreaper(true).expect("PR_SET_CHILD_SUBREAPER");
    for _ in 0..60 {
        end_a_command(pid, Signal::SIGKILL);
    }
    wait_for_orphans(pid);
    kill(pid, Signal::SIGUSR1).expect("a signal");
    said.read_to_string(&mut line).expect("what it says");
    assert_eq!(line, "READY\nPASS\n");
    assert!(child.wait().expect("its end").success());
}

/// Who puts things back lives some milliseconds longer than its freezer, and is our child then.
fn wait_for_orphans(target: Pid) {
    // Orphans go to the first thread of a subreaper (find_new_reaper(), kernel/exit.c).
    let own = format!("/proc/self/task/{}/children", std::process::id());
    let deadline = std::time::Instant::now() + Duration::from_secs(5);
    loop {
        let children = std::fs::read_to_string(&own).expect("our children");
        let mut orphans = children
            .split_whitespace()
            .filter_map(|pid| pid.parse().ok().map(Pid::from_raw));
        let is_there = |pid: Pid| {
            let waited = nix::sys::wait::waitpid(pid, Some(nix::sys::wait::WaitPidFlag::WNOHANG));
            waited == Ok(nix::sys::wait::WaitStatus::StillAlive)
        };
        if !orphans.any(|pid| pid != target && is_there(pid)) {
            return;
        }
        assert!(std::time::Instant::now() < deadline, "an orphan does not end");
        std::thread::sleep(Duration::from_millis(1));
    }
}

#[test]
fn a_stopped_program_stays_stopped_when_its_freezer_dies() {
    let target = Watched::start(build::fixture("freezer/watched.c"));
    kill(target.pid(), Signal::SIGSTOP).expect("a signal");
    for _ in 0..20 {
        kill_a_freezer_of(target.pid());
        target.wait_for_state('T');
    }
    kill(target.pid(), Signal::SIGCONT).expect("a signal");
    target.assert_unharmed("after SIGCONT");
}

/// What a dead freezer left in the target neither stands against a freeze nor goes with it.
#[test]
fn a_program_whose_freezers_died_is_frozen_and_thawed() {
    let mut target = Watched::start(build::fixture("freezer/watched.c"));
    for _ in 0..20 {
        kill_a_freezer_of(target.pid());
    }
    let dir = tempfile::tempdir().expect("a directory for the image");
    let image = dir.path().join("app.img");
    run(Command::new(CRYOPOD)
        .args(["freeze", "-q", "--no-sync", &target.pid().to_string(), "-o"])
        .arg(&image));
    target.child.wait().expect("its end");
    run(Command::new(CRYOPOD).args(["thaw", "-q", "-d"]).arg(&image));
    let thawed = Thawed(target.pid());
    target.assert_unharmed("after its thaw");
    drop(thawed);
}

/// A process that is nobody's child, with the pid that it had. Killed when dropped.
struct Thawed(Pid);

impl Drop for Thawed {
    fn drop(&mut self) {
        let _ended_already = kill(self.0, Signal::SIGKILL);
    }
}

/// Its output goes where ours goes: a thawed program keeps it open.
fn run(command: &mut Command) {
    let status = command.stdin(Stdio::null()).status().expect("cryopod starts");
    assert!(status.success(), "{command:?}: {status}");
}

#[test]
fn freezers_that_other_signals_end_harm_nobody() {
    let target = Watched::start(build::fixture("freezer/watched.c"));
    for signal in [
        Signal::SIGINT,
        Signal::SIGTERM,
        Signal::SIGHUP,
        Signal::SIGQUIT,
        Signal::SIGSEGV,
        Signal::SIGPIPE,
    ] {
        for _ in 0..4 {
            end_a_command(target.pid(), signal);
            target.assert_unharmed(&format!("after {signal}"));
        }
    }
}

/// One whole freeze, ended by a signal at some moment, or complete before. It leaves a complete image or nothing.
fn end_a_command(pid: Pid, signal: Signal) {
    let dir = tempfile::tempdir().expect("a directory for the image");
    let image = dir.path().join("app.img");
    let mut freezer = Command::new(CRYOPOD)
        .args(["freeze", "--leave-running", "--no-sync", "-q", "-o"])
        .arg(&image)
        .arg(pid.to_string())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .expect("a freezer starts");
    std::thread::sleep(Duration::from_micros(random_below(80_000)));
    kill(Pid::from_raw(freezer.id() as i32), signal).expect("a signal");
    let status = freezer.wait().expect("wait for the freezer");
    let left: Vec<_> = std::fs::read_dir(dir.path()).expect("its directory").collect();
    if status.success() {
        assert_eq!(left.len(), 1);
    }
    for entry in left {
        assert_eq!(entry.expect("an entry").path(), image);
        cryopod::image::read::Reader::open(std::fs::File::open(&image).expect("the image")).expect("a whole image");
    }
}

/// The freezer, in a process of its own: does nothing unless it is asked to by [`kill_a_freezer_of`].
#[test]
fn freezer() {
    let Ok(pid) = std::env::var(FREEZE_THIS) else { return };
    let pid = Pid::from_raw(pid.parse().expect("a number"));
    println!("freezing");
    loop {
        freeze_and_ask(pid);
        std::thread::sleep(Duration::from_micros(200));
    }
}

fn kill_a_freezer_of(pid: Pid) {
    let mut freezer = Command::new(std::env::current_exe().expect("this program"))
        .args(["--exact", "freezer", "--nocapture", "--test-threads=1"])
        .env(FREEZE_THIS, pid.to_string())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("a freezer starts");
    wait_for_line(&mut freezer);
    std::thread::sleep(Duration::from_micros(random_below(12_000)));
    let ended = freezer.try_wait().expect("wait for the freezer");
    freezer.kill().expect("kill the freezer");
    freezer.wait().expect("wait for the freezer");
    if ended.is_some() {
        let mut stderr = String::new();
        let mut pipe = freezer.stderr.take().expect("its stderr is piped");
        pipe.read_to_string(&mut stderr).expect("its stderr");
        panic!("the freezer failed: {stderr}");
    }
}

/// Until the freezer says that it begins.
fn wait_for_line(freezer: &mut Child) {
    let stdout = freezer.stdout.as_mut().expect("its stdout is piped");
    let mut seen = Vec::new();
    let mut byte = [0];
    while !seen.ends_with(b"freezing\n") {
        assert_eq!(
            stdout.read(&mut byte).expect("its stdout"),
            1,
            "the freezer did not begin"
        );
        seen.push(byte[0]);
    }
}

/// Good enough to hit every moment.
fn random_below(limit: u64) -> u64 {
    let now = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .expect("after 1970")
        .as_nanos() as u64;
    (now.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 20) % limit
}
