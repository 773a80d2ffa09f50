//! How a stopped process is let go: on as it was, ended, or stopped for whoever comes next.

use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::process::StoppedProcess;
use super::{Error, Result};

/// How long the kernel may take to end or stop a process that has been told to.
const PATIENCE: Duration = Duration::from_secs(10);

impl StoppedProcess {
    /// Everything goes on as it was; a process that was stopped (group-stop) stays so.
    pub fn resume(mut self) -> Result<()> {
        self.detach_all()
    }

    /// Ends the process, and waits until it is gone or a zombie that its parent has yet to wait for.
    pub fn end(self) -> anyhow::Result<()> {
        self.kill()?;
        self.wait_for_end()
    }

    /// Ends the process; it takes effect at once, as it stands still.
    pub(super) fn kill(&self) -> anyhow::Result<()> {
        match kill(self.pid, Signal::SIGKILL) {
            Ok(()) | Err(nix::Error::ESRCH) => Ok(()),
            Err(errno) => Err(errno).with_context(|| format!("kill {}", self.pid)),
        }
    }

    /// Waits until it is gone, once it was killed, or a zombie that its parent has yet to wait for.
    pub(super) fn wait_for_end(mut self) -> anyhow::Result<()> {
        let pid = self.pid;
        let parent_is_us = self
            .proc
            .stat()
            .is_ok_and(|stat| stat.ppid == std::process::id() as i32);
        // The leader's end is reported last, after that of all others.
        for thread in self.threads.drain(..).rev() {
            let leader = thread.tid() == pid;
            reap(thread.tid(), leader && parent_is_us)?;
        }
        wait_for_state(&self, PATIENCE, "end", |state| {
            state.is_none_or(|state| matches!(state, 'Z' | 'X' | 'x'))
        })
    }

    /// Stopped as by SIGSTOP once this returns, so that SIGCONT lets it go on.
    pub fn leave_stopped(mut self) -> anyhow::Result<()> {
        if self.group_stop().is_none() {
            // The first thread that goes on takes the signal before it is back in its program, and with it all stop.
            kill(self.pid, Signal::SIGSTOP).with_context(|| format!("send SIGSTOP to {}", self.pid))?;
        }
        self.detach_all()?;
        wait_for_state(&self, PATIENCE, "stop", |state| {
            state.is_none_or(|state| matches!(state, 'T' | 'Z' | 'X' | 'x'))
        })
    }

    /// Lets every thread go even where one is gone (another process may have killed it); tells of the first other error.
    fn detach_all(&mut self) -> Result<()> {
        let mut outcome = Ok(());
        for (index, thread) in self.threads.drain(..).enumerate() {
            // The first runs, and may end the process, while others are still to be let go.
            let detached = match index {
                0 => thread.task.detach(0),
                _ => thread.task.detach_or_reap(),
            };
            match detached {
                Ok(()) | Err(Error::Gone(_)) => {}
                Err(error) if outcome.is_ok() => outcome = Err(error),
                Err(_later) => {}
            }
        }
        outcome
    }
}

/// Waits for the end of a task as its tracer. The end of our own child is left for us as its parent, too (`keep`).
pub(super) fn reap(tid: Pid, keep: bool) -> Result<()> {
    let options = libc::WEXITED | libc::__WALL | if keep { libc::WNOWAIT } else { 0 };
    loop {
        // SAFETY: a zeroed siginfo_t is a valid one, and waitid fills it.
        let rc = unsafe {
            let mut info: libc::siginfo_t = std::mem::zeroed();
            libc::waitid(libc::P_PID, tid.as_raw() as u32, &raw mut info, options)
        };
        match nix::errno::Errno::result(rc) {
            Ok(_) | Err(nix::Error::ECHILD) => return Ok(()),
            Err(nix::Error::EINTR) => {}
            Err(errno) => {
                return Err(Error::Call {
                    tid,
                    name: "waitid",
                    errno,
                });
            }
        }
    }
}

/// Waits until the state of the process (None: it is gone) is as wanted.
fn wait_for_state(
    process: &StoppedProcess,
    patience: Duration,
    what: &str,
    wanted: impl Fn(Option<char>) -> bool,
) -> anyhow::Result<()> {
    let deadline = Instant::now() + patience;
    while !wanted(process.proc.stat().ok().map(|stat| stat.state)) {
        if Instant::now() > deadline {
            bail!("pid {} did not {what} within {} s", process.pid, patience.as_secs());
        }
        std::thread::sleep(Duration::from_micros(50));
    }
    Ok(())
}
