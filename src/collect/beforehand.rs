//! The mappings as they were before the process was stopped. smaps looks at every page, which takes some 6 ms for 1 GiB of small ones;
//! maps at none. So the flags of mappings are read while the process still runs, and looked at again when it does so once more.

use anyhow::{Context, Result};

use super::headroom::kibibytes;
use super::memory::{self, Area};
use super::proc::ProcDir;

/// What smaps said of a process that ran.
pub struct Beforehand(Vec<Area>);

impl Beforehand {
    pub fn look(process: &ProcDir) -> Result<Self> {
        memory::areas(process).map(Beforehand)
    }

    /// The mappings of the process, which is stopped now, if they seem to be the same still: all that maps shows, and how much is locked,
    /// which is what a copy cannot tell.
    pub(super) fn still(&self, process: &ProcDir) -> Result<Option<Vec<Area>>> {
        let now = memory::areas_without_flags(process)?;
        let same = now.len() == self.0.len() && now.iter().zip(&self.0).all(|(now, before)| is_same(now, before));
        let locked: u64 = self.0.iter().filter(|area| area.flags.has(b"lo")).map(Area::len).sum();
        Ok((same && locked == locked_memory(&process.text("status")?)?).then(|| self.0.clone()))
    }

    /// Afterwards: whether the flags were, at the moment of the copy, what they had been before. madvise(2) changes some of them, and no
    /// line of maps. What the copy does not have is looked for in the process, which runs again.
    pub fn held(&self, copy: &ProcDir, process: &ProcDir) -> Result<bool> {
        let copied = memory::areas(copy).context("the copy")?;
        let of_copy = |area: &Area| find(&copied, area);
        if !self
            .0
            .iter()
            .filter_map(|area| Some((area, of_copy(area)?)))
            .all(|(area, copy)| flags_but_lost(area) == flags_but_lost(copy))
        {
            return Ok(false);
        }
        let missing: Vec<&Area> = self.0.iter().filter(|area| of_copy(area).is_none()).collect();
        if missing.is_empty() {
            return Ok(true);
        }
        let now = memory::areas(process)?;
        let unchanged = |area: &&Area| find(&now, area).is_some_and(|now| now.flags == area.flags);
        Ok(missing
            .iter()
            .all(|area| (area.shared || area.flags.has(b"dc")) && unchanged(area)))
    }
}

fn find<'a>(areas: &'a [Area], wanted: &Area) -> Option<&'a Area> {
    let found = areas.binary_search_by_key(&wanted.start, |area| area.start);
    found
        .ok()
        .map(|index| &areas[index])
        .filter(|area| is_same(area, wanted))
}

/// As far as a line of maps tells.
fn is_same(a: &Area, b: &Area) -> bool {
    let line = |area: &Area| {
        (
            area.start,
            area.end,
            area.prot,
            area.shared,
            area.offset,
            area.device,
            area.inode,
        )
    };
    line(a) == line(b) && a.name == b.name
}

/// All flags but those that a child does not inherit (dup_mmap(), kernel/fork.c), and the one of soft-dirty memory.
fn flags_but_lost(area: &Area) -> Vec<[u8; 2]> {
    let lost = [b"lo", b"um", b"uw", b"ui", b"sd"];
    let flags = area.flags.0.iter().copied();
    flags.filter(|code| !lost.contains(&code)).collect()
}

/// In bytes.
fn locked_memory(status: &str) -> Result<u64> {
    kibibytes(status, "VmLck:").context("VmLck")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::image::state::VmFlags;

    fn area(start: u64, flags: &[&[u8; 2]]) -> Area {
        Area {
            start,
            end: start + 0x1000,
            flags: VmFlags(flags.iter().map(|code| **code).collect()),
            ..Area::default()
        }
    }

    #[test]
    fn a_mapping_of_another_size_is_another() {
        let before = area(0x1000, &[]);
        assert!(is_same(&area(0x1000, &[b"rd"]), &before));
        assert!(!is_same(
            &Area {
                end: 0x3000,
                ..area(0x1000, &[])
            },
            &before
        ));
        assert!(!is_same(
            &Area {
                name: b"/a".to_vec(),
                ..area(0x1000, &[])
            },
            &before
        ));
        assert!(find(&[area(0x1000, &[]), area(0x2000, &[])], &area(0x2000, &[])).is_some());
        assert!(find(&[area(0x1000, &[])], &area(0x2000, &[])).is_none());
    }

    #[test]
    fn a_lock_is_lost_in_a_copy_and_advice_is_not() {
        let before = area(0x1000, &[b"rd", b"lo", b"wf"]);
        assert_eq!(flags_but_lost(&before), flags_but_lost(&area(0x1000, &[b"rd", b"wf"])));
        assert_ne!(flags_but_lost(&before), flags_but_lost(&area(0x1000, &[b"rd", b"lo"])));
    }

    #[test]
    fn locked_memory_is_told_in_kibibytes() {
        assert_eq!(locked_memory("VmPeak:\t 8 kB\nVmLck:\t       4 kB\n").unwrap(), 4096); // Linux 6.18
        assert!(locked_memory("VmPeak:\t 8 kB\n").is_err());
    }

    #[test]
    fn our_own_code_does_not_change() {
        let own = ProcDir::by_pid(std::process::id() as i32).unwrap();
        let before = Beforehand::look(&own).unwrap();
        let mut code = before.0.clone();
        code.retain(|area| area.prot & 4 != 0);
        assert!(Beforehand(code).held(&own, &own).unwrap());
        let mut advised = before.0;
        advised.retain(|area| area.name == b"[stack]");
        advised[0].flags.0.push(*b"wf");
        assert!(!Beforehand(advised).held(&own, &own).unwrap());
    }
}
