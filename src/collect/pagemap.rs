//! Which pages of a mapping hold something of their own: by PAGEMAP_SCAN (Linux 6.7), else by reading /proc/PID/pagemap.
//!
//! Both skip what was never touched, so that giant reservations cost nothing.

use std::cell::RefCell;
use std::fs::File;
use std::os::unix::fs::FileExt;

use anyhow::{Context, Result};

use super::memory::Area;
use super::proc::ProcDir;
use crate::arch::{HUGE_PAGE_SIZE, PAGE_SIZE as PAGE};
use crate::image::ranges;
use crate::sys::process::{self as sys, PageRegion, ScanRequest};

/// Pages in runs, in ascending order, as start and end addresses.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Populated {
    /// Pages whose content belongs to the process: anonymous ones, swapped or not, without the zero page.
    pub runs: Vec<(u64, u64)>,
    /// Guard regions (madvise(2), MADV_GUARD_INSTALL), which have no content and fault.
    pub guards: Vec<(u64, u64)>,
    /// Transparent huge pages.
    pub huge: Vec<(u64, u64)>,
}

impl Populated {
    pub fn bytes(&self) -> u64 {
        ranges::len(&self.runs)
    }
}

/// How pages are found on this kernel.
#[derive(Debug)]
pub struct Scanner {
    pagemap: File,
    method: Method,
    /// What one call returns; the same for each, since making it anew costs more than a call that finds little.
    regions: RefCell<Vec<PageRegion>>,
}

/// In one call.
const REGIONS: usize = 1024;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Method {
    /// PAGEMAP_SCAN that knows guard regions (PAGE_IS_GUARD, Linux 6.16).
    ScanWithGuards,
    /// PAGEMAP_SCAN, Linux 6.7.
    Scan,
    /// Entries of /proc/PID/pagemap.
    Entries,
}

impl Scanner {
    pub fn new(dir: &ProcDir) -> Result<Self> {
        let pagemap = dir.open("pagemap").context("open pagemap")?;
        let method = [Method::ScanWithGuards, Method::Scan]
            .into_iter()
            .find(|method| sys::pagemap_scan(&pagemap, &probe(*method), &mut []).is_ok())
            .unwrap_or(Method::Entries);
        Ok(Scanner {
            pagemap,
            method,
            regions: RefCell::new(vec![PageRegion::default(); REGIONS]),
        })
    }

    /// Whether the kernel tells of pages without a pass over all entries.
    pub fn skips_holes(&self) -> bool {
        self.method != Method::Entries
    }

    /// The pages of `area` that differ from what mapping it again would give: a file or a shared object, or (`anonymous`) nothing.
    pub fn populated(&self, area: &Area, anonymous: bool) -> Result<Populated> {
        match self.method {
            // An old kernel has no guard regions, and smaps tells the mappings that hold nothing.
            Method::Entries if area.resident + area.swapped == 0 => Ok(Populated::default()),
            Method::Entries => self.read_entries(area),
            Method::Scan | Method::ScanWithGuards => self.scan(area, anonymous),
        }
        .with_context(|| format!("pages of {}", area.label()))
    }

    fn scan(&self, area: &Area, anonymous: bool) -> Result<Populated> {
        let mut found = Populated::default();
        let mut request = request(self.method, area, anonymous);
        let mut regions = self.regions.borrow_mut();
        let mut seen = area.start;
        while request.start < area.end {
            let (count, walked) = sys::pagemap_scan(&self.pagemap, &request, &mut regions)?;
            for region in &regions[..count] {
                let list = match region.categories & PAGE_IS_GUARD {
                    0 => &mut found.runs,
                    _ => &mut found.guards,
                };
                // Regions come in ascending order, but some twice: where the walk ended is told wrongly when a region ends where
                // the kernel's inner buffer of 512 regions does (Linux 6.18).
                let start = region.start.max(seen);
                if start < region.end {
                    append(list, start, region.end);
                    if region.categories & PAGE_IS_HUGE != 0 {
                        append(&mut found.huge, start, region.end);
                    }
                    seen = region.end;
                }
            }
            request.start = walked.max(seen);
        }
        Ok(found)
    }

    /// Stops as soon as all pages that smaps counted are found, so that the untouched rest of a big area is not read.
    fn read_entries(&self, area: &Area) -> Result<Populated> {
        let mut found = Populated::default();
        let mut missing = (area.resident + area.swapped) / PAGE;
        let mut at = area.start;
        while at < area.end && missing > 0 {
            let end = area.end.min(at + ENTRIES * PAGE);
            for (page, entry) in (at..).step_by(PAGE as usize).zip(entries(&self.pagemap, at, end)?) {
                missing = missing.saturating_sub(u64::from(entry.is_counted()));
                if entry.is_own() {
                    append(&mut found.runs, page, page + PAGE);
                }
            }
            at = end;
        }
        found.huge = self.huge_pages(&found.runs)?;
        Ok(found)
    }

    /// Huge pages among these: the flags of their frames tell (/proc/kpageflags, Documentation/admin-guide/mm/pagemap.rst), to those with
    /// CAP_SYS_ADMIN.
    fn huge_pages(&self, runs: &[(u64, u64)]) -> Result<Vec<(u64, u64)>> {
        const THP: u64 = 1 << 22;
        const FRAMES: u64 = HUGE_PAGE_SIZE / PAGE;
        let mut huge = Vec::new();
        let Ok(flags) = File::open("/proc/kpageflags") else {
            return Ok(huge);
        };
        for &(start, end) in runs {
            let mut at = start.next_multiple_of(HUGE_PAGE_SIZE);
            while at + HUGE_PAGE_SIZE <= end {
                let frame = entries(&self.pagemap, at, at + PAGE)?[0].frame();
                let mut word = [0; 8];
                if let Some(frame) = frame.filter(|frame| frame.is_multiple_of(FRAMES))
                    && flags.read_exact_at(&mut word, frame * 8).is_ok()
                    && u64::from_ne_bytes(word) & THP != 0
                {
                    append(&mut huge, at, at + HUGE_PAGE_SIZE);
                }
                at += HUGE_PAGE_SIZE;
            }
        }
        Ok(huge)
    }
}

/// So many are read at once.
pub const ENTRIES: u64 = 128 << 10;

/// The entries of /proc/PID/pagemap for the pages from `start` to `end`.
pub fn entries(pagemap: &File, start: u64, end: u64) -> Result<Vec<Entry>> {
    let mut bytes = vec![0; ((end - start) / PAGE * 8) as usize];
    pagemap
        .read_exact_at(&mut bytes, start / PAGE * 8)
        .context("read pagemap")?;
    let words = bytes.chunks_exact(8);
    let entry = |word: &[u8]| Entry(u64::from_ne_bytes(word.try_into().expect("chunks of 8")));
    Ok(words.map(entry).collect())
}

/// An entry of /proc/PID/pagemap (proc_pid_pagemap(5)).
#[derive(Clone, Copy)]
pub struct Entry(u64);

impl Entry {
    /// The number of the frame, or where in the swap it is; none where we are not told.
    pub fn place(self) -> Option<u64> {
        const PRESENT_OR_SWAPPED: u64 = 3 << 62;
        const NUMBER: u64 = (1 << 55) - 1;
        (self.0 & NUMBER != 0).then_some(self.0 & (PRESENT_OR_SWAPPED | NUMBER))
    }

    /// The frame of a page that is in memory, where we are told.
    fn frame(self) -> Option<u64> {
        const PRESENT: u64 = 1 << 63;
        const NUMBER: u64 = (1 << 55) - 1;
        Some(self.0 & NUMBER).filter(|frame| *frame != 0 && self.0 & PRESENT != 0)
    }

    /// The page of one process only (Linux 4.2).
    pub fn is_exclusive(self) -> bool {
        self.0 >> 56 & 1 == 1
    }

    fn is_present(self) -> bool {
        self.0 >> 63 & 1 == 1
    }

    fn is_swapped(self) -> bool {
        self.0 >> 62 & 1 == 1
    }

    /// A page of a file, or of shared memory.
    fn is_file(self) -> bool {
        self.0 >> 61 & 1 == 1
    }

    fn is_own(self) -> bool {
        (self.is_present() || self.is_swapped()) && !self.is_file()
    }

    /// Certainly one of those that smaps counts as Rss or Swap. The zero page, which it does not count, looks like an
    /// anonymous page that is mapped twice: leave both out, so that the count is never reached too early.
    fn is_counted(self) -> bool {
        self.is_swapped() || self.is_present() && (self.is_exclusive() || self.is_file())
    }
}

/// Runs ascend, but PAGEMAP_SCAN may report the page before a huge page's boundary twice (seen on Linux 6.18).
pub fn append(list: &mut Vec<(u64, u64)>, start: u64, end: u64) {
    match list.last_mut() {
        Some(last) if last.1 >= start => last.1 = last.1.max(end),
        _ => list.push((start, end)),
    }
}

/// include/uapi/linux/fs.h.
const PAGE_IS_FILE: u64 = 1 << 2;
const PAGE_IS_PRESENT: u64 = 1 << 3;
const PAGE_IS_SWAPPED: u64 = 1 << 4;
const PAGE_IS_PFNZERO: u64 = 1 << 5;
/// One entry of a page table's middle level maps it (pagemap_scan_thp_entry(), fs/proc/task_mmu.c).
const PAGE_IS_HUGE: u64 = 1 << 6;
const PAGE_IS_GUARD: u64 = 1 << 8;

/// Present or swapped, and no page of a file. In anonymous memory the zero page is as good as none; in a mapping of a file it
/// hides the file's content.
fn request(method: Method, area: &Area, anonymous: bool) -> ScanRequest {
    let without = if anonymous {
        PAGE_IS_FILE | PAGE_IS_PFNZERO
    } else {
        PAGE_IS_FILE
    };
    let guard = if method == Method::ScanWithGuards {
        PAGE_IS_GUARD
    } else {
        0
    };
    ScanRequest {
        start: area.start,
        end: area.end,
        inverted: without,
        all_of: without,
        any_of: PAGE_IS_PRESENT | PAGE_IS_SWAPPED,
        returned: guard | PAGE_IS_HUGE,
    }
}

/// An empty range: the kernel only checks the arguments.
fn probe(method: Method) -> ScanRequest {
    ScanRequest {
        start: 0,
        end: 0,
        ..request(method, &Area::default(), true)
    }
}

#[cfg(test)]
#[allow(unsafe_code)]
mod tests {
    use super::*;
    use crate::collect::memory;
    use nix::sys::mman::{MapFlags, ProtFlags, mmap_anonymous, munmap};

    /// Maps `pages` of anonymous memory and touches the pages given.
    fn sparse(pages: usize, touched: &[usize]) -> (std::ptr::NonNull<std::ffi::c_void>, usize) {
        let len = std::num::NonZero::new(pages * PAGE as usize).unwrap();
        let prot = ProtFlags::PROT_READ | ProtFlags::PROT_WRITE;
        let flags = MapFlags::MAP_PRIVATE | MapFlags::MAP_NORESERVE;
        // SAFETY: a new mapping at an address of the kernel's choice.
        let at = unsafe { mmap_anonymous(None, len, prot, flags) }.unwrap();
        for page in touched {
            // SAFETY: within the mapping made above.
            unsafe { at.byte_add(page * PAGE as usize).cast::<u8>().write(1) };
        }
        (at, len.get())
    }

    fn found_by(method: Method, pages: usize, touched: &[usize]) -> Vec<u64> {
        let dir = ProcDir::by_pid(std::process::id() as i32).unwrap();
        let (at, len) = sparse(pages, touched);
        let base = at.as_ptr() as u64;
        let areas = memory::areas(&dir).unwrap();
        let area = areas
            .iter()
            .find(|area| area.start <= base && base < area.end)
            .unwrap()
            .clone();
        let area = Area {
            start: base,
            end: base + len as u64,
            ..area
        };
        let scanner = Scanner {
            method,
            ..Scanner::new(&dir).unwrap()
        };
        let found = scanner.populated(&area, true).unwrap();
        // SAFETY: nobody else knows the mapping.
        unsafe { munmap(at, len) }.unwrap();
        found
            .runs
            .iter()
            .flat_map(|&(start, end)| (start..end).step_by(PAGE as usize))
            .map(|page| (page - base) / PAGE)
            .collect()
    }

    #[test]
    fn only_touched_pages_of_a_sixteen_tebibyte_reservation_are_found() {
        let pages = (16 << 40) / PAGE as usize;
        let method = Scanner::new(&ProcDir::by_pid(std::process::id() as i32).unwrap())
            .unwrap()
            .method;
        if method != Method::Entries {
            let found = found_by(method, pages, &[0, 7_000_000, pages - 1]);
            assert!([0, 7_000_000, pages as u64 - 1].iter().all(|page| found.contains(page)));
            assert!(found.len() <= 3 * 512);
        }
    }

    #[test]
    fn pages_in_thousands_of_runs_are_found_once_each() {
        let every_other: Vec<usize> = (0..8192).step_by(2).collect();
        let method = Scanner::new(&ProcDir::by_pid(std::process::id() as i32).unwrap())
            .unwrap()
            .method;
        let found = found_by(method, 8192, &every_other);
        assert!(found.is_sorted_by(|a, b| a < b));
        assert!(every_other.iter().all(|page| found.contains(&(*page as u64))));
    }

    #[test]
    fn both_methods_agree() {
        let touched = [3, 4, 1000, 4095];
        let wanted: Vec<u64> = touched.iter().map(|page| *page as u64).collect();
        let entries = found_by(Method::Entries, 4096, &touched);
        // A huge page may have been put there: then its neighbours are populated, too.
        assert!(wanted.iter().all(|page| entries.contains(page)));
        assert_eq!(
            found_by(
                Scanner::new(&ProcDir::by_pid(std::process::id() as i32).unwrap())
                    .unwrap()
                    .method,
                4096,
                &touched
            ),
            entries
        );
    }

    #[test]
    fn a_page_that_is_reported_twice_is_there_once() {
        let mut runs = Vec::new();
        for (start, end) in [(0x1000, 0x3000), (0x2000, 0x3000), (0x3000, 0x4000), (0x8000, 0x9000)] {
            append(&mut runs, start, end);
        }
        assert_eq!(runs, [(0x1000, 0x4000), (0x8000, 0x9000)]);
    }
}
