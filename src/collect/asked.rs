//! What no interface shows from outside: the process is asked, by system calls that its threads are made to run.

use anyhow::{Context, Result};

use crate::image::state::{PosixTimer, SigAltStack, SignalAction, TimerTime};
use crate::refusal::{Refusal, Refused};
use crate::tracer::{self, Remote, StoppedProcess};

/// Answers of the process as a whole.
#[derive(Debug, Default)]
pub struct Answers {
    pub brk: u64,
    pub dumpable: u32,
    pub child_subreaper: bool,
    pub thp_disable: u32,
    pub mdwe: u32,
    pub has_ldt: bool,
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
}

/// Asks the first thread about the process, and each about itself; fills in the times of `timers`.
pub fn ask(process: &mut StoppedProcess, timers: &mut [PosixTimer]) -> Result<Answers> {
    let mut answers = Answers::default();
    let mut of_threads = Vec::with_capacity(process.threads().len());
    for index in 0..process.threads().len() {
        let tid = process.threads()[index].tid();
        let pid = process.pid().as_raw();
        let mut remote = Remote::borrow(process, index).map_err(|error| cannot_borrow(pid, error))?;
        let of_thread = ask_thread(&mut remote).with_context(|| format!("ask thread {tid}"));
        let of_process = match index {
            0 => ask_process(&mut remote, timers).context("ask the process").map(Some),
            _ => Ok(None),
        };
        // Whatever came of it, the thread gets its registers back.
        remote
            .give_back()
            .with_context(|| format!("give thread {tid} its registers back"))?;
        of_threads.push(of_thread?);
        answers = of_process?.unwrap_or(answers);
    }
    Ok(Answers {
        threads: of_threads,
        ..answers
    })
}

fn ask_thread(remote: &mut Remote<'_>) -> tracer::Result<ThreadAnswers> {
    Ok(ThreadAnswers {
        sigaltstack: remote.sigaltstack()?,
        clear_child_tid: remote.get_tid_address()?,
        pdeath_signal: remote.get_pdeath_signal()?,
        securebits: remote.get_securebits()?,
        timer_slack_ns: remote.get_timer_slack()?,
    })
}

fn ask_process(remote: &mut Remote<'_>, timers: &mut [PosixTimer]) -> tracer::Result<Answers> {
    for timer in timers {
        timer.time = remote.timer_gettime(timer.id)?;
        timer.overrun = remote.timer_getoverrun(timer.id)?;
    }
    Ok(Answers {
        brk: remote.brk()?,
        dumpable: remote.get_dumpable()?,
        child_subreaper: remote.get_child_subreaper()?,
        thp_disable: remote.get_thp_disable()?,
        mdwe: none_if_unknown(remote.get_mdwe())?,
        has_ldt: remote.has_ldt()?,
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

/// A kernel that does not know a prctl(2) command says EINVAL: what it would tell is not set then.
fn none_if_unknown(answer: tracer::Result<u32>) -> tracer::Result<u32> {
    match answer {
        Err(error) if error.errno() == Some(nix::Error::EINVAL) => Ok(0),
        other => other,
    }
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
