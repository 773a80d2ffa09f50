//! Pages that a process has in common with its parent since it was made, copy-on-write: the same page at the same address.

use std::collections::HashMap;
use std::fs::File;
use std::os::unix::fs::FileExt;

use anyhow::{Context, Result};

use super::facts::{Mapping, Member};
use super::objects::Object;
use super::proc::ProcDir;
use crate::arch::PAGE_SIZE as PAGE;
use crate::image::ranges::{self, Range};
use crate::tracer::{ProcessMemory, StoppedProcess};

/// A process that is looked at.
struct Side<'a> {
    pagemap: File,
    memory: &'a ProcessMemory,
}

/// Fills in what the mappings inherit.
pub fn look(members: &mut [Member], processes: &[StoppedProcess]) -> Result<()> {
    let by_pid: HashMap<i32, usize> = (0..)
        .zip(&*members)
        .map(|(index, member)| (member.pid, index))
        .collect();
    let side = |index: usize| -> Result<Side<'_>> {
        let process = &processes[index];
        let dir = ProcDir::of(process.proc()).context("duplicate /proc/PID")?;
        Ok(Side {
            pagemap: dir.open("pagemap").context("open pagemap")?,
            memory: process.memory(),
        })
    };
    for index in 0..members.len() {
        let Some(&parent) = by_pid.get(&members[index].process.ppid) else {
            continue;
        };
        let candidates = candidates(&members[parent], &members[index]);
        if candidates.is_empty() {
            continue;
        }
        let (own, of_parent) = (side(index)?, side(parent)?);
        for (mapping, runs) in candidates {
            let common = common_pages(&of_parent, &own, &runs);
            members[index].mappings[mapping].inherited =
                common.with_context(|| format!("compare pid {} with its parent", members[index].pid))?;
        }
    }
    Ok(())
}

/// By mapping of the child: where both have pages of their own, in mappings of the same kind.
fn candidates(parent: &Member, child: &Member) -> Vec<(usize, Vec<Range>)> {
    let mut found = Vec::new();
    for (index, mapping) in child.mappings.iter().enumerate() {
        if mapping.area.shared || mapping.populated.runs.is_empty() {
            continue;
        }
        let first = parent
            .mappings
            .partition_point(|other| other.area.end <= mapping.area.start);
        let others = parent.mappings[first..]
            .iter()
            .take_while(|other| other.area.start < mapping.area.end);
        let kin = others.filter(|other| !other.area.shared && is_alike(other, mapping));
        let runs: Vec<Range> = kin
            .flat_map(|other| ranges::intersection(&other.populated.runs, &mapping.populated.runs))
            .collect();
        if !runs.is_empty() {
            found.push((index, runs));
        }
    }
    found
}

fn is_alike(a: &Mapping, b: &Mapping) -> bool {
    match (&a.object, &b.object) {
        (Object::Anonymous, Object::Anonymous) => true,
        (Object::File(_), Object::File(_)) => (a.area.device, a.area.inode) == (b.area.device, b.area.inode),
        _ => false,
    }
}

/// In one read of pagemap.
const PAGES: u64 = 64 << 10;

/// The parent is looked at before and after, since the kernel may put a page elsewhere at any time.
fn common_pages(parent: &Side<'_>, child: &Side<'_>, runs: &[Range]) -> Result<Vec<Range>> {
    let mut common = Vec::new();
    for &(start, end) in runs {
        for from in (start..end).step_by((PAGES * PAGE) as usize) {
            let to = end.min(from + PAGES * PAGE);
            let (before, own, after) = (
                entries(&parent.pagemap, from, to)?,
                entries(&child.pagemap, from, to)?,
                entries(&parent.pagemap, from, to)?,
            );
            for (page, ((before, own), after)) in (from..to)
                .step_by(PAGE as usize)
                .zip(before.into_iter().zip(own).zip(after))
            {
                let is_common = match (before.place(), own.place()) {
                    (Some(place), Some(own)) => place == own && after.place() == Some(place),
                    // Only CAP_SYS_ADMIN is shown where pages are (pagemap_read(), fs/proc/task_mmu.c): what is the same may as well be shared.
                    (None, None) => {
                        before.may_be_shared() && own.may_be_shared() && have_same(parent.memory, child.memory, page)?
                    }
                    _ => false,
                };
                if is_common {
                    common.push((page, page + PAGE));
                }
            }
        }
    }
    Ok(ranges::union(common))
}

fn entries(pagemap: &File, start: u64, end: u64) -> Result<Vec<Entry>> {
    let mut bytes = vec![0; ((end - start) / PAGE * 8) as usize];
    pagemap
        .read_exact_at(&mut bytes, start / PAGE * 8)
        .context("read pagemap")?;
    let words = bytes.chunks_exact(8);
    Ok(words
        .map(|word| Entry(u64::from_ne_bytes(word.try_into().expect("chunks of 8"))))
        .collect())
}

fn have_same(a: &ProcessMemory, b: &ProcessMemory, page: u64) -> Result<bool> {
    let (mut of_a, mut of_b) = ([0; PAGE as usize], [0; PAGE as usize]);
    a.read_at(page, &mut of_a).context("read memory")?;
    b.read_at(page, &mut of_b).context("read memory")?;
    Ok(of_a == of_b)
}

/// An entry of /proc/PID/pagemap (proc_pid_pagemap(5)).
#[derive(Clone, Copy)]
struct Entry(u64);

impl Entry {
    /// The number of the frame, or where in the swap it is; none where we are not told.
    fn place(self) -> Option<u64> {
        const PRESENT_OR_SWAPPED: u64 = 3 << 62;
        const NUMBER: u64 = (1 << 55) - 1;
        (self.0 & NUMBER != 0).then_some(self.0 & (PRESENT_OR_SWAPPED | NUMBER))
    }

    /// Not the page of one process only (bit 56, Linux 4.2).
    fn may_be_shared(self) -> bool {
        self.0 >> 56 & 1 == 0
    }
}
