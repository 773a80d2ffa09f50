//! Facts → what the image will say, or why the processes cannot be frozen. Pure: all refusals are found here, all at once.
#![deny(unsafe_code)]

mod contents;
mod mappings;
mod refusals;
#[cfg(test)]
mod tests;

use crate::collect::{Facts, Member, Populated, Sandbox, ThreadFacts};
use crate::fd::Inputs;
use crate::image::family;
use crate::image::lineage::Lineage;
use crate::image::pages::{Extent, Space};
use crate::image::state::{ControllingTerminal, File, Filter, Memory, Name, Process, Pty, SharedKind, Snapshot, Vma};
use crate::refusal::{Refusal, Refused};
use crate::sys::pty::slave_number;

/// What goes into the image: its state, and which memory.
#[derive(Debug)]
pub struct Described {
    pub snapshot: Snapshot,
    pub extents: Vec<Extent>,
    /// What is carried but may differ after a thaw, for people.
    pub warnings: Vec<String>,
    pub inputs: Inputs,
}

impl Described {
    /// Adds the pages of a mapping of the first process that were looked for later.
    pub fn add_pages(&mut self, start: u64, populated: Populated) {
        let vmas = &mut self.snapshot.processes[0].memory.vmas;
        let found = vmas.binary_search_by_key(&start, |vma| vma.start);
        let vma = &mut vmas[found.expect("each mapping has become a vma")];
        vma.resident = populated.bytes();
        let space = Space::Process(0);
        self.extents
            .extend(contents::extents(space, &vma.backing, &populated.runs));
        vma.huge = mappings::huge_pages(&vma.backing, &populated);
        vma.guards = populated.guards;
    }

    /// Bytes of memory to be stored, before compression.
    pub fn memory_bytes(&self) -> u64 {
        self.extents.iter().map(|extent| extent.len).sum()
    }
}

pub fn describe(facts: Facts) -> Result<Described, Refused> {
    let mut files = FileTable::default();
    let (mut memories, mut runs, mut exes) = (Vec::new(), Vec::new(), Vec::new());
    let mut refusals = Vec::new();
    for (index, member) in (0..).zip(&facts.members) {
        refusals.extend(refusals::of_process(member));
        let memory = mappings::describe(index, &facts, &mut files, &mut refusals);
        memories.push(memory.vmas);
        runs.push(memory.runs);
        exes.push(files.executable(&facts, member, &mut refusals));
    }
    refusals.extend(refusals::of_shared_objects(&facts));
    refusals.extend(facts.descriptors.refusals.iter().cloned());
    if !refusals.is_empty() {
        return Err(Refused(refusals));
    }
    let mut warnings = facts.descriptors.warnings;
    for member in &facts.members {
        // prctl(2), PR_SET_DUMPABLE: 2 cannot be set.
        if member.process.dumpable == 2 {
            let note = "its core dumps are for root only (dumpable 2); thawed, it will have none (dumpable 0)";
            warnings.push(format!("pid {}: {note}", member.pid));
        }
        let untold = member.process.untold.iter();
        warnings.extend(untold.map(|note| format!("pid {}: {note}", member.pid)));
        let threads = member.threads.iter().map(|facts| &facts.thread);
        warnings.extend(threads.filter(|thread| thread.in_vdso).map(|thread| {
            format!(
                "pid {}: thread {} is in the middle of a function of [vdso], or handles a signal that came there: this image thaws under \
                 the same kernel only",
                member.pid, thread.tid
            )
        }));
    }
    let parts = facts.members.into_iter().zip(memories).zip(exes);
    let shares = |index: usize| (facts.descriptors.table_of[index], facts.directories[index] as u32);
    let processes = parts.enumerate();
    let of_shared_objects = contents::of_shared_objects(&facts.shared_objects);
    let mut snapshot = Snapshot {
        host: facts.host,
        clocks: facts.clocks,
        processes: processes
            .map(|(index, ((member, vmas), exe))| process(member, exe, vmas, shares(index), &facts.descriptors.ptys))
            .collect(),
        zombies: facts.zombies,
        leaderless: facts.leaderless,
        ptys: facts.descriptors.ptys,
        fd_tables: facts.descriptors.tables,
        descriptions: facts.descriptors.descriptions,
        shared_objects: facts.shared_objects.into_iter().map(|shared| shared.object).collect(),
        semaphore_sets: facts.semaphore_sets,
        message_queues: facts.message_queues,
        files: files.0,
    };
    let steps = family::order(&family::members(&snapshot), &snapshot.leaderless, false).map_err(|strangers| {
        let refusals = strangers.into_iter().map(refusals::of_stranger);
        Refused(refusals.collect())
    })?;
    let unmade = refusals::of_sharers(&snapshot, &steps);
    if !unmade.is_empty() {
        return Err(Refused(unmade));
    }
    let lineage = Lineage::settle(&mut snapshot.processes, &steps);
    let mut extents = contents::of_processes(&mut snapshot.processes, &lineage, &runs);
    extents.extend(of_shared_objects);
    Ok(Described {
        snapshot,
        extents,
        warnings,
        inputs: facts.descriptors.inputs,
    })
}

/// The index of the pseudo-terminal that a device is, where it is one of these.
fn inner_pty(ptys: &[Pty], (major, minor): (u32, u32)) -> Option<u32> {
    let number = slave_number(major, minor)?;
    let found = ptys.iter().position(|pty| pty.number == number);
    found.and_then(|index| u32::try_from(index).ok())
}

fn process(member: Member, exe: u32, vmas: Vec<Vma>, (fd_table, directories): (u32, u32), ptys: &[Pty]) -> Process {
    let Member {
        pid,
        process: facts,
        mut threads,
        ..
    } = member;
    let mut settings = facts.settings;
    settings.filters = share_filters(&mut threads);
    Process {
        pid,
        ppid: facts.ppid,
        pgid: facts.pgid,
        sid: facts.sid,
        terminal: facts.terminal.map(|(device, foreground)| ControllingTerminal {
            pty: inner_pty(ptys, device),
            foreground,
        }),
        exit_signal: facts.exit_signal,
        exe,
        cwd: facts.cwd.path,
        root: facts.root.path,
        umask: facts.umask,
        personality: facts.personality,
        oom_score_adj: facts.oom_score_adj,
        dumpable: facts.dumpable,
        coredump_filter: facts.coredump_filter,
        child_subreaper: facts.child_subreaper,
        settings,
        memory: Memory {
            vmas,
            layout: facts.layout,
            auxv: facts.auxv,
        },
        fd_table,
        directories,
        signal_actions: facts.signal_actions,
        pending: facts.pending,
        stopped_by: facts.stopped_by,
        stop_was_told: facts.stop_was_told,
        interval_timers: facts.interval_timers,
        posix_timers: facts.posix_timers,
        rlimits: facts.rlimits,
        undos: facts.undos.unwrap_or_default(),
        threads: threads.into_iter().map(|thread| thread.thread).collect(),
    }
}

/// The filters of all threads, each once; the threads get their indices. Most have what the first has.
fn share_filters(threads: &mut [ThreadFacts]) -> Vec<Filter> {
    let mut all: Vec<Filter> = Vec::new();
    for ThreadFacts { thread, sandbox, .. } in threads {
        let Sandbox::Filtered { filters, .. } = sandbox else {
            continue;
        };
        for filter in filters.drain(..) {
            let at = all.iter().position(|known| *known == filter).unwrap_or_else(|| {
                all.push(filter);
                all.len() - 1
            });
            thread.settings.filters.push(at as u32);
        }
    }
    all
}

/// Snapshot::files, each file once.
#[derive(Debug, Default)]
struct FileTable(Vec<File>);

impl FileTable {
    fn index(&mut self, file: &File) -> u32 {
        let at = self.0.iter().position(|known| known == file).unwrap_or_else(|| {
            self.0.push(file.clone());
            self.0.len() - 1
        });
        u32::try_from(at).expect("a process has at most vm.max_map_count mappings, which is an int")
    }

    /// The executable; where it cannot be carried, a refusal, and a number that nobody will see.
    fn executable(&mut self, facts: &Facts, member: &Member, refusals: &mut Vec<Refusal>) -> u32 {
        let (path, found) = &member.process.exe;
        let fit = match refusals::unfit_file(found) {
            Ok(file) if is_open_memfd(facts, file) => Err((
                "is a memfd that the program has open, too, which cryopod does not carry".into(),
                refusals::CLOSE.into(),
            )),
            fit => fit,
        };
        match fit {
            Ok(file) => self.index(file),
            Err((reason, remedy)) => {
                refusals.push(Refusal::new(
                    member.pid,
                    format!("executable {}", shown(path)),
                    reason,
                    remedy,
                ));
                0
            }
        }
    }
}

/// A file whose content is that of a memfd which has descriptors.
fn is_open_memfd(facts: &Facts, file: &File) -> bool {
    let object = file.content.map(|index| &facts.shared_objects[index as usize].object);
    object.is_some_and(|object| matches!(object.kind, SharedKind::Memfd { .. }))
}

fn shown(path: &Name) -> String {
    String::from_utf8_lossy(path).into_owned()
}
