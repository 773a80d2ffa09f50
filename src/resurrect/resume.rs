//! The last steps of a thaw: timed calls start again with the time they had left, the stub goes, registers are set, and
//! every thread is let go.
#![deny(unsafe_code)]

use std::os::unix::fs::FileExt;

use anyhow::{Context, Result, ensure};
use nix::sys::signal::{Signal, kill};

use super::finish::action_bytes;
use super::process::Rebuilt;
use super::stage::Stage;
use super::stops::is_stopped;
use super::threads::signal_of;
use crate::arch::{self, Interrupted, Registers, syscall};
use crate::image::state::{Process, RegSet, SigInfo, Thread, TimedWait};
use crate::tracer::{Error as TracerError, Resume, Stop, Stopped};

/// How the restored program goes on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum GoesOn {
    AsItWas,
    /// In group-stop, for a debugger.
    Stopped,
}

impl Rebuilt<'_> {
    /// All but the last step, which is [`detach_all`](Self::detach_all): until then an error (or our death) leaves nothing behind.
    ///
    /// With `has_another_screen` it finds SIGWINCH waiting: programs that fill the screen draw it anew, and others ignore that. Not sent
    /// later, when it could come between a call that is entered again and the program's look for signals, which many do not expect.
    ///
    /// One that is to be stopped is so from here on, `children` of it before.
    pub(super) fn prepare(&mut self, how: GoesOn, has_another_screen: bool, children: &[&Process]) -> Result<()> {
        let process = self.parts.process;
        self.take_stops(children.iter().filter(|child| is_stopped(child, how)).copied())?;
        let mut all_regs = Vec::with_capacity(process.threads.len());
        for (thread, task) in process.threads.iter().zip(&mut self.tasks) {
            let regs = restart(&self.stage, task, thread, self.parts.vdso_syscall);
            all_regs.push(regs.with_context(|| format!("thread {}", thread.tid))?);
        }
        self.drop_stub()?;
        if is_stopped(process, how) {
            self.stop().context("stop it")?;
        }
        if arch::SYSCALL_STOPS_CHANGE_REGISTERS {
            leave_syscall_stop(&mut self.tasks[0])?;
        }
        for ((thread, task), regs) in process.threads.iter().zip(&mut self.tasks).zip(&all_regs) {
            set_registers(task, thread, regs).with_context(|| format!("registers of thread {}", thread.tid))?;
            // From here on system calls of the thread may come back to it.
            if let Some(dispatch) = thread.settings.dispatch {
                let set = task.set_dispatch(dispatch);
                set.with_context(|| format!("syscall user dispatch of thread {}", thread.tid))?;
            }
        }
        process
            .threads
            .iter()
            .try_for_each(|thread| self.restore_critical_section(thread))?;
        if has_another_screen {
            kill(self.parts.pid(), Signal::SIGWINCH).context("send SIGWINCH")?;
        }
        Ok(())
    }

    /// The two calls after which no trap is left: SIGTRAP gets its action back, which traps would overwrite, and the stage is
    /// unmapped, through a system call instruction of the `[vdso]`.
    fn drop_stub(&mut self) -> Result<()> {
        let process = self.parts.process;
        self.block_all()?;
        if let Some(action) = trap_action(process) {
            self.stage.write_data(0, &action)?;
            let args = [libc::SIGTRAP as u64, self.stage.data_addr(0), 0, 8, 0, 0];
            let result = call(
                &mut self.tasks[0],
                self.parts.vdso_syscall,
                libc::SYS_rt_sigaction,
                args,
            )?;
            ensure!(result == 0, "rt_sigaction(SIGTRAP): {result}");
        }
        self.queue_traps()?;
        let (start, len) = (self.stage.addr(), self.stage.end() - self.stage.addr());
        let result = call(
            &mut self.tasks[0],
            self.parts.vdso_syscall,
            libc::SYS_munmap,
            [start, len, 0, 0, 0, 0],
        )?;
        ensure!(result == 0, "unmap the stub: {result}");
        Ok(())
    }

    /// No trap instruction follows, so that SIGTRAP need not come through any more.
    fn block_all(&mut self) -> Result<()> {
        self.tasks.iter_mut().try_for_each(|task| Ok(task.set_sigmask(!0)?))
    }

    /// Pending SIGTRAPs, which would have looked like the end of a script. After the action, which may be to ignore them: setting that
    /// discards what is pending (do_sigaction(), kernel/signal.c).
    fn queue_traps(&mut self) -> Result<()> {
        let (process, pid) = (self.parts.process, self.parts.pid().as_raw() as u64);
        let is_trap = |info: &&SigInfo| signal_of(info) == libc::SIGTRAP;
        for (index, thread) in process.threads.iter().enumerate() {
            for info in thread.pending.iter().filter(is_trap) {
                let args = |at| [pid, thread.tid as u64, libc::SIGTRAP as u64, at, 0, 0];
                self.queue_trap(index, info, libc::SYS_rt_tgsigqueueinfo, args)?;
            }
        }
        for info in process.pending.iter().filter(is_trap) {
            let args = |at| [pid, libc::SIGTRAP as u64, at, 0, 0, 0];
            self.queue_trap(0, info, libc::SYS_rt_sigqueueinfo, args)?;
        }
        Ok(())
    }

    fn queue_trap(&mut self, task: usize, info: &SigInfo, number: i64, args: impl Fn(u64) -> [u64; 6]) -> Result<()> {
        self.stage.write_data(0, &info.0)?;
        let args = args(self.stage.data_addr(0));
        let result = call(&mut self.tasks[task], self.parts.vdso_syscall, number, args)?;
        ensure!(result == 0, "queue a pending SIGTRAP: {result}");
        Ok(())
    }

    /// The kernel clears struct rseq's rseq_cs on every return from a call, so it is written when no more calls are made.
    fn restore_critical_section(&self, thread: &Thread) -> Result<()> {
        const RSEQ_CS_OFFSET: u64 = 8;
        match thread.rseq {
            Some(rseq) if rseq.critical_section != 0 => {
                let at = rseq
                    .addr
                    .checked_add(RSEQ_CS_OFFSET)
                    .context("struct rseq lies nowhere")?;
                self.memory
                    .write_all_at(&rseq.critical_section.to_ne_bytes(), at)
                    .with_context(|| format!("write rseq_cs of thread {}", thread.tid))
            }
            _ => Ok(()),
        }
    }

    /// From the first detach on the program runs: there is no way back, and errors of single threads are reported after all
    /// have been tried.
    pub(super) fn detach_all(self) -> Result<()> {
        let mut failed = None;
        for (index, task) in self.tasks.into_iter().enumerate() {
            // The first runs, and may end the program, while others are still to be let go.
            let detached = match index {
                0 => task.detach(0),
                _ => task.detach_or_reap(),
            };
            match detached {
                // Whoever waits for the program will hear of it.
                Ok(()) | Err(TracerError::Gone(_)) => {}
                Err(error) => drop(failed.get_or_insert(error)),
            }
        }
        failed.map_or(Ok(()), |error| Err(error).context("let the program go"))
    }
}

fn trap_action(process: &Process) -> Option<Vec<u8>> {
    process
        .signal_actions
        .iter()
        .find(|action| action.signal == libc::SIGTRAP)
        .map(action_bytes)
}

/// Registers as the thread is to have them. A thread that was caught in a call with a restart block, which died with it, is
/// made to enter the call again for the time that was left, and is interrupted: then it has a live restart block.
fn restart(stage: &Stage, task: &mut Stopped, thread: &Thread, syscall_at: u64) -> Result<Registers> {
    let mut regs = general_registers(thread)?;
    match (regs.interrupted(), thread.timed_wait) {
        (Some(Interrupted::RestartBlock), Some(wait)) => match again(stage, task, &regs, wait, syscall_at)? {
            Entered::Waits => {}
            Entered::Returned(result) => {
                regs.set_result(result);
                regs.forget_syscall();
            }
            Entered::Unknown => regs.reissue(),
        },
        (Some(Interrupted::RestartBlock), None) => regs.reissue(),
        // The freeze has changed every EINTR that may be issued again; what is left is that of close(2) or connect(2).
        (Some(Interrupted::Fails | Interrupted::Restarts) | None, _) => {}
    }
    Ok(regs)
}

enum Entered {
    /// Caught in the call once more: -ERESTART_RESTARTBLOCK.
    Waits,
    /// It did not wait: time was up, or what it waits for has happened.
    Returned(i64),
    /// A call that this version does not know how to shorten.
    Unknown,
}

fn again(stage: &Stage, task: &mut Stopped, original: &Registers, wait: TimedWait, syscall_at: u64) -> Result<Entered> {
    let mut args = original.arguments();
    if !shorten(stage, &mut args, wait)? {
        return Ok(Entered::Unknown);
    }
    let mut regs = *original;
    regs.set_pc(original.call_site(syscall_at));
    regs.set_call(wait.number, args);
    task.set_regs(&regs)?;
    expect_stop(task.resume_and_wait(Resume::ToSyscall, 0)?, Stop::Syscall)?;
    // Asked for before it enters, so that it waits for no longer than it takes to notice.
    task.interrupt()?;
    expect_stop(
        task.resume_and_wait(Resume::Continue, 0)?,
        Stop::Interrupted { signal: libc::SIGTRAP },
    )?;
    let after = task.regs()?;
    Ok(match after.interrupted_since(&regs) {
        Some(Interrupted::RestartBlock) => Entered::Waits,
        // Caught in a way that leaves no restart block.
        Some(Interrupted::Restarts | Interrupted::Fails) => Entered::Unknown,
        None => Entered::Returned(after.result()),
    })
}

/// Puts the time left in place of the time asked for; false for a call that has none we know.
fn shorten(stage: &Stage, args: &mut [u64; 6], wait: TimedWait) -> Result<bool> {
    let left_ns = wait.left_ns.max(1); // 0 would be "poll and return" to poll(2), and is what 1 comes to for the others
    let timespec: Vec<u8> = [left_ns / 1_000_000_000, left_ns % 1_000_000_000]
        .into_iter()
        .flat_map(u64::to_ne_bytes)
        .collect();
    let index = match wait.number {
        syscall::NANOSLEEP => 0,
        syscall::CLOCK_NANOSLEEP => 2,
        syscall::FUTEX => 3,
        syscall::POLL => {
            args[2] = left_ns.div_ceil(1_000_000);
            return Ok(true);
        }
        _ => return Ok(false),
    };
    stage.write_data(0, &timespec)?;
    args[index] = stage.data_addr(0);
    Ok(true)
}

pub(super) fn expect_stop(actual: Stop, wanted: Stop) -> Result<()> {
    ensure!(actual == wanted, "stopped by {actual:?} instead of {wanted:?}");
    Ok(())
}

/// From the end of a call to a stop in which the registers are what they are set to.
fn leave_syscall_stop(task: &mut Stopped) -> Result<()> {
    if task.stop() != Stop::Syscall {
        return Ok(());
    }
    task.interrupt()?;
    expect_stop(
        task.resume_and_wait(Resume::Continue, 0)?,
        Stop::Interrupted { signal: libc::SIGTRAP },
    )
}

/// One call, from stop to stop, without a trap.
fn call(task: &mut Stopped, syscall_at: u64, number: i64, args: [u64; 6]) -> Result<i64> {
    let mut regs = task.regs()?;
    regs.set_pc(syscall_at);
    regs.set_call(number as u64, args);
    task.set_regs(&regs)?;
    for _ in ["entry", "exit"] {
        expect_stop(task.resume_and_wait(Resume::ToSyscall, 0)?, Stop::Syscall)?;
    }
    Ok(task.regs()?.result())
}

fn general_registers(thread: &Thread) -> Result<Registers> {
    let set = thread
        .regsets
        .iter()
        .find(|set| is_general(set))
        .context("no general registers")?;
    Registers::from_bytes(&set.data).context("general registers of another architecture")
}

fn is_general(set: &RegSet) -> bool {
    set.note == libc::NT_PRSTATUS as u32
}

fn set_registers(task: &mut Stopped, thread: &Thread, regs: &Registers) -> Result<()> {
    task.set_regs(regs)?;
    for set in thread.regsets.iter().filter(|set| !is_general(set)) {
        task.set_regset(set.note, &set.data)?;
    }
    task.set_sigmask(thread.sigmask)?;
    Ok(())
}
