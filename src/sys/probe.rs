//! System calls that only find out whether a system call works.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

use nix::unistd::Pid;

/// A child that does nothing, to try things on. Ended and reaped when dropped.
pub struct IdleChild(Pid);

impl IdleChild {
    pub fn start() -> io::Result<Self> {
        // SAFETY: the child makes two async-signal-safe calls, and never returns.
        match unsafe { libc::fork() } {
            -1 => Err(io::Error::last_os_error()),
            0 => loop {
                // SAFETY: as above; should its parent die, it goes too.
                unsafe {
                    libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL);
                    libc::pause();
                }
            },
            pid => Ok(IdleChild(Pid::from_raw(pid))),
        }
    }

    pub fn pid(&self) -> Pid {
        self.0
    }
}

impl Drop for IdleChild {
    fn drop(&mut self) {
        // Neither can fail: it is our child, and nobody else waits for it.
        let _ = nix::sys::signal::kill(self.0, nix::sys::signal::SIGKILL);
        let _ = nix::sys::wait::waitpid(self.0, None);
    }
}

/// Makes a child by clone3(2) that ends at once: with the wanted pid (`set_tid`, Linux 5.5), in new namespaces (`flags`).
pub fn clone3(flags: u64, set_tid: Option<Pid>) -> io::Result<()> {
    /// struct clone_args up to Linux 5.5, linux/sched.h.
    #[repr(C)]
    #[derive(Default)]
    struct CloneArgs {
        flags: u64,
        pidfd: u64,
        child_tid: u64,
        parent_tid: u64,
        exit_signal: u64,
        stack: u64,
        stack_size: u64,
        tls: u64,
        set_tid: u64,
        set_tid_size: u64,
    }
    const _: () = assert!(size_of::<CloneArgs>() == 80);
    let tid = set_tid.map(Pid::as_raw);
    let mut args = CloneArgs {
        flags,
        exit_signal: libc::SIGCHLD as u64,
        ..CloneArgs::default()
    };
    if let Some(tid) = &tid {
        args.set_tid = std::ptr::from_ref(tid) as u64;
        args.set_tid_size = 1;
    }
    // SAFETY: without CLONE_VM this is a fork; the child makes one async-signal-safe call.
    let pid = unsafe { libc::syscall(libc::SYS_clone3, &raw const args, size_of::<CloneArgs>()) };
    match pid {
        -1 => Err(io::Error::last_os_error()),
        // SAFETY: as above.
        0 => unsafe { libc::_exit(0) },
        pid => {
            nix::sys::wait::waitpid(Pid::from_raw(pid as i32), None)?;
            Ok(())
        }
    }
}

/// ioctl PAGEMAP_SCAN (Linux 6.7) of one page of our own.
pub fn pagemap_scan(pagemap: BorrowedFd<'_>) -> io::Result<()> {
    /// struct pm_scan_arg, linux/fs.h.
    #[repr(C)]
    #[derive(Default)]
    struct ScanArg {
        size: u64,
        flags: u64,
        start: u64,
        end: u64,
        walk_end: u64,
        vec: u64,
        vec_len: u64,
        max_pages: u64,
        category_inverted: u64,
        category_mask: u64,
        category_anyof_mask: u64,
        return_mask: u64,
    }
    // _IOWR('f', 16, struct pm_scan_arg), linux/fs.h.
    const PAGEMAP_SCAN: libc::c_ulong = 0xc060_6610;
    const PAGE_IS_PRESENT: u64 = 1 << 3;
    const _: () = assert!(size_of::<ScanArg>() == 96);
    let mut region = [0u64; 3]; // struct page_region
    let page = (&raw const region as u64) & !0xffff;
    let mut arg = ScanArg {
        size: size_of::<ScanArg>() as u64,
        start: page,
        end: page + 0x10000,
        vec: &raw mut region as u64,
        vec_len: 1,
        category_anyof_mask: PAGE_IS_PRESENT,
        return_mask: PAGE_IS_PRESENT,
        ..ScanArg::default()
    };
    // SAFETY: the kernel reads and writes one pm_scan_arg and writes at most one page_region, whatever the range is.
    let rc = unsafe { libc::ioctl(pagemap.as_raw_fd(), PAGEMAP_SCAN as libc::Ioctl, &raw mut arg) };
    done(i64::from(rc))
}

/// userfaultfd(2).
pub fn userfaultfd(flags: i32) -> io::Result<OwnedFd> {
    // SAFETY: the call takes an integer; what it returns is a new descriptor that nobody else owns.
    let fd = unsafe { libc::syscall(libc::SYS_userfaultfd, flags | libc::O_CLOEXEC) };
    done(fd)?;
    // SAFETY: as above.
    Ok(unsafe { OwnedFd::from_raw_fd(fd as i32) })
}

/// prctl(2), PR_SET_MM_MAP_SIZE: whether PR_SET_MM_MAP is there.
pub fn mm_map_size() -> io::Result<u32> {
    let mut size = 0u32;
    // SAFETY: the kernel writes one unsigned int.
    done(unsafe { libc::prctl(libc::PR_SET_MM, libc::PR_SET_MM_MAP_SIZE, &raw mut size, 0, 0) }.into())?;
    Ok(size)
}

/// prctl(2), PR_TIMER_CREATE_RESTORE_IDS, asked only for its state (Linux 6.15).
pub fn timer_create_restore_ids() -> io::Result<()> {
    const PR_TIMER_CREATE_RESTORE_IDS: i32 = 77;
    const GET: i32 = 2;
    // SAFETY: the call takes integers only.
    done(unsafe { libc::prctl(PR_TIMER_CREATE_RESTORE_IDS, GET, 0, 0, 0) }.into())
}

fn done(rc: i64) -> io::Result<()> {
    match rc {
        -1 => Err(io::Error::last_os_error()),
        _ => Ok(()),
    }
}
