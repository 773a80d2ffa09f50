//! Puts records into the sink, and remembers what the index and the trailer will say.

use super::header::{self, Header};
use super::index::{Entry, Trailer};
use super::pages::Codec;
use super::record::{self, Body, RecordHeader, kind};
use super::worker::Frame;
use anyhow::{Context, Result};
use std::io::{self, IoSlice, Write};

/// The sink, with the place in it and what the index and the trailer will say.
pub struct Output<'a> {
    sink: &'a mut dyn Write,
    pub offset: u64,
    records: u64,
    index: Vec<u8>,
}

impl<'a> Output<'a> {
    pub fn new(sink: &'a mut dyn Write) -> Self {
        Output {
            sink,
            offset: 0,
            records: 0,
            index: Vec::new(),
        }
    }

    pub fn header(&mut self, header: Header) -> Result<()> {
        self.write(&[&header.to_bytes()])?;
        debug_assert_eq!(self.offset, header::LEN as u64);
        Ok(())
    }

    /// Writes a record and returns its header.
    pub fn record(&mut self, kind: u16, head: &[u8], pad_len: u32, body: &Body<'_>) -> Result<RecordHeader> {
        static PADDING: [u8; 65536] = [0; 65536];
        let header = RecordHeader::new(kind, head, pad_len, body, self.offset);
        self.write(&[&header.to_bytes(), head, &PADDING[..pad_len as usize], body.bytes])?;
        self.records += 1;
        Ok(header)
    }

    pub fn frame(&mut self, frame: &Frame, page_size: u32) -> Result<()> {
        if frame.head.runs.is_empty() {
            return Ok(());
        }
        let head = frame.head.to_bytes(page_size);
        let pad_len = match frame.head.codec {
            // Pages of the file, so that they can be read straight into place.
            Codec::Raw => padding(self.offset + (record::LEN + head.len()) as u64, page_size),
            Codec::Zstd => 0,
        };
        let entry = Entry {
            offset: self.offset,
            body_len: frame.body.len() as u32,
            raw_len: frame.head.raw_len,
        };
        self.index.extend_from_slice(&entry.to_bytes());
        self.record(
            kind::PAGES,
            &head,
            pad_len,
            &Body {
                bytes: &frame.body,
                hash: frame.body_hash,
            },
        )?;
        Ok(())
    }

    /// Index and trailer.
    pub fn finish(&mut self) -> Result<()> {
        let index_offset = self.offset;
        let index = std::mem::take(&mut self.index);
        let index_checksum = self.record(kind::INDEX, &[], 0, &Body::new(&index))?.checksum;
        let trailer = Trailer {
            records: self.records + 1,
            file_len: self.offset + Trailer::RECORD_LEN,
            index_offset,
            index_checksum,
        };
        self.record(kind::TRAILER, &trailer.to_bytes(), 0, &Body::new(&[]))?;
        self.sink.flush().context("write the image")
    }

    fn write(&mut self, parts: &[&[u8]]) -> Result<()> {
        write_all_vectored(self.sink, parts).context("write the image")?;
        self.offset += parts.iter().map(|part| part.len() as u64).sum::<u64>();
        Ok(())
    }
}

fn padding(offset: u64, page_size: u32) -> u32 {
    (offset.next_multiple_of(u64::from(page_size)) - offset) as u32
}

fn write_all_vectored(sink: &mut dyn Write, parts: &[&[u8]]) -> io::Result<()> {
    let mut slices: Vec<_> = parts
        .iter()
        .filter(|part| !part.is_empty())
        .map(|part| IoSlice::new(part))
        .collect();
    let mut slices = &mut slices[..];
    while !slices.is_empty() {
        match sink.write_vectored(slices) {
            Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
            Ok(written) => IoSlice::advance_slices(&mut slices, written),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) => return Err(error),
        }
    }
    Ok(())
}
