//! Threads that a stop has met in code that is not the program's: on the way home of an earlier loan, or in a function of `[vdso]`.
//!
//! Both must be over before anything is read. What is half done in `[vdso]` could go on only under the same build of the kernel, since it
//! works on data of the kernel's own.

use std::time::{Duration, Instant};

use super::seize::{PATIENCE, Seizure};
use super::vdso::{Vdso, is_at_a_call};
use super::way_home::DeadBytes;
use super::{ProcessMemory, Resume, Stop};
use anyhow::bail;

/// How long, and how often, threads that are in `[vdso]` may go on: one that only reads clocks is hardly ever elsewhere, least of all where the
/// CPU is emulated, so that this may fail.
const LONGEST: Duration = Duration::from_secs(1);
const TRIES: u32 = 3000;
/// The shortest; others are longer, for where there are few CPUs for many threads.
const MOMENT: Duration = Duration::from_micros(20);
const MOMENTS: u32 = 16;
/// The same for handlers of signals. What looks like one may be left of an earlier one.
const TRIES_OF_HANDLERS: u32 = 5;
const LONG_MOMENT: Duration = Duration::from_millis(1);
/// How far above a handler's stack pointer what it has interrupted is looked for.
const HANDLERS_FRAMES: u64 = 8 << 10;

impl Seizure {
    pub(super) fn leave_kernels_code(&mut self, memory: &ProcessMemory) -> anyhow::Result<Option<Vdso>> {
        let Some(vdso) = Vdso::find(&self.proc, memory) else {
            return Ok(None);
        };
        if let Some(dead) = &vdso.dead {
            self.run_out_of_old_slots(dead)?;
        }
        self.run_out_of_vdso(&vdso, memory)?;
        Ok(Some(vdso))
    }

    /// A freezer that was killed leaves threads on their way home; let them arrive.
    fn run_out_of_old_slots(&mut self, dead: &DeadBytes) -> anyhow::Result<()> {
        let deadline = Instant::now() + PATIENCE;
        while let Some(at) = self.find(|pc| dead.contains(pc))? {
            if Instant::now() > deadline {
                bail!(
                    "pid {}: thread {} does not leave an earlier loan",
                    self.pid,
                    self.stopped[at].tid()
                );
            }
            let mut task = self.stopped.swap_remove(at);
            task.resume(Resume::Continue, 0)?;
            task.interrupt()?;
            self.running.0.push(task.into_running());
            self.wait_for_all()?;
        }
        Ok(())
    }

    /// They go on for a moment, as if the freeze had come a little later; so do those that handle a signal which came there. Single steps are no
    /// way: should we be killed, the trap of a step ends the program (a tracer's end leaves it on: exit_ptrace(), kernel/ptrace.c), and where
    /// SIGTRAP is blocked or ignored it resets what the program has set for it (force_sig_info_to_task(), kernel/signal.c). Who does not get
    /// out is told of in its state; who is stopped by job control stays where it is.
    fn run_out_of_vdso(&mut self, vdso: &Vdso, memory: &ProcessMemory) -> anyhow::Result<()> {
        let deadline = Instant::now() + LONGEST;
        for round in (0..TRIES).take_while(|_| Instant::now() < deadline) {
            let (mut inside, mut moment) = (Vec::new(), MOMENT * (1 + round % MOMENTS));
            for at in (0..self.stopped.len()).rev() {
                let task = &self.stopped[at];
                if task.stop() != (Stop::Interrupted { signal: libc::SIGTRAP }) {
                    continue;
                }
                let regs = task.regs()?;
                // Only of what runs: a call that is interrupted twice shows it (epoll_wait(2) gives EINTR).
                let is_handler = || {
                    if is_at_a_call(&regs, memory) {
                        return false;
                    }
                    let found = memory.contexts(regs.sp(), regs.sp().saturating_add(HANDLERS_FRAMES));
                    found.iter().any(|context| vdso.code.contains(&context.pc))
                };
                if vdso.is_midway(&regs, memory) {
                    inside.push(self.stopped.swap_remove(at));
                } else if round < TRIES_OF_HANDLERS && is_handler() {
                    inside.push(self.stopped.swap_remove(at));
                    moment = moment.max(LONG_MOMENT);
                }
            }
            if inside.is_empty() {
                break;
            }
            for mut task in inside {
                task.resume(Resume::Continue, 0)?;
                self.running.0.push(task.into_running());
            }
            std::thread::sleep(moment);
            for task in &self.running.0 {
                // One that is gone says so when it is waited for.
                let _gone = task.interrupt();
            }
            self.wait_for_all()?;
        }
        Ok(())
    }

    fn find(&self, is_it: impl Fn(u64) -> bool) -> anyhow::Result<Option<usize>> {
        for (at, task) in self.stopped.iter().enumerate() {
            if is_it(task.regs()?.pc()) {
                return Ok(Some(at));
            }
        }
        Ok(None)
    }
}
