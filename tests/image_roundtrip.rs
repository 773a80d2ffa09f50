//! What is written into an image is read from it again: all of the state, and every page once.

mod image_sample;

use cryopod::image::pages::{Extent, PageRun, Space, Zeros};
use cryopod::image::read::Reader;
use cryopod::image::write::{Compression, Options, Sink, write_image};
use image_sample::*;
use std::collections::HashMap;
use std::io::{self, Cursor, Write};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

type Pages = HashMap<(Space, u64), Option<Vec<u8>>>;

/// All pages of an image, each of which must come once.
fn read_pages(image: &[u8], jobs: usize) -> Pages {
    let pages = Mutex::new(Pages::new());
    let totals = Reader::open(image)
        .unwrap()
        .pages(jobs, &|run| {
            for i in 0..run.len / PAGE {
                let bytes = run
                    .bytes
                    .map(|bytes| bytes[(i * PAGE) as usize..][..PAGE as usize].to_vec());
                let before = pages.lock().unwrap().insert((run.space, run.offset / PAGE + i), bytes);
                assert!(before.is_none(), "page {} came twice", run.offset / PAGE + i);
            }
            Ok(())
        })
        .unwrap();
    assert_eq!(totals.file_bytes, image.len() as u64);
    pages.into_inner().unwrap()
}

fn expected_pages(heap: u64, object: u64) -> Pages {
    let mut pages = Pages::new();
    for extent in extents(heap, object) {
        for number in extent.offset / PAGE..(extent.offset + extent.len) / PAGE {
            let mut page = vec![0; PAGE as usize];
            fill(extent.space, number, &mut page);
            let zero = page.iter().all(|&byte| byte == 0);
            match (zero, extent.zeros) {
                (true, Zeros::LeaveOut) => continue,
                (true, Zeros::Keep) => pages.insert((extent.space, number), None),
                (false, _) => pages.insert((extent.space, number), Some(page)),
            };
        }
    }
    pages
}

#[test]
fn the_state_reads_back_as_written() {
    let (image, _) = image(3, 2, Compression::Auto, 1);
    let mut reader = Reader::open(&image[..]).unwrap();
    assert_eq!(reader.header().machine, X86_64);
    assert_eq!(reader.snapshot().unwrap(), snapshot(3, 2));
}

#[test]
fn every_page_comes_back_once_however_it_was_stored() {
    for compression in [Compression::None, Compression::Auto, Compression::Zstd(9)] {
        for jobs in [1, 4] {
            let (image, written) = image(1000, 200, compression, jobs);
            assert_eq!(written.file_bytes, image.len() as u64);
            assert_eq!(
                read_pages(&image, jobs),
                expected_pages(1000, 200),
                "{compression:?}, {jobs} jobs"
            );
        }
    }
}

#[test]
fn an_image_of_few_pages_reads_back() {
    let (image, _) = image(1, 1, Compression::None, 1);
    assert_eq!(read_pages(&image, 1), expected_pages(1, 1));
}

#[test]
fn pages_of_64_kib_come_back() {
    const LARGE: u64 = 65536;
    let mut snapshot = snapshot(16 * 20, 1);
    snapshot.processes[0].memory.vmas.truncate(1);
    let extents = [Extent {
        space: Space::Process(0),
        offset: HEAP,
        len: 20 * LARGE,
        zeros: Zeros::LeaveOut,
    }];
    let cancelled = AtomicBool::new(false);
    let options = Options {
        machine: 183,
        page_size: LARGE as u32,
        ..options(&|_| (), &cancelled)
    };
    let mut image = Vec::new();
    write_image(Sink::Stream(&mut image), &snapshot, &extents, &Pattern, &options).unwrap();
    let bytes = AtomicU64::new(0);
    let add = |run: PageRun<'_>| {
        assert!(run.offset.is_multiple_of(LARGE) && run.len.is_multiple_of(LARGE));
        bytes.fetch_add(run.len, Ordering::Relaxed);
        Ok(())
    };
    Reader::open(&image[..]).unwrap().pages(2, &add).unwrap();
    assert_eq!(bytes.into_inner(), 20 * LARGE);
}

#[test]
fn raw_pages_begin_at_a_page_of_the_file() {
    let (image, _) = image(40, 1, Compression::None, 1);
    let mut page = vec![0; PAGE as usize];
    let number = HEAP / PAGE + u64::from((HEAP / PAGE).is_multiple_of(3));
    fill(Space::Process(0), number, &mut page);
    assert!(image.chunks(PAGE as usize).any(|chunk| chunk == page));
}

#[test]
fn listing_by_seeking_and_by_reading_agree() {
    let (image, _) = image(300, 20, Compression::Auto, 2);
    let mut read = Vec::new();
    let by_reading = Reader::open(&image[..])
        .unwrap()
        .list(&mut |head, len| read.push((head.clone(), len)))
        .unwrap();
    let mut sought = Vec::new();
    let by_seeking = Reader::open(Cursor::new(&image))
        .unwrap()
        .list_seeking(&mut |head, len| sought.push((head.clone(), len)))
        .unwrap();
    assert_eq!(by_reading, by_seeking);
    assert_eq!(read, sought);
    assert!(!read.is_empty());
}

#[test]
fn progress_counts_all_memory() {
    let done = AtomicU64::new(0);
    let cancelled = AtomicBool::new(false);
    let progress = |bytes| done.store(bytes, Ordering::Relaxed);
    let options = options(&progress, &cancelled);
    write_image(
        Sink::Stream(&mut io::sink()),
        &snapshot(500, 9),
        &extents(500, 9),
        &Pattern,
        &options,
    )
    .unwrap();
    assert_eq!(done.into_inner(), (500 + 2 + 9) * PAGE);
}

#[test]
fn a_cancelled_image_is_an_error() {
    let cancelled = AtomicBool::new(false);
    let progress = |_| cancelled.store(true, Ordering::Relaxed);
    let options = options(&progress, &cancelled);
    let error = write_image(
        Sink::Stream(&mut io::sink()),
        &snapshot(5000, 9),
        &extents(5000, 9),
        &Pattern,
        &options,
    )
    .unwrap_err();
    assert!(error.is::<cryopod::image::write::Cancelled>(), "{error:#}");
}

#[test]
fn a_full_sink_ends_the_writing() {
    struct Full(usize);
    impl Write for Full {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0 = self
                .0
                .checked_sub(bytes.len())
                .ok_or_else(|| io::Error::from_raw_os_error(28))?;
            Ok(bytes.len())
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }
    let cancelled = AtomicBool::new(false);
    let options = options(&|_| (), &cancelled);
    for room in [0, 10, 5000, 1 << 20] {
        let error = write_image(
            Sink::Stream(&mut Full(room)),
            &snapshot(5000, 9),
            &extents(5000, 9),
            &Pattern,
            &options,
        )
        .unwrap_err();
        assert_eq!(
            format!("{error:#}"),
            "write the image: No space left on device (os error 28)"
        );
    }
}

#[test]
fn memory_that_cannot_be_read_ends_the_writing() {
    struct Broken;
    impl cryopod::image::pages::PageSource for Broken {
        fn read(&self, _: Space, _: u64, _: &mut [u8]) -> io::Result<()> {
            Err(io::Error::from_raw_os_error(5))
        }
    }
    let cancelled = AtomicBool::new(false);
    let options = options(&|_| (), &cancelled);
    let error = write_image(
        Sink::Stream(&mut io::sink()),
        &snapshot(5000, 9),
        &extents(5000, 9),
        &Broken,
        &options,
    )
    .unwrap_err();
    assert!(
        format!("{error:#}").ends_with("Input/output error (os error 5)"),
        "{error:#}"
    );
}

#[test]
fn memory_outside_of_all_mappings_is_not_written() {
    let cancelled = AtomicBool::new(false);
    let options = options(&|_| (), &cancelled);
    let mut stray = extents(5, 2);
    stray[0].len += PAGE;
    let error = write_image(
        Sink::Stream(&mut io::sink()),
        &snapshot(5, 2),
        &stray,
        &Pattern,
        &options,
    )
    .unwrap_err();
    assert!(format!("{error:#}").contains("lies in no mapping"), "{error:#}");
}

#[test]
fn a_sink_of_pages_that_fails_ends_the_reading() {
    let (image, _) = image(5000, 9, Compression::Auto, 2);
    let error = Reader::open(&image[..])
        .unwrap()
        .pages(2, &|_| anyhow::bail!("no room"))
        .unwrap_err();
    assert_eq!(format!("{error:#}"), "no room");
}

fn options<'a>(progress: &'a (dyn Fn(u64) + Sync), cancelled: &'a AtomicBool) -> Options<'a> {
    Options {
        machine: X86_64,
        page_size: PAGE as u32,
        compression: Compression::Auto,
        jobs: 3,
        progress,
        cancelled,
    }
}
