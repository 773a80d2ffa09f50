//! What clone3(2) takes, the same on every architecture.

/// struct clone_args (include/uapi/linux/sched.h).
#[derive(Debug, Clone, Copy, Default)]
#[repr(C)]
pub struct CloneArgs {
    pub flags: u64,
    pub pidfd: u64,
    pub child_tid: u64,
    pub parent_tid: u64,
    pub exit_signal: u64,
    pub stack: u64,
    pub stack_size: u64,
    pub tls: u64,
    pub set_tid: u64,
    pub set_tid_size: u64,
    pub cgroup: u64,
}

const _: () = assert!(size_of::<CloneArgs>() == 88);
