//! One task under ptrace, with its state as a type.

use std::ffi::c_void;
use std::time::Instant;

use nix::errno::Errno;
use nix::unistd::Pid;

use super::release::reap;
use super::wait::wait_until;
use super::{Error, Result, Stop, Waited, wait_for};
use crate::arch::{self, Registers};

/// Options for tasks of a target: whoever is born meanwhile is ours too. No EXITKILL: a target survives its freezer.
pub fn seize_options() -> i32 {
    libc::PTRACE_O_TRACESYSGOOD
        | libc::PTRACE_O_TRACEFORK
        | libc::PTRACE_O_TRACEVFORK
        | libc::PTRACE_O_TRACECLONE
        | libc::PTRACE_O_TRACEEXEC
}

/// A task that we trace and that may be running.
#[derive(Debug)]
pub struct Running(Pid);

/// A task in ptrace-stop. While you hold one, the task cannot run, and its memory and registers are yours to read.
///
/// Dropping it detaches the task, which then goes on with the registers it has.
#[derive(Debug)]
pub struct Stopped {
    tid: Pid,
    stop: Stop,
    attached: bool,
}

impl Running {
    /// PTRACE_SEIZE: the task notices nothing.
    pub fn seize(tid: Pid, options: i32) -> Result<Self> {
        request(libc::PTRACE_SEIZE, "PTRACE_SEIZE", tid, 0, options as usize)?;
        Ok(Running(tid))
    }

    /// A task that is traced already: it was born with CLONE_PTRACE, or its parent with PTRACE_O_TRACECLONE.
    pub fn born_traced(tid: Pid) -> Self {
        Running(tid)
    }

    pub fn tid(&self) -> Pid {
        self.0
    }

    /// PTRACE_INTERRUPT, without waiting: interrupt all, then wait for all, since one by one is far slower.
    pub fn interrupt(&self) -> Result<()> {
        request(libc::PTRACE_INTERRUPT, "PTRACE_INTERRUPT", self.0, 0, 0).map(drop)
    }

    /// Waits for the next stop, whatever it is.
    pub fn wait(self) -> Result<Stopped> {
        match wait_for(self.0)? {
            Waited::Stopped(stop) => Ok(Stopped {
                tid: self.0,
                stop,
                attached: true,
            }),
            Waited::Exited(_) | Waited::Killed(_) => Err(Error::Gone(self.0)),
        }
    }

    /// Waits for the next stop until `deadline`; the inner error is the task, still running.
    pub fn wait_until(self, deadline: Instant) -> Result<std::result::Result<Stopped, Running>> {
        match wait_until(self.0, deadline)? {
            Some(Waited::Stopped(stop)) => Ok(Ok(Stopped {
                tid: self.0,
                stop,
                attached: true,
            })),
            Some(Waited::Exited(_) | Waited::Killed(_)) => Err(Error::Gone(self.0)),
            None => Ok(Err(self)),
        }
    }
}

impl Stopped {
    pub fn tid(&self) -> Pid {
        self.tid
    }

    /// Why it stopped.
    pub fn stop(&self) -> Stop {
        self.stop
    }

    /// Resumes by PTRACE_CONT, PTRACE_SYSCALL or PTRACE_SINGLESTEP (`how`), with `signal` (0: none), and waits for the next stop.
    pub fn resume_and_wait(&mut self, how: Resume, signal: i32) -> Result<Stop> {
        self.resume(how, signal)?;
        self.wait()
    }

    /// Resumes without waiting. Only [`wait`](Self::wait) and [`interrupt`](Self::interrupt) make sense next.
    pub fn resume(&mut self, how: Resume, signal: i32) -> Result<()> {
        let (number, name) = match how {
            Resume::Continue => (libc::PTRACE_CONT, "PTRACE_CONT"),
            Resume::ToSyscall => (libc::PTRACE_SYSCALL, "PTRACE_SYSCALL"),
            Resume::Step => (libc::PTRACE_SINGLESTEP, "PTRACE_SINGLESTEP"),
        };
        request(number, name, self.tid, 0, signal as usize).map(drop)
    }

    pub fn interrupt(&self) -> Result<()> {
        request(libc::PTRACE_INTERRUPT, "PTRACE_INTERRUPT", self.tid, 0, 0).map(drop)
    }

    /// After [`resume`](Self::resume): the task runs, or is about to stop again.
    pub fn into_running(mut self) -> Running {
        self.attached = false;
        Running(self.tid)
    }

    /// Waits for the next stop after [`resume`](Self::resume).
    pub fn wait(&mut self) -> Result<Stop> {
        let waited = wait_for(self.tid)?;
        self.note(waited)
    }

    /// As [`wait`](Self::wait), until `deadline`: None where the task still runs.
    pub fn wait_until(&mut self, deadline: Instant) -> Result<Option<Stop>> {
        match wait_until(self.tid, deadline)? {
            Some(waited) => self.note(waited).map(Some),
            None => Ok(None),
        }
    }

    fn note(&mut self, waited: Waited) -> Result<Stop> {
        match waited {
            Waited::Stopped(stop) => {
                self.stop = stop;
                Ok(stop)
            }
            Waited::Exited(_) | Waited::Killed(_) => {
                self.attached = false;
                Err(Error::Gone(self.tid))
            }
        }
    }

    pub fn regs(&self) -> Result<Registers> {
        let bytes = self.regset(libc::NT_PRSTATUS as u32)?;
        Registers::from_bytes(&bytes).ok_or_else(|| Error::Unexpected {
            tid: self.tid,
            what: format!(
                "NT_PRSTATUS has {} bytes: a program of another architecture",
                bytes.len()
            ),
        })
    }

    pub fn set_regs(&mut self, regs: &Registers) -> Result<()> {
        self.set_regset(libc::NT_PRSTATUS as u32, regs.as_bytes())?;
        match (arch::FORGET_SYSCALL, self.stop) {
            (Some(note), Stop::Syscall) => self.set_regset(note, &(-1i32).to_ne_bytes()),
            _ => Ok(()),
        }
    }

    /// PTRACE_GETREGSET of an ELF note type.
    pub fn regset(&self, note: u32) -> Result<Vec<u8>> {
        // The largest is the extended state of x86 with AMX, 11 KiB.
        let mut buffer = vec![0u8; 16 << 10];
        let mut iov = libc::iovec {
            iov_base: buffer.as_mut_ptr().cast(),
            iov_len: buffer.len(),
        };
        let name = "PTRACE_GETREGSET";
        request(
            libc::PTRACE_GETREGSET,
            name,
            self.tid,
            note as usize,
            (&raw mut iov) as usize,
        )?;
        buffer.truncate(iov.iov_len);
        Ok(buffer)
    }

    pub fn set_regset(&mut self, note: u32, data: &[u8]) -> Result<()> {
        let mut iov = libc::iovec {
            iov_base: data.as_ptr().cast_mut().cast(),
            iov_len: data.len(),
        };
        let name = "PTRACE_SETREGSET";
        request(
            libc::PTRACE_SETREGSET,
            name,
            self.tid,
            note as usize,
            (&raw mut iov) as usize,
        )
        .map(drop)
    }

    /// The signal mask; inside sigsuspend, ppoll and their like the one that will be restored (PTRACE_GETSIGMASK).
    pub fn sigmask(&self) -> Result<u64> {
        let mut mask = 0u64;
        request(
            libc::PTRACE_GETSIGMASK,
            "PTRACE_GETSIGMASK",
            self.tid,
            8,
            (&raw mut mask) as usize,
        )?;
        Ok(mask)
    }

    pub fn set_sigmask(&mut self, mask: u64) -> Result<()> {
        request(
            libc::PTRACE_SETSIGMASK,
            "PTRACE_SETSIGMASK",
            self.tid,
            8,
            (&raw const mask) as usize,
        )
        .map(drop)
    }

    pub fn set_options(&mut self, options: i32) -> Result<()> {
        request(
            libc::PTRACE_SETOPTIONS,
            "PTRACE_SETOPTIONS",
            self.tid,
            0,
            options as usize,
        )
        .map(drop)
    }

    /// PTRACE_GETEVENTMSG: the new task's id after a fork, vfork or clone event.
    pub fn event_message(&self) -> Result<u64> {
        let mut message = 0u64;
        request(
            libc::PTRACE_GETEVENTMSG,
            "PTRACE_GETEVENTMSG",
            self.tid,
            0,
            (&raw mut message) as usize,
        )?;
        Ok(message)
    }

    /// Whether the signal that it is about to get comes from a process, and not from the kernel (PTRACE_GETSIGINFO).
    pub fn is_signalled_by_process(&self) -> Result<bool> {
        // SAFETY: siginfo_t is plain data, for which zeros are a value.
        let mut info: libc::siginfo_t = unsafe { std::mem::zeroed() };
        let name = "PTRACE_GETSIGINFO";
        request(libc::PTRACE_GETSIGINFO, name, self.tid, 0, (&raw mut info) as usize)?;
        // A step over a system call looks as if process 0 had sent it, on some architectures (user_single_step_report(), linux/ptrace.h).
        // SAFETY: with this code the kernel has set the sender.
        let by_kill = info.si_code == libc::SI_USER && unsafe { info.si_pid() } != 0;
        Ok(info.si_code < 0 || by_kill)
    }

    /// The task that this one has just made, where that is why it stopped (PTRACE_O_TRACEFORK, TRACEVFORK, TRACECLONE).
    pub fn newborn(&self) -> Result<Option<Pid>> {
        match self.stop {
            Stop::Event(libc::PTRACE_EVENT_FORK | libc::PTRACE_EVENT_VFORK | libc::PTRACE_EVENT_CLONE) => {
                Ok(Some(Pid::from_raw(self.event_message()? as i32)))
            }
            _ => Ok(None),
        }
    }

    /// An untyped request, for the few that have no wrapper here. `data` must be what the request wants (ptrace(2)).
    pub(crate) fn request(&self, number: u32, name: &'static str, addr: usize, data: usize) -> Result<i64> {
        request(number, name, self.tid, addr, data)
    }

    /// Lets the task go on by itself, with `signal` (0: none).
    pub fn detach(mut self, signal: i32) -> Result<()> {
        self.attached = false;
        request(libc::PTRACE_DETACH, "PTRACE_DETACH", self.tid, 0, signal as usize).map(drop)
    }

    /// Detaches a thread that is not the first of its process. One that has ended meanwhile is waited for, as its tracer must: until
    /// then the kernel tells nobody of the end of the process (delay_group_leader(), kernel/exit.c).
    pub fn detach_or_reap(self) -> Result<()> {
        let tid = self.tid;
        match self.detach(0) {
            Err(Error::Gone(_)) => reap(tid, false),
            other => other,
        }
    }
}

impl Drop for Stopped {
    fn drop(&mut self) {
        if self.attached {
            // The one failure is that the task is gone, and then there is nothing to detach.
            let _gone = request(libc::PTRACE_DETACH, "PTRACE_DETACH", self.tid, 0, 0);
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Resume {
    Continue,
    ToSyscall,
    /// For one instruction. Its trap resets what the program has set for SIGTRAP where it blocks or ignores that
    /// (force_sig_info_to_task(), kernel/signal.c).
    Step,
}

#[allow(clippy::cast_lossless)]
fn request(number: u32, name: &'static str, tid: Pid, addr: usize, data: usize) -> Result<i64> {
    Errno::clear();
    // SAFETY: every caller above passes for `data` what ptrace(2) asks of `number`: a value or a pointer to live memory.
    let rc = unsafe { libc::ptrace(number, tid.as_raw(), addr as *mut c_void, data as *mut c_void) };
    Errno::result(rc).map_err(|errno| Error::request(tid, name, errno))
}
