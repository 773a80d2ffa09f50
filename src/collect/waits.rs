//! The time that a thread's timed call had left, so that a sleep of an hour frozen after 50 minutes lasts 10 more.
//!
//! The kernel keeps it in a restart block that no interface shows. It is the time asked for less the time since the thread went
//! to sleep, which the scheduler's statistics show as long as nobody wakes it: they are read before the thread is seized.

use crate::arch::{Registers, syscall};
use crate::image::state::TimedWait;
use crate::tracer::{ProcessMemory, StoppedThread};

/// What is known about the thread that waits, beside its registers.
struct Wait<'a> {
    /// The kernel function it slept in; empty: not known.
    function: &'a str,
    /// How long it slept; None: not known.
    slept_ns: Option<u64>,
    /// What is left, where that itself is known.
    left_ns: Option<u64>,
    /// Reads two words of its memory: a struct timespec.
    timespec_at: &'a dyn Fn(u64) -> Option<[i64; 2]>,
}

/// What the interrupted call was, and what remains of it.
#[derive(Debug, PartialEq, Eq)]
pub struct Caught {
    /// The call itself, also where the registers say restart_syscall(2).
    pub number: u64,
    /// None: it waits for no time, or for a moment, or has written the time left back into its own argument.
    pub timed: Option<TimedWait>,
}

/// What the thread was caught in, if anything. Where nobody knows how long it slept, its wait begins anew: late rather than early.
pub fn caught_in(thread: &StoppedThread, memory: &ProcessMemory) -> Option<Caught> {
    thread.regs().interrupted()?;
    let timespec_at = |at| timespec(memory, at);
    let wait = Wait {
        function: &thread.before_stop.wchan,
        slept_ns: thread.slept_ns,
        left_ns: thread.left_ns,
        timespec_at: &timespec_at,
    };
    caught(thread.regs(), &wait)
}

/// Whether the thread waits for a time and was already caught in the call once, so that how long it slept is not known from its last
/// sleep alone, and the kernel has not written the time left to where we could read it.
pub fn was_caught_before(thread: &StoppedThread, memory: &ProcessMemory) -> bool {
    let restarts = thread.regs().syscall_number() == Some(syscall::RESTART_SYSCALL);
    let args = thread.regs().arguments();
    let timed = || caught_in(thread, memory).and_then(|caught| caught.timed);
    restarts
        && timed().is_some_and(|timed| match timed.number {
            syscall::NANOSLEEP => args[1] == 0,
            syscall::CLOCK_NANOSLEEP => args[3] == 0,
            _ => true,
        })
}

fn caught(regs: &Registers, wait: &Wait<'_>) -> Option<Caught> {
    let number = regs.syscall_number()?;
    let number = if number == syscall::RESTART_SYSCALL {
        restarted(regs, wait.function)?
    } else {
        number
    };
    let left_ns = left(number, regs.arguments(), wait);
    Some(Caught {
        number,
        timed: left_ns.map(|left_ns| TimedWait { number, left_ns }),
    })
}

/// Which call restart_syscall(2) stands for: those whose restart functions exist (linux/restart_block.h). The arguments are still
/// those of the original call.
fn restarted(regs: &Registers, function: &str) -> Option<u64> {
    let first = regs.arguments()[0];
    let is_clock = first < 16 || (first as u32 as i32) < 0 && first >> 32 == 0;
    if function.contains("poll") {
        Some(syscall::POLL)
    } else if function.contains("futex") {
        Some(syscall::FUTEX)
    } else if ["", "0", "do_signal_stop", "ptrace_stop"].contains(&function) {
        None // it was not asleep in the call when it was looked at
    } else {
        // What is left are the sleeps, whose function is not always named: Linux 6.18 shows do_syscall_64. clock_nanosleep has a
        // clock where nanosleep has a pointer; the clocks of processes are negative (clock_getres(2)).
        Some(if is_clock {
            syscall::CLOCK_NANOSLEEP
        } else {
            syscall::NANOSLEEP
        })
    }
}

const TIMER_ABSTIME: u64 = 1;
/// FUTEX_CMD_MASK, without FUTEX_PRIVATE_FLAG and FUTEX_CLOCK_REALTIME; FUTEX_WAIT is command 0.
const FUTEX_COMMAND: u64 = 0x7f;

/// Nanoseconds left of a wait for a time, by how each call treats its argument when it is interrupted.
fn left(number: u64, args: [u64; 6], wait: &Wait<'_>) -> Option<u64> {
    let timespec = |at: u64| {
        if at == 0 {
            None
        } else {
            (wait.timespec_at)(at).and_then(nanoseconds)
        }
    };
    let rest = |asked: u64| {
        wait.left_ns
            .unwrap_or_else(|| asked.saturating_sub(wait.slept_ns.unwrap_or(0)))
    };
    let millis = |argument: u64| u64::try_from(argument as i32).ok().map(|millis| millis * 1_000_000);
    match number {
        // nanosleep_copyout() has written the time left to *rmtp, where there is one.
        syscall::NANOSLEEP => timespec(args[1]).or_else(|| timespec(args[0]).map(rest)),
        syscall::CLOCK_NANOSLEEP if args[1] & TIMER_ABSTIME == 0 => {
            timespec(args[3]).or_else(|| timespec(args[2]).map(rest))
        }
        syscall::POLL => millis(args[2]).map(rest),
        // FUTEX_WAIT_BITSET and the others wait for a moment (futex(2)).
        syscall::FUTEX if args[1] & FUTEX_COMMAND == 0 => timespec(args[3]).map(rest),
        syscall::EPOLL_WAIT | syscall::EPOLL_PWAIT => millis(args[3]).map(rest),
        syscall::EPOLL_PWAIT2 | syscall::SEMTIMEDOP => timespec(args[3]).map(rest),
        syscall::RT_SIGTIMEDWAIT => timespec(args[2]).map(rest),
        // ppoll, select and pselect6 have written the time left back into their argument (poll_select_finish(), fs/select.c).
        _ => None,
    }
}

/// None of what the kernel would not take (timespec64_valid()): the call fails when it is issued again, as it should.
fn nanoseconds([seconds, nanos]: [i64; 2]) -> Option<u64> {
    let nanos = u64::try_from(nanos).ok().filter(|nanos| *nanos < 1_000_000_000)?;
    Some(
        u64::try_from(seconds)
            .ok()?
            .saturating_mul(1_000_000_000)
            .saturating_add(nanos),
    )
}

/// Reads a struct timespec from memory that may not be there.
fn timespec(memory: &ProcessMemory, at: u64) -> Option<[i64; 2]> {
    let word = |at| memory.read_u64(at).ok().map(u64::cast_signed);
    Some([word(at)?, word(at.checked_add(8)?)?])
}

#[cfg(test)]
mod tests {
    use super::*;

    fn regs(number: u64, result: i64, args: [u64; 6]) -> Registers {
        let mut regs = Registers::from_bytes(&[0; size_of::<libc::user_regs_struct>()]).unwrap();
        regs.set_arguments(args);
        regs.set_syscall_number(number);
        regs.set_result(result);
        regs
    }

    fn catch(function: &str, slept_ms: u64, regs: &Registers) -> Option<Caught> {
        // A request of 2.5 s lies at 0x1000; what is left, written back by the kernel, is 0.7 s at 0x2000.
        let memory = |at: u64| match at {
            0x1000 => Some([2, 500_000_000]),
            0x2000 => Some([0, 700_000_000]),
            _ => None,
        };
        caught(
            regs,
            &Wait {
                function,
                slept_ns: Some(slept_ms * 1_000_000),
                left_ns: None,
                timespec_at: &memory,
            },
        )
    }

    fn left_ms(function: &str, regs: &Registers) -> Option<u64> {
        catch(function, 2000, regs)
            .unwrap()
            .timed
            .map(|timed| timed.left_ns / 1_000_000)
    }

    #[test]
    fn a_sleep_has_left_what_it_has_not_slept() {
        assert_eq!(
            left_ms("", &regs(syscall::NANOSLEEP, -516, [0x1000, 0, 0, 0, 0, 0])),
            Some(500)
        );
        assert_eq!(
            left_ms("", &regs(syscall::CLOCK_NANOSLEEP, -516, [1, 0, 0x1000, 0, 0, 0])),
            Some(500)
        );
        assert_eq!(
            left_ms("", &regs(syscall::POLL, -516, [0, 0, 2100, 0, 0, 0])),
            Some(100)
        );
    }

    #[test]
    fn what_the_kernel_wrote_back_is_exact() {
        assert_eq!(
            left_ms("", &regs(syscall::NANOSLEEP, -516, [0x1000, 0x2000, 0, 0, 0, 0])),
            Some(700)
        );
        assert_eq!(
            left_ms("", &regs(syscall::CLOCK_NANOSLEEP, -516, [1, 0, 0x1000, 0x2000, 0, 0])),
            Some(700)
        );
    }

    #[test]
    fn waits_without_end_or_until_a_moment_have_nothing_left() {
        assert_eq!(
            left_ms("", &regs(syscall::POLL, -516, [0, 0, u64::from(u32::MAX), 0, 0, 0])),
            None
        );
        assert_eq!(
            left_ms("", &regs(syscall::CLOCK_NANOSLEEP, -514, [1, 1, 0x1000, 0, 0, 0])),
            None
        );
        assert_eq!(
            left_ms("", &regs(syscall::FUTEX, -516, [8, 9 | 128, 0, 0x1000, 0, 0])),
            None
        );
        assert_eq!(left_ms("", &regs(syscall::FUTEX, -512, [8, 128, 0, 0, 0, 0])), None);
    }

    #[test]
    fn a_restarted_call_is_told_by_the_function_it_sleeps_in() {
        let restart = |args| regs(syscall::RESTART_SYSCALL, -516, args);
        let number = |function, args| catch(function, 0, &restart(args)).unwrap().number;
        assert_eq!(number("do_sys_poll", [0x7000, 1, 2000, 0, 0, 0]), syscall::POLL);
        assert_eq!(
            number("futex_wait_queue", [0x7000, 128, 0, 0x1000, 0, 0]),
            syscall::FUTEX
        );
        assert_eq!(number("hrtimer_nanosleep", [0x1000, 0, 0, 0, 0, 0]), syscall::NANOSLEEP);
        assert_eq!(
            number("hrtimer_nanosleep", [0, 0, 0x1000, 0, 0, 0]),
            syscall::CLOCK_NANOSLEEP
        );
        assert_eq!(catch("", 0, &restart([0; 6])), None);
    }

    #[test]
    fn a_wait_that_is_over_has_no_time_left() {
        assert_eq!(
            catch("", 9000, &regs(syscall::POLL, -516, [0, 0, 2100, 0, 0, 0]))
                .unwrap()
                .timed
                .unwrap()
                .left_ns,
            0
        );
    }
}
