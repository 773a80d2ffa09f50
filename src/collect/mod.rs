//! Facts about stopped processes, read only: from /proc, from its registers, and by asking it what no interface shows.
#![deny(unsafe_code)]

mod asked;
mod beforehand;
mod clocks;
mod common;
mod control_groups;
mod facts;
mod family;
mod files;
mod frozen;
mod headroom;
mod in_vdso;
mod inherited;
mod labels;
mod limits;
mod memory;
mod objects;
mod pagemap;
mod policies;
mod proc;
mod process;
mod scheduling;
mod segments;
mod source;
mod speculation;
mod status;
mod surroundings;
mod system_v;
mod task_flags;
mod threads;
mod timers;
mod undo;
mod waits;

use std::collections::HashMap;
use std::os::fd::{BorrowedFd, OwnedFd};

use anyhow::{Context, Result};

use crate::fd::{self, SharedObjects};
use crate::image::state::{MemoryPolicy, Name, ProcessSettings};
use crate::image::state::{PosixTimer, SharedObject};
use crate::tracer::{StoppedProcess, StoppedTree};
use asked::{Answers, Questions};
use objects::{Finder, KnownFiles};
use pagemap::Scanner;
use threads::{Look, Restrictions};

pub use threads::Sandbox;

pub use beforehand::Beforehand;
pub use clocks::clocks;
pub use control_groups::{control_groups, directory, roots_of_control_groups};
pub use facts::{Facts, Mapping, Member, Place, ProcessFacts, SharedFacts, ThreadFacts};
pub use files::Found;
pub use files::build_id;
pub use frozen::is_frozen;
pub use headroom::too_little_memory;
pub use labels::{login_uid, security_label};
pub use limits::limits;
pub use memory::Area;
pub use objects::{Embed, Object, given_name};
pub use pagemap::Populated;
pub use proc::{ProcDir, all_processes};
pub use process::stat;
pub use scheduling::scheduling;
pub use source::{Source, read_object};
pub use status::Status;
pub use surroundings::{Relative, Surroundings};
pub use task_flags::TaskFlags;

/// Facts, and descriptors to read the content of shared objects.
pub struct Collected {
    pub facts: Facts,
    pub objects: Vec<OwnedFd>,
    /// Of the first process.
    pub later: Vec<Later>,
}

/// A mapping whose pages are still to be looked for, by [`pages_of_copy`].
pub struct Later {
    pub area: Area,
    anonymous: bool,
}

/// When the pages of private memory are looked for.
#[derive(Clone, Copy)]
pub enum Pages<'a> {
    Now,
    /// Where fork(2) carries them, later, in a copy of the process. Its mappings may be known already.
    InCopy(Option<&'a Beforehand>),
}

/// What is learnt of a process while it may still change: a loan may let a signal in.
struct Asked {
    restrictions: Vec<Restrictions>,
    timers: Vec<PosixTimer>,
    answers: Answers,
    undos: undo::Undos,
}

pub fn collect(tree: &mut StoppedTree, pages: Pages<'_>, embed: Embed) -> Result<Collected> {
    let sets = system_v::Sets::look()?;
    let asked = tree.processes_mut().iter_mut().map(|process| ask(process, &sets));
    let asked = asked.collect::<Result<Vec<_>>>()?;
    // From here on nothing changes.
    let family = family::Family::look(tree, asked.iter().all(|asked| asked.answers.waits_for_nobody))?;
    let first = ProcDir::of(tree.first().proc()).context("duplicate /proc/PID")?;
    let clocks = clocks::clocks(&first)?;
    let mut shared = SharedObjects::new()?;
    for process in tree.processes() {
        let dir = ProcDir::of(process.proc()).context("duplicate /proc/PID")?;
        shared.expect_deleted(common::deleted_files(&dir)?);
    }
    let places: Vec<_> = tree
        .processes()
        .iter()
        .map(|process| (process.pid(), process.proc()))
        .collect();
    let mut descriptors = fd::look(&places, &family.tables, &mut shared)?;
    let undos = asked.iter().flat_map(|asked| asked.undos.iter().flatten());
    let mut system_v = system_v::owned(tree, sets, undos, &family.ids(tree))?;
    descriptors.warnings.append(&mut system_v.notes);
    descriptors.refusals.append(&mut system_v.refusals);
    segments::intern_unattached(tree, &mut shared)?;
    let (mut members, mut later) = (Vec::new(), Vec::new());
    let (mut known, namespaces) = (KnownFiles::default(), surroundings::Namespaces::own()?);
    for (process, asked) in tree.processes().iter().zip(asked) {
        let dir = ProcDir::of(process.proc()).context("duplicate /proc/PID")?;
        let finder = Finder::new(&dir, &mut shared, embed, &mut known);
        let known = (&family, &namespaces);
        let member = member((process, &dir), asked, known, finder, pages);
        let (member, of_member) = member.with_context(|| format!("pid {}", process.pid()))?;
        members.push(member);
        later.extend(of_member);
    }
    inherited::look(&mut members, tree.processes())?;
    let pids: Vec<i32> = members.iter().map(|member| member.pid).collect();
    let inodes: HashMap<_, _> = shared.inodes().collect();
    let mut holders = HashMap::new();
    for (inode, holder) in common::outsiders(&pids, &inodes.keys().copied().collect())? {
        holders.insert(inodes[&inode], holder);
    }
    let (objects, files) = shared.into_parts();
    let facts = Facts {
        host: process::host(vdso(&members, tree.processes())?)?,
        clocks,
        kernel_areas: kernel_areas()?,
        members,
        zombies: family.zombies,
        leaderless: family.leaderless,
        directories: family.directories,
        descriptors,
        shared_objects: shared_facts(objects, &files, holders)?,
        semaphore_sets: system_v.sets,
        message_queues: system_v.queues,
    };
    Ok(Collected {
        facts,
        objects: files,
        later,
    })
}

fn ask(process: &mut StoppedProcess, sets: &system_v::Sets) -> Result<Asked> {
    let dir = ProcDir::of(process.proc()).context("duplicate /proc/PID")?;
    let each = 0..process.threads().len();
    let restrictions = each.map(|index| Restrictions::of(process, index));
    let restrictions = restrictions.collect::<Result<Vec<_>>>()?;
    let mut timers = timers::posix_timers(&dir)?;
    for index in 0..process.threads().len() {
        if waits::was_caught_before(&process.threads()[index], process.memory()) {
            process.find_deadline(index).context("look for the end of a wait")?;
        }
    }
    // Threads that may not be asked are refused, so that their answers are not missed.
    let mut undos = Ok(Vec::new());
    let answers = match restrictions.iter().all(Restrictions::may_be_asked) {
        true => {
            process
                .reap_dead_copies()
                .context("reap what a freeze left that was killed")?;
            let questions = Questions {
                timers: &mut timers,
                mappings: policies::candidates(&dir)?,
                speculation: restrictions.iter().map(|known| known.status.speculation).collect(),
                cpuid_may_fault: crate::arch::probe::cpuid_may_fault(),
                rseq_is_told: process.threads()[0].rseq_is_told(),
            };
            let answers = asked::ask(process, questions)?;
            undos = undo::of_process(process, sets)?;
            answers
        }
        false => Answers::default(),
    };
    Ok(Asked {
        restrictions,
        timers,
        answers,
        undos,
    })
}

fn member(
    (process, dir): (&StoppedProcess, &ProcDir),
    asked: Asked,
    (family, namespaces): (&family::Family, &surroundings::Namespaces),
    mut finder: Finder<'_>,
    pages: Pages<'_>,
) -> Result<(Member, Vec<Later>)> {
    let Asked {
        restrictions,
        timers,
        mut answers,
        undos,
    } = asked;
    let of_threads = std::mem::take(&mut answers.threads);
    let threads = threads(process, dir, namespaces, restrictions, of_threads)?;
    // Before the mappings, of which it may be one: then it is known as a file.
    let exe = finder.executable()?;
    let (mappings, later) = mappings(dir, &mut finder, &mut answers.memory_policies, pages)?;
    let member = Member {
        pid: process.pid().as_raw(),
        process: process_facts(process, dir, exe, answers, timers, undos)?,
        surroundings: family.surroundings(process, threads[0].foreign_namespaces.clone()),
        mappings,
        threads,
    };
    Ok((member, later))
}

fn threads(
    process: &StoppedProcess,
    dir: &ProcDir,
    namespaces: &surroundings::Namespaces,
    restrictions: Vec<Restrictions>,
    answers: Vec<asked::ThreadAnswers>,
) -> Result<Vec<ThreadFacts>> {
    let look = Look {
        dir,
        process,
        control_groups: control_groups::control_groups(dir)?,
        security_label: labels::security_label(dir)?,
        login_uid: labels::login_uid(dir)?,
        namespaces,
        handler_stacks: answers
            .iter()
            .map(|answers| answers.sigaltstack)
            .filter(|stack| stack.size > 0)
            .collect(),
    };
    let mut answers = answers.into_iter();
    let each = process.threads().iter().zip(restrictions);
    each.map(|(thread, restrictions)| {
        let facts = look.thread(thread, restrictions, answers.next().unwrap_or_default());
        facts.with_context(|| format!("thread {}", thread.tid()))
    })
    .collect()
}

fn mappings(
    dir: &ProcDir,
    finder: &mut Finder<'_>,
    policies: &mut HashMap<u64, MemoryPolicy>,
    pages: Pages<'_>,
) -> Result<(Vec<Mapping>, Vec<Later>)> {
    let scanner = Scanner::new(dir)?;
    let (in_copy, beforehand) = match pages {
        Pages::InCopy(beforehand) if scanner.skips_holes() => (true, beforehand),
        Pages::InCopy(_) | Pages::Now => (false, None),
    };
    let known = beforehand
        .map(|beforehand| beforehand.still(dir))
        .transpose()?
        .flatten();
    let areas = match known {
        Some(areas) => areas,
        None => memory::areas(dir)?,
    };
    let (mut mappings, mut later) = (Vec::new(), Vec::new());
    for area in areas {
        let object = finder.find(&area);
        // Pages of shared mappings belong to their object; those of the kernel's own are made anew.
        let has_own_pages = !area.shared && object != Object::Kernel;
        let populated = match has_own_pages {
            true if in_copy && area.is_carried_by_fork() => {
                later.push(Later {
                    area: area.clone(),
                    anonymous: object == Object::Anonymous,
                });
                Populated::default()
            }
            true => scanner.populated(&area, object == Object::Anonymous)?,
            false => Populated::default(),
        };
        mappings.push(Mapping {
            policy: policies.remove(&area.start),
            area,
            object,
            populated,
            inherited: Vec::new(),
        });
    }
    Ok((mappings, later))
}

/// The pages of mappings, in a copy of the process that they are of.
pub fn pages_of_copy(copy: BorrowedFd<'_>, mappings: &[Later]) -> Result<Vec<Populated>> {
    let dir = ProcDir::of(copy).context("duplicate /proc/PID")?;
    let scanner = Scanner::new(&dir)?;
    let pages = mappings.iter();
    pages
        .map(|later| scanner.populated(&later.area, later.anonymous))
        .collect()
}

fn kernel_areas() -> Result<Vec<Area>> {
    let own = ProcDir::by_pid(std::process::id() as i32).context("open /proc/self")?;
    let mut areas = memory::areas_without_flags(&own)?;
    areas.retain(objects::is_kernel);
    Ok(areas)
}

/// The content of `[vdso]`, which is the same in all processes, from the first that has one.
fn vdso(members: &[Member], processes: &[StoppedProcess]) -> Result<Vec<u8>> {
    let of_member = |member: &Member| {
        member
            .mappings
            .iter()
            .position(|mapping| mapping.area.name == b"[vdso]")
    };
    let found = members
        .iter()
        .zip(processes)
        .find_map(|(member, process)| of_member(member).map(|at| (&member.mappings[at].area, process)));
    let Some((area, process)) = found else {
        return Ok(Vec::new());
    };
    let mut bytes = vec![0; area.len() as usize];
    process
        .memory()
        .read_at(area.start, &mut bytes)
        .context("read [vdso]")?;
    process.blank_left_behind(area.start, &mut bytes);
    Ok(bytes)
}

fn shared_facts(
    objects: Vec<SharedObject>,
    files: &[OwnedFd],
    mut holders: HashMap<u32, Relative>,
) -> Result<Vec<SharedFacts>> {
    let facts = |(index, (object, file)): (u32, (SharedObject, &OwnedFd))| {
        Ok(SharedFacts {
            data: source::data(file, object.size).context("shared memory")?,
            object,
            outsider: holders.remove(&index),
        })
    };
    (0..).zip(objects.into_iter().zip(files)).map(facts).collect()
}

fn process_facts(
    process: &StoppedProcess,
    dir: &ProcDir,
    exe: (Name, Found),
    answers: Answers,
    posix_timers: Vec<PosixTimer>,
    undos: undo::Undos,
) -> Result<ProcessFacts> {
    let stat = process::stat(dir)?;
    let stopped_by = process.group_stop();
    Ok(ProcessFacts {
        ppid: stat.ppid,
        pgid: stat.pgrp,
        sid: stat.session,
        terminal: (stat.session == stat.pid && stat.tty_nr != 0).then(|| {
            let (major, minor) = stat.tty_nr();
            ((major.cast_unsigned(), minor.cast_unsigned()), stat.tpgid)
        }),
        exit_signal: stat.exit_signal.context("stat has no exit signal")?,
        umask: Status::of(dir)?.umask,
        exe,
        cwd: process::place(dir, "cwd")?,
        root: process::place(dir, "root")?,
        personality: process::hex(dir, "personality")?,
        oom_score_adj: process::decimal(dir, "oom_score_adj")?,
        dumpable: answers.dumpable,
        coredump_filter: process::coredump_filter(dir)?,
        child_subreaper: answers.child_subreaper,
        settings: ProcessSettings {
            autogroup_nice: process::autogroup_nice(dir)?,
            ..answers.settings
        },
        untold: answers.untold,
        undos,
        has_ldt: answers.has_ldt,
        layout: process::layout(&stat, answers.brk)?,
        auxv: dir.read("auxv")?,
        signal_actions: answers.signal_actions,
        pending: process.threads()[0].shared_pending()?,
        stopped_by,
        // wait(2) takes the code of a stop with it (wait_task_stopped(), kernel/exit.c). Before Linux 5.16 stat did not show it: told.
        stop_was_told: stopped_by.is_some() && stat.exit_code.unwrap_or_default() == 0,
        interval_timers: answers.interval_timers,
        posix_timers,
        rlimits: limits::limits(dir)?,
    })
}
