//! System V objects (sysvipc(7)): part of the state ([`super::state`]), whose field order is the format, too.

use serde::{Deserialize, Serialize};

/// What identifies an object, and whose it is (struct ipc_perm, sysvipc(7)).
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ipc {
    pub id: i32,
    /// 0 is IPC_PRIVATE.
    pub key: i32,
    /// The permissions, and of a segment SHM_DEST and SHM_LOCKED (shmctl(2)).
    pub mode: u32,
    /// Of the owner and of the creator.
    pub uid: u32,
    pub gid: u32,
    pub cuid: u32,
    pub cgid: u32,
}

/// Shared memory (shmget(2)); its size is that of the shared object.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Segment {
    pub ipc: Ipc,
    /// shm_cpid: who made it.
    pub creator: i32,
}
