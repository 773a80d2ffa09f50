//! Thaw side: pseudo-terminals are made whole before their descriptions.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use anyhow::{Context, Result};
use nix::errno::Errno;
use nix::sys::stat::{Mode, fchmod};
use nix::unistd::{Gid, Uid, fchown};

use super::settings;
use super::waiting::Pair;
use crate::image::state::{Pty, Snapshot};
use crate::sys::{pty, terminal};

/// Both sides of one, of which descriptions are to come.
pub struct MadePty {
    pair: Pair,
}

impl MadePty {
    pub(super) fn master(&self) -> Result<OwnedFd> {
        self.pair.master.try_clone().context("duplicate a master")
    }

    /// A description of its own.
    pub(super) fn open_slave(&self, status_flags: u32) -> Result<OwnedFd> {
        let flags = status_flags.cast_signed() & (libc::O_ACCMODE | libc::O_NONBLOCK);
        pty::open_slave(&self.pair.master, flags).context("TIOCGPTPEER")
    }

    /// What is to be said of one that is not `wanted` by its number.
    pub fn note(&self, wanted: &Pty) -> Option<String> {
        let number = pty::number(&self.pair.master).ok()?;
        let wanted = wanted.number;
        (number != wanted).then(|| format!("/dev/pts/{wanted} is taken here: that terminal is /dev/pts/{number} now"))
    }

    /// For whose controlling terminal it is.
    pub fn slave(&self) -> BorrowedFd<'_> {
        self.pair.slave.as_fd()
    }
}

/// All of an image, in its order, with what waits in them. What only its owner should meet comes at the end, by `Kind::finish`.
pub fn make_all(snapshot: &Snapshot) -> Result<Vec<MadePty>> {
    let each = snapshot.ptys.iter();
    each.map(|pty| make(pty).with_context(|| format!("the pseudo-terminal /dev/pts/{}", pty.number)))
        .collect()
}

fn make(wanted: &Pty) -> Result<MadePty> {
    let pair = Pair::of(master_of(wanted.number)?).context("TIOCGPTPEER")?;
    let [ws_row, ws_col, ws_xpixel, ws_ypixel] = wanted.size;
    let size = terminal::Winsize {
        ws_row,
        ws_col,
        ws_xpixel,
        ws_ypixel,
    };
    terminal::set_size(pair.slave.as_fd(), &size).context("TIOCSWINSZ")?;
    pair.put(&settings(&wanted.line), &wanted.waiting)?;
    if wanted.packet {
        pty::set_packet(&pair.master, true).context("TIOCPKT")?;
    }
    own(&pair.slave, wanted)?;
    Ok(MadePty { pair })
}

/// As /dev/pts/N was; who may not give files away has made it as its own already.
fn own(slave: &OwnedFd, wanted: &Pty) -> Result<()> {
    match fchown(slave, Some(Uid::from_raw(wanted.uid)), Some(Gid::from_raw(wanted.gid))) {
        Ok(()) | Err(Errno::EPERM) => {}
        Err(errno) => return Err(errno).context("fchown"),
    }
    match fchmod(slave, Mode::from_bits_truncate(wanted.mode & 0o7777)) {
        Ok(()) | Err(Errno::EPERM) => Ok(()),
        Err(errno) => Err(errno).context("fchmod"),
    }
}

/// A new master, of /dev/pts/`number` if that is free. The kernel gives out the lowest free number (devpts_new_index(), fs/devpts/inode.c).
fn master_of(number: u32) -> Result<OwnedFd> {
    let mut lower = Vec::new();
    loop {
        let made = match pty::open_master() {
            Ok(made) => made,
            // No number as high as that can be had here.
            Err(_) if !lower.is_empty() => break,
            Err(errno) => return Err(errno).context("open /dev/ptmx"),
        };
        match pty::number(&made).context("TIOCGPTN")?.cmp(&number) {
            std::cmp::Ordering::Less => lower.push(made),
            std::cmp::Ordering::Equal => return Ok(made),
            std::cmp::Ordering::Greater => {
                lower.push(made);
                break;
            }
        }
    }
    Ok(lower.swap_remove(0))
}

/// A slave whose master is gone.
pub fn hung_up(status_flags: u32) -> Result<OwnedFd> {
    let made = MadePty {
        pair: Pair::of(pty::open_master().context("open /dev/ptmx")?).context("TIOCGPTPEER")?,
    };
    made.open_slave(status_flags)
}

/// What would be in the way before: exclusive mode, and the lock.
pub fn finish(master: BorrowedFd<'_>, wanted: &Pty) -> Result<()> {
    if wanted.exclusive {
        let slave = pty::open_slave(master, libc::O_RDWR).context("TIOCGPTPEER")?;
        pty::set_exclusive(&slave).context("TIOCEXCL")?;
    }
    if wanted.locked {
        pty::lock(master, true).context("TIOCSPTLCK")?;
    }
    Ok(())
}
