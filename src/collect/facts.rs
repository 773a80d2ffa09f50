//! All facts that describe decides upon: values, without processes behind them.

use super::files::Found;
use super::memory::Area;
use super::objects::Object;
use super::pagemap::Populated;
use super::status::Status;
use super::surroundings::{Relative, Surroundings};
use super::threads::Sandbox;
use super::undo::Undos;
use crate::fd::Looked;
use crate::image::state::{
    Clocks, Host, MemoryLayout, MessageQueue, Name, PosixTimer, Rlimit, SemaphoreSet, SharedObject, SigInfo,
    SignalAction, Thread, TimerTime, Zombie,
};
use crate::image::state::{MemoryPolicy, ProcessSettings};

#[derive(Debug)]
pub struct Facts {
    pub host: Host,
    pub clocks: Clocks,
    /// The mappings of the kernel's own in cryopod itself, which are as this kernel makes them.
    pub kernel_areas: Vec<Area>,
    /// Each before its children.
    pub members: Vec<Member>,
    pub zombies: Vec<Zombie>,
    /// See [`Snapshot::leaderless`](crate::image::state::Snapshot::leaderless).
    pub leaderless: Vec<i32>,
    /// For each member the first, by index, with which it shares working directory, root and umask.
    pub directories: Vec<usize>,
    pub descriptors: Looked,
    pub shared_objects: Vec<SharedFacts>,
    pub semaphore_sets: Vec<SemaphoreSet>,
    pub message_queues: Vec<MessageQueue>,
}

/// One process of a tree.
#[derive(Debug)]
pub struct Member {
    pub pid: i32,
    pub process: ProcessFacts,
    pub surroundings: Surroundings,
    pub mappings: Vec<Mapping>,
    pub threads: Vec<ThreadFacts>,
}

#[derive(Debug)]
pub struct ProcessFacts {
    pub ppid: i32,
    pub pgid: i32,
    pub sid: i32,
    /// Of one that leads a session: the device of its controlling terminal, major and minor, and the foreground process group there.
    pub terminal: Option<((u32, u32), i32)>,
    pub exit_signal: i32,
    pub umask: u32,
    pub exe: (Name, Found),
    pub cwd: Place,
    pub root: Place,
    pub personality: u32,
    pub oom_score_adj: i32,
    pub dumpable: u32,
    pub coredump_filter: u32,
    pub child_subreaper: bool,
    pub settings: ProcessSettings,
    /// Settings that it could not be asked about, for people.
    pub untold: Vec<String>,
    /// What its end adds to System V semaphores.
    pub undos: Undos,
    /// Segments of its own (modify_ldt(2)).
    pub has_ldt: bool,
    pub layout: MemoryLayout,
    pub auxv: Vec<u8>,
    pub signal_actions: Vec<SignalAction>,
    pub pending: Vec<SigInfo>,
    pub stopped_by: Option<i32>,
    pub stop_was_told: bool,
    pub interval_timers: [TimerTime; 3],
    pub posix_timers: Vec<PosixTimer>,
    pub rlimits: Vec<Rlimit>,
}

/// A directory, and whether its path still leads to it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Place {
    pub path: Name,
    pub is_there: bool,
}

#[derive(Debug)]
pub struct Mapping {
    pub area: Area,
    pub object: Object,
    pub populated: Populated,
    /// Pages among them that are the parent's as well: start and end addresses, in ascending order.
    pub inherited: Vec<(u64, u64)>,
    /// mbind(2).
    pub policy: Option<MemoryPolicy>,
}

/// A thread, ready for the image, and what may stand against it.
#[derive(Debug)]
pub struct ThreadFacts {
    pub thread: Thread,
    pub status: Status,
    /// Of the 64-bit ABI, not a 32-bit one.
    pub is_native: bool,
    pub foreign_namespaces: Vec<String>,
    /// What it has of its own that threads usually share with the leader: `its table of descriptors`.
    pub unshared: Vec<&'static str>,
    /// System calls come back to it as signals at this moment (prctl(2), PR_SET_SYSCALL_USER_DISPATCH).
    pub is_blocking: bool,
    pub sandbox: Sandbox,
    /// It may use I/O ports (ioperm(2)).
    pub not_carried: Option<&'static str>,
}

/// A shared object and the stretches of it that hold data, as offset and length.
#[derive(Debug)]
pub struct SharedFacts {
    pub object: SharedObject,
    pub data: Vec<(u64, u64)>,
    /// A process that has it mapped and is not frozen along.
    pub outsider: Option<Relative>,
}
