//! Running cryopod and its like as a user would, with the time and the memory that they took.

use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};

pub const CRYOPOD: &str = env!("CARGO_BIN_EXE_cryopod");

/// What one run of a command took.
#[derive(Debug, Clone, Copy)]
pub struct Took {
    /// From before its start until it was waited for.
    pub wall: Duration,
    /// User and system time, which a busy machine changes less.
    pub cpu: Duration,
    /// ru_maxrss of wait4(2).
    pub peak_bytes: u64,
}

/// Runs a command that must succeed, its standard output discarded.
pub fn run(command: &mut Command) -> Result<Took> {
    let errors = std::env::temp_dir().join(format!("cryopod-bench-{}.err", std::process::id()));
    command.stdin(Stdio::null()).stdout(Stdio::null());
    command.stderr(std::fs::File::create(&errors).context("create a file for messages")?);
    let begin = Instant::now();
    let child = command.spawn().with_context(|| format!("start {command:?}"))?;
    let (status, usage) = wait(child.id() as i32)?;
    let wall = begin.elapsed();
    let messages = std::fs::read_to_string(&errors).unwrap_or_default();
    std::fs::remove_file(&errors).context("remove the file for messages")?;
    ensure!(status.success(), "{command:?}: {status}: {messages}");
    let time = |time: libc::timeval| Duration::new(time.tv_sec as u64, time.tv_usec as u32 * 1000);
    Ok(Took {
        wall,
        cpu: time(usage.ru_utime) + time(usage.ru_stime),
        peak_bytes: usage.ru_maxrss as u64 * 1024,
    })
}

/// wait4(2), which std does not have: how a child ended, and what it used.
pub fn wait(pid: i32) -> Result<(ExitStatus, libc::rusage)> {
    let mut status = 0;
    // SAFETY: a zeroed rusage is a valid one; the kernel fills both.
    let (waited, usage) = unsafe {
        let mut usage: libc::rusage = std::mem::zeroed();
        (libc::wait4(pid, &raw mut status, 0, &raw mut usage), usage)
    };
    nix::errno::Errno::result(waited).with_context(|| format!("wait for {pid}"))?;
    Ok((ExitStatus::from_raw(status), usage))
}

/// `cryopod freeze`, which ends the process; it is waited for, so that its pid is free.
pub fn freeze(pid: i32, image: &Path, options: &[&str]) -> Result<Took> {
    let mut command = Command::new(CRYOPOD);
    command
        .arg("-q")
        .arg("freeze")
        .arg(pid.to_string())
        .arg("-o")
        .arg(image)
        .args(options);
    let took = run(&mut command)?;
    let (status, _) = wait(pid)?;
    ensure!(
        status.signal() == Some(libc::SIGKILL),
        "the frozen process ended otherwise: {status}"
    );
    reap_orphans();
    Ok(took)
}

/// Its children are left to us; all have ended by now, and their ids are to be free.
fn reap_orphans() {
    // SAFETY: nobody asks for the status.
    while unsafe { libc::waitpid(-1, std::ptr::null_mut(), libc::WNOHANG) } > 0 {}
}

/// `cryopod thaw --detach`: returns once the program runs, which is our child then.
pub fn thaw(image: &Path) -> Result<Took> {
    run(Command::new(CRYOPOD).args(["-q", "thaw", "--detach"]).arg(image))
}

/// A program that is frozen, started by us; ended with the value.
pub struct Target {
    pub pid: i32,
}

impl Target {
    /// One of [`crate::program`], once it says that it is ready.
    pub fn start(args: &[&str]) -> Result<Self> {
        use std::io::Read;
        let mut command = Command::new(std::env::current_exe()?);
        command.arg(crate::program::COMMAND).args(args);
        let mut child = command.stdin(Stdio::null()).stdout(Stdio::piped()).spawn()?;
        let target = Target { pid: child.id() as i32 };
        let mut ready = String::new();
        // It closes its standard output once it is ready, so that nothing but memory and threads is left to carry.
        child.stdout.take().expect("it is piped").read_to_string(&mut ready)?;
        if ready.trim() != "ready" {
            bail!("{args:?} did not come up: {ready:?}");
        }
        Ok(target)
    }

    /// The smallest program there is on every machine.
    pub fn tiny() -> Result<Self> {
        let mut command = Command::new("/usr/bin/sleep");
        command
            .arg("1000000")
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null());
        let target = Target {
            pid: command.spawn()?.id() as i32,
        };
        // Until it sleeps: the loader is done then.
        let wchan = PathBuf::from(format!("/proc/{}/syscall", target.pid));
        let begin = Instant::now();
        while !std::fs::read_to_string(&wchan)?.starts_with(&format!("{} ", libc::SYS_clock_nanosleep)) {
            ensure!(begin.elapsed() < Duration::from_secs(5), "sleep does not sleep");
            std::thread::sleep(Duration::from_millis(1));
        }
        Ok(target)
    }
}

impl Drop for Target {
    fn drop(&mut self) {
        // Between a freeze and a thaw there is none, which is what the first of these says then.
        // SAFETY: the call takes numbers only.
        if unsafe { libc::kill(self.pid, libc::SIGKILL) } == 0 {
            let _gone = wait(self.pid);
        }
    }
}
