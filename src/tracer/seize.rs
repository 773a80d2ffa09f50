//! Stopping a whole process so that it does not notice: all threads first, then waiting for all, until nobody new appears.

use std::collections::{HashMap, HashSet};
use std::marker::PhantomData;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use nix::unistd::Pid;

use super::before_stop::{BeforeStop, SchedulerClocks};
use super::nursery::{Nursery, let_go_its_way};
use super::proc::ProcDir;
use super::process::StoppedProcess;
use super::refuse::{self, Candidate};
use super::thread::StoppedThread;
use super::{Error, ProcessMemory, Result, Resume, Running, Stop, Stopped, seize_options};
use crate::refusal::Refused;

/// How long a thread may take to stop. One that is in vfork(2), or waits for a dead file server, cannot stop before that is over.
pub(super) const PATIENCE: Duration = Duration::from_secs(5);

/// Stops every thread of the process, and lets its children go their ways. What stands against it is the error [`Refused`]; then, and on any
/// other error, the process goes on as it was.
pub fn seize(pid: Pid) -> anyhow::Result<StoppedProcess> {
    let mut nursery = Nursery::default();
    let process = seize_member(pid, &mut nursery)?;
    nursery.let_go()?;
    Ok(process)
}

/// As [`seize`], of one of a tree: children that it makes meanwhile come into the nursery, and if it is there itself it is taken out.
pub(super) fn seize_member(pid: Pid, nursery: &mut Nursery) -> anyhow::Result<StoppedProcess> {
    let Candidate { proc, start_time } = refuse::look(pid)?;
    let mut seizure = Seizure::new(pid, proc);
    if nursery.take(pid) {
        seizure.born(Running::born_traced(pid));
    }
    let seized = seizure.seize_all(start_time);
    // Also of one that has ended meanwhile.
    nursery.adopt(&mut seizure.children);
    seized?;
    seizure.into_process()
}

/// Stops the first thread only, for a call of its own: the others run on. The process is the one that `proc` was opened on.
pub(super) fn seize_leader(pid: Pid, proc: ProcDir) -> anyhow::Result<StoppedProcess> {
    let mut seizure = Seizure::new(pid, proc);
    seizure.seize_thread(pid)?;
    seizure.wait_for_all()?;
    seizure.children.let_go()?;
    seizure
        .proc
        .stat()
        .map_err(|_another_has_its_number| Error::Gone(pid))?;
    seizure.into_process()
}

/// Half-way to a [`StoppedProcess`]. Dropping it detaches all, stopped ones by being dropped themselves.
pub(super) struct Seizure {
    pub(super) pid: Pid,
    pub(super) proc: ProcDir,
    known: HashSet<Pid>,
    pub(super) running: Unstopped,
    pub(super) stopped: Vec<Stopped>,
    before: HashMap<Pid, BeforeStop>,
    /// Processes that threads of it made meanwhile.
    children: Nursery,
}

impl Seizure {
    fn new(pid: Pid, proc: ProcDir) -> Self {
        Seizure {
            pid,
            proc,
            known: HashSet::new(),
            running: Unstopped::default(),
            stopped: Vec::new(),
            before: HashMap::new(),
            children: Nursery::default(),
        }
    }

    fn seize_all(&mut self, start_time: u64) -> anyhow::Result<()> {
        while self.seize_new_threads()? {
            self.wait_for_all()?;
        }
        let stat = self.proc.stat().with_context(|| format!("/proc/{}/stat", self.pid))?;
        if stat.start_time != start_time {
            bail!("pid {} ended and another process has its number now", self.pid);
        }
        Ok(())
    }

    /// One pass over /proc/PID/task; false once it finds nobody new. Seizes and interrupts without waiting.
    fn seize_new_threads(&mut self) -> anyhow::Result<bool> {
        let mut tids = self.proc.tids().map_err(|_gone| Error::Gone(self.pid))?;
        // The leader first, so that want of rights shows before anything is changed.
        tids.sort_by_key(|&tid| (tid != self.pid, tid));
        for tid in tids {
            if !self.known.contains(&tid) {
                self.seize_thread(tid)?;
            }
        }
        Ok(!self.running.0.is_empty())
    }

    fn seize_thread(&mut self, tid: Pid) -> anyhow::Result<()> {
        let Ok(stat) = self.proc.task_stat(tid) else {
            return Ok(()); // it ended since it was listed
        };
        if stat.is_dead() {
            return self.refuse_dead_leader(tid);
        }
        if stat.is_kernel_worker() {
            bail!(Refused::from(refuse::kernel_worker(self.pid, &stat)));
        }
        let before = BeforeStop::read(&self.proc, tid, stat.processor);
        let deadline = Instant::now() + PATIENCE;
        let mut was_denied = false;
        loop {
            match Running::seize(tid, seize_options()) {
                Ok(running) => self.interrupt(running)?,
                Err(Error::Gone(_)) => return Ok(()),
                Err(error) if error.errno() == Some(nix::Error::EPERM) => {
                    if self.is_being_let_go(tid) && Instant::now() < deadline {
                        std::thread::sleep(Duration::from_millis(1));
                        continue;
                    }
                    // A tracer that was in the way may be gone by the time one looks for it.
                    if !was_denied && self.tracer_of(tid) == Some(0) {
                        was_denied = true;
                        continue;
                    }
                    return self.explain_denial(tid);
                }
                Err(error) => return Err(error.into()),
            }
            self.known.insert(tid);
            self.before.insert(tid, before);
            return Ok(());
        }
    }

    /// Whoever traces this thread does not trace the leader, which is ours by now: it is on its way in or out, as a thaw that lets one
    /// thread after the other go.
    fn is_being_let_go(&self, tid: Pid) -> bool {
        let tracer = self.tracer_of(tid).unwrap_or(0);
        tid != self.pid && tracer != 0 && tracer != i64::from(nix::unistd::gettid().as_raw())
    }

    /// None of a task that is gone.
    fn tracer_of(&self, tid: Pid) -> Option<i64> {
        self.proc.task_status(tid).ok()?.number("TracerPid")
    }

    /// A task in group-stop traps by the seize alone (ptrace_attach(), kernel/ptrace.c); an interrupt on top would trap it twice.
    fn interrupt(&mut self, running: Running) -> anyhow::Result<()> {
        match running.wait_until(Instant::now()) {
            Ok(Ok(stopped)) => self.settle(stopped)?,
            Ok(Err(running)) => {
                // One that is gone says so when it is waited for.
                let _gone = running.interrupt();
                self.running.0.push(running);
            }
            Err(Error::Gone(_)) => {}
            Err(error) => return Err(error.into()),
        }
        Ok(())
    }

    fn refuse_dead_leader(&self, tid: Pid) -> anyhow::Result<()> {
        if tid == self.pid {
            // Looks again: this time it is the zombie that is refused, by its name.
            refuse::look(self.pid)?;
        }
        Ok(())
    }

    /// EPERM also says that the task is ours already (born of one that we trace) or that it is ending.
    fn explain_denial(&mut self, tid: Pid) -> anyhow::Result<()> {
        match self.tracer_of(tid) {
            None => Ok(()), // gone
            Some(tracer) if tracer == i64::from(nix::unistd::gettid().as_raw()) => {
                self.born(Running::born_traced(tid));
                Ok(())
            }
            Some(0) if self.proc.task_stat(tid).is_ok_and(|stat| !stat.is_dead()) => {
                bail!(Refused::from(refuse::permission(self.pid, &self.proc)))
            }
            Some(0) => self.refuse_dead_leader(tid),
            Some(tracer) => bail!(Refused::from(refuse::traced(self.pid, tracer as i32))),
        }
    }

    /// A thread that one of ours made meanwhile; it comes up stopped.
    fn born(&mut self, running: Running) {
        if self.known.insert(running.tid()) {
            self.running.0.push(running);
        }
    }

    pub(super) fn wait_for_all(&mut self) -> anyhow::Result<()> {
        let deadline = Instant::now() + PATIENCE;
        while let Some(running) = self.running.0.pop() {
            let tid = running.tid();
            match running.wait_until(deadline) {
                Ok(Ok(stopped)) => self.settle(stopped)?,
                Ok(Err(running)) => {
                    self.running.0.push(running);
                    self.refuse_dead_leader_of_stuck(tid)?;
                    bail!(self.describe_stuck(tid));
                }
                Err(Error::Gone(_)) if tid == self.pid => {
                    if self.others_live() {
                        self.refuse_dead_leader(tid)?;
                    }
                    return Err(Error::Gone(tid).into());
                }
                Err(Error::Gone(_)) => {}
                Err(error) => return Err(error.into()),
            }
        }
        Ok(())
    }

    /// From any stop to the one that our interrupt asks for: a signal that was on its way is let in, a new task is taken note of.
    fn settle(&mut self, mut task: Stopped) -> anyhow::Result<()> {
        let signal = match task.stop() {
            Stop::Interrupted { .. } => {
                self.stopped.push(task);
                return Ok(());
            }
            Stop::Signal(signal) => signal,
            Stop::Event(_) | Stop::Syscall => 0,
        };
        if let Some(child) = task.newborn()? {
            let is_waited_for = task.stop() == Stop::Event(libc::PTRACE_EVENT_VFORK);
            self.take_note_of_child(child, is_waited_for)?;
        }
        // Any stop cancels an interrupt that is still to come (ptrace_stop(), kernel/signal.c), so ask again. Asked before it goes
        // on, it traps before it is back in its program.
        task.interrupt()?;
        task.resume(Resume::Continue, signal)?;
        self.running.0.push(task.into_running());
        Ok(())
    }

    /// A thread is seized with us, and a process remembered; but while one of vfork(2) stands still, so does its parent, in a call that no
    /// interrupt ends.
    fn take_note_of_child(&mut self, child: Pid, is_waited_for: bool) -> anyhow::Result<()> {
        let task = Running::born_traced(child);
        match self.proc.task_stat(child) {
            Ok(_) => self.born(task),
            Err(_) if is_waited_for => let_go_its_way(task)?,
            Err(_) => self.children.add(task),
        }
        Ok(())
    }

    /// Whether threads go on; none does of a process that is gone.
    fn others_live(&self) -> bool {
        let lives = |tid: &Pid| self.proc.task_stat(*tid).is_ok_and(|stat| !stat.is_dead());
        self.proc.tids().is_ok_and(|tids| tids.iter().any(lives))
    }

    /// The leader ended (pthread_exit in main) while we were at it: its exit is reported after that of its last thread.
    fn refuse_dead_leader_of_stuck(&self, tid: Pid) -> anyhow::Result<()> {
        match self.proc.task_stat(tid) {
            Ok(stat) if stat.is_dead() => self.refuse_dead_leader(tid),
            _ => Ok(()),
        }
    }

    fn describe_stuck(&self, tid: Pid) -> String {
        let wchan = self.proc.read_text(&format!("task/{tid}/wchan")).unwrap_or_default();
        let state = self.proc.task_stat(tid).map_or('?', |stat| stat.state);
        let hint = if wchan.contains("vfork") || wchan.contains("kernel_clone") {
            "it waits in vfork for its child to start a program"
        } else {
            "it is in a call that cannot be interrupted"
        };
        format!(
            "pid {}: thread {tid} did not stop within {} s: {hint} (state {state}, {wchan})",
            self.pid,
            PATIENCE.as_secs()
        )
    }

    fn into_process(mut self) -> anyhow::Result<StoppedProcess> {
        let memory = ProcessMemory::open(&self.proc).with_context(|| format!("open /proc/{}/mem", self.pid))?;
        self.refuse_foreign()?;
        let vdso = self.leave_kernels_code(&memory)?;
        let mut threads = Vec::with_capacity(self.stopped.len());
        let mut clocks = SchedulerClocks::default();
        for task in self.stopped.drain(..) {
            let before = self.before.remove(&task.tid()).unwrap_or_default();
            let mut thread = StoppedThread::look(task, before, &self.proc, &memory)?;
            thread.look_at_clock(&self.proc, &mut clocks);
            threads.push(thread);
        }
        threads.sort_by_key(|thread| (thread.tid() != self.pid, thread.tid()));
        if threads.first().map(StoppedThread::tid) != Some(self.pid) {
            return Err(Error::Gone(self.pid).into());
        }
        Ok(StoppedProcess {
            pid: self.pid,
            proc: self.proc,
            memory,
            threads,
            vdso,
            dead_bytes: None,
            not_send: PhantomData,
        })
    }

    /// The first look at registers.
    fn refuse_foreign(&self) -> anyhow::Result<()> {
        for task in &self.stopped {
            match task.regs() {
                Ok(_) => {}
                Err(Error::Unexpected { .. }) => bail!(Refused::from(refuse::foreign(self.pid))),
                Err(error) => return Err(error.into()),
            }
        }
        Ok(())
    }
}

/// Tasks that were told to stop and have not done so yet.
#[derive(Default)]
pub(super) struct Unstopped(pub(super) Vec<Running>);

impl Drop for Unstopped {
    /// Only a stopped task can be detached. One that cannot stop in this time is detached by the kernel when this thread ends
    /// (exit_ptrace(), kernel/ptrace.c).
    fn drop(&mut self) {
        let deadline = Instant::now() + Duration::from_millis(100);
        for running in self.0.drain(..) {
            if let Ok(Ok(stopped)) = running.wait_until(deadline) {
                let signal = if let Stop::Signal(signal) = stopped.stop() {
                    signal
                } else {
                    0
                };
                let _gone = stopped.detach(signal);
            }
        }
    }
}

/// A task that a thread of a stopped process made in a moment in which it ran: a thread belongs to the process and stays stopped.
pub(super) fn adopt(process: &mut StoppedProcess, child: Pid) -> Result<()> {
    if process.proc.task_stat(child).is_err() {
        return let_go_its_way(Running::born_traced(child));
    }
    let task = Running::born_traced(child).wait()?;
    let thread = StoppedThread::look(task, BeforeStop::default(), &process.proc, &process.memory)?;
    process.threads.push(thread);
    Ok(())
}
