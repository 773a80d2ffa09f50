//! Sets of bytes or addresses: ranges with start and end, in ascending order, which neither overlap nor touch.

pub type Range = (u64, u64);

/// Ranges in any order become a set.
pub fn union(mut ranges: Vec<Range>) -> Vec<Range> {
    ranges.sort_unstable();
    let mut all: Vec<Range> = Vec::with_capacity(ranges.len());
    for (start, end) in ranges.into_iter().filter(|(start, end)| start < end) {
        match all.last_mut() {
            Some(last) if last.1 >= start => last.1 = last.1.max(end),
            _ => all.push((start, end)),
        }
    }
    all
}

pub fn intersection(a: &[Range], b: &[Range]) -> Vec<Range> {
    let (mut both, mut i, mut j) = (Vec::new(), 0, 0);
    while i < a.len() && j < b.len() {
        let (start, end) = (a[i].0.max(b[j].0), a[i].1.min(b[j].1));
        if start < end {
            both.push((start, end));
        }
        if a[i].1 < b[j].1 { i += 1 } else { j += 1 }
    }
    both
}

/// What of `a` is not in `b`.
pub fn difference(a: &[Range], b: &[Range]) -> Vec<Range> {
    let mut rest = Vec::new();
    for &(mut start, end) in a {
        let first = b.partition_point(|taken| taken.1 <= start);
        for &(from, to) in b[first..].iter().take_while(|taken| taken.0 < end) {
            if start < from {
                rest.push((start, from));
            }
            start = to;
        }
        if start < end {
            rest.push((start, end));
        }
    }
    rest
}

pub fn len(ranges: &[Range]) -> u64 {
    ranges.iter().map(|(start, end)| end - start).sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_that_touch_or_overlap_become_one() {
        let ranges = vec![(20, 30), (5, 10), (10, 12), (25, 40), (50, 50)];
        assert_eq!(union(ranges), [(5, 12), (20, 40)]);
    }

    /// Against sets of single numbers.
    #[test]
    fn they_are_sets() {
        let of = |bits: u32| union((0..16).filter(|i| bits >> i & 1 == 1).map(|i| (i, i + 1)).collect());
        let mut seed = 1u32;
        for _ in 0..2000 {
            seed = seed.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            let (a, b) = (seed >> 16 & 0xffff, seed & 0xffff);
            assert_eq!(intersection(&of(a), &of(b)), of(a & b));
            assert_eq!(union(difference(&of(a), &of(b))), of(a & !b));
            assert_eq!(len(&of(a)), u64::from(a.count_ones()));
        }
    }
}
