//! What ties a process to others: children, tracees, namespaces, and what its threads do not share with each other.

use anyhow::{Context, Result};

use super::proc::{ProcDir, all_processes};
use super::status::Status;
use crate::image::state::Name;
use crate::sys::groups;
use crate::sys::process::{self as sys, Shared};

#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Surroundings {
    /// Children that are not of the tree.
    pub children: Vec<Relative>,
    /// Tasks that a thread of the process traces.
    pub tracees: Vec<Relative>,
    /// Processes that share something with it without being threads of it, and what.
    pub sharers: Vec<(Relative, &'static str)>,
    /// Names in /proc/PID/ns of those that are not ours.
    pub foreign_namespaces: Vec<String>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Relative {
    pub pid: i32,
    pub name: String,
    pub is_zombie: bool,
}

/// All tasks that are traced, with their tracers: a pass over all of /proc.
pub fn traced_tasks() -> Result<Vec<(i32, i32)>> {
    let mut traced = Vec::new();
    for pid in all_processes()? {
        // A process that ends meanwhile is no tracee.
        let Ok(dir) = ProcDir::by_pid(pid) else { continue };
        for tid in dir.numbers("task").unwrap_or_default() {
            let status = dir.thread(tid).and_then(|thread| Status::of(&thread));
            if let Ok(Status { tracer: 1.., .. }) = status {
                traced.extend(status.map(|status| (tid, status.tracer)));
            }
        }
    }
    Ok(traced)
}

/// Pairs of one of `pids` and another of `all` that share it. kcmp(2) orders what it compares, so that a sort finds them.
pub fn sharers(pids: &[i32], all: &[i32], what: Shared) -> Vec<(i32, i32)> {
    let Some(&first) = pids.first() else { return Vec::new() };
    if pids.len() == 1 {
        let shares = |other: &&i32| **other != first && sys::share(first, **other, what).unwrap_or(false);
        return all.iter().filter(shares).map(|&other| (first, other)).collect();
    }
    // The tree first; ended processes, and those that we may not look into, are told apart by an error.
    let others = all.iter().copied().filter(|pid| !pids.contains(pid));
    let items: Vec<i32> = pids.iter().copied().chain(others).collect();
    let mut found = Vec::new();
    for group in groups(&items, |a, b| sys::order(a, b, what).ok()) {
        for &pid in group
            .iter()
            .filter(|_| group.len() > 1)
            .filter(|pid| pids.contains(pid))
        {
            found.extend(group.iter().filter(|&&other| other != pid).map(|&other| (pid, other)));
        }
    }
    found
}

/// One that ends meanwhile has no name.
pub fn relative(pid: i32) -> Relative {
    let Ok(dir) = ProcDir::by_pid(pid) else {
        return Relative {
            pid,
            name: String::new(),
            is_zombie: false,
        };
    };
    let is_zombie = Status::of(&dir).is_ok_and(|status| status.state == 'Z');
    Relative {
        pid,
        name: dir.text("comm").unwrap_or_default(),
        is_zombie,
    }
}

/// Of all namespaces (namespaces(7)) only that of time may be another: its offsets are part of the image.
const NAMESPACES: [&str; 8] = ["cgroup", "ipc", "mnt", "net", "pid", "pid_for_children", "user", "uts"];

/// Our own namespaces: the links in /proc/self/ns that there are, and what each leads to.
pub struct Namespaces(Vec<(&'static str, String, Name)>);

impl Namespaces {
    pub fn own() -> Result<Self> {
        let own = ProcDir::by_pid(std::process::id() as i32).context("open /proc/self")?;
        let link = |name| {
            let link = format!("ns/{name}");
            own.link(&link).ok().map(|ours| (name, link, ours))
        };
        Ok(Namespaces(NAMESPACES.into_iter().filter_map(link).collect()))
    }
}

/// Those that a thread has in common with the others of its process, if it shares their directory and root: threads cannot differ in
/// user and pid namespace (copy_process(), kernel/fork.c; userns_install(), kernel/user_namespace.c), and one whose directories are shared
/// cannot leave its mount namespace (mntns_install(), fs/namespace.c; unshare(2)).
const COMMON: [&str; 3] = ["mnt", "pid", "user"];

/// The namespaces of a thread that are not ours. Each thread has its own; a kernel without one has no such link. `shares_directories` with
/// a thread that was looked at.
pub fn foreign_namespaces(thread: &ProcDir, own: &Namespaces, shares_directories: bool) -> Result<Vec<String>> {
    let mut foreign = Vec::new();
    let of_its_own = |(name, ..): &&(&'static str, String, Name)| !(shares_directories && COMMON.contains(name));
    for (name, link, ours) in own.0.iter().filter(of_its_own) {
        if thread.link(link).context("namespaces")? != *ours {
            foreign.push((*name).to_owned());
        }
    }
    let entered = |name: &str| thread.link(&format!("ns/{name}")).ok();
    if entered("time") != entered("time_for_children") {
        foreign.push("time_for_children".into());
    }
    Ok(foreign)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn our_own_namespaces_are_ours() {
        let own = ProcDir::by_pid(std::process::id() as i32).unwrap();
        let namespaces = Namespaces::own().unwrap();
        assert_eq!(
            foreign_namespaces(&own, &namespaces, false).unwrap(),
            Vec::<String>::new()
        );
    }
}
