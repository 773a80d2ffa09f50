//! Memory that processes have in common: files that were deleted and live on in it, and whether somebody outside has it mapped, too.

use std::collections::{HashMap, HashSet};

use anyhow::Result;

use super::memory::{self, Area};
use super::objects::map_file;
use super::proc::{ProcDir, all_processes};
use super::surroundings::{self, Relative};
use crate::fd::{SYSTEM_V, SYSTEM_V_PREFIX};

/// By st_dev and st_ino: deleted files that the process maps shared, so that their content is memory which it may go on to share. Who may not
/// follow map_files (CAP_CHECKPOINT_RESTORE) finds none.
pub fn deleted_files(process: &ProcDir) -> Result<HashSet<(u64, u64)>> {
    let areas = memory::areas_without_flags(process)?;
    let deleted = areas.iter().filter(|area| is_deleted_file(area));
    let unlinked = deleted.filter(|area| {
        let stat = process.stat(&map_file(area));
        stat.is_ok_and(|stat| stat.st_nlink == 0 && stat.st_mode & libc::S_IFMT == libc::S_IFREG)
    });
    Ok(unlinked.map(inode).collect())
}

fn is_deleted_file(area: &Area) -> bool {
    let name = &area.name;
    let is_file = [
        b"/memfd:",
        b"/dev/zero (deleted)".as_slice(),
        SYSTEM_V_PREFIX,
        b"/[aio]",
        b"/secretmem",
    ]
    .iter()
    .all(|other| !name.starts_with(other));
    area.shared && is_file && name.starts_with(b"/") && name.ends_with(b" (deleted)")
}

pub fn inode(area: &Area) -> (u64, u64) {
    if area.name.starts_with(SYSTEM_V_PREFIX) {
        return (SYSTEM_V, area.inode);
    }
    let (major, minor) = area.device;
    (libc::makedev(major, minor), area.inode)
}

/// Processes other than `pids` that map one of `inodes` shared. Those that we may not look into belong to somebody else.
pub fn outsiders(pids: &[i32], inodes: &HashSet<(u64, u64)>) -> Result<HashMap<(u64, u64), Relative>> {
    let mut found = HashMap::new();
    if inodes.is_empty() {
        return Ok(found);
    }
    let own = std::process::id().cast_signed();
    for pid in all_processes()?
        .into_iter()
        .filter(|pid| !pids.contains(pid) && *pid != own)
    {
        let Ok(areas) = ProcDir::by_pid(pid)
            .map_err(Into::into)
            .and_then(|dir| memory::areas_without_flags(&dir))
        else {
            continue;
        };
        for area in areas.iter().filter(|area| area.shared && inodes.contains(&inode(area))) {
            found.entry(inode(area)).or_insert_with(|| surroundings::relative(pid));
        }
    }
    Ok(found)
}
