//! The memory map of the task that is rebuilt: everything goes but the stage, then each mapping is made where it was.
#![deny(unsafe_code)]

use std::borrow::Cow;
use std::collections::HashMap;
use std::os::fd::{AsRawFd, BorrowedFd};

use anyhow::{Context, Result, bail};

use super::script::Script;
use super::settings;
use super::stage::Stage;
use super::vdso;
use crate::arch;
use crate::image::ranges::{self, Range};
use crate::image::state::{Backing, Memory, Process, Vma};

/// Descriptors of what mappings refer to, by index in the snapshot and by [`needs_write`]; the task has inherited them under the
/// same numbers.
pub struct MappedFds<'a> {
    pub files: HashMap<(u32, bool), BorrowedFd<'a>>,
    pub shared: HashMap<(u32, bool), BorrowedFd<'a>>,
    /// System V shared memory, which is attached by its id: that, and its size.
    pub segments: HashMap<u32, (i32, u64)>,
}

/// Whether the mapping needs a descriptor for writing: it is shared and may be made writable ("mw", VM_MAYWRITE).
pub fn needs_write(vma: &Vma) -> bool {
    vma.shared && vma.flags.has(b"mw")
}

const PROT_WRITE: u8 = 2;

/// A mapping while children are made.
pub struct Spread<'a> {
    pub vma: &'a Vma,
    /// Where it is; at least where it will be.
    pub span: Range,
    /// The parent's mapping that it already is, by clone(2).
    pub from: Option<&'a Vma>,
}

/// Unmaps all but the stage and what comes from the parent, brings the kernel's own set to its place unless it is among that, then maps all
/// the rest.
pub fn make(
    script: &mut Script<'_>,
    stage: &Stage,
    process: &Process,
    mappings: &[Spread<'_>],
    fds: &MappedFds<'_>,
) -> Result<()> {
    let mut kept = vec![(stage.addr(), stage.end())];
    let from_parent = mappings.iter().filter(|mapping| mapping.from.is_some());
    kept.extend(from_parent.map(|mapping| mapping.span));
    let mut wanted = mappings.iter().filter(|mapping| is_kernels(mapping.vma));
    let needs_vdso = wanted.any(|mapping| mapping.from.is_none());
    if needs_vdso && arch::MAP_VDSO.is_none() {
        kept.extend(vdso::move_to_place(script, stage, process)?);
    }
    let kept = ranges::union(kept);
    for (start, end) in ranges::difference(&[(0, arch::task_size())], &kept) {
        munmap(script, start, end - start)?;
    }
    if needs_vdso && let Some(call) = arch::MAP_VDSO {
        vdso::map_anew(script, &process.memory, call)?;
    }
    let ours = mappings.iter().filter(|mapping| !is_kernels(mapping.vma));
    for (index, mapping) in ours.enumerate() {
        // PR_SET_MEMORY_MERGE has marked mappings without joining equal neighbours (ksm_add_vma(), mm/ksm.c), and will do so again:
        // until then every other one is marked, so that none are joined.
        let marked_later = process.settings.memory_merge && index % 2 == 1;
        let made = match mapping.from {
            Some(from) => adopt(script, mapping, from),
            None => map(script, &wide(mapping.vma, mapping.span), fds, marked_later),
        };
        made.with_context(|| format!("mapping {:x}-{:x}", mapping.vma.start, mapping.vma.end))?;
    }
    Ok(())
}

/// As mmap(2) takes it: these rights, and those of the architecture that only the flags of the mapping tell.
fn prot_of(vma: &Vma, rights: u8) -> i32 {
    let told = arch::PROT_BY_FLAG.iter().filter(|(flag, _)| vma.flags.has(flag));
    told.fold(i32::from(rights), |prot, (_, bit)| prot | bit)
}

pub(super) fn is_kernels(vma: &Vma) -> bool {
    matches!(vma.backing, Backing::Kernel(_))
}

/// Makes a mapping of the parent's what it is to be here: what is not inherited is as if it had never been touched.
fn adopt(script: &mut Script<'_>, mapping: &Spread<'_>, from: &Vma) -> Result<()> {
    let (start, end) = mapping.span;
    if mapping.vma.prot != from.prot {
        let args = [
            start.into(),
            (end - start).into(),
            prot_of(mapping.vma, mapping.vma.prot).into(),
        ];
        script.call("mprotect", libc::SYS_mprotect, args)?;
    }
    for (start, end) in ranges::difference(&[(start, end)], &mapping.vma.inherited) {
        let args = [start.into(), (end - start).into(), libc::MADV_DONTNEED.into()];
        script.call("madvise(MADV_DONTNEED)", libc::SYS_madvise, args)?;
    }
    Ok(())
}

/// The mapping as it is while children are made.
fn wide(vma: &Vma, (start, end): Range) -> Cow<'_, Vma> {
    if (vma.start, vma.end) == (start, end) {
        return Cow::Borrowed(vma);
    }
    let mut vma = vma.clone();
    if let Backing::File { offset, .. } = &mut vma.backing {
        *offset -= vma.start - start; // that of a child, which begins there (is_kin())
    }
    (vma.start, vma.end) = (start, end);
    Cow::Owned(vma)
}

/// Once all children are made.
pub fn trim(script: &mut Script<'_>, mappings: &[Spread<'_>]) -> Result<()> {
    for Spread { vma, span, .. } in mappings {
        for (start, end) in ranges::difference(&[*span], &[(vma.start, vma.end)]) {
            munmap(script, start, end - start)?;
        }
    }
    Ok(())
}

fn munmap(script: &mut Script<'_>, addr: u64, len: u64) -> Result<()> {
    script.call("munmap", libc::SYS_munmap, [addr.into(), len.into()])
}

fn map(script: &mut Script<'_>, vma: &Vma, fds: &MappedFds<'_>, marked_later: bool) -> Result<()> {
    let segment = match vma.backing {
        Backing::Shared { object, offset } => fds.segments.get(&object).map(|segment| (*segment, offset)),
        _ => None,
    };
    match segment {
        Some((segment, offset)) => attach(script, vma, segment, offset)?,
        None => map_by_descriptor(script, vma, fds)?,
    }
    if let Some(policy) = &vma.policy {
        settings::bind(script, vma.start, vma.end - vma.start, policy)?;
    }
    advise(script, vma, marked_later)
}

/// shmat(2), which attaches all of a segment: of one that was unmapped in part, a piece is moved to its place.
fn attach(script: &mut Script<'_>, vma: &Vma, (id, size): (i32, u64), offset: u64) -> Result<()> {
    const READ_WRITE: u8 = 3;
    let (flags, prot) = match needs_write(vma) {
        true => (0, READ_WRITE),
        false => (libc::SHM_RDONLY, 1),
    };
    let (len, size) = (vma.end - vma.start, size.next_multiple_of(arch::PAGE_SIZE));
    if (offset, len) == (0, size) {
        script.call("shmat", libc::SYS_shmat, [id.into(), vma.start.into(), flags.into()])?;
    } else {
        let at = script.ask("shmat", libc::SYS_shmat, [id.into(), 0u64.into(), flags.into()])?;
        let how = libc::MREMAP_MAYMOVE | libc::MREMAP_FIXED;
        let args = [
            (at + offset).into(),
            len.into(),
            len.into(),
            how.into(),
            vma.start.into(),
        ];
        script.call("mremap", libc::SYS_mremap, args)?;
        munmap(script, at, size)?;
    }
    if vma.prot != prot {
        let args = [vma.start.into(), len.into(), prot_of(vma, vma.prot).into()];
        script.call("mprotect", libc::SYS_mprotect, args)?;
    }
    Ok(())
}

fn map_by_descriptor(script: &mut Script<'_>, vma: &Vma, fds: &MappedFds<'_>) -> Result<()> {
    let (fd, offset) = match vma.backing {
        Backing::Anonymous => (-1, 0),
        Backing::File { file, offset } => (
            fds.files
                .get(&(file, needs_write(vma)))
                .context("a file that is not open")?
                .as_raw_fd(),
            offset,
        ),
        Backing::Shared { object, offset } => (
            fds.shared
                .get(&(object, needs_write(vma)))
                .context("no such shared object")?
                .as_raw_fd(),
            offset,
        ),
        Backing::Kernel(_) => bail!("a mapping of the kernel's own"),
    };
    // Private memory that was writable once is accounted ("ac"); mapped read-only from the start it would not be, and would
    // merge with its neighbours: RELRO segments are such.
    let was_writable = !vma.shared && vma.flags.has(b"ac") && vma.prot & PROT_WRITE == 0;
    let first = if was_writable { vma.prot | PROT_WRITE } else { vma.prot };
    let len = vma.end - vma.start;
    let args = [
        vma.start.into(),
        len.into(),
        prot_of(vma, first).into(),
        map_flags(vma).into(),
        fd.into(),
        offset.into(),
    ];
    script.call("mmap", libc::SYS_mmap, args)?;
    if was_writable {
        if vma.backing == Backing::Anonymous {
            touch(script, vma)?;
        }
        let args = [vma.start.into(), len.into(), prot_of(vma, vma.prot).into()];
        script.call("mprotect", libc::SYS_mprotect, args)?;
    }
    Ok(())
}

/// Memory that never had a page is no longer accounted once it is not writable (mprotect_fixup(), mm/mprotect.c). So it gets one, and
/// that page is given back. Before Linux 5.14 that cannot be asked for; then smaps shows no `ac`, and nothing else is different.
fn touch(script: &mut Script<'_>, vma: &Vma) -> Result<()> {
    const MADV_POPULATE_WRITE: i32 = 23;
    for advice in [MADV_POPULATE_WRITE, libc::MADV_DONTNEED] {
        let args = [vma.start.into(), arch::PAGE_SIZE.into(), advice.into()];
        script.attempt("madvise", libc::SYS_madvise, args)?;
    }
    Ok(())
}

fn map_flags(vma: &Vma) -> i32 {
    let mut flags = libc::MAP_FIXED_NOREPLACE
        | if vma.shared {
            libc::MAP_SHARED
        } else {
            libc::MAP_PRIVATE
        };
    if vma.backing == Backing::Anonymous {
        flags |= libc::MAP_ANONYMOUS;
    }
    for (code, flag) in [(b"gd", libc::MAP_GROWSDOWN), (b"nr", libc::MAP_NORESERVE)] {
        if vma.flags.has(code) {
            flags |= flag;
        }
    }
    flags
}

/// What madvise(2) set, by the code that smaps shows (proc_pid_smaps(5)).
const ADVICE: [(&[u8; 2], i32); 8] = [
    (b"sr", libc::MADV_SEQUENTIAL),
    (b"rr", libc::MADV_RANDOM),
    (b"dc", libc::MADV_DONTFORK),
    (b"dd", libc::MADV_DONTDUMP),
    (b"wf", libc::MADV_WIPEONFORK),
    (b"mg", libc::MADV_MERGEABLE),
    (b"hg", libc::MADV_HUGEPAGE),
    (b"nh", libc::MADV_NOHUGEPAGE),
];

fn advise(script: &mut Script<'_>, vma: &Vma, marked_later: bool) -> Result<()> {
    let is_now = |advice: i32| !(marked_later && advice == libc::MADV_MERGEABLE);
    let set = ADVICE.into_iter().filter(|(code, _)| vma.flags.has(code));
    for (_, advice) in set.filter(|(_, advice)| is_now(*advice)) {
        let args = [vma.start.into(), (vma.end - vma.start).into(), advice.into()];
        script.call("madvise", libc::SYS_madvise, args)?;
    }
    Ok(())
}

/// mlock2(2) for locked memory, once its content is there: before, locking would fill it with pages of zeros.
pub fn lock(script: &mut Script<'_>, memory: &Memory) -> Result<()> {
    for vma in memory.vmas.iter().filter(|vma| vma.flags.has(b"lo")) {
        let onfault = if vma.flags.has(b"lf") { libc::MLOCK_ONFAULT } else { 0 };
        let args = [vma.start.into(), (vma.end - vma.start).into(), onfault.into()];
        // Locking a mapping without access succeeds in locking and fails in populating it: ENOMEM, as it did for the program.
        match script.try_ask("mlock2", libc::SYS_mlock2, args)? {
            Ok(_) => {}
            Err(nix::Error::ENOMEM) if vma.prot == 0 => {}
            Err(errno) => bail!("mlock2 of {:x}-{:x}: {}", vma.start, vma.end, errno.desc()),
        }
    }
    Ok(())
}

/// mseal(2), Linux 6.10: nothing of the memory map can be changed after it.
pub fn seal(script: &mut Script<'_>, memory: &Memory) -> Result<()> {
    const SYS_MSEAL: i64 = 462; // the same on all architectures (scripts/syscall.tbl)
    let is_sealed = |vma: &&Vma| vma.flags.has(b"sl") && !matches!(vma.backing, Backing::Kernel(_));
    for vma in memory.vmas.iter().filter(is_sealed) {
        let args = [vma.start.into(), (vma.end - vma.start).into(), 0u64.into()];
        script.call("mseal", SYS_MSEAL, args)?;
    }
    Ok(())
}

/// Guard regions (madvise(2), Linux 6.13) and names of anonymous memory (PR_SET_VMA(2const)).
pub fn guard_and_name(script: &mut Script<'_>, memory: &Memory) -> Result<()> {
    const MADV_GUARD_INSTALL: i32 = 102;
    const PR_SET_VMA: i32 = 0x5356_4d41;
    const PR_SET_VMA_ANON_NAME: u64 = 0;
    for vma in &memory.vmas {
        for (start, end) in &vma.guards {
            let args = [(*start).into(), (end - start).into(), MADV_GUARD_INSTALL.into()];
            script.call("madvise(MADV_GUARD_INSTALL)", libc::SYS_madvise, args)?;
        }
        if !vma.name.is_empty() {
            let name: Vec<u8> = vma.name.iter().copied().chain([0]).collect();
            let (start, len) = (vma.start.into(), (vma.end - vma.start).into());
            let args = [PR_SET_VMA_ANON_NAME.into(), start, len, name.as_slice().into()];
            script.prctl("PR_SET_VMA_ANON_NAME", PR_SET_VMA, &args)?;
        }
    }
    Ok(())
}
