//! Reads records one after the other, from anything that can be read. Lengths are believed only as far as bytes follow.

use super::Error;
use super::header::{self, Header};
use super::record::{self, RecordHeader, agree};
use std::io::{BufReader, ErrorKind, Read, Seek};
use xxhash_rust::xxh3::{Xxh3, xxh3_64};

/// Small, so that only heads go through it; bodies are read past it.
const BUFFER_LEN: usize = 8 << 10;
const CHUNK_LEN: usize = 64 << 10;

/// The bytes of an image, with the place in it.
pub struct Input<R> {
    from: BufReader<R>,
    offset: u64,
}

/// A record whose header and head were checked; its body comes next in the input.
pub struct Record {
    pub offset: u64,
    pub header: RecordHeader,
    pub head: Vec<u8>,
}

impl<R: Read> Input<R> {
    /// Reads the header of the image.
    pub fn open(from: R) -> Result<(Self, Header), Error> {
        let mut input = Input {
            from: BufReader::with_capacity(BUFFER_LEN, from),
            offset: 0,
        };
        let mut bytes = Vec::with_capacity(header::LEN);
        input.from.by_ref().take(header::LEN as u64).read_to_end(&mut bytes)?;
        input.offset = bytes.len() as u64;
        let magic = &header::MAGIC[..bytes.len().min(header::MAGIC.len())];
        if bytes.is_empty() || !bytes.starts_with(magic) {
            return Err(Error::NotAnImage);
        }
        let bytes: [u8; header::LEN] = bytes.try_into().map_err(|_| Error::CutOff)?;
        let header = Header::from_bytes(&bytes)?;
        Ok((input, header))
    }

    pub fn file(&self) -> &R {
        self.from.get_ref()
    }

    pub fn offset(&self) -> u64 {
        self.offset
    }

    /// The next record, up to its body.
    pub fn record(&mut self) -> Result<Record, Error> {
        let offset = self.offset;
        let mut bytes = [0; record::LEN];
        self.exact(&mut bytes)?;
        let header = RecordHeader::from_bytes(&bytes)?;
        let mut head = vec![0; header.head_len as usize];
        self.exact(&mut head)?;
        header.check(&head, offset)?;
        self.padding(header.pad_len as usize)?;
        Ok(Record { offset, header, head })
    }

    /// No checksum covers padding, so all of it must be zeros.
    fn padding(&mut self, len: usize) -> Result<(), Error> {
        let mut padding = vec![0; len];
        self.exact(&mut padding)?;
        if padding.iter().any(|&byte| byte != 0) {
            return Err(Error::damaged("there is something in its padding"));
        }
        Ok(())
    }

    /// Reads the body of `record` into `buffer`, whose length must be bounded by then; whoever uses it checks it by [`check_body`].
    pub fn body_into(&mut self, record: &Record, buffer: &mut Vec<u8>) -> Result<(), Error> {
        buffer.clear();
        // read_to_end() makes room for what comes, not for what is claimed.
        let read = self.from.by_ref().take(record.header.body_len).read_to_end(buffer)?;
        self.offset += read as u64;
        if read as u64 != record.header.body_len {
            return Err(Error::CutOff);
        }
        Ok(())
    }

    /// Reads a body of any length, only for its checksum.
    pub fn pass_body(&mut self, record: &Record) -> Result<(), Error> {
        let mut hash = Xxh3::new();
        let mut chunk = vec![0; CHUNK_LEN];
        let mut left = record.header.body_len;
        while left > 0 {
            let part = &mut chunk[..left.min(CHUNK_LEN as u64) as usize];
            self.exact(part)?;
            hash.update(part);
            left -= part.len() as u64;
        }
        match agree(hash.digest(), record.header.body_hash) {
            true => Ok(()),
            false => Err(wrong_body(record)),
        }
    }

    /// An image ends with its trailer.
    pub fn end(&mut self) -> Result<(), Error> {
        let mut byte = [0];
        loop {
            match self.from.read(&mut byte) {
                Ok(0) => return Ok(()),
                Ok(_) => return Err(Error::damaged("something follows its trailer")),
                Err(error) if error.kind() == ErrorKind::Interrupted => continue,
                Err(error) => return Err(error.into()),
            }
        }
    }

    fn exact(&mut self, buffer: &mut [u8]) -> Result<(), Error> {
        self.from.read_exact(buffer)?;
        self.offset += buffer.len() as u64;
        Ok(())
    }
}

impl<R: Read + Seek> Input<R> {
    /// Passes over a body without reading it. The trailer comes last, so a file that is cut is noticed all the same.
    pub fn seek_past_body(&mut self, record: &Record) -> Result<(), Error> {
        let past_end = || Error::damaged("a record is longer than any file");
        let len = i64::try_from(record.header.body_len).map_err(|_| past_end())?;
        self.offset = self.offset.checked_add(record.header.body_len).ok_or_else(past_end)?;
        i64::try_from(self.offset).map_err(|_| past_end())?;
        Ok(self.from.seek_relative(len)?)
    }
}

/// Compares the checksum of a body.
pub fn check_body(record: &Record, body: &[u8]) -> Result<(), Error> {
    match agree(xxh3_64(body), record.header.body_hash) {
        true => Ok(()),
        false => Err(wrong_body(record)),
    }
}

fn wrong_body(record: &Record) -> Error {
    Error::damaged(format!(
        "the checksum of the data of the record at byte {} is wrong",
        record.offset
    ))
}
