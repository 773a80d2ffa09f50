//! fork(2) where both sides go on with all that there is.

use std::io;

use nix::unistd::{ForkResult, fork};

/// Of a process with one thread: nobody holds a lock that the child would miss. Others are refused.
pub fn fork_alone() -> io::Result<ForkResult> {
    if std::fs::read_dir("/proc/self/task")?.count() != 1 {
        return Err(io::Error::other("this process has several threads"));
    }
    // SAFETY: there is one thread, this one.
    Ok(unsafe { fork() }?)
}
