//! The first 64 bytes of an image: enough to recognise any version of it without decoding anything.

use super::Error;
use super::record::agree;
use xxhash_rust::xxh3::xxh3_64;

pub const LEN: usize = 64;
/// 0x89 keeps the file from being taken for text.
pub const MAGIC: [u8; 8] = *b"\x89CRYOPOD";
pub const MAJOR: u16 = 1;
pub const MINOR: u16 = 0;
/// Bits of [`Header::features`] that this reader understands: none are defined yet.
const KNOWN_FEATURES: u64 = 0;
const CHECKSUM_AT: usize = 56;

/// What the fixed header says: little-endian fields at fixed places, under a checksum of their own.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Header {
    /// A reader of another major version cannot read the rest; a minor version only adds what may be skipped.
    pub major: u16,
    pub minor: u16,
    /// e_machine of the ELF files of that machine.
    pub machine: u16,
    pub page_size: u32,
    /// Bits that a reader must know to read the rest.
    pub features: u64,
}

impl Header {
    pub fn new(machine: u16, page_size: u32) -> Self {
        Header {
            major: MAJOR,
            minor: MINOR,
            machine,
            page_size,
            features: 0,
        }
    }

    pub fn to_bytes(self) -> [u8; LEN] {
        let mut bytes = [0; LEN];
        bytes[0..8].copy_from_slice(&MAGIC);
        bytes[8..10].copy_from_slice(&self.major.to_le_bytes());
        bytes[10..12].copy_from_slice(&self.minor.to_le_bytes());
        bytes[12..14].copy_from_slice(&self.machine.to_le_bytes());
        bytes[16..20].copy_from_slice(&self.page_size.to_le_bytes());
        bytes[24..32].copy_from_slice(&self.features.to_le_bytes());
        let checksum = xxh3_64(&bytes[..CHECKSUM_AT]);
        bytes[CHECKSUM_AT..].copy_from_slice(&checksum.to_le_bytes());
        bytes
    }

    /// Reads a header of a version that this program knows.
    pub fn from_bytes(bytes: &[u8; LEN]) -> Result<Self, Error> {
        if bytes[..8] != MAGIC {
            return Err(Error::NotAnImage);
        }
        if !agree(
            xxh3_64(&bytes[..CHECKSUM_AT]),
            u64::from_le_bytes(array(bytes, CHECKSUM_AT)),
        ) {
            return Err(Error::damaged("the checksum of its header is wrong"));
        }
        let header = Header {
            major: u16::from_le_bytes(array(bytes, 8)),
            minor: u16::from_le_bytes(array(bytes, 10)),
            machine: u16::from_le_bytes(array(bytes, 12)),
            page_size: u32::from_le_bytes(array(bytes, 16)),
            features: u64::from_le_bytes(array(bytes, 24)),
        };
        header.check()?;
        Ok(header)
    }

    fn check(&self) -> Result<(), Error> {
        if self.major > MAJOR {
            return Err(Error::Newer {
                what: format!("its format is {}.{}, this one reads {MAJOR}", self.major, self.minor),
            });
        }
        if self.major < MAJOR {
            return Err(Error::damaged(format!(
                "there is no format {}.{}",
                self.major, self.minor
            )));
        }
        let unknown = self.features & !KNOWN_FEATURES;
        if unknown != 0 {
            return Err(Error::Newer {
                what: format!("it uses features {unknown:#x}, which this one does not know"),
            });
        }
        // Linux has pages of 4, 16 and 64 KiB on the machines in question.
        if !self.page_size.is_power_of_two() || !(4096..=65536).contains(&self.page_size) {
            return Err(Error::damaged(format!("its page size is {}", self.page_size)));
        }
        Ok(())
    }
}

/// `N` bytes at a place that the caller knows to be inside.
pub(super) fn array<const N: usize>(bytes: &[u8], at: usize) -> [u8; N] {
    let mut array = [0; N];
    array.copy_from_slice(&bytes[at..at + N]);
    array
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_header_reads_back_as_written() {
        let header = Header::new(62, 4096);
        assert_eq!(Header::from_bytes(&header.to_bytes()).unwrap(), header);
    }

    #[test]
    fn a_newer_major_version_is_called_newer() {
        let header = Header {
            major: MAJOR + 1,
            ..Header::new(62, 4096)
        };
        assert!(matches!(
            Header::from_bytes(&header.to_bytes()),
            Err(Error::Newer { .. })
        ));
    }

    #[test]
    fn a_newer_minor_version_is_read() {
        let header = Header {
            minor: MINOR + 7,
            ..Header::new(183, 16384)
        };
        assert_eq!(Header::from_bytes(&header.to_bytes()).unwrap(), header);
    }

    #[test]
    fn an_unknown_feature_is_called_newer() {
        let header = Header {
            features: 1 << 40,
            ..Header::new(62, 4096)
        };
        assert!(matches!(
            Header::from_bytes(&header.to_bytes()),
            Err(Error::Newer { .. })
        ));
    }

    #[test]
    fn a_page_size_that_no_machine_has_is_damage() {
        for size in [0, 1, 4095, 1 << 20] {
            assert!(matches!(
                Header::from_bytes(&Header::new(62, size).to_bytes()),
                Err(Error::Damaged(_))
            ));
        }
    }
}
