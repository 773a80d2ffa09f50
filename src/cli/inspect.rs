//! `cryopod inspect`: what is in an image, without touching a process.

mod gather;
mod ipc;
mod names;
mod report;
mod settings;
mod stored;
mod text;

use crate::image::read::{Reader, Totals};
use crate::image::state::Snapshot;
use crate::image::{Error, header::Header};
use anyhow::{Context, Result};
use report::Report;
use std::fs::File;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use stored::Stored;

/// Shows what is in an image: processes, threads, memory, descriptors, signals, timers
///
/// It works on an image of any architecture, touches no process and needs no privilege. It does not read the pages themselves;
/// `cryopod verify` does.
#[derive(clap::Args, Debug)]
pub struct Args {
    /// The image; - reads standard input
    #[arg(value_name = "FILE")]
    image: PathBuf,
    /// Print JSON for scripts; addresses and registers are strings of hexadecimal digits
    #[arg(long)]
    json: bool,
}

pub fn run(args: &Args) -> Result<ExitCode> {
    let name = args.image.display();
    let contents = Contents::of(&args.image).with_context(|| format!("cannot inspect {name}"))?;
    let report = Report::new(&args.image, &contents);
    let text = match args.json {
        true => serde_json::to_string_pretty(&report)? + "\n",
        false => text::render(&report),
    };
    // Without context, so that the caller can tell a reader that left, as `head` does.
    io::stdout().lock().write_all(text.as_bytes())?;
    Ok(ExitCode::SUCCESS)
}

/// What an image says of itself.
struct Contents {
    header: Header,
    snapshot: Snapshot,
    stored: Stored,
    totals: Totals,
}

impl Contents {
    fn of(path: &Path) -> Result<Self> {
        if path == Path::new("-") {
            return Ok(Contents::listed(Reader::open(io::stdin().lock())?, Reader::list)?);
        }
        let file = File::open(path)?;
        match file.metadata()?.is_file() {
            true => Ok(Contents::listed(Reader::open(file)?, Reader::list_seeking)?),
            false => Ok(Contents::listed(Reader::open(file)?, Reader::list)?),
        }
    }

    fn listed<R: io::Read>(
        mut reader: Reader<R>,
        list: impl FnOnce(Reader<R>, &mut crate::image::read::Visit<'_>) -> Result<Totals, Error>,
    ) -> Result<Self, Error> {
        let header = *reader.header();
        let snapshot = reader.snapshot()?;
        let mut stored = Stored::new(&snapshot);
        let totals = list(reader, &mut |frame, body_len| stored.add(&snapshot, frame, body_len))?;
        Ok(Contents {
            header,
            snapshot,
            stored,
            totals,
        })
    }
}
