//! What an image says about processes: plain data, whose field order is the format (docs/image-format.md).
//!
//! Numbers are as the kernel shows them; addresses are in bytes, times in nanoseconds. Path names are bytes, as in Linux.

use serde::{Deserialize, Serialize};

pub use super::ipc::{Ipc, Message, MessageQueue, Segment, Semaphore, SemaphoreSet, Undo};
pub use super::settings::{ControlGroup, Dispatch, Filter, MemoryPolicy, ProcessSettings, ThreadSettings};
pub use super::terminals::{ControllingTerminal, End, Input, Line, Pty, Stopped, Waiting};

/// Bytes of a path name or another name that need not be UTF-8.
pub type Name = Vec<u8>;

/// Everything but the memory's content.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Snapshot {
    pub host: Host,
    pub clocks: Clocks,
    /// Each before its children.
    pub processes: Vec<Process>,
    /// Ended processes that their parents have not waited for yet.
    pub zombies: Vec<Zombie>,
    /// Sessions and process groups among these whose leaders have ended and been waited for, and to which nobody else belonged.
    pub leaderless: Vec<i32>,
    pub fd_tables: Vec<FdTable>,
    pub descriptions: Vec<Description>,
    /// In ascending order of their numbers.
    pub ptys: Vec<Pty>,
    pub shared_objects: Vec<SharedObject>,
    pub semaphore_sets: Vec<SemaphoreSet>,
    pub message_queues: Vec<MessageQueue>,
    /// Files that mappings and executables refer to.
    pub files: Vec<File>,
}

impl Snapshot {
    pub fn has_process(&self, pid: i32) -> bool {
        self.processes.iter().any(|process| process.pid == pid)
    }

    /// Whether a session or process group of this id was begun by one of these, and not outside.
    pub fn has_id(&self, id: i32) -> bool {
        self.has_process(id) || self.zombies.iter().any(|zombie| zombie.pid == id) || self.leaderless.contains(&id)
    }

    /// All ids that are to be given out.
    pub fn ids(&self) -> impl Iterator<Item = i32> {
        let threads = self.processes.iter().flat_map(|process| &process.threads);
        let zombies = self.zombies.iter().map(|zombie| zombie.pid);
        threads
            .map(|thread| thread.tid)
            .chain(zombies)
            .chain(self.leaderless.iter().copied())
    }
}

/// The machine and the kernel that the processes ran on.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Host {
    pub cryopod_version: String,
    pub hostname: String,
    pub kernel_release: String,
    /// /proc/sys/kernel/random/boot_id.
    pub boot_id: String,
    /// The content of `[vdso]`: equal under the same kernel build on the same kind of CPU. Empty where no process has one.
    #[serde(with = "serde_bytes")]
    pub vdso: Vec<u8>,
    /// Features of the CPU by which programs choose their code, as /proc/cpuinfo calls them.
    pub cpu_features: Vec<String>,
}

/// The clocks at the moment of the freeze, as the processes saw them.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Clocks {
    pub realtime_ns: i64,
    pub monotonic_ns: i64,
    pub monotonic_raw_ns: i64,
    pub boottime_ns: i64,
    /// Offsets of the processes' time namespace (time_namespaces(7)), included in the values above.
    pub monotonic_offset_ns: i64,
    pub boottime_offset_ns: i64,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Process {
    pub pid: i32,
    pub ppid: i32,
    pub pgid: i32,
    pub sid: i32,
    /// Of one that leads a session: its controlling terminal.
    pub terminal: Option<ControllingTerminal>,
    /// What its parent gets when it ends (clone(2)).
    pub exit_signal: i32,
    /// Index into [`Snapshot::files`]: /proc/PID/exe.
    pub exe: u32,
    pub cwd: Name,
    pub root: Name,
    pub umask: u32,
    pub personality: u32,
    pub oom_score_adj: i32,
    /// prctl(PR_GET_DUMPABLE).
    pub dumpable: u32,
    /// /proc/PID/coredump_filter.
    pub coredump_filter: u32,
    /// prctl(PR_SET_CHILD_SUBREAPER).
    pub child_subreaper: bool,
    pub settings: ProcessSettings,
    pub memory: Memory,
    /// Index into [`Snapshot::fd_tables`].
    pub fd_table: u32,
    /// Index of the first process with which it shares working directory, root and umask (CLONE_FS); itself, where it shares them with none
    /// before.
    pub directories: u32,
    pub signal_actions: Vec<SignalAction>,
    /// The queue shared by all threads, siginfo_t as the kernel keeps it.
    pub pending: Vec<SigInfo>,
    /// The signal that stopped the process, where it was stopped (group-stop, signal(7)).
    pub stopped_by: Option<i32>,
    /// Its parent has been told of that stop (wait(2) with WUNTRACED), so that nobody is told of it once more.
    pub stop_was_told: bool,
    /// ITIMER_REAL, ITIMER_VIRTUAL, ITIMER_PROF.
    pub interval_timers: [TimerTime; 3],
    pub posix_timers: Vec<PosixTimer>,
    pub rlimits: Vec<Rlimit>,
    /// What its end adds to System V semaphores.
    pub undos: Vec<Undo>,
    /// The leader first.
    pub threads: Vec<Thread>,
}

impl Process {
    /// The foreground process group of one that leads a session on a terminal that is not of the image.
    pub fn foreground_outside(&self) -> Option<i32> {
        let outside = self.terminal.filter(|terminal| terminal.pty.is_none());
        outside.map(|terminal| terminal.foreground)
    }
}

/// A process that has ended, as its parent can still ask about it (wait(2)).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Zombie {
    pub pid: i32,
    pub ppid: i32,
    pub pgid: i32,
    pub sid: i32,
    pub exit_signal: i32,
    /// As wait(2) tells it.
    pub status: i32,
    /// The real user id.
    pub uid: u32,
    pub name: Name,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Memory {
    /// In ascending order.
    pub vmas: Vec<Vma>,
    pub layout: MemoryLayout,
    /// /proc/PID/auxv.
    pub auxv: Vec<u8>,
}

/// struct prctl_mm_map of PR_SET_MM_MAP (prctl(2)).
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct MemoryLayout {
    pub start_code: u64,
    pub end_code: u64,
    pub start_data: u64,
    pub end_data: u64,
    pub start_brk: u64,
    pub brk: u64,
    pub start_stack: u64,
    pub arg_start: u64,
    pub arg_end: u64,
    pub env_start: u64,
    pub env_end: u64,
}

/// One mapping, a line of /proc/PID/maps.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Vma {
    pub start: u64,
    pub end: u64,
    /// PROT_READ 1, PROT_WRITE 2, PROT_EXEC 4.
    pub prot: u8,
    /// MAP_SHARED.
    pub shared: bool,
    pub backing: Backing,
    pub flags: VmFlags,
    /// prctl(PR_SET_VMA, PR_SET_VMA_ANON_NAME): what maps shows as `[anon:NAME]` or `[anon_shmem:NAME]`. Empty: none.
    pub name: Name,
    /// Guard regions (madvise(2), MADV_GUARD_INSTALL, Linux 6.13): start and end addresses, in ascending order.
    pub guards: Vec<(u64, u64)>,
    /// Transparent huge pages of anonymous memory: start and end addresses, in ascending order. A hint: where none can be had, small pages
    /// hold the same.
    pub huge: Vec<(u64, u64)>,
    /// mbind(2); None follows the thread that first touches a page.
    pub policy: Option<MemoryPolicy>,
    /// Pages that are those of the parent at the same addresses, copy-on-write: start and end addresses, in ascending order.
    pub inherited: Vec<(u64, u64)>,
    /// Bytes of its own that were resident (or swapped) and therefore are in the image, zero pages included.
    pub resident: u64,
}

/// The codes of "VmFlags:" in /proc/PID/smaps (proc_pid_smaps(5)), such as `gd` for MAP_GROWSDOWN.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct VmFlags(pub Vec<[u8; 2]>);

impl VmFlags {
    pub fn has(&self, code: &[u8; 2]) -> bool {
        self.0.contains(code)
    }
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Backing {
    /// Private anonymous memory; heap and stack are such.
    Anonymous,
    /// Index into [`Snapshot::files`] and the offset in the file, in bytes.
    File { file: u32, offset: u64 },
    /// Index into [`Snapshot::shared_objects`] and the offset in the object, in bytes.
    Shared { object: u32, offset: u64 },
    /// A mapping of the kernel's own, by its name in maps: `[vdso]`, `[vvar]`, `[vvar_vclock]`.
    Kernel(String),
}

/// A file that is mapped or executed, found again by its path and recognised by the rest.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct File {
    pub path: Name,
    /// st_mode.
    pub mode: u32,
    pub size: u64,
    pub mtime_ns: i64,
    /// NT_GNU_BUILD_ID, where the file is an ELF that has one.
    pub build_id: Option<Vec<u8>>,
    /// Index into [`Snapshot::shared_objects`]: its content, for where there is no such file.
    pub content: Option<u32>,
}

/// Memory that lives in an inode of its own: a memfd, or anonymous shared memory.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SharedObject {
    pub kind: SharedKind,
    pub size: u64,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum SharedKind {
    /// mmap(MAP_SHARED | MAP_ANONYMOUS).
    Anonymous,
    /// memfd_create(2); `seals` as fcntl(F_GET_SEALS) shows them, `mode` is st_mode.
    Memfd { name: Name, seals: u32, mode: u32 },
    /// A file as it was, which a thaw makes a memfd of where it needs one. Nobody writes to it.
    Copy { name: Name, mode: u32 },
    /// System V shared memory, which is there by its id, attached or not.
    SystemV(Segment),
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct FdTable {
    /// In ascending order of numbers.
    pub entries: Vec<FdEntry>,
}

/// A descriptor: a number in a table that refers to a description.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FdEntry {
    pub fd: i32,
    pub cloexec: bool,
    /// Index into [`Snapshot::descriptions`].
    pub description: u32,
}

/// An open file description (open(2)); descriptors that share one share its offset and status flags.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Description {
    /// Number of the kind in the table of `fd`; appended, never renumbered.
    pub kind: u16,
    /// For people: what /proc/PID/fd/N shows.
    pub label: String,
    /// As fcntl(F_GETFL) shows them.
    pub status_flags: u32,
    pub io_signals: Option<IoSignals>,
    /// The kind's own data, in postcard.
    pub payload: Vec<u8>,
}

/// Who gets a signal when a description is ready (fcntl(2), F_SETOWN_EX and F_SETSIG); O_ASYNC is a status flag.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct IoSignals {
    /// F_OWNER_TID 0, F_OWNER_PID 1, F_OWNER_PGRP 2.
    pub kind: i32,
    /// 0: nobody.
    pub owner: i32,
    /// 0: SIGIO, without a siginfo_t.
    pub signal: i32,
}

/// struct kernel_sigaction of the architecture, in host-independent form.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SignalAction {
    pub signal: i32,
    pub handler: u64,
    pub flags: u64,
    pub restorer: u64,
    pub mask: u64,
}

/// siginfo_t, 128 bytes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SigInfo(pub Vec<u8>);

/// Time left and period of a timer; both 0 in one that is not armed.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct TimerTime {
    pub left_ns: u64,
    pub interval_ns: u64,
}

/// timer_create(2).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PosixTimer {
    pub id: i32,
    pub clock: i32,
    /// sigev_notify, SIGEV_THREAD_ID included.
    pub notify: i32,
    pub signal: i32,
    /// sigev_value.
    pub value: u64,
    /// The thread of SIGEV_THREAD_ID, else 0.
    pub tid: i32,
    pub time: TimerTime,
    pub overrun: i32,
}

/// prlimit(2); `resource` is RLIMIT_*.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rlimit {
    pub resource: u32,
    pub soft: u64,
    pub hard: u64,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Thread {
    pub tid: i32,
    pub name: Name,
    /// Raw register sets by ELF note type (ptrace(2), PTRACE_GETREGSET); NT_PRSTATUS is first.
    pub regsets: Vec<RegSet>,
    pub sigmask: u64,
    pub pending: Vec<SigInfo>,
    pub sigaltstack: SigAltStack,
    /// get_robust_list(2).
    pub robust_list: Option<RobustList>,
    /// set_tid_address(2).
    pub clear_child_tid: u64,
    pub rseq: Option<Rseq>,
    pub pdeath_signal: i32,
    pub credentials: Credentials,
    pub scheduling: Scheduling,
    pub settings: ThreadSettings,
    /// A timed call that the thread was caught in, so that it goes on with the time it had left.
    pub timed_wait: Option<TimedWait>,
    /// In the middle of a function of `[vdso]`, or in a handler of a signal that came there: it goes on only with the same `[vdso]`.
    pub in_vdso: bool,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RegSet {
    pub note: u32,
    #[serde(with = "serde_bytes")]
    pub data: Vec<u8>,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SigAltStack {
    pub sp: u64,
    pub flags: u32,
    pub size: u64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct RobustList {
    pub head: u64,
    pub len: u64,
}

/// rseq(2) registration, and the critical section the thread was in (0: none).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rseq {
    pub addr: u64,
    pub size: u32,
    pub flags: u32,
    pub signature: u32,
    pub critical_section: u64,
}

/// credentials(7) and capabilities(7) of a thread.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Credentials {
    /// Real, effective, saved, file system.
    pub uids: [u32; 4],
    pub gids: [u32; 4],
    pub groups: Vec<u32>,
    pub inheritable: u64,
    pub permitted: u64,
    pub effective: u64,
    pub bounding: u64,
    pub ambient: u64,
    pub securebits: u32,
    pub no_new_privs: bool,
}

/// How a thread is scheduled: sched_setattr(2), sched_setaffinity(2), ioprio_set(2), PR_SET_TIMERSLACK.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Scheduling {
    /// SCHED_*.
    pub policy: u32,
    /// SCHED_FLAG_*, as sched_getattr(2) shows them.
    pub flags: u64,
    pub nice: i32,
    /// Of SCHED_FIFO and SCHED_RR.
    pub priority: u32,
    /// Of SCHED_DEADLINE; of the other policies runtime is the slice (Linux 6.12).
    pub runtime_ns: u64,
    pub deadline_ns: u64,
    pub period_ns: u64,
    /// Utilisation clamps (Linux 5.3).
    pub util_min: u32,
    pub util_max: u32,
    /// The mask of sched_setaffinity(2): CPU N is bit N % 8 of byte N / 8.
    pub affinity: Vec<u8>,
    /// As ioprio_get(2) shows it; 0: not set, so that it follows the nice value.
    pub io_priority: u32,
    pub timer_slack_ns: u64,
}

/// The thread was in the system call `number`, which waits for a time; `left_ns` of it remained.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct TimedWait {
    pub number: u64,
    pub left_ns: u64,
}
