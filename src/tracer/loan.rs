//! Registers of a target on loan, for system calls that it is made to run. A freezer that is killed at any instant leaves it unharmed.
//!
//! Before a register changes, a way home is laid in dead bytes of the target's own (`arch::Slot`): the kernel detaches tracees of a
//! dead tracer with the registers they have, and those then run the call that was begun and go home by themselves. Nothing is ever
//! single-stepped (the trap flag would stay behind), and the target's signal mask is left alone (nobody would put it back).

mod results;
mod signals;

use std::time::{Duration, Instant};

use nix::unistd::Pid;

use super::bpf::Call;
use super::pin::Pinned;
use super::process::StoppedProcess;
use super::script::{self, Script};
use super::thread::StoppedThread;
use super::way_home::{DeadBytes, FreeSlot, RESULTS_LEN};
use super::{Error, ProcessMemory, Result, Resume, Stop};
use crate::arch::{self, CALL_AT, CLONE_AT, SCRIPT_AT, SCRIPT_END_AT, SLOT_LEN, Slot};
use crate::image::state::RegSet;

/// One thread's registers on loan, one thread after the other. Ended by [`end`](Self::end); dropping it does the same as far as it still can.
#[derive(Debug)]
pub(super) struct Loan<'a> {
    process: &'a mut StoppedProcess,
    thread: usize,
    slot: FreeSlot,
    results: u64,
    state: State,
    /// What calls take from the thread, to be given back.
    lost: Option<RegSet>,
    /// The thread does not get to the end of a call, so that none is tried again.
    stuck: bool,
    /// What its last clone(2) made, by its number in our namespace.
    born: Option<Pid>,
    /// Signals that were let in: each may have changed memory.
    signals: usize,
    pinned: Pinned,
    cpu: usize,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    /// Its own registers, in the stop that seizing asked for.
    Home,
    /// Ours, in a stop at the end of a call or of a script.
    Away,
    Ended,
}

/// How one attempt at a call went.
enum Attempt {
    Done(i64),
    /// A signal came first and was let in; the thread is home again, with other registers perhaps.
    SignalLetIn,
}

/// No call that a target is made to run takes that long.
const PATIENCE: Duration = Duration::from_secs(30);

/// A target that gets signals faster than it can run one call.
const MAX_ATTEMPTS: usize = 10_000;

impl<'a> Loan<'a> {
    /// With a page for results.
    pub fn begin(process: &'a mut StoppedProcess, thread: usize) -> Result<Self> {
        let mut loan = Self::begin_bare(process, thread)?;
        loan.unmap_leftovers()?;
        loan.map_results()?;
        Ok(loan)
    }

    /// For calls that need no memory.
    pub fn begin_bare(process: &'a mut StoppedProcess, thread: usize) -> Result<Self> {
        let tid = process.threads[thread].tid();
        let cpu = process.threads[thread].before_stop.cpu;
        let dead = match process.dead_bytes {
            Some(dead) => dead,
            None => *process
                .dead_bytes
                .insert(DeadBytes::find(process.pid, &process.proc, &process.memory)?),
        };
        let slot = dead
            .choose(&process.memory)
            .map_err(|error| Error::memory(tid, "the way home", &error))?;
        let mut loan = Loan {
            process,
            thread,
            slot,
            results: 0,
            state: State::Home,
            lost: None,
            stuck: false,
            born: None,
            signals: 0,
            pinned: Pinned::to(cpu),
            cpu,
        };
        loan.let_pending_signals_in()?;
        Ok(loan)
    }

    /// On to another thread, with the same slot and the same memory for results.
    pub fn pass_on(&mut self, thread: usize) -> Result<()> {
        self.go_home()?;
        self.thread = thread;
        let cpu = self.thread().before_stop.cpu;
        if cpu != self.cpu {
            self.pinned.move_to(cpu);
            self.cpu = cpu;
        }
        self.let_pending_signals_in()
    }

    /// The memory for results, in the target.
    pub fn results(&self) -> u64 {
        self.results
    }

    pub fn memory(&self) -> &ProcessMemory {
        &self.process.memory
    }

    pub fn tid(&self) -> Pid {
        self.process.threads[self.thread].tid()
    }

    pub fn thread_pointer(&self) -> Result<u64> {
        let thread = self.thread();
        let regset = arch::THREAD_POINTER.map(|note| thread.task.regset(note)).transpose()?;
        Ok(thread.regs.thread_pointer(&regset.unwrap_or_default()))
    }

    /// Where the way home is laid.
    pub fn slot(&self) -> u64 {
        self.slot.addr
    }

    /// How many signals were let in so far.
    pub fn signals(&self) -> usize {
        self.signals
    }

    /// Runs one system call; the result is the kernel's, negative errno included.
    pub fn call(&mut self, number: u64, args: [u64; 6]) -> Result<i64> {
        self.call_at(CALL_AT, number, args)
    }

    /// clone(2) of a child that ends by itself should we die before it is ours; it comes up traced, and its number is that in our
    /// namespace. The result is as the thread sees it.
    pub fn clone_child(&mut self, flags: u64) -> Result<(i64, Option<Pid>)> {
        let result = self.call_at(CLONE_AT, libc::SYS_clone as u64, [flags, 0, 0, 0, 0, 0])?;
        Ok((result, self.born.take()))
    }

    fn call_at(&mut self, entry: u64, number: u64, args: [u64; 6]) -> Result<i64> {
        self.check_allowed("a system call", entry, number, args)?;
        for _ in 0..MAX_ATTEMPTS {
            match self.attempt(entry, number, args)? {
                // A signal that arrives between the checks of the kernel can show in the result of a call that does not wait.
                Attempt::Done(-516..=-512 | -4) | Attempt::SignalLetIn => {}
                Attempt::Done(result) => return Ok(result),
            }
        }
        Err(self.unexpected("gets signals faster than it can run a system call"))
    }

    /// The first of these calls that a filter forbids, whatever its arguments, by its name.
    pub fn forbidden_of(&self, calls: &[(&'static str, i64)]) -> Option<&'static str> {
        let forbids = |number: i64| self.check_allowed("", CALL_AT, number as u64, [0; 6]).is_err();
        calls.iter().find(|(_, number)| forbids(*number)).map(|(name, _)| *name)
    }

    fn check_allowed(&self, name: &'static str, entry: u64, number: u64, args: [u64; 6]) -> Result<()> {
        let Some(filters) = self.thread().filters() else {
            return Ok(());
        };
        // The kernel shows a filter the instruction behind the one that made the call.
        let pc = self.slot.addr + entry + arch::SYSCALL_INSTRUCTION.len() as u64;
        let call = Call {
            number: number as u32,
            pc,
            args,
        };
        match filters.allow(call) {
            true => Ok(()),
            false => Err(Error::Forbidden {
                tid: self.tid(),
                call: name,
            }),
        }
    }

    /// Runs the calls of a script without a stop in between, and fills in what came of them. False where no signal can tell of its
    /// end, and under filters: then nothing was done.
    pub fn run(&mut self, script: &mut Script) -> Result<bool> {
        if self.thread().filters().is_some() {
            return Ok(false); // each call is checked by itself
        }
        let saved_mask = self.thread().task.sigmask()?;
        let Some(end) = script::End::choose(&self.thread().status, saved_mask) else {
            return Ok(false);
        };
        let table = script.table(&end);
        for _ in 0..MAX_ATTEMPTS {
            if self.attempt_script(&table, &end)? && script.take(self.read_results(table.len())?) {
                return Ok(true);
            }
        }
        Err(self.unexpected("gets signals faster than it can run a few system calls"))
    }

    /// False: a signal came first.
    fn attempt_script(&mut self, table: &[u8], end: &script::End) -> Result<bool> {
        if self.state == State::Home {
            self.lay_way_home()?;
        }
        self.memory()
            .write_at(self.results, table)
            .map_err(|error| Error::memory(self.tid(), "the page for results", &error))?;
        let mut regs = self.thread().regs;
        regs.set_pc(self.slot.addr + SCRIPT_AT);
        regs.set_call(0, [0, 0, 0, 0, 0, self.results]);
        self.state = State::Away;
        self.thread_mut().task.set_regs(&regs)?;
        let at_end = self.slot.addr + SCRIPT_END_AT;
        loop {
            let task = &mut self.thread_mut().task;
            task.resume(Resume::Continue, 0)?;
            match task.wait_until(Instant::now() + PATIENCE)? {
                Some(Stop::Signal(signal)) if signal == end.signal && task.regs()?.pc() == at_end => return Ok(true),
                Some(Stop::Signal(signal)) => return self.let_signal_in(signal).map(|()| false),
                Some(Stop::Syscall | Stop::Interrupted { .. } | Stop::Event(_)) => {}
                None => return self.give_up().map(|_| false),
            }
        }
    }

    fn read_results(&self, len: usize) -> Result<Vec<u8>> {
        let mut bytes = vec![0; len];
        self.memory()
            .read_at(self.results, &mut bytes)
            .map_err(|error| Error::memory(self.tid(), "the page for results", &error))?;
        Ok(bytes)
    }

    /// Unmaps the results, gives the registers back and wipes the way home.
    pub fn end(mut self) -> Result<()> {
        self.finish()
    }

    /// As [`end`](Self::end); the answer is how many signals were let in since it began.
    pub fn end_counting(mut self) -> Result<usize> {
        self.finish().map(|()| self.signals)
    }

    fn finish(&mut self) -> Result<()> {
        if self.results != 0 {
            self.call(libc::SYS_munmap as u64, [self.results, RESULTS_LEN, 0, 0, 0, 0])?;
            self.results = 0;
        }
        self.go_home()?;
        self.state = State::Ended;
        let slot = self.slot.addr;
        self.process
            .memory
            .write_at(slot, &[0; SLOT_LEN])
            .map_err(|error| Error::memory(self.tid(), "the way home", &error))
    }

    fn attempt(&mut self, entry: u64, number: u64, args: [u64; 6]) -> Result<Attempt> {
        if self.state == State::Home {
            self.lay_way_home()?;
        }
        let mut regs = self.thread().regs;
        regs.set_pc(self.slot.addr + entry);
        regs.set_call(number, args);
        self.state = State::Away;
        self.thread_mut().task.set_regs(&regs)?;
        // To the entry of the call, where a signal may come first; then to its exit.
        if let Some(signal) = self.run_to_syscall_stop()? {
            self.let_signal_in(signal)?;
            return Ok(Attempt::SignalLetIn);
        }
        if let Some(signal) = self.run_to_syscall_stop()? {
            return Err(self.unexpected(&format!("got signal {signal} inside a system call")));
        }
        Ok(Attempt::Done(self.thread().task.regs()?.result()))
    }

    /// Some(signal): stopped at the delivery of a signal instead.
    fn run_to_syscall_stop(&mut self) -> Result<Option<i32>> {
        loop {
            let task = &mut self.thread_mut().task;
            task.resume(Resume::ToSyscall, 0)?;
            match task.wait_until(Instant::now() + PATIENCE)? {
                Some(Stop::Syscall) => return Ok(None),
                Some(Stop::Signal(signal)) => return Ok(Some(signal)),
                Some(Stop::Event(_)) => self.born = self.thread().task.newborn()?,
                // A second stop of a group-stop, or an interrupt that came twice: nothing of ours changes by it.
                Some(Stop::Interrupted { .. }) => {}
                None => return self.give_up(),
            }
        }
    }

    /// The thread gets no further, as in a control group that was frozen meanwhile (do_freezer_trap(), kernel/signal.c). It can be stopped
    /// again all the same, and given its registers back.
    fn give_up(&mut self) -> Result<Option<i32>> {
        self.stuck = true;
        let task = &mut self.thread_mut().task;
        task.interrupt()?;
        task.wait()?;
        let what = format!(
            "does not run a call within {} s: is its control group frozen?",
            PATIENCE.as_secs()
        );
        Err(self.unexpected(&what))
    }

    /// Gives the registers back at the end of a call. Should we die between these requests, the detach makes the kernel look at the
    /// thread as at one with a signal pending, and the interrupted call restarts from the registers as they are.
    fn go_home(&mut self) -> Result<()> {
        if self.state != State::Away {
            return Ok(());
        }
        self.restore_registers()?;
        let thread = self.thread_mut();
        thread.task.interrupt()?;
        thread.task.resume(Resume::Continue, 0)?;
        self.arrive()
    }

    fn restore_registers(&mut self) -> Result<()> {
        let StoppedProcess { threads, memory, .. } = &mut *self.process;
        let thread = &mut threads[self.thread];
        thread
            .restore_rseq(memory)
            .map_err(|error| Error::memory(thread.tid(), "its struct rseq", &error))?;
        if let Some(lost) = &self.lost {
            thread.task.set_regset(lost.note, &lost.data)?;
        }
        thread.task.set_regs(&thread.regs)
    }

    fn lay_way_home(&mut self) -> Result<()> {
        // A CPU without it has nothing to lose.
        self.lost = arch::LOST_IN_CALLS.and_then(|note| {
            let data = self.thread().task.regset(note).ok()?;
            Some(RegSet { note, data })
        });
        let memory = &self.process.memory;
        let tid = self.tid();
        let home = self
            .thread()
            .home(memory)
            .map_err(|error| Error::memory(tid, "its critical section", &error))?;
        let slot = Slot {
            home,
            generation: self.slot.generation,
            results: self.results,
        };
        memory
            .write_at(self.slot.addr, &slot.to_bytes(self.slot.addr))
            .map_err(|error| Error::memory(tid, "the way home", &error))
    }

    fn thread(&self) -> &StoppedThread {
        &self.process.threads[self.thread]
    }

    fn thread_mut(&mut self) -> &mut StoppedThread {
        &mut self.process.threads[self.thread]
    }

    fn unexpected(&self, what: &str) -> Error {
        Error::Unexpected {
            tid: self.tid(),
            what: what.to_owned(),
        }
    }
}

impl Drop for Loan<'_> {
    fn drop(&mut self) {
        if self.state != State::Ended {
            // Whoever drops a loan has an error of its own to report. A thread that is gone needs nothing; else it is home, at least.
            let finished = if self.stuck { self.go_home() } else { self.finish() };
            let _reported_already = finished.or_else(|_| self.go_home());
        }
    }
}
