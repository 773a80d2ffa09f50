//! Thaw's terminal, and how a program has it for a while: as the foreground process group, with its own settings.
#![deny(unsafe_code)]

use std::io;
use std::os::fd::{AsFd, OwnedFd};

use anyhow::{Context, Result};
use nix::errno::Errno;
use nix::unistd::{Pid, getpgrp, tcgetpgrp, tcsetpgrp};

use super::namespace::is_in_foreground;
use crate::fd::TerminalSettings;

/// The controlling terminal, where we have one on stdin, stdout or stderr.
pub(super) struct Terminal(OwnedFd);

impl Terminal {
    pub(super) fn own() -> Option<Self> {
        let (stdin, stdout, stderr) = (io::stdin(), io::stdout(), io::stderr());
        let candidates = [stdin.as_fd(), stdout.as_fd(), stderr.as_fd()];
        // tcgetpgrp fails with ENOTTY on all but our controlling terminal.
        let fd = candidates.into_iter().find(|fd| tcgetpgrp(fd).is_ok())?;
        fd.try_clone_to_owned().ok().map(Terminal)
    }

    pub(super) fn of_group(group: Pid) -> Option<Self> {
        Self::own().filter(|terminal| match group == getpgrp() {
            true => is_in_foreground(&terminal.0),
            false => tcgetpgrp(&terminal.0) == Ok(group),
        })
    }

    /// SIGTTOU is blocked, see `foreground::hold_signals`, so that a background group may do this.
    pub(super) fn give_to(&self, group: Pid) -> Result<()> {
        match tcsetpgrp(&self.0, group) {
            // The group is gone, or somebody else has the terminal by now.
            Ok(()) | Err(Errno::ESRCH | Errno::EPERM | Errno::ENOTTY) => Ok(()),
            Err(errno) => Err(errno).context("hand over the terminal"),
        }
    }
}

/// What the program has of our terminal.
pub struct Lending {
    /// The program's process group: its own, or ours.
    group: Pid,
    /// As the program had them. None: it had no terminal.
    settings: Option<TerminalSettings>,
    /// Our own, once the terminal has those of the program.
    before: Option<TerminalSettings>,
}

impl Lending {
    /// Of nothing, for a program with a session of its own.
    pub fn none() -> Self {
        Self::new(getpgrp(), None)
    }

    pub fn new(group: Pid, settings: Option<TerminalSettings>) -> Self {
        Lending {
            group,
            settings,
            before: None,
        }
    }

    /// Gives the terminal to the program, where it is ours to give: where we are in the foreground. Settings go with it the first time only;
    /// whoever was stopped and goes on sets the terminal as it needs it, as under any shell. True that first time: the program has a screen
    /// then that it does not know.
    pub fn lend(&mut self) -> Result<bool> {
        let Some(terminal) = Terminal::of_group(getpgrp()) else {
            return Ok(false);
        };
        if self.group != getpgrp() {
            terminal.give_to(self.group)?;
        }
        match &self.settings {
            Some(settings) if self.before.is_none() => {
                self.before = TerminalSettings::of(&terminal.0)?;
                settings.apply(&terminal.0)?;
                Ok(true)
            }
            _ => Ok(false),
        }
    }

    /// Makes our group the foreground again, where the program's was.
    pub fn take_back(&self) -> Result<()> {
        match Terminal::of_group(self.group) {
            Some(terminal) if self.group != getpgrp() => terminal.give_to(getpgrp()),
            _ => Ok(()),
        }
    }

    /// The program ended. If a signal `killed` it, or it left the settings as it got them, it has not put the terminal in order, and this does;
    /// others have the last word.
    pub fn end(&self, killed: bool) -> Result<()> {
        if let (Some(before), Some(terminal)) = (&self.before, Terminal::of_group(self.group))
            && (killed || TerminalSettings::of(&terminal.0)? == self.settings)
        {
            before.apply(&terminal.0)?;
        }
        self.take_back()
    }
}
