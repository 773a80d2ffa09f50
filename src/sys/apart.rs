//! Work that must not be left half done, whatever becomes of us.

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::OwnedFd;

use nix::fcntl::OFlag;
use nix::sys::signal::{SigSet, SigmaskHow, sigprocmask};
use nix::sys::wait::waitpid;
use nix::unistd::{ForkResult, fork, pipe2, setsid};

/// Runs `work` in a copy of this process with a session of its own, which no signal that is meant for us, nor for our process group, ends.
/// What it returns comes back; nothing, if it panics. The copy has one thread, so `work` may wait for no other.
pub fn apart(work: impl FnOnce() -> Vec<u8>) -> std::io::Result<Vec<u8>> {
    let (read_end, write_end) = pipe2(OFlag::O_CLOEXEC)?;
    let mut before = SigSet::empty();
    // All are blocked before there is a copy, so that there is no instant in which one could end it.
    sigprocmask(SigmaskHow::SIG_SETMASK, Some(&SigSet::all()), Some(&mut before))?;
    // SAFETY: glibc's allocator is usable after fork(2) in a process with threads, and the copy needs nothing else that a thread could hold.
    let forked = unsafe { fork() };
    if let Ok(ForkResult::Child) = forked {
        drop(read_end);
        complete(work, write_end);
    }
    sigprocmask(SigmaskHow::SIG_SETMASK, Some(&before), None)?;
    let ForkResult::Parent { child } = forked? else {
        unreachable!("the child is not here");
    };
    drop(write_end);
    let mut answer = Vec::new();
    let read = File::from(read_end).read_to_end(&mut answer);
    waitpid(child, None)?;
    read.map(|_| answer)
}

fn complete(work: impl FnOnce() -> Vec<u8>, write_end: OwnedFd) -> ! {
    let _of_its_own = setsid();
    let done = std::panic::catch_unwind(std::panic::AssertUnwindSafe(work));
    if let Ok(answer) = done {
        // Whoever wanted to know may be gone; SIGPIPE is blocked.
        let _told = File::from(write_end).write_all(&answer);
    }
    // SAFETY: ends at once, without the handlers of the process that this is a copy of.
    unsafe { libc::_exit(0) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_answer_comes_back() {
        assert_eq!(apart(|| vec![7; 1 << 20]).unwrap(), vec![7; 1 << 20]);
    }

    #[test]
    fn a_panic_is_no_answer() {
        assert!(apart(|| panic!("on purpose")).unwrap().is_empty());
    }
}
