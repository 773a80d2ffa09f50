//! Shared memory segments: looked into, and made again or found again under their ids.

use std::os::fd::OwnedFd;

use anyhow::{Context, Result};
use nix::errno::Errno;
use nix::fcntl::{FallocateFlags, fallocate};

use super::{Kept, Objection, Row, SEGMENTS, shm};
use crate::arch::PAGE_SIZE;
use crate::image::state::{Segment, SharedKind, SharedObject, Snapshot};
use crate::refusal::Refusal;
use crate::sys::fds::open_own_mapping;

/// The facts of a segment, and its size in bytes, as the kernel lists it.
pub fn find(id: i32) -> Result<Option<(Segment, u64)>> {
    Ok(SEGMENTS.find(id)?.as_ref().map(facts))
}

fn facts(row: &Row) -> (Segment, u64) {
    let segment = Segment {
        ipc: row.ipc(SEGMENTS.id),
        creator: i32::try_from(row.get("cpid")).unwrap_or(0),
    };
    (segment, row.get("size").cast_unsigned())
}

/// A segment that nobody has attached.
pub struct Unattached {
    pub id: i32,
    size: u64,
    pub creator: i32,
    /// In seconds since 1970.
    pub changed: i64,
}

pub fn unattached() -> Result<Vec<Unattached>> {
    let all = SEGMENTS.table()?;
    let unattached = all.iter().filter(|row| row.get("nattch") == 0);
    Ok(unattached
        .map(|row| {
            let (segment, size) = facts(row);
            Unattached {
                id: segment.ipc.id,
                size,
                creator: segment.creator,
                changed: row.get("ctime"),
            }
        })
        .collect())
}

impl Unattached {
    /// Its memory as a file, for those with CAP_CHECKPOINT_RESTORE.
    pub fn open(&self) -> Result<OwnedFd> {
        let found = Kept {
            id: self.id,
            is_new: false,
            remove: shm::remove,
        };
        Attached::of(found, self.size, libc::SHM_RDONLY)?.open(false)
    }
}

/// One that we have attached.
pub struct Attached {
    addr: u64,
    /// In whole pages.
    len: u64,
    segment: Kept,
}

impl Attached {
    fn of(segment: Kept, size: u64, flags: i32) -> Result<Self> {
        Ok(Attached {
            addr: shm::attach(segment.id, flags).context("shmat")?,
            len: size.next_multiple_of(PAGE_SIZE),
            segment,
        })
    }

    fn open(&self, write: bool) -> Result<OwnedFd> {
        let opened = open_own_mapping(self.addr, self.len, write);
        Ok(opened.context("open what we attached (/proc/self/map_files)")?.into())
    }

    pub fn keep(&mut self) {
        self.segment.keep();
    }
}

impl Drop for Attached {
    fn drop(&mut self) {
        // SAFETY: attached by us, and nothing refers to it.
        let _gone = unsafe { shm::detach(self.addr) };
    }
}

/// The segments among the shared objects, by index, with their sizes.
pub fn all(snapshot: &Snapshot) -> impl Iterator<Item = (u32, &Segment, u64)> {
    let objects = (0..).zip(&snapshot.shared_objects);
    objects.filter_map(|(index, object): (u32, &SharedObject)| match &object.kind {
        SharedKind::SystemV(segment) => Some((index, segment, object.size)),
        _ => None,
    })
}

/// What stands against them here; nothing is made yet.
pub fn check(snapshot: &Snapshot) -> Result<Vec<Refusal>> {
    let mut refusals = Vec::new();
    if all(snapshot).next().is_none() {
        return Ok(refusals);
    }
    let pid = snapshot.processes.first().map_or(0, |process| process.pid);
    let here = SEGMENTS.table()?;
    for (_, segment, size) in all(snapshot) {
        let object = format!("{} {}", SEGMENTS.what, segment.ipc.id);
        if let Some((reason, remedy)) = against(segment, size, &here) {
            refusals.push(Refusal::new(pid, object, reason, remedy));
        }
    }
    Ok(refusals)
}

fn against(segment: &Segment, size: u64, here: &[Row]) -> Option<Objection> {
    SEGMENTS.against(&segment.ipc, here, |row| match row.get("nattch") {
        _ if !is_same(segment, size, row) => Some(SEGMENTS.another(segment.ipc.id, row)),
        0 => None,
        attached => Some((
            format!("is attached by others ({attached} times), who would see it change"),
            "end them first".into(),
        )),
    })
}

/// Whether it is still the one that was frozen. One that is to be destroyed has been, when the last had gone.
fn is_same(segment: &Segment, size: u64, row: &Row) -> bool {
    let found = facts(row);
    (found.1, found.0.creator) == (size, segment.creator)
}

/// The segment, empty, and its memory as a file; it was [checked](check).
pub fn make(segment: &Segment, size: u64) -> Result<(OwnedFd, Attached)> {
    let Segment { ipc, creator } = segment;
    let create = || shm::create(ipc.key, size, ipc.mode);
    let segment = SEGMENTS.find_or_make(ipc, *creator, create, shm::remove)?;
    let is_new = segment.is_new;
    let mut attached = Attached::of(segment, size, 0)?;
    shm::set(ipc).context("shmctl IPC_SET")?;
    let file = attached.open(true)?;
    if !is_new {
        let len = i64::try_from(size).context("the size of a segment")?;
        fallocate(
            &file,
            FallocateFlags::FALLOC_FL_PUNCH_HOLE | FallocateFlags::FALLOC_FL_KEEP_SIZE,
            0,
            len,
        )
        .context("empty a segment")?;
    }
    if ipc.mode & shm::LOCKED != 0 {
        match shm::lock(ipc.id) {
            Ok(()) | Err(Errno::EPERM) => {} // told by nobody: memory that is not locked holds the same
            Err(errno) => return Err(errno).context("shmctl SHM_LOCK"),
        }
    }
    if ipc.mode & shm::DEST != 0 {
        // It lives for as long as somebody has it attached, and goes with us should we fail.
        shm::remove(ipc.id).context("shmctl IPC_RMID")?;
        attached.keep();
    }
    Ok((file, attached))
}
