//! One descriptor of a process, looked at from outside: what /proc shows and what a duplicate of it tells.

use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;

use anyhow::{Context, Result};
use nix::fcntl::{FcntlArg, OFlag, fcntl, openat, readlinkat};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::stat::{FileStat, Mode, fstat};
use nix::unistd::Pid;

use super::fdinfo::FdInfo;
use super::pty::Tty;
use crate::sys::{self, fds, mqueue};

/// Facts of one descriptor. The duplicate that they were read from is closed again.
#[derive(Debug, Clone)]
pub struct Seen {
    /// Index of the process that has it, among those that are looked at.
    pub owner: usize,
    pub fd: i32,
    /// What /proc/PID/fd/N points at.
    pub link: Vec<u8>,
    pub info: FdInfo,
    /// As fcntl(F_GETFL) shows them.
    pub status_flags: i32,
    pub stat: FileStat,
    pub tty: Option<Tty>,
    /// Of a pipe or FIFO: what poll(2) says, which tells whether the other end is open anywhere.
    pub ready: PollFlags,
    /// It is a POSIX message queue.
    pub on_mqueue: bool,
    /// Who gets signals by O_ASYNC (F_GETOWN_EX), and which signal if not SIGIO.
    pub signal_owner: (i32, i32),
    pub io_signal: i32,
}

/// A process's descriptors: /proc/PID as a directory, and a pidfd.
pub struct Source<'a> {
    pub pid: Pid,
    pub proc: BorrowedFd<'a>,
    pidfd: OwnedFd,
}

impl<'a> Source<'a> {
    pub fn new(pid: Pid, proc: BorrowedFd<'a>) -> Result<Self> {
        let pidfd = fds::pidfd_open(pid).with_context(|| format!("pidfd_open of pid {pid}"))?;
        Ok(Source { pid, proc, pidfd })
    }

    /// The numbers of all descriptors, ascending.
    pub fn numbers(&self) -> Result<Vec<i32>> {
        let mut directory = nix::dir::Dir::openat(
            self.proc,
            "fd",
            OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC,
            Mode::empty(),
        )
        .context("open /proc/PID/fd")?;
        let mut numbers = Vec::new();
        for entry in directory.iter() {
            let entry = entry.context("read /proc/PID/fd")?;
            let name = entry.file_name().to_str().unwrap_or_default();
            numbers.extend(name.parse::<i32>());
        }
        numbers.sort_unstable();
        Ok(numbers)
    }

    /// A duplicate in our own table; it shares offset and status flags with the process's, so these must not be changed.
    pub fn duplicate(&self, fd: i32) -> Result<OwnedFd> {
        fds::pidfd_getfd(self.pidfd.as_fd(), fd).context("pidfd_getfd")
    }

    pub fn look_at(&self, owner: usize, fd: i32) -> Result<Seen> {
        let file = self.duplicate(fd)?;
        let link = readlinkat(self.proc, format!("fd/{fd}").as_str()).context("readlink /proc/PID/fd/N")?;
        let status_flags = fcntl(&file, FcntlArg::F_GETFL).context("fcntl F_GETFL")?;
        let stat = fstat(&file).context("fstat")?;
        let only_path = status_flags & libc::O_PATH != 0;
        let fifo = file_type(&stat) == libc::S_IFIFO && !only_path;
        Ok(Seen {
            owner,
            fd,
            on_mqueue: !only_path
                && file_type(&stat) == libc::S_IFREG
                && mqueue::is_mqueue(&file).context("fstatfs")?,
            link: link.as_bytes().to_vec(),
            info: self.fdinfo(fd)?,
            status_flags,
            tty: match only_path {
                true => None,
                false => Tty::of(file.as_fd(), &stat)?,
            },
            ready: if fifo {
                readiness(file.as_fd())?
            } else {
                PollFlags::empty()
            },
            signal_owner: if only_path {
                (0, 0)
            } else {
                fds::signal_owner(file.as_fd()).context("fcntl F_GETOWN_EX")?
            },
            io_signal: if only_path {
                0
            } else {
                fds::io_signal(file.as_fd()).context("fcntl F_GETSIG")?
            },
            stat,
        })
    }

    pub fn fdinfo(&self, fd: i32) -> Result<FdInfo> {
        let name = format!("fdinfo/{fd}");
        let file = openat(
            self.proc,
            name.as_str(),
            OFlag::O_RDONLY | OFlag::O_CLOEXEC,
            Mode::empty(),
        )
        .with_context(|| format!("open /proc/PID/{name}"))?;
        let text = sys::read_whole(&file).with_context(|| format!("read /proc/PID/{name}"))?;
        FdInfo::parse(String::from_utf8_lossy(&text).into_owned()).with_context(|| format!("/proc/PID/{name}"))
    }
}

impl Seen {
    pub fn inode(&self) -> (u64, u64) {
        (self.stat.st_dev, self.stat.st_ino)
    }

    pub fn file_type(&self) -> libc::mode_t {
        file_type(&self.stat)
    }

    pub fn link_text(&self) -> String {
        String::from_utf8_lossy(&self.link).into_owned()
    }

    /// Whether it is the anonymous inode of that name, as `eventpoll`.
    pub fn is_anon_inode(&self, name: &str) -> bool {
        self.link.strip_prefix(b"anon_inode:") == Some(name.as_bytes())
    }

    pub fn only_path(&self) -> bool {
        self.status_flags & libc::O_PATH != 0
    }

    pub fn readable(&self) -> bool {
        matches!(self.status_flags & libc::O_ACCMODE, libc::O_RDONLY | libc::O_RDWR)
    }

    pub fn writable(&self) -> bool {
        matches!(self.status_flags & libc::O_ACCMODE, libc::O_WRONLY | libc::O_RDWR)
    }
}

pub fn file_type(stat: &FileStat) -> libc::mode_t {
    stat.st_mode & libc::S_IFMT
}

pub fn mtime_ns(stat: &FileStat) -> i64 {
    stat.st_mtime
        .wrapping_mul(1_000_000_000)
        .wrapping_add(stat.st_mtime_nsec)
}

fn readiness(file: BorrowedFd<'_>) -> Result<PollFlags> {
    let mut polled = [PollFd::new(file, PollFlags::POLLIN | PollFlags::POLLOUT)];
    poll(&mut polled, PollTimeout::ZERO).context("poll")?;
    Ok(polled[0].revents().unwrap_or(PollFlags::empty()))
}

/// The name under which a descriptor of our own can be opened once more.
pub fn own_path(file: BorrowedFd<'_>) -> String {
    format!("/proc/self/fd/{}", file.as_raw_fd())
}
