//! Which processes: those that are named one by one, or all of a process group, a session or a control group.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use crate::collect::{self, ProcDir};
use crate::refusal::{Refusal, Refused};

/// Several processes with one name.
#[derive(Debug, Clone)]
pub enum Choice {
    Pid(i32),
    /// A process group.
    Group(i32),
    Session(i32),
    /// A directory of a control group, or its path as /proc/PID/cgroup shows it; the groups below it as well.
    ControlGroup(PathBuf),
    /// The control group of a unit of systemd; `.service` may be left out.
    Unit(String),
}

/// The processes of all choices, each once. Who has ended is none of them.
pub fn processes(choices: &[Choice]) -> Result<Vec<i32>> {
    let own = std::process::id().cast_signed();
    let mut pids = Vec::new();
    for choice in choices {
        let found = match choice {
            Choice::Pid(pid) => vec![*pid],
            Choice::Group(id) => with_id(*id, |stat| stat.pgrp == *id)?,
            Choice::Session(id) => with_id(*id, |stat| stat.session == *id)?,
            Choice::ControlGroup(path) => members(&control_group(path)?)?,
            Choice::Unit(name) => members(&unit(name)?)?,
        };
        if found.contains(&own) {
            let remedy = "run it elsewhere, as by setsid(1) or in another control group";
            return Err(refusal(own, choice, "has cryopod itself in it", remedy));
        }
        if found.is_empty() {
            return Err(refusal(0, choice, "has no process in it", ""));
        }
        for pid in found {
            if !pids.contains(&pid) {
                pids.push(pid);
            }
        }
    }
    Ok(pids)
}

fn refusal(pid: i32, choice: &Choice, reason: &str, remedy: &str) -> anyhow::Error {
    let object = match choice {
        Choice::Pid(_) => "the process".to_owned(),
        Choice::Group(id) => format!("process group {id}"),
        Choice::Session(id) => format!("session {id}"),
        Choice::ControlGroup(path) => format!("control group {}", path.display()),
        Choice::Unit(name) => format!("unit {name}"),
    };
    Refused::from(Refusal::new(pid, object, reason, remedy)).into()
}

/// Their leader first.
fn with_id(id: i32, is_in: impl Fn(&procfs::process::Stat) -> bool) -> Result<Vec<i32>> {
    let mut pids = collect::all_processes()?;
    pids.retain(|pid| lives(*pid, &is_in));
    pids.sort_by_key(|pid| *pid != id);
    Ok(pids)
}

/// Who ends meanwhile belongs to nothing any more.
fn lives(pid: i32, and: impl Fn(&procfs::process::Stat) -> bool) -> bool {
    let dir = ProcDir::by_pid(pid).map_err(anyhow::Error::from);
    let stat = dir.and_then(|dir| collect::stat(&dir));
    stat.is_ok_and(|stat| !matches!(stat.state, 'Z' | 'X' | 'x') && and(&stat))
}

fn control_group(path: &Path) -> Result<PathBuf> {
    if path.join("cgroup.procs").exists() {
        return Ok(path.to_owned());
    }
    let mut roots = collect::roots_of_control_groups();
    let below = path.strip_prefix("/").unwrap_or(path);
    let found = roots.find(|root| root.join(below).join("cgroup.procs").exists());
    found
        .map(|root| root.join(below))
        .with_context(|| format!("there is no control group {}", path.display()))
}

fn unit(name: &str) -> Result<PathBuf> {
    let wanted = [name.to_owned(), format!("{name}.service")];
    let mut waiting: Vec<PathBuf> = collect::roots_of_control_groups().collect();
    while let Some(dir) = waiting.pop() {
        for below in subgroups(&dir) {
            let is_it = below
                .file_name()
                .is_some_and(|name| wanted.iter().any(|wanted| name == wanted.as_str()));
            if is_it && !members(&below)?.is_empty() {
                return Ok(below);
            }
            waiting.push(below);
        }
    }
    Err(refusal(
        0,
        &Choice::Unit(name.to_owned()),
        "has no control group with a process in it",
        "",
    ))
}

fn subgroups(dir: &Path) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(dir).into_iter().flatten().flatten();
    let dirs = entries.filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()));
    dirs.map(|entry| entry.path()).collect()
}

/// With those of the groups below it.
fn members(group: &Path) -> Result<Vec<i32>> {
    let path = group.join("cgroup.procs");
    let text = std::fs::read_to_string(&path).with_context(|| format!("read {}", path.display()))?;
    let mut pids: Vec<i32> = text.lines().filter_map(|line| line.parse().ok()).collect();
    for below in subgroups(group) {
        pids.extend(members(&below)?);
    }
    pids.retain(|pid| lives(*pid, |_| true));
    Ok(pids)
}
