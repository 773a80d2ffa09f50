//! `cryopod reaper`: process 1 of a pid namespace (pid_namespaces(7)) that a thaw has made. It waits for whoever is left to it, and ends when
//! nobody is there any more.

use std::io::{Read, Write};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, Result};
use nix::errno::Errno;
use nix::sys::signal::{Signal, kill};
use nix::sys::wait::wait;
use nix::unistd::Pid;

use crate::sys;

#[derive(clap::Args, Debug)]
pub struct Args {
    /// The id that the next process gets is the first free one above
    last_pid: i32,
}

/// Says when it is there by a line on stdout; stdin ends when thaw has made its tree, or has failed.
pub fn run(args: &Args) -> Result<ExitCode> {
    let name = c"cryopod-reaper";
    nix::sys::prctl::set_name(name).context("PR_SET_NAME")?;
    // Children that end leave nothing to wait for (sigaction(2), SIGCHLD).
    sys::ignore(Signal::SIGCHLD).context("sigaction")?;
    std::fs::write("/proc/sys/kernel/ns_last_pid", args.last_pid.to_string()).context("write kernel.ns_last_pid")?;
    writeln!(std::io::stdout(), "ready").context("tell thaw")?;
    let null = std::fs::File::open("/dev/null").context("open /dev/null")?;
    nix::unistd::dup2_stdout(&null).context("let go of stdout")?;
    nix::unistd::dup2_stderr(&null).context("let go of stderr")?;
    nix::unistd::chdir("/").context("chdir")?;
    std::io::stdin().read_to_end(&mut Vec::new()).context("wait for thaw")?;
    // Our children are whoever lost their parents; those who have theirs are seen by kill(2), which reaches all but ourselves.
    loop {
        match wait() {
            Ok(_) | Err(Errno::EINTR) => {}
            Err(Errno::ECHILD) if kill(Pid::from_raw(-1), None) == Err(Errno::ESRCH) => return Ok(ExitCode::SUCCESS),
            Err(Errno::ECHILD) => std::thread::sleep(Duration::from_millis(20)),
            Err(errno) => return Err(errno).context("wait"),
        }
    }
}
