//! `--new-pid-namespace`: the same pids, whoever has them outside (pid_namespaces(7)).
//!
//! Thaw goes on as a child of its own in the new namespace, with a /proc of that; process 1 there is `cryopod reaper`, which stays for as
//! long as anybody does. What is left outside is a shell around it: signals, stops and the exit code pass through.
#![deny(unsafe_code)]

use std::fs::{self, File};
use std::io::{self, BufRead, BufReader};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::process::{Command, Stdio};
use std::sync::OnceLock;

use anyhow::{Context, Result, ensure};
use nix::errno::Errno;
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};
use nix::unistd::{ForkResult, Pid, getpgrp, tcgetpgrp};

use super::foreground;
use super::terminal::Terminal;
use crate::collect::{self, ProcDir, Status};
use crate::image::state::Snapshot;
use crate::refusal::{Refusal, Refused};
use crate::sys::{self, Became};

/// /proc of the namespace that thaw was started in, and our own directory there.
struct Outside {
    proc: OwnedFd,
    own: ProcDir,
}

static OUTSIDE: OnceLock<Outside> = OnceLock::new();

/// Returns inside, in a child. Outside, this process ends when that has, with its exit code.
pub fn enter(snapshot: &Snapshot) -> Result<()> {
    let max = fs::read_to_string("/proc/sys/kernel/pid_max").context("read kernel.pid_max")?;
    let last = last_pid(snapshot.ids().collect(), max.trim().parse().context("kernel.pid_max")?)?;
    match unshare(CloneFlags::CLONE_NEWPID) {
        Ok(()) => {}
        Err(errno @ (Errno::EPERM | Errno::EINVAL | Errno::ENOSPC)) => {
            let reason = format!("cannot be made: {}", errno.desc());
            let remedy = "run thaw as root (CAP_SYS_ADMIN), on a kernel with CONFIG_PID_NS";
            return Err(Refused::from(Refusal::new(0, "a pid namespace", reason, remedy)).into());
        }
        Err(errno) => return Err(errno).context("unshare CLONE_NEWPID"),
    }
    let reaper = start_reaper(last)?;
    let proc = OwnedFd::from(File::open("/proc").context("open /proc")?);
    let was_foreground = Terminal::of_group(getpgrp()).is_some();
    match sys::fork_alone().context("fork")? {
        ForkResult::Parent { child } => {
            let code = follow(child, was_foreground);
            // From here on the reaper looks whether anybody is left.
            drop(reaper);
            std::process::exit(code?.into());
        }
        ForkResult::Child => {
            // Kept open until we end.
            std::mem::forget(reaper);
            // That of the old /proc still, which knows us by another number.
            let own = File::open("/proc/self").context("open /proc/self")?;
            let own = ProcDir::of(own.as_fd()).context("duplicate /proc/self")?;
            own_proc()?;
            ensure!(
                OUTSIDE.set(Outside { proc, own }).is_ok(),
                "entered a pid namespace twice"
            );
            let here = std::process::id().cast_signed();
            ensure!(!snapshot.ids().any(|id| id == here), "thaw itself got the id {here}");
            Ok(())
        }
    }
}

/// After which id the ids of thaw itself begin, so that they are none of the image's.
fn last_pid(mut ids: Vec<i32>, max: i32) -> Result<i32> {
    /// The first that the kernel gives out after the largest (RESERVED_PIDS, kernel/pid.c).
    const RESERVED: i32 = 300;
    /// Thaw's own, and its helpers'.
    const WANTED: i32 = 16;
    ids.sort_unstable();
    if ids.first() == Some(&1) {
        let reason = "is that of cryopod's reaper in a new pid namespace";
        return Err(Refused::from(Refusal::new(
            1,
            "the id 1",
            reason,
            "thaw it without --new-pid-namespace",
        ))
        .into());
    }
    let largest = ids.last().copied().unwrap_or(RESERVED).max(RESERVED);
    if largest + WANTED < max {
        return Ok(largest);
    }
    let is_free = |first: i32| (first..=first + WANTED).all(|id| ids.binary_search(&id).is_err());
    let first = (RESERVED..max - WANTED).find(|first| is_free(*first));
    Ok(first.context("the image leaves no ids to thaw itself")? - 1)
}

/// What it reads ends when this is dropped, here and in the child.
fn start_reaper(last_pid: i32) -> Result<io::PipeWriter> {
    let (reads, writes) = io::pipe().context("pipe")?;
    let mut reaper = Command::new("/proc/self/exe")
        .args(["reaper", &last_pid.to_string()])
        .stdin(Stdio::from(reads))
        .stdout(Stdio::piped())
        .spawn()
        .context("start the reaper of the pid namespace")?;
    let mut line = String::new();
    let said = reaper.stdout.take().map(BufReader::new);
    said.context("the reaper's output")?
        .read_line(&mut line)
        .context("wait for the reaper")?;
    ensure!(line == "ready\n", "the reaper of the pid namespace did not start");
    Ok(writes)
}

/// A mount namespace of our own, with the /proc of our pid namespace. What is mounted outside later on is seen here as well.
fn own_proc() -> Result<()> {
    unshare(CloneFlags::CLONE_NEWNS).context("unshare CLONE_NEWNS")?;
    let none: Option<&str> = None;
    mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_SLAVE, none).context("mount / MS_SLAVE")?;
    let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
    mount(Some("proc"), "/proc", Some("proc"), flags, none).context("mount /proc")
}

/// What a process of ours is called where thaw was started.
pub fn outside(pid: Pid) -> Result<Pid> {
    match OUTSIDE.get() {
        None => Ok(pid),
        Some(outside) => find_outside(&outside.proc, pid.as_raw()).map(Pid::from_raw),
    }
}

/// The process of our pid namespace that has this id in it, by its id in the namespace of that /proc.
fn find_outside(proc: &OwnedFd, pid: i32) -> Result<i32> {
    let root = format!("/proc/self/fd/{}", proc.as_raw_fd());
    let ours = fs::read_link("/proc/self/ns/pid").context("read /proc/self/ns/pid")?;
    for entry in fs::read_dir(&root).context("list /proc")?.flatten() {
        let number = entry.file_name().to_str().and_then(|name| name.parse().ok());
        let Some(number) = number.filter(|_| fs::read_link(entry.path().join("ns/pid")).is_ok_and(|link| link == ours))
        else {
            continue;
        };
        // Who ends meanwhile is not looked for.
        let status = fs::read(entry.path().join("status")).unwrap_or_default();
        if innermost_pid(&String::from_utf8_lossy(&status)) == Some(pid) {
            return Ok(number);
        }
    }
    anyhow::bail!("pid {pid} of the new pid namespace is not found outside")
}

/// The last column of NSpid (proc_pid_status(5)). A name cannot pretend to be such a line: its line breaks are escaped.
fn innermost_pid(status: &str) -> Option<i32> {
    let line = status.lines().find_map(|line| line.strip_prefix("NSpid:"))?;
    line.split_whitespace().last()?.parse().ok()
}

/// Whether our process group is in the foreground of this terminal. Inside a new pid namespace a group from outside has no id.
pub fn is_in_foreground(terminal: impl AsFd) -> bool {
    let Ok(foreground) = tcgetpgrp(terminal) else {
        return false;
    };
    match OUTSIDE.get() {
        Some(outside) if getpgrp().as_raw() == 0 => {
            let stat = collect::stat(&outside.own);
            foreground.as_raw() == 0 && stat.is_ok_and(|stat| stat.pgrp == stat.tpgid)
        }
        _ => foreground == getpgrp(),
    }
}

/// Outside: as if we were that thaw.
fn follow(inside: Pid, was_foreground: bool) -> Result<u8> {
    foreground::hold_signals()?;
    loop {
        loop {
            match sys::look_at_child(inside).context("wait for thaw in its namespace")? {
                Became::Exited(code) => {
                    take_terminal_back(was_foreground)?;
                    return Ok(code as u8);
                }
                Became::Killed(signal) => {
                    take_terminal_back(was_foreground)?;
                    return Ok(128 + signal as u8);
                }
                Became::Stopped(_) => {
                    take_terminal_back(was_foreground)?;
                    foreground::stop_ourselves()?;
                    // fg(1) reaches the whole group, kill(1) us alone.
                    if is_stopped(inside) {
                        foreground::send(inside, libc::SIGCONT)?;
                    }
                }
                Became::Same => break,
            }
        }
        let info = sys::wait_for_signal(&foreground::passing_and_children()).context("wait for signals")?;
        // The kernel's own went to the whole process group, which is thaw's inside as well.
        if info.signal != libc::SIGCHLD && info.code != libc::SI_KERNEL {
            foreground::send(inside, info.signal)?;
        }
    }
}

fn is_stopped(pid: Pid) -> bool {
    let status = ProcDir::by_pid(pid.as_raw()).map_err(anyhow::Error::from);
    status
        .and_then(|dir| Status::of(&dir))
        .is_ok_and(|status| status.state == 'T')
}

/// From inside, our own process group has no id to give it the terminal by.
fn take_terminal_back(was_ours: bool) -> Result<()> {
    match Terminal::own().filter(|_| was_ours) {
        Some(terminal) => terminal.give_to(getpgrp()),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_innermost_id_is_the_last() {
        assert_eq!(innermost_pid("Name:\tx\nNSpid:\t812\t44\t7\nNSpgid:\t1\n"), Some(7));
        assert_eq!(innermost_pid("Name:\tx\n"), None);
    }

    #[test]
    fn thaw_gets_an_id_that_is_none_of_the_image() {
        let last = |ids: &[i32]| last_pid(ids.to_vec(), 32768).unwrap();
        assert_eq!((last(&[7]), last(&[900, 4000])), (300, 4000));
        assert_eq!(last(&[310, 32760]), 310);
        assert!(last_pid(vec![5, 1], 32768).is_err());
        assert!(last_pid((2..32768).collect(), 32768).is_err());
    }
}
