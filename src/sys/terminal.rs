//! The size of a terminal (TIOCGWINSZ(2const)).

use std::os::fd::{AsRawFd, BorrowedFd};

pub use nix::pty::Winsize;

mod request {
    use super::Winsize;
    nix::ioctl_read_bad!(get, libc::TIOCGWINSZ, Winsize);
    nix::ioctl_write_ptr_bad!(set, libc::TIOCSWINSZ, Winsize);
}

pub fn size(terminal: BorrowedFd<'_>) -> nix::Result<Winsize> {
    let mut size = Winsize {
        ws_row: 0,
        ws_col: 0,
        ws_xpixel: 0,
        ws_ypixel: 0,
    };
    // SAFETY: the structure is the one the request names.
    unsafe { request::get(terminal.as_raw_fd(), &raw mut size) }.map(|_| size)
}

/// Its foreground process group gets SIGWINCH if that is another size than before.
pub fn set_size(terminal: BorrowedFd<'_>, size: &Winsize) -> nix::Result<()> {
    // SAFETY: as above.
    unsafe { request::set(terminal.as_raw_fd(), size) }.map(drop)
}
