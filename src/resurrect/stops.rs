//! Group-stops (signal(7)): a process that was stopped is so again before it is let go, and its parent is not told anew.
#![deny(unsafe_code)]

use anyhow::{Context, Result, ensure};
use nix::sys::signal::{Signal, kill};

use super::process::Rebuilt;
use super::resume::{GoesOn, expect_stop};
use super::script::Script;
use super::threads::{queue_own_signals, signal_of};
use super::zombies::forget_signal;
use crate::image::state::Process;
use crate::tracer::{Resume, Stop};

pub(super) fn is_stopped(process: &Process, how: GoesOn) -> bool {
    how == GoesOn::Stopped || process.stopped_by.is_some()
}

impl Rebuilt<'_> {
    /// While all signals are blocked, so that none that waits for the end of the stop comes before it.
    pub(super) fn stop(&mut self) -> Result<()> {
        kill(self.parts.pid(), Signal::SIGSTOP).context("kill")?;
        let signal = libc::SIGSTOP;
        let (leader, others) = self.tasks.split_first_mut().context("a process without threads")?;
        expect_stop(leader.resume_and_wait(Resume::Continue, 0)?, Stop::Signal(signal))?;
        expect_stop(
            leader.resume_and_wait(Resume::Continue, signal)?,
            Stop::Interrupted { signal },
        )?;
        for task in others {
            expect_stop(task.resume_and_wait(Resume::Continue, 0)?, Stop::Interrupted { signal })?;
        }
        Ok(())
    }

    /// What it was told of `children`, which have been stopped: the signal, where none waits in the image, and what wait(2) would tell, where
    /// it had been told.
    pub(super) fn take_stops<'p>(&mut self, children: impl Iterator<Item = &'p Process>) -> Result<()> {
        let mut told = false;
        for child in children {
            told = true;
            if child.stopped_by.is_some() && !child.stop_was_told {
                continue;
            }
            let mut script = Script::new(&self.stage, &mut self.tasks[0]);
            let options = libc::WUNTRACED | libc::WNOHANG | libc::__WALL;
            let args = [child.pid.into(), 0u64.into(), options.into(), 0u64.into()];
            let waited = script.ask("wait4", libc::SYS_wait4, args)?;
            ensure!(waited == child.pid as u64, "child {} is not stopped", child.pid);
        }
        let process = self.parts.process;
        let is_sigchld = |info: &_| signal_of(info) == libc::SIGCHLD;
        // A second one would not have been queued (legacy_queue(), kernel/signal.c).
        if !told || process.pending.iter().any(is_sigchld) {
            return Ok(());
        }
        let leader = &process.threads[0];
        // Its own queue is looked into first.
        let of_its_own: Vec<_> = leader.pending.iter().filter(|info| is_sigchld(info)).cloned().collect();
        for _ in 0..=of_its_own.len() {
            forget_signal(&mut Script::new(&self.stage, &mut self.tasks[0]), libc::SIGCHLD)?;
        }
        let mut script = Script::new(&self.stage, &mut self.tasks[0]);
        queue_own_signals(&mut script, self.parts.pid(), leader.tid, &of_its_own)?;
        script.run()
    }
}
