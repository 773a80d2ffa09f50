//! Where the stage may sit: the lowest hole that is free in the stub's address space and in the image's. Pure.
#![deny(unsafe_code)]

use std::ops::Range;

/// MAP_GROWSDOWN mappings keep a distance to what is below (stack_guard_gap, 256 pages by default) and may grow into it.
pub const STACK_GUARD_GAP: u64 = 256 * 4096;

/// vm.mmap_min_addr is 64 KiB at most on the systems we know; the first 128 KiB stay free for null pointers.
const LOWEST: u64 = 0x2_0000;

/// The lowest address at which `len` bytes overlap none of `taken`, below `end`.
pub fn find_hole(taken: &[Range<u64>], len: u64, end: u64) -> Option<u64> {
    let mut taken: Vec<&Range<u64>> = taken.iter().filter(|range| !range.is_empty()).collect();
    taken.sort_by_key(|range| range.start);
    let mut at = LOWEST;
    for range in taken {
        if at.checked_add(len).is_none_or(|wanted| range.start >= wanted) {
            break;
        }
        at = at.max(range.end);
    }
    at.checked_add(len).is_some_and(|wanted| wanted <= end).then_some(at)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_hole_is_the_lowest_that_fits() {
        assert_eq!(find_hole(&[], 0x1000, 0x10_0000), Some(LOWEST));
        let taken = [0x2_1000..0x2_2000, 0x2_5000..0x3_0000];
        assert_eq!(find_hole(&taken, 0x1000, 0x10_0000), Some(LOWEST));
        assert_eq!(find_hole(&taken, 0x2000, 0x10_0000), Some(0x2_2000));
        assert_eq!(find_hole(&taken, 0x4000, 0x10_0000), Some(0x3_0000));
    }

    #[test]
    fn a_full_address_space_has_no_hole() {
        let all = 0..0x10_0000;
        assert_eq!(find_hole(&[all], 0x1000, 0x10_0000), None);
        let everything = 0..u64::MAX;
        assert_eq!(find_hole(&[everything], 0x1000, 0x10_0000), None);
    }

    #[test]
    fn ranges_may_come_unsorted_and_overlap() {
        let taken = [0x3_0000..0x4_0000, 0x1_0000..0x3_5000];
        assert_eq!(find_hole(&taken, 0x1000, 0x10_0000), Some(0x4_0000));
    }
}
