//! POSIX message queues (mq_overview(7)), whose descriptors are those of files.

use std::ffi::CStr;
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};

use nix::errno::Errno;
use nix::sys::statfs::{FsType, fstatfs};

/// MQUEUE_MAGIC (ipc/mqueue.c).
const MAGIC: FsType = FsType(0x1980_0202);

/// What a queue was made with (mq_open(3)).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Shape {
    pub messages_max: i64,
    pub message_len_max: i64,
}

pub fn is_mqueue(file: impl AsFd) -> nix::Result<bool> {
    fstatfs(file).map(|facts| facts.filesystem_type() == MAGIC)
}

/// Opened for both directions, close-on-exec and non-blocking; a new one if it is to have a shape.
pub fn open(name: &CStr, new: Option<Shape>) -> nix::Result<OwnedFd> {
    let flags = libc::O_RDWR | libc::O_NONBLOCK | libc::O_CLOEXEC;
    let fd = match new {
        // SAFETY: the name is a C string.
        None => unsafe { libc::mq_open(name.as_ptr(), flags) },
        Some(shape) => {
            // SAFETY: zeros are a value of this plain structure.
            let mut attributes: libc::mq_attr = unsafe { std::mem::zeroed() };
            attributes.mq_maxmsg = shape.messages_max;
            attributes.mq_msgsize = shape.message_len_max;
            let flags = flags | libc::O_CREAT | libc::O_EXCL;
            // SAFETY: as above; the call reads the attributes.
            unsafe { libc::mq_open(name.as_ptr(), flags, 0o600 as libc::mode_t, &raw mut attributes) }
        }
    };
    // SAFETY: a new descriptor that nobody else owns.
    Errno::result(fd).map(|fd| unsafe { OwnedFd::from_raw_fd(fd) })
}

pub fn unlink(name: &CStr) -> nix::Result<()> {
    // SAFETY: the name is a C string.
    Errno::result(unsafe { libc::mq_unlink(name.as_ptr()) }).map(drop)
}

/// The shape, and how many messages wait.
pub fn look(queue: impl AsFd) -> nix::Result<(Shape, i64)> {
    // SAFETY: zeros are a value of this plain structure, which the call fills.
    let mut attributes: libc::mq_attr = unsafe { std::mem::zeroed() };
    // SAFETY: as above.
    Errno::result(unsafe { libc::mq_getattr(queue.as_fd().as_raw_fd(), &raw mut attributes) })?;
    let shape = Shape {
        messages_max: attributes.mq_maxmsg,
        message_len_max: attributes.mq_msgsize,
    };
    Ok((shape, attributes.mq_curmsgs))
}

/// The oldest message of the highest priority. `buffer` is at least as long as messages may be.
pub fn take(queue: impl AsFd, buffer: &mut [u8]) -> nix::Result<(u32, Vec<u8>)> {
    let mut priority = 0;
    let fd = queue.as_fd().as_raw_fd();
    // SAFETY: the kernel writes at most the length given.
    let len = unsafe { libc::mq_receive(fd, buffer.as_mut_ptr().cast(), buffer.len(), &raw mut priority) };
    let len = Errno::result(len)?;
    Ok((priority, buffer[..len.cast_unsigned()].to_vec()))
}

pub fn put(queue: impl AsFd, priority: u32, message: &[u8]) -> nix::Result<()> {
    let fd = queue.as_fd().as_raw_fd();
    // SAFETY: the kernel reads the length given.
    Errno::result(unsafe { libc::mq_send(fd, message.as_ptr().cast(), message.len(), priority) }).map(drop)
}
