//! Settings of the process and of each thread that are one call each (`crate::image::state`).
#![deny(unsafe_code)]

use anyhow::{Context, Result};

use super::maps;
use super::script::Script;
use crate::arch;
use crate::image::state::{Backing, Process};
use crate::image::state::{MemoryPolicy, ThreadSettings};

/// While there is one thread only: registering with several waits for all CPUs (membarrier_register_private_expedited(),
/// kernel/sched/membarrier.c), and threads take over what the first may use of extended states.
pub fn before_threads(script: &mut Script<'_>, process: &Process) -> Result<()> {
    let settings = &process.settings;
    for command in bits(settings.membarrier.into()) {
        let args = [(1u64 << command).into(), 0u64.into(), 0u64.into()];
        script.call("membarrier", libc::SYS_membarrier, args)?;
    }
    if settings.xstate_permission == 0 {
        return Ok(());
    }
    let (number, command) = arch::REQ_XCOMP_PERM.context("extended states on an architecture that has none")?;
    for feature in bits(settings.xstate_permission & arch::XSTATE_BY_PERMISSION) {
        script.call(
            "arch_prctl(ARCH_REQ_XCOMP_PERM)",
            number,
            [command.into(), feature.into()],
        )?;
    }
    Ok(())
}

fn bits(mask: u64) -> impl Iterator<Item = u64> {
    (0..64).filter(move |bit| mask & (1 << bit) != 0)
}

/// What the whole process has, and what forbids changes of its memory, last.
pub fn of_process(script: &mut Script<'_>, process: &Process) -> Result<()> {
    const PR_SET_MDWE: i32 = 65;
    let settings = &process.settings;
    let (disable, flags) = (settings.thp_disable & 1, settings.thp_disable & !1);
    script.prctl(
        "PR_SET_THP_DISABLE",
        libc::PR_SET_THP_DISABLE,
        &[disable.into(), flags.into()],
    )?;
    merge_memory(script, process)?;
    if let Some(slots) = settings.futex_slots {
        set_futex_slots(script, slots)?;
    }
    if settings.mdwe != 0 {
        script.prctl("PR_SET_MDWE", PR_SET_MDWE, &[settings.mdwe.into()])?;
    }
    maps::seal(script, &process.memory)
}

/// The kernel makes some as threads come (futex_hash_allocate_default(), kernel/futex/core.c), mostly as many as there were.
fn set_futex_slots(script: &mut Script<'_>, wanted: u32) -> Result<()> {
    const PR_FUTEX_HASH: i32 = 78;
    const SET_SLOTS: u64 = 1;
    const GET_SLOTS: u64 = 2;
    let args = [PR_FUTEX_HASH.into(), GET_SLOTS.into(), 0u64.into()];
    match script.try_ask("prctl(PR_FUTEX_HASH_GET_SLOTS)", libc::SYS_prctl, args)? {
        Ok(slots) if slots != u64::from(wanted) => {
            let args = [SET_SLOTS.into(), wanted.into()];
            script.prctl("PR_FUTEX_HASH_SET_SLOTS", PR_FUTEX_HASH, &args)
        }
        // None were to be told by a kernel that knows none.
        Ok(_) | Err(nix::Error::EINVAL) => Ok(()),
        Err(errno) => Err(errno).context("prctl(PR_FUTEX_HASH_GET_SLOTS)"),
    }
}

/// PR_SET_MEMORY_MERGE marks all mappings (ksm_enable_merge_any(), mm/ksm.c): those that were exempt are so again.
fn merge_memory(script: &mut Script<'_>, process: &Process) -> Result<()> {
    const PR_SET_MEMORY_MERGE: i32 = 67;
    if !process.settings.memory_merge {
        return Ok(());
    }
    script.prctl("PR_SET_MEMORY_MERGE", PR_SET_MEMORY_MERGE, &[1u64.into()])?;
    let exempt = process.memory.vmas.iter().filter(|vma| !vma.flags.has(b"mg"));
    for vma in exempt.filter(|vma| !matches!(vma.backing, Backing::Kernel(_))) {
        let args = [
            vma.start.into(),
            (vma.end - vma.start).into(),
            libc::MADV_UNMERGEABLE.into(),
        ];
        script.call("madvise(MADV_UNMERGEABLE)", libc::SYS_madvise, args)?;
    }
    Ok(())
}

/// Before credentials: to be an I/O flusher takes CAP_SYS_RESOURCE.
pub fn of_thread(script: &mut Script<'_>, wanted: &ThreadSettings, inherited: &ThreadSettings) -> Result<()> {
    const PR_MCE_KILL_SET: u64 = 1;
    const PR_SET_IO_FLUSHER: i32 = 57;
    // The stub was executed under another one.
    script.call("personality", libc::SYS_personality, [wanted.personality.into()])?;
    let mce = [PR_MCE_KILL_SET.into(), wanted.mce_kill.into()];
    script.prctl("PR_MCE_KILL", libc::PR_MCE_KILL, &mce)?;
    if wanted.io_flusher != inherited.io_flusher {
        let on = wanted.io_flusher.into();
        script.prctl("PR_SET_IO_FLUSHER", PR_SET_IO_FLUSHER, &[on])?;
    }
    set_speculation(script, wanted, inherited)?;
    if wanted.tsc != 0 {
        script.prctl("PR_SET_TSC", libc::PR_SET_TSC, &[wanted.tsc.into()])?;
    }
    if wanted.cpuid_faults {
        let (number, command) = arch::SET_CPUID.context("CPUID on an architecture that has none")?;
        script.call("arch_prctl(ARCH_SET_CPUID)", number, [command.into(), 0u64.into()])?;
    }
    set_memory_policy(script, wanted.memory_policy.as_ref())
}

/// The default can only fail where the kernel has no CONFIG_NUMA, and so no other.
fn set_memory_policy(script: &mut Script<'_>, wanted: Option<&MemoryPolicy>) -> Result<()> {
    let Some(policy) = wanted else {
        let default = [0u64.into(), 0u64.into(), 0u64.into()];
        return script.attempt("set_mempolicy", libc::SYS_set_mempolicy, default);
    };
    let (mode, nodes) = mask(policy);
    let args = [mode.into(), nodes.as_slice().into(), nodes_len(&nodes).into()];
    script.call("set_mempolicy", libc::SYS_set_mempolicy, args)
}

/// Where the thread had a say, and has one here: PR_SPEC_PRCTL is set. The rest is the machine's.
fn set_speculation(script: &mut Script<'_>, wanted: &ThreadSettings, inherited: &ThreadSettings) -> Result<()> {
    const PR_SET_SPECULATION_CTRL: i32 = 53;
    const PR_SPEC_PRCTL: u32 = 1;
    for ((which, state), own) in (0u64..).zip(wanted.speculation).zip(inherited.speculation) {
        if state & own & PR_SPEC_PRCTL != 0 {
            let args = [which.into(), (state & !PR_SPEC_PRCTL).into()];
            script.prctl("PR_SET_SPECULATION_CTRL", PR_SET_SPECULATION_CTRL, &args)?;
        }
    }
    Ok(())
}

/// mbind(2), before there are pages.
pub fn bind(script: &mut Script<'_>, start: u64, len: u64, policy: &MemoryPolicy) -> Result<()> {
    let (mode, nodes) = mask(policy);
    let args = [
        start.into(),
        len.into(),
        mode.into(),
        nodes.as_slice().into(),
        nodes_len(&nodes).into(),
        0u64.into(),
    ];
    script.call("mbind", libc::SYS_mbind, args)
}

/// The mode and the mask in whole words, as the kernel reads it.
fn mask(policy: &MemoryPolicy) -> (u32, Vec<u8>) {
    let mut nodes = policy.nodes.clone();
    nodes.resize(nodes.len().next_multiple_of(8), 0);
    (policy.mode, nodes)
}

/// One more than there are bits: the kernel takes one off (get_nodes(), mm/mempolicy.c).
fn nodes_len(nodes: &[u8]) -> u64 {
    nodes.len() as u64 * 8 + 1
}
