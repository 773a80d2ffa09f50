//! When a timed call ends that was restarted: the restart block keeps that moment, and no interface shows it. But while the thread
//! sleeps, its timer is in /proc/timer_list.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use nix::unistd::Pid;

use super::proc::ProcDir;
use super::process::StoppedProcess;
use super::{Result, Resume, Stop};

/// The timers that wake sleeping tasks: what they are known by (the moments between which they end), and the nanoseconds left.
type Timers = BTreeMap<String, u64>;

const ROUNDS: usize = 4;
/// How long a thread may take to fall asleep.
const PATIENCE: Duration = Duration::from_millis(20);

impl StoppedProcess {
    /// Lets the thread sleep on in its call for a moment, as it would without us, and finds the timer that is there only meanwhile.
    /// Sets `left_ns` of the thread. Only root can read the list; for others nothing is found. Should we die, the thread is where it
    /// belongs.
    pub fn find_deadline(&mut self, index: usize) -> Result<()> {
        let mut candidates: Option<Timers> = None;
        for _ in 0..ROUNDS {
            let Some(before) = timers() else { return Ok(()) };
            let Some(during) = self.sleep_meanwhile(index, timers)?.flatten() else {
                return Ok(());
            };
            let after = timers().unwrap_or_default();
            let is_new = |known: &String| !before.contains_key(known) && !after.contains_key(known);
            let seen_before = |known: &String| candidates.as_ref().is_none_or(|seen| seen.contains_key(known));
            let found: Timers = during
                .into_iter()
                .filter(|(known, _)| is_new(known) && seen_before(known))
                .collect();
            // Once is no proof: another task may have gone to sleep and woken up meanwhile, but not twice until the same moment.
            if let (true, 1, Some((_, left_ns))) = (candidates.is_some(), found.len(), found.first_key_value()) {
                self.threads[index].left_ns = Some(*left_ns);
                return Ok(());
            }
            candidates = Some(found);
        }
        Ok(())
    }

    /// Runs the thread into its call again, calls `look` once it sleeps, and stops it. None where the call came to its end.
    fn sleep_meanwhile<T>(&mut self, index: usize, look: impl Fn() -> T) -> Result<Option<T>> {
        let tid = self.threads[index].tid();
        let task = &mut self.threads[index].task;
        let mut seen = None;
        // Its entry into the call, unless a signal comes first.
        let mut stop = task.resume_and_wait(Resume::ToSyscall, 0)?;
        if stop == Stop::Syscall {
            task.resume(Resume::ToSyscall, 0)?;
            seen = falls_asleep(&self.proc, tid).then(look);
            task.interrupt()?;
            stop = task.wait()?;
        }
        while !matches!(stop, Stop::Interrupted { .. }) {
            // On its way out of the call; a stop may have swallowed the interrupt (ptrace_stop(), kernel/signal.c).
            task.interrupt()?;
            let signal = match stop {
                Stop::Signal(signal) => signal,
                _ => 0,
            };
            task.resume(Resume::Continue, signal)?;
            stop = task.wait()?;
        }
        self.threads[index].refresh(&self.memory)?;
        let still_in_it = self.threads[index].regs().interrupted().is_some();
        Ok(seen.filter(|_| still_in_it))
    }
}

fn falls_asleep(proc: &ProcDir, tid: Pid) -> bool {
    let begun = Instant::now();
    while begun.elapsed() < PATIENCE {
        if proc.task_stat(tid).is_ok_and(|stat| stat.state == 'S') {
            return true;
        }
        std::thread::yield_now();
    }
    false
}

/// None where we may not read the list.
fn timers() -> Option<Timers> {
    Some(parse(&std::fs::read_to_string("/proc/timer_list").ok()?))
}

/// Two lines a timer (print_timer(), kernel/time/timer_list.c):
/// ` #3: <0000000000000000>, hrtimer_wakeup, S:01` and ` # expires at 1374-1424 nsecs [in 50 to 100 nsecs]`.
fn parse(list: &str) -> Timers {
    let mut timers = Timers::new();
    let mut lines = list.lines();
    while let Some(line) = lines.next() {
        if line.contains("hrtimer_wakeup")
            && let Some((known, left_ns)) = lines.next().and_then(expiry)
        {
            timers.insert(known, left_ns);
        }
    }
    timers
}

fn expiry(line: &str) -> Option<(String, u64)> {
    let (known, left) = line.trim().strip_prefix("# expires at ")?.split_once(" nsecs [in ")?;
    let left: i64 = left.split_once(" to ")?.0.parse().ok()?;
    Some((known.to_owned(), u64::try_from(left).unwrap_or(0)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn timers_of_sleepers_are_listed_with_the_time_left() {
        // Linux 6.18.
        let list = "active timers:\n #0: <0000000000000000>, tick_nohz_handler, S:01\n \
            # expires at 1373844000000-1373844000000 nsecs [in 3090746 to 3090746 nsecs]\n \
            #1: <0000000000000000>, hrtimer_wakeup, S:01\n \
            # expires at 1373850000000-1373850050000 nsecs [in 9090746 to 9140746 nsecs]\n";
        let timers = parse(list);
        assert_eq!(
            timers.into_iter().collect::<Vec<_>>(),
            [("1373850000000-1373850050000".into(), 9_090_746)]
        );
    }
}
