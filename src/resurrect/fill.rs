//! Puts memory's content where it belongs, from any thread: anonymous pages by userfaultfd, private file pages through
//! /proc/PID/mem, shared objects through their own descriptors.
#![deny(unsafe_code)]

use std::fs::File;
use std::os::fd::BorrowedFd;
use std::os::unix::fs::FileExt;

use anyhow::{Context, Result, bail};
use nix::sys::uio::pwrite;

use super::uffd::Uffd;
use crate::image::pages::{PageRun, Space};
use crate::image::state::{Backing, Memory, Vma};

/// Writes the content of one process and of the shared objects.
pub struct Fill<'a> {
    /// /proc/PID/mem: writes reach read-only private mappings as well (FOLL_FORCE, mem_rw()).
    memory: File,
    uffd: Option<Uffd>,
    /// Ascending.
    targets: Vec<Target>,
    shared: Vec<BorrowedFd<'a>>,
}

struct Target {
    start: u64,
    end: u64,
    through_uffd: bool,
}

impl<'a> Fill<'a> {
    /// Registers all anonymous mappings that have content. Without a userfaultfd everything goes through /proc/PID/mem.
    pub fn new(memory: File, uffd: Option<Uffd>, map: &Memory, shared: Vec<BorrowedFd<'a>>) -> Result<Self> {
        let mut targets = Vec::with_capacity(map.vmas.len());
        for vma in map.vmas.iter().filter(|vma| vma.resident > 0 && !vma.shared) {
            let through_uffd = match &uffd {
                Some(uffd) if is_plain_anonymous(vma) => {
                    uffd.register(vma.start, vma.end - vma.start)?;
                    true
                }
                _ => false,
            };
            targets.push(Target {
                start: vma.start,
                end: vma.end,
                through_uffd,
            });
        }
        Ok(Fill {
            memory,
            uffd,
            targets,
            shared,
        })
    }

    pub fn write(&self, run: &PageRun<'_>) -> Result<()> {
        match run.space {
            Space::Process(_) => self.write_memory(run),
            Space::Shared(object) => self.write_shared(object, run),
        }
    }

    /// A run may cover several mappings that touch each other.
    fn write_memory(&self, run: &PageRun<'_>) -> Result<()> {
        let end = run.offset + run.len;
        let mut at = run.offset;
        while at < end {
            let index = self.targets.partition_point(|target| target.end <= at);
            let Some(target) = self.targets.get(index).filter(|target| target.start <= at) else {
                bail!("content for {at:#x}, where nothing is mapped");
            };
            let stop = end.min(target.end);
            let bytes = run
                .bytes
                .map(|bytes| &bytes[(at - run.offset) as usize..(stop - run.offset) as usize]);
            self.write_piece(target, at, stop - at, bytes)?;
            at = stop;
        }
        Ok(())
    }

    fn write_piece(&self, target: &Target, at: u64, len: u64, bytes: Option<&[u8]>) -> Result<()> {
        match (bytes, &self.uffd) {
            (Some(bytes), Some(uffd)) if target.through_uffd => uffd.copy(at, bytes),
            (Some(bytes), _) => self
                .memory
                .write_all_at(bytes, at)
                .with_context(|| format!("write memory at {at:#x}")),
            // Zeros are named only where something else would show through: in private mappings of files.
            (None, _) => write_zeros(len, |zeros, done| self.memory.write_all_at(zeros, at + done))
                .with_context(|| format!("write memory at {at:#x}")),
        }
    }

    fn write_shared(&self, object: u32, run: &PageRun<'_>) -> Result<()> {
        let fd = self
            .shared
            .get(object as usize)
            .context("content for a shared object that is not there")?;
        let put = |bytes: &[u8], done: u64| {
            let mut rest = bytes;
            while !rest.is_empty() {
                let offset = run.offset + done + (bytes.len() - rest.len()) as u64;
                let written = pwrite(fd, rest, i64::try_from(offset).map_err(std::io::Error::other)?)?;
                rest = &rest[written..];
            }
            Ok(())
        };
        match run.bytes {
            Some(bytes) => put(bytes, 0),
            None => write_zeros(run.len, put),
        }
        .with_context(|| format!("write shared object {object} at {:#x}", run.offset))
    }
}

fn is_plain_anonymous(vma: &Vma) -> bool {
    vma.backing == Backing::Anonymous
}

fn write_zeros(len: u64, mut put: impl FnMut(&[u8], u64) -> std::io::Result<()>) -> std::io::Result<()> {
    const ZEROS: [u8; 4096] = [0; 4096];
    let mut done = 0;
    while done < len {
        let piece = (len - done).min(ZEROS.len() as u64);
        put(&ZEROS[..piece as usize], done)?;
        done += piece;
    }
    Ok(())
}
