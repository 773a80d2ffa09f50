//! Rebuilds whole trees: all processes are made first, each by its parent's stub, then filled, finished and let go together.

use std::collections::HashMap;
use std::fs::File;
use std::os::fd::{AsFd, BorrowedFd};
use std::rc::Rc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use nix::unistd::{Pid, getpgrp};

use super::brood::Brood;
use super::fill::Fill;
use super::layout;
use super::plan::{Born, Plan};
use super::process::{Parts, Rebuilt, memory_map, sigmask_bit};
use super::resume::GoesOn;
use super::script::{Arg, Script};
use super::spawn::{Birth, execute_again, plant, spawn, stub_file};
use super::stage::{STAGE_LEN, Stage};
use super::threads::clone3;
use super::zombies;
use crate::arch;
use crate::image::family::Step;
use crate::image::state::{Process, Snapshot};
use crate::tracer::{Running, Stopped};

/// Processes that are being rebuilt. Dropped before [`resume`](Self::resume) lets them go, they are killed whole.
pub struct Tree<'a> {
    /// Dropped first: what the others hold must not run on.
    brood: Brood,
    /// In the order of the image.
    pub processes: Vec<Rebuilt<'a>>,
}

impl<'a> Tree<'a> {
    /// Makes all processes, with their sessions, groups and memory maps, without content yet. `inherited`: our descriptors that the
    /// parts speak of.
    pub fn make(
        snapshot: &Snapshot,
        plan: &Plan,
        parts: Vec<Parts<'a>>,
        inherited: Vec<BorrowedFd<'_>>,
    ) -> Result<Self> {
        let mut maker = Maker::new(snapshot, plan, inherited)?;
        for step in &plan.steps {
            maker.take(step).with_context(|| format!("{step:?}"))?;
        }
        zombies::end(&snapshot.zombies, &mut maker.stubs, &maker.stage, &mut maker.brood)?;
        let Maker {
            brood,
            stage,
            mut stubs,
            ..
        } = maker;
        let stage = Rc::new(stage);
        let mut tree = Tree {
            brood,
            processes: Vec::with_capacity(parts.len()),
        };
        for parts in parts {
            let leader = stubs
                .remove(&parts.process.pid)
                .context("a process that no step has made")?;
            tree.processes.push(Rebuilt::new(parts, leader, Rc::clone(&stage))?);
        }
        Ok(tree)
    }

    /// The memory maps, without content yet.
    pub fn map(&mut self) -> Result<()> {
        self.each("rebuild the memory map", Rebuilt::map)
    }

    /// The door for all content.
    pub fn fill<'f>(&mut self, shared: Vec<BorrowedFd<'f>>, jobs: usize) -> Result<Fill<'f>> {
        let processes = self.processes.iter_mut().map(|process| process.fill(jobs));
        Ok(Fill {
            processes: processes.collect::<Result<_>>()?,
            shared,
        })
    }

    /// What each has besides memory and registers.
    pub fn finish(&mut self) -> Result<()> {
        self.each("finish", Rebuilt::finish)
    }

    /// Starts the timers: from now on time runs for the program.
    pub fn arm_timers(&mut self) -> Result<()> {
        self.each("timers", Rebuilt::arm_timers)
    }

    /// Lets all go. Returns how long the window from the first to the last detach was.
    pub fn resume(mut self, how: GoesOn, has_another_screen: bool) -> Result<Duration> {
        self.prepare(how, has_another_screen)?;
        let begin = Instant::now();
        self.brood.let_go()?;
        // Children first: a parent that goes on could miss nothing of them, but end them.
        let mut outcome = Ok(());
        for process in self.processes.into_iter().rev() {
            outcome = outcome.and(process.detach_all());
        }
        outcome.map(|()| begin.elapsed())
    }

    /// Children first, as in the image they come after their parents: what those are told of a stop is taken back while they are stubs.
    fn prepare(&mut self, how: GoesOn, has_another_screen: bool) -> Result<()> {
        let mut children: HashMap<i32, Vec<&Process>> = HashMap::new();
        for process in self.processes.iter().map(|process| process.parts.process) {
            children.entry(process.ppid).or_default().push(process);
        }
        for process in self.processes.iter_mut().rev() {
            let pid = process.parts.process.pid;
            let own = children.get(&pid).map_or(&[] as &[_], Vec::as_slice);
            process
                .prepare(how, has_another_screen, own)
                .with_context(|| format!("go on: pid {pid}"))?;
        }
        Ok(())
    }

    fn each(&mut self, what: &'static str, mut step: impl FnMut(&mut Rebuilt<'a>) -> Result<()>) -> Result<()> {
        let all = self.processes.len();
        for process in &mut self.processes {
            let pid = process.parts.pid();
            step(process).with_context(|| match all {
                1 => what.to_owned(),
                _ => format!("{what}: pid {pid}"),
            })?;
        }
        Ok(())
    }
}

/// Stubs in the making.
struct Maker<'p> {
    /// Dropped first: what the others hold must not run on.
    brood: Brood,
    plan: &'p Plan,
    processes: &'p [Process],
    inherited: Vec<BorrowedFd<'p>>,
    stub: File,
    stage: Stage,
    /// By pid: the leaders of processes, and what is there for its id, or its end, only.
    stubs: HashMap<i32, Stopped>,
    /// With what each was executed, which its children have as well.
    executed: HashMap<i32, Born>,
}

impl<'p> Maker<'p> {
    fn new(snapshot: &'p Snapshot, plan: &'p Plan, inherited: Vec<BorrowedFd<'p>>) -> Result<Self> {
        Ok(Maker {
            brood: Brood::new()?,
            plan,
            processes: &snapshot.processes,
            inherited,
            stub: stub_file()?,
            stage: Stage::new()?,
            stubs: HashMap::new(),
            executed: HashMap::new(),
        })
    }

    fn take(&mut self, step: &Step) -> Result<()> {
        match *step {
            Step::Spawn { pid } => self.spawn(pid),
            Step::Clone {
                pid,
                by,
                sibling,
                exit_signal,
            } => self.clone(pid, by, sibling, exit_signal),
            Step::NewSession { pid } => self.call(pid, "setsid", libc::SYS_setsid, []),
            Step::Group { pid, group } => {
                let group = group.unwrap_or_else(|| getpgrp().as_raw());
                self.call(pid, "setpgid", libc::SYS_setpgid, [0u64.into(), group.into()])
            }
            Step::End { pid, parent } => self.end(pid, parent),
        }
    }

    /// With what a process is to be executed; those of no image begin like the first.
    fn born(&self, pid: i32) -> Option<Born> {
        let index = self.processes.iter().position(|process| process.pid == pid);
        index.map(|index| self.plan.births[index])
    }

    fn spawn(&mut self, pid: i32) -> Result<()> {
        let born = self.born(pid).unwrap_or(self.plan.births[0]);
        let mut inherited = self.inherited.clone();
        inherited.extend([self.stage.memfd().as_fd(), self.stub.as_fd()]);
        let birth = Birth {
            pid: Pid::from_raw(pid),
            stub: self.stub.as_fd(),
            time_offsets: self.plan.time_offsets,
            personality: born.personality,
            stack_limit: Some(born.stack_limit),
            inherited: &inherited,
        };
        let stub = spawn(&birth).context("start the resurrector")?;
        self.brood.add(pid);
        self.stubs.insert(pid, stub);
        self.settle(pid, born)
    }

    /// A new process of its parent's; it comes up in a stop, traced as that is, EXITKILL included (CLONE_PTRACE).
    fn clone(&mut self, pid: i32, by: i32, sibling: bool, exit_signal: i32) -> Result<()> {
        let (flags, signal) = match sibling {
            // It gets the signal of the one that makes it (copy_process(), kernel/fork.c).
            true => (libc::CLONE_PTRACE | libc::CLONE_PARENT, 0),
            false => (libc::CLONE_PTRACE, exit_signal),
        };
        let parent = self
            .stubs
            .get_mut(&by)
            .with_context(|| format!("{by} is not there yet"))?;
        let mut script = Script::new(&self.stage, parent);
        clone3(&mut script, pid, flags, signal)?;
        script.run()?;
        self.brood.add(pid);
        let stub = Running::born_traced(Pid::from_raw(pid)).wait();
        let stub = stub.with_context(|| format!("pid {pid} did not come up"))?;
        let (has, wanted) = (self.executed[&by], self.born(pid));
        let stub = self.stubs.entry(pid).insert_entry(stub).into_mut();
        match wanted {
            Some(wanted) if wanted != has => {
                execute_again(stub, &self.stage, self.stub.as_fd(), wanted)?;
                self.settle(pid, wanted)
            }
            _ => {
                self.executed.insert(pid, has);
                Ok(())
            }
        }
    }

    /// From here on all signals wait, but SIGTRAP: its traps are how scripts end (force_sig_info_to_task()). The stage is put where it will be in
    /// the way of no process.
    fn settle(&mut self, pid: i32, born: Born) -> Result<()> {
        let stub = self.stubs.get_mut(&pid).context("a stub that is not there")?;
        stub.set_sigmask(!sigmask_bit(libc::SIGTRAP))?;
        let exec_entry = stub.regs()?.pc() - arch::STUB_SYSCALL;
        if self.executed.is_empty() {
            let own = memory_map(Pid::from_raw(pid))?.into_iter().map(|(_, range)| range);
            let taken: Vec<_> = own.chain(self.processes.iter().flat_map(ranges)).collect();
            let hole = layout::find_hole(&taken, STAGE_LEN, arch::TASK_SIZE).context("no room for the resurrector")?;
            self.stage.place(hole);
        }
        plant(stub, exec_entry, &self.stage)?;
        self.executed.insert(pid, born);
        Ok(())
    }

    fn call<const N: usize>(&mut self, pid: i32, name: &'static str, number: i64, args: [Arg<'_>; N]) -> Result<()> {
        let stub = self
            .stubs
            .get_mut(&pid)
            .with_context(|| format!("{pid} is not there yet"))?;
        let mut script = Script::new(&self.stage, stub);
        script.call(name, number, args)?;
        script.run()
    }

    /// One that was there for its id only.
    fn end(&mut self, pid: i32, parent: Option<i32>) -> Result<()> {
        drop_without_detaching(self.stubs.remove(&pid));
        self.brood.end(pid);
        let Some(parent) = parent else { return Ok(()) };
        let args = [pid.into(), 0u64.into(), libc::__WALL.into(), 0u64.into()];
        self.call(parent, "wait4", libc::SYS_wait4, args)?;
        let stub = self.stubs.get_mut(&parent).context("a parent that is not there")?;
        zombies::forget_signal(&mut Script::new(&self.stage, stub), libc::SIGCHLD)
    }
}

/// A task that is about to be killed must not run on before.
pub(super) fn drop_without_detaching(task: Option<Stopped>) {
    task.map(Stopped::into_running);
}

/// Where a process has memory, and where its stack and heap may grow.
fn ranges(process: &Process) -> impl Iterator<Item = std::ops::Range<u64>> {
    let memory = &process.memory;
    let mappings = memory.vmas.iter().map(|vma| {
        let gap = if vma.flags.has(b"gd") {
            layout::STACK_GUARD_GAP
        } else {
            0
        };
        vma.start.saturating_sub(gap)..vma.end
    });
    mappings.chain(std::iter::once(memory.layout.start_brk..memory.layout.brk))
}
