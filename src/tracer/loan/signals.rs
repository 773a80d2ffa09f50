//! Signals that come while a thread's registers are on loan, or that wait before: the thread gets them, with its own registers.

use std::time::{Duration, Instant};

use super::{Loan, MAX_ATTEMPTS, State};
use crate::tracer::process::StoppedProcess;
use crate::tracer::seize::adopt;
use crate::tracer::thread::StoppedThread;
use crate::tracer::{Error, Result, Resume, Stop};

impl Loan<'_> {
    /// From a signal-delivery stop on loan: the thread gets its own registers and the signal, and stops before it runs its handler.
    pub(super) fn let_signal_in(&mut self, signal: i32) -> Result<()> {
        self.signals += 1;
        self.restore_registers()?;
        let thread = self.thread_mut();
        thread.task.interrupt()?;
        thread.task.resume(Resume::Continue, signal)?;
        self.arrive()?;
        self.after_signal()
    }

    /// Waits for the stop that an interrupt asked for. Signals on the way are let in.
    pub(super) fn arrive(&mut self) -> Result<()> {
        let mut stop = self.thread_mut().task.wait()?;
        while !matches!(stop, Stop::Interrupted { .. }) {
            let signal = if let Stop::Signal(signal) = stop { signal } else { 0 };
            self.signals += 1;
            if let Some(child) = self.thread().task.newborn()? {
                adopt(self.process, child)?;
            }
            let task = &mut self.thread_mut().task;
            task.interrupt()?;
            stop = task.resume_and_wait(Resume::Continue, signal)?;
            self.after_signal()?;
        }
        let StoppedProcess { threads, memory, .. } = &mut *self.process;
        threads[self.thread].refresh(memory)?;
        self.state = State::Home;
        Ok(())
    }

    /// Once a signal was let in: its handler may block others.
    fn after_signal(&mut self) -> Result<()> {
        let StoppedProcess { threads, proc, .. } = &mut *self.process;
        threads[self.thread].refresh_status(proc)
    }

    /// A signal that is waiting is delivered first, to the thread's own registers: on the way home of a dead freezer the kernel would
    /// not know of the call that the signal interrupted.
    pub(super) fn let_pending_signals_in(&mut self) -> Result<()> {
        for _ in 0..MAX_ATTEMPTS {
            let StoppedProcess { threads, proc, .. } = &mut *self.process;
            let thread = &mut threads[self.thread];
            know_filters(thread)?;
            // The queues are soon looked at.
            if thread.pending()?.is_empty() && thread.shared_pending()?.is_empty() {
                return Ok(());
            }
            thread.refresh_status(proc)?;
            if thread.status.deliverable_signals().unwrap_or(0) == 0 {
                return Ok(());
            }
            let tid = thread.tid();
            if self.process.group_stop().is_some() {
                return Err(Error::SignalWaits(tid));
            }
            self.take_a_signal()?;
        }
        Err(self.unexpected("gets signals faster than they can be delivered"))
    }

    /// Goes on without an interrupt, which would come before the signal. The kernel may find that there is nothing to deliver (a timer
    /// that was set anew takes its signal back); then the thread runs for a moment.
    fn take_a_signal(&mut self) -> Result<()> {
        let task = &mut self.thread_mut().task;
        task.resume(Resume::Continue, 0)?;
        let signal = match task.wait_until(Instant::now() + Duration::from_millis(2))? {
            Some(Stop::Signal(signal)) => signal,
            Some(_) => 0,
            None => {
                task.interrupt()?;
                self.arrive()?;
                return self.after_signal();
            }
        };
        if let Some(child) = task.newborn()? {
            adopt(self.process, child)?;
        }
        let task = &mut self.thread_mut().task;
        task.interrupt()?;
        task.resume(Resume::Continue, signal)?;
        self.arrive()?;
        self.after_signal()
    }
}

/// Filters judge our calls by rules that were made for the program's own: they must be known.
fn know_filters(thread: &mut StoppedThread) -> Result<()> {
    const SECCOMP_MODE_FILTER: i64 = 2;
    match thread.status.number("Seccomp") {
        None | Some(0) => Ok(()),
        Some(SECCOMP_MODE_FILTER) if thread.filters().is_some() => Ok(()),
        Some(SECCOMP_MODE_FILTER) => thread.read_filters().map(drop),
        Some(_) => Err(Error::Unexpected {
            tid: thread.tid(),
            what: "is in strict mode of seccomp(2), in which it can be made to call nothing".into(),
        }),
    }
}
