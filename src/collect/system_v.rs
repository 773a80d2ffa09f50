//! System V semaphores and message queues: which of this machine's are a tree's, and what is in them.
//!
//! They belong to no process. A tree's are those that one of it used last, waits in, or has adjustments for. One that a tree has made but
//! not used, or that a process used last that has ended, looks like any stranger's, and thawing what a stranger has removed meanwhile
//! would be in that one's way: it is not taken.

use std::collections::HashSet;

use anyhow::{Context, Result};

use super::proc::ProcDir;
use crate::image::state::{MessageQueue, Semaphore, SemaphoreSet, Undo};
use crate::refusal::Refusal;
use crate::sysv::{QUEUES, Row, SEMAPHORES, queues, semaphores};
use crate::tracer::StoppedTree;

/// All sets of semaphores on this machine.
pub struct Sets(Vec<(Row, nix::Result<Vec<Semaphore>>)>);

impl Sets {
    pub fn look() -> Result<Self> {
        let rows = SEMAPHORES.table()?.into_iter();
        Ok(Sets(
            rows.map(|row| {
                let found = semaphores::look(&row);
                (row, found)
            })
            .collect(),
        ))
    }

    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Those that we may look at, by id.
    pub fn readable(&self) -> impl Iterator<Item = (i32, &[Semaphore])> {
        let found = self.0.iter();
        found.filter_map(|(row, found)| Some((row.ipc(SEMAPHORES.id).id, found.as_deref().ok()?)))
    }

    /// None if it has gone.
    pub fn look_again(&self, id: i32) -> Result<Option<Vec<Semaphore>>> {
        let row = SEMAPHORES.find(id)?;
        row.map(|row| semaphores::look(&row).context("semctl")).transpose()
    }

    /// Whether the process was the last that changed any.
    pub fn has_user(&self, pid: i32) -> bool {
        self.readable()
            .any(|(_, semaphores)| semaphores.iter().any(|semaphore| semaphore.user == pid))
    }
}

/// What a tree has of them.
#[derive(Debug, Default)]
pub struct Owned {
    pub sets: Vec<SemaphoreSet>,
    pub queues: Vec<MessageQueue>,
    pub refusals: Vec<Refusal>,
    pub notes: Vec<String>,
}

pub fn owned<'a>(
    tree: &StoppedTree,
    sets: Sets,
    undos: impl Iterator<Item = &'a Undo>,
    all_ids: &HashSet<i32>,
) -> Result<Owned> {
    let mut owned = Owned::default();
    let all_queues = QUEUES.table()?;
    if sets.is_empty() && all_queues.is_empty() {
        return Ok(owned);
    }
    let owner = Owner::of(tree, all_ids);
    let adjusted: HashSet<i32> = undos.map(|undo| undo.set).collect();
    for (row, found) in sets.0 {
        let ipc = row.ipc(SEMAPHORES.id);
        let object = format!("{} {}", SEMAPHORES.what, ipc.id);
        let seen = found.as_deref().unwrap_or_default();
        let users: Vec<i32> = seen.iter().map(|semaphore| semaphore.user).collect();
        let is_used = owner.waits_in_set.contains(&ipc.id) || adjusted.contains(&ipc.id);
        if !is_used && !owner.has_used(&users) {
            continue;
        }
        match found {
            Ok(semaphores) => owned.sets.push(SemaphoreSet { ipc, semaphores }),
            Err(errno) => owned.unreadable(&owner, &object, errno.desc()),
        }
        owned.notes.extend(owner.note(&object, &users));
    }
    for row in all_queues {
        let ipc = row.ipc(QUEUES.id);
        let object = format!("{} {}", QUEUES.what, ipc.id);
        let users = ["lspid", "lrpid"].map(|column| i32::try_from(row.get(column)).unwrap_or(0));
        let is_used = owner.waits_in_queue.contains(&ipc.id);
        if !is_used && !owner.has_used(&users) {
            continue;
        }
        match queues::look(&row) {
            Ok(queue) => owned.queues.push(queue),
            Err(error) => owned.unreadable(&owner, &object, &format!("{error:#}")),
        }
        owned.notes.extend(owner.note(&object, &users));
    }
    Ok(owned)
}

impl Owned {
    fn unreadable(&mut self, owner: &Owner<'_>, object: &str, why: &str) {
        let remedy = "run freeze as root, on a kernel with CONFIG_CHECKPOINT_RESTORE";
        let reason = format!("cannot be looked into: {why}");
        self.refusals.push(Refusal::new(owner.first, object, reason, remedy));
    }
}

/// What tells a tree's objects.
struct Owner<'a> {
    first: i32,
    /// Also of its processes that have ended.
    ids: &'a HashSet<i32>,
    waits_in_set: HashSet<i32>,
    waits_in_queue: HashSet<i32>,
}

impl<'a> Owner<'a> {
    fn of(tree: &StoppedTree, ids: &'a HashSet<i32>) -> Self {
        let mut owner = Owner {
            first: tree.first().pid().as_raw(),
            ids,
            waits_in_set: HashSet::new(),
            waits_in_queue: HashSet::new(),
        };
        let threads = tree.processes().iter().flat_map(|process| process.threads());
        for thread in threads.filter(|thread| thread.regs().interrupted().is_some()) {
            let id = thread.regs().arguments()[0] as i32;
            match thread.regs().syscall_number().map(u64::cast_signed) {
                Some(libc::SYS_semop | libc::SYS_semtimedop) => drop(owner.waits_in_set.insert(id)),
                Some(libc::SYS_msgsnd | libc::SYS_msgrcv) => drop(owner.waits_in_queue.insert(id)),
                _ => {}
            }
        }
        owner
    }

    fn has_used(&self, users: &[i32]) -> bool {
        users.iter().any(|user| self.ids.contains(user))
    }

    fn note(&self, object: &str, users: &[i32]) -> Option<String> {
        let mut others = users.iter().filter(|user| !self.ids.contains(user) && is_alive(**user));
        let other = others.next()?;
        Some(format!(
            "{object} is used by pid {other} as well, which is not frozen with it"
        ))
    }
}

fn is_alive(pid: i32) -> bool {
    pid > 0 && ProcDir::by_pid(pid).is_ok()
}
