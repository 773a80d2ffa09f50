//! Checks of a snapshot that was read: whoever works with it need not check indices, order or bounds again.

use super::family;
use super::header::Header;
use super::lineage::{Conflict, Lineage};
use super::state::{
    Backing, ControlGroup, FdTable, Memory, MemoryPolicy, Process, Pty, SharedKind, SharedObject, SigInfo, Snapshot,
    Thread, Vma, Zombie,
};
use std::collections::HashSet;

/// fs.nr_open of the kernel is 2^20; nobody gets far beyond it.
const FD_MAX: i32 = 1 << 24;
/// PID_MAX_LIMIT (include/linux/threads.h).
const PID_MAX: i32 = 1 << 22;
/// The largest xsave area (AMX) takes 11 KiB; an SVE set 8 KiB and more.
const REGSET_MAX: usize = 256 << 10;
const REGSETS_MAX: usize = 64;
/// No object and no file is larger than off_t allows.
const SIZE_MAX: u64 = i64::MAX as u64 & !0xffff;
/// _NSIG.
const SIGNAL_MAX: i32 = 64;
const SIGINFO_LEN: usize = 128;
/// PATH_MAX, with room for " (deleted)".
const NAME_MAX: usize = 4096 + 64;
/// NGROUPS_MAX.
const GROUPS_MAX: usize = 65536;
/// A mask of far more CPUs than CONFIG_NR_CPUS allows (8192).
const AFFINITY_MAX: usize = 8192;
/// A mask of MAX_NUMNODES, which CONFIG_NODES_SHIFT keeps at 1024 or below.
const NODES_MAX: usize = 1024 / 8;
/// struct sock_filter.
const INSTRUCTION_LEN: usize = 8;
/// BPF_MAXINSNS.
const INSTRUCTIONS_MAX: usize = 4096;
const AUXV_MAX: usize = 64 << 10;

mod ipc;

type Checked = Result<(), String>;

/// An error says what is wrong, as a clause.
pub fn validate(snapshot: &Snapshot, header: &Header) -> Checked {
    ensure(!snapshot.processes.is_empty(), || "it has no process".into())?;
    let mut tids = HashSet::new();
    for process in &snapshot.processes {
        check_process(process, snapshot, header).map_err(|reason| format!("pid {}: {reason}", process.pid))?;
        for thread in &process.threads {
            ensure(tids.insert(thread.tid), || {
                format!("two threads have the tid {}", thread.tid)
            })?;
        }
    }
    check_family(snapshot, &mut tids)?;
    check_lineage(snapshot)?;
    for feature in &snapshot.host.cpu_features {
        let is_word = !feature.is_empty() && feature.len() <= 64 && feature.bytes().all(|byte| byte.is_ascii_graphic());
        ensure(is_word, || "a feature of the CPU has no name".into())?;
    }
    for table in &snapshot.fd_tables {
        check_table(table, snapshot.descriptions.len())?;
    }
    for (index, pty) in snapshot.ptys.iter().enumerate() {
        let is_in_order = index == 0 || snapshot.ptys[index - 1].number < pty.number;
        ensure(is_in_order, || format!("/dev/pts/{} is out of order", pty.number))?;
        check_pty(pty).map_err(|reason| format!("/dev/pts/{}: {reason}", pty.number))?;
    }
    for signals in snapshot
        .descriptions
        .iter()
        .filter_map(|description| description.io_signals)
    {
        ensure((0..=SIGNAL_MAX).contains(&signals.signal), || {
            format!("a descriptor sends signal {}", signals.signal)
        })?;
    }
    for object in &snapshot.shared_objects {
        check_object(object)?;
    }
    ipc::check(snapshot)?;
    for (index, file) in snapshot.files.iter().enumerate() {
        check_name(&file.path, "a file")?;
        let is_copy = |object: u32| {
            let object = snapshot.shared_objects.get(object as usize);
            object.is_some_and(|object| matches!(object.kind, SharedKind::Copy { .. }))
        };
        ensure(file.content.is_none_or(is_copy), || {
            format!("the content of file {index} is no copy")
        })?;
    }
    Ok(())
}

fn ensure(holds: bool, reason: impl FnOnce() -> String) -> Checked {
    if holds { Ok(()) } else { Err(reason()) }
}

fn check_process(process: &Process, snapshot: &Snapshot, header: &Header) -> Checked {
    for (pid, what) in [
        (process.pid, "pid"),
        (process.pgid.max(1), "process group"),
        (process.sid.max(1), "session"),
    ] {
        ensure((1..=PID_MAX).contains(&pid), || format!("its {what} is {pid}"))?;
    }
    ensure((process.exe as usize) < snapshot.files.len(), || {
        format!("its executable is file {}", process.exe)
    })?;
    ensure((process.fd_table as usize) < snapshot.fd_tables.len(), || {
        format!("its descriptors are table {}", process.fd_table)
    })?;
    let own = snapshot.processes.iter().position(|other| other.pid == process.pid);
    ensure(own.is_some_and(|own| process.directories as usize <= own), || {
        format!("it shares its directory with process {}", process.directories)
    })?;
    // SUID_DUMP_DISABLE, SUID_DUMP_USER, SUID_DUMP_ROOT (proc_sys_fs(5), suid_dumpable).
    ensure(process.dumpable <= 2, || {
        format!("its dumpable attribute is {}", process.dumpable)
    })?;
    let terminal = process.terminal.and_then(|terminal| terminal.pty);
    ensure(terminal.is_none_or(|pty| (pty as usize) < snapshot.ptys.len()), || {
        "its controlling terminal is not there".into()
    })?;
    check_name(&process.cwd, "its directory")?;
    check_name(&process.root, "its root")?;
    check_memory(&process.memory, snapshot, header)?;
    check_filters(process)?;
    check_signals(process)?;
    check_threads(process)
}

/// Parents come before their children, so that nobody is an ancestor of itself; and no id is given out twice.
fn check_family(snapshot: &Snapshot, ids: &mut HashSet<i32>) -> Checked {
    for (index, process) in snapshot.processes.iter().enumerate() {
        let later = snapshot.processes[index..]
            .iter()
            .any(|other| other.pid == process.ppid);
        ensure(!later, || format!("pid {} comes before its parent", process.pid))?;
        check_exit_signal(process.exit_signal).map_err(|reason| format!("pid {}: {reason}", process.pid))?;
    }
    for zombie in &snapshot.zombies {
        check_zombie(zombie, snapshot).map_err(|reason| format!("ended process {}: {reason}", zombie.pid))?;
        ensure(ids.insert(zombie.pid), || {
            format!("the id {} is there twice", zombie.pid)
        })?;
    }
    for &id in &snapshot.leaderless {
        ensure((1..=PID_MAX).contains(&id) && ids.insert(id), || {
            format!("the id {id} of a session or process group is there twice, or none")
        })?;
    }
    Ok(())
}

fn check_zombie(zombie: &Zombie, snapshot: &Snapshot) -> Checked {
    for id in [zombie.pid, zombie.pgid.max(1), zombie.sid.max(1)] {
        ensure((1..=PID_MAX).contains(&id), || format!("it has the id {id}"))?;
    }
    ensure(snapshot.has_process(zombie.ppid), || "it has no parent".into())?;
    ensure(zombie.name.len() < 16 && !zombie.name.contains(&0), || {
        "its name is longer than names can be".into()
    })?;
    // The low seven bits are the signal, 127 of one that is only stopped (wait(2)).
    ensure(
        (0..1 << 16).contains(&zombie.status) && zombie.status & 0x7f <= SIGNAL_MAX,
        || format!("its status is {:#x}", zombie.status),
    )?;
    check_exit_signal(zombie.exit_signal)
}

/// 0: its parent is told nothing.
fn check_exit_signal(signal: i32) -> Checked {
    ensure((0..=SIGNAL_MAX).contains(&signal), || {
        format!("its end sends signal {signal}")
    })
}

fn check_threads(process: &Process) -> Checked {
    ensure(
        process.threads.first().is_some_and(|leader| leader.tid == process.pid),
        || "its first thread is not its leader".into(),
    )?;
    for thread in &process.threads {
        check_thread(thread).map_err(|reason| format!("thread {}: {reason}", thread.tid))?;
    }
    Ok(())
}

fn check_thread(thread: &Thread) -> Checked {
    ensure((1..=PID_MAX).contains(&thread.tid), || {
        "no thread has such a tid".into()
    })?;
    // TASK_COMM_LEN is 16, the final zero included.
    ensure(thread.name.len() < 16 && !thread.name.contains(&0), || {
        "its name is longer than names can be".into()
    })?;
    ensure(thread.regsets.len() <= REGSETS_MAX, || {
        format!("it has {} register sets", thread.regsets.len())
    })?;
    let mut notes = HashSet::new();
    for set in &thread.regsets {
        ensure(set.data.len() <= REGSET_MAX, || {
            format!("register set {:#x} is giant", set.note)
        })?;
        ensure(notes.insert(set.note), || {
            format!("register set {:#x} is there twice", set.note)
        })?;
    }
    // NT_PRSTATUS.
    ensure(thread.regsets.first().is_some_and(|set| set.note == 1), || {
        "its general registers are missing".into()
    })?;
    let groups = thread.credentials.groups.len();
    ensure(groups <= GROUPS_MAX, || format!("it is in {groups} groups"))?;
    let cpus = &thread.scheduling.affinity;
    ensure(cpus.len() <= AFFINITY_MAX, || {
        "it may run on more CPUs than there can be".into()
    })?;
    check_policy(thread.settings.memory_policy.as_ref())?;
    for group in &thread.settings.control_groups {
        check_group(group)?;
    }
    check_queue(&thread.pending)
}

fn check_group(group: &ControlGroup) -> Checked {
    check_name(&group.path, "a control group")?;
    ensure(group.path.first() == Some(&b'/'), || {
        "it is in a control group without a path".into()
    })
}

fn check_filters(process: &Process) -> Checked {
    let filters = &process.settings.filters;
    for filter in filters {
        let len = filter.instructions.len();
        let fits = len > 0 && len.is_multiple_of(INSTRUCTION_LEN) && len <= INSTRUCTIONS_MAX * INSTRUCTION_LEN;
        ensure(fits, || format!("it has a seccomp filter of {len} bytes"))?;
    }
    for thread in &process.threads {
        let unknown = thread
            .settings
            .filters
            .iter()
            .find(|index| **index as usize >= filters.len());
        ensure(unknown.is_none(), || {
            format!("thread {} has a seccomp filter that is not there", thread.tid)
        })?;
    }
    Ok(())
}

fn check_policy(policy: Option<&MemoryPolicy>) -> Checked {
    ensure(policy.is_none_or(|policy| policy.nodes.len() <= NODES_MAX), || {
        "has a memory policy of more nodes than there can be".into()
    })
}

fn check_queue(pending: &[SigInfo]) -> Checked {
    for info in pending {
        ensure(info.0.len() == SIGINFO_LEN, || {
            format!("a pending signal takes {} bytes", info.0.len())
        })?;
        let signal = info.0.first_chunk().map_or(0, |bytes| i32::from_le_bytes(*bytes));
        // SIGKILL takes effect at once, it does not wait.
        ensure((1..=SIGNAL_MAX).contains(&signal) && signal != 9, || {
            format!("signal {signal} is pending")
        })?;
    }
    Ok(())
}

fn check_signals(process: &Process) -> Checked {
    let is_signal = |signal: i32| (1..=SIGNAL_MAX).contains(&signal);
    let mut actions = HashSet::new();
    for action in &process.signal_actions {
        ensure(is_signal(action.signal), || {
            format!("it handles signal {}", action.signal)
        })?;
        ensure(actions.insert(action.signal), || {
            format!("it handles signal {} twice", action.signal)
        })?;
    }
    ensure(process.stopped_by.is_none_or(is_signal), || {
        "no signal stopped it".into()
    })?;
    check_queue(&process.pending)?;
    let tids: HashSet<i32> = process.threads.iter().map(|thread| thread.tid).collect();
    let mut timers = HashSet::new();
    for timer in &process.posix_timers {
        ensure(timer.id >= 0 && timers.insert(timer.id), || {
            format!("it has no timer {}, or two", timer.id)
        })?;
        let thread_exists = timer.tid == 0 || tids.contains(&timer.tid);
        ensure(thread_exists, || {
            format!(
                "timer {} signals thread {}, which it does not have",
                timer.id, timer.tid
            )
        })?;
    }
    let mut limits = HashSet::new();
    for limit in &process.rlimits {
        ensure(limit.resource < 64 && limits.insert(limit.resource), || {
            format!("it has no limit {}, or two", limit.resource)
        })?;
    }
    Ok(())
}

/// Of a family that cannot be made nothing is made: it is refused later, for other reasons.
fn check_lineage(snapshot: &Snapshot) -> Checked {
    let heirs = |process: &Process| process.memory.vmas.iter().any(|vma| !vma.inherited.is_empty());
    if !snapshot.processes.iter().any(heirs) {
        return Ok(());
    }
    let Ok(steps) = family::order(&family::members(snapshot), &snapshot.leaderless, false) else {
        return Ok(());
    };
    Lineage::of(&snapshot.processes, &steps).map(drop).map_err(|conflicts| {
        let Conflict { process, mapping } = conflicts[0];
        let (process, mapping) = (
            &snapshot.processes[process],
            &snapshot.processes[process].memory.vmas[mapping],
        );
        let (pid, start, end) = (process.pid, mapping.start, mapping.end);
        format!("pid {pid}: mapping {start:#x}-{end:#x} inherits what its parent has not")
    })
}

fn check_memory(memory: &Memory, snapshot: &Snapshot, header: &Header) -> Checked {
    ensure(memory.auxv.len() <= AUXV_MAX, || "its auxiliary vector is giant".into())?;
    let mut previous_end = 0;
    for vma in &memory.vmas {
        let name = || format!("mapping {:#x}-{:#x}", vma.start, vma.end);
        ensure(vma.start >= previous_end, || format!("{} is out of order", name()))?;
        check_vma(vma, snapshot, header).map_err(|reason| format!("{} {reason}", name()))?;
        previous_end = vma.end;
    }
    Ok(())
}

fn check_vma(vma: &Vma, snapshot: &Snapshot, header: &Header) -> Checked {
    let page = u64::from(header.page_size);
    let aligned = |value: u64| value.is_multiple_of(page);
    ensure(vma.start < vma.end, || "is empty".into())?;
    ensure(aligned(vma.start) && aligned(vma.end), || {
        "is not made of whole pages".into()
    })?;
    ensure(vma.end <= address_limit(header.machine) || is_kernel_high(vma), || {
        "lies where no program can have memory".into()
    })?;
    ensure(vma.prot <= 7, || format!("has the protection {:#x}", vma.prot))?;
    ensure(vma.resident <= vma.end - vma.start, || {
        "holds more than it is long".into()
    })?;
    check_name(&vma.name, "it")?;
    check_ranges(vma, &vma.guards, page, "a guard")?;
    check_ranges(vma, &vma.huge, page, "a huge page")?;
    check_ranges(vma, &vma.inherited, page, "inherited pages")?;
    let huge: u64 = vma.huge.iter().map(|(start, end)| end - start).sum();
    ensure(huge <= vma.resident, || "has more huge pages than pages".into())?;
    check_policy(vma.policy.as_ref())?;
    let (what, index, count, offset) = match &vma.backing {
        Backing::Anonymous => return ensure(!vma.shared, || "is shared and belongs to nothing".into()),
        Backing::Kernel(_) => return Ok(()),
        Backing::File { file, offset } => ("file", *file, snapshot.files.len(), *offset),
        Backing::Shared { object, offset } => ("shared object", *object, snapshot.shared_objects.len(), *offset),
    };
    ensure((index as usize) < count, || {
        format!("is of {what} {index}, which is not there")
    })?;
    ensure(aligned(offset), || format!("begins within a page of its {what}"))?;
    let end = offset.checked_add(vma.end - vma.start);
    ensure(end.is_some_and(|end| end <= SIZE_MAX), || {
        format!("lies beyond any {what}")
    })
}

fn check_ranges(vma: &Vma, ranges: &[(u64, u64)], page: u64, what: &str) -> Checked {
    let mut previous_end = vma.start;
    for &(start, end) in ranges {
        let inside = previous_end <= start && start < end && end <= vma.end;
        let whole = start.is_multiple_of(page) && end.is_multiple_of(page);
        ensure(inside && whole, || format!("has {what} at {start:#x}-{end:#x}"))?;
        previous_end = end;
    }
    Ok(())
}

/// The kernel's pages above all memory of programs: `[vsyscall]` on x86_64, [vectors] on arm.
fn is_kernel_high(vma: &Vma) -> bool {
    matches!(&vma.backing, Backing::Kernel(name) if name == "[vsyscall]" || name == "[vectors]")
}

/// The first address that user space cannot have.
fn address_limit(machine: u16) -> u64 {
    match machine {
        3 | 40 => 1 << 32,      // i386, arm
        62 => 0x7fff_ffff_f000, // x86_64: DEFAULT_MAP_WINDOW (arch/x86/include/asm/page_64_types.h)
        183 => 1 << 52,         // aarch64 with 52-bit addresses; most have 48
        _ => 1 << 63,
    }
}

fn check_pty(pty: &Pty) -> Checked {
    /// NR_UNIX98_PTY_MAX, include/linux/devpts_fs.h and drivers/tty/pty.c.
    const PTYS_MAX: u32 = 1 << 20;
    /// NCCS of any architecture.
    const CHARACTERS_MAX: usize = 64;
    /// A buffer of 4 KiB, and others up to a limit of 8 KiB that are twice as large as they count (drivers/tty/tty_buffer.c), with room.
    const WAITING_MAX: usize = 256 << 10;
    ensure(pty.number < PTYS_MAX, || "there is none of such a number".into())?;
    ensure(pty.line.characters.len() <= CHARACTERS_MAX, || {
        format!("it has {} special characters", pty.line.characters.len())
    })?;
    let waiting = &pty.waiting;
    let typed: usize = waiting.input.iter().map(|input| input.bytes.len()).sum();
    ensure(typed <= WAITING_MAX && waiting.output.len() <= WAITING_MAX, || {
        "more waits in it than it can hold".into()
    })
}

fn check_table(table: &FdTable, descriptions: usize) -> Checked {
    let mut previous = -1;
    for entry in &table.entries {
        ensure(entry.fd > previous && entry.fd < FD_MAX, || {
            format!("fd {} is out of order", entry.fd)
        })?;
        ensure((entry.description as usize) < descriptions, || {
            format!(
                "fd {} refers to description {}, which is not there",
                entry.fd, entry.description
            )
        })?;
        previous = entry.fd;
    }
    Ok(())
}

fn check_object(object: &SharedObject) -> Checked {
    ensure(object.size <= SIZE_MAX, || {
        format!("a shared object is {} bytes long", object.size)
    })?;
    match &object.kind {
        SharedKind::Anonymous => Ok(()),
        SharedKind::SystemV(segment) => ensure(segment.ipc.id >= 0 && segment.creator >= 0, || {
            format!("no segment has the id {}", segment.ipc.id)
        }),
        SharedKind::Memfd { name, .. } => check_name(name, "a memfd"),
        SharedKind::Copy { name, .. } => check_name(name, "the copy of a file"),
    }
}

/// Names go to the kernel as C strings.
fn check_name(name: &[u8], whose: &str) -> Checked {
    ensure(name.len() <= NAME_MAX, || format!("{whose} has a giant name"))?;
    ensure(!name.contains(&0), || format!("the name of {whose} has a zero in it"))
}
