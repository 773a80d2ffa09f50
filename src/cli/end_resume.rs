//! `cryopod end` and `cryopod resume`: what becomes of a process that a freeze left stopped.

use std::os::fd::{AsFd, OwnedFd};
use std::process::ExitCode;

use anyhow::{Context, Result};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::Signal;
use nix::unistd::Pid;

use super::freeze::named;
use super::progress::Verbosity;
use crate::collect::{ProcDir, Status};
use crate::refusal::{Refusal, Refused};
use crate::sys::fds::pidfd_open;
use crate::sys::process::pidfd_send_signal;
use crate::tracer::children;

/// End a process that a freeze left stopped, and everybody below it
#[derive(clap::Args, Debug)]
pub struct EndArgs {
    #[arg(value_name = "PID", value_parser = clap::value_parser!(i32).range(1..))]
    pid: i32,
}

/// Let a process go on that a freeze left stopped, and everybody below it
#[derive(clap::Args, Debug)]
pub struct ResumeArgs {
    #[arg(value_name = "PID", value_parser = clap::value_parser!(i32).range(1..))]
    pid: i32,
}

pub fn end(args: &EndArgs, verbosity: Verbosity) -> Result<ExitCode> {
    let pid = args.pid;
    let tree = stopped_tree(pid)?;
    for (member, process) in &tree {
        pidfd_send_signal(process, Signal::SIGKILL).with_context(|| format!("cannot end pid {member}"))?;
    }
    for (member, process) in &tree {
        wait_for_end(process).with_context(|| format!("pid {member} does not end"))?;
    }
    report(verbosity, format_args!("{} ended", named(pid, tree.len())));
    Ok(ExitCode::SUCCESS)
}

pub fn resume(args: &ResumeArgs, verbosity: Verbosity) -> Result<ExitCode> {
    let pid = args.pid;
    let tree = stopped_tree(pid)?;
    // Children first: a parent that goes on finds them as it left them.
    for (member, process) in tree.iter().rev() {
        pidfd_send_signal(process, Signal::SIGCONT).with_context(|| format!("cannot resume pid {member}"))?;
    }
    let goes_on = if tree.len() == 1 { "goes on" } else { "go on" };
    report(verbosity, format_args!("{} {goes_on}", named(pid, tree.len())));
    Ok(ExitCode::SUCCESS)
}

/// Handles of a process and of everybody below it, each before its children. All of them are stopped, or ended.
fn stopped_tree(pid: i32) -> Result<Vec<(i32, OwnedFd)>> {
    let mut tree = vec![(pid, stopped(pid)?)];
    let mut looked = 0;
    while looked < tree.len() {
        for child in children(Pid::from_raw(tree[looked].0)).context("children")? {
            let child = child.as_raw();
            match stopped(child) {
                Ok(process) => tree.push((child, process)),
                Err(_) if state(child).is_none_or(|state| matches!(state, 'Z' | 'X')) => {}
                Err(refused) => return Err(refused.into()),
            }
        }
        looked += 1;
    }
    Ok(tree)
}

fn state(pid: i32) -> Option<char> {
    let status = Status::of(&ProcDir::by_pid(pid).ok()?).ok()?;
    Some(status.state)
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
    let process = pidfd_open(Pid::from_raw(pid)).map_err(|_| refuse("does not exist"))?;
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
