//! What ioctl(2) does with pseudo-terminals (pty(7), ioctl_tty(2)).

use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, FdFlag, OFlag, fcntl};
use nix::pty::posix_openpt;

pub use libc::termios2 as Termios2;

mod request {
    use super::Termios2;
    nix::ioctl_read_bad!(number, libc::TIOCGPTN, u32);
    nix::ioctl_read_bad!(device, libc::TIOCGDEV, u32);
    nix::ioctl_read_bad!(discipline, libc::TIOCGETD, i32);
    nix::ioctl_read_bad!(is_locked, libc::TIOCGPTLCK, i32);
    nix::ioctl_write_ptr_bad!(lock, libc::TIOCSPTLCK, i32);
    nix::ioctl_read_bad!(is_packet, libc::TIOCGPKT, i32);
    nix::ioctl_write_ptr_bad!(set_packet, libc::TIOCPKT, i32);
    nix::ioctl_read_bad!(is_exclusive, libc::TIOCGEXCL, i32);
    nix::ioctl_none_bad!(set_exclusive, libc::TIOCEXCL);
    nix::ioctl_write_int_bad!(flow, libc::TCXONC);
    nix::ioctl_write_int_bad!(open_slave, libc::TIOCGPTPEER);
    nix::ioctl_read_bad!(settings, libc::TCGETS2, Termios2);
    nix::ioctl_write_ptr_bad!(set_settings, libc::TCSETS2, Termios2);
}

fn read<T: Default>(fd: impl AsFd, request: unsafe fn(i32, *mut T) -> nix::Result<i32>) -> nix::Result<T> {
    let mut value = T::default();
    // SAFETY: all requests that are passed here write one value of their type.
    unsafe { request(fd.as_fd().as_raw_fd(), &raw mut value) }.map(|_| value)
}

/// TIOCGPTN: N of /dev/pts/N; ENOTTY on all but a master.
pub fn number(master: impl AsFd) -> nix::Result<u32> {
    read(master, request::number)
}

/// TIOCGDEV (Linux 2.6.36): major and minor number of the terminal itself, also where it was opened as /dev/tty.
pub fn device(terminal: impl AsFd) -> nix::Result<(u32, u32)> {
    // new_encode_dev(), include/linux/kdev_t.h.
    read(terminal, request::device).map(|device| ((device >> 8) & 0xfff, (device & 0xff) | (device >> 12) & 0xf_ff00))
}

/// N of /dev/pts/N, by the device (UNIX98_PTY_SLAVE_MAJOR and the seven behind it, Documentation/admin-guide/devices.txt).
pub fn slave_number(major: u32, minor: u32) -> Option<u32> {
    (136..=143).contains(&major).then_some(minor)
}

/// A new master, whose slave can be opened: of the lowest number that is free.
pub fn open_master() -> nix::Result<OwnedFd> {
    let master = posix_openpt(OFlag::O_RDWR | OFlag::O_NOCTTY | OFlag::O_CLOEXEC)?;
    lock(&master, false)?;
    Ok(master.into())
}

/// TIOCGETD: the line discipline, N_TTY (0) by default.
pub fn discipline(terminal: impl AsFd) -> nix::Result<i32> {
    read(terminal, request::discipline)
}

/// TIOCGPTLCK (Linux 3.8).
pub fn is_locked(master: impl AsFd) -> nix::Result<bool> {
    read(master, request::is_locked).map(|locked| locked != 0)
}

/// TIOCSPTLCK: the slave cannot be opened while it is locked.
pub fn lock(master: impl AsFd, locked: bool) -> nix::Result<()> {
    // SAFETY: the request reads one int.
    unsafe { request::lock(master.as_fd().as_raw_fd(), &i32::from(locked)) }.map(drop)
}

/// TIOCGPKT (Linux 3.8).
pub fn is_packet(master: impl AsFd) -> nix::Result<bool> {
    read(master, request::is_packet).map(|packet| packet != 0)
}

/// TIOCPKT (TIOCPKT(2const)).
pub fn set_packet(master: impl AsFd, packet: bool) -> nix::Result<()> {
    // SAFETY: the request reads one int.
    unsafe { request::set_packet(master.as_fd().as_raw_fd(), &i32::from(packet)) }.map(drop)
}

/// TIOCGEXCL (Linux 3.8).
pub fn is_exclusive(terminal: impl AsFd) -> nix::Result<bool> {
    read(terminal, request::is_exclusive).map(|exclusive| exclusive != 0)
}

/// TIOCEXCL: nobody else may open it, but for those with CAP_SYS_ADMIN.
pub fn set_exclusive(terminal: impl AsFd) -> nix::Result<()> {
    // SAFETY: the request takes no argument.
    unsafe { request::set_exclusive(terminal.as_fd().as_raw_fd()) }.map(drop)
}

/// TCXONC (tcflow(3)): TCOOFF or TCOON.
pub fn flow(terminal: impl AsFd, action: i32) -> nix::Result<()> {
    // SAFETY: the request takes a number.
    unsafe { request::flow(terminal.as_fd().as_raw_fd(), action) }.map(drop)
}

/// TIOCGPTPEER (Linux 4.13): a description of its own of the slave, with these flags of open(2). FD_CLOEXEC is set.
pub fn open_slave(master: impl AsFd, flags: i32) -> nix::Result<OwnedFd> {
    // O_CLOEXEC would stay among the flags of the description, and so be shown by /proc/PID/fdinfo of every descriptor for good.
    let flags = flags | libc::O_NOCTTY;
    // SAFETY: the request takes a number; what it returns is a new descriptor that nobody else owns.
    let slave = unsafe {
        let fd = Errno::result(request::open_slave(master.as_fd().as_raw_fd(), flags)?)?;
        OwnedFd::from_raw_fd(fd)
    };
    fcntl(&slave, FcntlArg::F_SETFD(FdFlag::FD_CLOEXEC))?;
    Ok(slave)
}

/// TCGETS2; of a master these are its slave's.
pub fn settings(terminal: impl AsFd) -> nix::Result<Termios2> {
    let mut settings = Termios2 {
        c_iflag: 0,
        c_oflag: 0,
        c_cflag: 0,
        c_lflag: 0,
        c_line: 0,
        c_cc: [0; 19],
        c_ispeed: 0,
        c_ospeed: 0,
    };
    // SAFETY: the structure is the one the request names.
    unsafe { request::settings(terminal.as_fd().as_raw_fd(), &raw mut settings) }.map(|_| settings)
}

/// TCSETS2: at once, without a loss of what waits.
pub fn set_settings(terminal: impl AsFd, settings: &Termios2) -> nix::Result<()> {
    // SAFETY: as above.
    unsafe { request::set_settings(terminal.as_fd().as_raw_fd(), settings) }.map(drop)
}
