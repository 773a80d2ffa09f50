//! Filters of seccomp(2). They are suspended while the process is rebuilt, and there before its threads give up the rights that
//! installing them takes.
#![deny(unsafe_code)]

use anyhow::Result;

use super::script::{Arg, Script};
use crate::image::state::{Filter, Process, Thread};

/// The oldest filters that all threads have. Installed before there are other threads, they are one and the same for all: what
/// SECCOMP_FILTER_FLAG_TSYNC looks at (is_ancestor(), kernel/seccomp.c).
pub fn common(process: &Process) -> &[u32] {
    let Some((first, others)) = process.threads.split_first() else {
        return &[];
    };
    let first = first.settings.filters.as_slice();
    let is_common = |len: &usize| {
        others
            .iter()
            .all(|thread| thread.settings.filters.get(..*len) == Some(&first[..*len]))
    };
    &first[..(0..=first.len()).rev().find(is_common).unwrap_or(0)]
}

/// What the first thread gets before others are cloned from it.
pub fn install_common(script: &mut Script<'_>, process: &Process) -> Result<()> {
    let common = common(process).iter();
    common
        .into_iter()
        .try_for_each(|&index| install(script, process, index))
}

/// What a thread has beyond that.
pub fn install_own(script: &mut Script<'_>, process: &Process, thread: &Thread) -> Result<()> {
    let own = thread.settings.filters.iter().skip(common(process).len());
    own.into_iter().try_for_each(|&index| install(script, process, index))
}

/// seccomp(2) with a struct sock_fprog: the count of instructions, and where they are.
fn install(script: &mut Script<'_>, process: &Process, index: u32) -> Result<()> {
    const SECCOMP_SET_MODE_FILTER: u64 = 1;
    // Speculation control is carried by itself: a filter is not to change it.
    const SECCOMP_FILTER_FLAG_SPEC_ALLOW: u64 = 1 << 2;
    const POINTER_AT: usize = 8;
    const INSTRUCTIONS_AT: usize = 16;
    let Filter { flags, instructions } = &process.settings.filters[index as usize];
    let mut bytes = ((instructions.len() / 8) as u64).to_ne_bytes().to_vec();
    bytes.extend([0; INSTRUCTIONS_AT - POINTER_AT]);
    bytes.extend(instructions);
    let program = Arg::Linked {
        bytes: &bytes,
        at: POINTER_AT,
        to: INSTRUCTIONS_AT,
    };
    let flags = flags | SECCOMP_FILTER_FLAG_SPEC_ALLOW;
    let args = [SECCOMP_SET_MODE_FILTER.into(), flags.into(), program];
    script.call("seccomp", libc::SYS_seccomp, args)
}
