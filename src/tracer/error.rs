//! What can go wrong with a task under ptrace, as far as callers choose by it.

use std::{fmt, io};

use nix::unistd::Pid;

#[derive(Debug)]
pub enum Error {
    /// The task ended (or never was there).
    Gone(Pid),
    /// A request or a call failed: the task, what was asked, the reason.
    Call {
        tid: Pid,
        name: &'static str,
        errno: nix::Error,
    },
    /// A filter of seccomp(2) forbids a call that was therefore not made.
    Forbidden { tid: Pid, call: &'static str },
    /// The process is stopped, and a signal waits until it goes on that a remote call would deliver now.
    SignalWaits(Pid),
    /// The task did something that does not belong to the conversation.
    Unexpected { tid: Pid, what: String },
}

pub type Result<T> = std::result::Result<T, Error>;

impl Error {
    /// The error of a ptrace request: ESRCH means that the task is gone.
    pub(crate) fn request(tid: Pid, name: &'static str, errno: nix::Error) -> Self {
        if errno == nix::Error::ESRCH {
            Error::Gone(tid)
        } else {
            Error::Call { tid, name, errno }
        }
    }

    /// The memory of a stopped task could not be read or written.
    pub(crate) fn memory(tid: Pid, what: &str, error: &io::Error) -> Self {
        Error::Unexpected {
            tid,
            what: format!("{what} cannot be reached through /proc/PID/mem: {error}"),
        }
    }

    /// The errno of a failed call, where that is what happened.
    pub fn errno(&self) -> Option<nix::Error> {
        match self {
            Error::Call { errno, .. } => Some(*errno),
            _ => None,
        }
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Error::Gone(tid) => write!(f, "task {tid} is gone"),
            Error::Call { tid, name, errno } => {
                write!(
                    f,
                    "{name} of task {tid}: {}",
                    io::Error::from_raw_os_error(*errno as i32)
                )
            }
            Error::Forbidden { tid, call } => write!(f, "a seccomp filter of task {tid} forbids {call}"),
            Error::SignalWaits(tid) => write!(
                f,
                "task {tid} is stopped, and a signal waits that a call would deliver now"
            ),
            Error::Unexpected { tid, what } => write!(f, "task {tid}: {what}"),
        }
    }
}

impl std::error::Error for Error {}
