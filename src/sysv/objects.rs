//! Sets of semaphores and message queues of an image: what stands against them, and how they come back.

use anyhow::{Context, Result};

use super::{Kept, Kind, Objection, QUEUES, Row, SEMAPHORES, queues, semaphores};
use crate::image::state::Snapshot;
use crate::refusal::Refusal;

/// What stands against them here; nothing is made yet.
pub fn check(snapshot: &Snapshot) -> Result<Vec<Refusal>> {
    let pid = snapshot.processes.first().map_or(0, |process| process.pid);
    let refusal = |kind: &Kind, id: i32, objection: Option<Objection>| {
        let object = format!("{} {id}", kind.what);
        objection.map(|(reason, remedy)| Refusal::new(pid, object, reason, remedy))
    };
    let (sets, queues) = (&snapshot.semaphore_sets, &snapshot.message_queues);
    let here = table_for(&SEMAPHORES, sets)?;
    let against = sets
        .iter()
        .map(|set| (set.ipc.id, semaphores::against(set, snapshot, &here)));
    let mut refusals: Vec<Refusal> = against
        .filter_map(|(id, objection)| refusal(&SEMAPHORES, id, objection))
        .collect();
    let here = table_for(&QUEUES, queues)?;
    let against = queues
        .iter()
        .map(|queue| (queue.ipc.id, queues::against(queue, snapshot, &here)));
    refusals.extend(against.filter_map(|(id, objection)| refusal(&QUEUES, id, objection)));
    Ok(refusals)
}

/// Not read where nobody asks.
fn table_for<T>(kind: &Kind, wanted: &[T]) -> Result<Vec<Row>> {
    if wanted.is_empty() {
        Ok(Vec::new())
    } else {
        kind.table()
    }
}

/// Makes them all, or finds them again; they were [checked](check). Dropped before they are kept, what is new is removed.
pub fn make(snapshot: &Snapshot) -> Result<Vec<Kept>> {
    let mut kept = Vec::new();
    for set in &snapshot.semaphore_sets {
        kept.push(semaphores::make(set).with_context(|| format!("{} {}", SEMAPHORES.what, set.ipc.id))?);
    }
    for queue in &snapshot.message_queues {
        kept.push(queues::make(queue).with_context(|| format!("{} {}", QUEUES.what, queue.ipc.id))?);
    }
    Ok(kept)
}
