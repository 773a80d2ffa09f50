//! `--compress auto`: pages go raw while the sink keeps up, and compressed while it does not. Sizes are compared, not times.

mod image_sample;

use cryopod::image::pages::{PageSource, Space};
use cryopod::image::read::Reader;
use cryopod::image::write::{Compression, Options, Sink, WriteAt, Written, write_image};
use image_sample::{PAGE, X86_64, extents, snapshot};
use std::io::{self, Write};
use std::sync::Mutex;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

const MIB: u64 = 1 << 20;

/// What compresses like the memory of programs.
struct Heap;

impl PageSource for Heap {
    fn read(&self, _: Space, offset: u64, buffer: &mut [u8]) -> io::Result<()> {
        for (at, object) in buffer.chunks_mut(64).enumerate() {
            let number = offset / 64 + at as u64;
            object[..8].copy_from_slice(&(0x55d0_1234_0000 + number % 61 * 0x48).to_le_bytes());
            object[8..16].copy_from_slice(&number.wrapping_mul(0x9e37_79b9_7f4a_7c15).to_le_bytes());
            object[16..].copy_from_slice(b"{\"user\": null, \"path\": \"/index.html\", \"size\": 1}");
        }
        Ok(())
    }
}

fn write(mib: u64, sink: Sink<'_>) -> Written {
    let cancelled = AtomicBool::new(false);
    let options = Options {
        machine: X86_64,
        page_size: PAGE as u32,
        compression: Compression::Auto,
        jobs: 2,
        progress: &|_| (),
        cancelled: &cancelled,
    };
    let pages = mib * MIB / PAGE;
    write_image(sink, &snapshot(pages, 9), &extents(pages, 9), &Heap, &options).unwrap()
}

/// Takes so many bytes a second, from each thread.
fn throttle(bytes: usize, rate: u64) {
    std::thread::sleep(Duration::from_nanos(bytes as u64 * 1_000_000_000 / rate));
}

struct SlowStream(Vec<u8>, u64);

impl Write for SlowStream {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let len = bytes.len().min(64 << 10);
        throttle(len, self.1);
        self.0.extend_from_slice(&bytes[..len]);
        Ok(len)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// A file in memory.
struct SlowFile(Mutex<Vec<u8>>, u64);

impl WriteAt for SlowFile {
    fn write_all_at(&self, parts: &[&[u8]], offset: u64) -> io::Result<()> {
        let bytes = parts.concat();
        throttle(bytes.len(), self.1);
        let mut file = self.0.lock().unwrap();
        let end = offset as usize + bytes.len();
        if file.len() < end {
            file.resize(end, 0);
        }
        file[offset as usize..end].copy_from_slice(&bytes);
        Ok(())
    }
}

struct Nowhere;

impl WriteAt for Nowhere {
    fn write_all_at(&self, _: &[&[u8]], _: u64) -> io::Result<()> {
        Ok(())
    }
}

fn check(image: &[u8]) {
    Reader::open(image).unwrap().pages(2, &|_| Ok(())).unwrap();
}

#[test]
fn a_slow_stream_gets_a_small_image() {
    let mut sink = SlowStream(Vec::new(), 20_000_000);
    let written = write(64, Sink::Stream(&mut sink));
    assert!(written.file_bytes * 4 < written.stored_bytes, "{written:?}");
    check(&sink.0);
}

#[test]
fn a_fast_stream_gets_pages_as_they_are() {
    let written = write(512, Sink::Stream(&mut io::sink()));
    assert!(written.file_bytes * 2 > written.stored_bytes, "{written:?}");
}

#[test]
fn a_slow_file_gets_a_small_image() {
    let file = SlowFile(Mutex::new(Vec::new()), 20_000_000);
    let written = write(256, Sink::File(&file));
    assert!(written.file_bytes * 3 < written.stored_bytes, "{written:?}");
    check(&file.0.lock().unwrap());
}

#[test]
fn a_fast_file_gets_pages_as_they_are() {
    let written = write(512, Sink::File(&Nowhere));
    assert!(written.file_bytes * 2 > written.stored_bytes, "{written:?}");
}

/// Nothing of an image depends on which of the two wrote it but where its frames lie.
#[test]
fn a_file_has_the_same_content_as_a_stream() {
    let mut stream = Vec::new();
    let file = SlowFile(Mutex::new(Vec::new()), u64::MAX);
    let written = (write(3, Sink::Stream(&mut stream)), write(3, Sink::File(&file)));
    assert_eq!(written.0.stored_bytes, written.1.stored_bytes);
    let content = |image: &[u8]| {
        let runs = Mutex::new(Vec::new());
        let take = |run: cryopod::image::pages::PageRun<'_>| {
            let pages = run.bytes.unwrap_or_default().chunks(PAGE as usize).enumerate();
            let pages = pages.map(|(at, page)| (run.space, run.offset + at as u64 * PAGE, page.to_vec()));
            runs.lock().unwrap().extend(pages);
            Ok(())
        };
        Reader::open(image).unwrap().pages(2, &take).unwrap();
        let mut runs = runs.into_inner().unwrap();
        runs.sort();
        runs
    };
    assert!(content(&stream) == content(&file.0.lock().unwrap()));
}
