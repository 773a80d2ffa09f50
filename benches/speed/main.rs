//! `cargo bench --bench speed`: how fast cryopod freezes and thaws, beside what the machine can do in the same run.
//!
//! Each number is a median of runs that alternate with those of its reference, which does the least work there could be: two threads that
//! copy memory, two that fill it, a process that only starts. The table is printed and kept as JSON in benches/results/.
//!
//! ```text
//! cargo bench --bench speed -- [--quick] [--only NAME]… [--no-results]
//! ```

mod cases;
mod command;
mod criu;
mod machine;
mod program;
mod reference;
mod report;
mod scaling;

use anyhow::{Result, bail};
use report::Report;

/// How thorough a run is.
pub struct Settings {
    pub quick: bool,
    /// Parts of the names of the cases to run; none: all.
    only: Vec<String>,
}

impl Settings {
    pub fn wants(&self, case: &str) -> bool {
        self.only.is_empty() || self.only.iter().any(|part| case.contains(part.as_str()))
    }

    /// Rounds of a case.
    pub fn rounds(&self, thorough: usize) -> usize {
        if self.quick {
            thorough.div_ceil(4).max(2)
        } else {
            thorough
        }
    }
}

fn main() -> Result<()> {
    let mut args = std::env::args().skip(1).peekable();
    match args.peek().map(String::as_str) {
        // The programs that are frozen, and the references, are this executable again: so it stays small itself.
        Some(program::COMMAND) => program::run(&args.skip(1).collect::<Vec<_>>()),
        Some(reference::COMMAND) => reference::run(&args.skip(1).collect::<Vec<_>>()),
        _ => bench(args),
    }
}

fn bench(mut args: impl Iterator<Item = String>) -> Result<()> {
    let mut settings = Settings {
        quick: false,
        only: Vec::new(),
    };
    let mut keep = true;
    while let Some(arg) = args.next() {
        match arg.as_str() {
            "--bench" => {} // from cargo
            "--quick" => settings.quick = true,
            "--no-results" => keep = false,
            "--only" => settings.only.extend(args.next()),
            other => bail!("{other:?}: the options are --quick, --only NAME and --no-results"),
        }
    }
    // What thaw --detach leaves behind is ours to end and to wait for.
    nix::sys::prctl::set_child_subreaper(true)?;
    let mut report = Report::new(settings.quick);
    cases::run(&settings, &mut report)?;
    scaling::run(&settings, &mut report)?;
    print!("{}", report.table());
    if keep {
        println!("\nkept in {}", report.store()?.display());
    }
    Ok(())
}
