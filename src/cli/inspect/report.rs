//! What `inspect` shows, as data: the fields of its JSON. Sizes and times are numbers; addresses, masks and registers are
//! hexadecimal strings, since JSON's numbers end at 2^53 for many readers.

use serde::{Serialize, Serializer};

use super::ipc::{PtyReport, QueueReport, SemaphoreReport};

#[derive(Serialize)]
pub struct Report {
    pub image: String,
    pub file_bytes: u64,
    /// major.minor
    pub format: String,
    pub machine: String,
    pub page_size: u32,
    pub taken: String,
    pub taken_ns: i64,
    pub host: String,
    pub kernel: String,
    pub boot_id: String,
    /// By which programs choose their code, as /proc/cpuinfo calls them.
    pub cpu_features: Vec<String>,
    pub cryopod_version: String,
    pub process_count: usize,
    pub thread_count: usize,
    pub memory: MemoryTotals,
    pub processes: Vec<ProcessReport>,
    pub zombies: Vec<ZombieReport>,
    /// Ids of sessions and process groups whose leaders have ended.
    pub leaderless: Vec<i32>,
    pub shared_objects: Vec<ObjectReport>,
    pub ptys: Vec<PtyReport>,
    pub semaphore_sets: Vec<SemaphoreReport>,
    pub message_queues: Vec<QueueReport>,
}

/// A process that has ended and that its parent has not waited for.
#[derive(Serialize)]
pub struct ZombieReport {
    pub pid: i32,
    pub ppid: i32,
    pub pgid: i32,
    pub sid: i32,
    pub name: String,
    /// As wait(2) tells it.
    pub status: i32,
}

#[derive(Serialize)]
pub struct MemoryTotals {
    pub mapped_bytes: u64,
    pub resident_bytes: u64,
    pub stored_bytes: u64,
    pub compressed_bytes: u64,
    /// What the rest of the image takes: processes, descriptors, pipe contents …
    pub state_bytes: u64,
    /// Stored by compressed.
    pub compression_ratio: Option<f64>,
}

#[derive(Serialize)]
pub struct ProcessReport {
    pub pid: i32,
    pub ppid: i32,
    pub pgid: i32,
    pub sid: i32,
    pub executable: String,
    pub directory: String,
    pub root: String,
    /// Octal, like chmod's.
    pub umask: String,
    pub personality: Hex,
    pub oom_score_adj: i32,
    /// What prctl(2) and its like set, where that is not the default.
    pub settings: Vec<String>,
    pub stopped_by: Option<String>,
    pub threads: Vec<ThreadReport>,
    pub mappings: Vec<MappingReport>,
    pub descriptors: Vec<DescriptorReport>,
    pub signal_actions: Vec<ActionReport>,
    pub pending: Vec<PendingReport>,
    pub interval_timers: Vec<TimerReport>,
    pub posix_timers: Vec<TimerReport>,
    pub limits: Vec<LimitReport>,
}

#[derive(Serialize)]
pub struct ThreadReport {
    pub tid: i32,
    pub name: String,
    /// Empty where the architecture is unknown to this program.
    pub registers: Vec<RegisterReport>,
    pub register_sets: Vec<RegisterSetReport>,
    pub blocked: Vec<String>,
    pub pending: Vec<PendingReport>,
    pub uids: [u32; 4],
    pub gids: [u32; 4],
    pub groups: Vec<u32>,
    pub capabilities: Hex,
    pub no_new_privs: bool,
    pub policy: u32,
    pub nice: i32,
    pub settings: Vec<String>,
    pub timed_wait: Option<WaitReport>,
}

#[derive(Serialize)]
pub struct RegisterReport {
    pub name: &'static str,
    pub value: Hex,
}

#[derive(Serialize)]
pub struct RegisterSetReport {
    pub note: Hex,
    pub name: Option<&'static str>,
    pub bytes: usize,
}

#[derive(Serialize)]
pub struct WaitReport {
    pub syscall: u64,
    pub left_ns: u64,
}

#[derive(Serialize)]
pub struct MappingReport {
    pub start: Hex,
    pub end: Hex,
    /// As in maps: rwx, and p or s.
    pub protection: String,
    pub bytes: u64,
    pub resident_bytes: u64,
    pub stored_bytes: u64,
    pub compressed_bytes: u64,
    /// anonymous, file, shared or kernel.
    pub kind: &'static str,
    /// For people: a path, `[heap]`, `[stack]`, a shared object.
    pub name: String,
    pub offset: Option<Hex>,
    pub shared_object: Option<u32>,
    pub flags: String,
    /// mbind(2).
    pub policy: Option<String>,
}

#[derive(Serialize)]
pub struct DescriptorReport {
    pub fd: i32,
    pub close_on_exec: bool,
    pub description: u32,
    pub kind: u16,
    /// None for a kind of a later version.
    pub kind_name: Option<&'static str>,
    pub flags: Vec<String>,
    pub label: String,
}

#[derive(Serialize)]
pub struct ActionReport {
    pub signal: String,
    pub handler: String,
    pub flags: Vec<String>,
    pub mask: Vec<String>,
}

#[derive(Serialize)]
pub struct PendingReport {
    pub signal: String,
    pub code: i32,
}

#[derive(Serialize)]
pub struct TimerReport {
    /// ITIMER_REAL … or the clock of a POSIX timer.
    pub name: String,
    /// Of POSIX timers.
    pub id: Option<i32>,
    pub signal: Option<String>,
    pub thread: Option<i32>,
    pub left_ns: u64,
    pub interval_ns: u64,
}

#[derive(Serialize)]
pub struct LimitReport {
    pub resource: String,
    /// None is unlimited.
    pub soft: Option<u64>,
    pub hard: Option<u64>,
}

#[derive(Serialize)]
pub struct ObjectReport {
    pub kind: &'static str,
    pub name: String,
    pub bytes: u64,
    pub stored_bytes: u64,
    pub compressed_bytes: u64,
}

/// A number that is written in hexadecimal.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Hex(pub u64);

impl Serialize for Hex {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(&format_args!("{:#x}", self.0))
    }
}
