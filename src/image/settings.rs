//! Settings that are one number or a few, most of them of prctl(2): part of the state ([`super::state`]), whose field order is the
//! format, too.

use serde::{Deserialize, Serialize};

/// Of the process as a whole.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProcessSettings {
    /// prctl(PR_GET_THP_DISABLE): 0, or 1 with flags (Linux 6.18).
    pub thp_disable: u32,
    /// prctl(PR_GET_MDWE): memory-deny-write-execute, PR_MDWE_*.
    pub mdwe: u32,
    /// prctl(PR_GET_MEMORY_MERGE): all memory may be merged with equal pages (KSM).
    pub memory_merge: bool,
    /// membarrier(2), MEMBARRIER_CMD_GET_REGISTRATIONS: the commands by which it registered.
    pub membarrier: u32,
    /// prctl(PR_FUTEX_HASH, PR_FUTEX_HASH_GET_SLOTS), Linux 6.16: buckets for its futexes alone; 0 is none. None where it could not be
    /// asked for.
    pub futex_slots: Option<u32>,
    /// arch_prctl(ARCH_GET_XCOMP_PERM) of x86: extended states that it asked for leave to use, AMX, by their bit in XCR0.
    pub xstate_permission: u64,
    /// /proc/PID/autogroup (sched(7)): the nice value of its session among others.
    pub autogroup_nice: i32,
    /// Filters of seccomp(2) that its threads have, each once.
    pub filters: Vec<Filter>,
}

/// Of one thread.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ThreadSettings {
    /// personality(2).
    pub personality: u32,
    /// prctl(PR_GET_TSC): PR_TSC_ENABLE 1, PR_TSC_SIGSEGV 2. 0 where the architecture has no such setting.
    pub tsc: u32,
    /// arch_prctl(ARCH_GET_CPUID) says that the instruction CPUID raises SIGSEGV.
    pub cpuid_faults: bool,
    /// prctl(PR_MCE_KILL_GET): PR_MCE_KILL_LATE 0, PR_MCE_KILL_EARLY 1, PR_MCE_KILL_DEFAULT 2.
    pub mce_kill: u32,
    /// prctl(PR_SET_IO_FLUSHER).
    pub io_flusher: bool,
    /// prctl(PR_GET_SPECULATION_CTRL) of PR_SPEC_STORE_BYPASS, PR_SPEC_INDIRECT_BRANCH, PR_SPEC_L1D_FLUSH.
    pub speculation: [u32; 3],
    /// get_mempolicy(2); None is the default policy.
    pub memory_policy: Option<MemoryPolicy>,
    /// prctl(PR_SET_SYSCALL_USER_DISPATCH), as PTRACE_GET_SYSCALL_USER_DISPATCH_CONFIG shows it.
    pub dispatch: Option<Dispatch>,
    /// Indices into [`ProcessSettings::filters`], the oldest first.
    pub filters: Vec<u32>,
    /// cgroups(7). Of a thread other than the first only those that are not the first's.
    pub control_groups: Vec<ControlGroup>,
    /// Of security modules: /proc/TID/attr/current. Empty where there is none.
    pub security_label: Vec<u8>,
    /// /proc/TID/loginuid; u32::MAX is none.
    pub login_uid: u32,
}

/// A filter of seccomp(2), in classic BPF.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Filter {
    /// SECCOMP_FILTER_FLAG_LOG.
    pub flags: u64,
    /// struct sock_filter, 8 bytes each.
    pub instructions: Vec<u8>,
}

/// A line of /proc/PID/cgroup.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ControlGroup {
    /// The controllers of the hierarchy, or its name; empty in version 2.
    pub hierarchy: String,
    pub path: Vec<u8>,
}

/// set_mempolicy(2), mbind(2).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MemoryPolicy {
    /// MPOL_* with flags.
    pub mode: u32,
    /// Node N is bit N % 8 of byte N / 8, without zeros at the end.
    pub nodes: Vec<u8>,
}

/// Which system calls of a thread come back to it as SIGSYS.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Dispatch {
    /// PR_SYS_DISPATCH_ON, PR_SYS_DISPATCH_INCLUSIVE_ON (Linux 6.17).
    pub mode: u64,
    /// Address of the byte that switches it; 0: always on.
    pub selector: u64,
    /// From where calls are let through, and how far.
    pub offset: u64,
    pub len: u64,
}
