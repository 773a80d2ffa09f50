//! Which time namespace a thawed program needs, so that its clocks do not run backwards. Pure.
#![deny(unsafe_code)]

use std::fmt;

use crate::image::state::Clocks;

/// What /proc/PID/timens_offsets takes (time_namespaces(7)).
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct TimeOffsets {
    pub monotonic_ns: i64,
    pub boottime_ns: i64,
}

/// How the user wants the gap between freeze and thaw to look.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum ClockPolicy {
    /// On the same boot the clocks went on; on another they go on from where they were.
    #[default]
    Auto,
    /// The program's clocks go on from where they were: the gap is hidden.
    Continue,
    /// The machine's clocks, whatever they show.
    Host,
}

/// This machine's clocks now, outside any time namespace.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct HostClocks {
    pub monotonic_ns: i64,
    pub monotonic_raw_ns: i64,
    pub boottime_ns: i64,
    /// Of our own time namespace, which the program is born into where none is made for it.
    pub own_offsets: TimeOffsets,
}

/// The offsets that the program needs against the machine's clocks; `None` where none are needed.
///
/// On the same boot a program that had offsets keeps them. On another boot boot-time and monotonic clock go on from the freeze:
/// there is no telling how long the gap was by those clocks, and neither may run backwards.
pub fn offsets(image: &Clocks, same_boot: bool, now: HostClocks, policy: ClockPolicy) -> Option<TimeOffsets> {
    // One offset serves both monotonic clocks, between which lies what adjtimex(2) made of the one.
    let raw = image.monotonic_raw_ns.saturating_sub(now.monotonic_raw_ns);
    let continued = TimeOffsets {
        monotonic_ns: image.monotonic_ns.saturating_sub(now.monotonic_ns).max(raw),
        boottime_ns: image.boottime_ns.saturating_sub(now.boottime_ns),
    };
    let offsets = match policy {
        ClockPolicy::Host => return None,
        ClockPolicy::Continue => continued,
        ClockPolicy::Auto if same_boot => TimeOffsets {
            monotonic_ns: image.monotonic_offset_ns,
            boottime_ns: image.boottime_offset_ns,
        },
        ClockPolicy::Auto => continued,
    };
    (offsets != now.own_offsets).then_some(offsets)
}

impl fmt::Display for TimeOffsets {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (clock, ns) in [("monotonic", self.monotonic_ns), ("boottime", self.boottime_ns)] {
            writeln!(
                f,
                "{clock} {} {}",
                ns.div_euclid(1_000_000_000),
                ns.rem_euclid(1_000_000_000)
            )?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: HostClocks = HostClocks {
        monotonic_ns: 5_000,
        monotonic_raw_ns: 4_900,
        boottime_ns: 6_000,
        own_offsets: TimeOffsets {
            monotonic_ns: 0,
            boottime_ns: 0,
        },
    };

    fn image(monotonic_ns: i64, offset: i64) -> Clocks {
        Clocks {
            monotonic_ns,
            monotonic_raw_ns: monotonic_ns - 100,
            boottime_ns: monotonic_ns,
            monotonic_offset_ns: offset,
            boottime_offset_ns: offset,
            ..Clocks::default()
        }
    }

    #[test]
    fn on_the_same_boot_the_clocks_went_on() {
        assert_eq!(offsets(&image(1_000, 0), true, NOW, ClockPolicy::Auto), None);
        let kept = Some(TimeOffsets {
            monotonic_ns: 77,
            boottime_ns: 77,
        });
        assert_eq!(offsets(&image(1_000, 77), true, NOW, ClockPolicy::Auto), kept);
    }

    #[test]
    fn on_another_boot_they_go_on_from_the_freeze() {
        let wanted = Some(TimeOffsets {
            monotonic_ns: 95_000,
            boottime_ns: 94_000,
        });
        assert_eq!(offsets(&image(100_000, 3), false, NOW, ClockPolicy::Auto), wanted);
        assert_eq!(offsets(&image(100_000, 3), true, NOW, ClockPolicy::Continue), wanted);
        assert_eq!(offsets(&image(100_000, 3), false, NOW, ClockPolicy::Host), None);
    }

    #[test]
    fn the_raw_monotonic_clock_does_not_go_back_either() {
        let image = Clocks {
            monotonic_raw_ns: 100_000,
            ..image(100_000, 0)
        };
        let found = offsets(&image, false, NOW, ClockPolicy::Auto).map(|offsets| offsets.monotonic_ns);
        assert_eq!(found, Some(95_100));
    }

    #[test]
    fn nanoseconds_are_never_negative() {
        let offsets = TimeOffsets {
            monotonic_ns: -1,
            boottime_ns: 2_000_000_001,
        };
        assert_eq!(offsets.to_string(), "monotonic -1 999999999\nboottime 2 1\n");
    }
}
