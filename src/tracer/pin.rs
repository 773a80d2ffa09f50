//! Tracer and tracee on one CPU: a remote call takes 6 µs then, and 110 µs when each wake-up crosses CPUs.

use nix::sched::{CpuSet, sched_getaffinity, sched_setaffinity};
use nix::unistd::Pid;

/// While held, the calling thread runs on one CPU, and those that it starts. Only our own affinity changes, never that of the target.
#[derive(Debug)]
pub struct Pinned(Option<CpuSet>);

const SELF: Pid = Pid::from_raw(0);

impl Pinned {
    /// Where we may not run on that CPU (cpuset(7)), we stay where we are: pinning is for speed only.
    pub fn to(cpu: usize) -> Self {
        let before = sched_getaffinity(SELF).ok();
        Pinned(before.filter(|_| set(cpu)))
    }

    /// To the CPU that we are on.
    pub fn here() -> Self {
        nix::sched::sched_getcpu().map_or(Pinned(None), Self::to)
    }

    /// Runs on all CPUs as before, while the result is held.
    pub fn lift(&self) -> Lifted {
        let own = sched_getaffinity(SELF).ok();
        Lifted(own.filter(|_| self.0.is_some_and(|before| sched_setaffinity(SELF, &before).is_ok())))
    }

    /// To another CPU, where we are pinned at all.
    pub fn move_to(&mut self, cpu: usize) {
        if self.holds() {
            set(cpu);
        }
    }

    /// Whether we run on that CPU, and not where we were.
    pub fn holds(&self) -> bool {
        self.0.is_some()
    }
}

/// See [`Pinned::lift`].
#[derive(Debug)]
pub struct Lifted(Option<CpuSet>);

impl Drop for Lifted {
    fn drop(&mut self) {
        if let Some(own) = &self.0 {
            // As above.
            let _changed_since = sched_setaffinity(SELF, own);
        }
    }
}

/// False where we may not run there.
fn set(cpu: usize) -> bool {
    let mut one = CpuSet::new();
    one.set(cpu).is_ok() && sched_setaffinity(SELF, &one).is_ok()
}

impl Drop for Pinned {
    fn drop(&mut self) {
        if let Some(before) = &self.0 {
            // It was our affinity a moment ago; if the cpuset changed since, the kernel has set a new one by itself.
            let _changed_since = sched_setaffinity(SELF, before);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_affinity_comes_back() {
        let before = sched_getaffinity(SELF).unwrap();
        let pinned = Pinned::to(0);
        let one = sched_getaffinity(SELF).unwrap();
        {
            let _lifted = pinned.lift();
            assert_eq!(sched_getaffinity(SELF).unwrap(), before);
        }
        assert_eq!(sched_getaffinity(SELF).unwrap(), one);
        drop(pinned);
        assert_eq!(sched_getaffinity(SELF).unwrap(), before);
    }
}
