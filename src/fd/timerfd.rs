//! timerfd_create(2): clock, time left, interval, and expirations that nobody has read.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::Duration;

use anyhow::{Context, Result};
use nix::time::{ClockId, clock_gettime};
use serde::{Deserialize, Serialize};

use super::fdinfo::FdInfo;
use super::kind::{Kind, Probe, Unfit};
use super::look::Look;
use super::probe::Seen;
use super::thaw::{Check, ReopenContext};
use crate::image::state::{Description, Snapshot, TimerTime};
use crate::sys::fds;

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TimerFd {
    /// CLOCK_*.
    pub clock: i32,
    /// Of timerfd_settime(2): TFD_TIMER_ABSTIME, TFD_TIMER_CANCEL_ON_SET.
    pub flags: i32,
    pub time: TimerTime,
    /// Expirations that a read returns.
    pub ticks: u64,
    /// When an absolute timer of the real-time clock expires: a date, which stays that date however long the freeze lasts.
    pub date_ns: Option<i64>,
}

/// How long a timer's interrupt may be late, in steps.
const INTERRUPT: Duration = Duration::from_millis(1);
const INTERRUPTS: usize = 3;

impl Kind for TimerFd {
    fn claims(seen: &Seen, _look: &Look<'_>) -> bool {
        seen.is_anon_inode("[timerfd]") && !seen.only_path()
    }

    fn describe(probe: &Probe<'_>, look: &mut Look<'_>) -> Result<Self, Unfit> {
        let mut timer = TimerFd::parse(&probe.seen.info)?;
        timer.settle(probe, look)?;
        if timer.ticks > 0 && timer.time.interval_ns > 0 {
            timer.count(probe, look)?;
        }
        if timer.is_date() && timer.time.left_ns > 0 {
            timer.date_ns = Some(now(timer.clock)?.saturating_add_unsigned(timer.time.left_ns));
        }
        Ok(timer)
    }

    fn check(&self, description: &Description, check: &mut Check<'_>) {
        match self.make().and_then(|trial| self.set_ticks(trial.as_fd())) {
            Ok(()) => {}
            Err(error) => check.refuse(description, format!("cannot be made: {error:#}"), ""),
        }
    }

    fn reopen(&self, _description: &Description, _context: &mut ReopenContext) -> Result<OwnedFd> {
        self.make()
    }

    fn finish(&self, file: BorrowedFd<'_>, _description: &Description, _snapshot: &Snapshot) -> Result<()> {
        let spec = libc::itimerspec {
            it_value: timespec(self.first_ns()?),
            it_interval: timespec(self.time.interval_ns),
        };
        fds::timerfd_settime(file, self.flags, &spec).context("timerfd_settime")?;
        self.set_ticks(file)
    }
}

impl TimerFd {
    /// timerfd_show(), fs/timerfd.c.
    fn parse(info: &FdInfo) -> Result<Self> {
        let clock = i32::try_from(info.number("clockid", 10)?).context("clockid")?;
        let flags = i32::try_from(info.number("settime flags", 8)?).context("settime flags")?;
        let time = TimerTime {
            left_ns: time(info, "it_value")?,
            interval_ns: time(info, "it_interval")?,
        };
        Ok(TimerFd {
            clock,
            flags,
            time,
            ticks: info.number("ticks", 10)?,
            date_ns: None,
        })
    }

    /// A timer whose time has come shows no time left until the interrupt that counts it, on whichever CPU it is queued; so does one
    /// that is not armed. A look a little later tells them apart.
    fn settle(&mut self, probe: &Probe<'_>, look: &Look<'_>) -> Result<()> {
        let first = (self.time, self.ticks);
        for _ in 0..INTERRUPTS {
            if self.time.left_ns > 0 || (self.time, self.ticks) != first {
                break;
            }
            std::thread::sleep(INTERRUPT);
            *self = TimerFd::parse(&look.fdinfo(probe.seen)?)?;
        }
        Ok(())
    }

    /// A periodic timer that expired stands still until somebody reads or asks it (timerfd_get_remaining(), fs/timerfd.c), and
    /// fdinfo shows neither how often it would have expired nor the time left. Asking it changes nothing that a read would
    /// return.
    fn count(&mut self, probe: &Probe<'_>, look: &Look<'_>) -> Result<()> {
        for _ in 0..INTERRUPTS {
            let time = fds::timerfd_gettime(probe.file.as_fd()).context("timerfd_gettime")?;
            self.time.left_ns = nanoseconds(time.it_value.tv_sec, time.it_value.tv_nsec)?;
            if self.time.left_ns > 0 {
                break;
            }
            std::thread::sleep(INTERRUPT);
        }
        // It has expired, so it is armed: 0 would disarm it at the thaw.
        self.time.left_ns = self.time.left_ns.max(1);
        self.ticks = look.fdinfo(probe.seen)?.number("ticks", 10)?;
        Ok(())
    }

    fn is_date(&self) -> bool {
        let real_time = matches!(self.clock, libc::CLOCK_REALTIME | libc::CLOCK_REALTIME_ALARM);
        real_time && self.flags & libc::TFD_TIMER_ABSTIME != 0
    }

    fn make(&self) -> Result<OwnedFd> {
        fds::timerfd_create(self.clock, libc::TFD_CLOEXEC).with_context(|| {
            format!(
                "timerfd_create of clock {} (alarm clocks need CAP_WAKE_ALARM)",
                self.clock
            )
        })
    }

    fn set_ticks(&self, file: BorrowedFd<'_>) -> Result<()> {
        if self.ticks == 0 {
            return Ok(());
        }
        fds::timerfd_set_ticks(file, self.ticks)
            .context("TFD_IOC_SET_TICKS, which a kernel has that was built with CONFIG_CHECKPOINT_RESTORE")
    }

    /// it_value for timerfd_settime(2): 0 disarms, so a time that has passed is the earliest that is not 0.
    fn first_ns(&self) -> Result<u64> {
        if self.time.left_ns == 0 {
            return Ok(0);
        }
        if let Some(date) = self.date_ns {
            return Ok(u64::try_from(date).unwrap_or(1).max(1));
        }
        if self.flags & libc::TFD_TIMER_ABSTIME != 0 {
            // The kernel takes the absolute time on the caller's clock, whichever time namespace the program will have
            // (timens_ktime_to_host() in timerfd_setup()).
            return Ok(u64::try_from(now(self.clock)?)?.saturating_add(self.time.left_ns));
        }
        Ok(self.time.left_ns)
    }
}

/// `(4, 998976945)`: seconds and nanoseconds.
fn time(info: &FdInfo, key: &str) -> Result<u64> {
    let text = info.value(key).with_context(|| format!("fdinfo has no {key} line"))?;
    let pair = text
        .strip_prefix('(')
        .and_then(|rest| rest.strip_suffix(')'))
        .and_then(|pair| pair.split_once(", "));
    let (seconds, nanos) = pair.with_context(|| format!("{key} {text:?} in fdinfo"))?;
    nanoseconds(seconds.parse()?, nanos.parse()?)
}

fn nanoseconds(seconds: i64, nanos: i64) -> Result<u64> {
    let all = seconds.saturating_mul(1_000_000_000).saturating_add(nanos);
    u64::try_from(all).context("a negative time")
}

fn now(clock: i32) -> Result<i64> {
    // The clocks that wake a sleeping machine run as their namesakes do, and these can always be read.
    let clock = match clock {
        libc::CLOCK_REALTIME_ALARM => libc::CLOCK_REALTIME,
        libc::CLOCK_BOOTTIME_ALARM => libc::CLOCK_BOOTTIME,
        clock => clock,
    };
    let now = clock_gettime(ClockId::from_raw(clock)).with_context(|| format!("clock_gettime of clock {clock}"))?;
    Ok(now.tv_sec().saturating_mul(1_000_000_000).saturating_add(now.tv_nsec()))
}

fn timespec(ns: u64) -> libc::timespec {
    libc::timespec {
        tv_sec: (ns / 1_000_000_000).cast_signed(),
        tv_nsec: (ns % 1_000_000_000).cast_signed(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn info(lines: &str) -> FdInfo {
        FdInfo::parse(format!("pos:\t0\nflags:\t02\nmnt_id:\t17\nino:\t1038\n{lines}")).unwrap()
    }

    /// Linux 6.18.
    const DATE: &str =
        "clockid: 0\nticks: 2\nsettime flags: 03\nit_value: (99, 998901939)\nit_interval: (0, 30000000)\n";

    #[test]
    fn times_are_seconds_and_nanoseconds() {
        let timer = TimerFd::parse(&info(DATE)).unwrap();
        let time = TimerTime {
            left_ns: 99_998_901_939,
            interval_ns: 30_000_000,
        };
        assert_eq!(
            timer,
            TimerFd {
                clock: 0,
                flags: 3,
                time,
                ticks: 2,
                date_ns: None
            }
        );
        assert!(timer.is_date());
    }

    #[test]
    fn a_date_that_has_passed_does_not_disarm() {
        let timer = TimerFd {
            date_ns: Some(-5),
            ..TimerFd::parse(&info(DATE)).unwrap()
        };
        assert_eq!(timer.first_ns().unwrap(), 1);
    }

    #[test]
    fn damaged_lines_are_errors() {
        for wrong in [
            DATE.replace("99, ", "99"),
            DATE.replace("99, ", "-99, "),
            DATE.replace("ticks", "tocks"),
        ] {
            assert!(TimerFd::parse(&info(&wrong)).is_err(), "{wrong}");
        }
    }

    #[test]
    fn a_timer_comes_back_with_time_left_and_ticks() {
        let time = TimerTime {
            left_ns: 50_000_000_000,
            interval_ns: 1_000_000_000,
        };
        let timer = TimerFd {
            clock: libc::CLOCK_MONOTONIC,
            flags: 1,
            time,
            ticks: 7,
            date_ns: None,
        };
        let file = timer.make().unwrap();
        let description = Description {
            kind: 0,
            label: String::new(),
            status_flags: 0,
            io_signals: None,
            payload: vec![],
        };
        timer
            .finish(file.as_fd(), &description, &crate::image::sample::snapshot(1, 1))
            .unwrap();
        let left = fds::timerfd_gettime(file.as_fd()).unwrap();
        assert!(
            (49..=50).contains(&left.it_value.tv_sec) && left.it_interval.tv_sec == 1,
            "{left:?}"
        );
        let mut ticks = [0; 8];
        nix::unistd::read(&file, &mut ticks).unwrap();
        assert_eq!(u64::from_ne_bytes(ticks), 7);
    }
}
