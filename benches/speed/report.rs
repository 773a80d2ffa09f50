//! The table, and the JSON that is kept.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result};
use serde::Serialize;

use crate::command::Took;
use crate::machine::Machine;

#[derive(Debug, Serialize)]
pub struct Report {
    machine: Machine,
    cryopod: &'static str,
    commit: String,
    date: String,
    quick: bool,
    rows: Vec<Row>,
}

/// One number, with what it is compared with.
#[derive(Debug, Serialize)]
pub struct Row {
    pub case: String,
    pub unit: Unit,
    pub values: Vec<f64>,
    /// Milliseconds of CPU, where the row is a time.
    pub cpu: Vec<f64>,
    pub reference: Option<Reference>,
    pub goal: Option<Goal>,
}

#[derive(Debug, Serialize)]
pub struct Reference {
    pub what: String,
    pub values: Vec<f64>,
}

#[derive(Debug, Clone, Copy, Serialize)]
pub enum Unit {
    #[serde(rename = "ms")]
    Milliseconds,
    #[serde(rename = "MiB")]
    Mebibytes,
    #[serde(rename = "µs")]
    Microseconds,
}

#[derive(Debug, Clone, Copy, Serialize)]
pub enum Goal {
    /// In the unit of the row.
    AtMost(f64),
    /// Reference divided by value: how fast it is beside the reference.
    Ratio(f64),
}

impl Row {
    pub fn of_runs(case: impl Into<String>, runs: &[Took]) -> Self {
        let (walls, cpu): (Vec<_>, Vec<_>) = runs.iter().map(|took| (took.wall, milliseconds(&took.cpu))).unzip();
        Row {
            cpu,
            ..Row::of_times(case, &walls)
        }
    }

    pub fn of_times(case: impl Into<String>, times: &[Duration]) -> Self {
        Row {
            case: case.into(),
            unit: Unit::Milliseconds,
            values: times.iter().map(milliseconds).collect(),
            cpu: Vec::new(),
            reference: None,
            goal: None,
        }
    }

    pub fn of_bytes(case: impl Into<String>, bytes: &[u64]) -> Self {
        let values = bytes.iter().map(|bytes| *bytes as f64 / f64::from(1 << 20)).collect();
        Row {
            unit: Unit::Mebibytes,
            values,
            ..Row::of_times(case, &[])
        }
    }

    pub fn beside(mut self, what: impl Into<String>, times: &[Duration]) -> Self {
        let values = times.iter().map(milliseconds).collect();
        self.reference = Some(Reference {
            what: what.into(),
            values,
        });
        self
    }

    pub fn goal(mut self, goal: Goal) -> Self {
        self.goal = Some(goal);
        self
    }

    fn ratio(&self) -> Option<f64> {
        let reference = self.reference.as_ref()?;
        Some(median(&reference.values) / median(&self.values))
    }

    fn reached(&self) -> Option<bool> {
        Some(match self.goal? {
            Goal::AtMost(most) => median(&self.values) <= most,
            Goal::Ratio(least) => self.ratio()? >= least,
        })
    }
}

impl Report {
    pub fn new(quick: bool) -> Self {
        let first_line = |command: &str, args: &[&str]| {
            let output = std::process::Command::new(command).args(args).output().ok();
            let text = output.map(|output| String::from_utf8_lossy(&output.stdout).into_owned());
            text.unwrap_or_default().lines().next().unwrap_or_default().to_owned()
        };
        Report {
            machine: Machine::own(),
            cryopod: env!("CARGO_PKG_VERSION"),
            commit: first_line("git", &["describe", "--always", "--dirty", "--exclude=*"]),
            date: first_line("date", &["+%Y-%m-%d"]),
            quick,
            rows: Vec::new(),
        }
    }

    pub fn add(&mut self, row: Row) {
        eprintln!("{}", line(&row)); // as it goes, since a run takes minutes
        self.rows.push(row);
    }

    /// As docs/performance.md shows it.
    pub fn table(&self) -> String {
        let Machine {
            cpu,
            cpus,
            memory_gib,
            kernel,
            huge_pages,
        } = &self.machine;
        let mut text = format!(
            "\n{cpu}, {cpus} CPUs, {memory_gib} GiB, Linux {kernel}, transparent huge pages: {huge_pages}; {}, commit {}\n\n",
            self.date, self.commit
        );
        text += "| case | median | best | worst | CPU | beside it | ratio | to reach | reached |\n|---|--:|--:|--:|--:|---|--:|--:|---|\n";
        for row in &self.rows {
            text += &line(row);
            text.push('\n');
        }
        text
    }

    /// Writes benches/results/DATE-COMMIT.json, in place of an earlier run of the same day and commit.
    pub fn store(&self) -> Result<PathBuf> {
        let directory = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("benches/results");
        std::fs::create_dir_all(&directory).context("create benches/results")?;
        let kind = if self.quick { "-quick" } else { "" };
        let path = directory.join(format!("{}-{}{kind}.json", self.date, self.commit));
        let json = serde_json::to_string_pretty(self)?;
        std::fs::write(&path, json + "\n").with_context(|| format!("write {}", path.display()))?;
        Ok(path)
    }
}

fn line(row: &Row) -> String {
    let unit = match row.unit {
        Unit::Milliseconds => "ms",
        Unit::Mebibytes => "MiB",
        Unit::Microseconds => "µs",
    };
    let (best, worst) = row.values.iter().fold((f64::INFINITY, 0f64), |(best, worst), value| {
        (best.min(*value), worst.max(*value))
    });
    let beside = row
        .reference
        .as_ref()
        .map_or(String::new(), |r| format!("{}: {}", r.what, number(median(&r.values))));
    let ratio = row.ratio().map_or(String::new(), |ratio| format!("{ratio:.2}"));
    let goal = row.goal.map_or(String::new(), |goal| match goal {
        Goal::AtMost(most) => format!("≤ {most} {unit}"),
        Goal::Ratio(least) => format!("≥ {least}"),
    });
    let reached = row
        .reached()
        .map_or("", |reached| if reached { "yes" } else { "**no**" });
    let cpu = if row.cpu.is_empty() {
        String::new()
    } else {
        number(median(&row.cpu))
    };
    let (median, best, worst) = (number(median(&row.values)), number(best), number(worst));
    format!(
        "| {} | {median} {unit} | {best} | {worst} | {cpu} | {beside} | {ratio} | {goal} | {reached} |",
        row.case
    )
}

fn number(value: f64) -> String {
    if value < 10.0 {
        format!("{value:.2}")
    } else {
        format!("{value:.0}")
    }
}

pub fn milliseconds(time: &Duration) -> f64 {
    time.as_secs_f64() * 1e3
}

pub fn median(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    match sorted.len() {
        0 => f64::NAN,
        len if len % 2 == 1 => sorted[len / 2],
        len => (sorted[len / 2 - 1] + sorted[len / 2]) / 2.0,
    }
}
