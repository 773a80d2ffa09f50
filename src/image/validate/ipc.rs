//! Checks of semaphores and message queues.

use std::collections::HashMap;

use super::{Checked, PID_MAX, ensure};
use crate::image::state::{Ipc, MessageQueue, SemaphoreSet, Snapshot};

/// SEMVMX (include/uapi/linux/sem.h).
const VALUE_MAX: u16 = 32767;
/// INT_MAX is the most that kernel.msgmax and kernel.msgmnb allow.
const BYTES_MAX: u64 = i32::MAX as u64;

pub fn check(snapshot: &Snapshot) -> Checked {
    let mut sets = HashMap::new();
    for set in &snapshot.semaphore_sets {
        let id = set.ipc.id;
        check_set(set).map_err(|reason| format!("set of semaphores {id}: {reason}"))?;
        ensure(sets.insert(id, set.semaphores.len()).is_none(), || {
            format!("the set of semaphores {id} is there twice")
        })?;
    }
    for process in &snapshot.processes {
        for undo in &process.undos {
            let count = sets.get(&undo.set).copied().unwrap_or(0);
            let fits = i16::try_from(undo.adjustment).is_ok();
            ensure(usize::from(undo.number) < count && fits, || {
                let semaphore = format!("semaphore {} of set {}", undo.number, undo.set);
                format!("pid {}: it adds {} to {semaphore}", process.pid, undo.adjustment)
            })?;
        }
    }
    let mut queues = Vec::new();
    for queue in &snapshot.message_queues {
        let id = queue.ipc.id;
        check_queue(queue).map_err(|reason| format!("message queue {id}: {reason}"))?;
        ensure(!queues.contains(&id), || {
            format!("the message queue {id} is there twice")
        })?;
        queues.push(id);
    }
    Ok(())
}

fn check_set(set: &SemaphoreSet) -> Checked {
    check_id(&set.ipc)?;
    ensure((1..=usize::from(u16::MAX)).contains(&set.semaphores.len()), || {
        format!("it has {} semaphores", set.semaphores.len())
    })?;
    for semaphore in &set.semaphores {
        ensure(semaphore.value <= VALUE_MAX, || {
            format!("one has the value {}", semaphore.value)
        })?;
        check_user(semaphore.user)?;
    }
    Ok(())
}

fn check_queue(queue: &MessageQueue) -> Checked {
    check_id(&queue.ipc)?;
    check_user(queue.sender)?;
    check_user(queue.receiver)?;
    ensure(queue.capacity <= BYTES_MAX, || {
        format!("it holds {} bytes", queue.capacity)
    })?;
    let mut kinds = queue.messages.iter().map(|message| message.kind);
    ensure(kinds.all(|kind| kind > 0), || "a message has no type".into())
}

fn check_id(ipc: &Ipc) -> Checked {
    ensure(ipc.id >= 0, || "there is none of such a number".into())
}

fn check_user(pid: i32) -> Checked {
    ensure((0..=PID_MAX).contains(&pid), || format!("pid {pid} used it"))
}
