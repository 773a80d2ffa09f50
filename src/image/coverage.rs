//! Where an image may put pages: inside the mappings and shared objects of its own snapshot, each page once.

use super::pages::Space;
use super::state::{Backing, Snapshot, Vma};
use std::collections::{BTreeMap, HashMap};

/// The memory that a snapshot has, and what of it was seen. Its cost is bounded by the runs that do not touch each other.
pub struct Coverage {
    page_size: u64,
    /// Of each process, the mappings that have pages of their own, in ascending order.
    processes: Vec<Vec<(u64, u64)>>,
    /// Of each shared object, its size in whole pages.
    shared: Vec<u64>,
    seen: HashMap<Space, BTreeMap<u64, u64>>,
}

impl Coverage {
    /// Of a snapshot that was validated.
    pub fn new(snapshot: &Snapshot, page_size: u32) -> Self {
        let page_size = u64::from(page_size);
        let mappings = |vmas: &[Vma]| {
            vmas.iter()
                .filter(|vma| owns_pages(vma))
                .map(|vma| (vma.start, vma.end))
                .collect()
        };
        Coverage {
            page_size,
            processes: snapshot
                .processes
                .iter()
                .map(|process| mappings(&process.memory.vmas))
                .collect(),
            shared: snapshot
                .shared_objects
                .iter()
                .map(|object| object.size.next_multiple_of(page_size))
                .collect(),
            seen: HashMap::new(),
        }
    }

    /// Takes note of a stretch. An error says why it cannot be there.
    pub fn add(&mut self, space: Space, offset: u64, len: u64) -> Result<(), String> {
        let end = offset
            .checked_add(len)
            .ok_or_else(|| format!("{} lies beyond all addresses", name(space, offset, len)))?;
        if len == 0 || !offset.is_multiple_of(self.page_size) || !len.is_multiple_of(self.page_size) {
            return Err(format!("{} is not made of whole pages", name(space, offset, len)));
        }
        if !self.contains(space, offset, end) {
            return Err(format!(
                "{} lies in no mapping or object that has pages of its own",
                name(space, offset, len)
            ));
        }
        let whole = match space {
            Space::Inherited(process) => Space::Process(process),
            other => other,
        };
        if !insert(self.seen.entry(whole).or_default(), offset, end) {
            return Err(format!("{} is there twice", name(space, offset, len)));
        }
        Ok(())
    }

    fn contains(&self, space: Space, offset: u64, end: u64) -> bool {
        match space {
            Space::Shared(object) => self.shared.get(object as usize).is_some_and(|&size| end <= size),
            Space::Process(process) | Space::Inherited(process) => {
                self.processes.get(process as usize).is_some_and(|mappings| {
                    let next = mappings.partition_point(|&(start, _)| start <= offset);
                    next > 0 && end <= mappings[next - 1].1
                })
            }
        }
    }
}

/// In which order the groups of pages come ([`Space`]).
#[derive(Default)]
pub struct Order {
    inherited: Option<u32>,
    over: bool,
}

impl Order {
    /// An error says what comes too late.
    pub fn add(&mut self, space: Space) -> Result<(), String> {
        let Some(process) = space.heirs_of() else {
            self.over = true;
            return Ok(());
        };
        if self.over || self.inherited.is_some_and(|before| process < before) {
            return Err(format!("what the children of process {process} inherit comes too late"));
        }
        self.inherited = Some(process);
        Ok(())
    }
}

/// Shared memory belongs to its object or file, and the kernel's own mappings to the kernel. A private mapping of either has pages of
/// its own once they are written to.
fn owns_pages(vma: &Vma) -> bool {
    !vma.shared && !matches!(vma.backing, Backing::Kernel(_))
}

/// Adds a range to ranges that do not touch; false if it overlaps one.
fn insert(ranges: &mut BTreeMap<u64, u64>, mut start: u64, mut end: u64) -> bool {
    let before = ranges.range(..=start).next_back().map(|(&start, &end)| (start, end));
    let after = ranges.range(start..).next().map(|(&start, &end)| (start, end));
    if before.is_some_and(|(_, before_end)| before_end > start)
        || after.is_some_and(|(after_start, _)| after_start < end)
    {
        return false;
    }
    if let Some((before_start, before_end)) = before
        && before_end == start
    {
        start = before_start;
    }
    if let Some((after_start, after_end)) = after
        && after_start == end
    {
        ranges.remove(&after_start);
        end = after_end;
    }
    ranges.insert(start, end);
    true
}

fn name(space: Space, offset: u64, len: u64) -> String {
    match space {
        Space::Process(process) | Space::Inherited(process) => {
            format!("memory {offset:#x}+{len:#x} of process {process}")
        }
        Space::Shared(object) => format!("memory {offset:#x}+{len:#x} of shared object {object}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_that_touch_become_one() {
        let mut ranges = BTreeMap::new();
        assert!(insert(&mut ranges, 0, 10));
        assert!(insert(&mut ranges, 20, 30));
        assert!(insert(&mut ranges, 10, 20));
        assert_eq!(ranges.into_iter().collect::<Vec<_>>(), [(0, 30)]);
    }

    #[test]
    fn ranges_that_overlap_are_refused() {
        let mut ranges = BTreeMap::new();
        assert!(insert(&mut ranges, 10, 20));
        for (start, end) in [(10, 20), (5, 11), (19, 30), (0, 100), (12, 13)] {
            assert!(!insert(&mut ranges, start, end), "{start}..{end}");
        }
    }
}
