//! The end of an image: an index of the page frames, and the trailer that proves that nothing is missing.

use super::Error;
use super::header::array;
use super::record::{LEN, RecordHeader, agree};
use xxhash_rust::xxh3::Xxh3;

/// Where a frame of pages lies.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Entry {
    /// Of the record in the file.
    pub offset: u64,
    pub body_len: u32,
    pub raw_len: u32,
}

impl Entry {
    pub fn to_bytes(self) -> [u8; 16] {
        let mut bytes = [0; 16];
        bytes[0..8].copy_from_slice(&self.offset.to_le_bytes());
        bytes[8..12].copy_from_slice(&self.body_len.to_le_bytes());
        bytes[12..16].copy_from_slice(&self.raw_len.to_le_bytes());
        bytes
    }
}

/// The index that the frames seen so far must have, without keeping it.
pub struct Expected {
    hash: Xxh3,
    len: u64,
}

impl Expected {
    pub fn new() -> Self {
        Expected {
            hash: Xxh3::new(),
            len: 0,
        }
    }

    pub fn add(&mut self, entry: Entry) {
        let bytes = entry.to_bytes();
        self.hash.update(&bytes);
        self.len += bytes.len() as u64;
    }

    pub fn check(&self, record: &RecordHeader) -> Result<(), Error> {
        if record.body_len != self.len || !agree(self.hash.digest(), record.body_hash) {
            return Err(Error::damaged("the index lists other page frames than there are"));
        }
        Ok(())
    }
}

const MAGIC: [u8; 8] = *b"\x89CRYOEND";
const TRAILER_LEN: usize = 40;

/// The head of the last record, whose body is empty.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Trailer {
    /// All records, this one included.
    pub records: u64,
    /// All bytes of the file, the trailer's included.
    pub file_len: u64,
    pub index_offset: u64,
    /// The checksum in the record header of the index.
    pub index_checksum: u64,
}

impl Trailer {
    /// What the record takes in the file.
    pub const RECORD_LEN: u64 = (LEN + TRAILER_LEN) as u64;

    pub fn to_bytes(self) -> [u8; TRAILER_LEN] {
        let mut bytes = [0; TRAILER_LEN];
        bytes[0..8].copy_from_slice(&MAGIC);
        bytes[8..16].copy_from_slice(&self.records.to_le_bytes());
        bytes[16..24].copy_from_slice(&self.file_len.to_le_bytes());
        bytes[24..32].copy_from_slice(&self.index_offset.to_le_bytes());
        bytes[32..40].copy_from_slice(&self.index_checksum.to_le_bytes());
        bytes
    }

    pub fn from_bytes(bytes: &[u8]) -> Result<Self, Error> {
        if bytes.len() != TRAILER_LEN || bytes[..8] != MAGIC {
            return Err(Error::damaged("its trailer has another form"));
        }
        Ok(Trailer {
            records: u64::from_le_bytes(array(bytes, 8)),
            file_len: u64::from_le_bytes(array(bytes, 16)),
            index_offset: u64::from_le_bytes(array(bytes, 24)),
            index_checksum: u64::from_le_bytes(array(bytes, 32)),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::image::record::{Body, kind};

    #[test]
    fn a_trailer_reads_back_as_written() {
        let trailer = Trailer {
            records: 4,
            file_len: 1 << 40,
            index_offset: 77,
            index_checksum: u64::MAX,
        };
        assert_eq!(Trailer::from_bytes(&trailer.to_bytes()).unwrap(), trailer);
    }

    #[test]
    fn an_index_of_other_frames_is_damage() {
        let entry = Entry {
            offset: 64,
            body_len: 10,
            raw_len: 4096,
        };
        let mut expected = Expected::new();
        expected.add(entry);
        let record = |bytes: &[u8]| RecordHeader::new(kind::INDEX, &[], 0, &Body::new(bytes), 0);
        expected.check(&record(&entry.to_bytes())).unwrap();
        assert!(
            expected
                .check(&record(&Entry { raw_len: 8192, ..entry }.to_bytes()))
                .is_err()
        );
        assert!(expected.check(&record(&[])).is_err());
    }
}
