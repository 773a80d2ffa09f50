//! The workers that write: each reads a frame of pages, leaves out the zeros, and compresses the rest.

use super::pace::Pace;
use super::pages::{Codec, Extent, FRAME_LEN, FrameHead, PageSource, Run, Space, Zeros};
use super::record::Body;
use super::write::{Compression, Options};
use anyhow::{Context, Result};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

/// The level of [`Compression::Auto`]: faster than most disks.
const AUTO_LEVEL: i32 = 1;

/// A frame on its way from a worker to the writer.
pub struct Frame {
    pub head: FrameHead,
    pub body: Vec<u8>,
    pub body_hash: u64,
    /// Bytes of memory it stands for, zeros included.
    pub memory: u64,
}

pub struct Worker<'a> {
    pub cursor: &'a Mutex<Cursor<'a>>,
    pub source: &'a dyn PageSource,
    pub options: &'a Options<'a>,
    /// Of [`Compression::Auto`].
    pub pace: &'a Pace,
    /// Set by whoever fails: the others need not go on.
    pub failed: &'a AtomicBool,
}

impl Worker<'_> {
    /// Makes frames and delivers them until there are no more, or until `deliver` says by None that nobody wants more. What it returns
    /// otherwise is a buffer to use again.
    pub fn run(&self, deliver: impl FnMut(Frame) -> Result<Option<Vec<u8>>>) -> Result<()> {
        let made = self.make_frames(deliver);
        made.inspect_err(|_| self.failed.store(true, Ordering::Relaxed))
    }

    fn make_frames(&self, mut deliver: impl FnMut(Frame) -> Result<Option<Vec<u8>>>) -> Result<()> {
        let mut maker = Maker {
            worker: self,
            compressor: None,
            raw: Vec::new(),
            spare: Vec::new(),
        };
        while !self.options.cancelled.load(Ordering::Relaxed) && !self.failed.load(Ordering::Relaxed) {
            let pieces = self.next_pieces();
            if pieces.is_empty() {
                break;
            }
            let frame = maker.frame(&pieces)?;
            match deliver(frame)? {
                Some(spare) => maker.spare = spare,
                None => break,
            }
        }
        Ok(())
    }

    fn next_pieces(&self) -> Vec<Extent> {
        let mut cursor = self.cursor.lock().expect("no worker panics with the cursor in hand");
        cursor.next_frame()
    }
}

/// What a worker uses again for each frame.
struct Maker<'w, 'a> {
    worker: &'w Worker<'a>,
    compressor: Option<zstd::bulk::Compressor<'static>>,
    /// Where memory is read to.
    raw: Vec<u8>,
    spare: Vec<u8>,
}

impl Maker<'_, '_> {
    fn frame(&mut self, pieces: &[Extent]) -> Result<Frame> {
        let (runs, raw_len) = self.read(pieces)?;
        let memory = pieces.iter().map(|piece| piece.len).sum();
        let (codec, body) = self.body(raw_len)?;
        let body_hash = Body::new(&body).hash;
        let raw_len = raw_len as u32; // at most FRAME_LEN
        Ok(Frame {
            head: FrameHead { codec, raw_len, runs },
            body,
            body_hash,
            memory,
        })
    }

    /// Reads the pieces, closed up over the pages of zeros, and says what is there and how many bytes that takes.
    fn read(&mut self, pieces: &[Extent]) -> Result<(Vec<Run>, usize)> {
        let page_size = self.worker.options.page_size as usize;
        let mut runs = Vec::new();
        let mut kept = 0;
        // Only what a spare buffer lacks is filled with zeros, which nobody will see.
        self.raw.resize(FRAME_LEN, 0);
        for piece in pieces {
            let memory = &mut self.raw[kept..kept + piece.len as usize];
            let read = self.worker.source.read(piece.space, piece.offset, memory);
            read.with_context(|| {
                format!(
                    "read {} bytes of memory at {:#x} of {:?}",
                    piece.len, piece.offset, piece.space
                )
            })?;
            kept += thin_out(piece, memory, page_size, &mut runs);
        }
        Ok((runs, kept))
    }

    /// What was read, compressed where that is wanted and makes it smaller.
    fn body(&mut self, raw_len: usize) -> Result<(Codec, Vec<u8>)> {
        let mut body = std::mem::take(&mut self.spare);
        if let Some(level) = self.level(raw_len) {
            let compressor = match &mut self.compressor {
                Some(compressor) => compressor,
                none => none.insert(zstd::bulk::Compressor::new(level).context("start a compressor")?),
            };
            body.clear();
            body.reserve(zstd::zstd_safe::compress_bound(raw_len));
            let begin = Instant::now();
            compressor
                .compress_to_buffer(&self.raw[..raw_len], &mut body)
                .context("compress memory")?;
            self.worker.pace.compressed(raw_len, begin.elapsed());
            if body.len() < raw_len {
                return Ok((Codec::Zstd, body));
            }
        }
        // The memory itself goes on its way, and the next frame is read to the other buffer.
        std::mem::swap(&mut self.raw, &mut body);
        body.truncate(raw_len);
        Ok((Codec::Raw, body))
    }

    /// The level to compress the next frame with.
    fn level(&self, raw_len: usize) -> Option<i32> {
        match self.worker.options.compression {
            Compression::None => None,
            Compression::Auto => self.worker.pace.compresses(raw_len).then_some(AUTO_LEVEL),
            Compression::Zstd(level) => Some(level),
        }
    }
}

/// Moves the pages of a piece that are not zeros to its beginning, lists them, and says how many bytes they are.
fn thin_out(piece: &Extent, memory: &mut [u8], page_size: usize, runs: &mut Vec<Run>) -> usize {
    let mut kept = 0;
    // Runs end where pieces end: the next piece may belong to another mapping.
    let first = runs.len();
    for at in (0..memory.len()).step_by(page_size) {
        let zero = is_zero(&memory[at..at + page_size]);
        if zero && piece.zeros == Zeros::LeaveOut {
            continue;
        }
        push_page(
            runs,
            first,
            piece.offset + at as u64,
            page_size as u64,
            (piece.space, zero),
        );
        if !zero {
            if kept != at {
                memory.copy_within(at..at + page_size, kept);
            }
            kept += page_size;
        }
    }
    kept
}

fn push_page(runs: &mut Vec<Run>, first: usize, offset: u64, len: u64, (space, zero): (Space, bool)) {
    match runs[first..].last_mut() {
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
pub struct Cursor<'a> {
    extents: &'a [Extent],
    /// Bytes of the first extent that were handed out.
    taken: u64,
}

impl<'a> Cursor<'a> {
    pub fn new(extents: &'a [Extent]) -> Self {
        Cursor { extents, taken: 0 }
    }

    /// Pieces of [`FRAME_LEN`] bytes together, fewer only at the end; none when all is handed out.
    pub fn next_frame(&mut self) -> Vec<Extent> {
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

#[cfg(test)]
mod tests {
    use super::*;

    const PAGE: usize = 4096;

    fn piece(zeros: Zeros, pages: u64) -> Extent {
        Extent {
            space: Space::Process(0),
            offset: 0x10000,
            len: pages * PAGE as u64,
            zeros,
        }
    }

    fn run(page: u64, pages: u64, zero: bool) -> Run {
        Run {
            space: Space::Process(0),
            offset: 0x10000 + page * PAGE as u64,
            len: pages * PAGE as u64,
            zero,
        }
    }

    /// Pages of one byte each.
    fn memory(pages: &[u8]) -> Vec<u8> {
        pages.iter().flat_map(|&byte| [byte; PAGE]).collect()
    }

    #[test]
    fn zeros_of_anonymous_memory_are_left_out() {
        let mut memory = memory(&[0, 1, 2, 0, 3]);
        let mut runs = Vec::new();
        assert_eq!(
            thin_out(&piece(Zeros::LeaveOut, 5), &mut memory, PAGE, &mut runs),
            3 * PAGE
        );
        assert_eq!(runs, [run(1, 2, false), run(4, 1, false)]);
        assert_eq!((memory[0], memory[PAGE], memory[2 * PAGE]), (1, 2, 3));
    }

    #[test]
    fn zeros_of_file_pages_are_listed() {
        let mut memory = memory(&[0, 0, 2]);
        let mut runs = Vec::new();
        assert_eq!(thin_out(&piece(Zeros::Keep, 3), &mut memory, PAGE, &mut runs), PAGE);
        assert_eq!(runs, [run(0, 2, true), run(2, 1, false)]);
        assert_eq!(memory[0], 2);
    }

    #[test]
    fn runs_end_where_mappings_end() {
        let mut runs = Vec::new();
        let next = Extent {
            offset: 0x10000 + PAGE as u64,
            ..piece(Zeros::LeaveOut, 1)
        };
        for piece in [piece(Zeros::LeaveOut, 1), next] {
            thin_out(&piece, &mut memory(&[1]), PAGE, &mut runs);
        }
        assert_eq!(runs, [run(0, 1, false), run(1, 1, false)]);
    }

    #[test]
    fn a_last_byte_makes_a_page() {
        let mut page = vec![0; PAGE];
        assert!(is_zero(&page));
        page[PAGE - 1] = 1;
        assert!(!is_zero(&page));
    }

    #[test]
    fn small_extents_share_a_frame_and_large_ones_are_cut() {
        let frame = FRAME_LEN as u64 / PAGE as u64;
        let extents = [piece(Zeros::Keep, 3), piece(Zeros::LeaveOut, 2 * frame)];
        let mut cursor = Cursor::new(&extents);
        let pages: Vec<Vec<u64>> = std::iter::from_fn(|| Some(cursor.next_frame()).filter(|pieces| !pieces.is_empty()))
            .map(|pieces| pieces.iter().map(|piece| piece.len / PAGE as u64).collect())
            .collect();
        assert_eq!(pages, [vec![3, frame - 3], vec![frame], vec![3]]);
    }
}
