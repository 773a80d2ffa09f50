//! What ties the processes of a tree to each other and to others: looked at once for all of them.

use std::collections::HashSet;

use anyhow::{Context, Result, bail};
use procfs::FromRead;
use procfs::process::Stat;

use super::proc::{ProcDir, all_processes};
use super::surroundings::{self, Relative, Surroundings};
use crate::image::state::Zombie;
use crate::sys::process::Shared;
use crate::tracer::{Ended, StoppedProcess, StoppedTree};

pub struct Family {
    pub zombies: Vec<Zombie>,
    pub leaderless: Vec<i32>,
    /// Tasks that somebody in the tree traces, with the tracer.
    tracees: Vec<(i32, Relative)>,
    /// Processes that share something with one of the tree, with that one.
    sharers: Vec<(i32, Relative, &'static str)>,
    pub tables: Shares,
    pub directories: Shares,
    /// Children that are none of the tree, with their parents.
    others: Vec<(i32, Relative)>,
}

impl Family {
    /// `waits_for_nobody`: none of the processes has children, or traces anybody.
    pub fn look(tree: &StoppedTree, waits_for_nobody: bool) -> Result<Self> {
        let (ended, missing) = tree.ended()?;
        if let Some(child) = missing {
            bail!("pid {child} was made by a signal handler while its parent was looked at: freeze again");
        }
        let zombies: Vec<Zombie> = ended.into_iter().map(zombie).collect();
        let pids: Vec<i32> = tree.processes().iter().map(|process| process.pid().as_raw()).collect();
        let Sharers {
            outside: found,
            tables,
            directories,
        } = sharers(&pids)?;
        let mut others = Vec::new();
        for process in tree.processes() {
            let children = process.children().context("children")?;
            let children = children.into_iter().map(|child| child.as_raw());
            let is_other = |child: &i32| !pids.contains(child) && !zombies.iter().any(|zombie| zombie.pid == *child);
            others.extend(
                children
                    .filter(is_other)
                    .map(|child| (process.pid().as_raw(), surroundings::relative(child))),
            );
        }
        Ok(Family {
            leaderless: leaderless(tree, &zombies)?,
            zombies,
            tracees: match waits_for_nobody {
                true => Vec::new(),
                false => tracees(tree)?,
            },
            sharers: found,
            tables,
            directories,
            others,
        })
    }

    /// Of all processes, also of those that have ended.
    pub fn ids(&self, tree: &StoppedTree) -> HashSet<i32> {
        let alive = tree.processes().iter().map(|process| process.pid().as_raw());
        alive.chain(self.zombies.iter().map(|zombie| zombie.pid)).collect()
    }

    pub fn surroundings(&self, process: &StoppedProcess, foreign_namespaces: Vec<String>) -> Surroundings {
        let pid = process.pid().as_raw();
        let of_it = |all: &[(i32, Relative)]| {
            let own = all.iter().filter(|(owner, _)| *owner == pid);
            own.map(|(_, relative)| relative.clone()).collect()
        };
        let sharers = self.sharers.iter().filter(|(owner, ..)| *owner == pid);
        Surroundings {
            children: of_it(&self.others),
            tracees: of_it(&self.tracees),
            sharers: sharers.map(|(_, relative, what)| (relative.clone(), *what)).collect(),
            foreign_namespaces,
        }
    }
}

fn zombie(ended: Ended) -> Zombie {
    let Ended { pid, stat, uid } = ended;
    Zombie {
        pid: pid.as_raw(),
        ppid: stat.ppid,
        pgid: stat.pgid,
        sid: stat.sid,
        exit_signal: stat.exit_signal,
        status: stat.exit_code,
        uid,
        name: stat.comm.into_bytes(),
    }
}

/// Sessions and groups of the tree that have no leader and no member elsewhere.
fn leaderless(tree: &StoppedTree, zombies: &[Zombie]) -> Result<Vec<i32>> {
    let mut inside: HashSet<i32> = tree.processes().iter().map(|process| process.pid().as_raw()).collect();
    inside.extend(zombies.iter().map(|zombie| zombie.pid));
    let mut ids: HashSet<i32> = zombies.iter().flat_map(|zombie| [zombie.pgid, zombie.sid]).collect();
    for process in tree.processes() {
        let stat = super::process::stat(&ProcDir::of(process.proc())?)?;
        ids.extend([stat.pgrp, stat.session]);
    }
    // 0: begun outside of this pid namespace.
    ids.retain(|id| *id > 0 && !inside.contains(id) && ProcDir::by_pid(*id).is_err());
    if ids.is_empty() {
        return Ok(Vec::new());
    }
    for pid in all_processes()?.into_iter().filter(|pid| !inside.contains(pid)) {
        // Who ends meanwhile belongs to nothing any more.
        let file = ProcDir::by_pid(pid).and_then(|dir| dir.open("stat"));
        if let Some(stat) = file.ok().and_then(|file| Stat::from_read(file).ok()) {
            ids.remove(&stat.pgrp);
            ids.remove(&stat.session);
        }
    }
    let mut ids: Vec<i32> = ids.into_iter().collect();
    ids.sort_unstable();
    Ok(ids)
}

/// A pass over all of /proc.
fn tracees(tree: &StoppedTree) -> Result<Vec<(i32, Relative)>> {
    let threads = |process: &StoppedProcess| process.threads().iter().map(|thread| thread.tid().as_raw()).collect();
    let owners: Vec<(i32, HashSet<i32>)> = tree
        .processes()
        .iter()
        .map(|process| (process.pid().as_raw(), threads(process)))
        .collect();
    let found = surroundings::traced_tasks()?.into_iter().filter_map(|(tid, tracer)| {
        let (owner, _) = owners.iter().find(|(_, threads)| threads.contains(&tracer))?;
        Some((*owner, surroundings::relative(tid)))
    });
    Ok(found.collect())
}

/// For each process of the tree the first of it, by index, with which it shares something: itself, where it shares that with none before.
pub type Shares = Vec<usize>;

struct Sharers {
    outside: Vec<(i32, Relative, &'static str)>,
    /// Tables of descriptors (CLONE_FILES), and working directory, root and umask (CLONE_FS).
    tables: Shares,
    directories: Shares,
}

/// As after clone(2) with CLONE_VM, CLONE_FILES or CLONE_FS. Without kcmp(2), or without the right to compare, nobody can tell: those of
/// other users do not share.
fn sharers(pids: &[i32]) -> Result<Sharers> {
    let all = all_processes()?;
    let mut outside = Vec::new();
    let mut shares = |what: Shared, name: &'static str, is_carried: bool| -> Shares {
        let mut shares: Shares = (0..pids.len()).collect();
        for (pid, other) in surroundings::sharers(pids, &all, what) {
            let index = |pid: i32| pids.iter().position(|known| *known == pid);
            match (index(pid), index(other)) {
                (Some(own), Some(first)) if is_carried => shares[own] = shares[own].min(first),
                _ => outside.push((pid, surroundings::relative(other), name)),
            }
        }
        shares
    };
    shares(Shared::Memory, "its memory", false);
    let tables = shares(Shared::Descriptors, "its table of descriptors", true);
    let directories = shares(Shared::FileSystem, "its working directory", true);
    Ok(Sharers {
        outside,
        tables,
        directories,
    })
}
