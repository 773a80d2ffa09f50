//! The settings of a terminal (termios(3)), as a program left them.

use std::os::fd::AsFd;

use anyhow::{Context, Result};
use nix::errno::Errno;
use nix::sys::termios::{InputFlags, LocalFlags, OutputFlags, SetArg, tcgetattr, tcsetattr};
use serde::{Deserialize, Serialize};

/// struct termios, but for what belongs to the line: its control modes and its speed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TerminalSettings {
    /// c_iflag.
    pub input: u32,
    /// c_oflag.
    pub output: u32,
    /// c_lflag.
    pub local: u32,
    /// c_cc, by the indices of the architecture (VINTR …).
    pub characters: Vec<u8>,
}

impl TerminalSettings {
    /// Those of a terminal now. None where there is no other side any more (EIO).
    pub fn of(terminal: impl AsFd) -> Result<Option<Self>> {
        match tcgetattr(&terminal) {
            Ok(termios) => Ok(Some(TerminalSettings {
                input: termios.input_flags.bits(),
                output: termios.output_flags.bits(),
                local: termios.local_flags.bits(),
                characters: termios.control_chars.to_vec(),
            })),
            Err(Errno::EIO) => Ok(None),
            Err(errno) => Err(errno).context("tcgetattr"),
        }
    }

    /// Gives them to a terminal, at once: what was typed and not read yet stays.
    pub fn apply(&self, terminal: impl AsFd) -> Result<()> {
        match self.try_apply(&terminal) {
            // Nobody is at the other side, or it belongs to others now.
            Ok(()) | Err(Errno::EIO | Errno::ENOTTY) => Ok(()),
            Err(errno) => Err(errno).context("tcsetattr"),
        }
    }

    fn try_apply(&self, terminal: impl AsFd) -> nix::Result<()> {
        let mut termios = tcgetattr(&terminal)?;
        termios.input_flags = InputFlags::from_bits_retain(self.input);
        termios.output_flags = OutputFlags::from_bits_retain(self.output);
        termios.local_flags = LocalFlags::from_bits_retain(self.local);
        for (at, character) in termios.control_chars.iter_mut().zip(&self.characters) {
            *at = *character;
        }
        tcsetattr(&terminal, SetArg::TCSANOW, &termios)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use nix::pty::openpty;

    #[test]
    fn settings_come_back_on_another_terminal() {
        let (first, second) = (openpty(None, None).unwrap(), openpty(None, None).unwrap());
        let mut raw = tcgetattr(&first.slave).unwrap();
        nix::sys::termios::cfmakeraw(&mut raw);
        tcsetattr(&first.slave, SetArg::TCSANOW, &raw).unwrap();
        let settings = TerminalSettings::of(&first.slave).unwrap().unwrap();
        assert_ne!(TerminalSettings::of(&second.slave).unwrap().unwrap(), settings);
        settings.apply(&second.slave).unwrap();
        assert_eq!(TerminalSettings::of(&second.slave).unwrap().unwrap(), settings);
    }

    #[test]
    fn a_terminal_whose_other_side_is_gone_has_none() {
        let pty = openpty(None, None).unwrap();
        let settings = TerminalSettings::of(&pty.slave).unwrap().unwrap();
        drop(pty.master);
        assert_eq!(TerminalSettings::of(&pty.slave).unwrap(), None);
        settings.apply(&pty.slave).unwrap();
    }
}
