//! Signals: waiting for them with where they came from, and sending any number.

use nix::errno::Errno;
use nix::sys::signal::{SaFlags, SigAction, SigHandler, SigSet, Signal, sigaction};
use nix::unistd::Pid;

/// A signal that was waited for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SignalInfo {
    pub signal: i32,
    /// si_code: SI_KERNEL for what a terminal sends, SI_USER for kill(2) …
    pub code: i32,
}

/// Takes a signal of `set` out of the queue, if there is one (sigtimedwait(2)).
pub fn take_signal(set: &SigSet) -> nix::Result<()> {
    let now = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: the set and the time are live; nobody asks for the siginfo_t.
    let rc = unsafe { libc::sigtimedwait(set.as_ref(), std::ptr::null_mut(), &raw const now) };
    match Errno::result(rc) {
        Ok(_) | Err(Errno::EAGAIN) => Ok(()),
        Err(errno) => Err(errno),
    }
}

pub fn ignore(signal: Signal) -> nix::Result<()> {
    let ignore = SigAction::new(SigHandler::SigIgn, SaFlags::empty(), SigSet::empty());
    // SAFETY: there is no handler.
    unsafe { sigaction(signal, &ignore) }.map(drop)
}

/// sigwaitinfo(2).
pub fn wait_for_signal(set: &SigSet) -> nix::Result<SignalInfo> {
    // SAFETY: siginfo_t is plain data, for which zeros are a value.
    let mut info: libc::siginfo_t = unsafe { std::mem::zeroed() };
    loop {
        // SAFETY: both point to live structures of the types the call wants.
        let rc = unsafe { libc::sigwaitinfo(set.as_ref(), &raw mut info) };
        match Errno::result(rc) {
            Ok(signal) => {
                return Ok(SignalInfo {
                    signal,
                    code: info.si_code,
                });
            }
            Err(Errno::EINTR) => {}
            Err(errno) => return Err(errno),
        }
    }
}

/// What became of a child.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Became {
    Exited(i32),
    Killed(i32),
    Stopped(i32),
    /// Nothing new.
    Same,
}

/// waitpid(2) with WNOHANG and WUNTRACED, for signals that nix has no name for as well.
pub fn look_at_child(pid: Pid) -> nix::Result<Became> {
    let mut status = 0;
    // SAFETY: `status` is live.
    let rc = unsafe { libc::waitpid(pid.as_raw(), &raw mut status, libc::WNOHANG | libc::WUNTRACED) };
    Ok(match Errno::result(rc)? {
        0 => Became::Same,
        _ if libc::WIFEXITED(status) => Became::Exited(libc::WEXITSTATUS(status)),
        _ if libc::WIFSIGNALED(status) => Became::Killed(libc::WTERMSIG(status)),
        _ => Became::Stopped(libc::WSTOPSIG(status)),
    })
}

/// kill(2), for signals that nix has no name for as well: the real-time ones.
pub fn kill(pid: Pid, signal: i32) -> nix::Result<()> {
    // SAFETY: the call takes numbers only.
    Errno::result(unsafe { libc::kill(pid.as_raw(), signal) }).map(drop)
}

/// prctl(PR_GET_SECUREBITS) of the calling thread.
pub fn securebits() -> nix::Result<u32> {
    // SAFETY: the option takes no pointer.
    Errno::result(unsafe { libc::prctl(libc::PR_GET_SECUREBITS) }).map(i32::cast_unsigned)
}
