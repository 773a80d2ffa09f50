//! Where an image goes: a file that appears when it is complete, or a stream, which may be cut off at any time.

use std::fs::{File, OpenOptions};
use std::io::{self, IoSlice, Write};
use std::os::fd::AsFd;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::{Context, Result};

use crate::image::file::{self, PendingFile};
use crate::image::write::Sink;

pub enum Output {
    File(PendingFile),
    /// A pipe, a FIFO, a device.
    Stream(File),
}

impl Output {
    /// Opens before anything is stopped, so that a directory that is not there or not ours to write stops nobody. A FIFO waits for
    /// its reader here.
    pub fn open(path: &Path) -> Result<Self> {
        let is_special = path
            .metadata()
            .is_ok_and(|metadata| !metadata.is_file() && !metadata.is_dir());
        if is_special {
            let file = OpenOptions::new().write(true).open(path);
            return Ok(Output::Stream(
                file.with_context(|| format!("open {}", path.display()))?,
            ));
        }
        Ok(Output::File(PendingFile::create(path)?))
    }

    pub fn stdout() -> Result<Self> {
        let own = io::stdout()
            .as_fd()
            .try_clone_to_owned()
            .context("duplicate the standard output")?;
        Ok(Output::Stream(own.into()))
    }

    /// Writes an image by `write`. `sync` says that it is going to be committed so.
    pub fn write_by<T>(
        &mut self,
        sync: bool,
        cancelled: &AtomicBool,
        write: impl FnOnce(Sink<'_>) -> Result<T>,
    ) -> Result<T> {
        match self {
            Output::File(file) => write(Sink::File(&file.sink(sync))),
            Output::Stream(stream) => write(Sink::Stream(&mut Stream { stream, cancelled })),
        }
    }

    /// A file for what has to be kept for a while, on the disk that the image goes to where it goes to one.
    pub fn spare(&self) -> Result<File> {
        match self {
            Output::File(file) => file.spare(),
            Output::Stream(_) => file::spare(),
        }
    }

    /// The image is complete: gives the file its name. A stream has none, and nothing that would prove what arrived.
    pub fn commit(self, sync: bool) -> Result<()> {
        match self {
            Output::File(file) => file.commit(sync),
            Output::Stream(_) => Ok(()),
        }
    }
}

/// A stream that ends when the freeze is cancelled, also inside a write that waits for a slow reader: the signal interrupts it.
struct Stream<'a> {
    stream: &'a File,
    cancelled: &'a AtomicBool,
}

impl Stream<'_> {
    fn unless_cancelled<T>(&mut self, write: impl FnOnce(&mut &File) -> io::Result<T>) -> io::Result<T> {
        if self.cancelled.load(Ordering::Relaxed) {
            return Err(io::Error::other("cancelled"));
        }
        write(&mut self.stream)
    }
}

impl Write for Stream<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.unless_cancelled(|stream| stream.write(bytes))
    }

    fn write_vectored(&mut self, slices: &[IoSlice<'_>]) -> io::Result<usize> {
        self.unless_cancelled(|stream| stream.write_vectored(slices))
    }

    fn flush(&mut self) -> io::Result<()> {
        self.unless_cancelled(|stream| stream.flush())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cancelled_freeze_writes_no_more() {
        let (_reader, writer) = io::pipe().unwrap();
        let file = File::from(std::os::fd::OwnedFd::from(writer));
        let cancelled = AtomicBool::new(false);
        let mut stream = Stream {
            stream: &file,
            cancelled: &cancelled,
        };
        assert_eq!(stream.write(b"x").unwrap(), 1);
        cancelled.store(true, Ordering::Relaxed);
        assert!(stream.write(b"x").is_err());
    }

    #[test]
    fn a_device_is_a_stream() {
        assert!(matches!(
            Output::open(Path::new("/dev/null")).unwrap(),
            Output::Stream(_)
        ));
        assert!(Output::open(Path::new("/no/such/directory/app.img")).is_err());
    }
}
