//! Work that others are to be seen to have done: the kernel notes who made an object, and who used it last.

use nix::errno::Errno;
use nix::fcntl::OFlag;
use nix::sys::wait::waitpid;
use nix::unistd::{Pid, pipe2, read, write};

/// Runs `work` in a child that has the id `pid` and the ids of this user and group, so that what it makes or does is that process's; where the
/// id is taken, or may not be chosen, in our own process. The child is a copy in which other threads may have held locks: `work` makes
/// system calls and nothing else.
pub fn as_process(pid: i32, (uid, gid): (u32, u32), work: impl Fn() -> nix::Result<i32>) -> nix::Result<i32> {
    let (read_end, write_end) = pipe2(OFlag::O_CLOEXEC)?;
    let as_user = || -> nix::Result<()> {
        // SAFETY: raw system calls, which change this thread alone, as glibc's wrappers do not.
        unsafe {
            if libc::getegid() != gid {
                Errno::result(libc::syscall(libc::SYS_setresgid, gid, gid, gid))?;
            }
            if libc::geteuid() != uid {
                Errno::result(libc::syscall(libc::SYS_setresuid, uid, uid, uid))?;
            }
        }
        Ok(())
    };
    // SAFETY: a plain copy of this process (fork(2)), which makes system calls only and ends.
    match unsafe { fork_as(pid) } {
        Ok(0) => {
            let answer = as_user().and_then(|()| work()).unwrap_or_else(|errno| -(errno as i32));
            let _told = write(&write_end, &answer.to_ne_bytes());
            // SAFETY: ends at once.
            unsafe { libc::_exit(0) }
        }
        Ok(child) => {
            drop(write_end);
            let mut answer = [0; 4];
            let len = read(&read_end, &mut answer);
            waitpid(Pid::from_raw(child), None)?;
            match (len?, i32::from_ne_bytes(answer)) {
                (4, answer @ 0..) => Ok(answer),
                (4, error) => Err(Errno::from_raw(-error)),
                _ => Err(Errno::ECHILD),
            }
        }
        Err(_) => work(),
    }
}

/// # Safety
/// As of fork(2) in a process with threads, without glibc's precautions.
unsafe fn fork_as(pid: i32) -> nix::Result<i32> {
    let args = crate::arch::CloneArgs {
        exit_signal: libc::SIGCHLD as u64,
        set_tid: &raw const pid as u64,
        set_tid_size: 1,
        ..Default::default()
    };
    // SAFETY: the structure is what the call reads; without CLONE_VM the child goes on on its own copy of the stack.
    let rc = unsafe { libc::syscall(libc::SYS_clone3, &raw const args, size_of_val(&args)) };
    Errno::result(rc).map(|rc| rc as i32)
}
