//! Puts memory's content where it belongs, from any thread: anonymous pages by userfaultfd, private file pages through
//! /proc/PID/mem, shared objects through their own descriptors.
#![deny(unsafe_code)]

use std::fs::File;
use std::io::IoSlice;
use std::os::fd::BorrowedFd;
use std::os::unix::fs::FileExt;

use anyhow::{Context, Result, bail};
use nix::sys::uio::{RemoteIoVec, process_vm_writev, pwrite};
use nix::unistd::Pid;

use super::uffd::Uffd;
use crate::arch;
use crate::image::pages::{PageRun, Space};
use crate::image::state::{Backing, Memory, Vma};
use crate::tracer::Lifted;

/// Writes the content of processes and of the shared objects.
pub struct Fill<'a> {
    /// Those that are mapped.
    pub(super) processes: &'a [Option<ProcessFill>],
    pub(super) shared: &'a [BorrowedFd<'a>],
    /// The threads that write are started by who made this.
    pub(super) _on_all_cpus: Lifted,
}

impl Fill<'_> {
    pub fn write(&self, run: &PageRun<'_>) -> Result<()> {
        match run.space {
            Space::Process(index) | Space::Inherited(index) => {
                let process = self.processes.get(index as usize).and_then(Option::as_ref);
                process.context("content for a process that is not there")?.write(run)
            }
            Space::Shared(object) => self.write_shared(object, run),
        }
    }

    fn write_shared(&self, object: u32, run: &PageRun<'_>) -> Result<()> {
        let fd = self
            .shared
            .get(object as usize)
            .context("content for a shared object that is not there")?;
        let put = |bytes: &[u8], done: u64| {
            let mut rest = bytes;
            while !rest.is_empty() {
                let offset = run.offset + done + (bytes.len() - rest.len()) as u64;
                let written = pwrite(fd, rest, i64::try_from(offset).map_err(std::io::Error::other)?)?;
                rest = &rest[written..];
            }
            Ok(())
        };
        match run.bytes {
            Some(bytes) => put(bytes, 0),
            None => write_zeros(run.len, put),
        }
        .with_context(|| format!("write shared object {object} at {:#x}", run.offset))
    }
}

/// Writes the content of one process.
pub(super) struct ProcessFill {
    /// /proc/PID/mem: writes reach read-only private mappings as well (FOLL_FORCE, mem_rw()).
    memory: File,
    pid: Pid,
    uffd: Option<Uffd>,
    /// Ascending.
    targets: Vec<Target>,
    /// Addresses of huge pages in mappings without small ones.
    pure: Vec<Place>,
    jobs: usize,
}

struct Target {
    start: u64,
    end: u64,
    through_uffd: bool,
    /// Stretches that huge pages have been put into.
    huge: Vec<(u64, u64)>,
}

impl ProcessFill {
    /// Registers all anonymous mappings that have content. Without a userfaultfd everything goes through /proc/PID/mem. Huge pages
    /// are put in place before, from `jobs` threads, where there are small ones among them: where a userfaultfd waits for missing
    /// pages the kernel makes none. A mapping of huge pages alone gets them as it is written.
    pub fn new(pid: Pid, memory: File, uffd: Option<Uffd>, map: &Memory, jobs: usize) -> Result<Self> {
        let mut targets = Vec::with_capacity(map.vmas.len());
        let (pure, mixed) = huge_pages(map);
        put_huge_pages(&memory, &mixed, jobs)?;
        for vma in map.vmas.iter().filter(|vma| vma.resident > 0 && !vma.shared) {
            let through_uffd = match &uffd {
                Some(uffd) if is_plain_anonymous(vma) && !is_all_huge(vma) => {
                    uffd.register(vma.start, vma.end - vma.start)?;
                    true
                }
                _ => false,
            };
            targets.push(Target {
                start: vma.start,
                end: vma.end,
                through_uffd,
                huge: vma.huge.clone(),
            });
        }
        Ok(ProcessFill {
            pid,
            memory,
            uffd,
            targets,
            pure,
            jobs,
        })
    }

    /// When all content was written: makes the huge pages that hold nothing but zeros.
    pub fn finish(&mut self) -> Result<()> {
        put_huge_pages(&self.memory, &self.pure, self.jobs)
    }

    /// A run may cover several mappings that touch each other.
    fn write(&self, run: &PageRun<'_>) -> Result<()> {
        let end = run.offset + run.len;
        let mut at = run.offset;
        while at < end {
            let index = self.targets.partition_point(|target| target.end <= at);
            let Some(target) = self.targets.get(index).filter(|target| target.start <= at) else {
                bail!("content for {at:#x}, where nothing is mapped");
            };
            let (huge, stop) = target.part(at, end);
            let bytes = run
                .bytes
                .map(|bytes| &bytes[(at - run.offset) as usize..(stop - run.offset) as usize]);
            match (bytes, huge) {
                (Some(bytes), true) => self.write_huge(target, at, bytes)?,
                _ => self.write_piece(target, at, stop - at, bytes)?,
            }
            at = stop;
        }
        Ok(())
    }

    fn write_piece(&self, target: &Target, at: u64, len: u64, bytes: Option<&[u8]>) -> Result<()> {
        match (bytes, &self.uffd) {
            (Some(bytes), Some(uffd)) if target.through_uffd => uffd.copy(at, bytes),
            (Some(bytes), _) => self
                .memory
                .write_all_at(bytes, at)
                .with_context(|| format!("write memory at {at:#x}")),
            // Zeros are named only where something else would show through: in private mappings of files.
            (None, _) => write_zeros(len, |zeros, done| self.memory.write_all_at(zeros, at + done))
                .with_context(|| format!("write memory at {at:#x}")),
        }
    }

    /// Into huge pages, which are there already where a userfaultfd waits, unless the kernel had only small ones to give.
    fn write_huge(&self, target: &Target, at: u64, bytes: &[u8]) -> Result<()> {
        let remote = RemoteIoVec {
            base: at as usize,
            len: bytes.len(),
        };
        // Faster than /proc/PID/mem by a third, but only where the program itself may write, and as far as pages are there.
        let written = process_vm_writev(self.pid, &[IoSlice::new(bytes)], &[remote]);
        if written == Ok(bytes.len()) || self.memory.write_all_at(bytes, at).is_ok() {
            return Ok(());
        }
        for (index, page) in bytes.chunks(arch::PAGE_SIZE as usize).enumerate() {
            let at = at + index as u64 * arch::PAGE_SIZE;
            if self.memory.write_all_at(page, at).is_err() {
                self.write_piece(target, at, page.len() as u64, Some(page))?;
            }
        }
        Ok(())
    }
}

impl Target {
    /// Whether `at` is to be in a huge page, and how far that holds, up to `end`.
    fn part(&self, at: u64, end: u64) -> (bool, u64) {
        let end = end.min(self.end);
        let next = self.huge.partition_point(|&(_, end)| end <= at);
        match self.huge.get(next) {
            Some(&(start, huge_end)) if start <= at => (true, end.min(huge_end)),
            Some(&(start, _)) => (false, end.min(start)),
            None => (false, end),
        }
    }
}

fn is_all_huge(vma: &Vma) -> bool {
    vma.resident == vma.huge.iter().map(|(start, end)| end - start).sum::<u64>()
}

/// The addresses of huge pages: in mappings that have no others, and in those that have.
fn huge_pages(map: &Memory) -> (Vec<Place>, Vec<Place>) {
    let (mut pure, mut mixed) = (Vec::new(), Vec::new());
    for vma in map.vmas.iter().filter(|vma| is_plain_anonymous(vma)) {
        let list = if is_all_huge(vma) { &mut pure } else { &mut mixed };
        for &(start, end) in &vma.huge {
            let pages = (start.next_multiple_of(arch::HUGE_PAGE_SIZE)..end).step_by(arch::HUGE_PAGE_SIZE as usize);
            list.extend(pages.map(|at| Place {
                at,
                is_untouched: !is_all_huge(vma) && vma.inherited.is_empty(),
            }));
        }
    }
    (pure, mixed)
}

/// Where a huge page is to be.
struct Place {
    at: u64,
    /// Nothing was ever read or written there.
    is_untouched: bool,
}

/// Touches each huge page without changing it, so that the kernel puts one there, if it has one and the mapping's advice allows it. It is not
/// read where it holds zeros in any case: that gives the huge zero page, in whose place a write puts small ones before Linux 6.12
/// (do_huge_pmd_wp_page(), mm/huge_memory.c).
fn put_huge_pages(memory: &File, places: &[Place], jobs: usize) -> Result<()> {
    let touch = |places: &[Place]| -> Result<()> {
        for &Place { at, is_untouched } in places {
            let mut byte = [0];
            let read = match is_untouched {
                true => Ok(()),
                false => memory.read_exact_at(&mut byte, at),
            };
            read.and_then(|()| memory.write_all_at(&byte, at))
                .with_context(|| format!("put a huge page at {at:#x}"))?;
        }
        Ok(())
    };
    let part = places.len().div_ceil(jobs.max(1)).max(1);
    std::thread::scope(|scope| {
        let threads: Vec<_> = places.chunks(part).map(|part| scope.spawn(|| touch(part))).collect();
        threads
            .into_iter()
            .try_for_each(|thread| thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)))
    })
}

fn is_plain_anonymous(vma: &Vma) -> bool {
    vma.backing == Backing::Anonymous
}

fn write_zeros(len: u64, mut put: impl FnMut(&[u8], u64) -> std::io::Result<()>) -> std::io::Result<()> {
    const ZEROS: [u8; 4096] = [0; 4096];
    let mut done = 0;
    while done < len {
        let piece = (len - done).min(ZEROS.len() as u64);
        put(&ZEROS[..piece as usize], done)?;
        done += piece;
    }
    Ok(())
}
