//! `--pid-file`: written before the program goes on, and removed should it not.
#![deny(unsafe_code)]

use std::fs;
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use nix::unistd::Pid;

pub struct PidFile {
    path: PathBuf,
    keep: bool,
}

/// A symbolic link in its place is not followed: somebody else may have planted it.
pub fn create(path: &Path, pid: Pid) -> Result<PidFile> {
    let mut options = fs::OpenOptions::new();
    options
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o644)
        .custom_flags(libc::O_NOFOLLOW);
    let mut file = options.open(path).with_context(|| format!("open {}", path.display()))?;
    let made = PidFile {
        path: path.to_owned(),
        keep: false,
    };
    writeln!(file, "{pid}").with_context(|| format!("write {}", path.display()))?;
    Ok(made)
}

impl PidFile {
    pub fn keep(mut self) {
        self.keep = true;
    }
}

impl Drop for PidFile {
    fn drop(&mut self) {
        if !self.keep {
            // The thaw has failed and says so; a stale pid file beside that is not worth a second error.
            let _removed = fs::remove_file(&self.path);
        }
    }
}
