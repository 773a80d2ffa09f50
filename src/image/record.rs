//! Records: what follows the header. Each has a small head, which says what it is, and a body, which may be large.
//!
//! The record header's checksum covers it and the head, and is seeded with the place in the file, so that no record can be moved,
//! doubled or left out; the header holds the checksum of the body, so that a listing can pass over bodies and still trust heads.

use super::Error;
use super::header::array;
use xxhash_rust::xxh3::{Xxh3, xxh3_64};

pub const LEN: usize = 40;
/// A head is small; one that claims more is damage.
pub const HEAD_MAX: u32 = 64 << 10;
/// Padding reaches the next page at most.
const PAD_MAX: u32 = 64 << 10;

/// Kinds of records. Appended, never renumbered.
pub mod kind {
    /// [`Snapshot`](crate::image::state::Snapshot) in postcard.
    pub const STATE: u16 = 1;
    /// A frame of pages.
    pub const PAGES: u16 = 2;
    pub const INDEX: u16 = 3;
    pub const TRAILER: u16 = 4;
}

/// A reader that does not know the kind or the version of the record may pass over it.
pub const MAY_SKIP: u32 = 1;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RecordHeader {
    pub kind: u16,
    pub version: u16,
    pub flags: u32,
    pub head_len: u32,
    /// Zeros between head and body, so that the body begins at a page of the file.
    pub pad_len: u32,
    pub body_len: u64,
    pub body_hash: u64,
    pub checksum: u64,
}

impl RecordHeader {
    /// The header of a record of version 1 that lies at `offset` in the file.
    pub fn new(kind: u16, head: &[u8], pad_len: u32, body: &Body<'_>, offset: u64) -> Self {
        let mut header = RecordHeader {
            kind,
            version: 1,
            flags: 0,
            head_len: head.len() as u32,
            pad_len,
            body_len: body.bytes.len() as u64,
            body_hash: body.hash,
            checksum: 0,
        };
        header.sign(head, offset);
        header
    }

    /// Sets the checksum for a place in the file.
    pub fn sign(&mut self, head: &[u8], offset: u64) {
        self.checksum = self.checksum_with(head, offset);
    }

    pub fn to_bytes(self) -> [u8; LEN] {
        let mut bytes = [0; LEN];
        bytes[0..2].copy_from_slice(&self.kind.to_le_bytes());
        bytes[2..4].copy_from_slice(&self.version.to_le_bytes());
        bytes[4..8].copy_from_slice(&self.flags.to_le_bytes());
        bytes[8..12].copy_from_slice(&self.head_len.to_le_bytes());
        bytes[12..16].copy_from_slice(&self.pad_len.to_le_bytes());
        bytes[16..24].copy_from_slice(&self.body_len.to_le_bytes());
        bytes[24..32].copy_from_slice(&self.body_hash.to_le_bytes());
        bytes[32..40].copy_from_slice(&self.checksum.to_le_bytes());
        bytes
    }

    /// Nothing in it is to be believed before [`RecordHeader::check`] but the bounded length of the head.
    pub fn from_bytes(bytes: &[u8; LEN]) -> Result<Self, Error> {
        let header = RecordHeader {
            kind: u16::from_le_bytes(array(bytes, 0)),
            version: u16::from_le_bytes(array(bytes, 2)),
            flags: u32::from_le_bytes(array(bytes, 4)),
            head_len: u32::from_le_bytes(array(bytes, 8)),
            pad_len: u32::from_le_bytes(array(bytes, 12)),
            body_len: u64::from_le_bytes(array(bytes, 16)),
            body_hash: u64::from_le_bytes(array(bytes, 24)),
            checksum: u64::from_le_bytes(array(bytes, 32)),
        };
        if header.head_len > HEAD_MAX || header.pad_len > PAD_MAX {
            return Err(Error::damaged("a record claims a giant head"));
        }
        Ok(header)
    }

    /// Compares the checksum of a record that was found at `offset`.
    pub fn check(&self, head: &[u8], offset: u64) -> Result<(), Error> {
        if !agree(self.checksum_with(head, offset), self.checksum) {
            return Err(Error::damaged(format!(
                "the checksum of the record at byte {offset} is wrong"
            )));
        }
        Ok(())
    }

    fn checksum_with(&self, head: &[u8], offset: u64) -> u64 {
        let mut hash = Xxh3::with_seed(offset);
        hash.update(&self.to_bytes()[..LEN - 8]);
        hash.update(head);
        hash.digest()
    }
}

/// Compares checksums, but not while fuzzing, which is to get past them.
pub fn agree(found: u64, written: u64) -> bool {
    found == written || cfg!(fuzzing)
}

/// The large part of a record, and its checksum.
pub struct Body<'a> {
    pub bytes: &'a [u8],
    pub hash: u64,
}

impl<'a> Body<'a> {
    pub fn new(bytes: &'a [u8]) -> Self {
        Body {
            bytes,
            hash: xxh3_64(bytes),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_header_reads_back_as_written() {
        let header = RecordHeader::new(kind::PAGES, b"head", 17, &Body::new(b"body"), 64);
        assert_eq!(RecordHeader::from_bytes(&header.to_bytes()).unwrap(), header);
        header.check(b"head", 64).unwrap();
    }

    #[test]
    fn a_record_that_was_moved_is_damage() {
        let header = RecordHeader::new(kind::PAGES, b"head", 0, &Body::new(b"body"), 64);
        assert!(matches!(header.check(b"head", 128), Err(Error::Damaged(_))));
    }
}
