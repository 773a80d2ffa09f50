//! System calls that only find out whether a system call works.

use std::io;
use std::os::fd::{FromRawFd, OwnedFd};

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
