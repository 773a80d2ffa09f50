//! Freeze side: the tables of descriptors of stopped processes, recorded from outside.

use std::collections::{BTreeMap, HashSet};
use std::os::fd::{BorrowedFd, OwnedFd};

use anyhow::{Context, Result};
use nix::fcntl::AtFlags;
use nix::sys::stat::fstatat;
use nix::unistd::Pid;

use super::ends::{self, Ends};
use super::fdinfo::FdInfo;
use super::inputs::Inputs;
use super::kind::{AnyKind, Probe, Unfit};
use super::probe::{Seen, Source};
use super::pty;
use super::{SharedObjects, identity, io_signals, limit, refuse, stdio};
use crate::image::state::{Description, FdEntry, FdTable, IoSignals, Pty};
use crate::refusal::Refusal;

/// The tables of descriptors of processes, in their order, with the descriptions that they refer to, and what is not carried.
#[derive(Debug, Default)]
pub struct Looked {
    pub tables: Vec<FdTable>,
    /// For each process its table, by index.
    pub table_of: Vec<u32>,
    pub descriptions: Vec<Description>,
    pub ptys: Vec<Pty>,
    pub refusals: Vec<Refusal>,
    /// What is carried but may differ after a thaw.
    pub warnings: Vec<String>,
    pub inputs: Inputs,
}

/// What kinds know while they look.
pub struct Look<'a> {
    sources: &'a [Source<'a>],
    /// All descriptors, ascending by owner and number.
    pub seen: &'a [Seen],
    pub shared: &'a mut SharedObjects,
    pub stdio: stdio::Plan,
    /// Inodes whose content is in the payload of an earlier description.
    pub told: HashSet<(u64, u64)>,
    pub ends: Ends,
    pub warnings: Vec<String>,
    pub inputs: Inputs,
}

impl Look<'_> {
    pub fn warn(&mut self, seen: &Seen, what: &str) {
        let (pid, fd, link) = (self.pid(seen), seen.fd, seen.link_text());
        self.warnings.push(format!("pid {pid}: fd {fd} ({link}) {what}"));
    }

    pub fn pid(&self, seen: &Seen) -> Pid {
        self.sources[seen.owner].pid
    }

    /// In our own table, see [`Source::duplicate`].
    pub fn duplicate(&self, seen: &Seen) -> Result<OwnedFd> {
        self.sources[seen.owner].duplicate(seen.fd)
    }

    pub fn has_process(&self, pid: i32) -> bool {
        self.sources.iter().any(|source| source.pid.as_raw() == pid)
    }

    pub fn has_thread(&self, tid: i32) -> bool {
        let task = format!("task/{tid}");
        self.sources
            .iter()
            .any(|source| fstatat(source.proc, task.as_str(), AtFlags::empty()).is_ok())
    }

    pub fn fdinfo(&self, seen: &Seen) -> Result<FdInfo> {
        self.sources[seen.owner].fdinfo(seen.fd)
    }

    pub fn find(&self, owner: usize, fd: i32) -> Option<&Seen> {
        let found = self
            .seen
            .binary_search_by_key(&(owner, fd), |seen| (seen.owner, seen.fd));
        found.ok().map(|index| &self.seen[index])
    }
}

/// Looks at all descriptors of `processes`, which are stopped: their pids, and /proc/PID as directories. `tables` says for each the first
/// that has the same table (CLONE_FILES). Nothing of them changes.
pub fn look(processes: &[(Pid, BorrowedFd<'_>)], tables: &[usize], shared: &mut SharedObjects) -> Result<Looked> {
    let sources = processes.iter().map(|&(pid, proc)| Source::new(pid, proc));
    let sources = sources.collect::<Result<Vec<_>>>()?;
    let pids: Vec<Pid> = sources.iter().map(|source| source.pid).collect();
    limit::raise()?; // for one descriptor of each shared object
    let mut seen = Vec::new();
    for (owner, source) in sources.iter().enumerate().filter(|(owner, _)| tables[*owner] == *owner) {
        for fd in source.numbers()? {
            let found = source.look_at(owner, fd);
            seen.push(found.with_context(|| format!("fd {fd} of pid {}", source.pid))?);
        }
    }
    let groups = identity::descriptions(&pids, &seen)?;
    let ends = Ends::new(&pids, &seen)?;
    let stdio = stdio::Plan::new(&seen, &ends);
    let mut look = Look {
        sources: &sources,
        seen: &seen,
        shared,
        stdio,
        told: HashSet::new(),
        ends,
        warnings: Vec::new(),
        inputs: Inputs::default(),
    };
    let mut looked = Looked {
        tables: vec![FdTable::default(); sources.len()],
        ..Looked::default()
    };
    for group in groups {
        for part in look.stdio.split(&seen, &look.ends, group) {
            let first = &seen[part[0]];
            let recorded = record(&mut looked, &mut look, &part);
            recorded.with_context(|| format!("fd {} of pid {}", first.fd, pids[first.owner]))?;
        }
    }
    // Last, as it does more than to look.
    if looked.refusals.is_empty() {
        look_into_ptys(&mut looked, &look)?;
    }
    let mut first_tables: Vec<usize> = tables.to_vec();
    first_tables.sort_unstable();
    first_tables.dedup();
    let index = |first: &usize| first_tables.binary_search(first).unwrap_or_default() as u32;
    looked.table_of = tables.iter().map(index).collect();
    looked.tables = first_tables
        .iter()
        .map(|first| std::mem::take(&mut looked.tables[*first]))
        .collect();
    looked.warnings = look.warnings;
    looked.inputs = look.inputs;
    for table in &mut looked.tables {
        table.entries.sort_unstable_by_key(|entry| entry.fd);
    }
    Ok(looked)
}

/// Records the description that these descriptors share, by their indices in [`Look::seen`], or the refusal.
fn record(looked: &mut Looked, look: &mut Look<'_>, indices: &[usize]) -> Result<()> {
    let all = look.seen;
    let seen = &all[indices[0]];
    let probe = Probe {
        seen,
        file: look.duplicate(seen)?,
    };
    match describe(&probe, look) {
        Ok((kind, io_signals, payload)) => {
            let description = u32::try_from(looked.descriptions.len()).context("too many descriptions")?;
            let status_flags = seen.status_flags.cast_unsigned();
            looked.descriptions.push(Description {
                kind,
                label: seen.link_text(),
                status_flags,
                io_signals,
                payload,
            });
            for seen in indices.iter().map(|&index| &all[index]) {
                looked.tables[seen.owner].entries.push(FdEntry {
                    fd: seen.fd,
                    cloexec: seen.info.cloexec(),
                    description,
                });
            }
            Ok(())
        }
        Err(Unfit::Refused { reason, remedy }) => {
            let numbers = indices.iter().map(|&index| &all[index]);
            let of_first = numbers.filter(|other| other.owner == seen.owner).map(|seen| seen.fd);
            let object = format!("fd {} ({})", list(of_first), seen.link_text());
            let pid = look.pid(seen).as_raw();
            looked.refusals.push(Refusal::new(pid, object, reason, remedy));
            Ok(())
        }
        Err(Unfit::Failed(error)) => Err(error),
    }
}

fn look_into_ptys(looked: &mut Looked, look: &Look<'_>) -> Result<()> {
    let by_number: BTreeMap<u32, &Seen> = ends::masters(look.seen).collect();
    let mut masters = Vec::with_capacity(by_number.len());
    for (&number, seen) in &by_number {
        masters.push((number, look.duplicate(seen)?));
    }
    for (found, (number, seen)) in pty::take_all(&masters)?.into_iter().zip(by_number) {
        match found {
            Ok(pty) => looked.ptys.push(pty),
            Err(reason) => {
                let object = format!("fd {} (master of /dev/pts/{number})", seen.fd);
                let remedy = "freeze again once the program has read its input";
                let refusal = Refusal::new(look.pid(seen).as_raw(), object, reason, remedy);
                looked.refusals.push(refusal);
            }
        }
    }
    Ok(())
}

fn describe(probe: &Probe<'_>, look: &mut Look<'_>) -> Result<(u16, Option<IoSignals>, Vec<u8>), Unfit> {
    refuse::whatever_kind(probe.seen, look.shared)?;
    let io_signals = io_signals::of(probe.seen, look)?;
    let described = AnyKind::describe(probe, look).unwrap_or_else(|| Err(refuse::unclaimed(probe.seen)));
    described.map(|(kind, payload)| (kind, io_signals, payload))
}

fn list(numbers: impl Iterator<Item = i32>) -> String {
    numbers.map(|number| number.to_string()).collect::<Vec<_>>().join(", ")
}
