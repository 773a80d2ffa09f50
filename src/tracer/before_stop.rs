//! What a thread was doing before it was stopped, by the scheduler's books.

use std::collections::HashMap;

use nix::unistd::Pid;

use super::pin::Pinned;
use super::proc::ProcDir;
use crate::arch::syscall;

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
    /// The files need the rights that PTRACE_SEIZE needs; a kernel without one of them leaves it unknown. Of a thread that does not
    /// wait for a time nothing but the CPU is asked: the other files cost more than the stop.
    pub(super) fn read(proc: &ProcDir, tid: Pid, cpu: usize) -> Self {
        let text = |name| proc.read_text(&format!("task/{tid}/{name}"));
        if text("syscall").is_ok_and(|syscall| !may_be_timed(&syscall)) {
            return BeforeStop {
                cpu,
                ..BeforeStop::default()
            };
        }
        let sched = text("sched").unwrap_or_default();
        BeforeStop {
            wchan: text("wchan").unwrap_or_default(),
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

/// `202 0x7f31c0 0x80 0x0 0x0 0x0 0x0 0x7ffd00 0x7f3100`: the call that the thread is blocked in, with its arguments (proc_pid_syscall(5)).
/// `running` or `-1` say that it is in none.
fn may_be_timed(syscall: &str) -> bool {
    let mut words = syscall.split_whitespace();
    let Some(number) = words.next().and_then(|word| word.parse().ok()) else {
        return false;
    };
    // Those that take a pointer to their time wait without one where it is null.
    let mut is_null = |argument: usize| words.nth(argument) == Some("0x0");
    match number {
        syscall::RT_SIGTIMEDWAIT => !is_null(2),
        syscall::FUTEX | syscall::EPOLL_PWAIT2 | syscall::SEMTIMEDOP => !is_null(3),
        syscall::NANOSLEEP | syscall::CLOCK_NANOSLEEP | syscall::POLL => true,
        syscall::EPOLL_WAIT | syscall::EPOLL_PWAIT | syscall::RESTART_SYSCALL => true,
        _ => false,
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
    fn a_wait_without_an_end_is_told_from_one_with() {
        // Linux 6.18.
        assert!(may_be_timed("230 0x0 0x0 0x7ffd1 0x7ffd2 0x0 0x0 0x7ffd0 0x7f79\n"));
        assert!(may_be_timed("202 0x7f31c0 0x80 0x0 0x7ffd1 0x0 0x0 0x7ffd0 0x7f31\n"));
        assert!(!may_be_timed("202 0x7f31c0 0x80 0x0 0x0 0x0 0x0 0x7ffd0 0x7f31\n"));
        assert!(!may_be_timed("34 0x0 0x0 0x0 0x0 0x0 0x0 0x7ffd0 0x7f31\n"));
        assert!(!may_be_timed("running\n") && !may_be_timed("-1 0x7ffd0 0x7f31\n"));
    }

    #[test]
    fn exec_start_is_in_nanoseconds() {
        // Linux 6.18.
        let sched =
            "cat (9277, #threads: 1)\n----\nse.exec_start                                :       1378367.670365\n";
        assert_eq!(exec_start(sched), Some(1_378_367_670_365));
    }
}
