//! A copy-on-write copy of a stopped process, made so that its memory can be read while the process itself runs on.
//!
//! The process is made to clone(2) it. It never runs a step of the program: it stays stopped, and ends with whoever traces it
//! (PTRACE_O_EXITKILL), that is, with us. Its exit signal is a number that no signal has, so that its end sends nothing, and so that
//! neither wait(2) nor waitpid(-1) of the process sees it (without __WALL). The process is made to reap it at last.

use std::io::{self, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::time::{Duration, Instant};

use nix::fcntl::OFlag;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::loan::Loan;
use super::proc::ProcDir;
use super::process::StoppedProcess;
use super::seize::seize_leader;
use super::{Error, ProcessMemory, Result, Resume, Running, Stop, Stopped, Waited, wait_for};
use crate::arch::{CALL_AT, SLOT_LEN};

/// A process that is a copy of another's memory and of nothing else. While you hold one, it is stopped.
#[derive(Debug)]
pub struct MemoryCopy {
    task: Stopped,
    proc: ProcDir,
    memory: ProcessMemory,
    original: Original,
    /// Where in it a system call instruction is.
    slot: u64,
    ended: bool,
}

/// Whose copy it is.
#[derive(Debug)]
struct Original {
    pid: Pid,
    proc: ProcDir,
    /// What the copy is called in its pid namespace.
    number: i64,
}

/// What became of the attempt to copy a process.
#[derive(Debug)]
pub enum Copied {
    Whole(MemoryCopy),
    /// A signal came meanwhile, so that the process has changed since: look at it anew.
    Stale,
    /// The reason, a clause.
    Impossible(String),
}

/// No signal has it, and no program asks for it: do_notify_parent(), kernel/signal.c, sends valid signals only.
pub(super) const EXIT_SIGNAL: i32 = 200;
/// What the process and its copy, which inherits its filters of seccomp(2), are made to call.
const CALLS: [(&str, i64); 6] = [
    ("clone", libc::SYS_clone),
    ("wait4", libc::SYS_wait4),
    ("close_range", libc::SYS_close_range),
    ("munmap", libc::SYS_munmap),
    ("setsid", libc::SYS_setsid),
    ("prctl", libc::SYS_prctl),
];
/// No call that a copy is made to run takes that long.
const PATIENCE: Duration = Duration::from_secs(30);
/// Shown by ps(1) as long as there is one. At most 15 bytes (PR_SET_NAME(2const)).
const NAME: &[u8; 13] = b"cryopod-copy\0";

impl StoppedProcess {
    /// Copies the process as it is now; `unmap` are areas of it that the copy must not hold on to.
    pub fn copy_memory(&mut self, unmap: &[(u64, u64)]) -> Result<Copied> {
        let mut loan = Loan::begin_bare(self, 0)?;
        if let Some(name) = loan.forbidden_of(&CALLS) {
            return forbidden(loan, name);
        }
        let slot = loan.slot();
        // One table of descriptors for the moment, or pipes and locks would be open twice until the copy has closed its own.
        let (number, born) = match loan.clone_child((libc::CLONE_FILES | EXIT_SIGNAL) as u64) {
            Err(Error::Forbidden { .. }) => return forbidden(loan, "clone"),
            result => result?,
        };
        let before = loan.signals();
        let Some(child) = born.filter(|_| number > 0) else {
            loan.end()?;
            return Ok(Copied::Impossible(why_not(nix::Error::from_raw(-number as i32))));
        };
        let tied = tie(child);
        let signals = loan.end_counting()? - before;
        let copy = tied.and_then(|task| self.hold(task, number, slot));
        let mut copy = copy.inspect_err(|_| self.forget(child, number))?;
        let ready = copy.strip(unmap).and_then(|()| {
            let rseq = self.threads[0].restore_rseq(&copy.memory);
            rseq.map_err(|error| Error::memory(child, "its struct rseq", &error))
        });
        match ready {
            Ok(()) if signals == 0 => return Ok(Copied::Whole(copy)),
            _ => self.end_copy(copy)?,
        }
        match ready {
            Ok(()) => Ok(Copied::Stale),
            Err(Error::Call { errno, .. }) => Ok(Copied::Impossible(why_not(errno))),
            Err(Error::Gone(_)) => Ok(Copied::Impossible("it was killed at once".into())),
            Err(error) => Err(error),
        }
    }

    /// Ends a copy while its original is stopped.
    pub fn end_copy(&mut self, mut copy: MemoryCopy) -> Result<()> {
        copy.kill()?;
        self.reap(copy.original.number)
    }

    /// Reaps the copies of freezers that were killed, which the process would keep as zombies.
    pub fn reap_dead_copies(&mut self) -> Result<()> {
        // The first thread made each.
        for child in self.children_of_leader().unwrap_or_default() {
            let proc = ProcDir::open(child);
            if let Some(number) = proc.ok().and_then(|proc| dead_copy(&proc)) {
                self.reap(number)?;
            }
        }
        Ok(())
    }

    fn hold(&self, task: Stopped, number: i64, slot: u64) -> Result<MemoryCopy> {
        let pid = task.tid();
        let look = || -> io::Result<(ProcDir, ProcessMemory, ProcDir)> {
            let proc = ProcDir::open(pid)?;
            let memory = ProcessMemory::open(&proc)?;
            Ok((proc, memory, self.proc.try_clone()?))
        };
        let (proc, memory, original) = look().map_err(|error| Error::memory(pid, "the copy", &error))?;
        Ok(MemoryCopy {
            task,
            proc,
            memory,
            original: Original {
                pid: self.pid,
                proc: original,
                number,
            },
            slot,
            ended: false,
        })
    }

    /// Ends a copy that never became one. Whoever calls this has an error to report already.
    fn forget(&mut self, child: Pid, number: i64) {
        let _reported_already = end(child).and_then(|()| self.reap(number));
    }

    /// wait4(2) for a child that has ended, in the process. It has gone already where the process itself waited for all there is.
    fn reap(&mut self, number: i64) -> Result<()> {
        let mut loan = Loan::begin_bare(self, 0)?;
        let options = (libc::__WALL | libc::WNOHANG) as u64;
        let reaped = loan.call(libc::SYS_wait4 as u64, [number as u64, 0, options, 0, 0, 0])?;
        let tid = loan.tid();
        loan.end()?;
        match reaped {
            0 => Err(Error::Unexpected {
                tid,
                what: format!("cannot reap its copy {number}, which has not ended"),
            }),
            _reaped_or_gone => Ok(()),
        }
    }
}

impl MemoryCopy {
    pub fn memory(&self) -> &ProcessMemory {
        &self.memory
    }

    /// /proc/PID of the copy.
    pub fn proc(&self) -> BorrowedFd<'_> {
        self.proc.as_fd()
    }

    /// Whether it is still there: the kernel or a person may have killed it.
    pub fn is_alive(&self) -> bool {
        self.proc.stat().is_ok_and(|stat| !stat.is_dead())
    }

    /// Leaves the group and the session of the original, whose signals are not for it, unmaps areas, and shows what it is.
    pub fn step_aside(&mut self, unmap: &[(u64, u64)]) -> Result<()> {
        self.unmap(unmap)?;
        self.call("setsid", libc::SYS_setsid, [0; 6])?;
        // The call's own instruction is all that is needed of the slot.
        let name = self.slot + SLOT_LEN as u64 / 2;
        self.write(name, NAME)?;
        let args = [libc::PR_SET_NAME as u64, name, 0, 0, 0, 0];
        self.call("PR_SET_NAME", libc::SYS_prctl, args)?;
        self.write(self.slot, &[0; SLOT_LEN])
    }

    /// Ends the copy after its original went on, whose first thread is stopped for one call to reap it. The inner error says why a
    /// zombie stays, which the next freeze reaps.
    pub fn end(mut self) -> Result<std::result::Result<(), String>> {
        self.kill()?;
        let reaped = self.original.reap();
        let pid = self.task.tid();
        Ok(reaped.map_err(|error| format!("process {pid}, a copy of it, stays as a zombie: {error:#}")))
    }

    /// Lets go of all that is not memory of its own: descriptors, shared areas, the place in the queue of the out-of-memory killer.
    fn strip(&mut self, unmap: &[(u64, u64)]) -> Result<()> {
        self.task.set_sigmask(u64::MAX)?;
        let all = [0, u64::from(u32::MAX), u64::from(libc::CLOSE_RANGE_UNSHARE), 0, 0, 0];
        self.call("close_range", libc::SYS_close_range, all)?;
        self.unmap(unmap)?;
        // Should memory run out, the copy is what must go. Raising the value needs no privilege (proc_pid_oom_score_adj(5)).
        let first_to_go = |mut file: std::fs::File| file.write_all(b"1000");
        let opened = self.proc.open_file("oom_score_adj", OFlag::O_WRONLY);
        opened
            .and_then(first_to_go)
            .map_err(|error| Error::memory(self.task.tid(), "oom_score_adj of the copy", &error))
    }

    fn unmap(&mut self, areas: &[(u64, u64)]) -> Result<()> {
        for &(start, end) in areas {
            self.call("munmap", libc::SYS_munmap, [start, end - start, 0, 0, 0, 0])?;
        }
        Ok(())
    }

    /// Runs a system call in the copy. It has no way home: it needs none, since it ends if we do.
    fn call(&mut self, name: &'static str, number: i64, args: [u64; 6]) -> Result<i64> {
        let mut regs = self.task.regs()?;
        regs.set_pc(self.slot + CALL_AT);
        regs.set_call(number as u64, args);
        self.task.set_regs(&regs)?;
        for _entry_then_exit in 0..2 {
            // Signals are blocked, but SIGSTOP to the group of the original may come: it is not for the copy.
            while self.run_on()? != Stop::Syscall {}
        }
        match self.task.regs()?.result() {
            error @ -4095..=-1 => Err(Error::Call {
                tid: self.task.tid(),
                name,
                errno: nix::Error::from_raw(-error as i32),
            }),
            result => Ok(result),
        }
    }

    fn run_on(&mut self) -> Result<Stop> {
        self.task.resume(Resume::ToSyscall, 0)?;
        let stop = self.task.wait_until(Instant::now() + PATIENCE)?;
        stop.ok_or_else(|| Error::Unexpected {
            tid: self.task.tid(),
            what: format!(
                "a copy does not run a call: is its control group frozen? It {}",
                whereabouts(self.task.tid())
            ),
        })
    }

    fn write(&self, addr: u64, bytes: &[u8]) -> Result<()> {
        let written = self.memory.write_at(addr, bytes);
        written.map_err(|error| Error::memory(self.task.tid(), "the copy", &error))
    }

    fn kill(&mut self) -> Result<()> {
        end(self.task.tid())?;
        self.ended = true;
        Ok(())
    }
}

impl Drop for MemoryCopy {
    /// Never merely detached: it would run.
    fn drop(&mut self) {
        if !self.ended {
            // Whoever drops a copy has an error of its own to report, and ends soon: then the kernel ends the copy.
            let _reported_already = self.kill();
        }
    }
}

impl Original {
    /// Makes it reap its copy, unless it has ended, too: then the copy is somebody else's to reap.
    fn reap(&self) -> anyhow::Result<()> {
        if self.proc.stat().map_or(true, |stat| stat.is_dead()) {
            return Ok(());
        }
        let mut process = seize_leader(self.pid, self.proc.try_clone()?)?;
        let reaped = process.reap(self.number);
        process.resume()?;
        Ok(reaped?)
    }
}

fn forbidden(loan: Loan<'_>, name: &str) -> Result<Copied> {
    loan.end()?;
    Ok(Copied::Impossible(format!("its seccomp filter forbids {name}")))
}

/// From here on the copy ends with us. Until then it would end by itself, had it no tracer.
fn tie(child: Pid) -> Result<Stopped> {
    let mut task = Running::born_traced(child).wait()?;
    task.set_options(libc::PTRACE_O_TRACESYSGOOD | libc::PTRACE_O_EXITKILL)?;
    Ok(task)
}

fn why_not(errno: nix::Error) -> String {
    match errno {
        nix::Error::EAGAIN => "it may have no more processes (RLIMIT_NPROC, or pids.max of its control group)".into(),
        nix::Error::ENOMEM => "there is no memory for a copy (vm.overcommit_memory, or its control group)".into(),
        errno => format!("the kernel made no copy: {}", errno.desc()),
    }
}

/// Ends a task that we trace, and takes note of it as its tracer.
fn end(pid: Pid) -> Result<()> {
    match kill(pid, Signal::SIGKILL) {
        Ok(()) | Err(nix::Error::ESRCH) => {}
        Err(errno) => {
            return Err(Error::Call {
                tid: pid,
                name: "kill",
                errno,
            });
        }
    }
    loop {
        match wait_for(pid) {
            Ok(Waited::Stopped(_)) => {}
            Ok(Waited::Exited(_) | Waited::Killed(_)) | Err(Error::Gone(_)) => return Ok(()),
            Err(error) => return Err(error),
        }
    }
}

/// The number of a copy that has ended, in the pid namespace it is of. None where it is another child, or alive.
fn dead_copy(proc: &ProcDir) -> Option<i64> {
    let stat = proc.stat().ok()?;
    let marked = stat.state == 'Z' && stat.exit_signal == EXIT_SIGNAL;
    let status = super::proc::Status(proc.read("status").ok()?);
    let number = || status.field("NSpid")?.split_whitespace().last()?.parse().ok();
    marked.then(number).flatten()
}

/// What a task does instead of going on, as /proc shows it; the stack to root only (proc_pid_stack(5)).
fn whereabouts(tid: Pid) -> String {
    let line = |name: &str| {
        std::fs::read_to_string(format!("/proc/{tid}/{name}")).unwrap_or_else(|error| format!("({error})"))
    };
    let status = line("status");
    let state = status
        .lines()
        .find(|line| line.starts_with("State:"))
        .unwrap_or("has no state");
    let stack: Vec<String> = line("stack").lines().map(str::trim).map(str::to_owned).collect();
    format!("is in {state}, waits in {}, stack {}", line("wchan"), stack.join(" < "))
}
