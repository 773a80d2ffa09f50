//! Writes an image in one pass: workers read, thin out and compress frames of pages, and one writer, the caller, puts them in the file.

use super::coverage::Coverage;
use super::header::Header;
use super::index::{Entry, Trailer};
use super::pages::{Codec, Extent, FRAME_LEN, FrameHead, PageSource, Run, Space, Zeros};
use super::record::{Body, RecordHeader, kind};
use super::state::Snapshot;
use super::{codec, header, validate};
use anyhow::{Context, Result, anyhow, bail};
use crossbeam_channel::{Receiver, Sender, bounded};
use std::fmt;
use std::io::{self, IoSlice, Write};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};

/// How pages are stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Compression {
    /// Fast compression, of what becomes smaller by it.
    Auto,
    /// zstd of a level (zstd(1)), of what becomes smaller by it.
    Zstd(i32),
    None,
}

/// The level of [`Compression::Auto`]: faster than most disks.
const AUTO_LEVEL: i32 = 1;
const STATE_LEVEL: i32 = 3;
/// Each worker holds up to four buffers of [`FRAME_LEN`] and its compressor: 64 MiB in all with these.
const JOBS_MAX: usize = 32;

pub struct Options<'a> {
    /// e_machine and page size of the processes.
    pub machine: u16,
    pub page_size: u32,
    pub compression: Compression,
    /// Threads that read and compress; 0 means as many as there are CPUs.
    pub jobs: usize,
    /// Called with the bytes of memory done so far.
    pub progress: &'a (dyn Fn(u64) + Sync),
    /// Once true, writing ends with the error [`Cancelled`].
    pub cancelled: &'a AtomicBool,
}

/// What was written.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Written {
    /// The length of the image.
    pub file_bytes: u64,
    /// Memory that is in the image, before compression.
    pub stored_bytes: u64,
    /// What that takes in the file.
    pub compressed_bytes: u64,
    /// Memory that was zeros and takes nothing.
    pub zero_bytes: u64,
}

/// The caller asked to stop.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Cancelled;

impl fmt::Display for Cancelled {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "writing the image was cancelled")
    }
}

impl std::error::Error for Cancelled {}

/// Writes the image of `snapshot`, with the content of `extents` as `source` has it.
pub fn write_image(
    sink: &mut dyn Write,
    snapshot: &Snapshot,
    extents: &[Extent],
    source: &dyn PageSource,
    options: &Options<'_>,
) -> Result<Written> {
    check(snapshot, extents, options).context("what was recorded cannot be an image")?;
    let mut output = Output::new(sink);
    output.header(Header::new(options.machine, options.page_size))?;
    let (head, state) = codec::encode_state(snapshot, STATE_LEVEL)?;
    output.record(kind::STATE, &head, 0, &Body::new(&state))?;
    let mut written = write_pages(&mut output, extents, source, options)?;
    output.finish()?;
    written.file_bytes = output.offset;
    Ok(written)
}

/// An image that its own reader would refuse must not be written: the program may exist nowhere else afterwards.
fn check(snapshot: &Snapshot, extents: &[Extent], options: &Options<'_>) -> Result<()> {
    let header = Header::new(options.machine, options.page_size);
    validate::validate(snapshot, &header).map_err(|reason| anyhow!(reason))?;
    let mut coverage = Coverage::new(snapshot, options.page_size);
    for extent in extents {
        coverage
            .add(extent.space, extent.offset, extent.len)
            .map_err(|reason| anyhow!(reason))?;
    }
    Ok(())
}

fn write_pages(
    output: &mut Output<'_>,
    extents: &[Extent],
    source: &dyn PageSource,
    options: &Options<'_>,
) -> Result<Written> {
    let cursor = Mutex::new(Cursor::new(extents));
    let jobs = job_count(options.jobs);
    let (frames, finished) = bounded(jobs);
    let (spent, spares) = bounded(2 * jobs);
    std::thread::scope(|scope| {
        for _ in 0..jobs {
            let worker = Worker {
                cursor: &cursor,
                source,
                options,
                frames: frames.clone(),
                spares: spares.clone(),
            };
            scope.spawn(move || worker.run());
        }
        drop((frames, spares));
        // Returning drops `finished`, which ends the workers at their next frame, whatever the reason.
        collect_frames(output, finished, &spent, options)
    })
}

pub(super) fn job_count(asked: usize) -> usize {
    let jobs = match asked {
        0 => std::thread::available_parallelism().map_or(1, usize::from),
        jobs => jobs,
    };
    jobs.min(JOBS_MAX)
}

/// The one writer.
fn collect_frames(
    output: &mut Output<'_>,
    finished: Receiver<Result<Frame>>,
    spent: &Sender<Vec<u8>>,
    options: &Options<'_>,
) -> Result<Written> {
    let mut written = Written::default();
    let mut done = 0;
    for frame in finished {
        let frame = frame?;
        output.frame(&frame, options.page_size)?;
        done += frame.memory;
        written.stored_bytes += u64::from(frame.head.raw_len);
        written.compressed_bytes += frame.body.len() as u64;
        written.zero_bytes += frame.memory - u64::from(frame.head.raw_len);
        // A full shelf of spare buffers only means that this one is not needed.
        let _ = spent.try_send(frame.body);
        (options.progress)(done);
    }
    match options.cancelled.load(Ordering::Relaxed) {
        true => bail!(Cancelled),
        false => Ok(written),
    }
}

/// A frame on its way from a worker to the writer.
struct Frame {
    head: FrameHead,
    body: Vec<u8>,
    body_hash: u64,
    /// Bytes of memory it stands for, zeros included.
    memory: u64,
}

struct Worker<'a> {
    cursor: &'a Mutex<Cursor<'a>>,
    source: &'a dyn PageSource,
    options: &'a Options<'a>,
    frames: Sender<Result<Frame>>,
    spares: Receiver<Vec<u8>>,
}

impl Worker<'_> {
    fn run(self) {
        let mut compressor = match self.compressor() {
            Ok(compressor) => compressor,
            Err(error) => return drop(self.frames.send(Err(error))),
        };
        while !self.options.cancelled.load(Ordering::Relaxed) {
            let pieces = self
                .cursor
                .lock()
                .expect("no worker panics with the cursor in hand")
                .next_frame();
            if pieces.is_empty() {
                return;
            }
            let frame = self.frame(&pieces, compressor.as_mut());
            let failed = frame.is_err();
            // The writer hangs up when it has failed.
            if self.frames.send(frame).is_err() || failed {
                return;
            }
        }
    }

    fn compressor(&self) -> Result<Option<zstd::bulk::Compressor<'static>>> {
        let level = match self.options.compression {
            Compression::None => return Ok(None),
            Compression::Auto => AUTO_LEVEL,
            Compression::Zstd(level) => level,
        };
        Ok(Some(zstd::bulk::Compressor::new(level).context("start a compressor")?))
    }

    fn frame(&self, pieces: &[Extent], compressor: Option<&mut zstd::bulk::Compressor<'static>>) -> Result<Frame> {
        let mut raw = self.spare();
        let runs = self.read(pieces, &mut raw)?;
        let memory = pieces.iter().map(|piece| piece.len).sum();
        let raw_len = raw.len() as u32;
        let (codec, body) = match compressor {
            Some(compressor) => self.compress(raw, compressor)?,
            None => (Codec::Raw, raw),
        };
        let body_hash = Body::new(&body).hash;
        Ok(Frame {
            head: FrameHead { codec, raw_len, runs },
            body,
            body_hash,
            memory,
        })
    }

    fn spare(&self) -> Vec<u8> {
        let mut buffer = self.spares.try_recv().unwrap_or_else(|_| Vec::with_capacity(FRAME_LEN));
        buffer.clear();
        buffer
    }

    /// Reads the pieces, closed up over the pages of zeros.
    fn read(&self, pieces: &[Extent], raw: &mut Vec<u8>) -> Result<Vec<Run>> {
        let page_size = self.options.page_size as usize;
        let mut runs = Vec::new();
        for piece in pieces {
            let from = raw.len();
            raw.resize(from + piece.len as usize, 0);
            self.source
                .read(piece.space, piece.offset, &mut raw[from..])
                .with_context(|| {
                    format!(
                        "read {} bytes of memory at {:#x} of {:?}",
                        piece.len, piece.offset, piece.space
                    )
                })?;
            let kept = thin_out(piece, &mut raw[from..], page_size, &mut runs);
            raw.truncate(from + kept);
        }
        Ok(runs)
    }

    /// Compresses what becomes smaller by it.
    fn compress(&self, raw: Vec<u8>, compressor: &mut zstd::bulk::Compressor<'static>) -> Result<(Codec, Vec<u8>)> {
        let mut body = self.spare();
        body.reserve(zstd::zstd_safe::compress_bound(raw.len()));
        compressor
            .compress_to_buffer(&raw, &mut body)
            .context("compress memory")?;
        Ok(match body.len() < raw.len() {
            true => (Codec::Zstd, body),
            false => (Codec::Raw, raw),
        })
    }
}

/// Moves the pages of a piece that are not zeros to its beginning, lists them, and says how many bytes they are.
fn thin_out(piece: &Extent, memory: &mut [u8], page_size: usize, runs: &mut Vec<Run>) -> usize {
    let mut kept = 0;
    for at in (0..memory.len()).step_by(page_size) {
        let zero = is_zero(&memory[at..at + page_size]);
        if zero && piece.zeros == Zeros::LeaveOut {
            continue;
        }
        push_page(runs, piece.space, piece.offset + at as u64, page_size as u64, zero);
        if !zero {
            if kept != at {
                memory.copy_within(at..at + page_size, kept);
            }
            kept += page_size;
        }
    }
    kept
}

fn push_page(runs: &mut Vec<Run>, space: Space, offset: u64, len: u64, zero: bool) {
    match runs.last_mut() {
        Some(run) if run.space == space && run.zero == zero && run.offset + run.len == offset => run.len += len,
        _ => runs.push(Run {
            space,
            offset,
            len,
            zero,
        }),
    }
}

fn is_zero(page: &[u8]) -> bool {
    static ZEROS: [u8; 65536] = [0; 65536];
    // memcmp(3) beats any loop.
    page == &ZEROS[..page.len()]
}

/// Hands out the extents in frames.
struct Cursor<'a> {
    extents: &'a [Extent],
    /// Bytes of the first extent that were handed out.
    taken: u64,
}

impl<'a> Cursor<'a> {
    fn new(extents: &'a [Extent]) -> Self {
        Cursor { extents, taken: 0 }
    }

    /// Pieces of [`FRAME_LEN`] bytes together, fewer only at the end; none when all is handed out.
    fn next_frame(&mut self) -> Vec<Extent> {
        let mut pieces = Vec::new();
        let mut room = FRAME_LEN as u64;
        while let Some(extent) = self.extents.first()
            && room > 0
        {
            let len = room.min(extent.len - self.taken);
            pieces.push(Extent {
                offset: extent.offset + self.taken,
                len,
                ..*extent
            });
            room -= len;
            self.taken += len;
            if self.taken == extent.len {
                self.extents = &self.extents[1..];
                self.taken = 0;
            }
        }
        pieces
    }
}

/// The sink, with the place in it and what the index and the trailer will say.
struct Output<'a> {
    sink: &'a mut dyn Write,
    offset: u64,
    records: u64,
    index: Vec<u8>,
}

impl<'a> Output<'a> {
    fn new(sink: &'a mut dyn Write) -> Self {
        Output {
            sink,
            offset: 0,
            records: 0,
            index: Vec::new(),
        }
    }

    fn header(&mut self, header: Header) -> Result<()> {
        self.write(&[&header.to_bytes()])?;
        debug_assert_eq!(self.offset, header::LEN as u64);
        Ok(())
    }

    /// Writes a record and returns its header.
    fn record(&mut self, kind: u16, head: &[u8], pad_len: u32, body: &Body<'_>) -> Result<RecordHeader> {
        static PADDING: [u8; 65536] = [0; 65536];
        let header = RecordHeader::new(kind, head, pad_len, body, self.offset);
        self.write(&[&header.to_bytes(), head, &PADDING[..pad_len as usize], body.bytes])?;
        self.records += 1;
        Ok(header)
    }

    fn frame(&mut self, frame: &Frame, page_size: u32) -> Result<()> {
        if frame.head.runs.is_empty() {
            return Ok(());
        }
        let head = frame.head.to_bytes(page_size);
        let pad_len = match frame.head.codec {
            // Pages of the file, so that they can be read straight into place.
            Codec::Raw => padding(self.offset + (super::record::LEN + head.len()) as u64, page_size),
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
    fn finish(&mut self) -> Result<()> {
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
