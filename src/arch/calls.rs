//! System calls that a task was caught in.

use super::syscall;

/// How a task was caught in a system call (include/linux/errno.h). What x86_64 shows by these results, other architectures have
/// dealt with before they show anything.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Interrupted {
    /// -ERESTARTSYS -512, -ERESTARTNOINTR -513, -ERESTARTNOHAND -514: the kernel issues it again when the task goes on.
    Restarts,
    /// -ERESTART_RESTARTBLOCK -516: the kernel goes on by restart_syscall(2), with a block that dies with the task.
    RestartBlock,
    /// -EINTR: the kernel will not issue it again (epoll_wait, semtimedop, rt_sigtimedwait …; signal(7)).
    Fails,
}

/// Calls that return EINTR when a task is stopped inside them, though no handler ran, and that may be issued again: nothing was
/// done yet when they say EINTR (signal(7), "Interruption of system calls and library functions by stop signals").
///
/// close(2) and connect(2) are not among them: both have done their work by then.
pub fn may_be_reissued(number: u64) -> bool {
    const CALLS: &[i64] = &[
        libc::SYS_read,
        libc::SYS_readv,
        libc::SYS_write,
        libc::SYS_writev,
        libc::SYS_accept,
        libc::SYS_accept4,
        libc::SYS_recvfrom,
        libc::SYS_recvmsg,
        libc::SYS_recvmmsg,
        libc::SYS_sendto,
        libc::SYS_sendmsg,
        libc::SYS_sendmmsg,
        libc::SYS_msgrcv,
        libc::SYS_msgsnd,
        libc::SYS_semop,
        libc::SYS_semtimedop,
        libc::SYS_rt_sigtimedwait,
        libc::SYS_epoll_pwait,
        libc::SYS_epoll_pwait2,
        libc::SYS_io_getevents,
        libc::SYS_futex,
    ];
    number == syscall::EPOLL_WAIT || CALLS.contains(&(number as i64))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_close_is_never_repeated() {
        assert!(may_be_reissued(syscall::EPOLL_WAIT) && may_be_reissued(libc::SYS_epoll_pwait as u64));
        assert!(!may_be_reissued(libc::SYS_close as u64));
    }
}
