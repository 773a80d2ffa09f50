//! Which memory is stored, and in which order.

use crate::arch;
use crate::collect::SharedFacts;
use crate::image::lineage::Lineage;
use crate::image::pages::{Extent, Space, Zeros};
use crate::image::ranges::{self, Range};
use crate::image::state::{Backing, Process};

/// The pages of processes, `runs` by process and mapping: what children inherit from each first, then the rest. Says in the mappings how much
/// of it there is.
pub fn of_processes(processes: &mut [Process], lineage: &Lineage, runs: &[Vec<Vec<Range>>]) -> Vec<Extent> {
    let bequests = lineage.bequests(processes);
    let (mut first, mut rest) = (Vec::new(), Vec::new());
    for (index, process) in (0..).zip(processes) {
        let mappings = process.memory.vmas.iter_mut().zip(&runs[index as usize]);
        for ((vma, runs), bequest) in mappings.zip(&bequests[index as usize]) {
            let own = ranges::difference(runs, &vma.inherited);
            vma.resident = ranges::len(&own);
            vma.huge = huge_pages_of_its_own(std::mem::take(&mut vma.huge), &vma.inherited);
            first.extend(extents(
                Space::Inherited(index),
                &vma.backing,
                &ranges::intersection(&own, bequest),
            ));
            rest.extend(extents(
                Space::Process(index),
                &vma.backing,
                &ranges::difference(&own, bequest),
            ));
        }
    }
    first.extend(rest);
    first
}

/// Those that are the parent's are huge where it has them so.
fn huge_pages_of_its_own(huge: Vec<Range>, inherited: &[Range]) -> Vec<Range> {
    if inherited.is_empty() {
        return huge;
    }
    let whole = |&(start, end): &Range| {
        let start = start.next_multiple_of(arch::HUGE_PAGE_SIZE);
        (start..end)
            .step_by(arch::HUGE_PAGE_SIZE as usize)
            .map(|at| (at, at + arch::HUGE_PAGE_SIZE))
    };
    let own = huge.iter().flat_map(whole);
    let own = own.filter(|page| ranges::intersection(&[*page], inherited).is_empty());
    ranges::union(own.collect())
}

/// Runs of pages of a mapping of a process, to be stored.
pub fn extents(space: Space, backing: &Backing, runs: &[Range]) -> Vec<Extent> {
    let zeros = match backing {
        Backing::Anonymous => Zeros::LeaveOut,
        _ => Zeros::Keep,
    };
    let extent = |&(start, end): &Range| Extent {
        space,
        offset: start,
        len: end - start,
        zeros,
    };
    runs.iter().map(extent).collect()
}

pub fn of_shared_objects(objects: &[SharedFacts]) -> Vec<Extent> {
    let extents = (0..).zip(objects).flat_map(|(index, shared)| {
        let space = Space::Shared(index);
        // Holes of the object are left out already; a page of zeros in it reads like a hole.
        let zeros = Zeros::LeaveOut;
        shared.data.iter().map(move |&(offset, len)| Extent {
            space,
            offset,
            len,
            zeros,
        })
    });
    extents.collect()
}
