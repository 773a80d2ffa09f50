//! The file of an image while it is written: it appears under its name only when it is complete.

use super::output::WriteAt;
use crate::sys;
use anyhow::{Context, Result, bail};
use nix::errno::Errno;
use nix::fcntl::{AT_FDCWD, AtFlags, OFlag, openat, renameat};
use nix::sys::stat::Mode;
use nix::sys::uio::pwritev;
use nix::unistd::{UnlinkatFlags, linkat, unlinkat};
use std::ffi::{OsStr, OsString};
use std::fs::{File, Permissions};
use std::hash::{BuildHasher, RandomState};
use std::io::{self, IoSlice};
use std::os::fd::AsRawFd;
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

/// So much is written before the disk is told to begin.
const WRITEBACK_LEN: u64 = 8 << 20;
/// And so many pieces of it may be on their way to the disk.
const CHUNKS_AHEAD: u64 = 2;

/// A file that has no name yet. Dropping it without [`PendingFile::commit`] leaves nothing behind, and where the file system has
/// O_TMPFILE, so does SIGKILL.
pub struct PendingFile {
    file: File,
    /// The directory of `path`; the file is made, linked and renamed in it, whatever happens to the path meanwhile.
    directory: File,
    /// Only messages use it.
    path: PathBuf,
    name: OsString,
    /// The name that the file has meanwhile, where it could not do without one.
    temporary: Option<OsString>,
}

impl PendingFile {
    /// Makes a file of mode 0600 in the directory of `path`.
    pub fn create(path: &Path) -> Result<Self> {
        let Some(name) = path.file_name() else {
            bail!("{} does not name a file", path.display());
        };
        // Following links: replacing a link to /dev/stdout or to a FIFO would not do what was meant.
        if let Ok(metadata) = path.metadata()
            && !metadata.is_file()
        {
            let what = if metadata.is_dir() {
                "is a directory"
            } else {
                "is not a regular file"
            };
            bail!("{} {what}", path.display());
        }
        let parent = path
            .parent()
            .filter(|parent| !parent.as_os_str().is_empty())
            .unwrap_or(Path::new("."));
        let directory = open_directory(parent)?;
        let (file, temporary) =
            make_file(&directory, name).with_context(|| format!("create a file in {}", parent.display()))?;
        // The umask may have taken bits away.
        file.set_permissions(Permissions::from_mode(0o600))
            .with_context(|| format!("chmod {}", path.display()))?;
        Ok(PendingFile {
            file,
            directory,
            path: path.to_owned(),
            name: name.to_owned(),
            temporary,
        })
    }

    /// One more file in the directory, for the time of writing. It never has a name that stays.
    pub fn spare(&self) -> Result<File> {
        nameless(&self.directory, &self.name).with_context(|| format!("create a file beside {}", self.path.display()))
    }

    /// Gives the file its name, in place of what had it, once its content is on the disk; without `sync` the disk follows later.
    pub fn commit(mut self, sync: bool) -> Result<()> {
        let path = self.path.clone();
        if sync {
            self.file
                .sync_all()
                .with_context(|| format!("sync {}", path.display()))?;
        }
        self.appear().with_context(|| format!("create {}", path.display()))?;
        if sync {
            self.directory
                .sync_all()
                .with_context(|| format!("sync the directory of {}", path.display()))?;
        }
        Ok(())
    }

    fn appear(&mut self) -> nix::Result<()> {
        let temporary = match self.temporary.take() {
            Some(name) => name,
            None => match self.link_as(&self.name) {
                Ok(()) => return Ok(()),
                // linkat(2) replaces nothing, rename(2) does.
                Err(Errno::EEXIST) => self.link_with_random_name()?,
                Err(error) => return Err(error),
            },
        };
        let renamed = renameat(&self.directory, &*temporary, &self.directory, &*self.name);
        self.temporary = renamed.is_err().then_some(temporary);
        renamed
    }

    /// Gives a file of O_TMPFILE a name, in the way that needs no capability (open(2)).
    fn link_as(&self, name: &OsStr) -> nix::Result<()> {
        let unnamed = format!("/proc/self/fd/{}", self.file.as_raw_fd());
        linkat(
            AT_FDCWD,
            unnamed.as_str(),
            &self.directory,
            name,
            AtFlags::AT_SYMLINK_FOLLOW,
        )
    }

    fn link_with_random_name(&self) -> nix::Result<OsString> {
        loop {
            let name = random_name(&self.name);
            match self.link_as(&name) {
                Ok(()) => return Ok(name),
                Err(Errno::EEXIST) => continue,
                Err(error) => return Err(error),
            }
        }
    }

    /// The door for its content. `sync` says that [`PendingFile::commit`] will wait for the disk: then the disk begins at once, and
    /// a writer that is far ahead of it waits.
    pub fn sink(&self, sync: bool) -> FileSink<'_> {
        FileSink {
            file: &self.file,
            sync,
            written: AtomicU64::new(0),
        }
    }
}

/// Takes the content of a [`PendingFile`], from any number of threads.
pub struct FileSink<'a> {
    file: &'a File,
    sync: bool,
    written: AtomicU64,
}

impl WriteAt for FileSink<'_> {
    fn write_all_at(&self, parts: &[&[u8]], offset: u64) -> io::Result<()> {
        let parts = parts.iter().filter(|part| !part.is_empty());
        let mut slices: Vec<_> = parts.map(|part| IoSlice::new(part)).collect();
        let mut slices = &mut slices[..];
        let mut at = offset;
        while !slices.is_empty() {
            match pwritev(self.file, slices, i64::try_from(at).map_err(io::Error::other)?) {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(written) => {
                    at += written as u64;
                    IoSlice::advance_slices(&mut slices, written);
                }
                Err(Errno::EINTR) => {}
                Err(errno) => return Err(errno.into()),
            }
        }
        if self.sync {
            self.keep_disk_busy(at - offset);
        }
        Ok(())
    }
}

impl FileSink<'_> {
    /// Tells the disk to begin with a chunk once all of it ought to be there, and waits until it is done with one that lies some back:
    /// only so that the sync at the end finds little to do, and that a slow disk is noticed before. An error is one that the sync reports too.
    fn keep_disk_busy(&self, bytes: u64) {
        let before = self.written.fetch_add(bytes, Ordering::Relaxed);
        let chunk = (before + bytes) / WRITEBACK_LEN;
        if before / WRITEBACK_LEN == chunk {
            return;
        }
        if let Some(last) = chunk.checked_sub(2) {
            let _ = sys::start_writeback(self.file, last * WRITEBACK_LEN, WRITEBACK_LEN);
        }
        if let Some(old) = chunk.checked_sub(2 + CHUNKS_AHEAD) {
            let _ = sys::finish_writeback(self.file, old * WRITEBACK_LEN, WRITEBACK_LEN);
        }
    }
}

impl Drop for PendingFile {
    fn drop(&mut self) {
        if let Some(name) = &self.temporary {
            // Nobody is left to tell; what failed before was told.
            let _ = unlinkat(&self.directory, &**name, UnlinkatFlags::NoRemoveDir);
        }
    }
}

fn open_directory(path: &Path) -> Result<File> {
    File::options()
        .read(true)
        .custom_flags(libc::O_DIRECTORY)
        .open(path)
        .with_context(|| format!("open the directory {}", path.display()))
}

/// A file in the directory for temporary ones, for the time of writing a stream.
pub fn spare() -> Result<File> {
    let path = std::env::temp_dir();
    nameless(&open_directory(&path)?, OsStr::new("cryopod"))
        .with_context(|| format!("create a file in {}", path.display()))
}

fn nameless(directory: &File, name: &OsStr) -> Result<File, Errno> {
    let (file, temporary) = make_file(directory, name)?;
    match temporary {
        Some(name) => unlinkat(directory, &*name, UnlinkatFlags::NoRemoveDir).map(|()| file),
        None => Ok(file),
    }
}

/// A file without a name, or where there is no such thing, one with a name that nobody else has.
fn make_file(directory: &File, name: &OsStr) -> Result<(File, Option<OsString>), Errno> {
    let mode = Mode::from_bits_truncate(0o600);
    let flags = OFlag::O_RDWR | OFlag::O_CLOEXEC;
    match openat(directory, ".", flags | OFlag::O_TMPFILE, mode) {
        Ok(file) if can_be_linked() => return Ok((file.into(), None)),
        // The errors of a file system and of a kernel that do not know O_TMPFILE (open(2)).
        Ok(_) | Err(Errno::EOPNOTSUPP | Errno::EISDIR | Errno::ENOENT | Errno::EINVAL) => (),
        Err(error) => return Err(error),
    }
    loop {
        let name = random_name(name);
        match openat(
            directory,
            &*name,
            flags | OFlag::O_CREAT | OFlag::O_EXCL | OFlag::O_NOFOLLOW,
            mode,
        ) {
            Ok(file) => return Ok((file.into(), Some(name))),
            Err(Errno::EEXIST) => continue,
            Err(error) => return Err(error),
        }
    }
}

/// Without /proc the name could not be given later.
fn can_be_linked() -> bool {
    Path::new("/proc/self/fd").is_dir()
}

/// Hidden, and told apart from the names of others by 64 bits of the system's randomness, which seed every RandomState.
fn random_name(name: &OsStr) -> OsString {
    // NAME_MAX is 255 bytes: a part of a long name will do.
    let name: String = name.to_string_lossy().chars().take(32).collect();
    format!(".{name}.{:016x}", RandomState::new().hash_one(std::process::id())).into()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::MetadataExt;

    fn names(directory: &Path) -> Vec<OsString> {
        directory
            .read_dir()
            .unwrap()
            .map(|entry| entry.unwrap().file_name())
            .collect()
    }

    fn write(path: &Path, content: &[u8]) -> PendingFile {
        let file = PendingFile::create(path).unwrap();
        file.sink(true).write_all_at(&[content], 0).unwrap();
        file
    }

    /// As on a file system without O_TMPFILE.
    fn with_name(mut file: PendingFile) -> PendingFile {
        file.temporary = Some(file.link_with_random_name().unwrap());
        file
    }

    #[test]
    fn a_file_appears_only_when_it_is_complete() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("app.img");
        let file = write(&path, b"content");
        assert!(!path.exists());
        file.commit(true).unwrap();
        assert_eq!(std::fs::read(&path).unwrap(), b"content");
        assert_eq!(path.metadata().unwrap().mode() & 0o7777, 0o600);
    }

    #[test]
    fn a_file_that_is_dropped_leaves_nothing() {
        let directory = tempfile::tempdir().unwrap();
        drop(write(&directory.path().join("app.img"), b"content"));
        drop(with_name(write(&directory.path().join("app.img"), b"content")));
        assert!(names(directory.path()).is_empty());
    }

    #[test]
    fn an_existing_file_is_replaced_by_a_complete_one() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("app.img");
        for named in [false, true] {
            std::fs::write(&path, b"old").unwrap();
            let file = write(&path, b"new");
            let file = if named { with_name(file) } else { file };
            assert_eq!(std::fs::read(&path).unwrap(), b"old");
            file.commit(false).unwrap();
            assert_eq!(std::fs::read(&path).unwrap(), b"new");
            assert_eq!(names(directory.path()), ["app.img"]);
        }
    }

    #[test]
    fn a_link_is_replaced_and_not_followed() {
        let directory = tempfile::tempdir().unwrap();
        let (path, victim) = (directory.path().join("app.img"), directory.path().join("victim"));
        std::fs::write(&victim, b"old").unwrap();
        std::os::unix::fs::symlink(&victim, &path).unwrap();
        write(&path, b"new").commit(false).unwrap();
        assert_eq!(std::fs::read(&victim).unwrap(), b"old");
        assert!(path.symlink_metadata().unwrap().is_file());
    }

    #[test]
    fn a_directory_is_no_file() {
        let directory = tempfile::tempdir().unwrap();
        let error = PendingFile::create(directory.path()).err().unwrap();
        assert!(error.to_string().ends_with("is a directory"), "{error:#}");
    }

    #[test]
    fn a_missing_directory_is_named() {
        let error = PendingFile::create(Path::new("/nowhere/app.img")).err().unwrap();
        assert_eq!(
            format!("{error:#}"),
            "open the directory /nowhere: No such file or directory (os error 2)"
        );
    }

    #[test]
    fn a_spare_file_has_no_name() {
        let directory = tempfile::tempdir().unwrap();
        let file = PendingFile::create(&directory.path().join("app.img")).unwrap();
        io::Write::write_all(&mut file.spare().unwrap(), b"content").unwrap();
        assert!(names(directory.path()).is_empty());
    }

    #[test]
    fn a_device_is_not_replaced() {
        let error = PendingFile::create(Path::new("/dev/full")).err().unwrap();
        assert_eq!(error.to_string(), "/dev/full is not a regular file");
    }
}
