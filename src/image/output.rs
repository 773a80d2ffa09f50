//! Puts records into the sink, and remembers what the index and the trailer will say.

use super::header::{self, Header};
use super::index::{Entry, Trailer};
use super::pages::Codec;
use super::record::{self, Body, RecordHeader, kind};
use super::worker::Frame;
use anyhow::{Context, Result};
use std::io::{self, IoSlice, Write};
use std::sync::Mutex;

/// Where the bytes of an image go.
pub enum Sink<'a> {
    /// One after the other, by the thread that calls, whose signals interrupt a write that waits for a slow reader.
    Stream(&'a mut dyn Write),
    /// To their places, by any thread.
    File(&'a dyn WriteAt),
}

/// A file that can be written anywhere, from any number of threads at once.
pub trait WriteAt: Sync {
    fn write_all_at(&self, parts: &[&[u8]], offset: u64) -> io::Result<()>;
}

/// The sink, with what was put into it so far.
pub struct Output<'a> {
    sink: Sink<'a>,
    ledger: Ledger,
}

impl<'a> Output<'a> {
    pub fn new(sink: Sink<'a>) -> Self {
        let ledger = Ledger {
            offset: header::LEN as u64,
            records: 0,
            index: Vec::new(),
        };
        Output { sink, ledger }
    }

    pub fn header(&mut self, header: Header) -> Result<()> {
        self.write(&[&header.to_bytes()], 0)
    }

    /// Writes a record and returns its header.
    pub fn record(&mut self, kind: u16, head: &[u8], body: &Body<'_>) -> Result<RecordHeader> {
        let offset = self.ledger.allot(record::LEN + head.len() + body.bytes.len());
        let header = RecordHeader::new(kind, head, 0, body, offset);
        self.write(&[&header.to_bytes(), head, body.bytes], offset)?;
        Ok(header)
    }

    pub fn frames(&mut self, page_size: u32) -> Frames<'_> {
        let ledger = &mut self.ledger;
        match &mut self.sink {
            Sink::Stream(stream) => Frames::Stream(StreamFrames {
                stream: &mut **stream,
                ledger,
                page_size,
            }),
            Sink::File(file) => Frames::File(FileFrames {
                file: *file,
                ledger: Mutex::new(ledger),
                page_size,
            }),
        }
    }

    /// Index and trailer; returns the length of the image.
    pub fn finish(&mut self) -> Result<u64> {
        let index_offset = self.ledger.offset;
        let index = std::mem::take(&mut self.ledger.index);
        let index_checksum = self.record(kind::INDEX, &[], &Body::new(&index))?.checksum;
        let trailer = Trailer {
            records: self.ledger.records + 1,
            file_len: self.ledger.offset + Trailer::RECORD_LEN,
            index_offset,
            index_checksum,
        };
        self.record(kind::TRAILER, &trailer.to_bytes(), &Body::new(&[]))?;
        if let Sink::Stream(stream) = &mut self.sink {
            stream.flush().context("write the image")?;
        }
        Ok(self.ledger.offset)
    }

    fn write(&mut self, parts: &[&[u8]], offset: u64) -> Result<()> {
        match &mut self.sink {
            Sink::Stream(stream) => write_all_vectored(*stream, parts),
            Sink::File(file) => file.write_all_at(parts, offset),
        }
        .context("write the image")
    }
}

/// The door for frames of pages.
pub enum Frames<'a> {
    Stream(StreamFrames<'a>),
    File(FileFrames<'a>),
}

pub struct StreamFrames<'a> {
    stream: &'a mut dyn Write,
    ledger: &'a mut Ledger,
    page_size: u32,
}

impl StreamFrames<'_> {
    pub fn write(&mut self, frame: &Frame) -> Result<()> {
        let (stream, ledger) = (&mut *self.stream, &mut *self.ledger);
        write_frame(
            frame,
            self.page_size,
            |head_len| ledger.allot_frame(head_len, frame, self.page_size),
            |parts, _| write_all_vectored(stream, parts),
        )
    }
}

/// Frames get their places one after the other and are written side by side.
pub struct FileFrames<'a> {
    file: &'a dyn WriteAt,
    ledger: Mutex<&'a mut Ledger>,
    page_size: u32,
}

impl FileFrames<'_> {
    pub fn write(&self, frame: &Frame) -> Result<()> {
        let allot = |head_len| {
            let mut ledger = self.ledger.lock().expect("no worker panics with the ledger in hand");
            ledger.allot_frame(head_len, frame, self.page_size)
        };
        write_frame(frame, self.page_size, allot, |parts, offset| {
            self.file.write_all_at(parts, offset)
        })
    }
}

fn write_frame(
    frame: &Frame,
    page_size: u32,
    allot: impl FnOnce(usize) -> Place,
    write: impl FnOnce(&[&[u8]], u64) -> io::Result<()>,
) -> Result<()> {
    static PADDING: [u8; 65536] = [0; 65536];
    if frame.head.runs.is_empty() {
        return Ok(());
    }
    let head = frame.head.to_bytes(page_size);
    let Place { offset, pad_len } = allot(head.len());
    let body = Body {
        bytes: &frame.body,
        hash: frame.body_hash,
    };
    let header = RecordHeader::new(kind::PAGES, &head, pad_len, &body, offset).to_bytes();
    write(&[&header, &head, &PADDING[..pad_len as usize], body.bytes], offset).context("write the image")
}

/// How far the image has come, and what its end will say.
struct Ledger {
    offset: u64,
    records: u64,
    index: Vec<u8>,
}

/// Where a frame goes.
struct Place {
    offset: u64,
    pad_len: u32,
}

impl Ledger {
    fn allot(&mut self, len: usize) -> u64 {
        let offset = self.offset;
        self.offset += len as u64;
        self.records += 1;
        offset
    }

    fn allot_frame(&mut self, head_len: usize, frame: &Frame, page_size: u32) -> Place {
        let pad_len = match frame.head.codec {
            // Pages of the file, so that they can be read straight into place.
            Codec::Raw => padding(self.offset + (record::LEN + head_len) as u64, page_size),
            Codec::Zstd => 0,
        };
        let offset = self.allot(record::LEN + head_len + pad_len as usize + frame.body.len());
        let entry = Entry {
            offset,
            body_len: frame.body.len() as u32,
            raw_len: frame.head.raw_len,
        };
        self.index.extend_from_slice(&entry.to_bytes());
        Place { offset, pad_len }
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
