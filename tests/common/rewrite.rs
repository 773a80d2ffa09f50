//! Images whose state was changed by somebody who knows the format: every checksum is right.

use cryopod::image::pages::{Extent, PageSource, Space, Zeros};
use cryopod::image::read::Reader;
use cryopod::image::state::Snapshot;
use cryopod::image::write::{Compression, Options, Sink, write_image};
use std::collections::BTreeMap;
use std::fs::File;
use std::io;
use std::path::Path;
use std::sync::Mutex;
use std::sync::atomic::AtomicBool;

/// All memory of an image, by place; `None` are zeros.
#[derive(Default)]
struct Memory(BTreeMap<(u8, u32, u64), Option<Vec<u8>>>);

fn key(space: Space, offset: u64) -> (u8, u32, u64) {
    match space {
        Space::Inherited(index) => (0, index, offset),
        Space::Process(index) => (1, index, offset),
        Space::Shared(index) => (2, index, offset),
    }
}

const PAGE: usize = 4096;

impl Memory {
    fn extents(&self) -> Vec<Extent> {
        let extent = |&(kind, index, offset): &(u8, u32, u64)| Extent {
            space: match kind {
                0 => Space::Inherited(index),
                1 => Space::Process(index),
                _ => Space::Shared(index),
            },
            offset,
            len: PAGE as u64,
            zeros: Zeros::Keep,
        };
        self.0.keys().map(extent).collect()
    }
}

impl PageSource for Memory {
    fn read(&self, space: Space, offset: u64, buffer: &mut [u8]) -> io::Result<()> {
        for (i, page) in buffer.chunks_mut(PAGE).enumerate() {
            let page_at = key(space, offset + (i * PAGE) as u64);
            match self.0.get(&page_at).ok_or(io::ErrorKind::NotFound)? {
                Some(bytes) => page.copy_from_slice(bytes),
                None => page.fill(0),
            }
        }
        Ok(())
    }
}

/// Writes the image once more, with the state that `change` makes of it.
pub fn rewrite(image: &Path, change: impl FnOnce(&mut Snapshot)) {
    try_rewrite(image, change).expect("it can be written");
}

/// The same for changes that the writer may see through: it checks a state as the reader does.
pub fn try_rewrite(image: &Path, change: impl FnOnce(&mut Snapshot)) -> anyhow::Result<()> {
    let mut reader = Reader::open(File::open(image).expect("it was written")).expect("it is an image");
    let mut snapshot = reader.snapshot().expect("it has a state");
    let (machine, page_size) = (reader.header().machine, reader.header().page_size);
    let memory = Mutex::new(Memory::default());
    reader
        .pages(2, &|run| {
            let mut memory = memory.lock().expect("no reader panics");
            for at in (0..run.len as usize).step_by(PAGE) {
                let page = run.bytes.map(|bytes| bytes[at..at + PAGE].to_vec());
                memory.0.insert(key(run.space, run.offset + at as u64), page);
            }
            Ok(())
        })
        .expect("it is whole");
    let memory = memory.into_inner().expect("no reader panics");
    change(&mut snapshot);
    let options = Options {
        compression: Compression::Auto,
        jobs: 2,
        machine,
        page_size,
        progress: &|_| {},
        cancelled: &AtomicBool::new(false),
    };
    let mut file = File::create(image).expect("it is ours");
    write_image(Sink::Stream(&mut file), &snapshot, &memory.extents(), &memory, &options).map(drop)
}
