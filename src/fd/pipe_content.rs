//! The bytes that wait in a pipe: read without taking anything out, and put into a new one.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use anyhow::{Context, Result, ensure};
use nix::errno::Errno;
use nix::fcntl::{FcntlArg, OFlag, SpliceFFlags, fcntl, tee};
use nix::unistd::{pipe2, read, write};
use serde::{Deserialize, Serialize};

use crate::sys::fds::bytes_waiting;

/// The size of a pipe and what waits in it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Content {
    /// fcntl(F_GETPIPE_SZ).
    pub size: u32,
    pub segments: Vec<Segment>,
}

/// A run of bytes in a pipe.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Segment {
    Stream(#[serde(with = "serde_bytes")] Vec<u8>),
    /// One packet of a pipe in packet mode (pipe(2), O_DIRECT).
    Packet(#[serde(with = "serde_bytes")] Vec<u8>),
}

impl Content {
    /// What waits in the pipe of `end`, a read end. The copy is made by tee(2), which leaves the pipe as it is.
    pub fn of(end: BorrowedFd<'_>) -> Result<Self> {
        let size = size(end)?;
        let waiting = bytes_waiting(end).context("FIONREAD")?;
        if waiting == 0 {
            return Ok(Content {
                size,
                segments: Vec::new(),
            });
        }
        let copy = Copy::of(end, size)?;
        // Another process may write to the pipe meanwhile, or read from it.
        let surely = waiting.min(bytes_waiting(end).context("FIONREAD")?);
        let copied = bytes_waiting(copy.0.as_fd())?;
        ensure!(copied >= surely, "tee copied a part of the pipe only");
        Ok(Content {
            size,
            segments: copy.take_apart(size)?,
        })
    }

    /// Whether [`fill`](Self::fill) can make it. A packet written behind bytes of a stream joins them where the page has room
    /// (pipe_write(), fs/pipe.c), so that such a mixture comes out differently if its pages were filled differently.
    pub fn can_be_made(&self) -> Result<bool> {
        let joins = |pair: &[Segment]| matches!(pair, [Segment::Stream(_), Segment::Packet(_)]);
        if !self.segments.windows(2).any(joins) {
            return Ok(true);
        }
        let (read_end, write_end) = pipe2(OFlag::O_CLOEXEC).context("pipe2")?;
        self.fill(write_end.as_fd())?;
        Ok(Content::of(read_end.as_fd())? == *self)
    }

    /// Only the size, of a pipe whose content nobody can read.
    pub fn none(end: BorrowedFd<'_>) -> Result<Self> {
        Ok(Content {
            size: size(end)?,
            segments: Vec::new(),
        })
    }

    pub fn len_bytes(&self) -> usize {
        self.segments.iter().map(|segment| segment.bytes().len()).sum()
    }

    /// Makes the pipe of `end`, a write end, of the same size and with the same content.
    pub fn fill(&self, end: BorrowedFd<'_>) -> Result<()> {
        set_size(end, self.size)?;
        let flags = OFlag::from_bits_retain(fcntl(end, FcntlArg::F_GETFL)?);
        for segment in &self.segments {
            let packet = matches!(segment, Segment::Packet(_));
            let mut flags = flags | OFlag::O_NONBLOCK;
            flags.set(OFlag::O_DIRECT, packet);
            fcntl(end, FcntlArg::F_SETFL(flags)).context("fcntl F_SETFL")?;
            let written = write(end, segment.bytes()).context("write the content of a pipe")?;
            ensure!(
                written == segment.bytes().len(),
                "the recorded content does not fit into the recorded size of a pipe"
            );
        }
        fcntl(end, FcntlArg::F_SETFL(flags)).context("fcntl F_SETFL")?;
        Ok(())
    }
}

impl Segment {
    pub fn bytes(&self) -> &[u8] {
        match self {
            Segment::Stream(bytes) | Segment::Packet(bytes) => bytes,
        }
    }
}

/// The read end of a pipe of our own that holds the same buffers as another.
struct Copy(OwnedFd);

impl Copy {
    fn of(end: BorrowedFd<'_>, size: u32) -> Result<Self> {
        let (read_end, write_end) = pipe2(OFlag::O_CLOEXEC | OFlag::O_NONBLOCK).context("pipe2")?;
        set_size(write_end.as_fd(), size)?;
        match tee(end, &write_end, i32::MAX as usize, SpliceFFlags::SPLICE_F_NONBLOCK) {
            Ok(_) => Ok(Copy(read_end)),
            Err(errno) => Err(errno).context("tee"),
        }
    }

    /// A read ends with the bytes or with a packet, so it tells where a packet ends but not where it begins.
    fn take_apart(self, size: u32) -> Result<Vec<Segment>> {
        let mut segments = Vec::new();
        loop {
            let waiting = bytes_waiting(self.0.as_fd())?;
            if waiting == 0 {
                return Ok(segments);
            }
            let before = Copy::of(self.0.as_fd(), size)?;
            let mut bytes = vec![0; waiting];
            let len = read(&self.0, &mut bytes).context("read a copy of the pipe")?;
            bytes.truncate(len);
            let packet = bytes.split_off(before.stream_len(len, size, len < waiting)?);
            segments.extend((!bytes.is_empty()).then_some(Segment::Stream(bytes)));
            segments.extend((!packet.is_empty()).then_some(Segment::Packet(packet)));
        }
    }

    /// How many of the `len` bytes that one read returned stand before the packet that ended it. A shorter read takes what
    /// is left of a packet along (pipe_read(), fs/pipe.c), which shows whether it reached into one.
    fn stream_len(&self, len: usize, size: u32, more_follow: bool) -> Result<usize> {
        let reaches_packet = |n: usize| -> Result<bool> {
            let trial = Copy::of(self.0.as_fd(), size)?;
            let waiting = bytes_waiting(trial.0.as_fd())?;
            read(&trial.0, &mut vec![0; n]).context("read a copy of the pipe")?;
            Ok(waiting - bytes_waiting(trial.0.as_fd())? > n)
        };
        if len == 1 || !reaches_packet(len - 1)? {
            // A packet of one byte looks like a byte of a stream, but ends a read that could have returned more.
            return Ok(if more_follow { len - 1 } else { len });
        }
        // The smallest n that reaches into the packet, less one.
        let (mut outside, mut inside) = (0, len - 1);
        while inside - outside > 1 {
            let middle = outside.midpoint(inside);
            if reaches_packet(middle)? {
                inside = middle
            } else {
                outside = middle
            }
        }
        Ok(outside)
    }
}

fn size(end: BorrowedFd<'_>) -> Result<u32> {
    let size = fcntl(end, FcntlArg::F_GETPIPE_SZ).context("fcntl F_GETPIPE_SZ")?;
    u32::try_from(size).context("the size of a pipe")
}

fn set_size(end: BorrowedFd<'_>, wanted: u32) -> Result<()> {
    if size(end)? == wanted {
        return Ok(());
    }
    let wanted = i32::try_from(wanted).context("the size of a pipe")?;
    match fcntl(end, FcntlArg::F_SETPIPE_SZ(wanted)) {
        Ok(_) => Ok(()),
        Err(Errno::EPERM) => Err(Errno::EPERM).with_context(|| {
            format!(
                "make a pipe of {wanted} bytes: more than /proc/sys/fs/pipe-max-size allows without CAP_SYS_RESOURCE"
            )
        }),
        Err(errno) => Err(errno).with_context(|| format!("make a pipe of {wanted} bytes")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pipe(flags: OFlag) -> (OwnedFd, OwnedFd) {
        pipe2(OFlag::O_CLOEXEC | OFlag::O_NONBLOCK | flags).unwrap()
    }

    fn set_packets(end: &OwnedFd, packets: bool) {
        let mut flags = OFlag::from_bits_retain(fcntl(end, FcntlArg::F_GETFL).unwrap());
        flags.set(OFlag::O_DIRECT, packets);
        fcntl(end, FcntlArg::F_SETFL(flags)).unwrap();
    }

    fn round_trip(content: &Content) -> Content {
        let (read_end, write_end) = pipe(OFlag::empty());
        content.fill(write_end.as_fd()).unwrap();
        Content::of(read_end.as_fd()).unwrap()
    }

    #[test]
    fn looking_takes_nothing_out() {
        let (read_end, write_end) = pipe(OFlag::empty());
        write(&write_end, b"unread").unwrap();
        let content = Content::of(read_end.as_fd()).unwrap();
        assert_eq!(content.segments, [Segment::Stream(b"unread".into())]);
        assert_eq!(bytes_waiting(read_end.as_fd()).unwrap(), 6);
        assert_eq!(round_trip(&content), content);
    }

    fn packet(text: &str) -> Segment {
        Segment::Packet(text.into())
    }

    #[test]
    fn packets_keep_their_bounds_also_before_bytes_of_a_stream() {
        let (read_end, write_end) = pipe(OFlag::O_DIRECT);
        for packet in ["one", "2", "three", "4"] {
            write(&write_end, packet.as_bytes()).unwrap();
        }
        set_packets(&write_end, false);
        write(&write_end, b"the end").unwrap();
        let content = Content::of(read_end.as_fd()).unwrap();
        let end = Segment::Stream(b"the end".into());
        assert_eq!(
            content.segments,
            [packet("one"), packet("2"), packet("three"), packet("4"), end]
        );
        assert!(content.can_be_made().unwrap());
        assert_eq!(round_trip(&content), content);
    }

    #[test]
    fn a_packet_behind_a_stream_is_told_from_it() {
        let (read_end, write_end) = pipe(OFlag::empty());
        write(&write_end, &[b's'; 4093]).unwrap();
        set_packets(&write_end, true);
        write(&write_end, b"next page").unwrap();
        write(&write_end, b"last").unwrap();
        let content = Content::of(read_end.as_fd()).unwrap();
        let stream = Segment::Stream(vec![b's'; 4093]);
        assert_eq!(content.segments, [stream.clone(), packet("next page"), packet("last")]);
        assert!(content.can_be_made().unwrap());
        assert_eq!(round_trip(&content), content);
        let elsewhere = Content {
            segments: vec![Segment::Stream(b"short".into()), packet("joins it")],
            ..content
        };
        assert!(!elsewhere.can_be_made().unwrap());
    }

    #[test]
    fn a_full_pipe_of_another_size_is_copied_whole() {
        let (read_end, write_end) = pipe(OFlag::empty());
        fcntl(&write_end, FcntlArg::F_SETPIPE_SZ(1 << 18)).unwrap();
        let bytes: Vec<u8> = (0..1u32 << 18).map(|n| (n / 7) as u8).collect();
        assert_eq!(write(&write_end, &bytes), Ok(1 << 18));
        let content = Content::of(read_end.as_fd()).unwrap();
        assert_eq!(
            content,
            Content {
                size: 1 << 18,
                segments: vec![Segment::Stream(bytes)]
            }
        );
        assert_eq!(round_trip(&content), content);
    }

    #[test]
    fn content_that_does_not_fit_is_an_error() {
        let (_read_end, write_end) = pipe(OFlag::empty());
        let content = Content {
            size: 4096,
            segments: vec![Segment::Stream(vec![1; 5000])],
        };
        assert!(content.fill(write_end.as_fd()).is_err());
        assert!(
            Content {
                size: u32::MAX,
                segments: vec![]
            }
            .fill(write_end.as_fd())
            .is_err()
        );
    }
}
