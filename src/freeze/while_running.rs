//! `--leave-running`: the process stands still for its state only. Its memory is read from a copy-on-write copy of it, which is made
//! in the pause, while it runs on itself.

use std::fs::File;
use std::io;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use anyhow::{Context, Result, bail};

use super::saved::Saved;
use super::{Begun, Observer, Options, Output, collect, describe, encode, first, let_go};
use crate::collect::{Beforehand, Collected, Facts, Later, Pages, ProcDir, Source, read_object};
use crate::describe::Described;
use crate::image::pages::{Extent, PageSource, Space};
use crate::image::state::SharedKind;
use crate::image::write::Written;
use crate::tracer::{Copied, MemoryCopy, ProcessMemory, StoppedTree};

/// A process as it was at one moment. Nothing of it is written yet.
pub struct Cut {
    described: Described,
    /// Mappings whose pages are to be looked for in the copy.
    later: Vec<Later>,
    saved: Saved,
    /// Of all shared objects, the files among them.
    objects: Vec<File>,
    copy: MemoryCopy,
    /// Shared areas that are still mapped in the copy.
    shared: Vec<(u64, u64)>,
    /// How long the process stood still, from the first interrupt to the last detach.
    pub paused: Duration,
}

/// How a freeze begins whose process is to run on.
pub enum Start {
    /// It runs already.
    Cut(Box<Cut>),
    StandsStill(Begun),
}

enum Attempt {
    Made(Box<Cut>),
    /// The reason, a clause.
    NotPossible(String),
}

/// A signal that comes in the few microseconds that matter is rare; a program under a storm of them is stopped instead.
const MAX_ATTEMPTS: usize = 20;
/// So many shared areas are unmapped from the copy in the pause, at some 10 µs each.
const UNMAPPED_AT_ONCE: usize = 256;

/// A program that changes the flags of its mappings in the milliseconds that matter; the last time they are read while it stands still.
const MAX_CUTS: usize = 3;

pub fn begin(pids: &[i32], output: &Output, options: &Options<'_>) -> Result<Start> {
    let pid = first(pids)?;
    let mut hindrance = hindrance(pid);
    for last in (0..MAX_CUTS).map(|cut| cut + 1 == MAX_CUTS) {
        // Who may not look will be told by those who seize.
        let dir = ProcDir::by_pid(pid).ok().filter(|_| !last);
        let beforehand = dir.as_ref().and_then(|dir| Beforehand::look(dir).ok());
        let mut begun = Begun::seize(pids, options.observer)?;
        // One that is stopped anyway loses nothing by standing still.
        if begun.tree.first().group_stop().is_some() {
            return Ok(Start::StandsStill(begun));
        }
        if begun.tree.processes().len() > 1 {
            hindrance = Some("of several processes cryopod does not read the memory while they run, yet".into());
        }
        if hindrance.is_none() {
            match cut(&mut begun, beforehand.as_ref(), output, options) {
                Ok(Attempt::Made(cut)) => match cut.release(begun.tree, dir.zip(beforehand), options.observer)? {
                    Some(cut) => return Ok(Start::Cut(cut)),
                    None => continue,
                },
                Ok(Attempt::NotPossible(reason)) => hindrance = Some(reason),
                Err(error) => return Err(let_go(begun.tree, error)),
            }
        }
        begun.note = hindrance.map(|reason| format!("it stands still until the image is written: {reason}"));
        return Ok(Start::StandsStill(begun));
    }
    unreachable!("the last cut does not look beforehand, so that it stands")
}

/// Beforehand: what speaks against a copy at all. A clause.
fn hindrance(pid: i32) -> Option<String> {
    // A process that is gone is refused by those who seize it.
    let dir = ProcDir::by_pid(pid).ok()?;
    match collect::too_little_memory(&dir) {
        Ok(reason) => reason,
        Err(error) => Some(format!("nobody knows whether there is memory for a copy: {error:#}")),
    }
}

fn cut(begun: &mut Begun, beforehand: Option<&Beforehand>, output: &Output, options: &Options<'_>) -> Result<Attempt> {
    let Begun { tree, .. } = begun;
    for _ in 0..MAX_ATTEMPTS {
        let collected = collect(tree, Pages::InCopy(beforehand), options.embed, options.observer)?;
        let Collected { facts, objects, later } = collected;
        let (at_once, shared) = match shared_areas(&facts) {
            few if few.len() <= UNMAPPED_AT_ONCE => (few, Vec::new()),
            many => (Vec::new(), many),
        };
        let described = describe(facts, options.observer)?;
        let process = &mut tree.processes_mut()[0];
        let copy = match process.copy_memory(&at_once).context("copy the process")? {
            Copied::Whole(copy) => copy,
            Copied::Stale => continue,
            Copied::Impossible(reason) => return Ok(Attempt::NotPossible(reason)),
        };
        let source = Source::new(vec![process.memory()], objects);
        // What there is to store so far is what the copy does not have. Files that nobody writes to can be read at any time.
        let is_file = |space| is_copy_of_file(&described, space);
        let lost = described.extents.iter().filter(|extent| !is_file(extent.space));
        let lost: Vec<Extent> = lost.copied().collect();
        let saved = match Saved::copy(&lost, &source, || output.spare()) {
            Ok(saved) => saved,
            Err(error) => {
                process
                    .end_copy(copy)
                    .with_context(|| format!("{error:#}, and then: end the copy"))?;
                return Err(error);
            }
        };
        return Ok(Attempt::Made(Box::new(Cut {
            described,
            later,
            objects: source.into_objects(),
            saved,
            copy,
            shared,
            paused: Duration::ZERO,
        })));
    }
    Ok(Attempt::NotPossible("signals came without a pause".into()))
}

fn is_copy_of_file(described: &Described, space: Space) -> bool {
    let Space::Shared(index) = space else {
        return false;
    };
    let object = &described.snapshot.shared_objects[index as usize];
    matches!(object.kind, SharedKind::Copy { .. })
}

/// What a copy would share with its original: nobody may find it busy for the copy's sake (F_ADD_SEALS, umount(2), flock(2)).
fn shared_areas(facts: &Facts) -> Vec<(u64, u64)> {
    let mut areas: Vec<(u64, u64)> = Vec::new();
    let mappings = facts.members.iter().flat_map(|member| &member.mappings);
    for area in mappings
        .map(|mapping| &mapping.area)
        .filter(|area| area.shared && !area.flags.has(b"dc"))
    {
        match areas.last_mut() {
            Some(last) if last.1 == area.start => last.1 = area.end,
            _ => areas.push((area.start, area.end)),
        }
    }
    areas
}

impl Cut {
    /// Lets the process go on. None where what was known of its mappings was not true any more in the pause.
    fn release(
        mut self: Box<Self>,
        tree: StoppedTree,
        known: Option<(ProcDir, Beforehand)>,
        observer: &dyn Observer,
    ) -> Result<Option<Box<Self>>> {
        observer.step("release");
        let (pid, since) = (tree.first().pid(), tree.stopped_since());
        let released = tree.resume();
        self.paused = since.elapsed();
        let checked = released.map_err(anyhow::Error::from).and_then(|()| match &known {
            Some((dir, beforehand)) => beforehand.held(&ProcDir::of(self.copy.proc())?, dir),
            None => Ok(true),
        });
        if let Ok(true) = checked {
            return Ok(Some(self));
        }
        let ended = self.end().map_err(anyhow::Error::msg);
        let checked = checked.and(ended).map(|()| None);
        checked.with_context(|| format!("cannot freeze pid {pid}, which goes on"))
    }

    /// Writes the image while the process runs.
    pub fn write(
        &mut self,
        output: &mut Output,
        options: &Options<'_>,
        cancelled: &AtomicBool,
    ) -> Result<(Written, Vec<String>)> {
        let written = self.try_write(output, options, cancelled);
        // The kernel takes memory from what it kills, so nothing that was read may count.
        if !self.copy.is_alive() {
            bail!("the copy of the process was killed, by the kernel perhaps, for want of memory");
        }
        written.map(|written| (written, std::mem::take(&mut self.described.warnings)))
    }

    fn try_write(&mut self, output: &mut Output, options: &Options<'_>, cancelled: &AtomicBool) -> Result<Written> {
        self.copy.step_aside(&self.shared).context("the copy of the process")?;
        let pages = collect::pages_of_copy(self.copy.proc(), &self.later).context("the copy of the process")?;
        for (Later { area, .. }, populated) in self.later.iter().zip(pages) {
            self.described.add_pages(area.start, populated);
        }
        self.described
            .extents
            .sort_by_key(|extent| (extent.space, extent.offset));
        let source = FromCopy {
            memory: self.copy.memory(),
            saved: &self.saved,
            objects: &self.objects,
        };
        encode(&self.described, &source, output, options, cancelled)
    }

    /// Ends the copy. The error is for people.
    pub fn end(self) -> Result<(), String> {
        let ended = self.copy.end();
        ended.map_err(|error| format!("the copy of the process cannot be ended: {error}"))?
    }
}

struct FromCopy<'a> {
    memory: &'a ProcessMemory,
    saved: &'a Saved,
    objects: &'a [File],
}

impl PageSource for FromCopy<'_> {
    fn read(&self, space: Space, offset: u64, buffer: &mut [u8]) -> io::Result<()> {
        match (self.saved.read(space, offset, buffer)?, space) {
            (true, _) => Ok(()),
            (false, Space::Process(0)) => self.memory.read_at(offset, buffer),
            (false, _) => read_object(self.objects, space, offset, buffer),
        }
    }
}
