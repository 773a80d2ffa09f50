//! Calls about shared memory (shmget(2), shmop(2), shmctl(2)).

use std::ptr;

use nix::errno::Errno;

use crate::image::state::Ipc;

/// struct shmid_ds, shm_perm.mode (linux/shm.h).
pub const DEST: u32 = 0o1000;
pub const LOCKED: u32 = 0o2000;

pub fn create(key: i32, len: u64, mode: u32) -> nix::Result<i32> {
    let flags = libc::IPC_CREAT | libc::IPC_EXCL | (mode & 0o777).cast_signed();
    // SAFETY: takes numbers.
    Errno::result(unsafe { libc::shmget(key, len as usize, flags) })
}

/// Where it is attached now, at an address of the kernel's choice.
pub fn attach(id: i32, flags: i32) -> nix::Result<u64> {
    // SAFETY: a new mapping, which nothing of ours refers to.
    let addr = unsafe { libc::shmat(id, ptr::null(), flags) };
    if addr as isize == -1 {
        Err(Errno::last())
    } else {
        Ok(addr as u64)
    }
}

/// # Safety
/// Nothing refers to what [`attach`] has attached there.
pub unsafe fn detach(addr: u64) -> nix::Result<()> {
    // SAFETY: as the caller says.
    Errno::result(unsafe { libc::shmdt(addr as *const libc::c_void) }).map(drop)
}

pub fn remove(id: i32) -> nix::Result<()> {
    // SAFETY: takes numbers.
    Errno::result(unsafe { libc::shmctl(id, libc::IPC_RMID, ptr::null_mut()) }).map(drop)
}

pub fn lock(id: i32) -> nix::Result<()> {
    const SHM_LOCK: i32 = 11;
    // SAFETY: takes numbers.
    Errno::result(unsafe { libc::shmctl(id, SHM_LOCK, ptr::null_mut()) }).map(drop)
}

/// The owner and the permissions.
pub fn set(ipc: &Ipc) -> nix::Result<()> {
    // SAFETY: all zeros are a valid value of this plain structure; the kernel reads it.
    let rc = unsafe {
        let mut new: libc::shmid_ds = std::mem::zeroed();
        new.shm_perm.uid = ipc.uid;
        new.shm_perm.gid = ipc.gid;
        new.shm_perm.mode = (ipc.mode & 0o777) as _;
        libc::shmctl(ipc.id, libc::IPC_SET, &raw mut new)
    };
    Errno::result(rc).map(drop)
}
