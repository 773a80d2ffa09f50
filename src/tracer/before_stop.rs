//! What a thread was doing before it was stopped, by the scheduler's books.

use std::collections::HashMap;

use nix::unistd::Pid;

use super::pin::Pinned;
use super::proc::ProcDir;
use crate::arch::syscall;

/// What a thread was doing before it was stopped, which the stop itself changes.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct BeforeStop {
    /// The kernel function it waited in; "0" or nothing where it ran.
    pub wchan: String,
    /// The CPU it last ran on.
    pub cpu: usize,
    /// se.exec_start of /proc/PID/sched: when it last got on a CPU or left it, by the scheduler's clock of that CPU.
    pub exec_start_ns: Option<u64>,
    /// How often it gave up the CPU by itself (proc_pid_status(5)): whether it slept on until the stop.
    pub voluntary_switches: Option<u64>,
    /// The call that it was blocked in.
    pub call: Option<BlockedIn>,
}

/// A system call that a thread is blocked in, as /proc/PID/syscall shows it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BlockedIn {
    pub number: u64,
    pub args: [u64; 6],
    /// Where it returns to.
    pub pc: u64,
}

impl BeforeStop {
    /// The files need the rights that PTRACE_SEIZE needs; a kernel without one of them leaves it unknown. Of a thread that does not
    /// wait for a time nothing but the CPU is asked: the other files cost more than the stop.
    pub(super) fn read(proc: &ProcDir, tid: Pid, cpu: usize) -> Self {
        let text = |name| proc.read_text(&format!("task/{tid}/{name}"));
        let syscall = text("syscall");
        let call = syscall.as_deref().ok().and_then(BlockedIn::parse);
        if syscall.is_ok() && !call.is_some_and(|call| call.may_be_timed()) {
            return BeforeStop {
                cpu,
                call,
                ..BeforeStop::default()
            };
        }
        let sched = text("sched").unwrap_or_default();
        BeforeStop {
            wchan: waits_in(text("wchan").unwrap_or_default(), || text("stack").unwrap_or_default()),
            cpu,
            exec_start_ns: exec_start(&sched),
            voluntary_switches: voluntary_switches(&sched),
            call,
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

impl BlockedIn {
    /// `202 0x7f31c0 0x80 0x0 0x0 0x0 0x0 0x7ffd00 0x7f3100`: the number, six arguments, sp and pc (proc_pid_syscall(5)). `running` or `-1` say
    /// that it is in none.
    fn parse(syscall: &str) -> Option<Self> {
        let mut words = syscall.split_whitespace();
        let number = words.next()?.parse().ok()?;
        let mut hex = || u64::from_str_radix(words.next()?.strip_prefix("0x")?, 16).ok();
        let mut args = [0; 6];
        for arg in &mut args {
            *arg = hex()?;
        }
        let _sp = hex()?;
        Some(BlockedIn {
            number,
            args,
            pc: hex()?,
        })
    }

    fn may_be_timed(&self) -> bool {
        match self.number {
            // Those that take a pointer to their time wait without one where it is null.
            syscall::RT_SIGTIMEDWAIT => self.args[2] != 0,
            syscall::FUTEX | syscall::EPOLL_PWAIT2 | syscall::SEMTIMEDOP => self.args[3] != 0,
            syscall::NANOSLEEP | syscall::CLOCK_NANOSLEEP | syscall::POLL => true,
            syscall::EPOLL_WAIT | syscall::EPOLL_PWAIT | syscall::RESTART_SYSCALL => true,
            _ => false,
        }
    }
}

/// What wchan says; before Linux 5.16 that is always 0 on x86 kernels without frame pointers, and then the stack is looked at, which takes
/// CAP_SYS_ADMIN: of its functions (`[<0>] hrtimer_nanosleep+0x94/0x160`) the first that tells something, or the first.
fn waits_in(wchan: String, stack: impl FnOnce() -> String) -> String {
    const TELLING: [&str; 5] = ["nanosleep", "futex", "poll", "do_signal_stop", "ptrace_stop"];
    if !["", "0"].contains(&wchan.as_str()) {
        return wchan;
    }
    let stack = stack();
    let mut functions = stack
        .lines()
        .filter_map(|line| line.split_once("] ")?.1.split('+').next());
    let first = functions.clone().next();
    let telling = |function: &&str| TELLING.iter().any(|word| function.contains(word));
    functions.find(telling).or(first).map_or(wchan, str::to_owned)
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
        let is_timed = |syscall: &str| BlockedIn::parse(syscall).map(|call| call.may_be_timed());
        let with = |number: u64, fourth: &str| format!("{number} 0x0 0x80 0x0 {fourth} 0x0 0x0 0x7ffd0 0x7f31\n");
        assert_eq!(is_timed(&with(syscall::CLOCK_NANOSLEEP, "0x7ffd2")), Some(true));
        assert_eq!(is_timed(&with(syscall::FUTEX, "0x7ffd1")), Some(true));
        assert_eq!(is_timed(&with(syscall::FUTEX, "0x0")), Some(false));
        assert_eq!(is_timed(&with(libc::SYS_read as u64, "0x0")), Some(false));
        assert_eq!((is_timed("running\n"), is_timed("-1 0x7ffd0 0x7f31\n")), (None, None));
    }

    #[test]
    fn a_call_is_read_with_its_arguments() {
        let call = BlockedIn::parse("202 0x7f31c0 0x80 0x1 0x2 0x3 0x4 0x7ffd00 0x7f3100\n").unwrap();
        assert_eq!(
            (call.number, call.args, call.pc),
            (202, [0x7f_31c0, 0x80, 1, 2, 3, 4], 0x7f_3100)
        );
    }

    #[test]
    fn the_stack_tells_where_wchan_does_not() {
        // Linux 5.10.
        let stack = "[<0>] hrtimer_nanosleep+0x94/0x160\n[<0>] __x64_sys_clock_nanosleep+0xc9/0x130\n";
        assert_eq!(waits_in("0".into(), || stack.into()), "hrtimer_nanosleep");
        assert_eq!(waits_in("do_sys_poll".into(), || stack.into()), "do_sys_poll");
        assert_eq!(
            waits_in("0".into(), || "[<0>] do_syscall_64+0x33/0x80\n".into()),
            "do_syscall_64"
        );
        assert_eq!(waits_in("0".into(), String::new), "0");
    }

    #[test]
    fn exec_start_is_in_nanoseconds() {
        // Linux 6.18.
        let sched =
            "cat (9277, #threads: 1)\n----\nse.exec_start                                :       1378367.670365\n";
        assert_eq!(exec_start(sched), Some(1_378_367_670_365));
    }
}
