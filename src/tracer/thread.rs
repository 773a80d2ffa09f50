//! A thread in ptrace-stop, and what ptrace(2) alone can tell of it.

use std::io;

use nix::unistd::Pid;

use super::before_stop::{BeforeStop, SchedulerClocks};
use super::proc::{ProcDir, Status};
use super::rseq::{self, RSEQ_CS_AT, Registration};
use super::seccomp::Filters;
use super::{Error, ProcessMemory, Result, Stop, Stopped};
use crate::arch::{self, Registers, Slot};
use crate::image::state::Dispatch;
use crate::image::state::{RegSet, RobustList, Rseq, SigInfo};

/// A thread in ptrace-stop.
#[derive(Debug)]
pub struct StoppedThread {
    pub(super) task: Stopped,
    /// As the thread has them in its stop; a loan gives them back.
    pub(super) regs: Registers,
    pub(super) rseq: Registration,
    /// Once they were read.
    pub(super) filters: Option<Filters>,
    /// /proc/PID/task/TID/status, read once it was stopped.
    pub(super) status: Status,
    pub before_stop: BeforeStop,
    /// How long it slept in the call that it was caught in, where that is known.
    pub slept_ns: Option<u64>,
    /// How long it still has to sleep, where [`StoppedProcess::find_deadline`](super::StoppedProcess::find_deadline) found it.
    pub left_ns: Option<u64>,
}

impl StoppedThread {
    pub(super) fn look(task: Stopped, before_stop: BeforeStop, proc: &ProcDir, memory: &ProcessMemory) -> Result<Self> {
        let regs = task.regs()?;
        let status = proc.task_status(task.tid()).map_err(|_gone| Error::Gone(task.tid()))?;
        let rseq = rseq::registration(&task, memory)?;
        let mut thread = StoppedThread {
            task,
            regs,
            rseq,
            filters: None,
            status,
            before_stop,
            slept_ns: None,
            left_ns: None,
        };
        thread.note_call(memory)?;
        Ok(thread)
    }

    /// Only a call that was interrupted may need to know how long it lasted; one in group-stop was interrupted long ago.
    pub(super) fn look_at_clock(&mut self, proc: &ProcDir, clocks: &mut SchedulerClocks) {
        let stopped_by_us = self.task.stop() == Stop::Interrupted { signal: libc::SIGTRAP };
        if stopped_by_us && self.regs.interrupted().is_some() && self.before_stop.exec_start_ns.is_some() {
            self.slept_ns = self.before_stop.slept_ns(proc, self.tid(), clocks);
            // Known to have slept on until the stop: then its restart block is that of this call.
            if self.slept_ns.is_some() && self.regs.interrupted() == Some(arch::Interrupted::RestartBlock) {
                self.regs.use_restart_block();
            }
        }
    }

    /// Reads again what a signal handler's start changes.
    pub(super) fn refresh(&mut self, memory: &ProcessMemory) -> Result<()> {
        self.regs = self.task.regs()?;
        self.rseq = rseq::registration(&self.task, memory)?;
        self.note_call(memory)
    }

    /// What the registers alone do not tell of the call that it was caught in, on some architectures.
    fn note_call(&mut self, memory: &ProcessMemory) -> Result<()> {
        if let Some(call) = self.before_stop.call {
            self.regs.note_call(call.number, &call.args, call.pc);
        }
        Slot::leave_slot(&mut self.regs, |at, bytes| memory.read_at(at, bytes).is_ok());
        self.reissue_what_only_we_interrupted()
    }

    /// epoll_wait(2) and its like return EINTR though no handler ran. A call that shows EINTR here is still on its way out of the
    /// kernel, so that it can be issued again; done at once, it holds even if we are killed. Should a handler be pending, the call
    /// still gives EINTR (ERESTARTNOHAND, arch_do_signal_or_restart()). Its timeout counts anew.
    fn reissue_what_only_we_interrupted(&mut self) -> Result<()> {
        if self.regs.interrupted() == Some(arch::Interrupted::Fails)
            && self.regs.syscall_number().is_some_and(arch::may_be_reissued)
        {
            self.regs.reissue();
            self.task.set_regs(&self.regs)?;
        }
        Ok(())
    }

    pub fn tid(&self) -> Pid {
        self.task.tid()
    }

    /// Reads /proc/PID/task/TID/status again.
    pub(super) fn refresh_status(&mut self, proc: &ProcDir) -> Result<()> {
        self.status = proc.task_status(self.tid()).map_err(|_gone| Error::Gone(self.tid()))?;
        Ok(())
    }

    /// /proc/PID/task/TID/status (proc_pid_status(5)), read once it was stopped.
    pub fn status(&self) -> &[u8] {
        &self.status.0
    }

    /// The general registers. A call it was caught in shows as -ERESTART… with its number ([`Registers::interrupted`]).
    pub fn regs(&self) -> &Registers {
        &self.regs
    }

    /// NT_PRSTATUS and all other register sets of this architecture, raw.
    pub fn regsets(&self) -> Result<Vec<RegSet>> {
        let general = RegSet {
            note: libc::NT_PRSTATUS as u32,
            data: self.regs.as_bytes().to_vec(),
        };
        let mut regsets = vec![general];
        for &note in arch::REGSETS {
            regsets.push(RegSet {
                note,
                data: self.task.regset(note)?,
            });
        }
        for &note in arch::OPTIONAL_REGSETS {
            match self.task.regset(note) {
                Ok(data) if arch::DEFAULT_REGSETS.contains(&(note, data.as_slice())) => {}
                Ok(data) => regsets.push(RegSet { note, data }),
                // Not on this CPU, or not in this kernel (ptrace_regset(), kernel/ptrace.c).
                Err(error) if matches!(error.errno(), Some(nix::Error::EINVAL | nix::Error::ENODEV)) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(regsets)
    }

    /// The signal mask; inside sigsuspend(2), ppoll(2) and their like the one that they put back.
    pub fn sigmask(&self) -> Result<u64> {
        self.task.sigmask()
    }

    /// Signals in the thread's own queue.
    pub fn pending(&self) -> Result<Vec<SigInfo>> {
        self.peek_signals(0)
    }

    /// Signals in the queue of the process; the same from each of its threads.
    pub fn shared_pending(&self) -> Result<Vec<SigInfo>> {
        const PTRACE_PEEKSIGINFO_SHARED: u32 = 1;
        self.peek_signals(PTRACE_PEEKSIGINFO_SHARED)
    }

    /// PTRACE_PEEKSIGINFO (ptrace(2)).
    fn peek_signals(&self, flags: u32) -> Result<Vec<SigInfo>> {
        const BATCH: usize = 32;
        const SIGINFO_LEN: usize = size_of::<libc::siginfo_t>();
        let mut found = Vec::new();
        loop {
            let args = libc::ptrace_peeksiginfo_args {
                off: found.len() as u64,
                flags,
                nr: BATCH as i32,
            };
            let mut buffer = [0u8; BATCH * SIGINFO_LEN];
            let (from, to) = ((&raw const args) as usize, buffer.as_mut_ptr() as usize);
            let count = self
                .task
                .request(libc::PTRACE_PEEKSIGINFO, "PTRACE_PEEKSIGINFO", from, to)? as usize;
            found.extend(
                buffer
                    .chunks_exact(SIGINFO_LEN)
                    .take(count)
                    .map(|info| SigInfo(info.to_vec())),
            );
            if count < BATCH {
                return Ok(found);
            }
        }
    }

    /// The rseq(2) registration, and the critical section the thread is in. None where there is no registration, or where the kernel does not
    /// tell.
    pub fn rseq(&self) -> Option<&Rseq> {
        match &self.rseq {
            Registration::Told(rseq) => rseq.as_ref(),
            Registration::Untold => None,
        }
    }

    /// Whether ptrace(2) tells of rseq(2): since Linux 5.13. Before, [`Remote::find_rseq`](super::Remote::find_rseq) does.
    pub fn rseq_is_told(&self) -> bool {
        matches!(self.rseq, Registration::Told(_))
    }

    /// Filters of seccomp(2), which must be known before a thread that has any may be asked to make a call.
    pub fn read_filters(&mut self) -> Result<&Filters> {
        Ok(self.filters.insert(Filters::of(&self.task)?))
    }

    pub fn filters(&self) -> Option<&Filters> {
        self.filters.as_ref()
    }

    /// What it has that no thaw gives back, as a clause. Such a register set is not there otherwise (ENXIO, ioperm_get(),
    /// arch/x86/kernel/ptrace.c), nor in a kernel that does not know it. What iopl(2) gave nothing tells.
    pub fn not_carried(&self) -> Result<Option<&'static str>> {
        for &(note, len, what) in arch::NOT_CARRIED {
            match self.task.regset(note) {
                Ok(set) if set.len() > len => return Ok(Some(what)),
                Ok(_) => {}
                Err(error)
                    if matches!(
                        error.errno(),
                        Some(nix::Error::ENXIO | nix::Error::EINVAL | nix::Error::ENODEV)
                    ) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(None)
    }

    /// Which system calls come back to the thread as SIGSYS.
    pub fn dispatch(&self) -> Result<Option<Dispatch>> {
        self.task.dispatch()
    }

    /// get_robust_list(2).
    pub fn robust_list(&self) -> Result<Option<RobustList>> {
        let (mut head, mut len) = (0u64, 0usize);
        // SAFETY: the call writes one pointer and one size_t, both of which live here.
        let rc = unsafe {
            libc::syscall(
                libc::SYS_get_robust_list,
                self.tid().as_raw(),
                &raw mut head,
                &raw mut len,
            )
        };
        nix::errno::Errno::result(rc).map_err(|errno| Error::request(self.tid(), "get_robust_list", errno))?;
        Ok((head != 0).then_some(RobustList { head, len: len as u64 }))
    }

    /// Where the task would be once it ran: inside a critical section of rseq(2) the kernel sends it to the abort handler, as after
    /// any preemption. For the way home, which the kernel does not know to be part of the section.
    pub(super) fn home(&self, memory: &ProcessMemory) -> io::Result<Registers> {
        let mut home = arch::as_resumed(&self.regs);
        let Some(section) = self
            .rseq()
            .map(|rseq| rseq.critical_section)
            .filter(|&section| section != 0)
        else {
            return Ok(home);
        };
        // struct rseq_cs: version, flags (32 bits each), start_ip, post_commit_offset, abort_ip (include/uapi/linux/rseq.h).
        let (start, len, abort) = (
            memory.read_u64(section + 8)?,
            memory.read_u64(section + 16)?,
            memory.read_u64(section + 24)?,
        );
        if home.pc().wrapping_sub(start) < len {
            home.set_pc(abort);
        }
        Ok(home)
    }

    /// Puts back the pointer to the critical section, which the kernel clears when a task runs elsewhere meanwhile.
    pub(super) fn restore_rseq(&self, memory: &ProcessMemory) -> io::Result<()> {
        match self.rseq() {
            Some(rseq) if rseq.critical_section != 0 => {
                memory.write_at(rseq.addr + RSEQ_CS_AT, &rseq.critical_section.to_ne_bytes())
            }
            _ => Ok(()),
        }
    }
}
