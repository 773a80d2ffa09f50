//! What no interface shows from outside: the process is asked, by system calls that its threads are made to run.

use std::collections::HashMap;

use anyhow::{Context, Result};
use nix::unistd::Pid;

use super::policies::Candidates;
use super::speculation;
use crate::image::state::{MemoryPolicy, ProcessSettings, Rseq};
use crate::image::state::{PosixTimer, SigAltStack, SignalAction, TimerTime};
use crate::refusal::{Refusal, Refused};
use crate::tracer::{self, Remote, StoppedProcess, StoppedThread};

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
    /// What could not be asked, for people.
    pub untold: Vec<String>,
    /// It has no children, and traces nobody.
    pub waits_for_nobody: bool,
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
    /// Where the kernel does not tell it by itself.
    pub rseq: Option<Rseq>,
}

/// What to ask beyond what every program is asked.
pub struct Questions<'a> {
    /// Their times are filled in.
    pub timers: &'a mut [PosixTimer],
    /// Where mappings begin that may have a memory policy.
    pub mappings: Candidates,
    /// In the order of the threads: what /proc/TID/status tells of speculation control.
    pub speculation: Vec<[Option<u32>; 3]>,
    /// Whether the CPU can make the instruction CPUID raise a signal.
    pub cpuid_may_fault: bool,
    /// Whether the kernel tells of rseq(2).
    pub rseq_is_told: bool,
}

/// Asks the first thread about the process, and each about itself.
pub fn ask(process: &mut StoppedProcess, mut questions: Questions<'_>) -> Result<Answers> {
    let pid = process.pid().as_raw();
    let tids: Vec<_> = process.threads().iter().map(StoppedThread::tid).collect();
    let mut remote = Remote::borrow(process, 0).map_err(|error| cannot_borrow(pid, error))?;
    let asked = ask_all(&mut remote, &tids, &mut questions);
    // Whatever came of it, the thread gets its registers back.
    remote.give_back().context("give a thread its registers back")?;
    asked
}

fn ask_all(remote: &mut Remote<'_>, tids: &[Pid], questions: &mut Questions<'_>) -> Result<Answers> {
    let pid = tids[0].as_raw();
    let mut untold = Untold::default();
    let known = speculation::known(&questions.speculation[0], 0, [0; 3]);
    let cpuid_may_fault = questions.cpuid_may_fault;
    let asked = remote.at_once(|remote| {
        let of_thread = ask_thread(remote, known, cpuid_may_fault, &mut untold)?;
        let mut answers = ask_process(remote, questions, &mut untold)?;
        answers.threads.push(of_thread);
        Ok(answers)
    });
    let mut answers = asked
        .map_err(|error| cannot_ask(pid, error))
        .context("ask the process")?;
    let first_speculation = answers.threads[0].speculation;
    if !questions.rseq_is_told {
        answers.threads[0].rseq = rseq(remote, pid, tids[0])?;
    }
    for (index, tid) in tids.iter().enumerate().skip(1) {
        remote.pass_on(index).map_err(|error| cannot_borrow(pid, error))?;
        let known = speculation::known(&questions.speculation[index], index, first_speculation);
        let asked = remote.at_once(|remote| ask_thread(remote, known, cpuid_may_fault, &mut untold));
        let of_thread = asked.map_err(|error| cannot_ask(pid, error));
        let mut of_thread = of_thread.with_context(|| format!("ask thread {tid}"))?;
        if !questions.rseq_is_told {
            of_thread.rseq = rseq(remote, pid, *tid)?;
        }
        answers.threads.push(of_thread);
    }
    Ok(Answers {
        untold: untold.0,
        ..answers
    })
}

fn ask_thread(
    remote: &mut Remote<'_>,
    known: [Option<u32>; 3],
    cpuid_may_fault: bool,
    untold: &mut Untold,
) -> tracer::Result<ThreadAnswers> {
    let mut speculation = [0; 3];
    for (which, known) in known.into_iter().enumerate() {
        speculation[which] = match known {
            Some(state) => state,
            None => untold.or(remote.get_speculation(which as u32), 0)?,
        };
    }
    Ok(ThreadAnswers {
        sigaltstack: remote.sigaltstack()?,
        clear_child_tid: remote.get_tid_address()?,
        pdeath_signal: remote.get_pdeath_signal()?,
        securebits: remote.get_securebits()?,
        timer_slack_ns: remote.get_timer_slack()?,
        tsc: untold.or(remote.get_tsc(), 0)?,
        cpuid_faults: cpuid_may_fault && untold.or(remote.cpuid_faults(), false)?,
        speculation,
        memory_policy: untold.or(remote.memory_policy(None), None)?,
        rseq: None,
    })
}

/// On kernels before Linux 5.13.
fn rseq(remote: &mut Remote<'_>, pid: i32, tid: Pid) -> Result<Option<Rseq>> {
    let found = remote.find_rseq().map_err(|error| cannot_ask(pid, error))?;
    found.map_err(|reason| {
        let remedy = "run it on Linux 5.13 or later, or with GLIBC_TUNABLES=glibc.pthread.rseq=0";
        Refused::from(Refusal::new(pid, format!("thread {tid}"), reason, remedy)).into()
    })
}

/// Whom a process waits for that may not be asked is found out otherwise.
fn waits_for_somebody(remote: &mut Remote<'_>) -> tracer::Result<bool> {
    match remote.waits_for_somebody() {
        Err(tracer::Error::Forbidden { .. }) => Ok(true),
        other => other,
    }
}

fn ask_process(remote: &mut Remote<'_>, questions: &mut Questions<'_>, untold: &mut Untold) -> tracer::Result<Answers> {
    for timer in questions.timers.iter_mut() {
        timer.time = remote.timer_gettime(timer.id)?;
        timer.overrun = remote.timer_getoverrun(timer.id)?;
    }
    let mut memory_policies = HashMap::new();
    if let Err(note) = &questions.mappings {
        untold.0.push(note.clone());
    }
    for &address in questions.mappings.iter().flatten() {
        if let Some(policy) = untold.or(remote.memory_policy(Some(address)), None)? {
            memory_policies.insert(address, policy);
        }
    }
    Ok(Answers {
        brk: remote.brk()?,
        dumpable: remote.get_dumpable()?,
        child_subreaper: untold.or(remote.get_child_subreaper(), false)?,
        settings: ProcessSettings {
            thp_disable: untold.or(remote.get_thp_disable(), 0)?,
            mdwe: untold.or(remote.get_mdwe(), 0)?,
            memory_merge: untold.or(remote.get_memory_merge(), false)?,
            membarrier: untold.or(remote.membarrier_registrations(), 0)?,
            futex_slots: untold.or(remote.get_futex_slots(), None)?,
            xstate_permission: untold.or(remote.xstate_permission(), 0)?,
            ..ProcessSettings::default()
        },
        has_ldt: untold.or(remote.has_ldt(), false)?,
        memory_policies,
        untold: Vec::new(),
        waits_for_nobody: !waits_for_somebody(remote)?,
        signal_actions: signal_actions(remote)?,
        interval_timers: [remote.getitimer(0)?, remote.getitimer(1)?, remote.getitimer(2)?],
        threads: Vec::new(),
    })
}

/// Settings that a seccomp filter of the program does not let it tell. They are taken for not set, and that is said.
#[derive(Debug, Default)]
struct Untold(Vec<String>);

impl Untold {
    fn or<T>(&mut self, answer: tracer::Result<T>, default: T) -> tracer::Result<T> {
        let Err(tracer::Error::Forbidden { call, .. }) = answer else {
            return answer;
        };
        let note = format!("its seccomp filter forbids {call}, which would tell a setting: taken for not set");
        if !self.0.contains(&note) {
            self.0.push(note);
        }
        Ok(default)
    }
}

/// A call that the program's own filter would not let it make is a refusal, whatever it is for.
fn cannot_ask(pid: i32, error: tracer::Error) -> anyhow::Error {
    let tracer::Error::Forbidden { tid, call } = error else {
        return error.into();
    };
    let object = format!("thread {tid}");
    let reason = format!("is under a seccomp filter that forbids {call}, which cryopod would have to make it call");
    let remedy = "allow that call, or start the program without its sandbox";
    Refused::from(Refusal::new(pid, object, reason, remedy)).into()
}

/// A signal that came while the process was stopped is the user's to let in; every other failure is what it is.
pub(super) fn cannot_borrow(pid: i32, error: tracer::Error) -> anyhow::Error {
    let tracer::Error::SignalWaits(tid) = error else {
        return cannot_ask(pid, error).context("borrow a thread");
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
