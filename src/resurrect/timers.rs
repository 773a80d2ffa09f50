//! Interval timers and POSIX timers, armed last with the time they had left.
#![deny(unsafe_code)]

use anyhow::{Context, Result, ensure};
use nix::time::{ClockId, clock_getres};

use super::script::Script;
use crate::image::state::{PosixTimer, Process, TimerTime};

const PR_TIMER_CREATE_RESTORE_IDS: i32 = 77;

/// Creates the timers under their ids, disarmed. Threads must exist (SIGEV_THREAD_ID).
pub fn create(script: &mut Script<'_>, timers: &[PosixTimer]) -> Result<()> {
    if timers.is_empty() {
        return Ok(());
    }
    if restore_ids(script, 1)?.is_err() {
        return create_in_sequence(script, timers);
    }
    // /proc/PID/timers lists the newest first, and the next id is one above the last that was made (posix_timer_add(),
    // kernel/time/posix-timers.c).
    for timer in timers.iter().rev() {
        timer_create(script, timer)?;
    }
    ensure!(
        restore_ids(script, 0)?.is_ok(),
        "prctl(PR_TIMER_CREATE_RESTORE_IDS) cannot be switched off"
    );
    Ok(())
}

/// Since Linux 6.15 timer_create(2) takes the wanted id from where it will write it.
fn restore_ids(script: &mut Script<'_>, on: u64) -> Result<std::result::Result<u64, nix::Error>> {
    let args = [
        PR_TIMER_CREATE_RESTORE_IDS.into(),
        on.into(),
        0u64.into(),
        0u64.into(),
        0u64.into(),
    ];
    script.try_ask("prctl", libc::SYS_prctl, args)
}

/// Before 6.15 ids count up from 0 in each process (posix_timer_add(), kernel/time/posix-timers.c): those between are made
/// and deleted.
fn create_in_sequence(script: &mut Script<'_>, timers: &[PosixTimer]) -> Result<()> {
    let mut timers: Vec<&PosixTimer> = timers.iter().collect();
    timers.sort_by_key(|timer| timer.id);
    let mut next = 0;
    for timer in timers {
        ensure!(
            timer.id < 1 << 20,
            "POSIX timer id {} is too high for a kernel before 6.15",
            timer.id
        );
        while next < timer.id {
            timer_create(
                script,
                &PosixTimer {
                    id: next,
                    ..timer.clone()
                },
            )?;
            script.call("timer_delete", libc::SYS_timer_delete, [next.into()])?;
            next += 1;
        }
        timer_create(script, timer)?;
        next += 1;
    }
    Ok(())
}

fn timer_create(script: &mut Script<'_>, timer: &PosixTimer) -> Result<()> {
    // struct sigevent: sigev_value, sigev_signo, sigev_notify, _tid, padding up to 64 bytes.
    let mut event = timer.value.to_ne_bytes().to_vec();
    for word in [timer.signal, timer.notify, timer.tid] {
        event.extend(word.to_ne_bytes());
    }
    event.resize(64, 0);
    let id = timer.id.to_ne_bytes();
    let args = [timer.clock.into(), event.as_slice().into(), id.as_slice().into()];
    script.call("timer_create", libc::SYS_timer_create, args)
}

/// Starts everything. After this time runs for the program.
pub fn arm(script: &mut Script<'_>, process: &Process) -> Result<()> {
    for timer in process.posix_timers.iter().filter(|timer| is_armed(&timer.time)) {
        let time = itimerspec(&timer.time);
        let args = [timer.id.into(), 0i32.into(), time.as_slice().into(), 0u64.into()];
        script.call("timer_settime", libc::SYS_timer_settime, args)?;
    }
    for (which, time) in process.interval_timers.iter().enumerate() {
        let time = ticking(which as i32, time);
        if !is_armed(&time) {
            continue;
        }
        let time = itimerval(&setting(which as i32, &time)?);
        script.call(
            "setitimer",
            libc::SYS_setitimer,
            [(which as u64).into(), time.as_slice().into(), 0u64.into()],
        )?;
    }
    Ok(())
}

const ITIMER_REAL: i32 = 0;

/// A periodic ITIMER_REAL that has expired shows no time left until its SIGALRM is taken, which starts it again
/// (dequeue_signal(), kernel/signal.c); only a disarmed one shows no period either (do_setitimer(), kernel/time/itimer.c).
fn ticking(which: i32, time: &TimerTime) -> TimerTime {
    match which == ITIMER_REAL && time.left_ns == 0 {
        true => TimerTime {
            left_ns: time.interval_ns,
            ..*time
        },
        false => *time,
    }
}

/// What to ask for so that the timer has its time left: setitimer(2) adds a tick to timers of CPU time (set_cpu_itimer(),
/// kernel/time/itimer.c). The coarse clocks have the resolution of a tick.
fn setting(which: i32, time: &TimerTime) -> Result<TimerTime> {
    if which == ITIMER_REAL {
        return Ok(*time);
    }
    let tick = clock_getres(ClockId::CLOCK_MONOTONIC_COARSE).context("clock_getres")?;
    let tick_ns = (tick.tv_sec() * 1_000_000_000 + tick.tv_nsec()).cast_unsigned();
    let left_ns = time.left_ns.saturating_sub(tick_ns).max(1);
    Ok(TimerTime { left_ns, ..*time })
}

fn is_armed(time: &TimerTime) -> bool {
    time.left_ns != 0
}

/// struct itimerspec: interval, then value, each in seconds and nanoseconds.
fn itimerspec(time: &TimerTime) -> Vec<u8> {
    timespec(time.interval_ns).chain(timespec(time.left_ns)).collect()
}

fn timespec(ns: u64) -> impl Iterator<Item = u8> {
    [ns / 1_000_000_000, ns % 1_000_000_000]
        .into_iter()
        .flat_map(u64::to_ne_bytes)
}

/// struct itimerval has microseconds; less than one left is one, since 0 would disarm the timer.
fn itimerval(time: &TimerTime) -> Vec<u8> {
    let timeval = |ns: u64| {
        let us = ns.div_ceil(1_000);
        [us / 1_000_000, us % 1_000_000].into_iter().flat_map(u64::to_ne_bytes)
    };
    timeval(time.interval_ns).chain(timeval(time.left_ns)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_period_whose_signal_is_pending_goes_on_and_a_disarmed_timer_does_not() {
        let pending = TimerTime {
            left_ns: 0,
            interval_ns: 5,
        };
        assert_eq!(ticking(ITIMER_REAL, &pending).left_ns, 5);
        assert_eq!(ticking(libc::ITIMER_PROF, &pending).left_ns, 0);
        assert_eq!(ticking(ITIMER_REAL, &TimerTime::default()).left_ns, 0);
    }

    #[test]
    fn less_than_a_microsecond_left_still_arms_the_timer() {
        let bytes = itimerval(&TimerTime {
            left_ns: 1,
            interval_ns: 0,
        });
        assert_eq!(u64::from_ne_bytes(bytes[24..32].try_into().unwrap()), 1);
    }
}
