//! The workers that read: each checks and decompresses frames of pages and hands out their runs.

use super::Error;
use super::input::{Record, check_body};
use super::pages::{Codec, FrameHead, PageRun, Run};
use super::read::Sink;
use anyhow::Context;
use crossbeam_channel::{Receiver, Sender};
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

/// A frame on its way from the reader to a worker.
pub struct Frame {
    pub record: Record,
    pub head: FrameHead,
    pub body: Body,
}

pub enum Body {
    Here(Vec<u8>),
    /// In the file, from this byte on.
    At(u64),
}

/// What workers share.
pub struct Placing<'a> {
    pub sink: Sink<'a>,
    /// The image, where bodies are left in it.
    pub file: Option<&'a File>,
    /// Buffers to use again.
    pub spent: Sender<Vec<u8>>,
    pub failed: Sender<anyhow::Error>,
}

impl Placing<'_> {
    /// A worker: takes frames until there are no more, or until it fails.
    pub fn run(&self, work: &Receiver<Frame>) {
        let mut decompressor = Decompressor::default();
        let mut own = Vec::new();
        for mut frame in work {
            let placed = self.body(&mut frame, &mut own).and_then(|body| {
                let raw = decompressor.raw(&frame.record, &frame.head, &body)?;
                place(&frame.head.runs, raw, self.sink)?;
                Ok(body)
            });
            match placed {
                Ok(body) if self.file.is_some() => own = body,
                Ok(body) => drop(self.spent.try_send(body)),
                Err(error) => {
                    // Each worker fails once at most, and there is room for all of them.
                    let _ = self.failed.try_send(error);
                    return;
                }
            }
        }
    }

    /// The body of a frame. The worker itself reads it, so that it is in the cache of its processor; `own` is its buffer.
    fn body(&self, frame: &mut Frame, own: &mut Vec<u8>) -> anyhow::Result<Vec<u8>> {
        match (&mut frame.body, self.file) {
            (&mut Body::At(offset), Some(file)) => {
                let mut body = std::mem::take(own);
                body.resize(frame.record.header.body_len as usize, 0); // FrameHead bounds it
                match file.read_exact_at(&mut body, offset) {
                    Ok(()) => Ok(body),
                    Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => Err(Error::CutOff.into()),
                    Err(error) => Err(error).with_context(|| format!("read the image at byte {offset}")),
                }
            }
            (Body::Here(body), _) => Ok(std::mem::take(body)),
            (Body::At(_), None) => unreachable!("bodies are left in files only"),
        }
    }
}

fn place(runs: &[Run], mut raw: &[u8], sink: Sink<'_>) -> anyhow::Result<()> {
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
    fn raw<'a>(&'a mut self, record: &Record, head: &FrameHead, body: &'a [u8]) -> Result<&'a [u8], Error> {
        check_body(record, body)?;
        if head.codec == Codec::Raw {
            return Ok(body);
        }
        let context = match &mut self.context {
            Some(context) => context,
            none => none.insert(zstd::bulk::Decompressor::new()?),
        };
        let raw_len = head.raw_len as usize; // at most FRAME_MAX
        self.raw.resize(raw_len, 0);
        let damaged = |what: String| Error::damaged(format!("the pages at byte {}: {what}", record.offset));
        match context.decompress_to_buffer(body, &mut self.raw[..]) {
            Ok(len) if len == raw_len => Ok(&self.raw),
            Ok(len) => Err(damaged(format!("{len} bytes instead of {raw_len}"))),
            Err(error) => Err(damaged(error.to_string())),
        }
    }
}
