//! How a thread is scheduled, as others can see it by its id; it is stopped, so the id is its own. Its timer slack only it can tell
//! without privilege.

use anyhow::{Context, Result};

use crate::image::state::Scheduling;
use crate::sys::process as sys;

pub fn scheduling(tid: i32, timer_slack_ns: u64) -> Result<Scheduling> {
    let attr = sys::sched_getattr(tid).context("sched_getattr")?;
    Ok(Scheduling {
        policy: attr.policy,
        flags: attr.flags,
        nice: attr.nice,
        priority: attr.priority,
        runtime_ns: attr.runtime,
        deadline_ns: attr.deadline,
        period_ns: attr.period,
        util_min: attr.util_min,
        util_max: attr.util_max,
        affinity: sys::sched_getaffinity(tid).context("sched_getaffinity")?,
        io_priority: io_priority(tid)?,
        timer_slack_ns,
    })
}

/// A kernel built without block devices has no ioprio_get(2), and nothing to set.
fn io_priority(tid: i32) -> Result<u32> {
    match sys::ioprio_get(tid) {
        Err(nix::Error::ENOSYS) => Ok(0),
        other => other.context("ioprio_get"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn our_own_scheduling_is_read() {
        let own = scheduling(nix::unistd::gettid().as_raw(), 50_000).unwrap();
        assert_eq!(own.policy, libc::SCHED_OTHER as u32);
        assert!(own.affinity.iter().any(|byte| *byte != 0));
        assert_eq!(own.timer_slack_ns, 50_000);
    }
}
