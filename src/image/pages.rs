//! Memory in an image: which stretches there are, how a frame lists the pages it holds, and who may own them.

use super::Error;
use super::header::array;
use serde::{Deserialize, Serialize};
use std::io;

/// Memory is read, compressed and written in pieces of this size; every page size divides it.
pub const FRAME_LEN: usize = 256 << 10;
/// No frame holds more memory than this, so that readers know what they may have to hold.
pub const FRAME_MAX: u32 = 1 << 20;

/// Which memory: an address space (index in `Snapshot::processes`) or a shared object (index in `Snapshot::shared_objects`).
///
/// What children have from a process comes before them: first the inherited pages of one process after the other, in the order of the
/// snapshot, then everything else.
#[derive(Copy, Clone, PartialEq, Eq, PartialOrd, Ord, Debug, Hash, Serialize, Deserialize)]
pub enum Space {
    Process(u32),
    Shared(u32),
    /// Pages of a process that children of it have in common with it, copy-on-write.
    Inherited(u32),
}

impl Space {
    /// The process whose children need these pages to be there before they are made.
    pub fn heirs_of(self) -> Option<u32> {
        match self {
            Space::Inherited(process) => Some(process),
            Space::Process(_) | Space::Shared(_) => None,
        }
    }
}

/// A stretch of memory whose content is to be stored, in bytes and whole pages. The offset in a process is the address.
#[derive(Copy, Clone, PartialEq, Eq, Debug)]
pub struct Extent {
    pub space: Space,
    pub offset: u64,
    pub len: u64,
    pub zeros: Zeros,
}

/// Whether pages of zeros may be left out: yes for anonymous memory, but not for private pages of a file, which would show through.
#[derive(Copy, Clone, PartialEq, Eq, Debug)]
pub enum Zeros {
    LeaveOut,
    Keep,
}

/// Reads memory for an image; does not care whether it reads the stopped target or a copy-on-write child of it.
pub trait PageSource: Sync {
    fn read(&self, space: Space, offset: u64, buffer: &mut [u8]) -> io::Result<()>;
}

/// A stretch of memory in an image; without `bytes` it is zeros.
#[derive(Copy, Clone, PartialEq, Eq, Debug)]
pub struct PageRun<'a> {
    pub space: Space,
    pub offset: u64,
    pub len: u64,
    pub bytes: Option<&'a [u8]>,
}

/// How the pages of a frame are stored.
#[derive(Copy, Clone, PartialEq, Eq, Debug)]
pub enum Codec {
    Raw,
    Zstd,
}

/// An entry of a frame's list: consecutive pages.
#[derive(Copy, Clone, PartialEq, Eq, Debug)]
pub struct Run {
    pub space: Space,
    /// In bytes, like `len`; stored in pages.
    pub offset: u64,
    pub len: u64,
    /// Zeros, of which the body holds nothing.
    pub zero: bool,
}

/// The head of a PAGES record: what its body holds.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct FrameHead {
    pub codec: Codec,
    /// Bytes of memory in the body, uncompressed.
    pub raw_len: u32,
    pub runs: Vec<Run>,
}

const FIXED_LEN: usize = 12;
const RUN_LEN: usize = 20;

impl FrameHead {
    pub fn to_bytes(&self, page_size: u32) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(FIXED_LEN + self.runs.len() * RUN_LEN);
        let codec = match self.codec {
            Codec::Raw => 0u32,
            Codec::Zstd => 1,
        };
        bytes.extend_from_slice(&codec.to_le_bytes());
        bytes.extend_from_slice(&self.raw_len.to_le_bytes());
        bytes.extend_from_slice(&(self.runs.len() as u32).to_le_bytes());
        for run in &self.runs {
            let (kind, index) = match run.space {
                Space::Process(index) => (0u16, index),
                Space::Shared(index) => (1, index),
                Space::Inherited(index) => (2, index),
            };
            bytes.extend_from_slice(&index.to_le_bytes());
            bytes.extend_from_slice(&kind.to_le_bytes());
            bytes.extend_from_slice(&u16::from(run.zero).to_le_bytes());
            bytes.extend_from_slice(&(run.offset / u64::from(page_size)).to_le_bytes());
            bytes.extend_from_slice(&((run.len / u64::from(page_size)) as u32).to_le_bytes());
        }
        bytes
    }

    /// Decodes a head and checks that it agrees with itself and with the length of the body.
    pub fn from_bytes(bytes: &[u8], page_size: u32, body_len: u64) -> Result<Self, Error> {
        if bytes.len() < FIXED_LEN {
            return Err(Error::damaged("a page frame has no list"));
        }
        let codec = match u32::from_le_bytes(array(bytes, 0)) {
            0 => Codec::Raw,
            1 => Codec::Zstd,
            other => {
                return Err(Error::Newer {
                    what: format!("pages are compressed by method {other}"),
                });
            }
        };
        let raw_len = u32::from_le_bytes(array(bytes, 4));
        let count = u32::from_le_bytes(array(bytes, 8)) as usize;
        let list = &bytes[FIXED_LEN..];
        if Some(list.len()) != count.checked_mul(RUN_LEN) {
            return Err(Error::damaged(
                "the list of a page frame has another length than it says",
            ));
        }
        let runs = list
            .chunks_exact(RUN_LEN)
            .map(|run| read_run(run, page_size))
            .collect::<Result<Vec<_>, _>>()?;
        let head = FrameHead { codec, raw_len, runs };
        head.check(body_len)?;
        Ok(head)
    }

    fn check(&self, body_len: u64) -> Result<(), Error> {
        let stored: u64 = self.runs.iter().filter(|run| !run.zero).map(|run| run.len).sum();
        if self.raw_len > FRAME_MAX || stored != u64::from(self.raw_len) {
            return Err(Error::damaged(
                "a page frame holds another amount of memory than it lists",
            ));
        }
        let fits = match self.codec {
            Codec::Raw => body_len == stored,
            Codec::Zstd => body_len < stored,
        };
        if !fits {
            return Err(Error::damaged(format!(
                "a page frame of {stored} bytes takes {body_len} in the file"
            )));
        }
        Ok(())
    }
}

fn read_run(bytes: &[u8], page_size: u32) -> Result<Run, Error> {
    let index = u32::from_le_bytes(array(bytes, 0));
    let space = match u16::from_le_bytes(array(bytes, 4)) {
        0 => Space::Process(index),
        1 => Space::Shared(index),
        2 => Space::Inherited(index),
        other => return Err(Error::damaged(format!("pages belong to a space of kind {other}"))),
    };
    let zero = match u16::from_le_bytes(array(bytes, 6)) {
        0 => false,
        1 => true,
        other => return Err(Error::damaged(format!("pages have the flags {other:#x}"))),
    };
    let first = u64::from_le_bytes(array(bytes, 8));
    let count = u32::from_le_bytes(array(bytes, 16));
    let len = u64::from(count) * u64::from(page_size);
    let offset = first
        .checked_mul(u64::from(page_size))
        .filter(|offset| offset.checked_add(len).is_some());
    match offset {
        Some(offset) if count > 0 => Ok(Run {
            space,
            offset,
            len,
            zero,
        }),
        _ => Err(Error::damaged(
            "a list of pages names none, or some beyond all addresses",
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn head() -> FrameHead {
        let runs = vec![
            Run {
                space: Space::Process(0),
                offset: 0x7fff_0000_0000,
                len: 8192,
                zero: false,
            },
            Run {
                space: Space::Shared(3),
                offset: 4096,
                len: 1 << 40,
                zero: true,
            },
        ];
        FrameHead {
            codec: Codec::Raw,
            raw_len: 8192,
            runs,
        }
    }

    #[test]
    fn a_frame_head_reads_back_as_written() {
        let bytes = head().to_bytes(4096);
        assert_eq!(FrameHead::from_bytes(&bytes, 4096, 8192).unwrap(), head());
    }

    #[test]
    fn a_body_of_another_length_is_damage() {
        let bytes = head().to_bytes(4096);
        for body_len in [0, 4096, 8191, 8193, u64::MAX] {
            assert!(matches!(
                FrameHead::from_bytes(&bytes, 4096, body_len),
                Err(Error::Damaged(_))
            ));
        }
    }

    #[test]
    fn a_run_beyond_all_addresses_is_damage() {
        let mut head = head();
        head.runs[1].offset = u64::MAX - 4095;
        let bytes = head.to_bytes(4096);
        assert!(matches!(
            FrameHead::from_bytes(&bytes, 4096, 8192),
            Err(Error::Damaged(_))
        ));
    }

    #[test]
    fn a_list_cut_short_is_damage() {
        let bytes = head().to_bytes(4096);
        for len in 0..bytes.len() {
            assert!(matches!(
                FrameHead::from_bytes(&bytes[..len], 4096, 8192),
                Err(Error::Damaged(_))
            ));
        }
    }
}
