//! Freeze side: a stopped process's table of descriptors, recorded from outside.

use std::collections::HashSet;
use std::os::fd::BorrowedFd;

use anyhow::{Context, Result};
use nix::unistd::Pid;

use super::inputs::Inputs;
use super::kind::{AnyKind, Probe, Unfit};
use super::pipe::Ends;
use super::probe::{Seen, Source};
use super::{SharedObjects, identity, limit, refuse, stdio};
use crate::image::state::{Description, FdEntry, FdTable};
use crate::refusal::Refusal;
use crate::sys::fds;

/// A table of descriptors with its descriptions (the table's indices count from the first of these), and what is not carried.
#[derive(Debug, Default)]
pub struct Looked {
    pub table: FdTable,
    pub descriptions: Vec<Description>,
    pub refusals: Vec<Refusal>,
    /// What is carried but may differ after a thaw.
    pub warnings: Vec<String>,
    pub inputs: Inputs,
}

/// What kinds know while they look at one process.
pub struct Look<'a> {
    pub pid: Pid,
    pub source: &'a Source<'a>,
    /// All descriptors, ascending.
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
        self.warnings.push(format!(
            "pid {}: fd {} ({}) {what}",
            self.pid,
            seen.fd,
            seen.link_text()
        ));
    }
}

/// Looks at all descriptors of `pid`, which is stopped; `proc` is /proc/PID as a directory. Nothing of the process changes.
pub fn look(pid: Pid, proc: BorrowedFd<'_>, shared: &mut SharedObjects) -> Result<Looked> {
    let pidfd = fds::pidfd_open(pid).with_context(|| format!("pidfd_open of pid {pid}"))?;
    let source = Source { proc, pidfd };
    limit::raise()?; // for one descriptor of each shared object
    let mut seen = Vec::new();
    for fd in source.numbers()? {
        seen.push(source.look_at(fd).with_context(|| format!("fd {fd} of pid {pid}"))?);
    }
    let groups = identity::descriptions(pid, &seen)?;
    let ends = Ends::new(pid, &seen)?;
    let stdio = stdio::Plan::new(&seen, &ends);
    let mut look = Look {
        pid,
        source: &source,
        seen: &seen,
        shared,
        stdio,
        told: HashSet::new(),
        ends,
        warnings: Vec::new(),
        inputs: Inputs::default(),
    };
    let mut looked = Looked::default();
    for group in groups {
        let numbers: Vec<i32> = group.iter().map(|&index| seen[index].fd).collect();
        for part in look.stdio.split(&seen[group[0]], numbers) {
            record(&mut looked, &mut look, &part).with_context(|| format!("fd {} of pid {pid}", part[0]))?;
        }
    }
    looked.warnings = look.warnings;
    looked.inputs = look.inputs;
    looked.table.entries.sort_unstable_by_key(|entry| entry.fd);
    Ok(looked)
}

/// Records the description of `numbers`, or the refusal.
fn record(looked: &mut Looked, look: &mut Look<'_>, numbers: &[i32]) -> Result<()> {
    let all = look.seen;
    let find = |fd: i32| {
        &all[all
            .binary_search_by_key(&fd, |seen| seen.fd)
            .expect("every number was seen")]
    };
    let seen = find(numbers[0]);
    let probe = Probe {
        seen,
        file: look.source.duplicate(seen.fd)?,
    };
    match describe(&probe, look) {
        Ok((kind, payload)) => {
            let description = u32::try_from(looked.descriptions.len()).context("too many descriptions")?;
            let status_flags = seen.status_flags.cast_unsigned();
            looked.descriptions.push(Description {
                kind,
                label: seen.link_text(),
                status_flags,
                payload,
            });
            let entries = numbers.iter().map(|&fd| FdEntry {
                fd,
                cloexec: find(fd).info.cloexec(),
                description,
            });
            looked.table.entries.extend(entries);
            Ok(())
        }
        Err(Unfit::Refused { reason, remedy }) => {
            let object = format!("fd {} ({})", list(numbers), seen.link_text());
            looked
                .refusals
                .push(Refusal::new(look.pid.as_raw(), object, reason, remedy));
            Ok(())
        }
        Err(Unfit::Failed(error)) => Err(error),
    }
}

fn describe(probe: &Probe<'_>, look: &mut Look<'_>) -> Result<(u16, Vec<u8>), Unfit> {
    refuse::whatever_kind(probe.seen, look.shared)?;
    AnyKind::describe(probe, look).unwrap_or_else(|| Err(refuse::unclaimed(probe.seen)))
}

fn list(numbers: &[i32]) -> String {
    numbers.iter().map(i32::to_string).collect::<Vec<_>>().join(", ")
}
