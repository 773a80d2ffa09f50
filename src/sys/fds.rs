//! System calls about descriptors that nix does not wrap, one function each.

use std::cmp::Ordering;
use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

use nix::unistd::Pid;

/// pidfd_open(2), Linux 5.3.
pub fn pidfd_open(pid: Pid) -> io::Result<OwnedFd> {
    // SAFETY: the call takes two integers; what it returns is a new descriptor that nobody else owns.
    unsafe { new_fd(libc::syscall(libc::SYS_pidfd_open, pid.as_raw(), 0)) }
}

/// pidfd_getfd(2), Linux 5.6: a duplicate of the process's descriptor in our own table, with FD_CLOEXEC.
pub fn pidfd_getfd(pidfd: BorrowedFd<'_>, fd: RawFd) -> io::Result<OwnedFd> {
    // SAFETY: the call takes three integers; what it returns is a new descriptor that nobody else owns.
    unsafe { new_fd(libc::syscall(libc::SYS_pidfd_getfd, pidfd.as_raw_fd(), fd, 0)) }
}

/// Of a number that we were started with, or that may be no descriptor at all.
pub fn duplicate_number(fd: RawFd) -> io::Result<OwnedFd> {
    // SAFETY: the call takes three integers; what it returns is a new descriptor that nobody else owns.
    unsafe { new_fd(libc::fcntl(fd, libc::F_DUPFD_CLOEXEC, 0).into()) }
}

/// kcmp(2), KCMP_FILE: `Equal` for two descriptors of one description, else an order that is stable until the next boot.
pub fn kcmp_file(a: (Pid, RawFd), b: (Pid, RawFd)) -> io::Result<Ordering> {
    const KCMP_FILE: i32 = 0;
    let (pid_a, pid_b) = (a.0.as_raw(), b.0.as_raw());
    // SAFETY: KCMP_FILE takes five integers.
    match unsafe { libc::syscall(libc::SYS_kcmp, pid_a, pid_b, KCMP_FILE, i64::from(a.1), i64::from(b.1)) } {
        0 => Ok(Ordering::Equal),
        1 => Ok(Ordering::Less),
        2 => Ok(Ordering::Greater),
        -1 => Err(io::Error::last_os_error()),
        other => Err(io::Error::other(format!("kcmp returned {other}"))),
    }
}

/// kcmp(2), KCMP_EPOLL_TFD: whether descriptor `fd` is what the `nth` entry for number `target` of `epoll` watches.
pub fn kcmp_epoll_target(pid: Pid, fd: RawFd, epoll: RawFd, target: RawFd, nth: u32) -> io::Result<bool> {
    const KCMP_EPOLL_TFD: i32 = 7;
    /// struct kcmp_epoll_slot, linux/kcmp.h.
    #[repr(C)]
    struct Slot {
        efd: u32,
        tfd: u32,
        toff: u32,
    }
    let slot = Slot {
        efd: epoll.cast_unsigned(),
        tfd: target.cast_unsigned(),
        toff: nth,
    };
    let pid = pid.as_raw();
    // SAFETY: KCMP_EPOLL_TFD reads one kcmp_epoll_slot at its last argument.
    let rc = unsafe { libc::syscall(libc::SYS_kcmp, pid, pid, KCMP_EPOLL_TFD, i64::from(fd), &raw const slot) };
    match rc {
        -1 => Err(io::Error::last_os_error()),
        order => Ok(order == 0),
    }
}

/// fcntl(2), F_GETOWN_EX: who gets the signals of O_ASYNC, by kind (F_OWNER_*) and id; the id 0 is nobody.
pub fn signal_owner(fd: BorrowedFd<'_>) -> io::Result<(i32, i32)> {
    const F_GETOWN_EX: i32 = 16;
    /// struct f_owner_ex, fcntl(2).
    #[repr(C)]
    struct Owner {
        kind: i32,
        pid: i32,
    }
    let mut owner = Owner { kind: 0, pid: 0 };
    // SAFETY: F_GETOWN_EX writes one f_owner_ex.
    done(unsafe { libc::fcntl(fd.as_raw_fd(), F_GETOWN_EX, &raw mut owner) })?;
    Ok((owner.kind, owner.pid))
}

/// fcntl(2), F_GETSIG: the signal of O_ASYNC; 0 is SIGIO.
pub fn io_signal(fd: BorrowedFd<'_>) -> io::Result<i32> {
    const F_GETSIG: i32 = 11;
    // SAFETY: F_GETSIG takes no argument.
    done(unsafe { libc::fcntl(fd.as_raw_fd(), F_GETSIG) })
}

/// ioctl FIONREAD: how many bytes wait in a pipe, whichever end is asked (pipe_ioctl(), fs/pipe.c).
pub fn bytes_waiting(fd: BorrowedFd<'_>) -> io::Result<usize> {
    let mut count = 0i32;
    // SAFETY: FIONREAD writes one int.
    done(unsafe { libc::ioctl(fd.as_raw_fd(), libc::FIONREAD, &raw mut count) })?;
    Ok(usize::try_from(count).unwrap_or(0))
}

/// What backs a shared mapping of our own, which may have no other name: the link in map_files (CAP_CHECKPOINT_RESTORE,
/// proc_map_files_get_link(), fs/proc/base.c). `len` is in whole pages.
pub fn open_own_mapping(start: u64, len: u64, write: bool) -> io::Result<File> {
    let path = format!("/proc/self/map_files/{start:x}-{:x}", start + len);
    File::options().read(true).write(write).open(path)
}

/// timerfd_create(2), for any clock.
pub fn timerfd_create(clock: i32, flags: i32) -> io::Result<OwnedFd> {
    // SAFETY: the call takes two integers; what it returns is a new descriptor that nobody else owns.
    unsafe { new_fd(i64::from(libc::timerfd_create(clock, flags))) }
}

/// timerfd_settime(2).
pub fn timerfd_settime(fd: BorrowedFd<'_>, flags: i32, time: &libc::itimerspec) -> io::Result<()> {
    // SAFETY: the kernel reads one itimerspec; no old value is asked for.
    done(unsafe { libc::timerfd_settime(fd.as_raw_fd(), flags, time, std::ptr::null_mut()) }).map(drop)
}

/// timerfd_gettime(2).
pub fn timerfd_gettime(fd: BorrowedFd<'_>) -> io::Result<libc::itimerspec> {
    let zero = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    let mut time = libc::itimerspec {
        it_interval: zero,
        it_value: zero,
    };
    // SAFETY: the kernel writes one itimerspec.
    done(unsafe { libc::timerfd_gettime(fd.as_raw_fd(), &raw mut time) })?;
    Ok(time)
}

/// ioctl TFD_IOC_SET_TICKS (timerfd_create(2)): expirations that a read is to return. Needs CONFIG_CHECKPOINT_RESTORE.
pub fn timerfd_set_ticks(fd: BorrowedFd<'_>, ticks: u64) -> io::Result<()> {
    // _IOW('T', 0, __u64), linux/timerfd.h.
    const TFD_IOC_SET_TICKS: libc::c_ulong = 0x4008_5400;
    // SAFETY: the kernel reads one u64.
    done(unsafe { libc::ioctl(fd.as_raw_fd(), TFD_IOC_SET_TICKS as libc::Ioctl, &raw const ticks) }).map(drop)
}

/// signalfd4(2) for a mask in the kernel's form; glibc's sigset_t is wider and hides two real-time signals.
pub fn signalfd(mask: u64, flags: i32) -> io::Result<OwnedFd> {
    // SAFETY: the kernel reads 8 bytes of mask; what it returns is a new descriptor that nobody else owns.
    unsafe { new_fd(libc::syscall(libc::SYS_signalfd4, -1, &raw const mask, 8, flags)) }
}

fn done(rc: i32) -> io::Result<i32> {
    if rc == -1 {
        Err(io::Error::last_os_error())
    } else {
        Ok(rc)
    }
}

/// # Safety
/// `rc` is what a system call returned that makes a descriptor.
unsafe fn new_fd(rc: i64) -> io::Result<OwnedFd> {
    if rc < 0 {
        return Err(io::Error::last_os_error());
    }
    let fd = i32::try_from(rc).map_err(io::Error::other)?;
    // SAFETY: the caller vouches for `rc`.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// preadv2(2) with RWF_NOWAIT at the description's own place: what is there without waiting, else EAGAIN, whatever its O_NONBLOCK says.
pub fn read_at_once(fd: BorrowedFd<'_>, buffer: &mut [u8]) -> io::Result<usize> {
    let iov = libc::iovec {
        iov_base: buffer.as_mut_ptr().cast(),
        iov_len: buffer.len(),
    };
    // SAFETY: the iovec and the buffer live until the call returns.
    let read = unsafe { libc::preadv2(fd.as_raw_fd(), &raw const iov, 1, -1, libc::RWF_NOWAIT) };
    usize::try_from(read).map_err(|_| io::Error::last_os_error())
}
