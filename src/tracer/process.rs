//! A whole process in ptrace-stop.

use std::io;
use std::marker::PhantomData;
use std::ops::Range;
use std::os::fd::{AsFd, BorrowedFd};

use nix::unistd::Pid;

use super::proc::ProcDir;
use super::thread::StoppedThread;
use super::vdso::Vdso;
use super::way_home::DeadBytes;
use super::{ProcessMemory, Stop};
use crate::arch::Registers;

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
    pub(super) vdso: Option<Vdso>,
    /// Where ways home are laid, once one was needed.
    pub(super) dead_bytes: Option<DeadBytes>,
    pub(super) not_send: PhantomData<*const ()>,
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

    /// Where the kernel's code is in its memory (vdso(7)).
    pub fn vdso_code(&self) -> Option<Range<u64>> {
        self.vdso.as_ref().map(|vdso| vdso.code.clone())
    }

    /// Whether a thread with these registers is in the middle of a function of it.
    pub fn is_in_vdso(&self, regs: &Registers) -> bool {
        let vdso = self.vdso.as_ref();
        vdso.is_some_and(|vdso| vdso.is_midway(regs, &self.memory))
    }

    /// The content of `[vdso]`, read from `start` on, without what freezers that were killed have left there.
    pub fn blank_left_behind(&self, start: u64, vdso: &mut [u8]) {
        if let Some(dead) = self.vdso.as_ref().and_then(|vdso| vdso.dead) {
            dead.blank_left_behind(start, vdso);
        }
    }

    /// The leader first.
    pub fn threads(&self) -> &[StoppedThread] {
        &self.threads
    }

    /// For what is learnt of a thread after the process was stopped.
    pub fn thread_mut(&mut self, index: usize) -> &mut StoppedThread {
        &mut self.threads[index]
    }

    /// The signal of the group-stop that the process is in, if it is in one (signal(7): stopped by SIGSTOP, SIGTSTP …).
    pub fn group_stop(&self) -> Option<i32> {
        self.threads.iter().find_map(|thread| match thread.task.stop() {
            Stop::Interrupted { signal } if signal != libc::SIGTRAP => Some(signal),
            _ => None,
        })
    }

    /// Those that its first thread made, or that were left to it.
    pub(super) fn children_of_leader(&self) -> io::Result<Vec<Pid>> {
        children_by_threads(self.pid, &self.proc, [self.pid])
    }

    /// Children of all its threads, ended ones that nobody waited for included.
    pub fn children(&self) -> io::Result<Vec<Pid>> {
        children_by_threads(self.pid, &self.proc, self.threads.iter().map(StoppedThread::tid))
    }
}

/// The children of a process, ended ones that nobody waited for included. One that is gone has none.
pub fn children(pid: Pid) -> io::Result<Vec<Pid>> {
    let Ok(proc) = ProcDir::open(pid) else {
        return Ok(Vec::new());
    };
    children_by_threads(pid, &proc, proc.tids().unwrap_or_default())
}

fn children_by_threads(pid: Pid, proc: &ProcDir, threads: impl IntoIterator<Item = Pid>) -> io::Result<Vec<Pid>> {
    let mut children = Vec::new();
    for tid in threads {
        match proc.read_text(&format!("task/{tid}/children")) {
            Ok(list) => children.extend(pids(&list)),
            // A kernel without CONFIG_PROC_CHILDREN.
            Err(error) if error.kind() == io::ErrorKind::NotFound => return children_by_parent(pid),
            Err(error) => return Err(error),
        }
    }
    Ok(children)
}

fn pids(list: &str) -> Vec<Pid> {
    let numbers = list.split_whitespace().filter_map(|pid| pid.parse().ok());
    numbers.map(Pid::from_raw).collect()
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
