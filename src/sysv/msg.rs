//! Calls about message queues (msgget(2), msgop(2), msgctl(2)).

use nix::errno::Errno;

use crate::image::state::{Ipc, Message};

pub fn create(key: i32, mode: u32) -> nix::Result<i32> {
    let flags = libc::IPC_CREAT | libc::IPC_EXCL | (mode & 0o777).cast_signed();
    // SAFETY: takes numbers.
    Errno::result(unsafe { libc::msgget(key, flags) })
}

pub fn remove(id: i32) -> nix::Result<()> {
    // SAFETY: takes numbers.
    Errno::result(unsafe { libc::msgctl(id, libc::IPC_RMID, std::ptr::null_mut()) }).map(drop)
}

/// struct msqid_ds.
pub fn facts(id: i32) -> nix::Result<libc::msqid_ds> {
    // SAFETY: all zeros are a valid value of this plain structure, which the kernel fills.
    let mut facts = unsafe { std::mem::zeroed() };
    // SAFETY: as above.
    Errno::result(unsafe { libc::msgctl(id, libc::IPC_STAT, &raw mut facts) }).map(|_| facts)
}

/// The owner, the permissions, and how many bytes it holds: EPERM above kernel.msgmnb without CAP_SYS_RESOURCE.
pub fn set(ipc: &Ipc, capacity: u64) -> nix::Result<()> {
    // SAFETY: all zeros are a valid value of this plain structure; the kernel reads it.
    let rc = unsafe {
        let mut new: libc::msqid_ds = std::mem::zeroed();
        new.msg_perm.uid = ipc.uid;
        new.msg_perm.gid = ipc.gid;
        new.msg_perm.mode = (ipc.mode & 0o777) as _;
        new.msg_qbytes = capacity;
        libc::msgctl(ipc.id, libc::IPC_SET, &raw mut new)
    };
    Errno::result(rc).map(drop)
}

/// The message of this place in the queue, which stays there (MSG_COPY, Linux 3.8 with CONFIG_CHECKPOINT_RESTORE). ENOMSG: there is none.
pub fn peek(id: i32, place: i64, buffer: &mut [u8]) -> nix::Result<Message> {
    receive(id, place, libc::MSG_COPY | libc::IPC_NOWAIT, buffer)
}

pub fn take(id: i32, buffer: &mut [u8]) -> nix::Result<Message> {
    receive(id, 0, libc::IPC_NOWAIT, buffer)
}

/// `buffer`: a word for the type, and then room for the text.
fn receive(id: i32, which: i64, flags: i32, buffer: &mut [u8]) -> nix::Result<Message> {
    let room = buffer.len().checked_sub(8).ok_or(Errno::EINVAL)?;
    // SAFETY: struct msgbuf is a word, and text of at most the length given.
    let len = Errno::result(unsafe { libc::msgrcv(id, buffer.as_mut_ptr().cast(), room, which, flags) })?;
    let (kind, text) = buffer.split_first_chunk().expect("it is longer");
    Ok(Message {
        kind: i64::from_ne_bytes(*kind),
        text: text[..len.cast_unsigned()].to_vec(),
    })
}

/// EAGAIN: the queue is full.
pub fn send(id: i32, message: &[u8]) -> nix::Result<()> {
    let len = message.len().checked_sub(8).ok_or(Errno::EINVAL)?;
    // SAFETY: struct msgbuf is a word, and text of the length given.
    Errno::result(unsafe { libc::msgsnd(id, message.as_ptr().cast(), len, libc::IPC_NOWAIT) }).map(drop)
}

/// struct msgbuf.
pub fn bytes(message: &Message) -> Vec<u8> {
    let mut bytes = message.kind.to_ne_bytes().to_vec();
    bytes.extend(&message.text);
    bytes
}
