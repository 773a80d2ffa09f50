//! What can be said against seizing a process before anything is changed.

use std::io;

use anyhow::Context;
use nix::unistd::Pid;

use super::proc::{ProcDir, Stat, Status};
use crate::refusal::{Refusal, Refused};

/// A process that may be seized, as far as a look can tell: /proc/PID, and its start time.
pub(super) struct Candidate {
    pub proc: ProcDir,
    pub start_time: u64,
}

const PROCESS: &str = "the process";

/// Looks at the process and at ourselves; changes nothing. What stands against it is the error [`Refused`].
pub(super) fn look(pid: Pid) -> anyhow::Result<Candidate> {
    let facts = Facts::read(pid)?;
    match refusal(pid, &facts) {
        Some(refusal) => Err(Refused::from(refusal).into()),
        None => Ok(Candidate {
            proc: facts.proc,
            start_time: facts.stat.start_time,
        }),
    }
}

struct Facts {
    proc: ProcDir,
    stat: Stat,
    status: Status,
    /// Ourselves first, then our parent, and so on.
    ancestors: Vec<i32>,
}

impl Facts {
    fn read(pid: Pid) -> anyhow::Result<Self> {
        let read = || -> io::Result<Facts> {
            let proc = ProcDir::open(pid)?;
            let stat = proc.stat()?;
            let status = Status(proc.read("status")?);
            Ok(Facts {
                proc,
                stat,
                status,
                ancestors: Vec::new(),
            })
        };
        match read() {
            Ok(facts) => Ok(Facts {
                ancestors: ancestors().context("/proc/self/stat")?,
                ..facts
            }),
            Err(error) if is_gone(&error) => {
                Err(Refused::from(Refusal::new(pid.as_raw(), PROCESS, "does not exist", "")).into())
            }
            Err(error) => Err(error).with_context(|| format!("look at /proc/{pid}")),
        }
    }
}

fn is_gone(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::NotFound || error.raw_os_error() == Some(libc::ESRCH)
}

fn ancestors() -> io::Result<Vec<i32>> {
    let mut pid = std::process::id() as i32;
    let mut chain = Vec::new();
    // The parent of init, or one outside of our pid namespace, is 0.
    while pid != 0 {
        chain.push(pid);
        pid = ProcDir::open(Pid::from_raw(pid))?.stat()?.ppid;
    }
    Ok(chain)
}

fn refusal(pid: Pid, facts: &Facts) -> Option<Refusal> {
    let refuse = |reason: String, remedy: String| Some(Refusal::new(pid.as_raw(), PROCESS, reason, remedy));
    let tgid = facts.status.number("Tgid").unwrap_or(0) as i32;
    if tgid != pid.as_raw() {
        return refuse(format!("is a thread of process {tgid}"), format!("name {tgid} instead"));
    }
    if facts.stat.is_kernel_thread() {
        return refuse(
            "is a kernel thread, which has no memory of its own to freeze".into(),
            String::new(),
        );
    }
    if facts.ancestors.first() == Some(&tgid) {
        return refuse("is this cryopod itself".into(), "name another process".into());
    }
    if facts.ancestors.contains(&tgid) {
        let reason = format!(
            "({}) is an ancestor of this cryopod, which it would stop together with its shell",
            facts.stat.comm
        );
        return refuse(
            reason,
            "run cryopod from somewhere else, with setsid(1) or from another terminal".into(),
        );
    }
    if facts.stat.is_dead() {
        return refuse_dead(pid, facts);
    }
    let tracer = facts.status.number("TracerPid").unwrap_or(0) as i32;
    // Born of one that we trace, it is ours already.
    if tracer != 0 && tracer != nix::unistd::gettid().as_raw() {
        return Some(traced(pid, tracer));
    }
    None
}

/// A leader that ended before its threads is a zombie, too, but its process lives.
fn refuse_dead(pid: Pid, facts: &Facts) -> Option<Refusal> {
    let tids = facts.proc.tids().unwrap_or_default();
    let (object, reason, remedy) = if tids.len() > 1 {
        (
            "the main thread",
            "has ended while other threads go on, which cryopod does not carry yet",
            String::new(),
        )
    } else {
        let parent = describe(facts.stat.ppid);
        (
            PROCESS,
            "has ended and is a zombie",
            format!("its parent, {parent}, has yet to wait for it"),
        )
    };
    Some(Refusal::new(pid.as_raw(), object, reason, remedy))
}

pub(super) fn traced(pid: Pid, tracer: i32) -> Refusal {
    Refusal::new(
        pid.as_raw(),
        PROCESS,
        format!("is traced by {}", describe(tracer)),
        "detach that tracer first",
    )
}

/// `pid 4130 (gdb)`.
fn describe(pid: i32) -> String {
    match ProcDir::open(Pid::from_raw(pid)).and_then(|proc| proc.stat()) {
        Ok(stat) => format!("pid {pid} ({})", stat.comm),
        Err(_gone) => format!("pid {pid}"),
    }
}

/// A worker of the kernel among the threads.
pub(super) fn kernel_worker(pid: Pid, stat: &Stat) -> Refusal {
    // create_io_thread() names them iou-wrk-TID and iou-sqp-TID (io_uring/), vhost_task_create() vhost-TID.
    let reason = if stat.comm.starts_with("vhost") {
        "is a vhost worker of the kernel, which cryopod does not carry"
    } else {
        "uses io_uring (it is a worker of the kernel), which cryopod does not carry yet"
    };
    Refusal::new(pid.as_raw(), format!("thread {:?}", stat.comm), reason, "")
}

/// A program of another architecture or word size.
pub(super) fn foreign(pid: Pid) -> Refusal {
    let reason = format!(
        "runs a program that is not of {}, a 32-bit one perhaps, which cryopod does not carry yet",
        crate::arch::NAME
    );
    Refusal::new(pid.as_raw(), PROCESS, reason, "")
}

/// PTRACE_SEIZE said EPERM: whose process it is, and what is missing.
pub(super) fn permission(pid: Pid, proc: &ProcDir) -> Refusal {
    let yama = std::fs::read_to_string("/proc/sys/kernel/yama/ptrace_scope").ok();
    let yama = yama.and_then(|scope| scope.trim().parse().ok()).unwrap_or(0);
    let owner = proc
        .read_text("status")
        .ok()
        .and_then(|status| Status(status.into_bytes()).number("Uid"));
    denied(pid, owner, nix::unistd::geteuid().as_raw(), yama)
}

/// ptrace(2), "Ptrace access mode checking", and /proc/sys/kernel/yama/ptrace_scope.
fn denied(pid: Pid, owner: Option<i64>, euid: u32, yama: i32) -> Refusal {
    let refuse = |reason: String, remedy: &str| Refusal::new(pid.as_raw(), PROCESS, reason, remedy);
    match owner {
        Some(uid) if uid != i64::from(euid) => {
            let reason = format!("belongs to uid {uid}, and uid {euid} may not trace it without CAP_SYS_PTRACE");
            refuse(reason, "run cryopod as that user or as root")
        }
        _ if yama == 3 => refuse(
            "cannot be traced: kernel.yama.ptrace_scope is 3, which forbids it to everybody".into(),
            "that setting can only be changed before the next boot",
        ),
        _ if yama > 0 => refuse(
            format!("may not be traced: kernel.yama.ptrace_scope is {yama}, which demands CAP_SYS_PTRACE"),
            "run cryopod as root, or set kernel.yama.ptrace_scope to 0",
        ),
        _ => refuse(
            "may not be traced: it is not dumpable, has capabilities that we lack, or a security module forbids it"
                .into(),
            "run cryopod as root (CAP_SYS_PTRACE)",
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(pid: i32) -> String {
        let Err(error) = look(Pid::from_raw(pid)) else {
            panic!("{pid} was not refused")
        };
        error.downcast_ref::<Refused>().expect("a refusal").to_string()
    }

    #[test]
    fn a_dead_pid_is_refused() {
        let mut child = std::process::Command::new("true").spawn().unwrap();
        child.wait().unwrap();
        assert!(refused(child.id() as i32).contains("does not exist"));
    }

    #[test]
    fn ourselves_and_our_parent_are_refused() {
        assert!(refused(std::process::id() as i32).contains("this cryopod itself"));
        assert!(refused(nix::unistd::getppid().as_raw()).contains("an ancestor of this cryopod"));
    }

    #[test]
    fn a_kernel_thread_is_refused() {
        // kthreadd, where the pid namespace shows it.
        if std::fs::read_to_string("/proc/2/comm").is_ok_and(|comm| comm == "kthreadd\n") {
            assert!(refused(2).contains("kernel thread"));
        }
    }

    #[test]
    fn a_thread_is_refused_by_the_name_of_its_process() {
        let tid = std::thread::spawn(|| {
            let tid = nix::unistd::gettid().as_raw();
            assert!(refused(tid).contains(&format!("is a thread of process {}", std::process::id())));
        });
        tid.join().unwrap();
    }

    #[test]
    fn a_zombie_is_refused_and_its_parent_named() {
        let mut child = std::process::Command::new("true").spawn().unwrap();
        while !ProcDir::open(Pid::from_raw(child.id() as i32))
            .unwrap()
            .stat()
            .unwrap()
            .is_dead()
        {
            std::thread::yield_now();
        }
        assert!(refused(child.id() as i32).contains(&format!("its parent, pid {}", std::process::id())));
        child.wait().unwrap();
    }

    #[test]
    fn what_is_missing_to_trace_is_named() {
        let pid = Pid::from_raw(7);
        assert!(denied(pid, Some(0), 1000, 0).to_string().contains("belongs to uid 0"));
        assert!(
            denied(pid, Some(1000), 1000, 1)
                .to_string()
                .contains("ptrace_scope is 1")
        );
    }
}
