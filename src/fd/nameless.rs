//! Regular files without a name (deleted, or made by O_TMPFILE): small ones are carried with their content.

use std::ffi::OsStr;
use std::fs::File;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::FileExt;

use anyhow::{Context, Result};
use nix::fcntl::{OFlag, open};
use nix::sys::stat::{Mode, fchmod, fstat, futimens};
use nix::sys::time::TimeSpec;
use nix::unistd::{Gid, Uid, fchown};
use serde::{Deserialize, Serialize};

use super::kind::{Kind, Probe, Unfit};
use super::look::Look;
use super::probe::{Seen, mtime_ns};
use super::regular::seek;
use super::thaw::{Check, ReopenContext, open_again};
use crate::image::state::{Description, Name};

/// What fits into the state of an image, which is read before the memory.
const LARGEST: u64 = 4 << 20;

/// One description of a file without a name.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Nameless {
    /// The inode at the freeze: equal in all descriptions of one file.
    pub inode: (u64, u64),
    pub offset: i64,
    /// In the file's first description.
    pub content: Option<Content>,
}

#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Content {
    /// Where the name was: a directory of the file system that the file belongs to.
    pub directory: Name,
    /// st_mode.
    pub mode: u32,
    pub uid: u32,
    pub gid: u32,
    pub mtime_ns: i64,
    #[serde(with = "serde_bytes")]
    pub bytes: Vec<u8>,
}

impl Kind for Nameless {
    fn claims(seen: &Seen, look: &Look<'_>) -> bool {
        is_nameless(seen) && !look.shared.holds(&seen.stat)
    }

    fn describe(probe: &Probe<'_>, look: &mut Look<'_>) -> Result<Self, Unfit> {
        let seen = probe.seen;
        let size = u64::try_from(seen.stat.st_size).unwrap_or(u64::MAX);
        if size > LARGEST {
            return Err(Unfit::refused(
                format!("is a deleted file of {size} bytes, and cryopod carries deleted files up to {LARGEST} bytes"),
                "have the program close it first",
            ));
        }
        let content = if look.told.insert(seen.inode()) {
            Some(Content::of(probe, size)?)
        } else {
            None
        };
        Ok(Nameless {
            inode: seen.inode(),
            offset: seen.info.pos,
            content,
        })
    }

    fn check(&self, description: &Description, check: &mut Check<'_>) {
        if let Some(Err(error)) = self.content.as_ref().map(Content::make_empty) {
            let reason = format!("is a deleted file that cannot be made again: {error:#}");
            check.refuse(description, reason, "make the directory, and let thaw write to it");
        }
    }

    fn reopen(&self, description: &Description, context: &mut ReopenContext) -> Result<OwnedFd> {
        if let Some(content) = &self.content {
            context.nameless.insert(self.inode, content.make()?);
        }
        let file = context
            .nameless
            .get(&self.inode)
            .context("the file's first description is not in the image")?;
        const AT_OPEN: i32 = libc::O_ACCMODE | libc::O_SYNC | libc::O_DSYNC | libc::O_APPEND;
        let file = open_again(file.as_fd(), description.status_flags.cast_signed() & AT_OPEN)?;
        seek(&file, self.offset)?;
        Ok(file)
    }
}

impl Content {
    fn of(probe: &Probe<'_>, size: u64) -> Result<Self> {
        let stat = &probe.seen.stat;
        // A description of our own, since the process's may be write-only.
        let file = File::from(open_again(probe.file.as_fd(), libc::O_RDONLY)?);
        let mut bytes = vec![0; usize::try_from(size)?];
        file.read_exact_at(&mut bytes, 0).context("read a deleted file")?;
        let end = probe
            .seen
            .link
            .iter()
            .rposition(|&byte| byte == b'/')
            .context("a deleted file without a path")?;
        let directory = probe.seen.link[..end.max(1)].to_vec();
        let (uid, gid) = (stat.st_uid, stat.st_gid);
        Ok(Content {
            directory,
            mode: stat.st_mode,
            uid,
            gid,
            mtime_ns: mtime_ns(stat),
            bytes,
        })
    }

    fn make_empty(&self) -> Result<OwnedFd> {
        let flags = OFlag::O_TMPFILE | OFlag::O_RDWR | OFlag::O_CLOEXEC;
        open(OsStr::from_bytes(&self.directory), flags, Mode::S_IRUSR | Mode::S_IWUSR)
            .with_context(|| format!("make a nameless file in {}", String::from_utf8_lossy(&self.directory)))
    }

    fn make(&self) -> Result<OwnedFd> {
        let file = File::from(self.make_empty()?);
        file.write_all_at(&self.bytes, 0).context("write a nameless file")?;
        let now = fstat(&file).context("fstat")?;
        if (now.st_uid, now.st_gid) != (self.uid, self.gid) {
            fchown(&file, Some(Uid::from_raw(self.uid)), Some(Gid::from_raw(self.gid))).context("fchown")?;
        }
        fchmod(&file, Mode::from_bits_truncate(self.mode)).context("fchmod")?;
        let second = 1_000_000_000;
        let modified = TimeSpec::new(self.mtime_ns.div_euclid(second), self.mtime_ns.rem_euclid(second));
        futimens(&file, &TimeSpec::UTIME_OMIT, &modified).context("futimens")?;
        Ok(file.into())
    }
}

/// Whether no name leads to the regular file any more.
pub fn is_nameless(seen: &Seen) -> bool {
    let is_file = seen.file_type() == libc::S_IFREG && !seen.only_path() && !seen.on_mqueue;
    is_file && seen.stat.st_nlink == 0 && seen.link.starts_with(b"/")
}
