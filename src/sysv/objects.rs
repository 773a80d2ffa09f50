//! Sets of semaphores and message queues of an image: what stands against them, and how they come back.

use anyhow::{Context, Result};

use super::{Kept, Objection, QUEUES, SEMAPHORES, queues, semaphores};
use crate::image::state::Snapshot;
use crate::refusal::Refusal;

/// What stands against them here, and what is left out, for people; nothing is made yet.
#[derive(Debug, Default)]
pub struct Checked {
    pub refusals: Vec<Refusal>,
    pub notes: Vec<String>,
}

pub fn check(snapshot: &Snapshot) -> Result<Checked> {
    let mut checked = Checked::default();
    let pid = snapshot.processes.first().map_or(0, |process| process.pid);
    let mut add = |object: String, presumed: bool, objection: Option<Objection>| match objection {
        Some((reason, _)) if presumed => checked
            .notes
            .push(format!("{object} {reason}: left out, since nobody was seen to use it")),
        Some((reason, remedy)) => checked.refusals.push(Refusal::new(pid, object, reason, remedy)),
        None => {}
    };
    for (set, objection) in sets(snapshot)? {
        add(format!("{} {}", SEMAPHORES.what, set.ipc.id), set.presumed, objection);
    }
    for (queue, objection) in all_queues(snapshot)? {
        add(format!("{} {}", QUEUES.what, queue.ipc.id), queue.presumed, objection);
    }
    Ok(checked)
}

fn sets(snapshot: &Snapshot) -> Result<Vec<(&crate::image::state::SemaphoreSet, Option<Objection>)>> {
    let sets = &snapshot.semaphore_sets;
    let here = if sets.is_empty() {
        Vec::new()
    } else {
        SEMAPHORES.table()?
    };
    let judged = sets.iter().map(|set| (set, semaphores::against(set, snapshot, &here)));
    Ok(judged.collect())
}

fn all_queues(snapshot: &Snapshot) -> Result<Vec<(&crate::image::state::MessageQueue, Option<Objection>)>> {
    let queues = &snapshot.message_queues;
    let here = if queues.is_empty() { Vec::new() } else { QUEUES.table()? };
    let judged = queues
        .iter()
        .map(|queue| (queue, queues::against(queue, snapshot, &here)));
    Ok(judged.collect())
}

/// Makes them all, or finds them again. Dropped before they are kept, what is new is removed.
pub fn make(snapshot: &Snapshot) -> Result<Vec<Kept>> {
    let mut kept = Vec::new();
    for (set, objection) in sets(snapshot)? {
        if objection.is_none() {
            kept.push(semaphores::make(set).with_context(|| format!("{} {}", SEMAPHORES.what, set.ipc.id))?);
        }
    }
    for (queue, objection) in all_queues(snapshot)? {
        if objection.is_none() {
            kept.push(queues::make(queue).with_context(|| format!("{} {}", QUEUES.what, queue.ipc.id))?);
        }
    }
    Ok(kept)
}
