//! /proc/PID/smaps (proc_pid_smaps(5)): the mappings of a process, and how much memory each holds.

use anyhow::{Context, Result, bail};

use super::proc::ProcDir;
use crate::image::state::{Name, VmFlags};

/// One mapping as smaps shows it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Area {
    pub start: u64,
    pub end: u64,
    /// PROT_READ 1, PROT_WRITE 2, PROT_EXEC 4.
    pub prot: u8,
    pub shared: bool,
    /// Offset in the file, in bytes.
    pub offset: u64,
    pub device: (u32, u32),
    pub inode: u64,
    /// The last column: a path, `[heap]`, or nothing.
    pub name: Name,
    /// "Rss:" and "Swap:": bytes that are there. The zero page does not count.
    pub resident: u64,
    pub swapped: u64,
    /// pkeys(7), where the CPU has such.
    pub protection_key: u32,
    pub flags: VmFlags,
}

impl Area {
    pub fn len(&self) -> u64 {
        self.end - self.start
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Whether the child of a fork(2) has what this private mapping holds: not after MADV_DONTFORK and MADV_WIPEONFORK, which
    /// MAP_DROPPABLE implies (madvise(2)), and hugetlb pages may be taken from it again (hugetlb_wp(), mm/hugetlb.c). What a tracer
    /// cannot read (without "mr", VM_MAYREAD) is looked at while the process is stopped.
    pub fn is_carried_by_fork(&self) -> bool {
        let not = [b"dc", b"wf", b"dp", b"ht"];
        !self.shared && self.flags.has(b"mr") && !not.iter().any(|code| self.flags.has(code))
    }

    /// For people: `mapping 7f00-7f10 of /dev/dri/card0`.
    pub fn label(&self) -> String {
        let mut label = format!("mapping {:x}-{:x}", self.start, self.end);
        if !self.name.is_empty() {
            label += " of ";
            label += &String::from_utf8_lossy(&self.name);
        }
        label
    }
}

/// The mappings in ascending order, without `[vsyscall]`, which is no mapping but part of the kernel's address space.
pub fn areas(dir: &ProcDir) -> Result<Vec<Area>> {
    let mut areas = parse(&dir.read("smaps")?).context("smaps")?;
    areas.retain(|area| area.name != b"[vsyscall]");
    Ok(areas)
}

/// The same, but as maps shows them, without a look at their pages.
pub fn areas_without_flags(dir: &ProcDir) -> Result<Vec<Area>> {
    let mut areas = parse(&dir.read("maps")?).context("maps")?;
    areas.retain(|area| area.name != b"[vsyscall]");
    Ok(areas)
}

fn parse(text: &[u8]) -> Result<Vec<Area>> {
    let mut areas: Vec<Area> = Vec::new();
    for line in text
        .split(|&b| b == b'\n')
        .filter(|line| !line.is_empty() && !is_of_no_interest(line))
    {
        let shown = || format!("line {:?}", String::from_utf8_lossy(line));
        // A line of a mapping begins with a hexadecimal number in lower case, the others with a capital.
        if line[0].is_ascii_uppercase() {
            let area = areas.last_mut().context("a detail before the first mapping")?;
            detail(area, line).with_context(shown)?;
        } else {
            areas.push(headline(line).with_context(shown)?);
        }
    }
    Ok(areas)
}

/// Most of the twenty lines of each mapping, which are as soon told apart as read.
fn is_of_no_interest(line: &[u8]) -> bool {
    line[0].is_ascii_uppercase()
        && ![&b"Rss:"[..], b"ProtectionKey:", b"Swap:", b"VmFlags:"]
            .iter()
            .any(|key| line.starts_with(key))
}

/// `5609a494c000-5609a4951000 r-xp 00002000 fe:00 247030                     /usr/bin/cat`
fn headline(line: &[u8]) -> Result<Area> {
    let mut rest = line;
    let mut word = || {
        let end = rest.iter().position(|&b| b == b' ').unwrap_or(rest.len());
        let (word, tail) = rest.split_at(end);
        rest = tail.get(1..).unwrap_or_default();
        std::str::from_utf8(word)
    };
    let (range, perms, offset, device, inode) = (word()?, word()?, word()?, word()?, word()?);
    let (start, end) = range.split_once('-').context("no range")?;
    let (major, minor) = device.split_once(':').context("no device")?;
    let perms: [u8; 4] = perms.as_bytes().try_into().context("not four permissions")?;
    let bits = [(b'r', 1), (b'w', 2), (b'x', 4)];
    let area = Area {
        start: hex(start)?,
        end: hex(end)?,
        prot: bits
            .iter()
            .zip(perms)
            .map(|((letter, bit), perm)| if perm == *letter { *bit } else { 0 })
            .sum(),
        shared: perms[3] == b's',
        offset: hex(offset)?,
        device: (u32::from_str_radix(major, 16)?, u32::from_str_radix(minor, 16)?),
        inode: inode.parse()?,
        name: unescape(rest.trim_ascii_start()),
        ..Area::default()
    };
    if area.start >= area.end {
        bail!("an empty range");
    }
    Ok(area)
}

fn detail(area: &mut Area, line: &[u8]) -> Result<()> {
    let line = std::str::from_utf8(line)?;
    let (key, value) = line.split_once(':').context("no colon")?;
    match key {
        "Rss" => area.resident = kibibytes(value)?,
        "ProtectionKey" => area.protection_key = value.trim().parse()?,
        "Swap" => area.swapped = kibibytes(value)?,
        "VmFlags" => area.flags = flags(value)?,
        _ => {}
    }
    Ok(())
}

fn kibibytes(value: &str) -> Result<u64> {
    Ok(value.trim().trim_end_matches(" kB").parse::<u64>()? * 1024)
}

fn flags(value: &str) -> Result<VmFlags> {
    let code = |code: &str| code.as_bytes().try_into().with_context(|| format!("flag {code:?}"));
    Ok(VmFlags(value.split_whitespace().map(code).collect::<Result<_>>()?))
}

fn hex(text: &str) -> Result<u64> {
    Ok(u64::from_str_radix(text, 16)?)
}

/// maps escapes a line break in a name as `\012`, and nothing else (show_map_vma(), fs/proc/task_mmu.c): whether it means one is
/// found out when the file is looked up.
fn unescape(name: &[u8]) -> Name {
    let mut out = Vec::with_capacity(name.len());
    let mut rest = name;
    while let Some((&byte, tail)) = rest.split_first() {
        if let Some(tail) = rest.strip_prefix(b"\\012") {
            out.push(b'\n');
            rest = tail;
        } else {
            out.push(byte);
            rest = tail;
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    // Linux 6.18.
    const TEXT: &[u8] = b"5609a494c000-5609a4951000 r-xp 00002000 fe:00 247030                     /usr/bin/cat\n\
        Size:                 20 kB\nKernelPageSize:        4 kB\nRss:                  16 kB\nSwap:                  4 kB\n\
        THPeligible:           0\nProtectionKey:         3\nVmFlags: rd ex mr mw me \n\
        7f62e49d8000-7f62e49e5000 rw-s 00000000 00:01 1026 \nRss:                   0 kB\n\
        VmFlags: rd wr sh mr mw me ms \n\
        7f62e49e5000-7f62e49e6000 ---p 00000000 00:00 0                          /tmp/a\\012b (deleted)\n\
        ffffffffff600000-ffffffffff601000 --xp 00000000 00:00 0                  [vsyscall]\nVmFlags: ex \n";

    #[test]
    fn a_mapping_has_its_range_protection_and_file() {
        let areas = parse(TEXT).unwrap();
        assert_eq!(
            (areas[0].start, areas[0].end, areas[0].prot),
            (0x5609_a494_c000, 0x5609_a495_1000, 5)
        );
        assert_eq!(
            (areas[0].offset, areas[0].device, areas[0].inode),
            (0x2000, (0xfe, 0), 247_030)
        );
        assert_eq!(areas[0].name, b"/usr/bin/cat");
        assert_eq!((areas[0].resident, areas[0].swapped), (16384, 4096));
        assert_eq!((areas[0].protection_key, areas[1].protection_key), (3, 0));
        assert!(areas[0].flags.has(b"me") && !areas[0].flags.has(b"wr"));
    }

    #[test]
    fn names_may_be_missing_or_hold_line_breaks() {
        let areas = parse(TEXT).unwrap();
        assert!(areas[1].shared && areas[1].name.is_empty());
        assert_eq!(areas[2].name, b"/tmp/a\nb (deleted)");
        assert_eq!(areas[3].prot, 4);
    }

    #[test]
    fn nonsense_is_an_error() {
        assert!(parse(b"7f00-7e00 r--p 0 0:0 0\n").is_err());
        assert!(parse(b"Rss: 0 kB\n").is_err());
    }

    #[test]
    fn our_own_mappings_are_read() {
        let own = areas(&ProcDir::by_pid(std::process::id() as i32).unwrap()).unwrap();
        assert!(own.iter().any(|area| area.name == b"[stack]" && area.flags.has(b"gd")));
        assert!(own.is_sorted_by_key(|area| area.start));
    }
}
