//! What a thread was doing before it was stopped, by the scheduler's books.

use nix::unistd::Pid;

use super::proc::ProcDir;

/// What a thread was doing before it was stopped, which the stop itself changes.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct BeforeStop {
    /// /proc/PID/wchan: the kernel function it waited in; "0" where it ran.
    pub wchan: String,
    /// se.exec_start of /proc/PID/sched: when it last got on a CPU (or was last ticked), by the scheduler's clock. Known of a
    /// thread that slept on until the stop.
    pub exec_start_ns: Option<u64>,
    /// How often it gave up the CPU by itself (proc_pid_status(5)): whether it slept on until the stop.
    voluntary_switches: Option<u64>,
}

impl BeforeStop {
    /// Both files need the rights that PTRACE_SEIZE needs; a kernel without one of them leaves it unknown.
    pub(super) fn read(proc: &ProcDir, tid: Pid) -> Self {
        let sched = proc.read_text(&format!("task/{tid}/sched")).unwrap_or_default();
        BeforeStop {
            wchan: proc.read_text(&format!("task/{tid}/wchan")).unwrap_or_default(),
            exec_start_ns: exec_start(&sched),
            voluntary_switches: voluntary_switches(&sched),
        }
    }

    /// Called at the stop, before any loan: a thread that slept on has given up the CPU once since, for the stop.
    pub(super) fn forget_ended_sleep(&mut self, proc: &ProcDir, tid: Pid) {
        let sched = proc.read_text(&format!("task/{tid}/sched")).unwrap_or_default();
        let switches = self.voluntary_switches.zip(voluntary_switches(&sched));
        if !switches.is_some_and(|(then, now)| now <= then + 1) {
            self.exec_start_ns = None;
        }
    }
}

fn voluntary_switches(sched: &str) -> Option<u64> {
    field(sched, "nr_voluntary_switches")?.parse().ok()
}

/// The scheduler's clock now: our own se.exec_start, right after we were put on the CPU.
pub(super) fn sched_clock() -> Option<u64> {
    std::thread::yield_now();
    exec_start(&std::fs::read_to_string("/proc/thread-self/sched").ok()?)
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
    fn exec_start_is_in_nanoseconds() {
        // Linux 6.18.
        let sched =
            "cat (9277, #threads: 1)\n----\nse.exec_start                                :       1378367.670365\n";
        assert_eq!(exec_start(sched), Some(1_378_367_670_365));
    }
}
