//! Regular files: opened again by their path, at the same offset.

use std::os::fd::{BorrowedFd, OwnedFd};

use anyhow::{Context, Result};
use nix::sys::statfs::{CGROUP_SUPER_MAGIC, CGROUP2_SUPER_MAGIC, FsType, PROC_SUPER_MAGIC, SYSFS_MAGIC, fstatfs};
use nix::unistd::{Whence, lseek};
use serde::{Deserialize, Serialize};

use super::kind::{Kind, Probe, Unfit};
use super::look::Look;
use super::nameless::is_nameless;
use super::place::Place;
use super::probe::{Seen, mtime_ns};
use super::thaw::{Check, ReopenContext};
use crate::image::state::Description;

#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Regular {
    pub place: Place,
    pub offset: i64,
}

impl Kind for Regular {
    fn claims(seen: &Seen, look: &Look<'_>) -> bool {
        let regular = seen.file_type() == libc::S_IFREG && !seen.only_path();
        regular && !seen.on_mqueue && !is_nameless(seen) && !look.shared.holds(&seen.stat)
    }

    fn describe(probe: &Probe<'_>, _look: &mut Look<'_>) -> Result<Self, Unfit> {
        refuse_own_proc(probe)?;
        let mut place = Place::describe(probe)?;
        if is_synthetic(&probe.file)? {
            (place.size, place.mtime_ns) = (0, UNKNOWN);
        }
        let offset = probe.seen.info.pos;
        Ok(Regular { place, offset })
    }

    fn check(&self, description: &Description, check: &mut Check<'_>) {
        let Some(stat) = self.place.check(description, check) else {
            return;
        };
        let size = u64::try_from(stat.st_size).unwrap_or(0);
        if self.place.mtime_ns == UNKNOWN {
            return;
        }
        if size < self.place.size {
            let reason = format!(
                "is now shorter than at the freeze: {size} bytes, and was {}",
                self.place.size
            );
            check.refuse(description, reason, "put the file back as it was");
        } else if size != self.place.size {
            let what = format!("grew since the freeze: {size} bytes, and was {}", self.place.size);
            check.warn(description, &what);
        } else if mtime_ns(&stat) != self.place.mtime_ns {
            check.warn(description, "was written to since the freeze");
        }
    }

    fn reopen(&self, description: &Description, _context: &mut ReopenContext) -> Result<OwnedFd> {
        let file = self.place.reopen(description.status_flags)?;
        seek(&file, self.offset)?;
        Ok(file)
    }
}

/// In place of the time of a file whose content the kernel makes up when it is read.
const UNKNOWN: i64 = i64::MIN;

fn is_synthetic(file: &OwnedFd) -> Result<bool> {
    const SYNTHETIC: &[FsType] = &[PROC_SUPER_MAGIC, SYSFS_MAGIC, CGROUP_SUPER_MAGIC, CGROUP2_SUPER_MAGIC];
    Ok(SYNTHETIC.contains(&fstatfs(file).context("fstatfs")?.filesystem_type()))
}

/// A file of a process in /proc tells of that very process, and so would be another file at thaw.
pub fn refuse_own_proc(probe: &Probe<'_>) -> Result<(), Unfit> {
    let filesystem = fstatfs(&probe.file).context("fstatfs")?;
    let top = probe
        .seen
        .link
        .strip_prefix(b"/proc/")
        .and_then(|rest| rest.split(|&byte| byte == b'/').next());
    let of_process = top.is_some_and(|top| !top.is_empty() && top.iter().all(u8::is_ascii_digit));
    if filesystem.filesystem_type() == PROC_SUPER_MAGIC && of_process {
        return Err(Unfit::refused(
            "belongs to a process in /proc",
            "have the program close it first",
        ));
    }
    Ok(())
}

/// Sets the offset, unless it is where a fresh description has it: some files cannot be sought.
pub fn seek(file: &impl std::os::fd::AsFd, offset: i64) -> Result<()> {
    if offset != 0 {
        let file: BorrowedFd<'_> = file.as_fd();
        lseek(file, offset, Whence::SeekSet).with_context(|| format!("lseek to {offset}"))?;
    }
    Ok(())
}
