//! Copies of files out of the image, for where the files are missing or others.
#![deny(unsafe_code)]

use std::collections::HashMap;
use std::fs::File;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use anyhow::{Context, Result};

use crate::image::state::{Backing, Snapshot};

/// Whether memory is mapped from the shared object itself: then it is needed, whatever files there are.
pub fn is_mapped(snapshot: &Snapshot, object: u32) -> bool {
    let mut vmas = snapshot.processes.iter().flat_map(|process| &process.memory.vmas);
    vmas.any(|vma| matches!(vma.backing, Backing::Shared { object: mapped, .. } if mapped == object))
}

/// The doors for the content of copies of files, by index in `Snapshot::shared_objects`.
pub struct Copies(HashMap<u32, OwnedFd>);

impl Copies {
    pub fn of(writers: HashMap<u32, OwnedFd>) -> Self {
        Copies(writers)
    }

    /// For each shared object the descriptor by which its content is written.
    pub fn among<'a>(&'a self, shared: &'a [OwnedFd]) -> Vec<BorrowedFd<'a>> {
        let all = (0..).zip(shared);
        all.map(|(index, fd)| self.0.get(&index).unwrap_or(fd).as_fd())
            .collect()
    }

    /// Closes them: whoever could still write to a file would keep it from becoming an executable (deny_write_access(), PR_SET_MM_EXE_FILE).
    /// The last page was written whole.
    pub fn finish(self, snapshot: &Snapshot) -> Result<()> {
        for (index, writer) in self.0 {
            let size = snapshot.shared_objects[index as usize].size;
            File::from(writer).set_len(size).context("cut off the copy of a file")?;
        }
        Ok(())
    }
}
