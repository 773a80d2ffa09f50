//! Which other processes have a pipe or FIFO open: neither its descriptors nor its descriptions tell.

use std::collections::HashMap;
use std::fs;
use std::os::unix::ffi::OsStringExt;

use anyhow::{Context, Result};
use nix::sys::stat::stat;
use nix::unistd::Pid;

use super::probe::Seen;

/// By inode: a process other than `pids` and ourselves that has it open, as `4127 (bash)`. Processes that we may not look into
/// are passed over: they belong to somebody else.
pub fn others(pids: &[Pid], wanted: &[&Seen]) -> Result<HashMap<(u64, u64), String>> {
    let by_link: HashMap<&[u8], (u64, u64)> = wanted.iter().map(|seen| (seen.link.as_slice(), seen.inode())).collect();
    let mut found = HashMap::new();
    if by_link.is_empty() {
        return Ok(found);
    }
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
            let Ok(link) = fs::read_link(&path) else { continue };
            let Some(&inode) = by_link.get(link.into_os_string().into_vec().as_slice()) else {
                continue;
            };
            // A FIFO's link is a path, which leads elsewhere in another mount namespace.
            if stat(&path).is_ok_and(|stat| (stat.st_dev, stat.st_ino) == inode) {
                found.entry(inode).or_insert_with(|| describe(other));
            }
        }
    }
    Ok(found)
}

fn describe(pid: i32) -> String {
    let name = fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
    format!("{pid} ({})", name.trim_end())
}
