//! The clocks as a process sees them, with the offsets of its time namespace (time_namespaces(7)).

use anyhow::{Context, Result};
use nix::time::{ClockId, clock_gettime};

use super::proc::ProcDir;
use crate::image::state::Clocks;

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Offsets {
    monotonic_ns: i64,
    boottime_ns: i64,
}

/// Our own clock values, moved from our time namespace into that of the process.
pub fn clocks(dir: &ProcDir) -> Result<Clocks> {
    let theirs = offsets(dir)?;
    let ours = offsets(&ProcDir::by_pid(std::process::id() as i32).context("open /proc/self")?)?;
    Ok(Clocks {
        realtime_ns: now(ClockId::CLOCK_REALTIME)?,
        monotonic_ns: monotonic()? - ours.monotonic_ns + theirs.monotonic_ns,
        monotonic_raw_ns: now(ClockId::CLOCK_MONOTONIC_RAW)? - ours.monotonic_ns + theirs.monotonic_ns,
        boottime_ns: now(ClockId::CLOCK_BOOTTIME)? - ours.boottime_ns + theirs.boottime_ns,
        monotonic_offset_ns: theirs.monotonic_ns,
        boottime_offset_ns: theirs.boottime_ns,
    })
}

/// CLOCK_MONOTONIC as we see it.
pub fn monotonic() -> Result<i64> {
    now(ClockId::CLOCK_MONOTONIC)
}

fn now(clock: ClockId) -> Result<i64> {
    let time = clock_gettime(clock).context("clock_gettime")?;
    Ok(time.tv_sec() * 1_000_000_000 + time.tv_nsec())
}

/// A kernel without time namespaces has no such file, and no offsets.
fn offsets(dir: &ProcDir) -> Result<Offsets> {
    match dir.read_if_any("timens_offsets")? {
        Some(text) => parse(&String::from_utf8_lossy(&text)),
        None => Ok(Offsets::default()),
    }
}

/// `monotonic           0         0`: seconds and nanoseconds.
fn parse(text: &str) -> Result<Offsets> {
    let mut offsets = Offsets::default();
    for line in text.lines() {
        let words: Vec<&str> = line.split_whitespace().collect();
        let &[clock, seconds, nanos] = words.as_slice() else {
            anyhow::bail!("timens_offsets: line {line:?}")
        };
        let value = seconds.parse::<i64>()? * 1_000_000_000 + nanos.parse::<i64>()?;
        match clock {
            "monotonic" => offsets.monotonic_ns = value,
            "boottime" => offsets.boottime_ns = value,
            _ => {}
        }
    }
    Ok(offsets)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn offsets_are_read_in_nanoseconds() {
        // Linux 6.18.
        let offsets = parse("monotonic       -3600    500000000\nboottime            7         0\n").unwrap();
        assert_eq!(
            offsets,
            Offsets {
                monotonic_ns: -3_599_500_000_000,
                boottime_ns: 7_000_000_000
            }
        );
    }

    #[test]
    fn our_own_clocks_are_as_we_see_them() {
        let own = clocks(&ProcDir::by_pid(std::process::id() as i32).unwrap()).unwrap();
        let now = monotonic().unwrap();
        assert!(own.monotonic_ns <= now && now - own.monotonic_ns < 1_000_000_000);
    }
}
