//! A freezer that is killed at any moment: the program that it had stopped goes on unharmed, and nothing of it stays behind.
//!
//! The programs watch their own registers, vector registers, timings and data, and tell of it in a shared file.

#[path = "common/build.rs"]
#[allow(dead_code)]
mod build;

use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use cryopod::tracer::{Remote, StoppedProcess, seize};
use nix::unistd::Pid;

/// Names the target in the environment of a freezer: this test program once more, which only freezes, over and over.
const FREEZE_THIS: &str = "CRYOPOD_TEST_FREEZE_THIS";
const PATIENCE: Duration = Duration::from_secs(30);

#[test]
fn threads_in_many_calls_survive_100_dead_freezers() {
    survives(build::fixture("freezer/watched.c"), 100);
}

#[test]
fn a_static_program_survives_60_dead_freezers() {
    survives(build::fixture("freezer/watched_static.c"), 60);
}

#[test]
fn a_python_program_survives_60_dead_freezers() {
    survives(build::fixture("freezer/watched.py"), 60);
}

#[test]
fn a_storm_of_signals_survives_80_dead_freezers() {
    survives(build::fixture("freezer/signalled.c"), 80);
}

fn survives(program: Command, deaths: u32) {
    let target = Watched::start(program);
    let maps = target.maps();
    for death in 0..deaths {
        kill_a_freezer_of(target.pid());
        target.assert_unharmed(&format!("after death {death}"));
    }
    freeze_and_ask(target.pid());
    target.assert_unharmed("after a last, whole freeze");
    assert_eq!(target.maps(), maps, "something of a freezer stays mapped");
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

/// All that a freeze does to a target.
fn freeze_and_ask(pid: Pid) {
    let mut process = seize(pid).expect("the target can be seized");
    assert!(process.children().expect("children").is_empty());
    for thread in 0..process.threads().len() {
        ask(&mut process, thread).expect("a thread answers");
    }
    process.resume().expect("the target goes on");
}

fn ask(process: &mut StoppedProcess, thread: usize) -> cryopod::tracer::Result<()> {
    let mut remote = Remote::borrow(process, thread)?;
    remote.sigaltstack()?;
    remote.get_tid_address()?;
    remote.get_pdeath_signal()?;
    if thread == 0 {
        for signal in 1..=64 {
            remote.sigaction(signal)?;
        }
        remote.brk()?;
    }
    remote.give_back()
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

/// A program that watches itself. Killed when dropped.
struct Watched {
    child: Child,
    report: PathBuf,
    _dir: tempfile::TempDir,
}

impl Watched {
    fn start(mut program: Command) -> Self {
        let dir = tempfile::tempdir().expect("a directory for the report");
        let report = dir.path().join("report");
        let child = program
            .arg(&report)
            .stdin(Stdio::null())
            .spawn()
            .expect("the program starts");
        let watched = Watched {
            child,
            report,
            _dir: dir,
        };
        watched.wait_until("it runs", |report| report.threads > 0);
        watched.assert_unharmed("before it is frozen");
        watched
    }

    fn pid(&self) -> Pid {
        Pid::from_raw(self.child.id() as i32)
    }

    /// Nobody traces it, it has no second process, every thread goes on, and none found a fault.
    fn assert_unharmed(&self, when: &str) {
        let task = format!("/proc/{}/task", self.pid());
        for thread in std::fs::read_dir(&task).expect("its threads") {
            let dir = thread.expect("a thread").path();
            let status = std::fs::read_to_string(dir.join("status")).expect("its status");
            assert!(status.contains("TracerPid:\t0\n"), "{when}: traced: {status}");
            assert_eq!(
                std::fs::read_to_string(dir.join("children")).expect("its children"),
                "",
                "{when}"
            );
        }
        let before = Report::read(&self.report);
        self.wait_until(when, |report| {
            (0..before.threads as usize).all(|thread| report.beats[thread] > before.beats[thread])
        });
    }

    fn wait_until(&self, what: &str, done: impl Fn(&Report) -> bool) {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let report = Report::read(&self.report);
            assert_eq!(report.faults, 0, "{what}: {}", report.first_fault);
            if done(&report) {
                return;
            }
            assert!(Instant::now() < deadline, "{what}: stuck at {:?}", report.beats);
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    /// Addresses and rights of all mappings but those of the heap, which come and go.
    fn maps(&self) -> Vec<String> {
        let maps = std::fs::read_to_string(format!("/proc/{}/maps", self.pid())).expect("its maps");
        let named = |line: &&str| line.split_whitespace().count() > 5 && !line.ends_with("[heap]");
        let far = |line: &&str| {
            line.len() > 12 && ('1'..='5').contains(&line.chars().next().unwrap_or('0')) && line.as_bytes()[12] == b'-'
        };
        maps.lines()
            .filter(|line| named(line) || far(line))
            .map(str::to_owned)
            .collect()
    }
}

impl Drop for Watched {
    fn drop(&mut self) {
        let _ended_already = self.child.kill();
        let _waited_for_already = self.child.wait();
    }
}

/// struct report of fixtures/freezer/report.h.
struct Report {
    threads: u64,
    faults: u64,
    beats: Vec<u64>,
    first_fault: String,
}

impl Report {
    /// Zeros until the program has made it.
    fn read(path: &Path) -> Self {
        let mut bytes = std::fs::read(path).unwrap_or_default();
        bytes.resize(16 + 64 * 8 + 256, 0);
        let (words, text) = bytes.split_at(16 + 64 * 8);
        let words: Vec<u64> = words
            .chunks_exact(8)
            .map(|word| u64::from_ne_bytes(word.try_into().expect("eight bytes")))
            .collect();
        let first_fault = String::from_utf8_lossy(text).trim_end_matches('\0').to_owned();
        Report {
            threads: words[0],
            faults: words[1],
            beats: words[2..].to_vec(),
            first_fault,
        }
    }
}
