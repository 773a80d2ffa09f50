//! Costs are linear: what a gibibyte, a thread, a mapping takes, for more and more of them.

use std::path::Path;
use std::time::Duration;

use anyhow::Result;

use crate::Settings;
use crate::cases::{Image, TMPFS, walls};
use crate::command::{self, Target};
use crate::machine::meminfo;
use crate::report::{Goal, Report, Row, Unit, median};

/// What grows, in which steps.
struct Scale {
    what: &'static str,
    program: &'static str,
    /// The unit of the steps in what the program is told, and the steps.
    unit: usize,
    steps: &'static [usize],
}

const SCALES: [Scale; 4] = [
    Scale {
        what: "GiB",
        program: "memory",
        unit: 1 << 30,
        steps: &[1, 2, 4, 8],
    },
    Scale {
        what: "thousand threads",
        program: "threads",
        unit: 1000,
        steps: &[1, 2, 5, 10],
    },
    Scale {
        what: "thousand mappings",
        program: "mappings",
        unit: 1000,
        steps: &[1, 10, 30, 60],
    },
    Scale {
        what: "hundred processes",
        program: "processes",
        unit: 100,
        steps: &[1, 5, 20],
    },
];

/// A cost for each that grows by more than this with the number is not linear.
const LEEWAY: f64 = 1.5;

/// What is left to others beside a program and its image.
const ROOM: u64 = 6 << 30;

pub fn run(settings: &Settings, report: &mut Report) -> Result<()> {
    for scale in &SCALES {
        if settings.wants(scale.what) {
            grow(settings, report, scale)?;
        }
    }
    Ok(())
}

fn grow(settings: &Settings, report: &mut Report, scale: &Scale) -> Result<()> {
    let mut first: Option<[f64; 2]> = None;
    for &step in scale.steps {
        let count = step * scale.unit;
        if scale.program == "memory" && meminfo("MemAvailable") < 2 * count as u64 + ROOM {
            eprintln!(
                "{step} {}: skipped, the machine has no room for a program of this size and its image",
                scale.what
            );
            continue;
        }
        let image = Image::in_directory(Path::new(TMPFS));
        let target = Target::start(&[scale.program, &count.to_string()])?;
        let (mut freezes, mut thaws) = (Vec::new(), Vec::new());
        for _ in 0..settings.rounds(5) {
            freezes.push(command::freeze(target.pid, image.fresh(), &["--compress", "none"])?);
            thaws.push(command::thaw(&image.0)?);
        }
        let each = |times: &[Duration]| {
            times
                .iter()
                .map(|time| time.as_secs_f64() * 1e6 / step as f64)
                .collect::<Vec<_>>()
        };
        let costs = [each(&walls(&freezes)), each(&walls(&thaws))];
        // For small counts what every freeze takes is most of it, which the goal leaves out of account: it is an upper bound.
        let base = *first.get_or_insert([median(&costs[0]), median(&costs[1])]);
        for ((verb, values), base) in ["freeze", "thaw"].into_iter().zip(costs).zip(base) {
            let case = format!("{verb} {step} {}: each", scale.what);
            let goal = Some(Goal::AtMost((base * LEEWAY).round()));
            report.add(Row {
                unit: Unit::Microseconds,
                values,
                goal,
                ..Row::of_times(case, &[])
            });
        }
    }
    Ok(())
}
