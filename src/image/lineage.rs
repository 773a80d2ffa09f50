//! Memory that processes have from their parents: after fork(2) a page belongs to both until one of them writes to it. Pure.
//!
//! A thaw makes it so again in the same way: the parent maps and fills what its children inherit, then makes them. For that the mapping of
//! a child must lie within one of the parent's, which may have to be longer for a time than it is in the end.

use std::collections::{HashMap, HashSet};

use super::family::Step;
use super::ranges::{self, Range};
use super::state::{Backing, Process, Vma};

/// Who inherits what from whom. Indices are those of the snapshot.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Lineage {
    processes: Vec<Line>,
}

#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct Line {
    /// Of the parent, where something is inherited.
    parent: Option<usize>,
    has_heirs: bool,
    /// By mapping: start and end while children are made.
    spans: Vec<Range>,
    /// By mapping: that of the parent which it comes from.
    from: Vec<Option<usize>>,
}

/// A mapping that cannot inherit what it says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Conflict {
    pub process: usize,
    pub mapping: usize,
}

impl Lineage {
    /// `steps`: how the processes are made.
    pub fn of(processes: &[Process], steps: &[Step]) -> Result<Self, Vec<Conflict>> {
        let (lineage, conflicts) = trace(processes, steps);
        match conflicts.is_empty() {
            true => Ok(lineage),
            false => Err(conflicts),
        }
    }

    /// Takes from the mappings what they cannot inherit: that is theirs alone.
    pub fn settle(processes: &mut [Process], steps: &[Step]) -> Self {
        let (lineage, conflicts) = trace(processes, steps);
        for Conflict { process, mapping } in conflicts {
            processes[process].memory.vmas[mapping].inherited.clear();
        }
        lineage
    }

    /// Of those that inherit something.
    pub fn parent(&self, process: usize) -> Option<usize> {
        self.processes[process].parent
    }

    pub fn has_heirs(&self, process: usize) -> bool {
        self.processes[process].has_heirs
    }

    /// Where a mapping is while children are made.
    pub fn span(&self, process: usize, mapping: usize) -> Range {
        self.processes[process].spans[mapping]
    }

    /// The mapping of the parent that one comes from.
    pub fn from(&self, process: usize, mapping: usize) -> Option<usize> {
        self.processes[process].from[mapping]
    }

    /// What children inherit of each mapping.
    pub fn bequests(&self, processes: &[Process]) -> Vec<Vec<Vec<Range>>> {
        let mut bequests: Vec<Vec<Vec<Range>>> = processes
            .iter()
            .map(|process| vec![Vec::new(); process.memory.vmas.len()])
            .collect();
        for (line, process) in self.processes.iter().zip(processes) {
            for (from, vma) in line.from.iter().zip(&process.memory.vmas) {
                if let (Some(parent), Some(from)) = (line.parent, from) {
                    bequests[parent][*from].extend(&vma.inherited);
                }
            }
        }
        for mapping in bequests.iter_mut().flatten() {
            *mapping = ranges::union(std::mem::take(mapping));
        }
        bequests
    }
}

/// From the last to the first, so that what is inherited twice over has its room in all who hand it on.
fn trace(processes: &[Process], steps: &[Step]) -> (Lineage, Vec<Conflict>) {
    let by_pid: HashMap<i32, usize> = (0..)
        .zip(processes)
        .map(|(index, process)| (process.pid, index))
        .collect();
    let by_sibling: HashSet<i32> = steps
        .iter()
        .filter_map(|step| match *step {
            Step::Clone { pid, sibling: true, .. } => Some(pid),
            _ => None,
        })
        .collect();
    let line = |process: &Process| Line {
        spans: process.memory.vmas.iter().map(|vma| (vma.start, vma.end)).collect(),
        from: vec![None; process.memory.vmas.len()],
        ..Line::default()
    };
    let mut lines: Vec<Line> = processes.iter().map(line).collect();
    let mut conflicts = Vec::new();
    for (index, process) in processes.iter().enumerate().rev() {
        let parent = by_pid.get(&process.ppid).copied();
        let parent = parent.filter(|parent| *parent < index && !by_sibling.contains(&process.pid));
        let (older, own) = lines.split_at_mut(index);
        let own = &mut own[0];
        for (mapping, vma) in process.memory.vmas.iter().enumerate() {
            if vma.inherited.is_empty() {
                continue;
            }
            let from = parent.and_then(|parent| {
                let from = room(
                    &processes[parent],
                    &mut older[parent].spans,
                    process,
                    vma,
                    own.spans[mapping],
                )?;
                Some((parent, from))
            });
            match from {
                Some((parent, from)) => {
                    own.parent = Some(parent);
                    own.from[mapping] = Some(from);
                    older[parent].has_heirs = true;
                }
                None => conflicts.push(Conflict {
                    process: index,
                    mapping,
                }),
            }
        }
    }
    (Lineage { processes: lines }, conflicts)
}

/// Makes room in the parent's mappings, `spans`, for that of a child, and says in which.
fn room(parent: &Process, spans: &mut [Range], child: &Process, vma: &Vma, span: Range) -> Option<usize> {
    if parent.settings.memory_merge || child.settings.memory_merge {
        return None;
    }
    let from = spans.partition_point(|other| other.1 <= span.0);
    let of_parent = parent.memory.vmas.get(from)?;
    let own = (of_parent.start, of_parent.end);
    let wide = (spans[from].0.min(span.0), spans[from].1.max(span.1));
    let is_free = spans[..from].last().is_none_or(|before| before.1 <= wide.0)
        && spans.get(from + 1).is_none_or(|after| after.0 >= wide.1);
    let is_there = ranges::difference(&vma.inherited, &[own]).is_empty();
    if spans[from].0 >= span.1 || !is_free || !is_there || !is_kin(of_parent, vma) {
        return None;
    }
    spans[from] = wide;
    Some(from)
}

/// Whether one may have become of the other by fork(2), mprotect(2), and changes of its length.
fn is_kin(of_parent: &Vma, of_child: &Vma) -> bool {
    let same_backing = match (&of_parent.backing, &of_child.backing) {
        (Backing::Anonymous, Backing::Anonymous) => true,
        (
            Backing::File { file, offset },
            Backing::File {
                file: other,
                offset: at,
            },
        ) => file == other && of_parent.start.wrapping_sub(*offset) == of_child.start.wrapping_sub(*at),
        _ => false,
    };
    // Those that fork(2) does not hand on: MADV_DONTFORK, MADV_WIPEONFORK, and huge pages of hugetlbfs, which are refused anyway.
    let stays = |vma: &Vma| [b"dc", b"wf", b"ht"].iter().any(|code| vma.flags.has(code));
    let accounted = of_child.flags.has(b"ac") || !of_parent.flags.has(b"ac");
    let plain = |vma: &Vma| !vma.shared && vma.policy.is_none() && !stays(vma);
    same_backing && plain(of_parent) && plain(of_child) && accounted && lasting(of_parent) == lasting(of_child)
}

/// Flags that neither mprotect(2) nor mlock(2) change, nor the pages that are there.
fn lasting(vma: &Vma) -> Vec<[u8; 2]> {
    const PASSING: [&[u8; 2]; 8] = [b"rd", b"wr", b"ex", b"ac", b"lo", b"lf", b"sd", b"sl"];
    let mut flags = vma.flags.0.clone();
    flags.retain(|flag| !PASSING.contains(&flag));
    flags.sort_unstable();
    flags
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::image::sample::{self, HEAP, PAGE};

    const PAGES: u64 = 8;

    /// A parent, its child and its grandchild, whose heaps are the same; each inherits all of it.
    fn line() -> Vec<Process> {
        let parent = sample::snapshot(PAGES, 2).processes.remove(0);
        (0..3)
            .map(|generation| {
                let mut process = parent.clone();
                process.pid += generation;
                process.ppid = process.pid - 1;
                if generation > 0 {
                    process.memory.vmas[0].inherited = vec![(HEAP, HEAP + PAGES * PAGE)];
                }
                process
            })
            .collect()
    }

    fn conflicts(processes: &[Process]) -> Vec<usize> {
        let conflicts = Lineage::of(processes, &[]).err().unwrap_or_default();
        conflicts.into_iter().map(|conflict| conflict.process).collect()
    }

    #[test]
    fn a_line_of_three() {
        let processes = line();
        let lineage = Lineage::of(&processes, &[]).unwrap();
        assert_eq!([0, 1, 2].map(|index| lineage.parent(index)), [None, Some(0), Some(1)]);
        assert_eq!([0, 1, 2].map(|index| lineage.has_heirs(index)), [true, true, false]);
        assert_eq!(lineage.bequests(&processes)[0][0], [(HEAP, HEAP + PAGES * PAGE)]);
    }

    #[test]
    fn who_grew_has_room_in_all_before() {
        let mut processes = line();
        processes[2].memory.vmas[0].end += PAGE;
        let lineage = Lineage::of(&processes, &[]).unwrap();
        let wide = (HEAP, HEAP + (PAGES + 1) * PAGE);
        assert_eq!([0, 1, 2].map(|index| lineage.span(index, 0)), [wide; 3]);
    }

    #[test]
    fn there_is_no_room_where_somebody_has_another_mapping() {
        let mut processes = line();
        processes[2].memory.vmas[0].end += PAGE;
        let mut neighbour = processes[0].memory.vmas[0].clone();
        neighbour.start = HEAP + PAGES * PAGE;
        neighbour.end = neighbour.start + PAGE;
        processes[0].memory.vmas.insert(1, neighbour);
        // The child has room for the grandchild's, but then none in its own parent.
        assert_eq!(conflicts(&processes), [1]);
        let lineage = Lineage::settle(&mut processes, &[]);
        assert_eq!([1, 2].map(|index| lineage.parent(index)), [None, Some(1)]);
        assert!(processes[1].memory.vmas[0].inherited.is_empty());
    }

    #[test]
    fn a_parent_that_is_nobody_or_comes_later_leaves_nothing() {
        let mut processes = line();
        processes[1].ppid = 1;
        assert_eq!(conflicts(&processes), [1]);
        let mut processes = line();
        processes.swap(0, 1);
        assert_eq!(conflicts(&processes), [0]);
        let made_by_sibling = Step::Clone {
            pid: line()[2].pid,
            by: 7,
            sibling: true,
            exit_signal: 17,
        };
        assert_eq!(Lineage::of(&line(), &[made_by_sibling]).unwrap_err()[0].process, 2);
    }

    /// (what differs, in the grandchild)
    #[test]
    fn mappings_of_other_kinds_inherit_nothing() {
        let others: [fn(&mut Vma); 5] = [
            |vma| vma.backing = Backing::File { file: 0, offset: 0 },
            |vma| vma.shared = true,
            |vma| vma.flags.0.push(*b"dc"),
            |vma| vma.flags.0.push(*b"nr"),
            |vma| vma.inherited = vec![(HEAP - PAGE, HEAP)],
        ];
        for change in others {
            let mut processes = line();
            change(&mut processes[2].memory.vmas[0]);
            assert_eq!(conflicts(&processes), [2]);
        }
        let mut processes = line();
        processes[2].memory.vmas[0].prot = 1;
        assert_eq!(conflicts(&processes), [0; 0]);
    }
}
