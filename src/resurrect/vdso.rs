//! The kernel's own mappings, `[vdso]` and what belongs to it, at the place that they have in the image.
#![deny(unsafe_code)]

use std::fs::File;
use std::os::unix::fs::FileExt;

use anyhow::{Context, Result, ensure};
use nix::unistd::Pid;

use super::layout;
use super::process::memory_map;
use super::script::Script;
use super::stage::Stage;
use crate::arch;
use crate::image::ranges::Range;
use crate::image::state::{Backing, Memory, Process, VmFlags, Vma};

/// The `[vdso]` of this kernel, the same in all processes, and what is mapped with it.
#[derive(Debug)]
pub struct Vdso {
    pub bytes: Vec<u8>,
    /// Counted from the lowest.
    set: Vec<KernelMapping>,
}

impl Vdso {
    /// Our own.
    pub fn own() -> Result<Self> {
        let own = of_task(Pid::this())?;
        let lowest = own.first().map_or(0, |(_, start, _)| *start);
        let set = own
            .iter()
            .map(|(name, start, end)| (name.clone(), start - lowest, end - lowest));
        let vdso = place_of("[vdso]", &own)?;
        let mut bytes = vec![0; (vdso.end - vdso.start) as usize];
        let memory = File::open("/proc/self/mem").context("open /proc/self/mem")?;
        memory
            .read_exact_at(&mut bytes, vdso.start)
            .context("read our [vdso]")?;
        Ok(Vdso {
            bytes,
            set: set.collect(),
        })
    }

    /// Of the whole set.
    pub fn set_len(&self) -> u64 {
        self.set.iter().map(|(_, _, end)| *end).max().unwrap_or(0)
    }

    /// Where `[vdso]` itself is in the set.
    pub fn vdso_at(&self) -> u64 {
        place_of("[vdso]", &self.set).map_or(0, |range| range.start)
    }

    /// The mappings of a set that begins at `start`.
    pub fn set_at(&self, start: u64) -> impl Iterator<Item = Vma> {
        self.set.iter().map(move |(name, from, to)| {
            let (prot, codes) = match name.as_str() {
                "[vdso]" => (5, [*b"rd", *b"ex"]),
                _ => (1, [*b"rd", *b"mr"]),
            };
            Vma {
                start: start + from,
                end: start + to,
                prot,
                shared: false,
                backing: Backing::Kernel(name.clone()),
                flags: VmFlags(codes.to_vec()),
                name: Vec::new(),
                guards: Vec::new(),
                huge: Vec::new(),
                policy: None,
                inherited: Vec::new(),
                resident: 0,
            }
        })
    }

    /// Address of a system call instruction in a process that has this `[vdso]`.
    pub fn syscall_in(&self, process: &Process) -> Result<u64> {
        let vdso = place_of_vdso(process).context("the image has no [vdso]")?;
        let at = self
            .bytes
            .windows(arch::SYSCALL_INSTRUCTION.len())
            .position(|bytes| bytes == arch::SYSCALL_INSTRUCTION);
        Ok(vdso.start + at.context("the [vdso] has no system call instruction")? as u64)
    }
}

/// A mapping of the kernel's own in a task: name, start, end.
type KernelMapping = (String, u64, u64);

fn kernel_mappings(process: &Process) -> Result<Vec<KernelMapping>> {
    of_task(Pid::from_raw(process.pid))
}

fn of_task(pid: Pid) -> Result<Vec<KernelMapping>> {
    let is_kernels = |name: &str| name.starts_with("[v") && name != "[vsyscall]";
    let map = memory_map(pid)?.into_iter();
    let kernels = map.filter(|(name, _)| is_kernels(name));
    Ok(kernels.map(|(name, range)| (name, range.start, range.end)).collect())
}

/// `[vvar]` and `[vdso]` come as one set, mapped by the kernel at the lowest address of the recorded set, by a `call` of arch_prctl(2).
///
/// ARCH_MAP_VDSO_64 takes the address as a hint (map_vdso(), arch/x86/entry/vdso/vma.c); it is free now, so the hint is followed, and
/// [`verify`] looks.
pub fn map_anew(script: &mut Script<'_>, memory: &Memory, (number, command): (i64, u64)) -> Result<()> {
    let lowest = memory.vmas.iter().find(|vma| matches!(vma.backing, Backing::Kernel(_)));
    let Some(lowest) = lowest else {
        return Ok(());
    };
    script
        .ask(
            "arch_prctl(ARCH_MAP_VDSO_64)",
            number,
            [command.into(), lowest.start.into()],
        )
        .map(drop)
        .context("map [vdso] (needs a kernel with CONFIG_CHECKPOINT_RESTORE)")
}

/// Where the kernel maps no second set, the one that the task was born with is moved, by mremap(2), of which the kernel takes note
/// (vdso_mremap(), arch/arm64/kernel/vdso.c). Returns where it is then.
pub fn move_to_place(script: &mut Script<'_>, stage: &Stage, process: &Process) -> Result<Vec<Range>> {
    let (wanted, actual) = (wanted(&process.memory), kernel_mappings(process)?);
    let shape = |set: &[KernelMapping]| -> Vec<(String, u64)> {
        let mut shape: Vec<_> = set
            .iter()
            .map(|(name, start, end)| (name.clone(), end - start))
            .collect();
        shape.sort();
        shape
    };
    ensure!(shape(&wanted) == shape(&actual), "{}", other_layout(&wanted, &actual));
    let range = |(_, start, end): &KernelMapping| *start..*end;
    let destinations: Vec<_> = wanted.iter().map(range).collect();
    let mut sources: Vec<_> = wanted
        .iter()
        .map(|(name, ..)| place_of(name, &actual))
        .collect::<Result<_>>()?;
    let overlap = |a: &std::ops::Range<u64>, b: &std::ops::Range<u64>| a.start < b.end && b.start < a.end;
    if sources == destinations {
        return Ok(wanted.iter().map(|(_, start, end)| (*start, *end)).collect());
    }
    if sources
        .iter()
        .any(|source| destinations.iter().any(|to| overlap(source, to)))
    {
        // By way of a place that is in nobody's way.
        let mut taken: Vec<_> = sources.iter().chain(&destinations).cloned().collect();
        taken.push(stage.addr()..stage.end());
        for source in &mut sources {
            let len = source.end - source.start;
            let hole =
                layout::find_hole(&taken, len, arch::task_size()).context("no room for the [vdso] on its way")?;
            mremap(script, source, hole)?;
            *source = hole..hole + len;
            taken.push(source.clone());
        }
    }
    for (source, to) in sources.iter().zip(&destinations) {
        mremap(script, source, to.start)?;
    }
    Ok(destinations.iter().map(|to| (to.start, to.end)).collect())
}

/// Compares the kernel's own mappings that the task has with those of the image.
pub fn verify(process: &Process) -> Result<()> {
    let (wanted, actual) = (wanted(&process.memory), kernel_mappings(process)?);
    ensure!(wanted == actual, "{}", other_layout(&wanted, &actual));
    Ok(())
}

fn wanted(memory: &Memory) -> Vec<KernelMapping> {
    let kernels_own = memory.vmas.iter().filter_map(|vma| match &vma.backing {
        Backing::Kernel(name) => Some((name.clone(), vma.start, vma.end)),
        _ => None,
    });
    kernels_own.collect()
}

fn other_layout(wanted: &[KernelMapping], actual: &[KernelMapping]) -> String {
    format!("this kernel's [vdso] set is laid out otherwise than the image's: {actual:x?} instead of {wanted:x?}")
}

/// Of the image.
pub(super) fn place_of_vdso(process: &Process) -> Option<std::ops::Range<u64>> {
    let is_vdso = |vma: &&Vma| matches!(&vma.backing, Backing::Kernel(name) if name == "[vdso]");
    let vdso = process.memory.vmas.iter().find(is_vdso)?;
    Some(vdso.start..vdso.end)
}

fn place_of(name: &str, set: &[KernelMapping]) -> Result<std::ops::Range<u64>> {
    let found = set.iter().find(|(other, ..)| other == name);
    found
        .map(|(_, start, end)| *start..*end)
        .with_context(|| format!("this kernel maps no {name}"))
}

fn mremap(script: &mut Script<'_>, from: &std::ops::Range<u64>, to: u64) -> Result<()> {
    let len = from.end - from.start;
    let flags = libc::MREMAP_MAYMOVE | libc::MREMAP_FIXED;
    let args = [from.start.into(), len.into(), len.into(), flags.into(), to.into()];
    script.ask("mremap", libc::SYS_mremap, args).map(drop)
}
