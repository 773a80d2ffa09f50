//! Pseudo-terminals (pty(7)) that the processes have for each other, as script(1) and terminal multiplexers make them.
//!
//! One whose master is outside is a terminal like any other: [`super::stdio`].

mod look;
mod make;
mod waiting;

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use anyhow::{Context, Result};
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::stat::{FileStat, major, minor, stat};
use nix::sys::termios::tcgetattr;
use serde::{Deserialize, Serialize};

use super::kind::{Kind, Probe, Unfit};
use super::look::Look;
use super::probe::{Seen, file_type};
use super::thaw::{Check, ReopenContext};
use crate::image::state::{Description, Line, Snapshot};
use crate::sys::pty;

pub use look::take_all;
pub use make::{MadePty, make_all};

/// What a descriptor of a terminal refers to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Tty {
    /// The master of /dev/pts/N.
    Master(u32),
    /// /dev/pts/N, whatever name it was opened by.
    Slave(u32),
    /// The master is gone: the end for good of all that were open then.
    HungUp,
    /// A console, a serial line …
    Other,
}

impl Tty {
    /// None of what is no terminal.
    pub fn of(file: BorrowedFd<'_>, stat: &FileStat) -> Result<Option<Self>> {
        let (major, minor) = (major(stat.st_rdev) as u32, minor(stat.st_rdev) as u32);
        if file_type(stat) != libc::S_IFCHR {
            return Ok(None);
        }
        match tcgetattr(file) {
            Ok(_) => {}
            // hung_up_tty_ioctl(), drivers/tty/tty_io.c.
            // 5, 0 is /dev/tty.
            Err(Errno::EIO) if pty::slave_number(major, minor).is_some() || (major, minor) == (5, 0) => {
                return Ok(Some(Tty::HungUp));
            }
            Err(_) => return Ok(None),
        }
        if let Ok(number) = pty::number(file) {
            return Ok(Some(Tty::Master(number)));
        }
        let slave = pty::device(file)
            .ok()
            .and_then(|(major, minor)| pty::slave_number(major, minor));
        Ok(Some(slave.map_or(Tty::Other, Tty::Slave)))
    }
}

const CLOSE: &str = "have the program close it first";

#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Master {
    /// Index into Snapshot::ptys.
    pub pty: u32,
}

impl Kind for Master {
    fn claims(seen: &Seen, _look: &Look<'_>) -> bool {
        matches!(seen.tty, Some(Tty::Master(_)))
    }

    fn describe(probe: &Probe<'_>, look: &mut Look<'_>) -> Result<Self, Unfit> {
        let Some(Tty::Master(number)) = probe.seen.tty else {
            return Err(Unfit::Failed(anyhow::anyhow!("is no master")));
        };
        if let Some(holder) = look.ends.holder_of_pty(number) {
            return Err(Unfit::refused(
                format!("is the master of /dev/pts/{number}, which pid {holder} has open, too"),
                "end that process first, or freeze it along",
            ));
        }
        let mut polled = [PollFd::new(probe.file.as_fd(), PollFlags::POLLPRI)];
        poll(&mut polled, PollTimeout::ZERO).context("poll")?;
        let ready = polled[0].revents().unwrap_or(PollFlags::empty());
        let is_open = look.seen.iter().any(|other| other.tty == Some(Tty::Slave(number)));
        if !is_open && !ready.contains(PollFlags::POLLHUP) {
            return Err(Unfit::refused(
                format!(
                    "is the master of /dev/pts/{number}, which nobody has opened yet: what waits in it cannot be seen"
                ),
                "freeze again once the program has opened it",
            ));
        }
        if ready.contains(PollFlags::POLLPRI) {
            return Err(Unfit::refused(
                "has a change to tell its reader (TIOCPKT) that cannot be put back",
                "freeze again once the program has read it",
            ));
        }
        let pty = look.ends.pty(number).context("a master that was not seen")?;
        Ok(Master { pty })
    }

    fn check(&self, description: &Description, check: &mut Check<'_>) {
        check_index(self.pty, description, check);
    }

    fn reopen(&self, _description: &Description, context: &mut ReopenContext) -> Result<OwnedFd> {
        context.pty(self.pty)?.master()
    }

    fn finish(&self, file: BorrowedFd<'_>, _description: &Description, snapshot: &Snapshot) -> Result<()> {
        let wanted = snapshot.ptys.get(self.pty as usize);
        make::finish(file, wanted.context("a pseudo-terminal that is not there")?)
    }
}

fn check_index(pty: u32, description: &Description, check: &mut Check<'_>) {
    if check.snapshot.ptys.get(pty as usize).is_none() {
        check.refuse(
            description,
            "refers to a pseudo-terminal that is not in the image",
            "freeze again",
        );
    }
}

#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Slave {
    /// Index into Snapshot::ptys.
    pub pty: u32,
}

impl Kind for Slave {
    fn claims(seen: &Seen, look: &Look<'_>) -> bool {
        matches!(seen.tty, Some(Tty::Slave(number)) if look.ends.pty(number).is_some())
    }

    fn describe(probe: &Probe<'_>, look: &mut Look<'_>) -> Result<Self, Unfit> {
        let Some(Tty::Slave(number)) = probe.seen.tty else {
            return Err(Unfit::Failed(anyhow::anyhow!("is no slave")));
        };
        let path = format!("/dev/pts/{number}");
        let is_same = |named: FileStat| (named.st_dev, named.st_ino) == probe.seen.inode();
        if probe.seen.link == path.as_bytes() && !stat(path.as_str()).is_ok_and(is_same) {
            return Err(Unfit::refused(
                "is of another instance of devpts(5) than /dev/pts here",
                CLOSE,
            ));
        }
        let pty = look.ends.pty(number).context("a slave whose master was not seen")?;
        Ok(Slave { pty })
    }

    fn check(&self, description: &Description, check: &mut Check<'_>) {
        check_index(self.pty, description, check);
    }

    fn reopen(&self, description: &Description, context: &mut ReopenContext) -> Result<OwnedFd> {
        context.pty(self.pty)?.open_slave(description.status_flags)
    }
}

/// A slave whose master was closed while it was open: reads end, and all else fails.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct HungUp {}

impl Kind for HungUp {
    fn claims(seen: &Seen, _look: &Look<'_>) -> bool {
        seen.tty == Some(Tty::HungUp)
    }

    fn describe(_probe: &Probe<'_>, _look: &mut Look<'_>) -> Result<Self, Unfit> {
        Ok(HungUp {})
    }

    fn reopen(&self, description: &Description, _context: &mut ReopenContext) -> Result<OwnedFd> {
        make::hung_up(description.status_flags)
    }
}

fn line(settings: &pty::Termios2) -> Line {
    Line {
        input: settings.c_iflag,
        output: settings.c_oflag,
        control: settings.c_cflag,
        local: settings.c_lflag,
        characters: settings.c_cc.to_vec(),
        input_speed: settings.c_ispeed,
        output_speed: settings.c_ospeed,
    }
}

/// The line discipline is N_TTY.
fn settings(line: &Line) -> pty::Termios2 {
    let mut settings = pty::Termios2 {
        c_iflag: line.input,
        c_oflag: line.output,
        c_cflag: line.control,
        c_lflag: line.local,
        c_line: 0,
        c_cc: [0; 19],
        c_ispeed: line.input_speed,
        c_ospeed: line.output_speed,
    };
    for (at, character) in settings.c_cc.iter_mut().zip(&line.characters) {
        *at = *character;
    }
    settings
}
