//! Writes an image in one pass: workers read, thin out and compress frames of pages. Into a stream the caller alone puts them; into a
//! file each worker puts its own, while they are still in the cache of its processor.

use super::coverage::{Coverage, Order};
use super::header::Header;
use super::output::{FileFrames, Frames, Output, StreamFrames};
use super::pace::Pace;
use super::pages::{Codec, Extent, PageSource};
use super::record::{Body, kind};
use super::state::Snapshot;
use super::worker::{Cursor, Frame, Worker};
use super::{codec, validate};
use anyhow::{Context, Result, anyhow, bail};
use crossbeam_channel::bounded;
use std::fmt;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

pub use super::output::{Sink, WriteAt};

/// How pages are stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Compression {
    /// None while the sink takes frames faster than they could be compressed; fast compression while it does not.
    Auto,
    /// zstd of a level (zstd(1)), of what becomes smaller by it.
    Zstd(i32),
    None,
}

const STATE_LEVEL: i32 = 1;
/// For each worker there are up to four buffers of [`super::pages::FRAME_LEN`] and a compressor: 64 MiB in all, at fast levels.
const JOBS_MAX: usize = 32;

pub struct Options<'a> {
    /// e_machine and page size of the processes.
    pub machine: u16,
    pub page_size: u32,
    pub compression: Compression,
    /// Threads that read and compress; 0 means as many as there are CPUs.
    pub jobs: usize,
    /// Called with the bytes of memory done so far, by one thread at a time.
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
    sink: Sink<'_>,
    snapshot: &Snapshot,
    extents: &[Extent],
    source: &dyn PageSource,
    options: &Options<'_>,
) -> Result<Written> {
    check(snapshot, extents, options).context("what was recorded cannot be an image")?;
    let mut output = Output::new(sink);
    output.header(Header::new(options.machine, options.page_size))?;
    let (head, state) = codec::encode_state(snapshot, STATE_LEVEL)?;
    output.record(kind::STATE, &head, &Body::new(&state))?;
    let jobs = job_count(options.jobs).min(useful_jobs(extents));
    let mut frames = output.frames(options.page_size);
    let pace = match &frames {
        Frames::Stream(_) => Pace::of_stream(jobs),
        Frames::File(_) => Pace::of_file(),
    };
    let mut tally = Tally::default();
    for group in extents.chunk_by(|a, b| a.space.heirs_of() == b.space.heirs_of()) {
        let cursor = Mutex::new(Cursor::new(group));
        let worker = Worker {
            cursor: &cursor,
            source,
            options,
            pace: &pace,
            failed: &AtomicBool::new(false),
        };
        tally = match &mut frames {
            Frames::Stream(frames) => write_stream(frames, jobs, &worker, tally),
            Frames::File(frames) => write_file(frames, jobs, &worker, tally),
        }?;
    }
    let written = tally.written;
    if options.cancelled.load(Ordering::Relaxed) {
        bail!(Cancelled);
    }
    let file_bytes = output.finish()?;
    Ok(Written { file_bytes, ..written })
}

/// An image that its own reader would refuse must not be written: the program may exist nowhere else afterwards.
fn check(snapshot: &Snapshot, extents: &[Extent], options: &Options<'_>) -> Result<()> {
    let header = Header::new(options.machine, options.page_size);
    validate::validate(snapshot, &header).map_err(|reason| anyhow!(reason))?;
    let mut coverage = Coverage::new(snapshot, options.page_size);
    let mut order = Order::default();
    for extent in extents {
        order.add(extent.space).map_err(|reason| anyhow!(reason))?;
        coverage
            .add(extent.space, extent.offset, extent.len)
            .map_err(|reason| anyhow!(reason))?;
    }
    Ok(())
}

/// Workers make frames, and the caller writes them.
fn write_stream(frames: &mut StreamFrames<'_>, jobs: usize, worker: &Worker<'_>, mut tally: Tally) -> Result<Tally> {
    let (finished, to_write) = bounded::<Frame>(jobs);
    let (spent, spares) = bounded(jobs);
    std::thread::scope(|scope| {
        let workers: Vec<_> = (0..jobs)
            .map(|_| {
                let (finished, spares) = (finished.clone(), spares.clone());
                // The writer hangs up when it has failed.
                let deliver = move |frame| {
                    Ok(finished
                        .send(frame)
                        .ok()
                        .map(|()| spares.try_recv().unwrap_or_default()))
                };
                scope.spawn(move || worker.run(deliver))
            })
            .collect();
        drop((finished, spares));
        let written = to_write.iter().try_for_each(|frame| {
            timed(&frame, worker.pace, || frames.write(&frame))?;
            tally.add(&frame, worker.options);
            // A full shelf of spare buffers only means that this one is not needed.
            let _ = spent.try_send(frame.body);
            Ok(())
        });
        // Ends the workers at their next frame, whatever the reason.
        drop(to_write);
        join(workers).and(written).map(|()| tally)
    })
}

/// Each worker writes its own frames.
fn write_file(frames: &FileFrames<'_>, jobs: usize, worker: &Worker<'_>, tally: Tally) -> Result<Tally> {
    let tally = Mutex::new(tally);
    let deliver = |frame: Frame| {
        timed(&frame, worker.pace, || frames.write(&frame))?;
        let mut tally = tally.lock().expect("no worker panics with the tally in hand");
        tally.add(&frame, worker.options);
        Ok(Some(frame.body))
    };
    if jobs == 1 {
        worker.run(deliver)?;
    } else {
        std::thread::scope(|scope| join((0..jobs).map(|_| scope.spawn(|| worker.run(deliver))).collect()))?;
    }
    Ok(tally.into_inner().expect("no worker panicked"))
}

/// An error of the first that has one. Whoever spawned them waits for the others.
fn join(workers: Vec<std::thread::ScopedJoinHandle<'_, Result<()>>>) -> Result<()> {
    workers
        .into_iter()
        .try_for_each(|worker| worker.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)))
}

fn timed(frame: &Frame, pace: &Pace, write: impl FnOnce() -> Result<()>) -> Result<()> {
    let begin = Instant::now();
    write()?;
    if frame.head.codec == Codec::Raw {
        pace.wrote_raw(frame.body.len(), begin.elapsed());
    }
    Ok(())
}

#[derive(Default)]
struct Tally {
    written: Written,
    memory: u64,
}

impl Tally {
    fn add(&mut self, frame: &Frame, options: &Options<'_>) {
        let raw_len = u64::from(frame.head.raw_len);
        self.memory += frame.memory;
        self.written.stored_bytes += raw_len;
        self.written.compressed_bytes += frame.body.len() as u64;
        self.written.zero_bytes += frame.memory - raw_len;
        (options.progress)(self.memory);
    }
}

/// A thread takes as long to start as half a megabyte takes to be written.
fn useful_jobs(extents: &[Extent]) -> usize {
    const WORTH_A_THREAD: u64 = 2 << 20;
    let memory: u64 = extents.iter().map(|extent| extent.len).sum();
    usize::try_from(memory / WORTH_A_THREAD).unwrap_or(usize::MAX).max(1)
}

pub(super) fn job_count(asked: usize) -> usize {
    let jobs = match asked {
        0 => std::thread::available_parallelism().map_or(1, usize::from),
        jobs => jobs,
    };
    jobs.min(JOBS_MAX)
}
