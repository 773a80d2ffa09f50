//! Files that are found again by their path: what is recorded of them, and how they are opened without trusting what is there.

use std::ffi::OsStr;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;

use anyhow::{Context, Result, bail};
use nix::errno::Errno;
use nix::fcntl::{AtFlags, OFlag, OpenHow, ResolveFlag, openat2};
use nix::sys::stat::{FileStat, fstat, fstatat};
use nix::unistd::{AccessFlags, faccessat};
use serde::{Deserialize, Serialize};

use super::kind::{Probe, Unfit};
use super::probe::{file_type, mtime_ns};
use super::thaw::{Check, open_again};
use crate::image::state::{Description, Name};

/// The name of a file, and what it was at the freeze.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Place {
    pub path: Name,
    /// st_mode.
    pub mode: u32,
    /// st_rdev of a device, else 0.
    pub device: u64,
    pub size: u64,
    pub mtime_ns: i64,
}

impl Place {
    /// The file that the probe's descriptor refers to, provided that its name still leads to it.
    pub fn describe(probe: &Probe<'_>) -> Result<Self, Unfit> {
        let (link, stat) = (&probe.seen.link, &probe.seen.stat);
        if !link.starts_with(b"/") {
            return Err(Unfit::refused(
                "has no path, so it could not be found again",
                "have the program close it first",
            ));
        }
        let named = fstatat(
            nix::fcntl::AT_FDCWD,
            OsStr::from_bytes(link),
            AtFlags::AT_SYMLINK_NOFOLLOW,
        );
        match named {
            Ok(named) if (named.st_dev, named.st_ino) == (stat.st_dev, stat.st_ino) => {}
            Ok(_) => {
                return Err(changed(
                    "was replaced by another file of that name, or is in another mount namespace",
                ));
            }
            Err(Errno::ENOENT | Errno::ENOTDIR) => {
                return Err(changed("was deleted or renamed, or is in another mount namespace"));
            }
            Err(errno) => {
                return Err(Unfit::Failed(
                    anyhow::Error::new(errno).context(format!("stat {}", probe.seen.link_text())),
                ));
            }
        }
        Ok(Place {
            path: link.clone(),
            mode: stat.st_mode,
            device: stat.st_rdev,
            size: u64::try_from(stat.st_size).unwrap_or(0),
            mtime_ns: mtime_ns(stat),
        })
    }

    pub fn name(&self) -> String {
        String::from_utf8_lossy(&self.path).into_owned()
    }

    /// What the file is now; a refusal where it is not there, is something else, or may not be opened again.
    pub fn check(&self, description: &Description, check: &mut Check<'_>) -> Option<FileStat> {
        let stat = match self.find().and_then(|found| fstat(&found).context("fstat")) {
            Ok(stat) => stat,
            Err(error) => {
                check.refuse(
                    description,
                    format!("is not there: {error:#}"),
                    "put the file back in its place",
                );
                return None;
            }
        };
        if let Some(difference) = self.difference(&stat) {
            check.refuse(description, difference, "put the file back in its place");
            return None;
        }
        if let Some(errno) = self.no_access(description) {
            let reason = format!(
                "cannot be opened as it was: access to {}: {}",
                self.name(),
                errno.desc()
            );
            check.refuse(description, reason, "run thaw as a user who may open it");
            return None;
        }
        Some(stat)
    }

    /// Opens it with the flags that only open(2) can set; offset and other status flags are up to the caller. What is there
    /// is looked at before it is opened, so that nothing planted can block us or be taken for the file.
    pub fn reopen(&self, status_flags: u32) -> Result<OwnedFd> {
        const AT_OPEN: i32 =
            libc::O_ACCMODE | libc::O_SYNC | libc::O_DSYNC | libc::O_LARGEFILE | libc::O_DIRECTORY | libc::O_APPEND;
        let found = self.find_same()?;
        // Nothing here may wait, not even for the holder of a lease.
        open_again(
            found.as_fd(),
            status_flags.cast_signed() & AT_OPEN & !self.not_for_open() | libc::O_NONBLOCK,
        )
        .with_context(|| format!("open {}", self.name()))
    }

    fn no_access(&self, description: &Description) -> Option<Errno> {
        let flags = description.status_flags.cast_signed();
        let rights = match flags & libc::O_ACCMODE {
            _ if flags & libc::O_PATH != 0 => return None,
            libc::O_RDONLY => AccessFlags::R_OK,
            libc::O_WRONLY => AccessFlags::W_OK,
            _ => AccessFlags::R_OK | AccessFlags::W_OK,
        };
        faccessat(
            nix::fcntl::AT_FDCWD,
            OsStr::from_bytes(&self.path),
            rights,
            AtFlags::AT_EACCESS,
        )
        .err()
    }

    /// The file by its name, without opening it (O_PATH).
    pub fn find(&self) -> Result<OwnedFd> {
        let flags = OFlag::O_PATH | OFlag::O_CLOEXEC | OFlag::O_NOFOLLOW;
        // /proc/PID/fd/N shows a path without symbolic links, so one that stands in it by now was put there since.
        let how = OpenHow::new().flags(flags).resolve(ResolveFlag::RESOLVE_NO_SYMLINKS);
        match openat2(nix::fcntl::AT_FDCWD, OsStr::from_bytes(&self.path), how) {
            Err(Errno::ELOOP) => bail!("open {}: a symbolic link stands in its path by now", self.name()),
            found => found.with_context(|| format!("open {}", self.name())),
        }
    }

    /// The file by its name, provided that it is of the recorded type.
    pub fn find_same(&self) -> Result<OwnedFd> {
        let found = self.find()?;
        match self.difference(&fstat(&found).context("fstat")?) {
            Some(difference) => bail!("{} {difference}", self.name()),
            None => Ok(found),
        }
    }

    fn difference(&self, stat: &FileStat) -> Option<String> {
        if file_type(stat) != self.mode & libc::S_IFMT {
            return Some(format!(
                "is now {}, and was {}",
                type_name(stat.st_mode),
                type_name(self.mode)
            ));
        }
        if self.device != stat.st_rdev {
            return Some("is now another device".into());
        }
        None
    }

    /// An O_TMPFILE descriptor still shows O_DIRECTORY, which its file is not.
    fn not_for_open(&self) -> i32 {
        if self.mode & libc::S_IFMT == libc::S_IFDIR {
            0
        } else {
            libc::O_DIRECTORY
        }
    }
}

fn changed(reason: &str) -> Unfit {
    Unfit::refused(
        reason,
        "put the file back under that name, or have the program close it",
    )
}

pub fn type_name(mode: libc::mode_t) -> &'static str {
    match mode & libc::S_IFMT {
        libc::S_IFREG => "a regular file",
        libc::S_IFDIR => "a directory",
        libc::S_IFCHR => "a character device",
        libc::S_IFBLK => "a block device",
        libc::S_IFIFO => "a FIFO",
        libc::S_IFLNK => "a symbolic link",
        libc::S_IFSOCK => "a socket",
        _ => "something else",
    }
}
