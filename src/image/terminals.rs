//! Terminals of the processes: part of the state ([`super::state`]), whose field order is the format, too.

use serde::{Deserialize, Serialize};

/// A pseudo-terminal (pty(7)) whose master is a description of the image.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pty {
    /// N of /dev/pts/N.
    pub number: u32,
    pub line: Line,
    /// struct winsize: rows, columns, and both in pixels (TIOCGWINSZ(2const)).
    pub size: [u16; 4],
    /// Of /dev/pts/N: user and group ids, st_mode.
    pub uid: u32,
    pub gid: u32,
    pub mode: u32,
    /// TIOCPKT(2const).
    pub packet: bool,
    /// TIOCEXCL(2const) of the slave.
    pub exclusive: bool,
    /// TIOCSPTLCK(2const).
    pub locked: bool,
    pub waiting: Waiting,
}

/// struct termios2 (TCGETS2(2const)).
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Line {
    /// c_iflag.
    pub input: u32,
    /// c_oflag.
    pub output: u32,
    /// c_cflag.
    pub control: u32,
    /// c_lflag.
    pub local: u32,
    /// c_cc, by the indices of the architecture (VINTR …).
    pub characters: Vec<u8>,
    pub input_speed: u32,
    pub output_speed: u32,
}

/// What waits to be read, and what holds it back.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Waiting {
    /// For the slave, as it will read it; all but the last are complete lines where the slave reads lines (ICANON), else there is one.
    pub input: Vec<Input>,
    /// For the master.
    pub output: Vec<u8>,
    pub stopped: Stopped,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Input {
    pub bytes: Vec<u8>,
    pub end: End,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum End {
    /// More may come.
    Open,
    /// The last byte is a line feed.
    Newline,
    /// The last byte is VEOL or VEOL2.
    Character,
    /// VEOF was typed, which nobody reads.
    EndOfFile,
}

/// Whether output is held back.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Stopped {
    #[default]
    No,
    /// Somebody typed VSTOP (IXON).
    ByCharacter,
    /// tcflow(3), TCOOFF.
    ByCall,
}

/// What a session's leader has as its controlling terminal.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct ControllingTerminal {
    /// Index into `Snapshot::ptys`; None leads outside.
    pub pty: Option<u32>,
    /// The foreground process group (tcgetpgrp(3)), 0 or less if there is none.
    pub foreground: i32,
}
