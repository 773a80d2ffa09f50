//! A program under another kernel than that of its freeze: the `[vdso]` that it knows stays where it was, as memory of its own, and each of its
//! functions leads to that of this kernel's, or to the system call. Pure.
//!
//! What the program has of the old one are addresses, which the C library asked for once: of functions (vdso(7)) and, on some architectures, of
//! the return from signal handlers. It reads no data there; what the functions read lies beside it and goes.
#![deny(unsafe_code)]

use std::collections::{BTreeMap, HashMap};
use std::ops::Range;

use anyhow::{Context, Result, ensure};
use goblin::elf::Elf;

use super::layout;
use super::vdso::{Vdso, place_of_vdso};
use crate::arch::vdso::Function;
use crate::arch::{self, VDSO_FUNCTIONS};
use crate::image::state::{Backing, Process, Snapshot, VmFlags, Vma};
use crate::refusal::Refusal;

/// What came of it.
#[derive(Debug, Default)]
pub struct Redirected {
    /// By process: where its old `[vdso]` is, and what is there now.
    pub code: HashMap<i32, (u64, Vec<u8>)>,
    pub refusals: Vec<Refusal>,
    /// For people.
    pub note: Option<String>,
}

/// Changes the memory maps of an image that was made with another `[vdso]` to such as this kernel can give. Where something stands against it,
/// nothing is changed.
pub fn redirect(snapshot: &mut Snapshot, own: &Vdso) -> Redirected {
    let is_there = |process: &&Process| place_of_vdso(process).is_some();
    let Some(first) = snapshot.processes.iter().find(is_there).map(|process| process.pid) else {
        return Redirected::default();
    };
    if snapshot.host.vdso == own.bytes {
        return Redirected::default();
    }
    let mut refusals = against_threads(snapshot);
    let then = &snapshot.host.kernel_release;
    let changed = entries(&snapshot.host.vdso).and_then(|entries| {
        let changed = snapshot.processes.iter().map(|process| {
            let changed = change(snapshot, process, own, &entries);
            changed.with_context(|| format!("pid {}", process.pid))
        });
        changed.collect::<Result<Vec<_>>>()
    });
    let changed = changed.unwrap_or_else(|error| {
        let reason =
            format!("is that of another kernel build, Linux {then}, and cannot be led to this one's: {error:#}");
        let remedy = "thaw it under that kernel, on the same kind of CPU";
        refusals.push(Refusal::new(first, "[vdso]", reason, remedy));
        Vec::new()
    });
    if !refusals.is_empty() {
        return Redirected {
            refusals,
            ..Redirected::default()
        };
    }
    let mut code = HashMap::new();
    for (process, changed) in snapshot.processes.iter_mut().zip(changed) {
        if let Some(Changed { vmas, at, bytes, auxv }) = changed {
            code.insert(process.pid, (at, bytes));
            process.memory.vmas = vmas;
            process.memory.auxv = auxv;
        }
    }
    let note = format!("the [vdso] of Linux {then}, which the program knows, leads to that of this kernel now");
    Redirected {
        code,
        refusals,
        note: Some(note),
    }
}

fn against_threads(snapshot: &Snapshot) -> Vec<Refusal> {
    let inside = snapshot.processes.iter().flat_map(|process| {
        let inside = process.threads.iter().filter(|thread| thread.in_vdso);
        inside.map(|thread| (process.pid, thread.tid))
    });
    let then = &snapshot.host.kernel_release;
    let refusal = |(pid, tid)| {
        let object = format!("thread {tid}");
        let reason = format!(
            "is in the middle of a function of [vdso], or handles a signal that came there, which goes on only with that of Linux {then}"
        );
        let remedy = "thaw it under that kernel, on the same kind of CPU, or freeze it in another moment";
        Refusal::new(pid, object, reason, remedy)
    };
    inside.map(refusal).collect()
}

/// Functions by their offsets.
type Entries = BTreeMap<u64, Entry>;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Entry {
    name: &'static str,
    function: Function,
    /// How many bytes of code it has.
    len: u64,
}

/// What a `[vdso]` offers; an error, if there is something that nobody here knows.
fn entries(vdso: &[u8]) -> Result<Entries> {
    let mut unknown = BTreeMap::new();
    let mut entries = Entries::new();
    for (name, offset, len) in symbols(vdso)? {
        match VDSO_FUNCTIONS.iter().find(|(known, _)| *known == name) {
            Some(&(name, function)) => drop(entries.insert(offset, Entry { name, function, len })),
            None => drop(unknown.insert(offset, name)),
        }
    }
    // Another name of one that is known is known.
    let unknown = unknown.into_iter().find(|(offset, _)| !entries.contains_key(offset));
    ensure!(
        unknown.is_none(),
        "its function {:?} is unknown",
        unknown.unwrap_or_default().1
    );
    Ok(entries)
}

/// Name, offset and length of each function.
fn symbols(vdso: &[u8]) -> Result<Vec<(String, u64, u64)>> {
    let elf = Elf::parse(vdso).context("it is no ELF file")?;
    let base = elf
        .program_headers
        .iter()
        .find(|header| header.p_type == goblin::elf::program_header::PT_LOAD);
    let base = base.context("it has no segment")?.p_vaddr;
    let functions = elf
        .dynsyms
        .iter()
        .filter(|symbol| symbol.is_function() && symbol.st_shndx != 0);
    let found = functions.map(|symbol| {
        let name = elf
            .dynstrtab
            .get_at(symbol.st_name)
            .context("a function without a name")?;
        let offset = symbol
            .st_value
            .checked_sub(base)
            .context("a function before its segment")?;
        Ok((name.to_owned(), offset, symbol.st_size))
    });
    found.collect()
}

/// A process as it is to be.
struct Changed {
    vmas: Vec<Vma>,
    at: u64,
    bytes: Vec<u8>,
    auxv: Vec<u8>,
}

fn change(snapshot: &Snapshot, process: &Process, own: &Vdso, entries: &Entries) -> Result<Option<Changed>> {
    let Some(old) = place_of_vdso(process) else {
        return Ok(None);
    };
    ensure!(
        old.end - old.start == snapshot.host.vdso.len() as u64,
        "it is of another size in that process"
    );
    // The same in all that were born of each other, so that these share it.
    let alike = snapshot
        .processes
        .iter()
        .filter(|other| place_of_vdso(other) == Some(old.clone()));
    let set = room(alike, &old, own.set_len()).context("there is no room for this kernel's")?;
    let bytes = lead(&snapshot.host.vdso, old.start, entries, set + own.vdso_at(), &own.bytes)?;
    let mut vmas = Vec::new();
    for vma in &process.memory.vmas {
        match &vma.backing {
            Backing::Kernel(name) if name == "[vdso]" => vmas.push(Vma {
                backing: Backing::Anonymous,
                flags: VmFlags([*b"rd", *b"ex", *b"mr", *b"mw", *b"me"].to_vec()),
                ..vma.clone()
            }),
            Backing::Kernel(_) => {}
            _ => vmas.push(vma.clone()),
        }
    }
    vmas.extend(own.set_at(set));
    vmas.sort_by_key(|vma| vma.start);
    Ok(Some(Changed {
        vmas,
        at: old.start,
        bytes,
        auxv: with_base(&process.memory.auxv, set + own.vdso_at()),
    }))
}

/// Above the old one, where a jump reaches it; else below.
fn room<'a>(processes: impl Iterator<Item = &'a Process>, old: &Range<u64>, len: u64) -> Option<u64> {
    let mut taken = Vec::new();
    for process in processes {
        taken.extend(process.memory.vmas.iter().map(|vma| {
            let gap = if vma.flags.has(b"gd") {
                layout::STACK_GUARD_GAP
            } else {
                0
            };
            vma.start.saturating_sub(gap)..vma.end
        }));
        taken.push(process.memory.layout.start_brk..process.memory.layout.brk);
    }
    let reaches = |at: &u64| arch::jump_code(old.start, *at).is_some() && arch::jump_code(old.end, *at + len).is_some();
    const NEAR: u64 = 64 << 20;
    let from = [old.end, old.start.saturating_sub(NEAR)];
    let mut holes = from.into_iter().filter_map(|from| {
        taken.push(0..from);
        let hole = layout::find_hole(&taken, len, arch::task_size());
        taken.pop();
        hole
    });
    holes.find(reaches)
}

/// The old code, at `at`, with jumps into the new one at `to`.
fn lead(old: &[u8], at: u64, entries: &Entries, to: u64, new: &[u8]) -> Result<Vec<u8>> {
    let there: HashMap<String, u64> = symbols(new)
        .context("this kernel's")?
        .into_iter()
        .map(|(name, offset, _)| (name, offset))
        .collect();
    let mut bytes = old.to_vec();
    for (&offset, entry) in entries {
        let code = match (entry.function, there.get(entry.name)) {
            (Function::Itself, _) => continue,
            // Who calls it has a state of the old kernel's layout.
            (Function::Random, _) => arch::getrandom_code(),
            (Function::Call(_), Some(new)) => arch::jump_code(at + offset, to + new).context("it is too far away")?,
            (Function::Call(number), None) => arch::syscall_code(number),
        };
        let place = usize::try_from(offset)
            .ok()
            .and_then(|offset| bytes.get_mut(offset..offset.checked_add(code.len())?))
            .filter(|_| code.len() as u64 <= entry.len);
        place
            .with_context(|| format!("its function {} is too short", entry.name))?
            .copy_from_slice(&code);
    }
    Ok(bytes)
}

/// AT_SYSINFO_EHDR tells who looks later where the kernel's code is.
fn with_base(auxv: &[u8], base: u64) -> Vec<u8> {
    let mut auxv = auxv.to_vec();
    for pair in auxv.chunks_exact_mut(16) {
        if pair[..8] == libc::AT_SYSINFO_EHDR.to_ne_bytes() {
            pair[8..].copy_from_slice(&base.to_ne_bytes());
        }
    }
    auxv
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_kernel_s_functions_are_all_known() {
        let own = Vdso::own().unwrap();
        let found = entries(&own.bytes).unwrap();
        assert!(found.values().any(|entry| entry.name.ends_with("_clock_gettime")));
        assert!(found.values().all(|entry| entry.len > 0));
    }

    #[test]
    fn each_function_leads_somewhere_and_nothing_else_changes() {
        let own = Vdso::own().unwrap();
        let found = entries(&own.bytes).unwrap();
        let led = lead(&own.bytes, 0x7fff_0000, &found, 0x7fff_8000, &own.bytes).unwrap();
        let mut expected = own.bytes.clone();
        for (offset, entry) in found {
            let code = match entry.function {
                Function::Itself => continue,
                Function::Random => arch::getrandom_code(),
                Function::Call(_) => arch::jump_code(0x7fff_0000, 0x7fff_8000).unwrap(),
            };
            expected[offset as usize..][..code.len()].copy_from_slice(&code);
        }
        assert_eq!(led, expected);
    }

    #[test]
    fn what_is_not_there_is_called() {
        let found = BTreeMap::from([(
            16,
            Entry {
                name: "gone",
                function: Function::Call(7),
                len: 32,
            },
        )]);
        let own = Vdso::own().unwrap();
        let led = lead(&[0; 64], 0, &found, 0x1000, &own.bytes).unwrap();
        let code = arch::syscall_code(7);
        assert_eq!(led[16..][..code.len()], code);
        assert!(lead(&[0; 18], 0, &found, 0x1000, &own.bytes).is_err());
    }

    #[test]
    fn what_nobody_knows_and_what_is_no_elf_is_an_error() {
        assert!(entries(b"#!/bin/sh").is_err());
        assert!(entries(&[]).is_err());
        let program = std::fs::read("/proc/self/exe").unwrap();
        assert!(entries(&program).is_err() || entries(&program).unwrap().is_empty());
    }
}
