//! The workers that read: each checks and decompresses frames of pages and hands out their runs.

use super::Error;
use super::input::{Record, check_body};
use super::pages::{Codec, FrameHead, PageRun, Run};
use crossbeam_channel::{Receiver, Sender};

/// A frame on its way from the reader to a worker.
pub struct Frame {
    pub record: Record,
    pub head: FrameHead,
    pub body: Vec<u8>,
}

/// A worker: takes frames until there are no more, or until it fails.
pub fn place_frames(
    work: &Receiver<Frame>,
    spent: &Sender<Vec<u8>>,
    failed: &Sender<anyhow::Error>,
    sink: &(dyn Fn(PageRun<'_>) -> anyhow::Result<()> + Sync),
) {
    let mut decompressor = Decompressor::default();
    for frame in work {
        let placed = decompressor
            .raw(&frame)
            .map_err(anyhow::Error::from)
            .and_then(|raw| place(&frame.head.runs, raw, sink));
        if let Err(error) = placed {
            // Each worker fails once at most, and there is room for all of them.
            let _ = failed.try_send(error);
            return;
        }
        let _ = spent.try_send(frame.body);
    }
}

fn place(
    runs: &[Run],
    mut raw: &[u8],
    sink: &(dyn Fn(PageRun<'_>) -> anyhow::Result<()> + Sync),
) -> anyhow::Result<()> {
    for &Run {
        space,
        offset,
        len,
        zero,
    } in runs
    {
        let bytes = match zero {
            true => None,
            false => {
                // FrameHead::from_bytes() made sure that the runs are as long as the content.
                let (bytes, rest) = raw.split_at(len as usize);
                raw = rest;
                Some(bytes)
            }
        };
        sink(PageRun {
            space,
            offset,
            len,
            bytes,
        })?;
    }
    Ok(())
}

/// A worker's buffer and decompressor, used again for each frame.
#[derive(Default)]
struct Decompressor {
    context: Option<zstd::bulk::Decompressor<'static>>,
    raw: Vec<u8>,
}

impl Decompressor {
    /// The content of a frame, once its checksum was compared.
    fn raw<'a>(&'a mut self, frame: &'a Frame) -> Result<&'a [u8], Error> {
        check_body(&frame.record, &frame.body)?;
        if frame.head.codec == Codec::Raw {
            return Ok(&frame.body);
        }
        let context = match &mut self.context {
            Some(context) => context,
            none => none.insert(zstd::bulk::Decompressor::new()?),
        };
        let raw_len = frame.head.raw_len as usize; // at most FRAME_MAX
        self.raw.resize(raw_len, 0);
        let damaged = |what: String| Error::damaged(format!("the pages at byte {}: {what}", frame.record.offset));
        match context.decompress_to_buffer(&frame.body, &mut self.raw[..]) {
            Ok(len) if len == raw_len => Ok(&self.raw),
            Ok(len) => Err(damaged(format!("{len} bytes instead of {raw_len}"))),
            Err(error) => Err(damaged(error.to_string())),
        }
    }
}
