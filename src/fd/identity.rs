//! Which descriptors, of one process or of several, share one open file description.

use std::cmp::Ordering;
use std::collections::BTreeMap;
use std::io;

use anyhow::{Context, Result};
use nix::unistd::Pid;

use super::probe::Seen;
use crate::sys::{fds, groups};

/// Groups of indices into `seen`, one a description, in the order of their lowest descriptors. `pids` are the owners.
pub fn descriptions(pids: &[Pid], seen: &[Seen]) -> Result<Vec<Vec<usize>>> {
    let place = |index: usize| (pids[seen[index].owner], seen[index].fd);
    group(seen, |a, b| fds::kcmp_file(place(a), place(b)))
}

/// Only descriptors that look alike are compared: kcmp is a system call for each step of the sort.
fn group(seen: &[Seen], mut compare: impl FnMut(usize, usize) -> io::Result<Ordering>) -> Result<Vec<Vec<usize>>> {
    let mut alike: BTreeMap<_, Vec<usize>> = BTreeMap::new();
    for (index, seen) in seen.iter().enumerate() {
        // All anonymous inodes are one inode, but eventfds have a number of their own (Linux 5.2).
        let event = seen.info.value("eventfd-id");
        alike
            .entry((seen.inode(), seen.status_flags, &seen.link, event))
            .or_default()
            .push(index);
    }
    let mut groups = Vec::new();
    for indices in alike.into_values() {
        groups.extend(split(indices, &mut compare).context("kcmp KCMP_FILE")?);
    }
    groups.sort_unstable();
    Ok(groups)
}

fn split(
    indices: Vec<usize>,
    compare: &mut impl FnMut(usize, usize) -> io::Result<Ordering>,
) -> io::Result<Vec<Vec<usize>>> {
    if indices.len() == 1 {
        return Ok(vec![indices]);
    }
    let mut failed = None;
    let found = groups(&indices, |a, b| match compare(a, b) {
        Ok(order) => Some(order),
        Err(error) => {
            failed = Some(error);
            None
        }
    });
    failed.map_or(Ok(found), Err)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fd::fdinfo::FdInfo;

    fn seen(fd: i32, link: &str) -> Seen {
        Seen {
            owner: 0,
            fd,
            link: link.into(),
            info: FdInfo::parse("pos:\t0\nflags:\t02\n".into()).unwrap(),
            status_flags: 2,
            stat: nix::sys::stat::fstat(std::io::stderr()).unwrap(),
            on_mqueue: false,
            tty: None,
            ready: nix::poll::PollFlags::empty(),
            signal_owner: (0, 0),
            io_signal: 0,
        }
    }

    #[test]
    fn descriptors_that_compare_equal_share_a_description() {
        let all = [seen(0, "a"), seen(1, "b"), seen(2, "a"), seen(3, "a"), seen(9, "a")];
        let file = [7, 7, 5, 7, 5]; // kcmp's order is arbitrary
        let groups = group(&all, |a, b| Ok(file[a].cmp(&file[b]))).unwrap();
        assert_eq!(groups, [vec![0, 3], vec![1], vec![2, 4]]);
    }

    #[test]
    fn a_failed_comparison_is_an_error() {
        let all = [seen(0, "a"), seen(1, "a")];
        assert!(group(&all, |_, _| Err(io::ErrorKind::PermissionDenied.into())).is_err());
    }
}
