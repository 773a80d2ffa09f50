//! Facts about this machine and about ourselves that a plan needs.
#![deny(unsafe_code)]

use std::fs;

use anyhow::{Context, Result};
use xxhash_rust::xxh3::xxh3_64;

use crate::collect::{ProcDir, Status, clocks, limits, scheduling};
use crate::image::state::Snapshot;
use crate::resurrect::plan::Machine;
use crate::resurrect::timens::{HostClocks, TimeOffsets};
use crate::resurrect::{Inherited, own_vdso};

const CAP_SYS_ADMIN: u64 = 1 << 21;
const CAP_SYS_RESOURCE: u64 = 1 << 24;
const CAP_SYS_TIME: u64 = 1 << 25;
const CAP_CHECKPOINT_RESTORE: u64 = 1 << 40;

pub fn look(snapshot: &Snapshot) -> Result<Machine> {
    let own = own_directory()?;
    let status = Status::of(&own)?;
    let can = |capability: u64| status.credentials.effective & capability != 0;
    let clocks = clocks(&own)?;
    let offsets = TimeOffsets {
        monotonic_ns: clocks.monotonic_offset_ns,
        boottime_ns: clocks.boottime_offset_ns,
    };
    Ok(Machine {
        boot_id: read_line("/proc/sys/kernel/random/boot_id")?,
        clocks: HostClocks {
            monotonic_ns: clocks.monotonic_ns - offsets.monotonic_ns,
            boottime_ns: clocks.boottime_ns - offsets.boottime_ns,
            own_offsets: offsets,
        },
        kernel_release: read_line("/proc/sys/kernel/osrelease")?,
        vdso_hash: xxh3_64(&own_vdso()?),
        pid_max: read_line("/proc/sys/kernel/pid_max")?
            .parse()
            .context("kernel.pid_max")?,
        can_choose_pids: can(CAP_CHECKPOINT_RESTORE) || can(CAP_SYS_ADMIN),
        can_set_clocks: can(CAP_SYS_ADMIN) && can(CAP_SYS_TIME) && fs::exists("/proc/self/ns/time")?,
        can_raise_limits: can(CAP_SYS_RESOURCE),
        rlimits: limits(&own)?,
        oom_score_adj: read_line("/proc/self/oom_score_adj")?
            .parse()
            .context("oom_score_adj")?,
        taken: taken_ids(snapshot),
    })
}

/// What the stub will have of us.
pub fn inherited() -> Result<Inherited> {
    let own = std::process::id().cast_signed();
    let mut credentials = Status::of(&own_directory()?)?.credentials;
    credentials.securebits = crate::sys::securebits().context("prctl(PR_GET_SECUREBITS)")?;
    Ok(Inherited {
        credentials,
        scheduling: scheduling(own, own_timer_slack()?)?,
    })
}

fn own_directory() -> Result<ProcDir> {
    ProcDir::by_pid(std::process::id().cast_signed()).context("open /proc/self")
}

fn read_line(path: &str) -> Result<String> {
    Ok(fs::read_to_string(path)
        .with_context(|| format!("read {path}"))?
        .trim()
        .to_owned())
}

/// Every task answers under /proc/TID, threads that no listing shows included.
fn taken_ids(snapshot: &Snapshot) -> Vec<(i32, String)> {
    let ids = snapshot
        .processes
        .iter()
        .flat_map(|process| process.threads.iter().map(|thread| thread.tid));
    ids.filter_map(|id| holder(id).map(|holder| (id, holder))).collect()
}

fn holder(id: i32) -> Option<String> {
    let status = Status::of(&ProcDir::by_pid(id).ok()?).ok()?;
    // It may be gone by now; then the id is free, or clone3 will say that it is not.
    let name = fs::read_to_string(format!("/proc/{id}/comm")).ok()?;
    let name = name.trim_end();
    Some(match status.state {
        'Z' => format!(
            "{name}, which has ended and whose parent, pid {}, has not waited for it",
            status.ppid
        ),
        _ if status.tgid != id => format!("a thread of pid {} ({name})", status.tgid),
        _ => format!("process {name}"),
    })
}

fn own_timer_slack() -> Result<u64> {
    let slack = nix::sys::prctl::get_timerslack().context("PR_GET_TIMERSLACK")?;
    Ok(slack.unsigned_abs().into())
}
