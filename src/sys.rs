//! System calls that no library of ours wraps safely: one wrapper each.

use nix::errno::Errno;
use std::os::fd::{AsFd, AsRawFd};

pub mod fds;
pub mod probe;
pub mod process;
mod signals;

pub use signals::{SignalInfo, kill, securebits, wait_for_signal};

/// Whether the kernel gave this process rights by its executable: set-user-ID, set-group-ID, file capabilities.
pub fn at_secure() -> bool {
    // SAFETY: getauxval(3) only reads the auxiliary vector.
    unsafe { libc::getauxval(libc::AT_SECURE) != 0 }
}

/// Starts writing the dirty pages of a range of a file to the disk, without waiting (sync_file_range(2)).
pub fn start_writeback(file: impl AsFd, offset: u64, len: u64) -> nix::Result<()> {
    let fd = file.as_fd().as_raw_fd();
    // SAFETY: the call takes numbers only.
    let rc = unsafe { libc::sync_file_range(fd, offset as i64, len as i64, libc::SYNC_FILE_RANGE_WRITE) };
    Errno::result(rc).map(drop)
}
