//! POSIX timers as /proc/PID/timers lists them (proc_pid_timers(5)); their times only the process itself can tell.

use anyhow::{Context, Result};

use super::proc::ProcDir;
use crate::image::state::{PosixTimer, TimerTime};

/// The timers, without time and overrun.
pub fn posix_timers(dir: &ProcDir) -> Result<Vec<PosixTimer>> {
    let text = dir.read_if_any("timers")?;
    let text =
        text.context("this kernel was built without CONFIG_CHECKPOINT_RESTORE and does not list POSIX timers")?;
    parse(&String::from_utf8_lossy(&text)).context("timers")
}

/// Four lines a timer: `ID: 1`, `signal: 60/00007fff86e452a8`, `notify: signal/pid.2634`, `ClockID: 0`.
fn parse(text: &str) -> Result<Vec<PosixTimer>> {
    let mut timers: Vec<PosixTimer> = Vec::new();
    for line in text.lines() {
        let (key, value) = line.split_once(':').with_context(|| format!("line {line:?}"))?;
        let value = value.trim();
        if key == "ID" {
            timers.push(timer(value.parse()?));
            continue;
        }
        let timer = timers.last_mut().context("a detail before the first timer")?;
        detail(timer, key, value).with_context(|| format!("line {line:?}"))?;
    }
    Ok(timers)
}

fn timer(id: i32) -> PosixTimer {
    PosixTimer {
        id,
        clock: 0,
        notify: 0,
        signal: 0,
        value: 0,
        tid: 0,
        time: TimerTime::default(),
        overrun: 0,
    }
}

fn detail(timer: &mut PosixTimer, key: &str, value: &str) -> Result<()> {
    match key {
        "signal" => {
            let (signal, pointer) = value.split_once('/').context("no value")?;
            timer.signal = signal.parse()?;
            timer.value = u64::from_str_radix(pointer, 16)?;
        }
        "notify" => {
            let (how, whom) = value.split_once('/').context("no target")?;
            (timer.notify, timer.tid) = notification(how, whom)?;
        }
        "ClockID" => timer.clock = value.parse()?,
        _ => {}
    }
    Ok(())
}

/// show_timer() (fs/proc/base.c) names SIGEV_SIGNAL, SIGEV_NONE and SIGEV_THREAD, and says `tid` for SIGEV_THREAD_ID.
fn notification(how: &str, whom: &str) -> Result<(i32, i32)> {
    let notify = match how {
        "signal" => libc::SIGEV_SIGNAL,
        "none" => libc::SIGEV_NONE,
        "thread" => libc::SIGEV_THREAD,
        _ => anyhow::bail!("an unknown way to notify"),
    };
    match whom.split_once('.').context("no target")? {
        ("tid", tid) => Ok((notify | libc::SIGEV_THREAD_ID, tid.parse()?)),
        _ => Ok((notify, 0)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn timers_are_read_with_whom_they_notify() {
        // Linux 6.18.
        let text = "ID: 0\nsignal: 14/0000000000000000\nnotify: signal/pid.2634\nClockID: 0\n\
            ID: 7\nsignal: 34/00007fff86e452a8\nnotify: signal/tid.2640\nClockID: 1\n\
            ID: 8\nsignal: 0/0000000000000000\nnotify: none/pid.2634\nClockID: -6\n";
        let timers = parse(text).unwrap();
        assert_eq!(
            (timers[0].id, timers[0].signal, timers[0].notify, timers[0].tid),
            (0, 14, libc::SIGEV_SIGNAL, 0)
        );
        assert_eq!(
            (timers[1].notify, timers[1].tid, timers[1].clock),
            (libc::SIGEV_THREAD_ID, 2640, 1)
        );
        assert_eq!(timers[1].value, 0x7fff_86e4_52a8);
        assert_eq!((timers[2].notify, timers[2].clock), (libc::SIGEV_NONE, -6));
    }

    #[test]
    fn no_timers_are_none() {
        assert_eq!(parse("").unwrap(), []);
    }
}
