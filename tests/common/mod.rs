//! What the tests of whole programs share: build a fixture, start it, freeze it, prove that it is gone, thaw it, ask it.
#![allow(dead_code, unused_macros)] // each test file uses a part

pub mod build;
pub mod control_group;
pub mod frozen;
pub mod output;
pub mod rewrite;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use output::Output;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::Path;
use std::process::{Child, ChildStdin, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

pub const CRYOPOD: &str = env!("CARGO_BIN_EXE_cryopod");
/// Nothing in a test takes longer, even on a busy machine, unless it hangs.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// A program under test: one that we started, or one that a `cryopod thaw` of ours runs. Ended when dropped.
pub struct Program {
    /// Our child: the program itself, or the thaw that stands in for it.
    child: Child,
    pub pid: i32,
    pub output: Output,
}

impl Program {
    pub fn start(command: &mut Command) -> Self {
        Program::start_reading(command, Stdio::null())
    }

    /// Starts with another stdin than /dev/null.
    pub fn start_reading(command: &mut Command, stdin: Stdio) -> Self {
        // What leaked into the tests from whoever called them is nothing that the program should hold (and be refused for).
        // SAFETY: close_range(2) and fcntl(2) are async-signal-safe and touch descriptors only; they close at the exec that follows.
        unsafe {
            command.pre_exec(|| {
                if libc::syscall(libc::SYS_close_range, 3, u32::MAX, libc::CLOSE_RANGE_CLOEXEC) != 0 {
                    // Before Linux 5.11.
                    (3..1024).for_each(|fd| _ = libc::fcntl(fd, libc::F_SETFD, libc::FD_CLOEXEC));
                }
                Ok(())
            });
        }
        let mut child = command
            .stdin(stdin)
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap_or_else(|e| panic!("start {command:?}: {e}"));
        let output = Output::of(&mut child);
        let pid = child.id() as i32;
        STARTED
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner)
            .push(pid);
        Program { child, pid, output }
    }

    /// Freezes the program, which ends, and proves that its pid is gone.
    pub fn freeze(mut self, image: &Path) {
        self.freeze_with(image, &[]);
        let status = self.wait();
        // We are the parent of the program, or of the thaw that ends as the program ended.
        let killed = status.signal() == Some(libc::SIGKILL) || status.code() == Some(128 + libc::SIGKILL);
        assert!(
            killed,
            "the frozen program ended with {status}; it wrote {}",
            self.output
        );
        assert!(!exists(self.pid), "/proc/{} is still there after the freeze", self.pid);
    }

    /// Freezes with more options, and says nothing about what became of the program.
    pub fn freeze_with(&mut self, image: &Path, options: &[&str]) {
        let pid = self.pid.to_string();
        let mut command = Command::new(CRYOPOD);
        command
            .args(["freeze", &pid, "--no-sync", "-o"])
            .arg(image)
            .args(options);
        let result = command.output().expect("cryopod can be run");
        let messages = String::from_utf8_lossy(&result.stderr);
        assert!(result.status.success(), "{command:?}: {}: {messages}", result.status);
    }

    /// A script of perl, which knows all signals and needs no compiler, when it has written READY.
    pub fn perl(script: &str, dir: &Path) -> Self {
        Program::perl_reading(script, dir, Stdio::null())
    }

    pub fn perl_reading(script: &str, dir: &Path, stdin: Stdio) -> Self {
        let mut command = Command::new("perl");
        command.args(["-e", &format!("$| = 1; {script}")]).current_dir(dir);
        let mut program = Program::start_reading(&mut command, stdin);
        program.wait_for(|line| line == "READY");
        program
    }

    /// Thaws an image of the process `pid` in the foreground.
    pub fn thaw(image: &Path, pid: i32) -> Self {
        Program::thaw_by(Command::new(CRYOPOD).arg("thaw").arg(image), pid, Stdio::null())
    }

    /// Runs a `cryopod thaw` that stays in the foreground, and waits until `pid` is there again.
    pub fn thaw_by(command: &mut Command, pid: i32, stdin: Stdio) -> Self {
        let mut program = Program::start_reading(command, stdin);
        program.pid = pid;
        let deadline = Instant::now() + PATIENCE;
        while parent(pid) != Some(program.child.id() as i32) || !runs_by_itself(pid) {
            if let Some(status) = program.child.try_wait().expect("our own child can be waited for") {
                panic!("thaw ended with {status} before process {pid} ran: {}", program.output);
            }
            assert!(Instant::now() < deadline, "thaw does not get on: {}", program.output);
            std::thread::sleep(Duration::from_millis(2));
        }
        program
    }

    /// Sends a signal to our child. A thaw passes it on to the program.
    pub fn signal(&self, signal: Signal) {
        kill(Pid::from_raw(self.child.id() as i32), signal).expect("our own child can be signalled");
    }

    /// Expects a program that was told to go on and check itself to pass.
    pub fn expect_pass(mut self) {
        self.output
            .wait_for(|line| line == "PASS" || line.starts_with("FAIL"), &mut self.child);
        let status = self.wait();
        assert!(status.success() && self.output.has("PASS"), "{status}: {}", self.output);
    }

    /// What the program, or the thaw in front of it, reads.
    pub fn stdin(&mut self) -> ChildStdin {
        self.child
            .stdin
            .take()
            .expect("it was started with a pipe as stdin, and this is the first call")
    }

    /// Our child: the program, or the thaw in front of it.
    pub fn child_id(&self) -> i32 {
        self.child.id() as i32
    }

    /// Sends a signal to the program itself.
    pub fn signal_program(&self, signal: Signal) {
        kill(Pid::from_raw(self.pid), signal).expect("the program can be signalled");
    }

    /// Waits until a line of the output fulfils a condition, and returns it.
    pub fn wait_for(&mut self, condition: impl Fn(&str) -> bool) -> String {
        self.output.wait_for(condition, &mut self.child)
    }

    pub fn wait(&mut self) -> ExitStatus {
        let deadline = Instant::now() + PATIENCE;
        loop {
            if let Some(status) = self.child.try_wait().expect("our own child can be waited for") {
                return status;
            }
            assert!(
                Instant::now() < deadline,
                "process {} does not end: {}",
                self.pid,
                self.output
            );
            std::thread::sleep(Duration::from_millis(2));
        }
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        let ours = self.child.id() as i32;
        // Of a thawed program only the thaw is our child; the number alone might be somebody else's by now.
        if self.pid != ours && parent(self.pid) == Some(ours) {
            let _ = kill(Pid::from_raw(self.pid), Signal::SIGKILL);
        }
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Whether the process is there, be it only as a zombie.
pub fn exists(pid: i32) -> bool {
    Path::new(&format!("/proc/{pid}")).exists()
}

/// A line of /proc/PID/status.
pub fn status(pid: i32, name: &str) -> Option<String> {
    let bytes = std::fs::read(format!("/proc/{pid}/status")).ok()?; // a name need not be UTF-8
    let line = String::from_utf8_lossy(&bytes)
        .lines()
        .find_map(|line| Some(line.strip_prefix(name)?.strip_prefix(':')?.trim().to_owned()))?;
    Some(line)
}

/// The letter of the process's state (proc_pid_status(5)): `T` is stopped.
pub fn state(pid: i32) -> Option<char> {
    status(pid, "State")?.chars().next()
}

/// Before a thaw traces the process it is a copy of thaw, and after that it is traced until it is let go.
pub fn runs_by_itself(pid: i32) -> bool {
    let exe = std::fs::read_link(format!("/proc/{pid}/exe")).unwrap_or_default();
    // Thaw has processes of its own under these ids for a moment, which are zombies before it waits for them.
    let is_thaws = exe == Path::new(CRYOPOD) || status(pid, "Name").as_deref() == Some("cryopod");
    !is_thaws && is_untraced(pid)
}

/// No thread of it has a tracer: a thaw lets the first go first.
fn is_untraced(pid: i32) -> bool {
    let tasks = std::fs::read_dir(format!("/proc/{pid}/task"));
    let mut threads = tasks.into_iter().flatten().flatten();
    threads.all(|task| {
        let bytes = std::fs::read(task.path().join("status")).unwrap_or_default();
        String::from_utf8_lossy(&bytes)
            .lines()
            .any(|line| line == "TracerPid:\t0")
    })
}

fn parent(pid: i32) -> Option<i32> {
    status(pid, "PPid")?.parse().ok()
}

/// Waits until something is so.
pub fn wait_until(what: &str, is_so: impl Fn() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !is_so() {
        assert!(Instant::now() < deadline, "waited in vain: {what}");
        std::thread::sleep(Duration::from_millis(2));
    }
}

/// Runs cryopod to its end.
pub fn cryopod(args: &[&dyn AsRef<std::ffi::OsStr>]) -> std::process::Output {
    let mut command = Command::new(CRYOPOD);
    command.args(args.iter().map(|arg| arg.as_ref()));
    command.output().expect("cryopod can be run")
}

pub fn stderr(output: &std::process::Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// A directory for the images of one test; empty and gone afterwards.
pub fn scratch() -> tempfile::TempDir {
    tempfile::Builder::new()
        .prefix("cryopod-test-")
        .tempdir()
        .expect("a directory for images")
}

/// Whether this test can choose pids, which thaw needs. Says so where it cannot, and counts it.
pub fn can_thaw() -> bool {
    let root = nix::unistd::geteuid().is_root();
    if !root {
        skipped("needs root (CAP_CHECKPOINT_RESTORE)");
    }
    root
}

/// Records that the running test is skipped; `tests/run` shows how many were and why.
pub fn skipped(why: &str) {
    // nextest runs a test on a process's main thread, and tells the name.
    let test = std::env::var("NEXTEST_TEST_NAME").ok();
    let test = test
        .or_else(|| std::thread::current().name().map(str::to_owned))
        .unwrap_or_default();
    eprintln!("skipped: {why}");
    let Some(file) = std::env::var_os("CRYOPOD_SKIPPED") else {
        return;
    };
    let line = format!("skipped: {test}: {why}\n");
    let open = std::fs::OpenOptions::new().append(true).create(true).open(&file);
    open.and_then(|mut file| std::io::Write::write_all(&mut file, line.as_bytes()))
        .unwrap_or_else(|e| panic!("write {file:?}: {e}"));
}

/// The round trips of one program that checks itself.
pub struct RoundTrip {
    start: Box<dyn Fn() -> Command>,
    go: Go,
    dir: tempfile::TempDir,
}

/// What tells a program to go on after READY.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Go {
    /// SIGUSR1; a thaw in the foreground passes it on.
    Signal,
    /// A file named `go` in the working directory, for those who use the signal themselves, as virtual machines do.
    File,
}

impl RoundTrip {
    /// `None` where this machine cannot run it.
    pub fn of(source: &'static str) -> Option<Self> {
        let go = match source.rsplit_once('.') {
            Some((_, "c" | "go")) => Go::Signal,
            _ => Go::File,
        };
        build::fixture(source); // made outside of the time that a test waits for READY
        RoundTrip::new(move || build::fixture(source), go)
    }

    pub fn new(start: impl Fn() -> Command + 'static, go: Go) -> Option<Self> {
        let start = Box::new(start);
        can_thaw().then(|| RoundTrip {
            start,
            go,
            dir: scratch(),
        })
    }

    /// Freezes and thaws the program `times` times before it checks itself.
    pub fn cycles(&self, times: usize) {
        let Some(mut program) = self.ready(times) else { return };
        let pid = program.pid;
        for n in 0..times {
            let image = self.dir.path().join(format!("{n}.img"));
            program.freeze(&image);
            program = Program::thaw(&image, pid);
        }
        self.expect_pass(program);
    }

    /// Freezes with `--leave-running`: nothing may happen to the original.
    pub fn left_running(&self) {
        let Some(mut program) = self.ready(1) else { return };
        program.freeze_with(&self.dir.path().join("running.img"), &["--leave-running"]);
        self.expect_pass(program);
    }

    /// The working directory of the program, and where the images are.
    pub fn dir(&self) -> &Path {
        self.dir.path()
    }

    /// The program, ready; `None` where it says that this machine lacks something.
    fn ready(&self, freezes: usize) -> Option<Program> {
        let mut command = (self.start)();
        let mut program = Program::start(command.current_dir(self.dir.path()).env("FREEZES", freezes.to_string()));
        let line = program.wait_for(|line| line == "READY" || line.starts_with("SKIP "));
        match line.strip_prefix("SKIP ") {
            Some(why) => {
                skipped(why);
                None
            }
            None => Some(program),
        }
    }

    fn expect_pass(&self, program: Program) {
        match self.go {
            Go::Signal => program.signal(Signal::SIGUSR1),
            Go::File => std::fs::write(self.dir.path().join("go"), "").expect("the file can be made"),
        }
        program.expect_pass();
    }
}

/// Tests that a fixture survives one cycle, two cycles, and a freeze that leaves it running.
macro_rules! roundtrip {
    ($name:ident, $source:literal) => {
        mod $name {
            #[test]
            fn once() {
                crate::common::RoundTrip::of($source).inspect(|trip| trip.cycles(1));
            }
            #[test]
            fn twice() {
                crate::common::RoundTrip::of($source).inspect(|trip| trip.cycles(2));
            }
            #[test]
            fn left_running() {
                crate::common::RoundTrip::of($source).inspect(|trip| trip.left_running());
            }
        }
    };
}
#[allow(unused_imports)]
pub(crate) use roundtrip;

/// Orphans of frozen trees come to this test, which waits for them at once: init takes its time on some machines. What is a zombie for longer
/// than those take who wait for their own children is an orphan, unless it is a program under test.
pub fn reap_orphans() {
    static ONCE: std::sync::Once = std::sync::Once::new();
    ONCE.call_once(|| {
        nix::sys::prctl::set_child_subreaper(true).expect("PR_SET_CHILD_SUBREAPER");
        std::thread::spawn(|| {
            let mut before = Vec::new();
            loop {
                let zombies = zombie_children();
                for pid in zombies.iter().filter(|pid| before.contains(*pid)) {
                    let _someone_has =
                        nix::sys::wait::waitpid(Pid::from_raw(*pid), Some(nix::sys::wait::WaitPidFlag::WNOHANG));
                }
                before = zombies;
                std::thread::sleep(Duration::from_millis(50));
            }
        });
    });
}

fn zombie_children() -> Vec<i32> {
    let own = std::process::id();
    let tasks = std::fs::read_dir(format!("/proc/{own}/task"))
        .into_iter()
        .flatten()
        .flatten();
    let lists = tasks.map(|task| std::fs::read_to_string(task.path().join("children")).unwrap_or_default());
    let started = STARTED.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    let is_orphan = |pid: &i32| state(*pid) == Some('Z') && !started.contains(pid);
    lists
        .flat_map(|list| {
            list.split_whitespace()
                .filter_map(|pid| pid.parse().ok())
                .collect::<Vec<i32>>()
        })
        .filter(is_orphan)
        .collect()
}

/// Programs under test, each of which waits for itself.
static STARTED: std::sync::Mutex<Vec<i32>> = std::sync::Mutex::new(Vec::new());
