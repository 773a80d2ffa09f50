//! Where the content of an image comes from: the memory of the stopped processes, and the files of its shared objects.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::FileExt;

use anyhow::{Context, Result};
use nix::unistd::{Whence, lseek};

use crate::arch::PAGE_SIZE as PAGE;
use crate::image::pages::{PageSource, Space};
use crate::tracer::ProcessMemory;

/// Reads from any number of threads at once.
pub struct Source<'a> {
    /// Of each process.
    memories: Vec<&'a ProcessMemory>,
    objects: Vec<File>,
}

impl<'a> Source<'a> {
    pub fn new(memories: Vec<&'a ProcessMemory>, objects: Vec<OwnedFd>) -> Self {
        Source {
            memories,
            objects: objects.into_iter().map(File::from).collect(),
        }
    }

    pub fn into_objects(self) -> Vec<File> {
        self.objects
    }
}

impl PageSource for Source<'_> {
    fn read(&self, space: Space, offset: u64, buffer: &mut [u8]) -> io::Result<()> {
        let memory = match space {
            Space::Process(index) | Space::Inherited(index) => self.memories.get(index as usize),
            Space::Shared(_) => None,
        };
        match memory {
            Some(memory) => memory.read_at(offset, buffer),
            None => read_object(&self.objects, space, offset, buffer),
        }
    }
}

/// Reads one of the shared objects.
pub fn read_object(objects: &[File], space: Space, offset: u64, buffer: &mut [u8]) -> io::Result<()> {
    match space {
        Space::Shared(index) if (index as usize) < objects.len() => {
            read_with_zeros(&objects[index as usize], offset, buffer)
        }
        _ => Err(io::Error::new(
            io::ErrorKind::NotFound,
            format!("there is no {space:?}"),
        )),
    }
}

/// What lies beyond the end in the last page of a file reads as zeros, as it does in a mapping (mmap(2)).
fn read_with_zeros(file: &File, offset: u64, buffer: &mut [u8]) -> io::Result<()> {
    let mut done = 0;
    while done < buffer.len() {
        match file.read_at(&mut buffer[done..], offset + done as u64) {
            Ok(0) => break,
            Ok(count) => done += count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    buffer[done..].fill(0);
    Ok(())
}

/// The stretches of an object that hold data, in whole pages, as offset and length: its holes cost nothing (lseek(2), SEEK_DATA).
pub fn data(file: impl AsFd, size: u64) -> Result<Vec<(u64, u64)>> {
    let end = i64::try_from(size).context("a size beyond all files")?;
    let mut stretches = Vec::new();
    let mut at = 0;
    while at < end {
        let start = match lseek(&file, at, Whence::SeekData) {
            Ok(start) => start,
            Err(nix::Error::ENXIO) => break,
            Err(errno) => return Err(errno).context("lseek SEEK_DATA"),
        };
        at = lseek(&file, start, Whence::SeekHole)
            .context("lseek SEEK_HOLE")?
            .min(end);
        if start < at {
            let first = start as u64 / PAGE * PAGE;
            stretches.push((first, (at as u64).next_multiple_of(PAGE) - first));
        }
    }
    Ok(stretches)
}

#[cfg(test)]
mod tests {
    use super::*;
    use nix::sys::memfd::{MFdFlags, memfd_create};

    #[test]
    fn holes_of_an_object_are_skipped() {
        let file = File::from(memfd_create(c"holes", MFdFlags::empty()).unwrap());
        file.set_len(1 << 40).unwrap();
        file.write_all_at(b"x", 5 * PAGE + 7).unwrap();
        file.write_all_at(b"y", 1 << 39).unwrap();
        let found = data(&file, 1 << 40).unwrap();
        assert!(found.contains(&(5 * PAGE, PAGE)) && found.contains(&(1 << 39, PAGE)));
        assert_eq!(found.len(), 2);
    }

    #[test]
    fn the_end_of_the_last_page_reads_as_zeros() {
        let file = File::from(memfd_create(c"short", MFdFlags::empty()).unwrap());
        file.write_all_at(b"abc", 0).unwrap();
        assert_eq!(data(&file, 3).unwrap(), [(0, PAGE)]);
        let mut page = vec![1; PAGE as usize];
        read_with_zeros(&file, 0, &mut page).unwrap();
        assert_eq!(&page[..4], b"abc\0");
        assert!(page[3..].iter().all(|byte| *byte == 0));
    }
}
