//! A thaw in the foreground is the program as far as anybody can see: signals pass through, it stops and goes on with it, and
//! it ends with its exit code.
#![deny(unsafe_code)]

use std::fs::OpenOptions;
use std::io::{self, IsTerminal};
use std::thread::{self, JoinHandle};

use anyhow::{Context, Result};
use nix::errno::Errno;
use nix::sys::signal::{SigSet, SigmaskHow, Signal, pthread_sigmask, raise};
use nix::unistd::{Pid, dup2_stdin, dup2_stdout};

use super::Thawed;
use super::screen::{Relay, Running};
use super::terminal::Lending;
use crate::fd::Pump;
use crate::resurrect::plan::Session;
use crate::sys::{self, Became};

/// Signals that pass through: all that can be caught, but those that report our own faults and our own children.
const OWN: [Signal; 9] = [
    Signal::SIGKILL,
    Signal::SIGSTOP,
    Signal::SIGCHLD,
    Signal::SIGSEGV,
    Signal::SIGBUS,
    Signal::SIGILL,
    Signal::SIGFPE,
    Signal::SIGTRAP,
    Signal::SIGPIPE,
];

/// What waits once [`hold_signals`] was called.
pub(super) fn passing_and_children() -> SigSet {
    let mut set = passing();
    set.add(Signal::SIGCHLD);
    set
}

fn passing() -> SigSet {
    let mut set = SigSet::all();
    OWN.into_iter().for_each(|signal| set.remove(signal));
    set
}

/// Signals that end a thaw which has not let the program go yet.
const ABORT: [Signal; 4] = [Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP, Signal::SIGQUIT];

/// While the program is rebuilt, signals for it wait, but for those that users abort a command with.
pub fn hold_signals_but_aborts() -> Result<()> {
    let mut set = passing();
    ABORT.into_iter().for_each(|signal| set.remove(signal));
    pthread_sigmask(SigmaskHow::SIG_BLOCK, Some(&set), None).context("block signals")
}

/// From here on signals for the program wait in our queue until [`follow`] passes them on. Call before the program goes on.
pub fn hold_signals() -> Result<()> {
    pthread_sigmask(SigmaskHow::SIG_BLOCK, Some(&passing_and_children()), None).context("block signals")
}

/// Stays until the program ends; returns its exit code, or 128+N where signal N ended it.
pub fn follow(thawed: Thawed, begins_stopped: bool) -> Result<u8> {
    let mut follower = Follower {
        pid: thawed.pid,
        session: thawed.session,
        lending: thawed.lending,
        relay: thawed.relay.map(Relay::start).transpose()?,
    };
    let outputs = start_pumps(thawed.pumps);
    let_go_of_stdio()?;
    let mut expected_stop = begins_stopped;
    let wait_for = passing_and_children();
    loop {
        if let Some(code) = follower.report(&mut expected_stop)? {
            follower.relay.take().map_or(Ok(()), Running::end)?;
            // The program's last output may still be on its way; what its pump met is the reader's business.
            outputs.into_iter().for_each(|output| drop(output.join()));
            return Ok(code);
        }
        let info = sys::wait_for_signal(&wait_for).context("wait for signals")?;
        if info.signal != libc::SIGCHLD {
            follower.pass_on(&info)?;
        }
    }
}

/// Each in a thread of its own; those that carry output are to be waited for.
fn start_pumps(pumps: Vec<Pump>) -> Vec<JoinHandle<io::Result<()>>> {
    let (outputs, inputs): (Vec<Pump>, Vec<Pump>) = pumps.into_iter().partition(|pump| pump.output);
    let start = |pump: Pump| thread::spawn(move || pump.run());
    inputs.into_iter().for_each(|pump| drop(start(pump)));
    outputs.into_iter().map(start).collect()
}

struct Follower {
    pid: Pid,
    session: Session,
    lending: Lending,
    relay: Option<Running>,
}

impl Follower {
    /// Takes in what became of the program since the last look.
    fn report(&mut self, expected_stop: &mut bool) -> Result<Option<u8>> {
        loop {
            match sys::look_at_child(self.pid) {
                Ok(Became::Exited(code)) => return self.ended(code as u8, false).map(Some),
                Ok(Became::Killed(signal)) => return self.ended(128 + signal as u8, true).map(Some),
                Ok(Became::Stopped(_)) if std::mem::take(expected_stop) => {}
                Ok(Became::Stopped(_)) => self.stop_as_well()?,
                Ok(Became::Same) => return Ok(None),
                Err(Errno::EINTR) => {}
                Err(errno) => return Err(errno).context("wait for the program"),
            }
        }
    }

    fn ended(&self, code: u8, killed: bool) -> Result<u8> {
        self.lending.end(killed).map(|()| code)
    }

    /// ^Z stops the program; the shell that waits for us is to see a stopped job, and its fg makes both go on.
    fn stop_as_well(&mut self) -> Result<()> {
        if let Some(relay) = &self.relay {
            relay.stop()?;
            return self.send(libc::SIGCONT);
        }
        self.lending.take_back()?;
        stop_ourselves()?;
        let has_another_screen = self.lending.lend()?;
        self.send(libc::SIGCONT)?;
        match has_another_screen {
            true => self.send(libc::SIGWINCH),
            false => Ok(()),
        }
    }

    /// A signal of the kernel's own, such as ^C makes it, went to the whole process group: a program in ours has it already.
    fn pass_on(&self, info: &sys::SignalInfo) -> Result<()> {
        match &self.relay {
            Some(relay) if info.signal == libc::SIGWINCH => return relay.pass_size(),
            None if info.code == libc::SI_KERNEL && self.session == Session::Join => return Ok(()),
            _ => {}
        }
        self.send(info.signal)
    }

    fn send(&self, signal: i32) -> Result<()> {
        send(self.pid, signal)
    }
}

/// One that has ended needs none, and the next look at it says so.
pub(super) fn send(pid: Pid, signal: i32) -> Result<()> {
    match sys::kill(pid, signal) {
        Ok(()) | Err(Errno::ESRCH) => Ok(()),
        Err(errno) => Err(errno).with_context(|| format!("pass signal {signal} on to pid {pid}")),
    }
}

/// Until somebody makes us go on. What did waits in our queue, as all that passes through; passed on as well, it would come to the program twice.
pub(super) fn stop_ourselves() -> Result<()> {
    raise(Signal::SIGSTOP).context("stop")?;
    sys::take_signal(&SigSet::from(Signal::SIGCONT)).context("go on")
}

/// Our own ends of what is now the program's: while we hold them, a reader of its output would not see it close.
fn let_go_of_stdio() -> Result<()> {
    let null = OpenOptions::new()
        .read(true)
        .write(true)
        .open("/dev/null")
        .context("open /dev/null")?;
    if !io::stdin().is_terminal() {
        dup2_stdin(&null).context("let go of stdin")?;
    }
    if !io::stdout().is_terminal() {
        dup2_stdout(&null).context("let go of stdout")?;
    }
    Ok(())
}
