//! Makes the processes of a tree, each by its parent's stub, in an order in which each finds what it inherits.

use std::collections::{HashMap, VecDeque};
use std::fs::File;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::rc::Rc;

use anyhow::{Context, Result, ensure};
use nix::unistd::{Pid, getpgid, getpgrp};

use super::brood::Brood;
use super::layout;
use super::maps::{Spread, is_kernels};
use super::plan::{Born, Plan};
use super::process::{Parts, Rebuilt, memory_map, sigmask_bit};
use super::script::{Arg, Script};
use super::spawn::{Birth, execute_again, plant, spawn, stub_file};
use super::stage::{STAGE_LEN, Stage};
use super::threads::clone3;
use super::zombies;
use crate::arch;
use crate::image::family::Step;
use crate::image::state::{Process, Snapshot, Vma};
use crate::tracer::{Running, Stopped};

pub(super) struct Maker<'a> {
    /// Dropped first: what the others hold must not run on.
    pub brood: Brood,
    plan: &'a Plan,
    snapshot: &'a Snapshot,
    inherited: Vec<BorrowedFd<'a>>,
    stub: File,
    stage: Rc<Stage>,
    /// Births and sessions that are yet to come, by the process that takes the step. Each has an order for its own only.
    steps: HashMap<i32, VecDeque<Step>>,
    /// Who makes a process; one that thaw makes does so itself.
    makers: HashMap<i32, i32>,
    by_pid: HashMap<i32, usize>,
    parts: Vec<Option<Parts<'a>>>,
    /// In the order of the image, as far as they are made.
    pub processes: Vec<Option<Rebuilt<'a>>>,
    /// By pid: what is there for its id, or its end, only.
    others: HashMap<i32, Stopped>,
    /// With what each was executed, which its children have as well.
    executed: HashMap<i32, Born>,
}

impl<'a> Maker<'a> {
    /// Nothing is made yet.
    pub fn new(
        snapshot: &'a Snapshot,
        plan: &'a Plan,
        parts: Vec<Parts<'a>>,
        inherited: Vec<BorrowedFd<'a>>,
    ) -> Result<Self> {
        let (mut steps, mut makers) = (HashMap::<i32, VecDeque<Step>>::new(), HashMap::new());
        for &step in &plan.steps {
            let by = match step {
                Step::Spawn { pid } => {
                    makers.insert(pid, pid);
                    pid
                }
                Step::Clone { pid, by, .. } => {
                    makers.insert(pid, by);
                    by
                }
                Step::NewSession { pid } => pid,
                // When all are there.
                Step::Group { .. } | Step::End { .. } => continue,
            };
            steps.entry(by).or_default().push_back(step);
        }
        let pids = snapshot.processes.iter().map(|process| process.pid);
        Ok(Maker {
            brood: Brood::new()?,
            plan,
            snapshot,
            inherited,
            stub: stub_file()?,
            stage: Rc::new(Stage::new()?),
            steps,
            makers,
            by_pid: pids.zip(0..).collect(),
            processes: parts.iter().map(|_| None).collect(),
            parts: parts.into_iter().map(Some).collect(),
            others: HashMap::new(),
            executed: HashMap::new(),
        })
    }

    /// Makes one process, and before it those that it takes for that.
    pub fn make(&mut self, pid: i32) -> Result<()> {
        while !self.executed.contains_key(&pid) {
            let maker = *self.makers.get(&pid).context("a process that no step makes")?;
            if maker != pid {
                self.make(maker)?;
            }
            let step = self.steps.get_mut(&maker).and_then(VecDeque::pop_front);
            self.take(step.context("a process that no step makes")?)?;
        }
        Ok(())
    }

    /// Makes all that are not there yet, and ends those that have ended.
    pub fn make_all(&mut self) -> Result<()> {
        let steps = &self.plan.steps;
        for step in steps {
            if let Step::Spawn { pid } | Step::Clone { pid, .. } = *step {
                self.make(pid)?;
            }
        }
        let sessions: Vec<Step> = self.steps.drain().flat_map(|(_, steps)| steps).collect();
        sessions.into_iter().try_for_each(|step| self.take(step))?;
        for &step in steps {
            if let Step::Group { .. } | Step::End { .. } = step {
                self.take(step)?;
            }
        }
        self.set_foreground()?;
        for zombie in &self.snapshot.zombies {
            let ended = zombies::end_one(self, zombie);
            ended.with_context(|| format!("the ended process {}", zombie.pid))?;
        }
        Ok(())
    }

    fn take(&mut self, step: Step) -> Result<()> {
        self.take_step(step).with_context(|| format!("{step:?}"))
    }

    /// The memory map of a process, without content yet.
    pub fn map(&mut self, index: usize) -> Result<()> {
        if self.process(index)?.is_mapped {
            return Ok(());
        }
        let mappings = self.mappings(index);
        let mapped = self.process(index)?.map(&mappings);
        mapped.with_context(|| format!("rebuild the memory map of pid {}", self.snapshot.processes[index].pid))
    }

    /// The memory maps of all, as they are to be.
    pub fn map_all(&mut self) -> Result<()> {
        for index in 0..self.processes.len() {
            self.map(index)?;
            if self.plan.lineage.has_heirs(index) {
                let mappings = self.mappings(index);
                self.process(index)?.trim(&mappings)?;
            }
            self.process(index)?.redirect()?;
        }
        Ok(())
    }

    /// One that was made.
    pub fn process(&mut self, index: usize) -> Result<&mut Rebuilt<'a>> {
        self.processes[index].as_mut().context("a process that is not there")
    }

    fn mappings(&self, index: usize) -> Vec<Spread<'a>> {
        let lineage = &self.plan.lineage;
        let own = &self.snapshot.processes[index].memory.vmas;
        let older = lineage
            .parent(index)
            .map(|parent| self.snapshot.processes[parent].memory.vmas.as_slice());
        // All of them or none: they are mapped together.
        let kernels = |vmas: &'a [Vma]| {
            vmas.iter()
                .filter(|vma| is_kernels(vma))
                .map(|vma| (vma.start, vma.end))
        };
        let same_kernels = older.is_some_and(|older| kernels(older).eq(kernels(own)));
        let mapping = |(at, vma): (usize, &'a Vma)| Spread {
            vma,
            span: lineage.span(index, at),
            from: match is_kernels(vma) {
                true => same_kernels.then_some(vma),
                false => older.and_then(|older| lineage.from(index, at).map(|from| &older[from])),
            },
        };
        own.iter().enumerate().map(mapping).collect()
    }

    fn take_step(&mut self, step: Step) -> Result<()> {
        match step {
            Step::Spawn { pid } => self.spawn(pid),
            Step::Clone {
                pid,
                by,
                sibling,
                exit_signal,
            } => self.clone(pid, by, sibling, exit_signal),
            Step::NewSession { pid } => self.new_session(pid),
            Step::Group { pid, group } => {
                let group = group.unwrap_or_else(|| getpgrp().as_raw());
                // Outside of our pid namespace: whoever is in it was born in it.
                if group == 0 {
                    let now = getpgid(Some(Pid::from_raw(pid))).context("getpgid")?;
                    ensure!(
                        now.as_raw() == 0,
                        "pid {pid} cannot join thaw's process group, which is outside of its pid namespace: thaw it with --detach"
                    );
                    return Ok(());
                }
                self.call(pid, "setpgid", libc::SYS_setpgid, [0u64.into(), group.into()])
            }
            Step::End { pid, parent } => self.end(pid, parent),
        }
    }

    /// With what a process is to be executed; those of no image begin like their maker, or the first.
    fn born(&self, pid: i32) -> Option<Born> {
        self.by_pid.get(&pid).map(|&index| self.plan.births[index])
    }

    /// The first thread of one that is there.
    pub fn task(&mut self, pid: i32) -> Result<&mut Stopped> {
        let of_image = self.by_pid.get(&pid).and_then(|&index| self.processes[index].as_mut());
        of_image
            .map(|process| &mut process.tasks[0])
            .or_else(|| self.others.get_mut(&pid))
            .with_context(|| format!("{pid} is not there"))
    }

    pub fn stage(&self) -> Rc<Stage> {
        Rc::clone(&self.stage)
    }

    /// One that is there for its id, or its end, only.
    pub fn remove(&mut self, pid: i32) -> Option<Stopped> {
        self.others.remove(&pid)
    }

    fn spawn(&mut self, pid: i32) -> Result<()> {
        let born = self.born(pid).unwrap_or(self.plan.births[0]);
        let mut inherited = self.inherited.clone();
        inherited.extend([self.stage.memfd().as_fd(), self.stub.as_fd()]);
        let birth = Birth {
            pid: Pid::from_raw(pid),
            stub: self.stub.as_fd(),
            time_offsets: self.plan.time_offsets,
            born,
            inherited: &inherited,
        };
        let stub = spawn(&birth).context("start the resurrector")?;
        self.brood.add(pid);
        let stub = self.settle(stub)?;
        self.add(pid, stub, born)
    }

    /// A new process of its parent's; it comes up in a stop, traced as that is, EXITKILL included (CLONE_PTRACE).
    fn clone(&mut self, pid: i32, by: i32, sibling: bool, exit_signal: i32) -> Result<()> {
        // What it inherits must have its place, even if it is nothing but zeros.
        if let Some(parent) = self.by_pid.get(&pid).and_then(|&index| self.plan.lineage.parent(index)) {
            self.map(parent)?;
        }
        let (flags, signal) = match sibling {
            // It gets the signal of the one that makes it (copy_process(), kernel/fork.c).
            true => (libc::CLONE_PTRACE | libc::CLONE_PARENT, 0),
            false => (libc::CLONE_PTRACE, exit_signal),
        };
        let shared = self.shared(pid, by)?;
        let flags = flags | shared;
        let stage = self.stage();
        let mut script = Script::new(&stage, self.task(by)?);
        clone3(&mut script, pid, flags, signal)?;
        script.run()?;
        self.brood.add(pid);
        let stub = Running::born_traced(Pid::from_raw(pid)).wait();
        let mut stub = stub.with_context(|| format!("pid {pid} did not come up"))?;
        let (has, wanted) = (self.executed[&by], self.born(pid));
        match wanted {
            // To be executed would end the sharing (unshare_files(), kernel/fork.c); who shares has not been since it was made.
            Some(wanted) if wanted != has && shared & libc::CLONE_FILES == 0 => {
                execute_again(&mut stub, &stage, self.stub.as_fd(), wanted)?;
                let stub = self.settle(stub)?;
                self.add(pid, stub, wanted)
            }
            _ => self.add(pid, stub, has),
        }
    }

    /// What it shares with its maker (clone(2)). Freeze has seen to it that it has that from nobody else.
    fn shared(&self, pid: i32, by: i32) -> Result<i32> {
        let find = |pid: i32| self.by_pid.get(&pid).map(|&index| &self.snapshot.processes[index]);
        let Some(process) = find(pid) else { return Ok(0) };
        let maker = find(by);
        let shares = |flag: i32, thing: fn(&Process) -> u32| {
            if maker.is_some_and(|maker| thing(maker) == thing(process)) {
                return Ok(flag);
            }
            let is_made = |index: &usize| self.processes[*index].is_some();
            let mut made = (0..self.processes.len()).filter(is_made);
            let other = made.find(|index| thing(&self.snapshot.processes[*index]) == thing(process));
            ensure!(
                other.is_none(),
                "it shares something with a process that does not make it"
            );
            Ok(0)
        };
        let files = shares(libc::CLONE_FILES, |process| process.fd_table)?;
        Ok(files | shares(libc::CLONE_FS, |process| process.directories)?)
    }

    fn add(&mut self, pid: i32, stub: Stopped, born: Born) -> Result<()> {
        match self.by_pid.get(&pid) {
            Some(&index) => {
                let parts = self.parts[index].take().context("a process that is made twice")?;
                self.processes[index] = Some(Rebuilt::new(parts, stub, self.stage())?);
            }
            None => drop(self.others.insert(pid, stub)),
        }
        self.executed.insert(pid, born);
        Ok(())
    }

    /// From here on all signals wait, but SIGTRAP: its traps are how scripts end (force_sig_info_to_task()). The stage is put where it will be in
    /// the way of no process.
    fn settle(&self, mut stub: Stopped) -> Result<Stopped> {
        stub.set_sigmask(!sigmask_bit(libc::SIGTRAP))?;
        let exec_entry = stub.regs()?.pc() - arch::STUB_TRAPPED;
        if self.executed.is_empty() {
            let own = memory_map(stub.tid())?.into_iter().map(|(_, range)| range);
            let taken: Vec<_> = own.chain(self.snapshot.processes.iter().flat_map(ranges)).collect();
            let hole =
                layout::find_hole(&taken, STAGE_LEN, arch::task_size()).context("no room for the resurrector")?;
            self.stage.place(hole);
        }
        plant(&mut stub, exec_entry, &self.stage)?;
        Ok(stub)
    }

    fn call<const N: usize>(&mut self, pid: i32, name: &'static str, number: i64, args: [Arg<'_>; N]) -> Result<()> {
        let stage = self.stage();
        let mut script = Script::new(&stage, self.task(pid)?);
        script.call(name, number, args)?;
        script.run()
    }

    /// With its terminal, which children that it makes from now on have as well.
    fn new_session(&mut self, pid: i32) -> Result<()> {
        self.call(pid, "setsid", libc::SYS_setsid, [])?;
        match self.terminal(pid) {
            Some(terminal) => {
                let args = [terminal.as_raw_fd().into(), libc::TIOCSCTTY.into(), 0u64.into()];
                self.call(pid, "ioctl(TIOCSCTTY)", libc::SYS_ioctl, args)
            }
            None => Ok(()),
        }
    }

    fn terminal(&self, pid: i32) -> Option<BorrowedFd<'a>> {
        let process = self.by_pid.get(&pid).and_then(|&index| self.processes[index].as_ref());
        process.and_then(|process| process.parts.terminal)
    }

    /// The foreground process groups of sessions, when all groups are there.
    fn set_foreground(&mut self) -> Result<()> {
        for process in &self.snapshot.processes {
            let (Some(of_image), Some(terminal)) = (process.terminal, self.terminal(process.pid)) else {
                continue;
            };
            let (stage, group) = (self.stage(), of_image.foreground.to_ne_bytes());
            let args = [
                terminal.as_raw_fd().into(),
                libc::TIOCSPGRP.into(),
                group.as_slice().into(),
            ];
            let mut script = Script::new(&stage, self.task(process.pid)?);
            // A group that has ended, or that has none left, cannot be set, nor does it matter to anybody.
            let _was_there = script.try_ask("ioctl(TIOCSPGRP)", libc::SYS_ioctl, args)?;
        }
        Ok(())
    }

    /// One that was there for its id only.
    fn end(&mut self, pid: i32, parent: Option<i32>) -> Result<()> {
        drop_without_detaching(self.remove(pid));
        self.brood.end(pid);
        let Some(parent) = parent else { return Ok(()) };
        let args = [pid.into(), 0u64.into(), libc::__WALL.into(), 0u64.into()];
        self.call(parent, "wait4", libc::SYS_wait4, args)?;
        let stage = self.stage();
        zombies::forget_signal(&mut Script::new(&stage, self.task(parent)?), libc::SIGCHLD)
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
