//! System V semaphores and message queues (sysvipc(7)), which are not carried: who uses them is told, or refused.

use anyhow::{Context, Result};

use crate::sys::process::{Shared, share};
use crate::sysv::{Row, semaphore_users, table};
use crate::tracer::StoppedTree;

/// What there is of them on this machine.
pub struct Semaphores {
    /// The ids of sets, and who changed each semaphore last.
    users: Vec<(i64, Vec<i32>)>,
}

impl Semaphores {
    pub fn look() -> Result<Self> {
        let sets = table("sem")?;
        let users = |row: &Row| (row.get("semid"), semaphore_users(row.ipc("semid").id, row.get("nsems")));
        Ok(Semaphores {
            users: sets.iter().map(users).collect(),
        })
    }

    /// Whether the kernel may keep adjustments for the end of a process (semop(2), SEM_UNDO): it has a list for them, which it also has if it
    /// ever had threads (copy_semundo(), ipc/sem.c), and changed a semaphore last. We have none: the same list as ours is none (kcmp(2)).
    pub fn may_be_undone(&self, pid: i32) -> Result<bool> {
        if !self.users.iter().any(|(_, users)| users.contains(&pid)) {
            return Ok(false);
        }
        match share(pid, std::process::id().cast_signed(), Shared::SemaphoreUndo) {
            Ok(shared) => Ok(!shared),
            Err(nix::Error::ENOSYS | nix::Error::EOPNOTSUPP) => Ok(true),
            Err(errno) => Err(errno).context("kcmp KCMP_SYSVSEM"),
        }
    }
}

/// Sets of semaphores and queues that one of these was the last to use, as notes: a thaw on this machine finds them as they will be then.
pub fn left_behind(tree: &StoppedTree, semaphores: &Semaphores) -> Result<Vec<String>> {
    let is_ours = |pid: i64| {
        let mut processes = tree.processes().iter();
        processes.any(|process| i64::from(process.pid().as_raw()) == pid)
    };
    let note = |what: &str, id: i64| {
        format!(
            "{what} {id} is not in the image: a thaw on this machine finds it as it is then, elsewhere it is missing"
        )
    };
    let mut notes = Vec::new();
    for (id, users) in &semaphores.users {
        if users.iter().any(|pid| is_ours((*pid).into())) {
            notes.push(note("the set of System V semaphores", *id));
        }
    }
    let uses = |row: &Row| ["lspid", "lrpid"].iter().any(|column| is_ours(row.get(column)));
    let queues = table("msg")?;
    let used = queues.iter().filter(|row| uses(row));
    notes.extend(used.map(|row| note("the System V message queue", row.get("msqid"))));
    Ok(notes)
}
