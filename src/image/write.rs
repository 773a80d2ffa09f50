//! Writes an image in one pass: workers read, thin out and compress frames of pages, and one writer, the caller, puts them in the file.

use super::coverage::Coverage;
use super::header::Header;
use super::output::Output;
use super::pages::{Extent, PageSource};
use super::record::{Body, kind};
use super::state::Snapshot;
use super::worker::{Cursor, Frame, Worker};
use super::{codec, validate};
use anyhow::{Context, Result, anyhow, bail};
use crossbeam_channel::{Receiver, Sender, bounded};
use std::fmt;
use std::io::Write;
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

const STATE_LEVEL: i32 = 3;
/// For each worker there are up to four buffers of [`super::pages::FRAME_LEN`] and a compressor: 64 MiB in all, at fast levels.
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
    let (spent, spares) = bounded(jobs);
    std::thread::scope(|scope| {
        for _ in 0..jobs {
            let worker = Worker {
                cursor: &cursor,
                source,
                options,
                frames: frames.clone(),
                spares: spares.clone(),
                raw: Vec::new(),
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
