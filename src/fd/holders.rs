//! Which other processes have a pipe, FIFO or pseudo-terminal open: neither its descriptors nor its descriptions tell.

use std::collections::{BTreeMap, HashMap};
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use anyhow::{Context, Result};
use nix::sys::stat::{FileStat, stat};
use nix::unistd::Pid;

use super::probe::Seen;

/// By inode: a process other than `pids` and ourselves that has it open, as `4127 (bash)`.
pub fn others(pids: &[Pid], wanted: &[&Seen]) -> Result<HashMap<(u64, u64), String>> {
    let by_link: HashMap<&[u8], (u64, u64)> = wanted.iter().map(|seen| (seen.link.as_slice(), seen.inode())).collect();
    let mut found = HashMap::new();
    if by_link.is_empty() {
        return Ok(found);
    }
    descriptors_of_others(pids, |other, path, link| {
        // A FIFO's link is a path, which leads elsewhere in another mount namespace.
        if let Some(&inode) = by_link.get(link)
            && stat(path).is_ok_and(|stat| (stat.st_dev, stat.st_ino) == inode)
        {
            found.entry(inode).or_insert_with(|| describe(other));
        }
    })?;
    Ok(found)
}

/// By number of these pseudo-terminals: a process other than `pids` and ourselves that has either side open.
pub fn of_ptys<T>(pids: &[Pid], wanted: &BTreeMap<u32, T>) -> Result<BTreeMap<u32, Option<String>>> {
    let mut found = BTreeMap::new();
    if wanted.is_empty() {
        return Ok(found);
    }
    let slave_of = |link: &[u8]| -> Option<u32> { str::from_utf8(link.strip_prefix(b"/dev/pts/")?).ok()?.parse().ok() };
    descriptors_of_others(pids, |other, path, link| {
        let number = match slave_of(link) {
            // Another instance of devpts(5) has other slaves of these numbers.
            Some(number) => Some(number).filter(|_| is_same(path, &format!("/dev/pts/{number}"))),
            None if link.ends_with(b"ptmx") => master_of(path),
            None => None,
        };
        if let Some(number) = number.filter(|number| wanted.contains_key(number)) {
            found.entry(number).or_insert_with(|| Some(describe(other)));
        }
    })?;
    Ok(found)
}

fn is_same(path: &Path, named: &str) -> bool {
    let inode = |stat: FileStat| (stat.st_dev, stat.st_ino);
    matches!((stat(path), stat(named)), (Ok(one), Ok(other)) if inode(one) == inode(other))
}

/// Of a descriptor of a master: N of /dev/pts/N (pty_show_fdinfo(), Linux 4.15).
fn master_of(descriptor: &Path) -> Option<u32> {
    let fdinfo = descriptor.to_str()?.replace("/fd/", "/fdinfo/");
    let text = fs::read_to_string(fdinfo).ok()?;
    text.lines()
        .find_map(|line| line.strip_prefix("tty-index:"))?
        .trim()
        .parse()
        .ok()
}

/// Shows each descriptor of processes other than `pids` and ourselves: its process, its path in /proc and what that points at. Processes
/// that we may not look into are passed over: they belong to somebody else.
fn descriptors_of_others(pids: &[Pid], mut show: impl FnMut(i32, &Path, &[u8])) -> Result<()> {
    for entry in fs::read_dir("/proc").context("read /proc")? {
        let name = entry.context("read /proc")?.file_name();
        let Some(other) = name.to_str().and_then(|name| name.parse::<i32>().ok()) else {
            continue;
        };
        if pids.contains(&Pid::from_raw(other)) || other == Pid::this().as_raw() {
            continue;
        }
        let Ok(descriptors) = fs::read_dir(format!("/proc/{other}/fd")) else {
            continue;
        };
        for path in descriptors.flatten().map(|entry| entry.path()) {
            if let Ok(link) = fs::read_link(&path) {
                show(other, &path, link.as_os_str().as_bytes());
            }
        }
    }
    Ok(())
}

fn describe(pid: i32) -> String {
    let name = fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
    format!("{pid} ({})", name.trim_end())
}
