//! Memory that is kept aside while the process stands still: what a copy of it does not have. Kept in a file, so that our own memory
//! stays small.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

use anyhow::{Context, Result};
use nix::sys::memfd::{MFdFlags, memfd_create};

use crate::image::pages::{Extent, PageSource, Space};

/// The content of some stretches of memory.
pub struct Saved {
    file: File,
    /// By space and offset: where each begins in the file.
    parts: Vec<(Extent, u64)>,
}

/// Up to here memory will do.
const IN_MEMORY_MAX: u64 = 16 << 20;
const CHUNK: usize = 1 << 20;

impl Saved {
    /// Copies `extents`; `spare` makes the file for what is much.
    pub fn copy(extents: &[Extent], source: &dyn PageSource, spare: impl FnOnce() -> Result<File>) -> Result<Self> {
        let len: u64 = extents.iter().map(|extent| extent.len).sum();
        let file = match len {
            ..=IN_MEMORY_MAX => memfd_create(c"cryopod", MFdFlags::MFD_CLOEXEC)
                .map(File::from)
                .context("memfd_create")?,
            _ => spare()?,
        };
        let mut parts = Vec::with_capacity(extents.len());
        let mut end = 0;
        let mut buffer = vec![0; CHUNK.min(len as usize)];
        for extent in extents {
            parts.push((*extent, end));
            copy_extent(extent, source, &file, end, &mut buffer)?;
            end += extent.len;
        }
        parts.sort_by_key(|(extent, _)| (extent.space, extent.offset));
        Ok(Saved { file, parts })
    }

    /// Fills `buffer`; false where the place was not saved.
    pub fn read(&self, space: Space, offset: u64, buffer: &mut [u8]) -> io::Result<bool> {
        let after = self
            .parts
            .partition_point(|(extent, _)| (extent.space, extent.offset) <= (space, offset));
        let Some((extent, at)) = after.checked_sub(1).map(|index| &self.parts[index]) else {
            return Ok(false);
        };
        if extent.space != space || offset + buffer.len() as u64 > extent.offset + extent.len {
            return Ok(false);
        }
        self.file.read_exact_at(buffer, at + (offset - extent.offset))?;
        Ok(true)
    }
}

fn copy_extent(extent: &Extent, source: &dyn PageSource, file: &File, at: u64, buffer: &mut [u8]) -> Result<()> {
    let mut done = 0;
    while done < extent.len {
        let len = (extent.len - done).min(buffer.len() as u64);
        let chunk = &mut buffer[..len as usize];
        let offset = extent.offset + done;
        source
            .read(extent.space, offset, chunk)
            .with_context(|| format!("read {len} bytes of memory at {offset:#x} of {:?}", extent.space))?;
        file.write_all_at(chunk, at + done).context("keep memory aside")?;
        done += len;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::image::pages::Zeros;

    /// Each byte is the number of its page, plus 100 in shared objects.
    struct Numbered;

    impl PageSource for Numbered {
        fn read(&self, space: Space, offset: u64, buffer: &mut [u8]) -> io::Result<()> {
            let base = if space == Space::Process(0) { 0 } else { 100 };
            for (at, byte) in buffer.iter_mut().enumerate() {
                *byte = base + ((offset + at as u64) >> 12) as u8;
            }
            Ok(())
        }
    }

    fn extent(space: Space, page: u64, pages: u64) -> Extent {
        Extent {
            space,
            offset: page << 12,
            len: pages << 12,
            zeros: Zeros::Keep,
        }
    }

    #[test]
    fn what_was_saved_reads_back_and_nothing_else_does() {
        let (process, shared) = (Space::Process(0), Space::Shared(0));
        let extents = [extent(shared, 0, 2), extent(process, 7, 3), extent(process, 2, 1)];
        let saved = Saved::copy(&extents, &Numbered, || unreachable!("it is little")).unwrap();
        let mut page = [0; 4096];
        for (space, number, byte) in [(shared, 1, 101), (process, 8, 8), (process, 2, 2)] {
            assert!(saved.read(space, number << 12, &mut page).unwrap());
            assert!(page.iter().all(|&b| b == byte));
        }
        for (space, number) in [
            (shared, 2),
            (process, 1),
            (process, 3),
            (process, 10),
            (Space::Shared(1), 0),
        ] {
            assert!(!saved.read(space, number << 12, &mut page).unwrap());
        }
    }

    #[test]
    fn much_is_kept_in_a_file() {
        let extents = [extent(Space::Process(0), 0, 5000)];
        let saved = Saved::copy(&extents, &Numbered, || Ok(tempfile::tempfile().unwrap())).unwrap();
        let mut page = [0; 4096];
        assert!(saved.read(Space::Process(0), 4999 << 12, &mut page).unwrap());
        assert_eq!(page[0], (4999 % 256) as u8);
    }
}
