//! Groups of what a system call says is equal, where it orders the rest.

use std::cmp::Ordering;

/// Groups in the order of `items`, of which those are left out that cannot be compared (None), as they are gone. A sort by such an order,
/// which may change under it, could panic.
pub fn groups<T: Copy>(items: &[T], mut order: impl FnMut(T, T) -> Option<Ordering>) -> Vec<Vec<T>> {
    // By the order of the call.
    let mut sorted: Vec<Vec<T>> = Vec::new();
    'items: for &item in items {
        let (mut low, mut high) = (0, sorted.len());
        while low < high {
            let middle = (low + high) / 2;
            let other = sorted[middle][0];
            match order(other, item) {
                Some(Ordering::Less) => low = middle + 1,
                Some(Ordering::Greater) => high = middle,
                Some(Ordering::Equal) => {
                    sorted[middle].push(item);
                    continue 'items;
                }
                None if order(other, other).is_none() => {
                    sorted.remove(middle);
                    high -= 1;
                }
                None => continue 'items,
            }
        }
        sorted.insert(low, vec![item]);
    }
    sorted
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn equals_come_together_in_their_order() {
        let file = [7, 3, 5, 7, 5];
        let mut found = groups(&[0, 1, 2, 3, 4], |a: usize, b| Some(file[a].cmp(&file[b])));
        found.sort_unstable();
        assert_eq!(found, [vec![0, 3], vec![1], vec![2, 4]]);
    }

    #[test]
    fn who_is_gone_is_left_out() {
        let order = |gone: usize| move |a: usize, b: usize| (a != gone && b != gone).then(|| a.cmp(&b));
        for gone in 0..7 {
            let found = groups(&[0, 1, 2, 3, 4, 5, 6], order(gone));
            let left: Vec<usize> = (0..7).filter(|&item| item != gone).collect();
            let mut all: Vec<usize> = found.concat();
            all.retain(|&item| item != gone);
            assert_eq!(all, left);
        }
    }
}
