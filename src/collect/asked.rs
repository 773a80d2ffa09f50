//! What no interface shows from outside: the process is asked, by system calls that its threads are made to run.

use std::collections::HashMap;

use anyhow::{Context, Result};

use super::speculation;
use crate::image::state::{MemoryPolicy, ProcessSettings};
use crate::image::state::{PosixTimer, SigAltStack, SignalAction, TimerTime};
use crate::refusal::{Refusal, Refused};
use crate::tracer::{self, Remote, StoppedProcess};

/// Answers of the process as a whole.
#[derive(Debug, Default)]
pub struct Answers {
    pub brk: u64,
    pub dumpable: u32,
    pub child_subreaper: bool,
    pub settings: ProcessSettings,
    pub has_ldt: bool,
    /// Of the mappings that begin at the addresses that were asked about.
    pub memory_policies: HashMap<u64, MemoryPolicy>,
    pub signal_actions: Vec<SignalAction>,
    pub interval_timers: [TimerTime; 3],
    /// In the order of the threads.
    pub threads: Vec<ThreadAnswers>,
}

/// Answers of one thread about itself.
#[derive(Debug, Default)]
pub struct ThreadAnswers {
    pub sigaltstack: SigAltStack,
    pub clear_child_tid: u64,
    pub pdeath_signal: i32,
    pub securebits: u32,
    pub timer_slack_ns: u64,
    pub tsc: u32,
    pub cpuid_faults: bool,
    pub speculation: [u32; 3],
    pub memory_policy: Option<MemoryPolicy>,
}

/// What to ask beyond what every program is asked.
pub struct Questions<'a> {
    /// Their times are filled in.
    pub timers: &'a mut [PosixTimer],
    /// Where mappings begin that may have a memory policy.
    pub mappings: Vec<u64>,
    /// In the order of the threads: what /proc/TID/status tells of speculation control.
    pub speculation: Vec<[Option<u32>; 3]>,
    /// Whether the CPU can make the instruction CPUID raise a signal.
    pub cpuid_may_fault: bool,
}

/// Asks the first thread about the process, and each about itself.
pub fn ask(process: &mut StoppedProcess, mut questions: Questions<'_>) -> Result<Answers> {
    let mut answers = Answers::default();
    let mut first_speculation = [0; 3];
    let mut of_threads = Vec::with_capacity(process.threads().len());
    for index in 0..process.threads().len() {
        let tid = process.threads()[index].tid();
        let pid = process.pid().as_raw();
        let mut remote = Remote::borrow(process, index).map_err(|error| cannot_borrow(pid, error))?;
        let known = speculation::known(&questions.speculation[index], index, first_speculation);
        let of_thread = ask_thread(&mut remote, known, questions.cpuid_may_fault);
        let of_thread = of_thread.with_context(|| format!("ask thread {tid}"));
        let of_process = match index {
            0 => ask_process(&mut remote, &mut questions)
                .context("ask the process")
                .map(Some),
            _ => Ok(None),
        };
        // Whatever came of it, the thread gets its registers back.
        remote
            .give_back()
            .with_context(|| format!("give thread {tid} its registers back"))?;
        let of_thread = of_thread?;
        if index == 0 {
            first_speculation = of_thread.speculation;
        }
        of_threads.push(of_thread);
        answers = of_process?.unwrap_or(answers);
    }
    Ok(Answers {
        threads: of_threads,
        ..answers
    })
}

fn ask_thread(
    remote: &mut Remote<'_>,
    known: [Option<u32>; 3],
    cpuid_may_fault: bool,
) -> tracer::Result<ThreadAnswers> {
    let mut speculation = [0; 3];
    for (which, known) in known.into_iter().enumerate() {
        speculation[which] = match known {
            Some(state) => state,
            None => remote.get_speculation(which as u32)?,
        };
    }
    Ok(ThreadAnswers {
        sigaltstack: remote.sigaltstack()?,
        clear_child_tid: remote.get_tid_address()?,
        pdeath_signal: remote.get_pdeath_signal()?,
        securebits: remote.get_securebits()?,
        timer_slack_ns: remote.get_timer_slack()?,
        tsc: remote.get_tsc()?,
        cpuid_faults: cpuid_may_fault && remote.cpuid_faults()?,
        speculation,
        memory_policy: remote.memory_policy(None)?,
    })
}

fn ask_process(remote: &mut Remote<'_>, questions: &mut Questions<'_>) -> tracer::Result<Answers> {
    for timer in questions.timers.iter_mut() {
        timer.time = remote.timer_gettime(timer.id)?;
        timer.overrun = remote.timer_getoverrun(timer.id)?;
    }
    let mut memory_policies = HashMap::new();
    for &address in &questions.mappings {
        if let Some(policy) = remote.memory_policy(Some(address))? {
            memory_policies.insert(address, policy);
        }
    }
    Ok(Answers {
        brk: remote.brk()?,
        dumpable: remote.get_dumpable()?,
        child_subreaper: remote.get_child_subreaper()?,
        settings: ProcessSettings {
            thp_disable: remote.get_thp_disable()?,
            mdwe: remote.get_mdwe()?,
            memory_merge: remote.get_memory_merge()?,
            membarrier: remote.membarrier_registrations()?,
            futex_slots: remote.get_futex_slots()?,
            xstate_permission: remote.xstate_permission()?,
        },
        has_ldt: remote.has_ldt()?,
        memory_policies,
        signal_actions: signal_actions(remote)?,
        interval_timers: [remote.getitimer(0)?, remote.getitimer(1)?, remote.getitimer(2)?],
        threads: Vec::new(),
    })
}

/// A signal that came while the process was stopped is the user's to let in; every other failure is what it is.
fn cannot_borrow(pid: i32, error: tracer::Error) -> anyhow::Error {
    let tracer::Error::SignalWaits(tid) = error else {
        return anyhow::Error::from(error).context("borrow a thread");
    };
    let object = format!("thread {tid}");
    let reason = "is stopped, and a signal waits until it goes on, which cryopod would deliver now";
    let remedy = format!("let it go on first (kill -CONT {pid})");
    Refused::from(Refusal::new(pid, object, reason, remedy)).into()
}

/// All but those that are as after execve(2) with nothing ignored: the default action, without flags.
fn signal_actions(remote: &mut Remote<'_>) -> tracer::Result<Vec<SignalAction>> {
    let mut actions = Vec::new();
    for signal in (1..=64).filter(|signal| ![libc::SIGKILL, libc::SIGSTOP].contains(signal)) {
        let action = remote.sigaction(signal)?;
        if action
            != (SignalAction {
                signal,
                ..SignalAction::default()
            })
        {
            actions.push(action);
        }
    }
    Ok(actions)
}
