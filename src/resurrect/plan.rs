//! What a thaw will do and what stands against it, decided from the image and from facts about this machine. Pure.
#![deny(unsafe_code)]

pub mod rights;
pub mod settings;

use std::time::Duration;

use nix::unistd::Pid;

use super::timens::{self, ClockPolicy, HostClocks, TimeOffsets};
use super::vdso::place_of_vdso;
use crate::arch;
use crate::image::family::{self, Step, Stranger};
use crate::image::lineage::{Conflict, Lineage};
use crate::image::state::{Credentials, Process, Rlimit, Snapshot};
use crate::refusal::Refusal;

/// Facts about the machine that thaws.
#[derive(Debug, Clone)]
pub struct Machine {
    pub boot_id: String,
    pub clocks: HostClocks,
    pub pid_max: i32,
    /// Whether set_tid of clone3(2) is allowed: CAP_CHECKPOINT_RESTORE or CAP_SYS_ADMIN.
    pub can_choose_pids: bool,
    /// Whether a time namespace may be made: CONFIG_TIME_NS and CAP_SYS_ADMIN, CAP_SYS_TIME.
    pub can_set_clocks: bool,
    /// CAP_SYS_RESOURCE: hard limits may be raised, oom_score_adj lowered.
    pub can_raise_limits: bool,
    /// Thaw's own.
    pub credentials: Credentials,
    pub rlimits: Vec<Rlimit>,
    pub oom_score_adj: i32,
    /// Ids that the image wants and that are in use here, with what uses them.
    pub taken: Vec<Taken>,
    /// Threads whose registers this CPU cannot hold, with the features it lacks.
    pub lacking: Vec<(i32, String)>,
    pub surroundings: settings::Surroundings,
    /// vm.max_map_count.
    pub max_mappings: u64,
}

/// An id that the image wants and that is in use here.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Taken {
    pub id: i32,
    /// By what, in words.
    pub holder: String,
    /// What to do about it.
    pub remedy: String,
    /// How long it may take until it is free: of what has ended, and for which its parent, init perhaps, is going to wait.
    pub patience: Duration,
}

impl Taken {
    pub fn refusal(&self, pid: i32) -> Refusal {
        Refusal::new(
            pid,
            format!("id {}", self.id),
            format!("is taken by {}", self.holder),
            format!("{}; or thaw it with --new-pid-namespace", self.remedy),
        )
    }
}

/// What the user asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Wishes {
    pub detach: bool,
    pub clock: ClockPolicy,
}

/// How the session and process group of the first process come about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Session {
    /// Its session was begun by one of the image, or it is detached.
    New,
    /// In thaw's session, a process group of the image's own: that of this id.
    OwnGroup(Pid),
    /// Both were led from outside: thaw's session and group.
    Join,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Plan {
    /// Of the first process.
    pub pid: Pid,
    pub session: Session,
    /// How the processes are made.
    pub steps: Vec<Step>,
    pub lineage: Lineage,
    /// In the order of the processes. Who inherits memory is not executed: its is that of its parent.
    pub births: Vec<Born>,
    pub time_offsets: Option<TimeOffsets>,
    /// RLIMIT_MEMLOCK, soft and hard, for as long as memory is locked again: as high as ours may be.
    pub lock_limit: u64,
}

/// With what the stub of a process is executed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Born {
    /// personality(2).
    pub personality: u64,
    /// Soft RLIMIT_STACK, which sets the base below which mmap(2) will place new mappings.
    pub stack_limit: u64,
}

/// All refusals at once, or the plan.
pub fn plan(snapshot: &Snapshot, machine: &Machine, wishes: Wishes) -> Result<Plan, Vec<Refusal>> {
    let time_offsets = timens::offsets(
        &snapshot.clocks,
        snapshot.host.boot_id == machine.boot_id,
        machine.clocks,
        wishes.clock,
    );
    let first = &snapshot.processes[0]; // validated: there is one
    let mut refusals = against_ids(snapshot, machine);
    refusals.extend(against_cpu(first, machine));
    refusals.extend(time_offsets.and_then(|_| against_clocks(first, machine)));
    for process in &snapshot.processes {
        refusals.extend(against_kernel(process));
        refusals.extend(against_mappings(process, machine));
        refusals.extend(against_limits(process, machine));
        refusals.extend(rights::against(process, machine));
        refusals.extend(settings::against(process, machine));
    }
    refusals.extend(against_parent(snapshot, wishes));
    let steps = family::order(&family::members(snapshot), &snapshot.leaderless, wishes.detach);
    let steps = steps.unwrap_or_else(|strangers| {
        let reason = |sid| format!("is in session {sid}, which it has no way into");
        let stranger = |stranger: Stranger| Refusal::new(stranger.pid, "the process", reason(stranger.sid), "");
        refusals.extend(strangers.into_iter().map(stranger));
        Vec::new()
    });
    let lineage = Lineage::of(&snapshot.processes, &steps).unwrap_or_else(|conflicts| {
        let reason = "inherits memory from a process that does not make it";
        let heir = |conflict: Conflict| &snapshot.processes[conflict.process];
        let refusal = |conflict| Refusal::new(heir(conflict).pid, "the process", reason, "");
        refusals.extend(conflicts.into_iter().map(refusal));
        Lineage::default()
    });
    if !refusals.is_empty() {
        return Err(refusals);
    }
    let mut births: Vec<Born> = snapshot.processes.iter().map(born).collect();
    for index in 0..births.len() {
        if let Some(parent) = lineage.parent(index) {
            births[index] = births[parent];
        }
    }
    Ok(Plan {
        pid: Pid::from_raw(first.pid),
        session: session(snapshot, wishes),
        steps,
        lineage,
        births,
        time_offsets,
        lock_limit: rights::lock_limit(machine),
    })
}

fn born(process: &Process) -> Born {
    Born {
        personality: libc::ADDR_NO_RANDOMIZE as u64 | u64::from(process.personality & ADDR_COMPAT_LAYOUT),
        stack_limit: stack_limit(process),
    }
}

const ADDR_COMPAT_LAYOUT: u32 = 0x020_0000;

fn session(snapshot: &Snapshot, wishes: Wishes) -> Session {
    let first = &snapshot.processes[0];
    if wishes.detach || snapshot.has_id(first.sid) {
        Session::New
    } else if snapshot.has_id(first.pgid) {
        Session::OwnGroup(Pid::from_raw(first.pgid))
    } else {
        Session::Join
    }
}

fn against_ids(snapshot: &Snapshot, machine: &Machine) -> Vec<Refusal> {
    let pid = snapshot.processes[0].pid;
    let mut refusals = Vec::new();
    if !machine.can_choose_pids {
        let reason = "is the id that the program must have again, and choosing ids needs CAP_CHECKPOINT_RESTORE or CAP_SYS_ADMIN";
        refusals.push(Refusal::new(pid, format!("pid {pid}"), reason, "run thaw as root"));
    }
    refusals.extend(machine.taken.iter().map(|taken| taken.refusal(pid)));
    if let Some(id) = snapshot.ids().find(|id| *id > machine.pid_max) {
        let reason = format!("is above kernel.pid_max, {}, of this machine", machine.pid_max);
        let remedy = "raise it with sysctl kernel.pid_max";
        refusals.push(Refusal::new(pid, format!("id {id}"), reason, remedy));
    }
    refusals
}

fn against_kernel(process: &Process) -> Option<Refusal> {
    let reason = "has no [vdso], through which the last call of a thaw is made";
    let refusal = Refusal::new(process.pid, "its memory", reason, "");
    place_of_vdso(process).is_none().then_some(refusal)
}

/// One refusal speaks for all threads: they ran on the same CPU.
fn against_cpu(process: &Process, machine: &Machine) -> Option<Refusal> {
    let (tid, features) = machine.lacking.first()?;
    let object = format!("the registers of thread {tid}");
    let reason = format!("need what this CPU lacks: {features}");
    Some(Refusal::new(
        process.pid,
        object,
        reason,
        "thaw it on a machine with the same kind of CPU",
    ))
}

fn against_mappings(process: &Process, machine: &Machine) -> Option<Refusal> {
    /// Text and data of the stage, which is in place until the program goes on.
    const OF_THE_STAGE: u64 = 2;
    let count = process.memory.vmas.len() as u64;
    let reason = format!(
        "has {count} mappings, and vm.max_map_count of this machine is {}",
        machine.max_mappings
    );
    let remedy = format!("raise it: sysctl vm.max_map_count={}", count + OF_THE_STAGE);
    (count + OF_THE_STAGE > machine.max_mappings).then(|| Refusal::new(process.pid, "its memory", reason, remedy))
}

fn against_limits(process: &Process, machine: &Machine) -> Vec<Refusal> {
    let pid = process.pid;
    let mut refusals = Vec::new();
    if machine.can_raise_limits {
        return refusals;
    }
    for wanted in &process.rlimits {
        let Some(own) = machine.rlimits.iter().find(|own| own.resource == wanted.resource) else {
            continue;
        };
        if wanted.hard > own.hard {
            let reason = format!("was {}, more than thaw's own {}", wanted.hard, own.hard);
            let remedy = "run thaw with CAP_SYS_RESOURCE, or from a shell with a higher limit";
            refusals.push(Refusal::new(
                pid,
                format!("the hard limit {}", limit_name(wanted.resource)),
                reason,
                remedy,
            ));
        }
    }
    if process.oom_score_adj < machine.oom_score_adj {
        let reason = format!(
            "was {}, below thaw's own {}",
            process.oom_score_adj, machine.oom_score_adj
        );
        refusals.push(Refusal::new(
            pid,
            "oom_score_adj",
            reason,
            "run thaw with CAP_SYS_RESOURCE",
        ));
    }
    refusals
}

fn against_clocks(process: &Process, machine: &Machine) -> Option<Refusal> {
    let remedy = "run thaw as root, or accept that its clocks jump: --clock=host";
    let reason = "would run backwards or jump without a time namespace, which needs CAP_SYS_ADMIN, CAP_SYS_TIME and CONFIG_TIME_NS";
    (!machine.can_set_clocks).then(|| Refusal::new(process.pid, "its monotonic clock", reason, remedy))
}

/// A detached thaw ends at once, and its end would be that of a parent.
fn against_parent(snapshot: &Snapshot, wishes: Wishes) -> Vec<Refusal> {
    let tops = snapshot
        .processes
        .iter()
        .filter(|process| !snapshot.has_process(process.ppid));
    let refusal = |process: &Process| {
        let thread = process.threads.iter().find(|thread| thread.pdeath_signal != 0)?;
        let (signal, tid) = (thread.pdeath_signal, thread.tid);
        let object = format!("the parent-death signal {signal} of thread {tid}");
        let reason = "would be sent as soon as a detached thaw returns";
        Some(Refusal::new(process.pid, object, reason, "thaw it in the foreground"))
    };
    tops.filter(|_| wishes.detach).filter_map(refusal).collect()
}

/// Names of RLIMIT_*, in the order of their numbers (include/uapi/asm-generic/resource.h).
const LIMIT_NAMES: [&str; 16] = [
    "RLIMIT_CPU",
    "RLIMIT_FSIZE",
    "RLIMIT_DATA",
    "RLIMIT_STACK",
    "RLIMIT_CORE",
    "RLIMIT_RSS",
    "RLIMIT_NPROC",
    "RLIMIT_NOFILE",
    "RLIMIT_MEMLOCK",
    "RLIMIT_AS",
    "RLIMIT_LOCKS",
    "RLIMIT_SIGPENDING",
    "RLIMIT_MSGQUEUE",
    "RLIMIT_NICE",
    "RLIMIT_RTPRIO",
    "RLIMIT_RTTIME",
];

fn limit_name(resource: u32) -> String {
    LIMIT_NAMES
        .get(resource as usize)
        .map_or_else(|| format!("{resource}"), |name| (*name).to_owned())
}

/// The stack limit at exec from which the kernel computes the recorded mmap base: base = top - limit - guard gap, without
/// randomisation (mmap_base(), arch/x86/mm/mmap.c). The highest mapping below the stack is taken for the base.
fn stack_limit(process: &Process) -> u64 {
    let unlimited = process
        .rlimits
        .iter()
        .any(|limit| limit.resource == libc::RLIMIT_STACK && limit.soft == u64::MAX);
    if unlimited {
        return u64::MAX; // bottom-up layout, whose base does not depend on the limit (mmap_is_legacy())
    }
    let stack = process.memory.layout.start_stack;
    let below = process.memory.vmas.iter().take_while(|vma| vma.end <= stack).last();
    let base = below.map_or(arch::task_size(), |vma| vma.end);
    arch::task_size()
        .saturating_sub(base)
        .saturating_sub(super::layout::STACK_GUARD_GAP)
}
