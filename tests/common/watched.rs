//! Programs that watch themselves (fixtures/freezer), and what they report.

use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use cryopod::tracer::{Remote, StoppedProcess, seize};
use nix::unistd::Pid;

const PATIENCE: Duration = Duration::from_secs(30);

/// A program that watches itself. Killed when dropped.
pub struct Watched {
    pub child: Child,
    report: PathBuf,
    _dir: tempfile::TempDir,
}

impl Watched {
    pub fn start(mut program: Command) -> Self {
        let dir = tempfile::tempdir().expect("a directory for the report");
        let report = dir.path().join("report");
        // What leaked into the tests from whoever called them is nothing that the program should hold (and be refused for).
        // SAFETY: close_range(2) is async-signal-safe and touches descriptors only; they close at the exec that follows.
        unsafe {
            program.pre_exec(
                || match libc::syscall(libc::SYS_close_range, 3, u32::MAX, libc::CLOSE_RANGE_CLOEXEC) {
                    0 => Ok(()),
                    _ => Err(std::io::Error::last_os_error()),
                },
            );
        }
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
        watched.assert_goes_on("before it is frozen");
        watched
    }

    pub fn pid(&self) -> Pid {
        Pid::from_raw(self.child.id() as i32)
    }

    /// Nobody traces it, no second process of it runs, every thread goes on, and none found a fault.
    pub fn assert_unharmed(&self, when: &str) {
        for thread in self.threads() {
            let status = std::fs::read_to_string(thread.join("status")).expect("its status");
            assert!(status.contains("TracerPid:\t0\n"), "{when}: traced: {status}");
            let children = std::fs::read_to_string(thread.join("children")).expect("its children");
            for child in children.split_whitespace() {
                assert_dead_copy(child, when);
            }
        }
        self.assert_goes_on(when);
    }

    /// Every thread goes on, and none found a fault.
    pub fn assert_goes_on(&self, when: &str) {
        let before = Report::read(&self.report);
        self.wait_until(when, |report| {
            (0..before.threads as usize).all(|thread| report.beats[thread] > before.beats[thread])
        });
    }

    pub fn wait_for_state(&self, state: char) {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let stat = std::fs::read_to_string(format!("/proc/{}/stat", self.pid())).expect("its stat");
            if stat.contains(&format!(") {state} ")) {
                return;
            }
            assert!(Instant::now() < deadline, "not {state}: {stat}");
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    fn threads(&self) -> Vec<PathBuf> {
        let entries = std::fs::read_dir(format!("/proc/{}/task", self.pid())).expect("its threads");
        entries.map(|thread| thread.expect("a thread").path()).collect()
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
    pub fn maps(&self) -> Vec<String> {
        let maps = std::fs::read_to_string(format!("/proc/{}/maps", self.pid())).expect("its maps");
        let named = |line: &&str| line.split_whitespace().count() > 5 && !line.ends_with("[heap]");
        // Where the pages for results are: from 16 TiB up, below all that the kernel places.
        let far = |line: &&str| line.as_bytes().get(12) == Some(&b'-') && line.starts_with(['1', '2', '3', '4']);
        maps.lines()
            .filter(|line| named(line) || far(line))
            .map(str::to_owned)
            .collect()
    }
}

/// What a freezer that is killed may leave: a copy of the program that has ended, or is about to, which no wait(2) of the program shows
/// since its exit signal is none (`src/tracer/copy.rs`), until the next freeze reaps it.
fn assert_dead_copy(child: &str, when: &str) {
    // It was seen to take 30 s for its last steps in the kernel beside 500 runnable threads on two CPUs.
    let deadline = Instant::now() + 4 * PATIENCE;
    loop {
        let Ok(stat) = std::fs::read_to_string(format!("/proc/{child}/stat")) else {
            return; // a freezer that lives has reaped it
        };
        let (_, fields) = stat.rsplit_once(") ").expect("a stat");
        let fields: Vec<&str> = fields.split(' ').collect();
        assert_eq!(fields[38 - 3], "200", "{when}: another child: {stat}");
        if fields[0] == "Z" {
            return;
        }
        assert!(Instant::now() < deadline, "{when}: it lives: {stat}");
        std::thread::sleep(Duration::from_millis(1));
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

/// All that a freeze does to a target.
pub fn freeze_and_ask(pid: Pid) {
    let mut process = seize(pid).expect("the target can be seized");
    process.reap_dead_copies().expect("what dead freezers left is reaped");
    assert!(process.children().expect("children").is_empty());
    for thread in 0..process.threads().len() {
        ask(&mut process, thread).expect("a thread answers");
    }
    process.resume().expect("the target goes on");
}

pub fn ask(process: &mut StoppedProcess, thread: usize) -> cryopod::tracer::Result<()> {
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
