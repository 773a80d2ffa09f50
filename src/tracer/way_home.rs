//! Where the way home lies in a target: bytes of an executable private page that nobody reads, in slots of fixed size.

use std::io;

use super::proc::ProcDir;
use super::{Error, ProcessMemory, Result};
use crate::arch::{SLOT_LEN, Slot};
use nix::unistd::Pid;

/// Dead bytes of an executable page: after the last section of [vdso], or after the end of a mapped file.
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

const PAGE: u64 = 4096;
const AT_SYSINFO_EHDR: u64 = 33;

impl DeadBytes {
    /// The tail of [vdso], found through the auxiliary vector. None where there is no vDSO or no room in it.
    pub fn of_vdso(proc: &ProcDir, memory: &ProcessMemory) -> Option<Self> {
        let base = vdso_base(&proc.read("auxv").ok()?)?;
        let (start, end) = dead_tail(base, memory).ok()??;
        let dead = DeadBytes { start, end };
        (dead.slots() > 0).then_some(dead)
    }

    /// Finds a place: [vdso], else the last page of an executable private file mapping.
    pub fn find(pid: Pid, proc: &ProcDir, memory: &ProcessMemory) -> Result<Self> {
        let lines = proc
            .read_text("maps")
            .map_err(|error| Error::memory(pid, "/proc/PID/maps", &error))?;
        let vdso = Self::of_vdso(proc, memory).filter(|dead| {
            lines
                .lines()
                .any(|line| line.ends_with("[vdso]") && maps_range(line).is_some_and(|m| m.has(dead)))
        });
        vdso.into_iter()
            .chain(lines.lines().filter_map(|line| file_tail(line, proc)))
            .find(|dead| dead.is_dead(memory))
            .ok_or_else(|| Error::Unexpected {
                tid: pid,
                what: "no executable page has 192 unused bytes at its end".into(),
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

/// AT_SYSINFO_EHDR of the auxiliary vector (getauxval(3)).
fn vdso_base(auxv: &[u8]) -> Option<u64> {
    let words: Vec<u64> = auxv
        .chunks_exact(8)
        .filter_map(|word| Some(u64::from_ne_bytes(word.try_into().ok()?)))
        .collect();
    words
        .chunks_exact(2)
        .find(|pair| pair[0] == AT_SYSINFO_EHDR)
        .map(|pair| pair[1])
}

/// After the section headers and every PT_LOAD, up to the end of that page. The kernel maps the vDSO as whole pages, filled with zeros.
fn dead_tail(base: u64, memory: &ProcessMemory) -> io::Result<Option<(u64, u64)>> {
    let mut header = [0; 64];
    memory.read_at(base, &mut header)?;
    if !header.starts_with(b"\x7fELF\x02") {
        return Ok(None);
    }
    let half = |at: usize| u64::from(u16::from_ne_bytes([header[at], header[at + 1]]));
    // Elf64_Ehdr: e_phoff, e_shoff, then e_phentsize, e_phnum, e_shentsize, e_shnum (elf(5)).
    let (program_headers, section_headers) = (word(&header, 32), word(&header, 40));
    let mut end = section_headers + half(58) * half(60);
    for i in 0..half(56) {
        let mut entry = [0; 56];
        memory.read_at(base + program_headers + i * half(54), &mut entry)?;
        // Elf64_Phdr: p_type 1 is PT_LOAD; p_offset, p_filesz.
        if entry[0] == 1 {
            end = end.max(word(&entry, 8) + word(&entry, 32));
        }
    }
    let start = base + end.next_multiple_of(16);
    Ok(Some((start, start.next_multiple_of(PAGE))))
}

fn word(bytes: &[u8], at: usize) -> u64 {
    u64::from_ne_bytes(bytes[at..at + 8].try_into().expect("eight bytes are eight"))
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

/// The rest of the last page of a private r-x mapping of a file that ends in that page.
fn file_tail(line: &str, proc: &ProcDir) -> Option<DeadBytes> {
    let range = maps_range(line)?;
    let fields: Vec<&str> = line.split_whitespace().collect();
    let (perms, offset, inode) = (*fields.get(1)?, fields.get(2)?, fields.get(4)?);
    if perms != "r-xp" || *inode == "0" {
        return None;
    }
    let offset = u64::from_str_radix(offset, 16).ok()?;
    let name = line.split_whitespace().next()?;
    // The mapping itself leads to its file, also where that was deleted or lies in another mount namespace.
    let size = proc
        .open_file(&format!("map_files/{name}"), nix::fcntl::OFlag::O_PATH)
        .ok()?
        .metadata()
        .ok()?
        .len();
    let file_end = range.start + size.checked_sub(offset)?;
    let last_page = range.end - PAGE;
    (last_page < file_end && file_end < range.end)
        .then(|| DeadBytes {
            start: file_end.next_multiple_of(16),
            end: range.end,
        })
        .filter(|dead| dead.slots() > 0)
}

/// Whether a page that a killed freezer's loan was to map is there and is ours: alone, anonymous, with our mark or untouched.
pub(super) fn is_left_page(proc: &ProcDir, memory: &ProcessMemory, addr: u64) -> io::Result<bool> {
    let alone = format!("{addr:x}-{:x} rw-p 00000000 00:00 0", addr + PAGE);
    if !proc.read_text("maps")?.lines().any(|line| line.trim_end() == alone) {
        return Ok(false);
    }
    let mut page = [0; PAGE as usize];
    memory.read_at(addr, &mut page)?;
    Ok(page.ends_with(MARK) || page.iter().all(|&byte| byte == 0))
}

/// The last bytes of a page for results.
pub(super) const MARK: &[u8; 16] = b"cryopod results\n";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_vdso_is_found_in_the_auxiliary_vector() {
        let auxv: Vec<u8> = [6u64, 4096, 33, 0x7ffd_1234_0000, 0, 0]
            .iter()
            .flat_map(|word| word.to_ne_bytes())
            .collect();
        assert_eq!(vdso_base(&auxv), Some(0x7ffd_1234_0000));
    }

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
