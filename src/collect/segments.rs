//! System V shared memory that a process made and that nobody has attached at the moment.

use anyhow::{Context, Result};

use super::proc::ProcDir;
use crate::fd::SharedObjects;
use crate::sysv::segments;
use crate::tracer::StoppedTree;

pub fn intern_unattached(tree: &StoppedTree, shared: &mut SharedObjects) -> Result<()> {
    for segment in segments::unattached()? {
        let mut processes = tree.processes().iter();
        let Some(creator) = processes.find(|process| process.pid().as_raw() == segment.creator) else {
            continue;
        };
        let stat = super::process::stat(&ProcDir::of(creator.proc())?)?;
        let boot = procfs::boot_time_secs().context("btime of /proc/stat")?;
        let began = boot + stat.starttime / procfs::ticks_per_second();
        // Who had the process's id before it made other segments.
        if segment.changed >= began.cast_signed() {
            let file = segment.open();
            shared.intern(file.with_context(|| format!("System V shared memory {}", segment.id))?)?;
        }
    }
    Ok(())
}
