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

/// A set of semaphores (semget(2)).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SemaphoreSet {
    pub ipc: Ipc,
    pub semaphores: Vec<Semaphore>,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Semaphore {
    /// At most SEMVMX, 32767.
    pub value: u16,
    /// Who changed it last (semctl(2), GETPID); 0: nobody.
    pub user: i32,
}

/// What the kernel adds to a semaphore when a process ends (semop(2), SEM_UNDO).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Undo {
    /// The id of the set, and the number of the semaphore in it.
    pub set: i32,
    pub number: u16,
    pub adjustment: i32,
}

/// A message queue (msgget(2)).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MessageQueue {
    pub ipc: Ipc,
    /// msg_qbytes: how many bytes it holds at most.
    pub capacity: u64,
    /// msg_lspid and msg_lrpid: who sent and who received last; 0: nobody.
    pub sender: i32,
    pub receiver: i32,
    /// The oldest first.
    pub messages: Vec<Message>,
}

/// struct msgbuf (msgop(2)).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Message {
    pub kind: i64,
    #[serde(with = "serde_bytes")]
    pub text: Vec<u8>,
}
