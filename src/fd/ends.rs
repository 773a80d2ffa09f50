//! What the processes have in common with others: the other end of a pipe, FIFO or pseudo-terminal, a message queue.

use std::collections::{BTreeMap, HashMap};

use anyhow::Result;
use nix::poll::PollFlags;
use nix::unistd::Pid;

use super::holders;
use super::kind::Unfit;
use super::pipe::is_pipe;
use super::probe::Seen;
use super::pty::Tty;

/// Which ends of their pipes, FIFOs and pseudo-terminals the processes have, and what has to do with others.
#[derive(Debug, Default)]
pub struct Ends {
    /// By inode.
    ends: HashMap<(u64, u64), End>,
    /// The pseudo-terminals whose masters they have, by number, with a process outside that has either side open, too.
    ptys: BTreeMap<u32, Option<String>>,
}

#[derive(Debug, Default)]
struct End {
    readable: bool,
    writable: bool,
    /// A process outside that has it open, too.
    holder: Option<String>,
}

impl Ends {
    pub fn new(pids: &[Pid], all: &[Seen]) -> Result<Self> {
        let mut ends: HashMap<_, End> = HashMap::new();
        let fifos_and_queues = || {
            all.iter()
                .filter(|seen| (seen.file_type() == libc::S_IFIFO && !seen.only_path()) || seen.on_mqueue)
        };
        for seen in fifos_and_queues() {
            let end = ends.entry(seen.inode()).or_default();
            end.readable |= seen.readable();
            end.writable |= seen.writable();
        }
        // To a pipe whose other end is gone nobody can add anything, whoever else has an end like ours.
        let asked = fifos_and_queues().filter(|seen| {
            let end = &ends[&seen.inode()];
            !is_pipe(seen) || (end.readable && end.writable)
        });
        for (inode, holder) in holders::others(pids, &asked.collect::<Vec<_>>())? {
            ends.entry(inode).or_default().holder = Some(holder);
        }
        let mut ptys: BTreeMap<u32, Option<String>> = masters(all).map(|(number, _)| (number, None)).collect();
        ptys.extend(holders::of_ptys(pids, &ptys)?);
        Ok(Ends { ends, ptys })
    }

    /// Whether its other end is none of ours and still open somewhere, in a process outside: a terminal, or a pipe.
    pub fn lead_outside(&self, seen: &Seen) -> bool {
        match seen.tty {
            Some(Tty::Slave(number)) => return !self.ptys.contains_key(&number),
            Some(Tty::Other) => return true,
            Some(Tty::Master(_) | Tty::HungUp) | None => {}
        }
        let Some(end) = self
            .ends
            .get(&seen.inode())
            .filter(|_| is_pipe(seen) && !seen.only_path())
        else {
            return false;
        };
        // pipe_poll(), fs/pipe.c: POLLHUP at a read end without writers, POLLERR at a write end without readers.
        let other_end_gone = if end.readable {
            PollFlags::POLLHUP
        } else {
            PollFlags::POLLERR
        };
        end.readable != end.writable && !seen.ready.contains(other_end_gone)
    }

    pub fn has_writer(&self, seen: &Seen) -> bool {
        self.ends.get(&seen.inode()).is_some_and(|end| end.writable)
    }

    pub fn refuse_shared(&self, seen: &Seen) -> Result<(), Unfit> {
        match self.ends.get(&seen.inode()).and_then(|end| end.holder.as_ref()) {
            None => Ok(()),
            Some(holder) => Err(Unfit::refused(
                format!("is used by several processes: pid {holder} has it open, too"),
                "end that process first, or have it close its descriptor",
            )),
        }
    }

    /// The index in Snapshot::ptys of one whose master they have.
    pub fn pty(&self, number: u32) -> Option<u32> {
        self.ptys
            .keys()
            .position(|known| *known == number)
            .and_then(|index| u32::try_from(index).ok())
    }

    pub fn holder_of_pty(&self, number: u32) -> Option<&str> {
        self.ptys.get(&number).and_then(Option::as_deref)
    }
}

/// The masters among them, each description perhaps several times, by the number of their slave.
pub fn masters(all: &[Seen]) -> impl Iterator<Item = (u32, &Seen)> {
    all.iter().filter_map(|seen| match seen.tty {
        Some(Tty::Master(number)) => Some((number, seen)),
        _ => None,
    })
}
