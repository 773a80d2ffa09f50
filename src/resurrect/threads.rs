//! Threads of the task that is rebuilt: cloned under their ids, then each sets what only a thread can set for itself.
#![deny(unsafe_code)]

use anyhow::{Context, Result};
use nix::unistd::Pid;

use super::script::{Arg, Script};
use super::stage::Stage;
use super::{credentials, settings};
use crate::arch::CloneArgs;
use crate::image::state::ThreadSettings;
use crate::image::state::{Credentials, Scheduling, SigInfo, Thread};
use crate::tracer::{Running, Stopped};

/// What the stub got from us and each thread therefore begins with.
#[derive(Debug, Clone)]
pub struct Inherited {
    pub credentials: Credentials,
    pub scheduling: Scheduling,
    pub settings: ThreadSettings,
}

/// Clones all threads but the leader. CLONE_PTRACE: each comes up in a stop, traced with the leader's options, EXITKILL included.
pub fn clone_all(stage: &Stage, leader: &mut Stopped, threads: &[Thread]) -> Result<Vec<Stopped>> {
    let mut script = Script::new(stage, leader);
    for thread in threads {
        clone3(&mut script, thread.tid, THREAD, 0)?;
    }
    script.run()?;
    let mut cloned = Vec::with_capacity(threads.len());
    for thread in threads {
        let tid = Pid::from_raw(thread.tid);
        cloned.push(
            Running::born_traced(tid)
                .wait()
                .with_context(|| format!("thread {tid} did not come up"))?,
        );
    }
    Ok(cloned)
}

const THREAD: i32 = libc::CLONE_VM
    | libc::CLONE_FS
    | libc::CLONE_FILES
    | libc::CLONE_SIGHAND
    | libc::CLONE_THREAD
    | libc::CLONE_SYSVSEM
    | libc::CLONE_PTRACE;

/// clone3(2) of a task of this id: struct clone_args, and behind it the id that its set_tid is to point at.
pub fn clone3(script: &mut Script<'_>, id: i32, flags: i32, exit_signal: i32) -> Result<()> {
    const LEN: usize = size_of::<CloneArgs>();
    let mut words = [0u64; LEN / 8];
    words[std::mem::offset_of!(CloneArgs, flags) / 8] = flags as u64;
    words[std::mem::offset_of!(CloneArgs, exit_signal) / 8] = exit_signal as u64;
    words[std::mem::offset_of!(CloneArgs, set_tid_size) / 8] = 1;
    let bytes = words.into_iter().flat_map(u64::to_ne_bytes).chain(id.to_ne_bytes());
    let args = Arg::Linked {
        bytes: &bytes.collect::<Vec<u8>>(),
        at: std::mem::offset_of!(CloneArgs, set_tid),
        to: LEN,
    };
    script.call("clone3", libc::SYS_clone3, [args, (LEN as u64).into()])
}

/// Everything but credentials and what must come after them. A restored rseq is the last, see [`register_rseq`].
pub fn set_own(script: &mut Script<'_>, thread: &Thread, inherited: &Inherited) -> Result<()> {
    let name: Vec<u8> = thread.name.iter().copied().take(15).chain([0]).collect();
    script.prctl("PR_SET_NAME", libc::PR_SET_NAME, &[name.as_slice().into()])?;
    if let Some(list) = thread.robust_list {
        script.call(
            "set_robust_list",
            libc::SYS_set_robust_list,
            [list.head.into(), list.len.into()],
        )?;
    }
    script.call(
        "set_tid_address",
        libc::SYS_set_tid_address,
        [thread.clear_child_tid.into()],
    )?;
    set_altstack(script, thread)?;
    set_scheduling(script, &thread.scheduling, &inherited.scheduling)?;
    settings::of_thread(script, &thread.settings, &inherited.settings)?;
    credentials::set(script, &inherited.credentials, &thread.credentials)?;
    // A change of credentials has cleared it, and the stub was born with SIGKILL.
    script.prctl(
        "PR_SET_PDEATHSIG",
        libc::PR_SET_PDEATHSIG,
        &[thread.pdeath_signal.into()],
    )
}

/// sigaltstack(2): SS_ONSTACK is not a setting, it follows from the stack pointer.
fn set_altstack(script: &mut Script<'_>, thread: &Thread) -> Result<()> {
    const SS_ONSTACK: u32 = 1;
    let stack = thread.sigaltstack;
    let mut bytes = stack.sp.to_ne_bytes().to_vec();
    bytes.extend((stack.flags & !SS_ONSTACK).to_ne_bytes());
    bytes.extend([0; 4]);
    bytes.extend(stack.size.to_ne_bytes());
    script.call(
        "sigaltstack",
        libc::SYS_sigaltstack,
        [bytes.as_slice().into(), 0u64.into()],
    )
}

fn set_scheduling(script: &mut Script<'_>, wanted: &Scheduling, inherited: &Scheduling) -> Result<()> {
    let without_affinity = |s: &Scheduling| Scheduling {
        affinity: Vec::new(),
        io_priority: 0,
        timer_slack_ns: 0,
        ..s.clone()
    };
    // Always: while it is rebuilt the task sits on the CPU of the thawing process. First, as who may not run on all CPUs gets no deadline
    // (__sched_setscheduler(), kernel/sched/syscalls.c).
    let affinity = wanted.affinity.as_slice();
    let args = [0u64.into(), (affinity.len() as u64).into(), affinity.into()];
    script.call("sched_setaffinity", libc::SYS_sched_setaffinity, args)?;
    if without_affinity(wanted) != without_affinity(inherited) {
        let attr = sched_attr(wanted);
        script.call(
            "sched_setattr",
            libc::SYS_sched_setattr,
            [0u64.into(), attr.as_slice().into(), 0u64.into()],
        )?;
    }
    if wanted.io_priority != inherited.io_priority {
        const IOPRIO_WHO_PROCESS: u64 = 1;
        let args = [IOPRIO_WHO_PROCESS.into(), 0u64.into(), wanted.io_priority.into()];
        script.call("ioprio_set", libc::SYS_ioprio_set, args)?;
    }
    let slack = wanted.timer_slack_ns.into();
    script.prctl("PR_SET_TIMERSLACK", libc::PR_SET_TIMERSLACK, &[slack])
}

/// struct sched_attr, SCHED_ATTR_SIZE_VER1 (include/uapi/linux/sched/types.h).
fn sched_attr(wanted: &Scheduling) -> Vec<u8> {
    const UTIL_CLAMP: u64 = 0x60; // SCHED_FLAG_UTIL_CLAMP_MIN | _MAX
    let clamped = wanted.util_min != 0 || (wanted.util_max != 0 && wanted.util_max != 1024);
    let flags = wanted.flags | if clamped { UTIL_CLAMP } else { 0 };
    let mut bytes = 56u32.to_ne_bytes().to_vec();
    bytes.extend(wanted.policy.to_ne_bytes());
    bytes.extend(flags.to_ne_bytes());
    bytes.extend(wanted.nice.to_ne_bytes());
    bytes.extend(wanted.priority.to_ne_bytes());
    for time in [wanted.runtime_ns, wanted.deadline_ns, wanted.period_ns] {
        bytes.extend(time.to_ne_bytes());
    }
    bytes.extend(wanted.util_min.to_ne_bytes());
    bytes.extend(wanted.util_max.to_ne_bytes());
    bytes
}

/// Puts signals that were pending for the thread alone back into its queue. They are blocked while the task is rebuilt, and only
/// the task itself may send a siginfo_t of any origin (do_rt_tgsigqueueinfo(), kernel/signal.c).
pub fn queue_own_signals(script: &mut Script<'_>, pid: Pid, tid: i32, pending: &[SigInfo]) -> Result<()> {
    for info in pending.iter().filter(|info| signal_of(info) != libc::SIGTRAP) {
        let args = [
            pid.as_raw().into(),
            tid.into(),
            signal_of(info).into(),
            info.0.as_slice().into(),
        ];
        script.call("rt_tgsigqueueinfo", libc::SYS_rt_tgsigqueueinfo, args)?;
    }
    Ok(())
}

/// The same for the queue that all threads share.
pub fn queue_shared_signals(script: &mut Script<'_>, pid: Pid, pending: &[SigInfo]) -> Result<()> {
    for info in pending.iter().filter(|info| signal_of(info) != libc::SIGTRAP) {
        let args = [pid.as_raw().into(), signal_of(info).into(), info.0.as_slice().into()];
        script.call("rt_sigqueueinfo", libc::SYS_rt_sigqueueinfo, args)?;
    }
    Ok(())
}

/// SIGTRAP is for later: it is not blocked while scripts run, see `drop_stub`.
pub(super) fn signal_of(info: &SigInfo) -> i32 {
    info.0.first_chunk().map_or(0, |bytes| i32::from_ne_bytes(*bytes))
}

/// rseq(2) clears the pointer to the critical section, which is written back when no more calls are made.
pub fn register_rseq(script: &mut Script<'_>, thread: &Thread) -> Result<()> {
    let Some(rseq) = thread.rseq else {
        return Ok(());
    };
    let args = [
        rseq.addr.into(),
        rseq.size.into(),
        rseq.flags.into(),
        rseq.signature.into(),
    ];
    script.call("rseq", libc::SYS_rseq, args)
}
