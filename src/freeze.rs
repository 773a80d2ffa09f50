//! The story of a freeze: seize → collect → describe → encode → release. Whatever fails on the way, the processes go on as they were.
#![deny(unsafe_code)]

pub mod choose;
mod output;
mod saved;
mod while_running;

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use nix::sys::signal::Signal;
use nix::unistd::Pid;

use crate::arch;
use crate::collect::{self, Collected, Facts, Pages, ProcDir, Source};
use crate::describe::{self, Described};
use crate::image::pages::PageSource;
use crate::image::write::{self, Compression, Written};
use crate::refusal::{Refusal, Refused};
use crate::sys::process::cancel_on;
use crate::tracer::{StoppedProcess, StoppedTree};

pub use crate::collect::Embed;
pub use output::Output;
use while_running::{Cut, Start};

/// What becomes of the processes once their image is complete.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Afterwards {
    End,
    KeepRunning,
    LeaveStopped,
}

pub struct Options<'a> {
    pub afterwards: Afterwards,
    pub compression: Compression,
    /// Threads that compress; 0: as many as there are processors.
    pub jobs: usize,
    /// Wait until the image is on the disk.
    pub sync: bool,
    pub embed: Embed,
    pub observer: &'a dyn Observer,
}

/// Is told how a freeze gets on.
pub trait Observer: Sync {
    /// A step begins.
    fn step(&self, name: &str);
    /// So many bytes of memory are going to be written.
    fn writes(&self, bytes: u64);
    fn wrote(&self, bytes: u64);
}

#[derive(Debug)]
pub struct Report {
    /// The first that was named.
    pub pid: i32,
    /// How many there are with it.
    pub processes: usize,
    pub afterwards: Afterwards,
    /// The first process was stopped (by a signal) before.
    pub was_stopped: bool,
    pub file_bytes: u64,
    /// How long the process stood still, from the first interrupt to the last detach.
    pub paused: Duration,
    pub warnings: Vec<String>,
}

/// The processes named, and everybody below them.
pub fn freeze(pids: &[i32], mut output: Output, options: &Options<'_>) -> Result<Report> {
    let cancelled = cancel_on(&[Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP]).context("sigaction")?;
    let pid = first(pids)?;
    let Begun { mut tree, note } = match options.afterwards {
        Afterwards::KeepRunning => match while_running::begin(pids, &output, options)? {
            Start::Cut(cut) => return write_cut(pid, *cut, output, options, cancelled),
            Start::StandsStill(begun) => begun,
        },
        Afterwards::End | Afterwards::LeaveStopped => Begun::seize(pids, options.observer)?,
    };
    let was_stopped = tree.first().group_stop().is_some();
    let processes = tree.processes().len();
    let recorded = record(&mut tree, &mut output, options, cancelled);
    let complete = recorded.and_then(|recorded| output.commit(options.sync).map(|()| recorded));
    let (written, described) = match complete {
        Ok(recorded) => recorded,
        Err(error) => return Err(let_go(tree, error)),
    };
    let mut warnings = described.warnings;
    warnings.extend(note);
    if options.afterwards == Afterwards::End {
        let late = described.inputs.late();
        warnings.extend(late.into_iter().map(|late| format!("pid {pid}: {late}")));
    }
    if options.afterwards == Afterwards::LeaveStopped {
        warnings.extend(stopped_before(&tree));
    }
    options.observer.step("release");
    let since = tree.stopped_since();
    release(tree, options.afterwards).context("the image is complete, but")?;
    Ok(Report {
        pid,
        processes,
        afterwards: options.afterwards,
        was_stopped,
        file_bytes: written.file_bytes,
        paused: since.elapsed(),
        warnings,
    })
}

/// Nothing tells them from the others later.
fn stopped_before(tree: &StoppedTree) -> Vec<String> {
    let others = tree
        .processes()
        .iter()
        .skip(1)
        .filter(|process| process.group_stop().is_some());
    let note = "was stopped already, and `cryopod resume` will let it go on as well";
    others.map(|process| format!("pid {} {note}", process.pid())).collect()
}

fn first(pids: &[i32]) -> Result<i32> {
    pids.first().copied().context("no process is named")
}

/// Processes that stand still until their image is written.
struct Begun {
    tree: StoppedTree,
    /// Why, where it was to run on.
    note: Option<String>,
}

impl Begun {
    fn seize(pids: &[i32], observer: &dyn Observer) -> Result<Self> {
        let tree = seize(pids, observer)?;
        Ok(Begun { tree, note: None })
    }
}

/// The process runs, and its memory is written meanwhile.
fn write_cut(
    pid: i32,
    mut cut: Cut,
    mut output: Output,
    options: &Options<'_>,
    cancelled: &AtomicBool,
) -> Result<Report> {
    let paused = cut.paused;
    let recorded = cut.write(&mut output, options, cancelled);
    let ended = cut.end();
    let complete = recorded.and_then(|recorded| output.commit(options.sync).map(|()| recorded));
    let (written, mut warnings) = complete.with_context(|| format!("cannot freeze pid {pid}, which goes on"))?;
    warnings.extend(ended.err());
    Ok(Report {
        pid,
        processes: 1,
        afterwards: options.afterwards,
        was_stopped: false,
        file_bytes: written.file_bytes,
        paused,
        warnings,
    })
}

/// What a freeze would store.
#[derive(Debug)]
pub struct Look {
    pub processes: usize,
    pub memory_bytes: u64,
    pub stopped_for: Duration,
    pub warnings: Vec<String>,
}

/// A freeze without an image: the processes stop for a look and go on.
pub fn look(pids: &[i32], embed: Embed, observer: &dyn Observer) -> Result<Look> {
    let mut tree = seize(pids, observer)?;
    let begin = Instant::now();
    let collected = collect(&mut tree, Pages::Now, embed, observer);
    let described = match collected.and_then(|collected| describe(collected.facts, observer)) {
        Ok(described) => described,
        Err(error) => return Err(let_go(tree, error)),
    };
    let processes = tree.processes().len();
    release(tree, Afterwards::KeepRunning)?;
    let memory_bytes = described.memory_bytes();
    Ok(Look {
        processes,
        memory_bytes,
        stopped_for: begin.elapsed(),
        warnings: described.warnings,
    })
}

fn record(
    tree: &mut StoppedTree,
    output: &mut Output,
    options: &Options<'_>,
    cancelled: &AtomicBool,
) -> Result<(Written, Described)> {
    let Collected { facts, objects, .. } = collect(tree, Pages::Now, options.embed, options.observer)?;
    let described = describe(facts, options.observer)?;
    let memories = tree.processes().iter().map(StoppedProcess::memory).collect();
    let source = Source::new(memories, objects);
    let written = encode(&described, &source, output, options, cancelled)?;
    Ok((written, described))
}

fn seize(pids: &[i32], observer: &dyn Observer) -> Result<StoppedTree> {
    observer.step("seize");
    let pid = first(pids)?;
    try_seize(pids).with_context(|| format!("cannot freeze pid {pid}"))
}

fn try_seize(pids: &[i32]) -> Result<StoppedTree> {
    for &pid in pids {
        if ProcDir::by_pid(pid).is_ok_and(|dir| collect::is_frozen(&dir)) {
            let reason = "is in a control group that is frozen, so that it cannot be stopped";
            let remedy = "thaw the group first (cgroup.freeze, freezer.state)";
            return Err(Refused::from(Refusal::new(pid, "the process", reason, remedy)).into());
        }
    }
    let roots: Vec<Pid> = pids.iter().map(|&pid| Pid::from_raw(pid)).collect();
    StoppedTree::seize(&roots)
}

fn collect(tree: &mut StoppedTree, pages: Pages<'_>, embed: Embed, observer: &dyn Observer) -> Result<Collected> {
    observer.step("collect");
    collect::collect(tree, pages, embed).context("collect")
}

fn describe(facts: Facts, observer: &dyn Observer) -> Result<Described> {
    observer.step("describe");
    Ok(describe::describe(facts)?)
}

fn encode(
    described: &Described,
    source: &dyn PageSource,
    output: &mut Output,
    options: &Options<'_>,
    cancelled: &AtomicBool,
) -> Result<Written> {
    options.observer.step("encode");
    options.observer.writes(described.memory_bytes());
    let write_options = write::Options {
        machine: arch::ELF_MACHINE,
        page_size: arch::PAGE_SIZE as u32,
        compression: options.compression,
        jobs: options.jobs,
        progress: &|bytes| options.observer.wrote(bytes),
        cancelled,
    };
    let written = output.write_by(options.sync, cancelled, |sink| {
        write::write_image(sink, &described.snapshot, &described.extents, source, &write_options)
    });
    if cancelled.load(Ordering::Relaxed) {
        bail!("a signal cancelled it");
    }
    written.context("encode")
}

fn release(tree: StoppedTree, afterwards: Afterwards) -> Result<()> {
    match afterwards {
        Afterwards::End => tree.end().context("end the processes"),
        Afterwards::KeepRunning => tree.resume().context("resume the processes"),
        Afterwards::LeaveStopped => tree.leave_stopped().context("leave the processes stopped"),
    }
}

/// The freeze failed: the processes go on, and the error says so.
fn let_go(tree: StoppedTree, error: anyhow::Error) -> anyhow::Error {
    let pid = tree.first().pid();
    match tree.resume() {
        Ok(()) => error.context(format!("cannot freeze pid {pid}, which was left as it was")),
        Err(resume) => error.context(format!(
            "cannot freeze pid {pid}, nor let it go on as it was ({resume})"
        )),
    }
}
