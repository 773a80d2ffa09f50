//! Tests with images whose checksums are right and whose content is not: what somebody might make on purpose.

mod state;

use super::Error;
use super::codec::encode_state;
use super::header::Header;
use super::index::{Entry, Trailer};
use super::pages::{Codec, FrameHead, Run, Space};
use super::read::Reader;
use super::record::{Body, MAY_SKIP, RecordHeader, kind};
use super::sample::{self, HEAP, LIBRARY, PAGE};

/// An image made record by record.
struct Forge {
    image: Vec<u8>,
    index: Vec<u8>,
    records: u64,
}

impl Forge {
    fn new(header: Header) -> Self {
        Forge {
            image: header.to_bytes().to_vec(),
            index: vec![],
            records: 0,
        }
    }

    /// An image that begins with the state of the sample.
    fn with_state() -> Self {
        let (head, body) = encode_state(&sample::snapshot(3, 2), 1).unwrap();
        let mut forge = Forge::new(Header::new(sample::X86_64, PAGE as u32));
        forge.record(kind::STATE, &head, &body);
        forge
    }

    fn record(&mut self, kind: u16, head: &[u8], body: &[u8]) -> RecordHeader {
        let header = RecordHeader::new(kind, head, 0, &Body::new(body), self.image.len() as u64);
        self.push(header, head, body);
        header
    }

    fn push(&mut self, header: RecordHeader, head: &[u8], body: &[u8]) {
        self.image.extend_from_slice(&header.to_bytes());
        self.image.extend_from_slice(head);
        self.image.extend_from_slice(body);
        self.records += 1;
    }

    /// A record of the future.
    fn unknown(mut self, kind: u16, version: u16, flags: u32) -> Self {
        let mut header = RecordHeader {
            version,
            flags,
            ..RecordHeader::new(kind, b"head", 0, &Body::new(b"body"), 0)
        };
        header.sign(b"head", self.image.len() as u64);
        self.push(header, b"head", b"body");
        self
    }

    /// A frame, the same for all its pages.
    fn frame(mut self, codec: Codec, raw_len: u32, runs: Vec<Run>, body: &[u8]) -> Self {
        let head = FrameHead { codec, raw_len, runs }.to_bytes(PAGE as u32);
        let entry = Entry {
            offset: self.image.len() as u64,
            body_len: body.len() as u32,
            raw_len,
        };
        self.index.extend_from_slice(&entry.to_bytes());
        self.record(kind::PAGES, &head, body);
        self
    }

    /// A frame of one page that is not compressed.
    fn page(self, space: Space, offset: u64) -> Self {
        self.frame(
            Codec::Raw,
            PAGE as u32,
            vec![run(space, offset, PAGE, false)],
            &[7; PAGE as usize],
        )
    }

    fn finish(mut self) -> Vec<u8> {
        let index_offset = self.image.len() as u64;
        let index = std::mem::take(&mut self.index);
        let index_checksum = self.record(kind::INDEX, &[], &index).checksum;
        let file_len = self.image.len() as u64 + Trailer::RECORD_LEN;
        let trailer = Trailer {
            records: self.records + 1,
            file_len,
            index_offset,
            index_checksum,
        };
        self.record(kind::TRAILER, &trailer.to_bytes(), &[]);
        self.image
    }
}

fn run(space: Space, offset: u64, len: u64, zero: bool) -> Run {
    Run {
        space,
        offset,
        len,
        zero,
    }
}

fn read(image: &[u8]) -> Result<(), Error> {
    match Reader::open(image)?.pages(1, &|_| Ok(())) {
        Ok(_) => Ok(()),
        Err(error) => Err(error.downcast().expect("nothing else fails")),
    }
}

#[track_caller]
fn assert_damaged(image: &[u8], reason: &str) {
    match read(image) {
        Err(Error::Damaged(what)) => assert!(what.contains(reason), "{what}"),
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_forged_image_without_faults_is_read() {
    let forge = Forge::with_state()
        .page(Space::Process(0), HEAP)
        .page(Space::Shared(0), PAGE);
    read(&forge.finish()).unwrap();
}

#[test]
fn pages_outside_of_all_mappings_are_refused() {
    let elsewhere = [
        (Space::Process(0), 0),
        (Space::Process(0), HEAP - PAGE),
        (Space::Process(0), HEAP + 3 * PAGE),
        (Space::Process(0), 0x7fff_0000_0000), // of the shared object
        (Space::Process(0), 0x7fff_f000_0000), // of the kernel
        (Space::Process(0), u64::MAX - PAGE + 1 - PAGE),
        (Space::Process(1), HEAP),
        (Space::Inherited(1), HEAP),
        (Space::Process(u32::MAX), HEAP),
        (Space::Shared(0), 2 * PAGE),
        (Space::Shared(1), 0),
    ];
    for (space, offset) in elsewhere {
        assert_damaged(&Forge::with_state().page(space, offset).finish(), "lies in no mapping");
    }
}

#[test]
fn what_children_inherit_comes_first_and_alone() {
    let inherited = Forge::with_state()
        .page(Space::Inherited(0), HEAP)
        .page(Space::Process(0), HEAP + PAGE);
    read(&inherited.finish()).unwrap();
    let late = Forge::with_state()
        .page(Space::Process(0), HEAP + PAGE)
        .page(Space::Inherited(0), HEAP);
    assert_damaged(&late.finish(), "comes too late");
    let twice = Forge::with_state()
        .page(Space::Inherited(0), HEAP)
        .page(Space::Process(0), HEAP);
    assert_damaged(&twice.finish(), "is there twice");
    let mixed = vec![
        run(Space::Inherited(0), HEAP, PAGE, true),
        run(Space::Process(0), HEAP + PAGE, PAGE, true),
    ];
    let mixed = Forge::with_state().frame(Codec::Raw, 0, mixed, &[]);
    assert_damaged(&mixed.finish(), "belongs to two groups");
}

#[test]
fn a_run_that_leaves_its_mapping_is_refused() {
    let zeros = vec![run(Space::Process(0), HEAP, 4 * PAGE, true)];
    assert_damaged(
        &Forge::with_state().frame(Codec::Raw, 0, zeros, &[]).finish(),
        "lies in no mapping",
    );
}

#[test]
fn a_page_that_comes_twice_is_refused() {
    let twice = Forge::with_state()
        .page(Space::Process(0), HEAP)
        .page(Space::Process(0), HEAP);
    assert_damaged(&twice.finish(), "is there twice");
    let zeros = vec![
        run(Space::Process(0), LIBRARY, PAGE, true),
        run(Space::Process(0), LIBRARY, PAGE, true),
    ];
    assert_damaged(
        &Forge::with_state().frame(Codec::Raw, 0, zeros, &[]).finish(),
        "is there twice",
    );
}

#[test]
fn compressed_pages_must_have_the_length_they_claim() {
    let one = |body: &[u8]| {
        let runs = vec![run(Space::Process(0), HEAP, PAGE, false)];
        Forge::with_state().frame(Codec::Zstd, PAGE as u32, runs, body).finish()
    };
    read(&one(&zstd::bulk::compress(&[7; PAGE as usize], 1).unwrap())).unwrap();
    assert_damaged(
        &one(&zstd::bulk::compress(&[7; 100], 1).unwrap()),
        "100 bytes instead of 4096",
    );
    assert_damaged(
        &one(&zstd::bulk::compress(&vec![7; 100 << 20], 1).unwrap()),
        "the pages at byte",
    );
    assert_damaged(&one(b"not zstd"), "the pages at byte");
}

#[test]
fn a_frame_larger_than_frames_are_is_refused() {
    let mut snapshot = sample::snapshot(1 << 20, 1);
    snapshot.processes[0].memory.vmas[0].resident = 0;
    let (head, body) = encode_state(&snapshot, 1).unwrap();
    let mut forge = Forge::new(Header::new(sample::X86_64, PAGE as u32));
    forge.record(kind::STATE, &head, &body);
    let runs = vec![run(Space::Process(0), HEAP, 1 << 31, false)];
    assert_damaged(
        &forge.frame(Codec::Zstd, 1 << 31, runs, &[0; 64]).finish(),
        "another amount of memory",
    );
}

#[test]
fn records_of_the_future_are_passed_over_where_they_allow_it() {
    for (kind, version) in [(5, 1), (u16::MAX, 3), (kind::PAGES, 2)] {
        read(&Forge::with_state().unknown(kind, version, MAY_SKIP).finish()).unwrap();
        let image = Forge::with_state().unknown(kind, version, 0).finish();
        assert!(matches!(read(&image), Err(Error::Newer { .. })));
    }
}

#[test]
fn the_order_of_records_is_kept() {
    let no_state = Forge::new(Header::new(sample::X86_64, PAGE as u32));
    assert_damaged(&no_state.finish(), "does not begin with the state");
    let mut two_states = Forge::with_state();
    let (head, body) = encode_state(&sample::snapshot(3, 2), 1).unwrap();
    two_states.record(kind::STATE, &head, &body);
    assert_damaged(&two_states.finish(), "two states");
    let mut no_index = Forge::with_state();
    no_index.record(kind::TRAILER, &[], &[]);
    assert_damaged(&no_index.finish(), "its trailer comes before its index");
}

#[test]
fn an_index_or_a_trailer_of_another_image_is_refused() {
    let mut forge = Forge::with_state().page(Space::Process(0), HEAP);
    forge.index[3] ^= 1;
    assert_damaged(&forge.finish(), "the index lists other page frames");
    let mut forge = Forge::with_state();
    forge.records += 1;
    assert_damaged(&forge.finish(), "its trailer tells of another image");
}
