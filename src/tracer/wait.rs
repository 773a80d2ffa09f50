//! waitpid(2) for one named task, decoded.

use std::time::{Duration, Instant};

use nix::unistd::Pid;

use super::proc::ProcDir;
use super::{Error, Result};

/// Why a task is in ptrace-stop.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stop {
    /// PTRACE_EVENT_STOP: by PTRACE_INTERRUPT, a new CLONE_PTRACE child (SIGTRAP), or a group-stop (the stopping signal).
    Interrupted { signal: i32 },
    /// Entry to or exit from a system call (PTRACE_O_TRACESYSGOOD).
    Syscall,
    /// About to get a signal.
    Signal(i32),
    /// Another PTRACE_EVENT_*.
    Event(i32),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Waited {
    Stopped(Stop),
    Exited(i32),
    Killed(i32),
}

/// Waits for the next change of state of `tid`. A named wait is O(1); waitpid(-1) is O(n) in tracees.
pub fn wait_for(tid: Pid) -> Result<Waited> {
    loop {
        if let Some(waited) = wait_until(tid, Instant::now() + LOOKS)? {
            return Ok(waited);
        }
    }
}

/// How long a task may take before somebody looks whether it has ended.
const LOOKS: Duration = Duration::from_millis(100);

/// As [`wait_for`], but gives up at `deadline`. waitpid(2) knows no time limit, so this asks again and again, at first often.
///
/// That a task is gone is also looked for, if this takes long: the end of a first thread is reported after that of all others
/// (delay_group_leader(), kernel/exit.c), whom we trace as well, so that a wait for a program that somebody kills would last for ever.
pub fn wait_until(tid: Pid, deadline: Instant) -> Result<Option<Waited>> {
    let mut pause = Duration::ZERO;
    let mut looks_at = Instant::now() + LOOKS;
    loop {
        if let Some(waited) = poll(tid)? {
            return Ok(Some(waited));
        }
        let now = Instant::now();
        if now >= looks_at {
            if has_ended(tid) {
                return Err(Error::Gone(tid));
            }
            looks_at = now + LOOKS;
        }
        if now >= deadline {
            return Ok(None);
        }
        // A thread that is woken to stop does so within microseconds, on a CPU that may be ours.
        if pause < YIELDING {
            std::thread::yield_now();
        } else {
            std::thread::sleep(pause.min(Duration::from_millis(1)));
        }
        pause += Duration::from_micros(1);
    }
}

const YIELDING: Duration = Duration::from_micros(50);

fn has_ended(tid: Pid) -> bool {
    let stat = ProcDir::open(tid).and_then(|proc| proc.stat());
    stat.is_ok_and(|stat| stat.is_dead())
}

fn poll(tid: Pid) -> Result<Option<Waited>> {
    let mut status = 0;
    // SAFETY: waitpid writes one int to `status`.
    let waited = unsafe { libc::waitpid(tid.as_raw(), &raw mut status, libc::__WALL | libc::WNOHANG) };
    match nix::errno::Errno::result(waited) {
        Ok(0) => Ok(None),
        Ok(_) => Ok(Some(decode(status))),
        Err(nix::Error::ECHILD) => Err(Error::Gone(tid)),
        Err(errno) => Err(Error::Call {
            tid,
            name: "waitpid",
            errno,
        }),
    }
}

/// ptrace(2), "PTRACE_EVENT stops": the event is in the high half of the status.
fn decode(status: i32) -> Waited {
    if libc::WIFEXITED(status) {
        return Waited::Exited(libc::WEXITSTATUS(status));
    }
    if libc::WIFSIGNALED(status) {
        return Waited::Killed(libc::WTERMSIG(status));
    }
    let signal = libc::WSTOPSIG(status);
    Waited::Stopped(match status >> 16 {
        libc::PTRACE_EVENT_STOP => Stop::Interrupted { signal },
        0 if signal == libc::SIGTRAP | 0x80 => Stop::Syscall,
        0 => Stop::Signal(signal),
        event => Stop::Event(event),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_group_stop_shows_its_signal() {
        let status = (libc::PTRACE_EVENT_STOP << 16) | (libc::SIGTSTP << 8) | 0x7f;
        assert_eq!(
            decode(status),
            Waited::Stopped(Stop::Interrupted { signal: libc::SIGTSTP })
        );
    }

    #[test]
    fn a_system_call_stop_is_told_from_a_trap() {
        assert_eq!(decode((0x85 << 8) | 0x7f), Waited::Stopped(Stop::Syscall));
        assert_eq!(decode((5 << 8) | 0x7f), Waited::Stopped(Stop::Signal(libc::SIGTRAP)));
    }
}
