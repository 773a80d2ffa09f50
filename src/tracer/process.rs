//! A whole process in ptrace-stop, and what ptrace(2) alone can tell of its threads.

use std::io;
use std::marker::PhantomData;
use std::os::fd::{AsFd, BorrowedFd};

use nix::unistd::Pid;

use super::proc::ProcDir;
use super::way_home::DeadBytes;
use super::{Error, ProcessMemory, Result, Stop, Stopped};
use crate::arch::{self, Registers};
use crate::image::state::{RegSet, RobustList, Rseq, SigInfo};

/// A process all of whose threads are in ptrace-stop. While you hold one, nothing of it runs.
///
/// Dropping it lets everything go on as it was, as [`resume`](Self::resume) does. It stays with the thread that made it, since
/// ptrace(2) takes requests from no other; its [`memory`](Self::memory) may be read from any.
#[derive(Debug)]
pub struct StoppedProcess {
    pub(super) pid: Pid,
    pub(super) proc: ProcDir,
    pub(super) memory: ProcessMemory,
    /// The leader first.
    pub(super) threads: Vec<StoppedThread>,
    pub(super) stopped_at_ns: Option<u64>,
    /// Where ways home are laid, once one was needed.
    pub(super) dead_bytes: Option<DeadBytes>,
    pub(super) not_send: PhantomData<*const ()>,
}

/// A thread in ptrace-stop.
#[derive(Debug)]
pub struct StoppedThread {
    pub(super) task: Stopped,
    /// As the thread has them in its stop; a loan gives them back.
    pub(super) regs: Registers,
    pub(super) rseq: Option<Rseq>,
    pub before_stop: BeforeStop,
}

/// What a thread was doing before it was stopped, which the stop itself changes.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct BeforeStop {
    /// /proc/PID/wchan: the kernel function it waited in; "0" where it ran.
    pub wchan: String,
    /// se.exec_start of /proc/PID/sched: when it last got on a CPU (or was last ticked), by the scheduler's clock.
    pub exec_start_ns: Option<u64>,
    /// How often it gave up the CPU by itself (proc_pid_status(5)): whether it slept on until the stop.
    pub voluntary_switches: Option<u64>,
}

impl StoppedProcess {
    pub fn pid(&self) -> Pid {
        self.pid
    }

    /// /proc/PID, opened (O_PATH) when the process was seized.
    pub fn proc(&self) -> BorrowedFd<'_> {
        self.proc.as_fd()
    }

    pub fn memory(&self) -> &ProcessMemory {
        &self.memory
    }

    /// The content of [vdso], read from `start` on, without what freezers that were killed have left there.
    pub fn blank_left_behind(&self, start: u64, vdso: &mut [u8]) {
        if let Some(dead) = DeadBytes::of_vdso(&self.proc, &self.memory) {
            dead.blank_left_behind(start, vdso);
        }
    }

    /// The leader first.
    pub fn threads(&self) -> &[StoppedThread] {
        &self.threads
    }

    /// The signal of the group-stop that the process is in, if it is in one (signal(7): stopped by SIGSTOP, SIGTSTP …).
    pub fn group_stop(&self) -> Option<i32> {
        self.threads.iter().find_map(|thread| match thread.task.stop() {
            Stop::Interrupted { signal } if signal != libc::SIGTRAP => Some(signal),
            _ => None,
        })
    }

    /// The scheduler's clock when all were stopped, for [`BeforeStop::exec_start_ns`]. None without CONFIG_SCHED_DEBUG.
    pub fn stopped_at_ns(&self) -> Option<u64> {
        self.stopped_at_ns
    }

    /// Children of all its threads, ended ones that nobody waited for included.
    pub fn children(&self) -> io::Result<Vec<Pid>> {
        let mut children = Vec::new();
        for thread in &self.threads {
            match self.proc.read_text(&format!("task/{}/children", thread.tid())) {
                Ok(list) => children.extend(
                    list.split_whitespace()
                        .filter_map(|pid| pid.parse().ok())
                        .map(Pid::from_raw),
                ),
                // A kernel without CONFIG_PROC_CHILDREN.
                Err(error) if error.kind() == io::ErrorKind::NotFound => return children_by_parent(self.pid),
                Err(error) => return Err(error),
            }
        }
        Ok(children)
    }
}

fn children_by_parent(parent: Pid) -> io::Result<Vec<Pid>> {
    let mut children = Vec::new();
    for entry in std::fs::read_dir("/proc")? {
        let Ok(pid) = entry?.file_name().to_string_lossy().parse().map(Pid::from_raw) else {
            continue;
        };
        // A process that ended meanwhile is no child: its parent is stopped, so it would be a zombie and still be here.
        if ProcDir::open(pid)
            .and_then(|proc| proc.stat())
            .is_ok_and(|stat| stat.ppid == parent.as_raw())
        {
            children.push(pid);
        }
    }
    Ok(children)
}

impl StoppedThread {
    pub(super) fn look(task: Stopped, before_stop: BeforeStop, memory: &ProcessMemory) -> Result<Self> {
        let regs = task.regs()?;
        let rseq = rseq_of(&task, memory)?;
        let mut thread = StoppedThread {
            task,
            regs,
            rseq,
            before_stop,
        };
        thread.reissue_what_only_we_interrupted()?;
        Ok(thread)
    }

    /// Reads again what a signal handler's start changes.
    pub(super) fn refresh(&mut self, memory: &ProcessMemory) -> Result<()> {
        self.regs = self.task.regs()?;
        self.rseq = rseq_of(&self.task, memory)?;
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
        self.peek_signals(libc::PTRACE_PEEKSIGINFO_SHARED)
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

    /// The rseq(2) registration, and the critical section the thread is in. None where there is no registration.
    pub fn rseq(&self) -> Option<&Rseq> {
        self.rseq.as_ref()
    }

    /// Whether system calls of the thread may be sent to the thread itself (prctl(2), PR_SET_SYSCALL_USER_DISPATCH). Before Linux 6.4
    /// ptrace does not tell.
    pub fn dispatches_system_calls(&self) -> Result<bool> {
        const PTRACE_GET_SYSCALL_USER_DISPATCH_CONFIG: u32 = 0x4211;
        let name = "PTRACE_GET_SYSCALL_USER_DISPATCH_CONFIG";
        let mut configuration = [0u64; 4]; // mode, selector, offset, len
        let (size, to) = (size_of_val(&configuration), configuration.as_mut_ptr() as usize);
        match self
            .task
            .request(PTRACE_GET_SYSCALL_USER_DISPATCH_CONFIG, name, size, to)
        {
            Err(error) if error.errno() == Some(nix::Error::EIO) => Ok(false),
            other => other.map(|_| configuration[0] != 0),
        }
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
            .rseq
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
        match self.rseq {
            Some(rseq) if rseq.critical_section != 0 => {
                memory.write_at(rseq.addr + RSEQ_CS_AT, &rseq.critical_section.to_ne_bytes())
            }
            _ => Ok(()),
        }
    }
}

/// Offset of rseq_cs in struct rseq (include/uapi/linux/rseq.h).
const RSEQ_CS_AT: u64 = 8;

/// struct ptrace_rseq_configuration (include/uapi/linux/ptrace.h).
#[repr(C)]
#[derive(Default)]
struct RseqConfiguration {
    pointer: u64,
    size: u32,
    signature: u32,
    flags: u32,
    pad: u32,
}
const _: () = assert!(size_of::<RseqConfiguration>() == 24);

/// PTRACE_GET_RSEQ_CONFIGURATION, since Linux 5.13; a kernel without it answers EIO, and then nothing is known of a registration.
fn rseq_of(task: &Stopped, memory: &ProcessMemory) -> Result<Option<Rseq>> {
    const PTRACE_GET_RSEQ_CONFIGURATION: u32 = 0x420f;
    let mut conf = RseqConfiguration::default();
    let (size, to) = (size_of::<RseqConfiguration>(), (&raw mut conf) as usize);
    match task.request(PTRACE_GET_RSEQ_CONFIGURATION, "PTRACE_GET_RSEQ_CONFIGURATION", size, to) {
        Ok(_) if conf.pointer == 0 => return Ok(None),
        Ok(_) => {}
        Err(error) if error.errno() == Some(nix::Error::EIO) => return Ok(None),
        Err(error) => return Err(error),
    }
    let critical_section = memory
        .read_u64(conf.pointer + RSEQ_CS_AT)
        .map_err(|error| Error::memory(task.tid(), "its struct rseq", &error))?;
    Ok(Some(Rseq {
        addr: conf.pointer,
        size: conf.size,
        flags: conf.flags,
        signature: conf.signature,
        critical_section,
    }))
}

impl BeforeStop {
    /// Both files need the rights that PTRACE_SEIZE needs; a kernel without one of them leaves it unknown.
    pub(super) fn read(proc: &ProcDir, tid: Pid) -> Self {
        let sched = proc.read_text(&format!("task/{tid}/sched")).unwrap_or_default();
        BeforeStop {
            wchan: proc.read_text(&format!("task/{tid}/wchan")).unwrap_or_default(),
            exec_start_ns: exec_start(&sched),
            voluntary_switches: field(&sched, "nr_voluntary_switches").and_then(|count| count.parse().ok()),
        }
    }
}

/// The scheduler's clock now: our own se.exec_start, right after we were put on the CPU.
pub(super) fn sched_clock() -> Option<u64> {
    std::thread::yield_now();
    exec_start(&std::fs::read_to_string("/proc/thread-self/sched").ok()?)
}

/// `se.exec_start : 1378367.670365`, in milliseconds with six decimals (proc_sched_show_task(), kernel/sched/debug.c).
fn exec_start(sched: &str) -> Option<u64> {
    let (whole, decimals) = field(sched, "se.exec_start")?.split_once('.')?;
    Some(whole.parse::<u64>().ok()? * 1_000_000 + decimals.parse::<u64>().ok()?)
}

fn field<'a>(sched: &'a str, name: &str) -> Option<&'a str> {
    let line = sched.lines().find(|line| line.starts_with(name))?;
    Some(line.split_once(':')?.1.trim())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exec_start_is_in_nanoseconds() {
        // Linux 6.18.
        let sched =
            "cat (9277, #threads: 1)\n----\nse.exec_start                                :       1378367.670365\n";
        assert_eq!(exec_start(sched), Some(1_378_367_670_365));
    }
}
