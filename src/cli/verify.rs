//! `cryopod verify`: reads an image from one end to the other.

use crate::image::pages::PageRun;
use crate::image::read::{Reader, Totals};
use anyhow::{Context, Result};
use std::fs::File;
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

/// Checks that an image is complete and undamaged
///
/// Reads all of it, compares every checksum, and decodes everything, as a thaw would, without touching any process.
#[derive(clap::Args, Debug)]
pub struct Args {
    /// The image; - reads standard input
    #[arg(value_name = "FILE")]
    image: PathBuf,
    /// Threads that check and decompress [default: one for each CPU]
    #[arg(short, long, value_name = "N", default_value_t = 0, hide_default_value = true)]
    jobs: usize,
}

pub fn run(args: &Args) -> Result<ExitCode> {
    let name = args.image.display();
    let totals = verify_file(&args.image, args.jobs).with_context(|| format!("cannot verify {name}"))?;
    let Totals {
        records,
        file_bytes,
        stored_bytes,
        ..
    } = totals;
    // Without context, so that the caller can tell a reader that left.
    writeln!(
        io::stdout(),
        "{name}: complete, {records} records, {file_bytes} bytes, {stored_bytes} bytes of memory"
    )?;
    Ok(ExitCode::SUCCESS)
}

fn verify_file(path: &Path, jobs: usize) -> Result<Totals> {
    match path == Path::new("-") {
        true => verify(io::stdin().lock(), jobs),
        false => verify(File::open(path)?, jobs),
    }
}

fn verify(from: impl Read, jobs: usize) -> Result<Totals> {
    Reader::open(from)?.pages(jobs, &|_: PageRun<'_>| Ok(()))
}
