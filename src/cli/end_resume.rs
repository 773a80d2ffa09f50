//! `cryopod end` and `cryopod resume`: what becomes of a process that a freeze left stopped.

use std::os::fd::{AsFd, OwnedFd};
use std::process::ExitCode;

use anyhow::{Context, Result};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::Signal;

use super::progress::Verbosity;
use crate::collect::{ProcDir, Status};
use crate::refusal::{Refusal, Refused};
use crate::sys::fds::pidfd_open;
use crate::sys::process::pidfd_send_signal;

/// End a process that a freeze left stopped
#[derive(clap::Args, Debug)]
pub struct EndArgs {
    #[arg(value_name = "PID", value_parser = clap::value_parser!(i32).range(1..))]
    pid: i32,
}

/// Let a process go on that a freeze left stopped
#[derive(clap::Args, Debug)]
pub struct ResumeArgs {
    #[arg(value_name = "PID", value_parser = clap::value_parser!(i32).range(1..))]
    pid: i32,
}

pub fn end(args: &EndArgs, verbosity: Verbosity) -> Result<ExitCode> {
    let pid = args.pid;
    let process = stopped(pid)?;
    pidfd_send_signal(&process, Signal::SIGKILL).with_context(|| format!("cannot end pid {pid}"))?;
    wait_for_end(&process).with_context(|| format!("pid {pid} does not end"))?;
    report(verbosity, format_args!("pid {pid} ended"));
    Ok(ExitCode::SUCCESS)
}

pub fn resume(args: &ResumeArgs, verbosity: Verbosity) -> Result<ExitCode> {
    let pid = args.pid;
    let process = stopped(pid)?;
    pidfd_send_signal(&process, Signal::SIGCONT).with_context(|| format!("cannot resume pid {pid}"))?;
    report(verbosity, format_args!("pid {pid} goes on"));
    Ok(ExitCode::SUCCESS)
}

/// A pidfd becomes readable when its process ends (pidfd_open(2)).
fn wait_for_end(process: &OwnedFd) -> nix::Result<()> {
    loop {
        match poll(
            &mut [PollFd::new(process.as_fd(), PollFlags::POLLIN)],
            PollTimeout::NONE,
        ) {
            Err(nix::Error::EINTR) => {}
            other => return other.map(drop),
        }
    }
}

fn report(verbosity: Verbosity, line: std::fmt::Arguments<'_>) {
    if verbosity != Verbosity::Quiet {
        println!("{line}");
    }
}

/// A handle of the process, where it is stopped by a signal and by nobody else.
fn stopped(pid: i32) -> Result<OwnedFd, Refused> {
    let refuse = |reason: &str| Refused::from(Refusal::new(pid, "the process", reason, ""));
    // The handle first: should the number pass to another process, the state read next is that of the new one or none.
    let process = pidfd_open(nix::unistd::Pid::from_raw(pid)).map_err(|_| refuse("does not exist"))?;
    let status = ProcDir::by_pid(pid)
        .map_err(anyhow::Error::from)
        .and_then(|dir| Status::of(&dir));
    let status = status.map_err(|_| refuse("does not exist"))?;
    match status.state {
        'T' => Ok(process),
        't' => Err(refuse(&format!(
            "is stopped by its tracer, pid {}, not by a freeze",
            status.tracer
        ))),
        'Z' | 'X' => Err(refuse("has ended already")),
        'R' => Err(refuse("is not stopped: it runs")),
        _ => Err(refuse("is not stopped: it sleeps, or waits for something")),
    }
}
