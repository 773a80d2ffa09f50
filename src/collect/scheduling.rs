//! How each thread is scheduled. All but the timer slack is readable from outside by thread id; the thread is stopped, so the id is its own.

use anyhow::{Context, Result};

use super::proc::ProcDir;
use crate::image::state::Scheduling;
use crate::sys::process as sys;

pub fn scheduling(tid: i32) -> Result<Scheduling> {
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
        timer_slack_ns: timer_slack(tid)?,
    })
}

/// A kernel built without block devices has no ioprio_get(2), and nothing to set.
fn io_priority(tid: i32) -> Result<u32> {
    match sys::ioprio_get(tid) {
        Err(nix::Error::ENOSYS) => Ok(0),
        other => other.context("ioprio_get"),
    }
}

/// The file is there for every thread, but listed for none: only /proc/TID has it, not /proc/PID/task/TID.
fn timer_slack(tid: i32) -> Result<u64> {
    let dir = ProcDir::by_pid(tid).context("open /proc/TID")?;
    dir.text("timerslack_ns")?.parse().context("timerslack_ns")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn our_own_scheduling_is_read() {
        let own = scheduling(nix::unistd::gettid().as_raw()).unwrap();
        assert_eq!(own.policy, libc::SCHED_OTHER as u32);
        assert!(own.affinity.iter().any(|byte| *byte != 0));
        assert!(own.timer_slack_ns > 0);
    }
}
