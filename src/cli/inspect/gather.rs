//! What `inspect` shows, gathered from what the image says.

use super::Contents;
use super::ipc;
use super::names;
use super::report::*;
use super::settings;
use super::stored::Amount;
use crate::arch::registers::{Layout, note_name};
use crate::fd;
use crate::image::state::*;
use std::path::Path;

impl Report {
    pub(super) fn new(image: &Path, contents: &Contents) -> Self {
        let Contents {
            header,
            snapshot,
            totals,
            stored,
        } = contents;
        let vmas = || snapshot.processes.iter().flat_map(|process| &process.memory.vmas);
        let reporter = Reporter {
            snapshot,
            machine: header.machine,
        };
        Report {
            image: image.display().to_string(),
            file_bytes: totals.file_bytes,
            format: format!("{}.{}", header.major, header.minor),
            machine: machine_name(header.machine),
            page_size: header.page_size,
            taken: names::moment(snapshot.clocks.realtime_ns),
            taken_ns: snapshot.clocks.realtime_ns,
            host: snapshot.host.hostname.clone(),
            kernel: snapshot.host.kernel_release.clone(),
            boot_id: snapshot.host.boot_id.clone(),
            cpu_features: snapshot.host.cpu_features.clone(),
            cryopod_version: snapshot.host.cryopod_version.clone(),
            process_count: snapshot.processes.len(),
            thread_count: snapshot.processes.iter().map(|process| process.threads.len()).sum(),
            memory: MemoryTotals {
                mapped_bytes: sum(vmas().map(|vma| vma.end - vma.start)),
                resident_bytes: sum(vmas().map(|vma| vma.resident)),
                stored_bytes: totals.stored_bytes,
                compressed_bytes: totals.compressed_bytes,
                state_bytes: totals.state_bytes,
                compression_ratio: (totals.compressed_bytes > 0)
                    .then(|| totals.stored_bytes as f64 / totals.compressed_bytes as f64),
            },
            zombies: snapshot.zombies.iter().map(zombie).collect(),
            leaderless: snapshot.leaderless.clone(),
            processes: snapshot
                .processes
                .iter()
                .zip(&stored.mappings)
                .map(|(process, amounts)| reporter.process(process, amounts))
                .collect(),
            shared_objects: snapshot
                .shared_objects
                .iter()
                .zip(&stored.shared_objects)
                .map(object)
                .collect(),
            ptys: ipc::ptys(snapshot),
            semaphore_sets: ipc::semaphores(snapshot),
            message_queues: ipc::queues(snapshot),
        }
    }
}

/// Of what an image claims, so that it may be anything.
fn sum(sizes: impl Iterator<Item = u64>) -> u64 {
    sizes.fold(0, u64::saturating_add)
}

fn machine_name(machine: u16) -> String {
    Layout::of(machine).map_or_else(|| format!("ELF machine {machine}"), |layout| layout.name.into())
}

/// What the parts of a report need to know besides themselves.
struct Reporter<'a> {
    snapshot: &'a Snapshot,
    machine: u16,
}

impl Reporter<'_> {
    fn process(&self, process: &Process, amounts: &[Amount]) -> ProcessReport {
        let interval_names = ["ITIMER_REAL", "ITIMER_VIRTUAL", "ITIMER_PROF"];
        ProcessReport {
            pid: process.pid,
            ppid: process.ppid,
            pgid: process.pgid,
            sid: process.sid,
            executable: text(&self.snapshot.files[process.exe as usize].path),
            directory: text(&process.cwd),
            root: text(&process.root),
            umask: format!("{:04o}", process.umask),
            personality: Hex(process.personality.into()),
            oom_score_adj: process.oom_score_adj,
            settings: settings::of_process(&process.settings),
            stopped_by: process.stopped_by.map(names::signal),
            threads: process.threads.iter().map(|thread| self.thread(thread)).collect(),
            mappings: process
                .memory
                .vmas
                .iter()
                .zip(amounts)
                .map(|(vma, amount)| self.mapping(vma, amount, process))
                .collect(),
            descriptors: self.descriptors(&self.snapshot.fd_tables[process.fd_table as usize]),
            signal_actions: process.signal_actions.iter().map(action).collect(),
            pending: process.pending.iter().map(pending).collect(),
            interval_timers: interval_names
                .iter()
                .zip(&process.interval_timers)
                .filter_map(interval_timer)
                .collect(),
            posix_timers: process.posix_timers.iter().map(posix_timer).collect(),
            limits: process.rlimits.iter().map(limit).collect(),
        }
    }

    fn thread(&self, thread: &Thread) -> ThreadReport {
        let credentials = &thread.credentials;
        ThreadReport {
            tid: thread.tid,
            name: text(&thread.name),
            registers: self.registers(thread),
            register_sets: thread.regsets.iter().map(register_set).collect(),
            blocked: names::signals(thread.sigmask),
            pending: thread.pending.iter().map(pending).collect(),
            uids: credentials.uids,
            gids: credentials.gids,
            groups: credentials.groups.clone(),
            capabilities: Hex(credentials.effective),
            no_new_privs: credentials.no_new_privs,
            policy: thread.scheduling.policy,
            nice: thread.scheduling.nice,
            settings: settings::of_thread(&thread.settings),
            timed_wait: thread.timed_wait.map(|wait| WaitReport {
                syscall: wait.number,
                left_ns: wait.left_ns,
            }),
        }
    }

    fn registers(&self, thread: &Thread) -> Vec<RegisterReport> {
        let general = thread.regsets.first().map_or(&[][..], |set| &set.data);
        let registers = Layout::of(self.machine)
            .and_then(|layout| layout.registers(general))
            .unwrap_or_default();
        registers
            .into_iter()
            .map(|(name, value)| RegisterReport {
                name,
                value: Hex(value),
            })
            .collect()
    }

    fn mapping(&self, vma: &Vma, amount: &Amount, process: &Process) -> MappingReport {
        let (kind, name, offset, shared_object) = match &vma.backing {
            Backing::Anonymous => ("anonymous", anonymous_name(vma, &process.memory.layout), None, None),
            Backing::File { file, offset } => (
                "file",
                text(&self.snapshot.files[*file as usize].path),
                Some(*offset),
                None,
            ),
            Backing::Shared { object, offset } => (
                "shared",
                format!("shared object {object}"),
                Some(*offset),
                Some(*object),
            ),
            Backing::Kernel(name) => ("kernel", name.clone(), None, None),
        };
        MappingReport {
            start: Hex(vma.start),
            end: Hex(vma.end),
            protection: protection(vma),
            bytes: vma.end - vma.start,
            resident_bytes: vma.resident,
            stored_bytes: amount.stored,
            compressed_bytes: amount.compressed,
            kind,
            name,
            offset: offset.map(Hex),
            shared_object,
            flags: vma.flags.0.iter().map(|code| text(code)).collect::<Vec<_>>().join(" "),
            policy: vma.policy.as_ref().map(settings::policy),
        }
    }

    fn descriptors(&self, table: &FdTable) -> Vec<DescriptorReport> {
        let report = |entry: &FdEntry| {
            let description = &self.snapshot.descriptions[entry.description as usize];
            DescriptorReport {
                fd: entry.fd,
                close_on_exec: entry.cloexec,
                description: entry.description,
                kind: description.kind,
                kind_name: fd::kind_name(description.kind),
                flags: names::open_flags(description.status_flags, self.machine),
                label: description.label.clone(),
            }
        };
        table.entries.iter().map(report).collect()
    }
}

fn text(name: &[u8]) -> String {
    String::from_utf8_lossy(name).into_owned()
}

fn protection(vma: &Vma) -> String {
    let bit = |bit: u8, letter: char| if vma.prot & bit != 0 { letter } else { '-' };
    [
        bit(1, 'r'),
        bit(2, 'w'),
        bit(4, 'x'),
        if vma.shared { 's' } else { 'p' },
    ]
    .into_iter()
    .collect()
}

/// As maps calls such memory (proc_pid_maps(5)).
fn anonymous_name(vma: &Vma, layout: &MemoryLayout) -> String {
    let heap = layout.start_brk < layout.brk && vma.start < layout.brk && layout.start_brk < vma.end;
    let stack = vma.start <= layout.start_stack && layout.start_stack < vma.end;
    match (vma.name.is_empty(), heap, stack) {
        (false, ..) => format!("[anon:{}]", text(&vma.name)),
        (_, true, _) => "[heap]".into(),
        (_, _, true) => "[stack]".into(),
        _ => String::new(),
    }
}

fn register_set(set: &RegSet) -> RegisterSetReport {
    RegisterSetReport {
        note: Hex(set.note.into()),
        name: note_name(set.note),
        bytes: set.data.len(),
    }
}

fn action(action: &SignalAction) -> ActionReport {
    ActionReport {
        signal: names::signal(action.signal),
        handler: names::handler(action.handler),
        flags: names::signal_flags(action.flags),
        mask: names::signals(action.mask),
    }
}

/// siginfo_t begins with si_signo, si_errno, si_code on all machines but MIPS.
fn pending(info: &SigInfo) -> PendingReport {
    let word = |at: usize| {
        info.0.get(at..at + 4).map_or(0, |bytes| {
            bytes.iter().rev().fold(0, |word, &byte| word << 8 | i32::from(byte))
        })
    };
    PendingReport {
        signal: names::signal(word(0)),
        code: word(8),
    }
}

/// Those that are armed.
fn interval_timer((name, time): (&&str, &TimerTime)) -> Option<TimerReport> {
    (*time != TimerTime::default()).then(|| TimerReport {
        name: name.to_string(),
        id: None,
        signal: None,
        thread: None,
        left_ns: time.left_ns,
        interval_ns: time.interval_ns,
    })
}

fn posix_timer(timer: &PosixTimer) -> TimerReport {
    /// sigev_notify: SIGEV_NONE.
    const NONE: i32 = 1;
    TimerReport {
        name: names::clock(timer.clock),
        id: Some(timer.id),
        signal: (timer.notify != NONE).then(|| names::signal(timer.signal)),
        thread: (timer.tid != 0).then_some(timer.tid),
        left_ns: timer.time.left_ns,
        interval_ns: timer.time.interval_ns,
    }
}

fn limit(limit: &Rlimit) -> LimitReport {
    // RLIM_INFINITY.
    let finite = |value: u64| (value != u64::MAX).then_some(value);
    LimitReport {
        resource: names::resource(limit.resource),
        soft: finite(limit.soft),
        hard: finite(limit.hard),
    }
}

fn object((object, amount): (&SharedObject, &Amount)) -> ObjectReport {
    let (kind, name) = match &object.kind {
        SharedKind::Anonymous => ("anonymous", String::new()),
        SharedKind::SystemV(segment) => ("System V", segment.ipc.id.to_string()),
        SharedKind::Memfd { name, .. } => ("memfd", text(name)),
        SharedKind::Copy { name, .. } => ("file", text(name)),
    };
    ObjectReport {
        kind,
        name,
        bytes: object.size,
        stored_bytes: amount.stored,
        compressed_bytes: amount.compressed,
    }
}

fn zombie(zombie: &Zombie) -> ZombieReport {
    ZombieReport {
        pid: zombie.pid,
        ppid: zombie.ppid,
        pgid: zombie.pgid,
        sid: zombie.sid,
        name: String::from_utf8_lossy(&zombie.name).into_owned(),
        status: zombie.status,
    }
}
