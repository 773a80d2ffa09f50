//! The terminal of a program that led a session on one, as a shell in a window does: a pseudo-terminal of thaw's, which carries what goes
//! to and comes from the terminal that thaw runs on, as script(1) does it, or the terminal that the user names.
#![deny(unsafe_code)]

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};

use anyhow::{Context, Result};
use nix::fcntl::{OFlag, open};
use nix::poll::{PollFd, PollFlags, poll};
use nix::sys::stat::Mode;
use nix::sys::termios::{SetArg, Termios, cfmakeraw, tcgetattr, tcsetattr};
use nix::unistd::{isatty, tcgetpgrp};

use super::foreground::stop_ourselves;
use super::namespace::is_in_foreground;
use crate::fd::{Pump, open_again};
use crate::image::state::Snapshot;
use crate::sys::pty;
use crate::sys::terminal::{Winsize, set_size, size};

/// `--tty`: what the terminals of the program become.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Tty {
    Path(PathBuf),
    /// A new pseudo-terminal, between stdin and stdout.
    New,
}

/// What becomes of terminals that the program had.
#[derive(Default)]
pub struct Screen {
    /// The terminal itself, for the program.
    pub terminal: Option<OwnedFd>,
    pub relay: Option<Relay>,
    /// Where nobody stays to relay it: what goes to stdout.
    pub pump: Option<Pump>,
}

impl Screen {
    /// `wanted`: that of --tty. Without it one is made where somebody led a session on a terminal and we are on one that can stand for it.
    pub fn choose(snapshot: &Snapshot, wanted: Option<&Tty>, detach: bool) -> Result<Self> {
        if let Some(Tty::New) = wanted {
            let mut screen = Self::relayed(snapshot, None).context("make a pseudo-terminal")?;
            if let Some(relay) = screen.relay.take_if(|_| detach) {
                screen.pump = Some(relay.into_pump()?);
            }
            return Ok(screen);
        }
        if let Some(Tty::Path(path)) = wanted {
            let terminal = open(path, OFlag::O_RDWR | OFlag::O_NOCTTY | OFlag::O_CLOEXEC, Mode::empty())
                .with_context(|| format!("open {}", path.display()))?;
            anyhow::ensure!(isatty(&terminal).unwrap_or(false), "{} is no terminal", path.display());
            return Ok(Screen {
                terminal: Some(terminal),
                ..Screen::default()
            });
        }
        let is_led = snapshot
            .processes
            .iter()
            .any(|process| process.foreground_outside().is_some());
        let (stdin, stdout, stderr) = (io::stdin(), io::stdout(), io::stderr());
        let own = [stdin.as_fd(), stdout.as_fd(), stderr.as_fd()];
        let own = own.into_iter().find(|fd| isatty(fd).unwrap_or(false));
        match own {
            Some(own) if is_led && !detach => {
                let own = File::from(open_again(own, libc::O_RDWR)?);
                Self::relayed(snapshot, Some(own)).context("make a pseudo-terminal")
            }
            _ => Ok(Screen::default()),
        }
    }

    /// On our own terminal, or between stdin and stdout.
    fn relayed(snapshot: &Snapshot, own: Option<File>) -> Result<Self> {
        let master = free_master(snapshot)?;
        let terminal = pty::open_slave(&master, libc::O_RDWR).context("TIOCGPTPEER")?;
        // What belongs to the line is that of our own, the rest as the program left it.
        let own = own.map(Own::new).transpose()?;
        if let Some(own) = &own {
            tcsetattr(&terminal, SetArg::TCSANOW, &own.before).context("tcsetattr")?;
        }
        if let Some(settings) = crate::fd::terminal_settings(snapshot) {
            settings.apply(&terminal)?;
        }
        let relay = Relay {
            master: File::from(master),
            own,
        };
        relay.pass_size()?;
        Ok(Screen {
            terminal: Some(terminal),
            relay: Some(relay),
            pump: None,
        })
    }
}

/// Of a pseudo-terminal that none of the program's is to be.
fn free_master(snapshot: &Snapshot) -> Result<OwnedFd> {
    let mut wanted = Vec::new();
    loop {
        let master = pty::open_master().context("open /dev/ptmx")?;
        let number = pty::number(&master).context("TIOCGPTN")?;
        if !snapshot.ptys.iter().any(|pty| pty.number == number) {
            return Ok(master);
        }
        wanted.push(master);
    }
}

/// Between our terminal, which is raw meanwhile, or stdin and stdout, and the master of the program's.
pub struct Relay {
    master: File,
    own: Option<Own>,
}

/// Our terminal, and its settings when we came.
struct Own {
    terminal: File,
    before: Termios,
}

/// One that runs.
pub struct Running {
    relay: Relay,
    is_over: Arc<AtomicBool>,
    output: JoinHandle<io::Result<()>>,
}

impl Relay {
    /// Carries bytes both ways from now on.
    pub fn start(self) -> Result<Running> {
        self.take_terminal()?;
        let is_over = Arc::new(AtomicBool::new(false));
        let duplicate = |file: &File| file.try_clone().context("duplicate a descriptor");
        let (mut from, into) = (self.input()?, duplicate(&self.master)?);
        // It ends with us: what is typed when the program is gone is the shell's.
        thread::spawn(move || carry(&mut from, &into, None));
        let (mut from, into, over) = (duplicate(&self.master)?, self.output()?, Arc::clone(&is_over));
        let output = thread::spawn(move || carry(&mut from, &into, Some(&over)));
        Ok(Running {
            relay: self,
            is_over,
            output,
        })
    }

    fn input(&self) -> Result<File> {
        match &self.own {
            Some(own) => own.terminal.try_clone().context("duplicate a descriptor"),
            None => duplicate_of(io::stdin().as_fd()),
        }
    }

    fn output(&self) -> Result<File> {
        match &self.own {
            Some(own) => own.terminal.try_clone().context("duplicate a descriptor"),
            None => duplicate_of(io::stdout().as_fd()),
        }
    }

    fn into_pump(self) -> Result<Pump> {
        Ok(Pump {
            from: self.master.try_clone().context("duplicate a descriptor")?.into(),
            into: self.output()?.into(),
            output: true,
        })
    }

    fn take_terminal(&self) -> Result<()> {
        self.own.as_ref().map_or(Ok(()), Own::take)?;
        self.pass_size()
    }

    fn pass_size(&self) -> Result<()> {
        let size = match &self.own {
            Some(own) => size(own.terminal.as_fd()).context("the size of the terminal")?,
            None => Winsize {
                ws_row: 24,
                ws_col: 80,
                ws_xpixel: 0,
                ws_ypixel: 0,
            },
        };
        set_size(self.master.as_fd(), &size).context("the size of the terminal")
    }

    fn give_back(&self) -> Result<()> {
        self.own.as_ref().map_or(Ok(()), Own::give_back)
    }
}

fn duplicate_of(fd: BorrowedFd<'_>) -> Result<File> {
    Ok(fd.try_clone_to_owned().context("duplicate stdin or stdout")?.into())
}

impl Own {
    fn new(terminal: File) -> Result<Self> {
        let before = tcgetattr(&terminal).context("tcgetattr")?;
        Ok(Own { terminal, before })
    }

    /// Waits, stopped, until our group is in the foreground: what comes from a terminal is for those who are. SIGTTOU and SIGTTIN are blocked
    /// (`hold_signals`).
    fn take(&self) -> Result<()> {
        while tcgetpgrp(&self.terminal).is_ok() && !is_in_foreground(&self.terminal) {
            stop_ourselves()?;
        }
        let mut raw = self.before.clone();
        cfmakeraw(&mut raw);
        tcsetattr(&self.terminal, SetArg::TCSANOW, &raw).context("tcsetattr")
    }

    fn give_back(&self) -> Result<()> {
        tcsetattr(&self.terminal, SetArg::TCSADRAIN, &self.before).context("tcsetattr")
    }
}

impl Running {
    /// Our terminal has another size.
    pub fn pass_size(&self) -> Result<()> {
        self.relay.pass_size()
    }

    /// Stops with the program, the terminal as it was before.
    pub fn stop(&self) -> Result<()> {
        self.relay.give_back()?;
        stop_ourselves()?;
        self.relay.take_terminal()
    }

    /// The program has ended: what it wrote last is still to come. Others may have the terminal for longer, but nobody looks any more.
    pub fn end(self) -> Result<()> {
        self.is_over.store(true, Ordering::Release);
        // What it met is the reader's business.
        drop(self.output.join());
        self.relay.give_back()
    }
}

/// Until the other side hangs up or, once it `is_over`, nothing more is there.
fn carry(from: &mut File, mut into: &File, is_over: Option<&AtomicBool>) -> io::Result<()> {
    let mut buffer = vec![0; 16 << 10];
    loop {
        let over = is_over.is_some_and(|over| over.load(Ordering::Acquire));
        let wait_ms = match (over, is_over) {
            (true, _) => 0,
            (false, Some(_)) => 20,
            (false, None) => -1,
        };
        let mut ready = [PollFd::new(from.as_fd(), PollFlags::POLLIN)];
        let timeout = nix::poll::PollTimeout::try_from(wait_ms).map_err(io::Error::other)?;
        match poll(&mut ready, timeout) {
            Ok(0) if over => return Ok(()),
            Ok(0) | Err(nix::Error::EINTR) => continue,
            Ok(_) => {}
            Err(errno) => return Err(errno.into()),
        }
        match from.read(&mut buffer) {
            Ok(0) => return Ok(()),
            Ok(len) => into.write_all(&buffer[..len])?,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
}
