//! Freeze side: what a pseudo-terminal is like, and what waits in it.

use std::os::fd::{AsFd, OwnedFd};

use anyhow::{Context, Result, anyhow, ensure};
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::sys::stat::fstat;

use super::line;
use super::waiting::Pair;
use crate::image::state::{Pty, Waiting};
use crate::sys::{apart, pty, terminal};

/// Looks into each of these masters, by the number of its slave; nobody else uses them meanwhile. An inner error is why one is not carried, as a
/// clause. What waits is taken and put back, which nothing must interrupt: a process of its own does that.
pub fn take_all(masters: &[(u32, OwnedFd)]) -> Result<Vec<Result<Pty, String>>> {
    if masters.is_empty() {
        return Ok(Vec::new());
    }
    let look = || -> Result<Vec<u8>> {
        let all = masters
            .iter()
            .map(|(number, master)| take(*number, master).map_err(|error| format!("/dev/pts/{number}: {error:#}")));
        // Each is looked into, whatever became of the others.
        let all: Vec<Result<Result<Pty, String>, String>> = all.collect();
        Ok(postcard::to_stdvec(&all)?)
    };
    let answer = apart(|| look().unwrap_or_default()).context("look into pseudo-terminals")?;
    ensure!(!answer.is_empty(), "whoever looked into the pseudo-terminals has ended");
    let all: Vec<Result<Result<Pty, String>, String>> = postcard::from_bytes(&answer)?;
    all.into_iter().map(|one| one.map_err(|error| anyhow!(error))).collect()
}

fn take(number: u32, master: &OwnedFd) -> Result<Result<Pty, String>> {
    let locked = pty::is_locked(master).context("TIOCGPTLCK")?;
    let flags = fcntl(master, FcntlArg::F_GETFL).context("F_GETFL")?;
    if locked {
        pty::lock(master, false).context("TIOCSPTLCK")?;
    }
    let found = Pair::of(master.try_clone().context("duplicate a descriptor")?)
        .context("open the slave")
        .and_then(|pair| take_pair(&pair, number));
    fcntl(master, FcntlArg::F_SETFL(OFlag::from_bits_retain(flags))).context("F_SETFL")?;
    if locked {
        pty::lock(master, true).context("TIOCSPTLCK")?;
    }
    Ok(found?.map(|found| Pty { locked, ..found }))
}

fn take_pair(pair: &Pair, number: u32) -> Result<Result<Pty, String>> {
    let discipline = pty::discipline(&pair.slave).context("TIOCGETD")?;
    if discipline != 0 {
        return Ok(Err(format!(
            "has another line discipline than a terminal has ({discipline})"
        )));
    }
    let settings = pty::settings(&pair.slave).context("TCGETS2")?;
    if let Some(reason) = pair.unseen(&settings)? {
        return Ok(Err(reason));
    }
    let packet = pty::is_packet(&pair.master).context("TIOCGPKT")?;
    if packet {
        // Its reads would begin with a byte that tells changes, as that of the settings.
        pty::set_packet(&pair.master, false).context("TIOCPKT")?;
    }
    let mut waiting = Waiting::default();
    let taken = pair.take(&settings, &mut waiting).context("see what waits");
    let put_back = pair.put(&settings, &waiting).context("put back what waits");
    if packet {
        pty::set_packet(&pair.master, true).context("TIOCPKT")?;
    }
    taken.and(put_back)?;
    let size = terminal::size(pair.slave.as_fd()).context("TIOCGWINSZ")?;
    let stat = fstat(&pair.slave).context("fstat")?;
    Ok(Ok(Pty {
        number,
        line: line(&settings),
        size: [size.ws_row, size.ws_col, size.ws_xpixel, size.ws_ypixel],
        uid: stat.st_uid,
        gid: stat.st_gid,
        mode: stat.st_mode,
        packet,
        exclusive: pty::is_exclusive(&pair.slave).context("TIOCGEXCL")?,
        locked: false,
        waiting,
    }))
}
