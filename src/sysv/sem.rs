//! Calls about semaphores (semget(2), semop(2), semctl(2)).

use nix::errno::Errno;

use crate::image::state::Ipc;

pub fn create(key: i32, count: usize, mode: u32) -> nix::Result<i32> {
    let flags = libc::IPC_CREAT | libc::IPC_EXCL | (mode & 0o777).cast_signed();
    let count = i32::try_from(count).map_err(|_| Errno::EINVAL)?;
    // SAFETY: takes numbers.
    Errno::result(unsafe { libc::semget(key, count, flags) })
}

pub fn remove(id: i32) -> nix::Result<()> {
    // SAFETY: takes numbers.
    Errno::result(unsafe { libc::semctl(id, 0, libc::IPC_RMID) }).map(drop)
}

/// The owner and the permissions.
pub fn set(ipc: &Ipc) -> nix::Result<()> {
    // SAFETY: all zeros are a valid value of this plain structure; the kernel reads it.
    let rc = unsafe {
        let mut new: libc::semid_ds = std::mem::zeroed();
        new.sem_perm.uid = ipc.uid;
        new.sem_perm.gid = ipc.gid;
        new.sem_perm.mode = (ipc.mode & 0o777) as _;
        libc::semctl(ipc.id, 0, libc::IPC_SET, &raw mut new)
    };
    Errno::result(rc).map(drop)
}

pub fn values(id: i32, count: usize) -> nix::Result<Vec<u16>> {
    let mut values = vec![0u16; count];
    // SAFETY: a set has as many semaphores for its whole life, and the kernel writes two bytes for each.
    Errno::result(unsafe { libc::semctl(id, 0, libc::GETALL, values.as_mut_ptr()) }).map(|_| values)
}

/// Who changed each semaphore last; 0: nobody.
pub fn users(id: i32, count: usize) -> nix::Result<Vec<i32>> {
    let numbers = 0..i32::try_from(count).unwrap_or(0);
    // SAFETY: takes numbers.
    let user = |number| Errno::result(unsafe { libc::semctl(id, number, libc::GETPID) });
    numbers.map(user).collect()
}

/// Takes away all adjustments that processes have for that semaphore.
pub fn set_value(id: i32, number: u16, value: u16) -> nix::Result<()> {
    // SAFETY: takes numbers.
    let rc = unsafe { libc::semctl(id, number.into(), libc::SETVAL, i32::from(value)) };
    Errno::result(rc).map(drop)
}

/// struct sembuf: of semaphore `number`.
pub fn operation(number: u16, add: i16, flags: i32) -> libc::sembuf {
    libc::sembuf {
        sem_num: number,
        sem_op: add,
        sem_flg: flags as i16,
    }
}

/// As the kernel reads them.
pub fn bytes(operations: &[libc::sembuf]) -> Vec<u8> {
    let bytes = |operation: &libc::sembuf| {
        let mut bytes = operation.sem_num.to_ne_bytes().to_vec();
        bytes.extend(operation.sem_op.to_ne_bytes());
        bytes.extend(operation.sem_flg.to_ne_bytes());
        bytes
    };
    operations.iter().flat_map(bytes).collect()
}

/// Changes nothing, and makes the caller the last that changed it.
pub fn touch(number: u16, value: u16) -> [libc::sembuf; 2] {
    let first = if value == 0 { 1 } else { -1 };
    [
        operation(number, first, libc::IPC_NOWAIT),
        operation(number, -first, libc::IPC_NOWAIT),
    ]
}

pub fn operate(id: i32, operations: &mut [libc::sembuf]) -> nix::Result<()> {
    // SAFETY: the kernel reads as many as there are.
    let rc = unsafe { libc::semop(id, operations.as_mut_ptr(), operations.len()) };
    Errno::result(rc).map(drop)
}
