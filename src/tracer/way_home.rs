//! Where the way home lies in a target: bytes of an executable private page that nobody reads, in slots of fixed size.

use std::fs::File;
use std::io;
use std::os::unix::fs::{FileExt, MetadataExt};

use nix::fcntl::OFlag;
use nix::unistd::Pid;

use super::elf::Elf;
use super::proc::ProcDir;
use super::vdso::Vdso;
use super::{Error, ProcessMemory, Result};
use crate::arch::{SLOT_LEN, Slot};

/// Dead bytes of an executable page: after the last section of `[vdso]`, or after the segment of a mapped file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct DeadBytes {
    start: u64,
    end: u64,
}

/// What an earlier loan left, whose owner was killed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Leftover {
    pub slot: u64,
    /// The page that it mapped, or was about to map.
    pub results: u64,
}

/// The slot that the next loan uses.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct FreeSlot {
    pub addr: u64,
    pub generation: u64,
    pub leftovers: Vec<Leftover>,
}

pub(super) const PAGE: u64 = 4096;

impl DeadBytes {
    /// None where there is no room for a slot.
    pub fn between(start: u64, end: u64) -> Option<Self> {
        let dead = DeadBytes { start, end };
        (dead.slots() > 0).then_some(dead)
    }

    /// Finds a place: `[vdso]`, else the last page of an executable private file mapping.
    pub fn find(pid: Pid, proc: &ProcDir, memory: &ProcessMemory) -> Result<Self> {
        let lines = proc
            .read_text("maps")
            .map_err(|error| Error::memory(pid, "/proc/PID/maps", &error))?;
        let tail = Vdso::find(proc, memory).and_then(|vdso| vdso.dead).filter(|dead| {
            lines
                .lines()
                .any(|line| line.ends_with("[vdso]") && maps_range(line).is_some_and(|m| m.has(dead)))
        });
        tail.into_iter()
            .chain(lines.lines().filter_map(|line| file_tail(line, proc)))
            .find(|dead| dead.is_dead(memory))
            .ok_or_else(|| Error::Unexpected {
                tid: pid,
                what: "no executable page has enough unused bytes at its end".into(),
            })
    }

    pub fn contains(&self, addr: u64) -> bool {
        (self.start..self.end).contains(&addr)
    }

    fn slots(&self) -> u64 {
        self.end.saturating_sub(self.start) / SLOT_LEN as u64
    }

    /// Zeros, or slots of earlier loans.
    fn is_dead(&self, memory: &ProcessMemory) -> bool {
        self.read_slots(memory).is_ok_and(|slots| {
            let used = |slot: &[u8]| Slot::left_behind(slot).is_none() && slot.iter().any(|&byte| byte != 0);
            !slots.is_empty() && !slots.chunks_exact(SLOT_LEN).any(used)
        })
    }

    fn read_slots(&self, memory: &ProcessMemory) -> io::Result<Vec<u8>> {
        let mut slots = vec![0; self.slots() as usize * SLOT_LEN];
        memory.read_at(self.start, &mut slots)?;
        Ok(slots)
    }

    /// Zeros instead of slots that were left behind in `bytes`, which were read from `start` on.
    pub fn blank_left_behind(&self, start: u64, bytes: &mut [u8]) {
        let slots = self
            .start
            .checked_sub(start)
            .and_then(|at| bytes.get_mut(at as usize..));
        for slot in slots.unwrap_or_default().chunks_exact_mut(SLOT_LEN) {
            if Slot::left_behind(slot).is_some() {
                slot.fill(0);
            }
        }
    }

    /// The slot after the newest that was left behind: a signal frame of the target may still point into an older one.
    pub fn choose(&self, memory: &ProcessMemory) -> io::Result<FreeSlot> {
        let slots = self.read_slots(memory)?;
        let mut leftovers = Vec::new();
        let (mut newest, mut next) = (0, 0);
        for (i, bytes) in slots.chunks_exact(SLOT_LEN).enumerate() {
            let Some((generation, results)) = Slot::left_behind(bytes) else {
                continue;
            };
            if generation >= newest {
                (newest, next) = (generation, (i as u64 + 1) % self.slots());
            }
            if results != 0 {
                leftovers.push(Leftover {
                    slot: self.start + (i * SLOT_LEN) as u64,
                    results,
                });
            }
        }
        Ok(FreeSlot {
            addr: self.start + next * SLOT_LEN as u64,
            generation: newest + 1,
            leftovers,
        })
    }
}

/// One line of /proc/PID/maps, as far as it matters here.
struct Range {
    start: u64,
    end: u64,
}

impl Range {
    fn has(&self, dead: &DeadBytes) -> bool {
        self.start <= dead.start && dead.end <= self.end
    }
}

fn maps_range(line: &str) -> Option<Range> {
    let (start, end) = line.split_whitespace().next()?.split_once('-')?;
    Some(Range {
        start: u64::from_str_radix(start, 16).ok()?,
        end: u64::from_str_radix(end, 16).ok()?,
    })
}

/// The rest of the last page of a private r-x mapping, after the segment that it maps. Linkers begin the next segment on a page of its
/// own, so that these bytes are zeros, in the file or beyond its end.
fn file_tail(line: &str, proc: &ProcDir) -> Option<DeadBytes> {
    let range = maps_range(line)?;
    let fields: Vec<&str> = line.split_whitespace().collect();
    if *fields.get(1)? != "r-xp" {
        return None;
    }
    let offset = u64::from_str_radix(fields.get(2)?, 16).ok()?;
    let file = mapped_file(proc, line)?;
    let elf = Elf::read(|at, buffer| file.read_exact_at(buffer, at)).ok()??;
    let segment = elf.segments.iter().find(|segment| {
        let mapped = segment.offset / PAGE * PAGE..segment.end();
        segment.executable && mapped.contains(&offset)
    })?;
    let segment_end = range.start + (segment.end() - offset);
    let last_page = range.end - PAGE;
    (last_page < segment_end && segment_end < range.end)
        .then(|| DeadBytes::between(segment_end.next_multiple_of(16), range.end))
        .flatten()
}

/// The mapping itself leads to its file, also where that was deleted; to follow it takes CAP_CHECKPOINT_RESTORE. Else the path may do,
/// as the process sees it.
fn mapped_file(proc: &ProcDir, line: &str) -> Option<File> {
    let range = line.split_whitespace().next()?;
    let inode = line.split_whitespace().nth(4)?;
    let file = proc
        .open_file(&format!("map_files/{range}"), OFlag::O_RDONLY)
        .or_else(|_denied| {
            let path = line.find('/').map_or("", |at| &line[at..]);
            proc.open_file(
                &format!("root{path}"),
                OFlag::O_RDONLY | OFlag::O_NOFOLLOW | OFlag::O_NONBLOCK,
            )
        })
        .ok()?;
    (file.metadata().ok()?.ino().to_string() == inode).then_some(file)
}

/// Whether memory that a killed freezer's loan was to map is there and is ours: alone, anonymous, with our mark or untouched.
pub(super) fn is_left_page(proc: &ProcDir, memory: &ProcessMemory, addr: u64) -> io::Result<bool> {
    let alone = format!("{addr:x}-{:x} rw-p 00000000 00:00 0", addr + RESULTS_LEN);
    if !proc.read_text("maps")?.lines().any(|line| line.trim_end() == alone) {
        return Ok(false);
    }
    let mut results = [0; RESULTS_LEN as usize];
    memory.read_at(addr, &mut results)?;
    Ok(results.ends_with(MARK) || results.iter().all(|&byte| byte == 0))
}

/// Memory for results: for scripts of about a hundred calls.
pub(super) const RESULTS_LEN: u64 = 32 << 10;
/// Its last bytes.
pub(super) const MARK: &[u8; 16] = b"cryopod results\n";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_range_of_maps_is_hexadecimal() {
        // Linux 6.18.
        let line = "7ffe6f7b0000-7ffe6f7b2000 r-xp 00000000 00:00 0                          [vdso]";
        let range = maps_range(line).unwrap();
        assert!(range.has(&DeadBytes {
            start: 0x7ffe_6f7b_1a00,
            end: 0x7ffe_6f7b_2000
        }));
        assert!(!range.has(&DeadBytes {
            start: 0x7ffe_6f7b_1a00,
            end: 0x7ffe_6f7b_3000
        }));
    }
}
