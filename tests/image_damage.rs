//! Every damage to an image is found: each byte changed, each length cut, anything added. Nothing panics, hangs or takes much memory.

mod image_sample;

use cryopod::image::Error;
use cryopod::image::read::Reader;
use cryopod::image::write::Compression;
use image_sample::image;
use std::alloc::{GlobalAlloc, Layout, System};
use std::io::Cursor;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

/// Counts what is allocated, so that a test can say how much that ever was.
struct Counting;

static NOW: AtomicUsize = AtomicUsize::new(0);
static PEAK: AtomicUsize = AtomicUsize::new(0);
/// The tests of this file run one at a time, for the sake of the count.
static ALONE: Mutex<()> = Mutex::new(());

// SAFETY: all work is the system allocator's; the counters touch no memory.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        let now = NOW.fetch_add(layout.size(), Ordering::Relaxed) + layout.size();
        PEAK.fetch_max(now, Ordering::Relaxed);
        // SAFETY: the caller's promise is passed on.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        NOW.fetch_sub(layout.size(), Ordering::Relaxed);
        // SAFETY: the caller's promise is passed on.
        unsafe { System.dealloc(pointer, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// Reads all of an image, as `cryopod verify` does.
fn read(image: &[u8]) -> Result<(), Error> {
    let mut reader = Reader::open(image)?;
    reader.snapshot()?;
    match reader.pages(1, &|_| Ok(())) {
        Ok(_) => Ok(()),
        Err(error) => Err(error.downcast().expect("nothing else fails")),
    }
}

/// Runs `body` and returns the most memory it held.
fn peak_of(body: impl FnOnce()) -> usize {
    let before = NOW.load(Ordering::Relaxed);
    PEAK.store(before, Ordering::Relaxed);
    body();
    PEAK.load(Ordering::Relaxed) - before
}

fn alone() -> std::sync::MutexGuard<'static, ()> {
    ALONE.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
}

#[test]
fn each_bit_of_a_compressed_image_counts() {
    let _alone = alone();
    let (mut image, _) = image(2, 1, Compression::Auto, 1);
    read(&image).unwrap();
    for at in 0..image.len() {
        for bit in [at % 8, (at + 5) % 8] {
            image[at] ^= 1 << bit;
            let peak = peak_of(|| assert!(read(&image).is_err(), "bit {bit} of byte {at} does not matter"));
            assert!(peak < 4 << 20, "byte {at}, bit {bit}: {peak} bytes were allocated");
            image[at] ^= 1 << bit;
        }
    }
}

#[test]
fn each_byte_of_an_uncompressed_image_counts() {
    let _alone = alone();
    let (mut image, _) = image(2, 1, Compression::None, 1);
    read(&image).unwrap();
    for at in 0..image.len() {
        let flip = 1 << (at % 8);
        image[at] ^= flip;
        assert!(read(&image).is_err(), "byte {at} does not matter");
        image[at] ^= flip;
    }
}

/// A compressed image cut everywhere, and an uncompressed one cut here and there, pages and padding included.
fn cut_images() -> impl Iterator<Item = Vec<u8>> {
    let (small, _) = image(2, 1, Compression::Auto, 1);
    let (large, _) = image(2, 1, Compression::None, 1);
    let small = (1..small.len()).map(move |len| small[..len].to_vec());
    small.chain((1..large.len()).step_by(17).map(move |len| large[..len].to_vec()))
}

#[test]
fn an_image_cut_anywhere_is_cut_off() {
    let _alone = alone();
    assert!(matches!(read(&[]), Err(Error::NotAnImage)));
    for cut in cut_images() {
        let peak = peak_of(|| match read(&cut) {
            Err(Error::CutOff) => (),
            other => panic!("cut to {} bytes: {other:?}", cut.len()),
        });
        assert!(
            peak < 4 << 20,
            "cut to {} bytes: {peak} bytes were allocated",
            cut.len()
        );
    }
}

#[test]
fn a_cut_image_is_noticed_by_a_listing_that_seeks() {
    let _alone = alone();
    for cut in cut_images() {
        let len = cut.len();
        let listed = Reader::open(Cursor::new(cut)).and_then(|reader| reader.list_seeking(&mut |_, _| ()));
        assert!(matches!(listed, Err(Error::CutOff)), "cut to {len} bytes: {listed:?}");
    }
}

#[test]
fn nothing_may_follow_an_image() {
    let _alone = alone();
    let (mut image, _) = image(2, 1, Compression::Auto, 1);
    image.push(0);
    assert!(matches!(read(&image), Err(Error::Damaged(_))));
}

#[test]
fn parts_left_out_doubled_or_exchanged_are_found() {
    let _alone = alone();
    let (image, _) = image(200, 1, Compression::None, 1);
    for len in [8, 40, 64, 100, 4096, 65536] {
        for at in (64..image.len() - 2 * len).step_by(4093) {
            let (begin, rest) = image.split_at(at);
            let (part, end) = rest.split_at(len);
            let (other, end_after_other) = end.split_at(len);
            let changed = [
                [begin, end].concat(),
                [begin, part, part, end].concat(),
                [begin, other, part, end_after_other].concat(),
            ];
            for changed in changed.into_iter().filter(|changed| *changed != image) {
                assert!(read(&changed).is_err(), "{len} bytes at {at}");
            }
        }
    }
}

#[test]
fn other_files_are_no_images() {
    let _alone = alone();
    let elf = std::fs::read("/proc/self/exe").unwrap();
    for file in [
        &b"\n"[..],
        b"\x7fELF",
        b"\x89PNG\r\n\x1a\n",
        &elf,
        &[0; 4096],
        &[0xff; 4096],
    ] {
        assert!(matches!(read(file), Err(Error::NotAnImage)));
    }
}

#[test]
fn noise_never_harms() {
    let _alone = alone();
    let (image, _) = image(2, 1, Compression::Auto, 1);
    // xorshift64, so that a failure can be had again.
    let mut state = 0x2545_f491_4f6c_dd1d_u64;
    let mut random = move || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state as usize
    };
    for _ in 0..5000 {
        let mut noisy = image.clone();
        for _ in 0..1 + random() % 8 {
            let at = random() % noisy.len();
            noisy[at] = random() as u8;
        }
        let peak = peak_of(|| assert!(noisy == image || read(&noisy).is_err()));
        assert!(peak < 4 << 20, "{peak} bytes were allocated");
    }
}
