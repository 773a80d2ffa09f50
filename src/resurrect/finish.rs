//! What a process has besides memory and registers, in the order in which the kernel lets it be set.
#![deny(unsafe_code)]

use anyhow::{Context, Result, ensure};

use super::process::{Parts, Rebuilt, sigmask_bit};
use super::script::{Arg, Script};
use super::{descriptors, maps, seccomp, settings, threads, timers};
use crate::fd::{IoSignalsCall, OwnerCall};
use crate::image::state::{Memory, Process, SignalAction};
use std::os::fd::AsRawFd;

impl Rebuilt<'_> {
    /// After the content: threads, then everything that needs the rights of a thaw, then what each thread sets for itself,
    /// credentials among it, then what must come after those.
    pub fn finish(&mut self) -> Result<()> {
        let (process, pid) = (self.parts.process, self.parts.pid());
        let (leader, others) = process.threads.split_first().context("a process without threads")?;
        if !process.settings.filters.is_empty() {
            self.tasks[0]
                .suspend_filters()
                .context("suspend seccomp filters (PTRACE_O_SUSPEND_SECCOMP)")?;
        }
        let mut script = Script::new(&self.stage, &mut self.tasks[0]);
        settings::before_threads(&mut script, process)
            .and_then(|()| seccomp::install_common(&mut script, process))
            .and_then(|()| script.run())?;
        let cloned = threads::clone_all(&self.stage, &mut self.tasks[0], others).context("clone the threads")?;
        self.tasks.extend(cloned);

        let mut script = Script::new(&self.stage, &mut self.tasks[0]);
        set_process(&mut script, &self.parts).and_then(|()| script.run())?;
        self.write_proc_files()?;

        for (thread, task) in others.iter().zip(&mut self.tasks[1..]) {
            let mut script = Script::new(&self.stage, task);
            seccomp::install_own(&mut script, process, thread)
                .and_then(|()| threads::set_own(&mut script, thread, self.parts.inherited))
                .and_then(|()| threads::queue_own_signals(&mut script, pid, thread.tid, &thread.pending))
                .and_then(|()| threads::register_rseq(&mut script, thread))
                .and_then(|()| script.run())
                .with_context(|| format!("thread {}", thread.tid))?;
        }

        let mut script = Script::new(&self.stage, &mut self.tasks[0]);
        seccomp::install_own(&mut script, process, leader)?;
        threads::set_own(&mut script, leader, self.parts.inherited)?;
        set_after_credentials(&mut script, process)?;
        for call in &self.parts.owner_calls {
            set_io_signals(&mut script, call)?;
        }
        threads::queue_own_signals(&mut script, pid, leader.tid, &leader.pending)?;
        threads::queue_shared_signals(&mut script, pid, &process.pending)?;
        threads::register_rseq(&mut script, leader)?;
        script.run()
    }

    /// Starts the timers: from now on time runs for the program.
    pub fn arm_timers(&mut self) -> Result<()> {
        let mut script = Script::new(&self.stage, &mut self.tasks[0]);
        timers::arm(&mut script, self.parts.process)?;
        script.run()
    }

    /// What only files of /proc/PID set; done while its credentials are still ours.
    fn write_proc_files(&self) -> Result<()> {
        let (process, pid) = (self.parts.process, self.parts.pid());
        write_if_other(
            &format!("/proc/{pid}/oom_score_adj"),
            &process.oom_score_adj.to_string(),
        )?;
        if self.parts.new_session && process.settings.autogroup_nice != 0 {
            // A new session has a new group of nice value 0; one that is thaw's is not for the program to set.
            let path = format!("/proc/{pid}/autogroup");
            let nice = process.settings.autogroup_nice.to_string();
            std::fs::write(&path, &nice).with_context(|| format!("write {nice} to {path}"))?;
        }
        let path = format!("/proc/{pid}/coredump_filter");
        let current = std::fs::read_to_string(&path).with_context(|| format!("read {path}"))?;
        if u32::from_str_radix(current.trim(), 16).ok() != Some(process.coredump_filter) {
            std::fs::write(&path, format!("{:#x}", process.coredump_filter))
                .with_context(|| format!("write {path}"))?;
        }
        Ok(())
    }
}

fn write_if_other(path: &str, wanted: &str) -> Result<()> {
    let current = std::fs::read_to_string(path).with_context(|| format!("read {path}"))?;
    if current.trim() == wanted {
        return Ok(());
    }
    std::fs::write(path, wanted).with_context(|| format!("write {wanted} to {path}"))
}

fn set_process(script: &mut Script<'_>, parts: &Parts<'_>) -> Result<()> {
    let process = parts.process;
    set_directories(script, parts)?;
    if process.memory.vmas.iter().any(|vma| vma.flags.has(b"lo")) {
        // The program's own limits, which may be below what it has locked, come later.
        set_limit(
            script,
            libc::RLIMIT_MEMLOCK,
            parts.plan.lock_limit,
            parts.plan.lock_limit,
        )?;
        maps::lock(script, &process.memory)?;
    }
    maps::guard_and_name(script, &process.memory)?;
    set_mm(script, &process.memory, parts.exe.as_raw_fd())?;
    script.prctl(
        "PR_SET_CHILD_SUBREAPER",
        libc::PR_SET_CHILD_SUBREAPER,
        &[process.child_subreaper.into()],
    )?;
    set_actions(script, &process.signal_actions)?;
    timers::create(script, &process.posix_timers)?;
    parts
        .moves
        .as_ref()
        .map_or(Ok(()), |moves| descriptors::arrange(script, moves))?;
    for call in &parts.owner_calls {
        add_to_epoll(script, call)?;
    }
    script.call("umask", libc::SYS_umask, [process.umask.into()])?;
    for limit in &process.rlimits {
        set_limit(script, limit.resource, limit.soft, limit.hard)?;
    }
    settings::of_process(script, process)
}

pub(super) fn set_limit(script: &mut Script<'_>, resource: u32, soft: u64, hard: u64) -> Result<()> {
    let bytes: Vec<u8> = [soft, hard].into_iter().flat_map(u64::to_ne_bytes).collect();
    let args = [0u64.into(), resource.into(), bytes.as_slice().into(), 0u64.into()];
    script.call("prlimit64", libc::SYS_prlimit64, args)
}

fn set_after_credentials(script: &mut Script<'_>, process: &Process) -> Result<()> {
    // 2 (SUID_DUMP_ROOT) is what the kernel sets, and nobody else can: freeze has said that it becomes 0.
    let dumpable = if process.dumpable == 1 { 1u64 } else { 0 };
    script.prctl("PR_SET_DUMPABLE", libc::PR_SET_DUMPABLE, &[dumpable.into()])
}

/// The root first; the working directory may lie outside of it.
fn set_directories(script: &mut Script<'_>, parts: &Parts<'_>) -> Result<()> {
    if let Some(root) = parts.root {
        script.call("fchdir", libc::SYS_fchdir, [root.as_raw_fd().into()])?;
        script.call("chroot", libc::SYS_chroot, [b".\0".as_slice().into()])?;
    }
    script.call("fchdir", libc::SYS_fchdir, [parts.cwd.as_raw_fd().into()])
}

/// prctl(PR_SET_MM, PR_SET_MM_MAP): struct prctl_mm_map with eleven addresses, auxv and its size, the executable.
fn set_mm(script: &mut Script<'_>, memory: &Memory, exe_fd: i32) -> Result<()> {
    let at = &memory.layout;
    let words = [
        [at.start_code, at.end_code, at.start_data, at.end_data].as_slice(),
        &[at.start_brk, at.brk, at.start_stack],
        &[at.arg_start, at.arg_end, at.env_start, at.env_end],
    ]
    .concat();
    const AUXV_POINTER_AT: usize = 11 * 8;
    const LEN: usize = AUXV_POINTER_AT + 16;
    let mut bytes: Vec<u8> = words.into_iter().flat_map(u64::to_ne_bytes).chain([0; 8]).collect();
    bytes.extend((memory.auxv.len() as u32).to_ne_bytes());
    bytes.extend(exe_fd.to_ne_bytes());
    bytes.extend(&memory.auxv);
    let map = Arg::Linked {
        bytes: &bytes,
        at: AUXV_POINTER_AT,
        to: LEN,
    };
    let args = [libc::PR_SET_MM_MAP.into(), map, (LEN as u64).into()];
    script.prctl("PR_SET_MM_MAP", libc::PR_SET_MM, &args)
}

/// Those that the image does not list are the default ones, and are set as well: what is ignored stays so through execve(2), and we
/// ignore SIGPIPE as all Rust programs do, and whatever nohup(1) or a shell's `&` made us ignore. SIGTRAP is set later: we trap by it.
fn set_actions(script: &mut Script<'_>, actions: &[SignalAction]) -> Result<()> {
    let default = |signal: i32| {
        !actions
            .iter()
            .any(|action| action.signal == signal && action.handler != 0)
    };
    ensure!(
        default(libc::SIGKILL) && default(libc::SIGSTOP),
        "the image has an action for SIGKILL or SIGSTOP, which have none"
    );
    let settable = (1..=64).filter(|signal| ![libc::SIGKILL, libc::SIGSTOP, libc::SIGTRAP].contains(signal));
    for signal in settable {
        match actions.iter().find(|action| action.signal == signal) {
            Some(action) => set_action(script, action)?,
            None => set_action(
                script,
                &SignalAction {
                    signal,
                    ..SignalAction::default()
                },
            )?,
        }
    }
    Ok(())
}

/// rt_sigaction(2) with struct kernel_sigaction: handler, flags, restorer, mask.
pub(super) fn set_action(script: &mut Script<'_>, action: &SignalAction) -> Result<()> {
    let bytes = action_bytes(action);
    let args = [action.signal.into(), bytes.as_slice().into(), 0u64.into(), 8u64.into()];
    script.call("rt_sigaction", libc::SYS_rt_sigaction, args)
}

pub(super) fn action_bytes(action: &SignalAction) -> Vec<u8> {
    // SIGKILL and SIGSTOP can be in no mask; the kernel removes them as well.
    let mask = action.mask & !(sigmask_bit(libc::SIGKILL) | sigmask_bit(libc::SIGSTOP));
    [action.handler, action.flags, action.restorer, mask]
        .into_iter()
        .flat_map(u64::to_ne_bytes)
        .collect()
}

fn add_to_epoll(script: &mut Script<'_>, call: &OwnerCall) -> Result<()> {
    let OwnerCall::EpollAdd { epfd, fd, events, data } = *call else {
        return Ok(());
    };
    // struct epoll_event is packed on x86_64 (include/uapi/linux/eventpoll.h).
    const DATA_AT: usize = std::mem::offset_of!(libc::epoll_event, u64);
    let mut event = [0; size_of::<libc::epoll_event>()];
    event[..4].copy_from_slice(&events.to_ne_bytes());
    event[DATA_AT..].copy_from_slice(&data.to_ne_bytes());
    let args = [
        epfd.into(),
        libc::EPOLL_CTL_ADD.into(),
        fd.into(),
        event.as_slice().into(),
    ];
    script.call("epoll_ctl(EPOLL_CTL_ADD)", libc::SYS_epoll_ctl, args)
}

/// With the credentials of the program, which the kernel notes. O_ASYNC last: from then on signals are sent.
fn set_io_signals(script: &mut Script<'_>, call: &OwnerCall) -> Result<()> {
    const F_SETSIG: i32 = 10;
    const F_SETOWN_EX: i32 = 15;
    let OwnerCall::IoSignals(IoSignalsCall {
        fd,
        signals,
        status_flags,
    }) = *call
    else {
        return Ok(());
    };
    let mut fcntl =
        |name, command: i32, arg: Arg<'_>| script.call(name, libc::SYS_fcntl, [fd.into(), command.into(), arg]);
    // struct f_owner_ex.
    let owner = [signals.kind, signals.owner].map(i32::to_ne_bytes).concat();
    if signals.owner != 0 {
        fcntl("fcntl(F_SETOWN_EX)", F_SETOWN_EX, owner.as_slice().into())?;
    }
    fcntl("fcntl(F_SETSIG)", F_SETSIG, signals.signal.into())?;
    fcntl("fcntl(F_SETFL)", libc::F_SETFL, status_flags.into())
}
