//! What each thread has of its own: registers, signals, credentials, the call it was caught in.

use anyhow::{Context, Result};

use super::asked::ThreadAnswers;
use super::control_groups::control_groups;
use super::facts::ThreadFacts;
use super::in_vdso;
use super::labels;
use super::proc::ProcDir;
use super::process;
use super::scheduling;
use super::status::Status;
use super::surroundings::{Namespaces, foreign_namespaces};
use super::task_flags::TaskFlags;
use super::waits;
use crate::arch::Interrupted;
use crate::image::state::{ControlGroup, Dispatch, Filter, ThreadSettings};
use crate::image::state::{Credentials, RegSet, SigAltStack, Thread, TimedWait};
use crate::sys::process::{self as sys, Shared};
use crate::tracer::{self, ProcessMemory, StoppedProcess, StoppedThread};

/// What seccomp(2) lets a thread do.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum Sandbox {
    #[default]
    None,
    /// The oldest filter first.
    Filtered { filters: Vec<Filter>, has_supervisor: bool },
    /// SECCOMP_MODE_STRICT: nothing but read, write and exit.
    Strict,
    /// Filters that nobody could read, and why.
    Unreadable(String),
}

impl Sandbox {
    fn of(thread: &mut StoppedThread, status: &Status) -> Result<Self> {
        match status.seccomp {
            0 => return Ok(Sandbox::None),
            1 => return Ok(Sandbox::Strict),
            _ => {}
        }
        let filters = match thread.read_filters() {
            Ok(filters) => filters,
            Err(error) => return Ok(Sandbox::Unreadable(why_unreadable(error)?)),
        };
        Ok(Sandbox::Filtered {
            filters: filters.for_image().cloned().collect(),
            has_supervisor: filters.has_supervisor(),
        })
    }

    /// Whether it is known which calls the thread may make.
    fn is_known(&self) -> bool {
        matches!(self, Sandbox::None | Sandbox::Filtered { .. })
    }
}

fn why_unreadable(error: tracer::Error) -> Result<String> {
    Ok(match error.errno() {
        Some(nix::Error::EACCES) => "cryopod has no CAP_SYS_ADMIN, or is under a filter itself".into(),
        Some(nix::Error::EMEDIUMTYPE) => "one of them is no classic BPF".into(),
        Some(nix::Error::EINVAL | nix::Error::EIO) => "this kernel has no CONFIG_CHECKPOINT_RESTORE".into(),
        _ => return Err(error.into()),
    })
}

/// What stands against asking a thread: a call that a filter forbids would kill it, one in 32-bit code would be another call.
#[derive(Debug)]
pub struct Restrictions {
    pub status: Status,
    pub is_native: bool,
    pub dispatch: Option<Dispatch>,
    pub sandbox: Sandbox,
    /// Its dispatch is on, and the byte that switches it says that calls come back to it as signals.
    pub is_blocking: bool,
}

impl Restrictions {
    /// Of the thread `index`.
    pub fn of(process: &mut StoppedProcess, index: usize) -> Result<Self> {
        let thread = &process.threads()[index];
        let dispatch = thread.dispatch()?;
        let memory = process.memory();
        let known = Restrictions {
            sandbox: Sandbox::default(),
            status: Status::parse(thread.status()).context("status")?,
            is_native: thread.regs().is_native(),
            is_blocking: dispatch.is_some_and(|dispatch| is_blocking(dispatch, memory)),
            dispatch,
        };
        Ok(Restrictions {
            sandbox: Sandbox::of(process.thread_mut(index), &known.status)?,
            ..known
        })
    }

    pub fn may_be_asked(&self) -> bool {
        self.is_native && self.sandbox.is_known() && !self.is_blocking
    }
}

/// A byte that cannot be read is one that the kernel cannot read either (syscall_user_dispatch(), kernel/entry/syscall_user_dispatch.c).
fn is_blocking(dispatch: Dispatch, memory: &ProcessMemory) -> bool {
    const SYSCALL_DISPATCH_FILTER_ALLOW: u8 = 0;
    let mut switch = [0];
    let read = memory.read_at(dispatch.selector, &mut switch);
    dispatch.selector == 0 || read.is_err() || switch != [SYSCALL_DISPATCH_FILTER_ALLOW]
}

/// What all threads of one process are looked at with.
pub struct Look<'a> {
    pub dir: &'a ProcDir,
    pub process: &'a StoppedProcess,
    /// Of the first thread.
    pub control_groups: Vec<ControlGroup>,
    pub security_label: Vec<u8>,
    /// Logging in is done before there are threads (pam_loginuid(8)).
    pub login_uid: u32,
    pub namespaces: &'a Namespaces,
    /// Of all threads (sigaltstack(2)).
    pub handler_stacks: Vec<SigAltStack>,
}

impl Look<'_> {
    pub fn thread(&self, stopped: &StoppedThread, known: Restrictions, answers: ThreadAnswers) -> Result<ThreadFacts> {
        let Restrictions {
            status,
            is_native,
            dispatch,
            sandbox,
            is_blocking,
        } = known;
        let tid = stopped.tid().as_raw();
        let dir = self.dir.thread(tid)?;
        let flags = TaskFlags::of(&dir)?;
        let (regsets, timed_wait) = self.untangle(stopped)?;
        let thread = Thread {
            tid,
            name: name(&dir)?,
            regsets,
            sigmask: stopped.sigmask()?,
            pending: stopped.pending()?,
            sigaltstack: answers.sigaltstack,
            robust_list: stopped.robust_list()?,
            clear_child_tid: answers.clear_child_tid,
            rseq: stopped.rseq().copied().or(answers.rseq),
            pdeath_signal: answers.pdeath_signal,
            credentials: Credentials {
                securebits: answers.securebits,
                ..status.credentials.clone()
            },
            scheduling: scheduling::scheduling(tid, answers.timer_slack_ns).context("scheduling")?,
            settings: ThreadSettings {
                personality: process::hex(&dir, "personality")?,
                tsc: answers.tsc,
                cpuid_faults: answers.cpuid_faults,
                mce_kill: flags.mce_kill(),
                io_flusher: flags.io_flusher(),
                speculation: answers.speculation,
                memory_policy: answers.memory_policy,
                dispatch,
                filters: Vec::new(),
                control_groups: self.own_control_groups(tid, &dir)?,
                // Where the first has none there is no security module that gives any.
                security_label: match self.security_label.is_empty() {
                    true => Vec::new(),
                    false => labels::security_label(&dir)?,
                },
                login_uid: self.login_uid,
            },
            timed_wait,
            in_vdso: in_vdso::is_in_vdso(self.process, stopped.regs(), answers.sigaltstack, &self.handler_stacks),
        };
        let leader = self.process.pid().as_raw();
        // Not where the kernel cannot tell.
        let shares_directories = tid != leader && sys::share(leader, tid, Shared::FileSystem) == Ok(true);
        let foreign_namespaces = foreign_namespaces(&dir, self.namespaces, shares_directories)?;
        Ok(ThreadFacts {
            thread,
            status,
            is_native,
            foreign_namespaces,
            unshared: self.unshared(tid)?,
            is_blocking,
            sandbox,
            not_carried: stopped.not_carried()?,
        })
    }

    /// The call that the thread was caught in, with the registers as they should be after a thaw: the restart block dies with the
    /// thread, so restart_syscall(2) becomes the call it stood for again, and one that waits for no time is plainly issued again.
    fn untangle(&self, stopped: &StoppedThread) -> Result<(Vec<RegSet>, Option<TimedWait>)> {
        let mut regsets = stopped.regsets()?;
        let mut regs = *stopped.regs();
        let caught = waits::caught_in(stopped, self.process.memory());
        if let Some(caught) = &caught {
            regs.set_syscall_number(caught.number);
        }
        let timed = caught.and_then(|caught| caught.timed);
        if timed.is_none() && regs.interrupted() == Some(Interrupted::RestartBlock) {
            regs.reissue();
        }
        regsets[0].data = regs.as_bytes().to_vec();
        Ok((regsets, timed))
    }

    /// Threads usually are in the groups of the first.
    fn own_control_groups(&self, tid: i32, dir: &ProcDir) -> Result<Vec<ControlGroup>> {
        let mut groups = control_groups(dir)?;
        if tid != self.process.pid().as_raw() {
            groups.retain(|group| !self.control_groups.contains(group));
        }
        Ok(groups)
    }

    /// What the thread does not share with the leader, though threads usually do (clone(2)). Without kcmp(2) in the kernel nobody can
    /// tell, and hardly any program does it.
    fn unshared(&self, tid: i32) -> Result<Vec<&'static str>> {
        let all = [
            (Shared::Descriptors, "its table of descriptors"),
            (Shared::FileSystem, "its working directory, root and umask"),
            (Shared::SemaphoreUndo, "its System V semaphore adjustments"),
        ];
        let leader = self.process.pid().as_raw();
        let mut own = Vec::new();
        for (what, name) in all {
            match sys::share(leader, tid, what) {
                Ok(true) | Err(nix::Error::ENOSYS | nix::Error::EOPNOTSUPP) => {}
                Ok(false) => own.push(name),
                Err(errno) => return Err(errno).context("kcmp"),
            }
        }
        Ok(own)
    }
}

/// /proc/PID/task/TID/comm, without the line break that ends it.
fn name(dir: &ProcDir) -> Result<Vec<u8>> {
    let mut name = dir.read("comm")?;
    name.pop();
    Ok(name)
}
