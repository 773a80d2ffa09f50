//! What a thread was doing before it was stopped, by the scheduler's books.

use std::collections::HashMap;

use nix::unistd::Pid;

use super::pin::Pinned;
use super::proc::ProcDir;

/// What a thread was doing before it was stopped, which the stop itself changes.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct BeforeStop {
    /// /proc/PID/wchan: the kernel function it waited in; "0" where it ran.
    pub wchan: String,
    /// The CPU it last ran on.
    pub cpu: usize,
    /// se.exec_start of /proc/PID/sched: when it last got on a CPU or left it, by the scheduler's clock of that CPU.
    pub exec_start_ns: Option<u64>,
    /// How often it gave up the CPU by itself (proc_pid_status(5)): whether it slept on until the stop.
    pub voluntary_switches: Option<u64>,
}

impl BeforeStop {
    /// The files need the rights that PTRACE_SEIZE needs; a kernel without one of them leaves it unknown.
    pub(super) fn read(proc: &ProcDir, tid: Pid, cpu: usize) -> Self {
        let sched = proc.read_text(&format!("task/{tid}/sched")).unwrap_or_default();
        BeforeStop {
            wchan: proc.read_text(&format!("task/{tid}/wchan")).unwrap_or_default(),
            cpu,
            exec_start_ns: exec_start(&sched),
            voluntary_switches: voluntary_switches(&sched),
        }
    }

    /// How long the thread, which is stopped now, had slept. None where that is not known: it was not asleep when it was looked at, or
    /// woke up and slept again before it stopped. A stop itself gives up the CPU once.
    pub(super) fn slept_ns(&self, proc: &ProcDir, tid: Pid, clocks: &mut SchedulerClocks) -> Option<u64> {
        let sched = proc.read_text(&format!("task/{tid}/sched")).ok()?;
        if voluntary_switches(&sched)? > self.voluntary_switches? + 1 {
            return None;
        }
        clocks.now(self.cpu)?.checked_sub(self.exec_start_ns?)
    }
}

/// The scheduler's clock of each CPU. They differ: time that interrupts or the hypervisor took is left out (update_rq_clock_task(),
/// kernel/sched/core.c).
#[derive(Debug, Default)]
pub(super) struct SchedulerClocks(HashMap<usize, Option<u64>>);

impl SchedulerClocks {
    /// The clock of a CPU when it was first asked for. None where we may not run on that CPU, or without CONFIG_SCHED_DEBUG.
    fn now(&mut self, cpu: usize) -> Option<u64> {
        *self.0.entry(cpu).or_insert_with(|| {
            let pinned = Pinned::to(cpu);
            // Giving up the CPU brings our own se.exec_start up to date.
            std::thread::yield_now();
            let sched = std::fs::read_to_string("/proc/thread-self/sched").ok()?;
            if pinned.holds() { exec_start(&sched) } else { None }
        })
    }
}

fn voluntary_switches(sched: &str) -> Option<u64> {
    field(sched, "nr_voluntary_switches")?.parse().ok()
}

/// `se.exec_start : 1378367.670365`, in milliseconds with six decimals (proc_sched_show_task(), kernel/sched/debug.c).
fn exec_start(sched: &str) -> Option<u64> {
    let (whole, decimals) = field(sched, "se.exec_start")?.split_once('.')?;
    Some(whole.parse::<u64>().ok()? * 1_000_000 + decimals.parse::<u64>().ok()?)
}

fn field<'a>(sched: &'a str, name: &str) -> Option<&'a str> {
    let line = sched.lines().find(|line| line.starts_with(name))?;
    Some(line.split_once(':')?.1.trim())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_clock_of_a_cpu_goes_on() {
        let cpu = nix::sched::sched_getcpu().unwrap();
        let (first, second) = (SchedulerClocks::default().now(cpu), SchedulerClocks::default().now(cpu));
        assert!(first <= second);
    }

    #[test]
    fn exec_start_is_in_nanoseconds() {
        // Linux 6.18.
        let sched =
            "cat (9277, #threads: 1)\n----\nse.exec_start                                :       1378367.670365\n";
        assert_eq!(exec_start(sched), Some(1_378_367_670_365));
    }
}
