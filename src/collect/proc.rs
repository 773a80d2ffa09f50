//! Files below a directory of /proc, opened by that directory: it stands for one process, whatever happens to its number.

use std::fs::File;
use std::io::{self, BufReader};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

use anyhow::{Context, Result};
use nix::dir::Dir;
use nix::fcntl::{OFlag, openat, readlinkat};
use nix::sys::stat::{FileStat, Mode, fstatat};

use crate::image::state::Name;
use crate::sys;

/// /proc/PID, or /proc/PID/task/TID. Once the process is gone, everything here fails with ESRCH.
#[derive(Debug)]
pub struct ProcDir(OwnedFd);

impl ProcDir {
    /// A second handle of a directory that somebody else opened.
    pub fn of(dir: BorrowedFd<'_>) -> io::Result<Self> {
        Ok(ProcDir(dir.try_clone_to_owned()?))
    }

    /// By number: for processes that nobody holds yet.
    pub fn by_pid(pid: i32) -> nix::Result<Self> {
        Self::open_dir(nix::fcntl::AT_FDCWD, &format!("/proc/{pid}"))
    }

    pub fn thread(&self, tid: i32) -> Result<Self> {
        let name = format!("task/{tid}");
        Self::open_dir(self.0.as_fd(), &name).with_context(|| format!("open {name}"))
    }

    fn open_dir(at: BorrowedFd<'_>, name: &str) -> nix::Result<Self> {
        let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
        openat(at, name, flags, Mode::empty()).map(ProcDir)
    }

    pub fn open(&self, name: &str) -> nix::Result<File> {
        self.open_with(name, OFlag::O_RDONLY)
    }

    pub fn open_with(&self, name: &str, flags: OFlag) -> nix::Result<File> {
        openat(&self.0, name, flags | OFlag::O_CLOEXEC, Mode::empty()).map(File::from)
    }

    /// For parsers that read line by line.
    pub fn reader(&self, name: &str) -> Result<BufReader<File>> {
        Ok(BufReader::new(self.open(name).with_context(|| format!("open {name}"))?))
    }

    pub fn read(&self, name: &str) -> Result<Vec<u8>> {
        let file = self.open(name).with_context(|| format!("open {name}"))?;
        sys::read_whole(&file).with_context(|| format!("read {name}"))
    }

    /// What a kernel may not have, as a file of a build-time option: None where there is no such file.
    pub fn read_if_any(&self, name: &str) -> Result<Option<Vec<u8>>> {
        match self.open(name) {
            Ok(file) => sys::read_whole(&file).with_context(|| format!("read {name}")).map(Some),
            Err(nix::Error::ENOENT) => Ok(None),
            Err(errno) => Err(errno).with_context(|| format!("open {name}")),
        }
    }

    pub fn text(&self, name: &str) -> Result<String> {
        Ok(String::from_utf8_lossy(&self.read(name)?).trim_end().to_owned())
    }

    pub fn link(&self, name: &str) -> Result<Name> {
        use std::os::unix::ffi::OsStringExt;
        let target = readlinkat(&self.0, name).with_context(|| format!("readlink {name}"))?;
        Ok(target.into_vec())
    }

    /// stat(2) of what `name` leads to, through the links of /proc, which lead to the object itself and not to its path.
    pub fn stat(&self, name: &str) -> nix::Result<FileStat> {
        fstatat(&self.0, Path::new(name), nix::fcntl::AtFlags::empty())
    }

    /// Names that are numbers, in ascending order: the threads in `task`, the descriptors in `fd`.
    pub fn numbers(&self, name: &str) -> Result<Vec<i32>> {
        let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
        let mut dir = Dir::openat(&self.0, name, flags, Mode::empty()).with_context(|| format!("open {name}"))?;
        let mut numbers = Vec::new();
        for entry in dir.iter() {
            let entry = entry.with_context(|| format!("list {name}"))?;
            if let Some(number) = entry.file_name().to_str().ok().and_then(|name| name.parse().ok()) {
                numbers.push(number);
            }
        }
        numbers.sort_unstable();
        Ok(numbers)
    }
}

impl AsFd for ProcDir {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// All processes that /proc shows, in ascending order.
pub fn all_processes() -> Result<Vec<i32>> {
    let root = ProcDir::open_dir(nix::fcntl::AT_FDCWD, "/proc").context("open /proc")?;
    root.numbers(".")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_threads_of_a_process_are_listed() {
        let own = ProcDir::by_pid(std::process::id() as i32).unwrap();
        assert!(own.numbers("task").unwrap().contains(&(std::process::id() as i32)));
    }

    #[test]
    fn a_missing_file_is_told_from_an_unreadable_one() {
        let own = ProcDir::by_pid(std::process::id() as i32).unwrap();
        assert_eq!(own.read_if_any("no_such_file").unwrap(), None);
        assert!(own.read_if_any("mem").is_err());
    }
}
