//! Memory that lives in an inode of its own: made once in our own process, mapped and filled by descriptors.

use std::collections::HashMap;
use std::fs::{File, OpenOptions};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::ptr;

use anyhow::{Context, Result, ensure};
use nix::errno::Errno;

use super::maps::needs_write;
use crate::fd::make_memfd;
use crate::image::state::{Backing, SharedKind, SharedObject, Snapshot};
use crate::sys::fds::open_own_mapping;
use crate::sysv::segments::{self, Attached};

/// The shared objects of an image, of their recorded size and empty.
pub struct SharedMemory {
    /// In the order of `Snapshot::shared_objects`, for reading and writing; for reading, copies of files; /dev/null, such as are not needed.
    objects: Vec<OwnedFd>,
    /// For the content of copies of files, by index.
    writers: HashMap<u32, OwnedFd>,
    /// Read-only descriptions for mappings that could never be made writable (no "mw" in their flags).
    read_only: HashMap<u32, File>,
    /// System V segments, by index.
    segments: HashMap<u32, Attached>,
}

impl SharedMemory {
    /// `is_needed` tells which copies of files.
    pub fn make(snapshot: &Snapshot, is_needed: impl Fn(u32) -> bool) -> Result<Self> {
        let (mut writers, mut segments) = (HashMap::new(), HashMap::new());
        let mut make = |(index, object): (u32, &SharedObject)| match &object.kind {
            SharedKind::Memfd { .. } => make_memfd(object),
            SharedKind::Anonymous => make_anonymous(object.size),
            SharedKind::SystemV(segment) => {
                let (file, attached) = segments::make(segment, object.size)
                    .with_context(|| format!("System V shared memory {}", segment.ipc.id))?;
                segments.insert(index, attached);
                Ok(file)
            }
            SharedKind::Copy { .. } if !is_needed(index) => {
                let null = OpenOptions::new().read(true).write(true).open("/dev/null");
                Ok(null.context("open /dev/null")?.into())
            }
            SharedKind::Copy { .. } => {
                let writer = make_memfd(object)?;
                let path = format!("/proc/self/fd/{}", writer.as_raw_fd());
                let reader = File::open(&path).with_context(|| format!("open {path}"))?;
                writers.insert(index, writer);
                Ok(reader.into())
            }
        };
        let all = (0..).zip(&snapshot.shared_objects);
        let objects: Vec<OwnedFd> = all
            .map(&mut make)
            .collect::<Result<_>>()
            .context("make shared memory")?;
        let mut read_only = HashMap::new();
        for vma in snapshot.processes.iter().flat_map(|process| &process.memory.vmas) {
            let Backing::Shared { object, .. } = vma.backing else {
                continue;
            };
            if !needs_write(vma) && !read_only.contains_key(&object) {
                let fd = objects.get(object as usize).context("no such shared object")?;
                let path = format!("/proc/self/fd/{}", fd.as_raw_fd());
                read_only.insert(object, File::open(&path).with_context(|| format!("open {path}"))?);
            }
        }
        Ok(SharedMemory {
            objects,
            writers,
            read_only,
            segments,
        })
    }

    /// What was made anew stays, whoever comes and goes.
    pub fn keep(&mut self) {
        self.segments.values_mut().for_each(Attached::keep);
    }

    /// The doors for the content of copies of files, which must be closed before one of them becomes an executable.
    pub fn take_writers(&mut self) -> HashMap<u32, OwnedFd> {
        std::mem::take(&mut self.writers)
    }

    pub fn reader(&self, object: u32) -> Result<File> {
        let fd = self.objects.get(object as usize).context("no such shared object")?;
        Ok(fd.try_clone().context("duplicate a descriptor")?.into())
    }

    /// Descriptors for descriptions to be made from, and for filling.
    pub fn duplicates(&self) -> Result<Vec<OwnedFd>> {
        self.objects
            .iter()
            .map(|fd| fd.try_clone().context("duplicate a descriptor"))
            .collect()
    }

    pub fn by_access(&self) -> HashMap<(u32, bool), BorrowedFd<'_>> {
        let writable = self
            .objects
            .iter()
            .enumerate()
            .map(|(index, fd)| ((index as u32, true), fd.as_fd()));
        let read_only = self
            .read_only
            .iter()
            .map(|(index, file)| ((*index, false), file.as_fd()));
        writable.chain(read_only).collect()
    }

    pub fn all(&self) -> impl Iterator<Item = BorrowedFd<'_>> {
        self.objects
            .iter()
            .map(AsFd::as_fd)
            .chain(self.read_only.values().map(AsFd::as_fd))
    }
}

/// Anonymous shared memory has no name to open, but the mapping of one who has it. Ours goes at once; the descriptor keeps the object.
fn make_anonymous(size: u64) -> Result<OwnedFd> {
    ensure!(
        size > 0 && size < crate::arch::task_size(),
        "anonymous shared memory of {size} bytes"
    );
    let len = size as usize;
    let (prot, flags) = (
        libc::PROT_READ | libc::PROT_WRITE,
        libc::MAP_SHARED | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE,
    );
    // SAFETY: a new mapping at an address of the kernel's choice, never touched.
    let addr = unsafe { libc::mmap(ptr::null_mut(), len, prot, flags, -1, 0) };
    if addr == libc::MAP_FAILED {
        return Err(Errno::last()).context("mmap");
    }
    let opened = open_own_mapping(addr as u64, size.next_multiple_of(crate::arch::PAGE_SIZE), true);
    // SAFETY: the mapping made above, to which nothing refers.
    unsafe { libc::munmap(addr, len) };
    Ok(opened.context("open what we mapped (/proc/self/map_files)")?.into())
}
