//! Pages that a process has in common with its parent since it was made, copy-on-write: the same page at the same address.

use std::collections::HashMap;
use std::fs::File;

use anyhow::{Context, Result};

use super::facts::{Mapping, Member};
use super::objects::Object;
use super::pagemap::{ENTRIES, append, entries};
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

/// The parent is looked at before and after, since the kernel may put a page elsewhere at any time.
fn common_pages(parent: &Side<'_>, child: &Side<'_>, runs: &[Range]) -> Result<Vec<Range>> {
    let mut common = Vec::new();
    for &(start, end) in runs {
        for from in (start..end).step_by((ENTRIES * PAGE) as usize) {
            let to = end.min(from + ENTRIES * PAGE);
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
                        let of_one_only = before.is_exclusive() || own.is_exclusive();
                        !of_one_only && have_same(parent.memory, child.memory, page)?
                    }
                    _ => false,
                };
                if is_common {
                    append(&mut common, page, page + PAGE);
                }
            }
        }
    }
    Ok(common)
}

fn have_same(a: &ProcessMemory, b: &ProcessMemory, page: u64) -> Result<bool> {
    let (mut of_a, mut of_b) = ([0; PAGE as usize], [0; PAGE as usize]);
    a.read_at(page, &mut of_a).context("read memory")?;
    b.read_at(page, &mut of_b).context("read memory")?;
    Ok(of_a == of_b)
}
