//! The memory for results of a loan, in the target: mapped for its time, and found again by the next freeze if this one is killed.

use std::time::{SystemTime, UNIX_EPOCH};

use super::Loan;
use crate::arch::{CALL_AT, PAGE_SIZE as PAGE, RESULTS_AT, task_size};
use crate::tracer::process::StoppedProcess;
use crate::tracer::way_home::{MARK, RESULTS_LEN, is_left_page};
use crate::tracer::{Error, Result};

impl Loan<'_> {
    /// What freezers that were killed left mapped.
    pub(super) fn unmap_leftovers(&mut self) -> Result<()> {
        for leftover in std::mem::take(&mut self.slot.leftovers) {
            let StoppedProcess { proc, memory, .. } = &*self.process;
            let ours = is_left_page(proc, memory, leftover.results)
                .map_err(|error| Error::memory(self.tid(), "what an earlier loan left", &error))?;
            if ours {
                self.call(libc::SYS_munmap as u64, [leftover.results, RESULTS_LEN, 0, 0, 0, 0])?;
            }
            self.process
                .memory
                .write_at(leftover.slot + RESULTS_AT as u64, &[0; 8])
                .map_err(|error| Error::memory(self.tid(), "what an earlier loan left", &error))?;
        }
        Ok(())
    }

    /// Pages at an address of our choice, which the slot names before it is mapped: whoever comes after a crash can find it.
    pub(super) fn map_results(&mut self) -> Result<()> {
        for attempt in 0..64 {
            self.go_home()?;
            self.results = scattered(attempt);
            let prot = libc::PROT_READ | libc::PROT_WRITE;
            let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_FIXED_NOREPLACE;
            let args = [self.results, RESULTS_LEN, prot as u64, flags as u64, u64::MAX, 0];
            if let Err(error) = self.check_room(args) {
                self.results = 0;
                return Err(error);
            }
            let result = self.call(libc::SYS_mmap as u64, args)?;
            if result == self.results as i64 {
                let at = self.results + RESULTS_LEN - MARK.len() as u64;
                return self
                    .memory()
                    .write_at(at, MARK)
                    .map_err(|error| Error::memory(self.tid(), "the page for results", &error));
            }
            self.results = 0;
            if result != i64::from(-libc::EEXIST) {
                return Err(Error::Call {
                    tid: self.tid(),
                    name: "mmap",
                    errno: nix::Error::from_raw(-result as i32),
                });
            }
        }
        Err(self.unexpected("has no room for one more page"))
    }

    /// What is mapped must be unmapped.
    fn check_room(&self, map: [u64; 6]) -> Result<()> {
        let unmap = [self.results, RESULTS_LEN, 0, 0, 0, 0];
        self.check_allowed("mmap", CALL_AT, libc::SYS_mmap as u64, map)?;
        self.check_allowed("munmap", CALL_AT, libc::SYS_munmap as u64, unmap)
    }
}

/// An address between an eighth and five eighths of the address space, 16 and 80 TiB on x86_64: far from what programs and the kernel
/// choose, and hardly ever the same twice.
fn scattered(attempt: u64) -> u64 {
    let now = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |time| time.as_nanos() as u64);
    let scrambled = (now ^ (attempt << 48)).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    let size = task_size();
    (size / 8 + (scrambled >> 16) % (size / 2)) / PAGE * PAGE
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_for_results_are_pages_of_user_space() {
        for attempt in 0..1000 {
            let addr = scattered(attempt);
            let most_of_it = task_size() / 16..task_size() / 8 * 6;
            assert!(addr.is_multiple_of(PAGE) && most_of_it.contains(&addr), "{addr:x}");
        }
    }
}
