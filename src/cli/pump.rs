//! `cryopod pump`, hidden: carries stdin on to a detached program, whose pipe first held bytes from before the freeze.

use std::io;
use std::os::fd::AsFd;
use std::process::ExitCode;

use anyhow::{Context, Result};

use crate::fd::Pump;

#[derive(clap::Args, Debug)]
pub struct Args {}

pub fn run(_args: &Args) -> Result<ExitCode> {
    let duplicate = |fd: std::os::fd::BorrowedFd<'_>| fd.try_clone_to_owned().context("duplicate a descriptor");
    let pump = Pump {
        from: duplicate(io::stdin().as_fd())?,
        into: duplicate(io::stdout().as_fd())?,
        output: false,
    };
    pump.run().context("carry stdin on")?;
    Ok(ExitCode::SUCCESS)
}
