//! `--leave-running`: the process stands still for its state only. Its memory is read from a copy-on-write copy of it, which is made
//! in the pause, while it runs on itself.

use std::io;
use std::sync::atomic::AtomicBool;

use anyhow::{Context, Result, bail};

use super::saved::Saved;
use super::{Observer, Options, Output, collect, describe, encode};
use crate::collect::{Collected, Facts, Later, Pages, ProcDir, Relative, Source};
use crate::describe::Described;
use crate::image::pages::{PageSource, Space};
use crate::image::write::Written;
use crate::tracer::{Copied, MemoryCopy, ProcessMemory, StoppedProcess};

/// A process as it was at one moment. Nothing of it is written yet.
pub struct Cut {
    described: Described,
    /// Mappings whose pages are to be looked for in the copy.
    later: Vec<Later>,
    saved: Saved,
    copy: MemoryCopy,
    /// Shared areas that are still mapped in the copy.
    shared: Vec<(u64, u64)>,
}

pub enum Attempt {
    Made(Box<Cut>),
    /// The reason, a clause.
    NotPossible(String),
}

/// A signal that comes in the few microseconds that matter is rare; a program under a storm of them is stopped instead.
const MAX_ATTEMPTS: usize = 20;
/// So many shared areas are unmapped from the copy in the pause, at some 10 µs each.
const UNMAPPED_AT_ONCE: usize = 256;

/// Beforehand: what speaks against a copy at all. A clause.
pub fn hindrance(pid: i32) -> Option<String> {
    // A process that is gone is refused by those who seize it.
    let dir = ProcDir::by_pid(pid).ok()?;
    match collect::too_little_memory(&dir) {
        Ok(reason) => reason,
        Err(error) => Some(format!("nobody knows whether there is memory for a copy: {error:#}")),
    }
}

pub fn cut(
    process: &mut StoppedProcess,
    tracees: &[Relative],
    output: &Output,
    observer: &dyn Observer,
) -> Result<Attempt> {
    for _ in 0..MAX_ATTEMPTS {
        let collected = collect(process, tracees.to_vec(), Pages::InCopy, observer)?;
        let Collected { facts, objects, later } = collected;
        let (at_once, shared) = match shared_areas(&facts) {
            few if few.len() <= UNMAPPED_AT_ONCE => (few, Vec::new()),
            many => (Vec::new(), many),
        };
        let described = describe(facts, observer)?;
        let copy = match process.copy_memory(&at_once).context("copy the process")? {
            Copied::Whole(copy) => copy,
            Copied::Stale => continue,
            Copied::Impossible(reason) => return Ok(Attempt::NotPossible(reason)),
        };
        let source = Source::new(process.memory(), objects);
        // What there is to store so far is what the copy does not have.
        let saved = match Saved::copy(&described.extents, &source, || output.spare()) {
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
            saved,
            copy,
            shared,
        })));
    }
    Ok(Attempt::NotPossible("signals came without a pause".into()))
}

/// What a copy would share with its original: nobody may find it busy for the copy's sake (F_ADD_SEALS, umount(2), flock(2)).
fn shared_areas(facts: &Facts) -> Vec<(u64, u64)> {
    let mut areas: Vec<(u64, u64)> = Vec::new();
    for area in facts
        .mappings
        .iter()
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
}

impl PageSource for FromCopy<'_> {
    fn read(&self, space: Space, offset: u64, buffer: &mut [u8]) -> io::Result<()> {
        match (self.saved.read(space, offset, buffer)?, space) {
            (true, _) => Ok(()),
            (false, Space::Process(0)) => self.memory.read_at(offset, buffer),
            (false, _) => Err(io::Error::new(
                io::ErrorKind::NotFound,
                format!("there is no {space:?}"),
            )),
        }
    }
}
