//! Rebuilds whole trees: all processes are made, filled, finished and let go together.

use std::collections::HashMap;
use std::os::fd::BorrowedFd;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};

use super::fill::{Fill, ProcessFill};
use super::maker::Maker;
use super::plan::Plan;
use super::process::{Parts, Rebuilt};
use super::resume::GoesOn;
use crate::image::state::{Process, Snapshot};
use crate::sysv::semaphores::{self, Users};
use crate::tracer::Pinned;

/// Processes that are being rebuilt. Dropped before [`resume`](Self::resume) lets them go, they are killed whole.
pub struct Tree<'a> {
    maker: Maker<'a>,
    /// Once they are there, in the order of the image.
    fills: Vec<Option<ProcessFill>>,
    jobs: usize,
    /// Stubs and whoever drives them take turns, so that one CPU is faster than two; each thread gets its own affinity at the end.
    pinned: Pinned,
}

impl<'a> Tree<'a> {
    /// Nothing is made yet. `inherited`: our descriptors that the parts speak of. Memory is going to be filled by `jobs` threads.
    pub fn new(
        snapshot: &'a Snapshot,
        plan: &'a Plan,
        parts: Vec<Parts<'a>>,
        inherited: Vec<BorrowedFd<'a>>,
        jobs: usize,
    ) -> Result<Self> {
        Ok(Tree {
            fills: parts.iter().map(|_| None).collect(),
            maker: Maker::new(snapshot, plan, parts, inherited)?,
            jobs,
            pinned: Pinned::here(),
        })
    }

    /// Makes one process, whose children will inherit memory.
    pub fn make(&mut self, pid: i32) -> Result<()> {
        self.maker.make(pid)
    }

    /// The memory map of one that was made, ready for its content.
    pub fn map(&mut self, index: usize) -> Result<()> {
        self.maker.map(index)?;
        self.open(index)
    }

    /// Makes all processes, with their sessions and groups, and ends those that have ended.
    pub fn make_all(&mut self) -> Result<()> {
        self.maker.make_all()
    }

    /// The memory maps of all, ready for their content.
    pub fn map_all(&mut self) -> Result<()> {
        self.maker.map_all()?;
        (0..self.fills.len()).try_for_each(|index| self.open(index))
    }

    fn open(&mut self, index: usize) -> Result<()> {
        if self.fills[index].is_none() {
            let process = self.maker.process(index)?;
            // Huge pages are put in place by several threads.
            let vmas = &process.parts.process.memory.vmas;
            let has_huge_pages = vmas.iter().any(|vma| !vma.huge.is_empty());
            let _on_all_cpus = has_huge_pages.then(|| self.pinned.lift());
            self.fills[index] = Some(process.fill(self.jobs)?);
        }
        Ok(())
    }

    /// The door for the content of those that are mapped.
    pub fn fill<'f>(&'f self, shared: &'f [BorrowedFd<'f>]) -> Fill<'f> {
        Fill {
            processes: &self.fills,
            shared,
            _on_all_cpus: self.pinned.lift(),
        }
    }

    /// The login ids. Notes say what was not allowed.
    pub fn set_login(&mut self) -> Result<Vec<String>> {
        let mut notes = Vec::new();
        self.each("login id", |process| {
            notes.extend(process.set_login()?);
            Ok(())
        })?;
        Ok(notes)
    }

    /// What the ends of processes add to System V semaphores; then whoever is to have changed one last does so.
    pub fn adjust_semaphores(&mut self, users: &Users) -> Result<()> {
        self.each("semaphores", Rebuilt::adjust_semaphores)?;
        let of_tree = |pid: i32, processes: &[Option<Rebuilt<'_>>]| {
            let mut all = processes.iter().enumerate();
            all.find_map(|(index, process)| {
                process
                    .as_ref()
                    .filter(|process| process.parts.process.pid == pid)
                    .map(|_| index)
            })
        };
        for (pid, sets) in users {
            match of_tree(*pid, &self.maker.processes) {
                Some(index) => self.maker.process(index)?.touch_semaphores(sets)?,
                None => semaphores::touch_as(*pid, sets).context("semop")?,
            }
        }
        Ok(())
    }

    /// What each has besides memory and registers.
    pub fn finish(&mut self) -> Result<()> {
        let on_all_cpus = self.pinned.lift();
        self.fills.iter_mut().flatten().try_for_each(ProcessFill::finish)?;
        drop(on_all_cpus);
        self.fills.clear();
        self.each("finish", Rebuilt::finish)
    }

    /// Starts the timers: from now on time runs for the program.
    pub fn arm_timers(&mut self) -> Result<()> {
        self.each("timers", Rebuilt::arm_timers)
    }

    /// Lets all go; the process group `redraws` has another screen. Returns how long the window from the first to the last detach was.
    pub fn resume(mut self, how: GoesOn, redraws: Option<i32>) -> Result<Duration> {
        self.prepare(how, redraws)?;
        let begin = Instant::now();
        self.maker.brood.let_go()?;
        // Children first: a parent that goes on could miss nothing of them, but end them.
        let mut outcome = Ok(());
        for process in self.maker.processes.into_iter().rev().flatten() {
            outcome = outcome.and(process.detach_all());
        }
        outcome.map(|()| begin.elapsed())
    }

    /// Children first, as in the image they come after their parents: what those are told of a stop is taken back while they are stubs.
    fn prepare(&mut self, how: GoesOn, redraws: Option<i32>) -> Result<()> {
        let processes = &mut self.maker.processes;
        let mut children: HashMap<i32, Vec<&Process>> = HashMap::new();
        for process in processes.iter().flatten().map(|process| process.parts.process) {
            children.entry(process.ppid).or_default().push(process);
        }
        for process in processes.iter_mut().rev().flatten() {
            let pid = process.parts.process.pid;
            let own = children.get(&pid).map_or(&[] as &[_], Vec::as_slice);
            process
                .prepare(how, redraws == Some(process.parts.process.pgid), own)
                .with_context(|| format!("go on: pid {pid}"))?;
        }
        Ok(())
    }

    fn each(&mut self, what: &'static str, mut step: impl FnMut(&mut Rebuilt<'a>) -> Result<()>) -> Result<()> {
        let all = self.maker.processes.len();
        for process in self.maker.processes.iter_mut().flatten() {
            let pid = process.parts.pid();
            step(process).with_context(|| match all {
                1 => what.to_owned(),
                _ => format!("{what}: pid {pid}"),
            })?;
        }
        Ok(())
    }
}
