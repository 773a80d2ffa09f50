//! What belongs to no one process: pseudo-terminals, System V semaphores and message queues.

use serde::Serialize;

use super::text::table;
use crate::image::state::{Ipc, Snapshot};

#[derive(Serialize)]
pub struct PtyReport {
    /// /dev/pts/N.
    pub number: u32,
    pub rows: u16,
    pub columns: u16,
    /// Waiting for the slave, and for the master.
    pub input_bytes: usize,
    pub output_bytes: usize,
    /// The session that it controls.
    pub session: Option<i32>,
}

#[derive(Serialize)]
pub struct SemaphoreReport {
    pub id: i32,
    pub key: i32,
    /// Octal, like chmod's.
    pub mode: String,
    pub uid: u32,
    pub values: Vec<u16>,
    /// What the ends of processes add (SEM_UNDO): pid, number of the semaphore, how much.
    pub adjustments: Vec<(i32, u16, i32)>,
}

#[derive(Serialize)]
pub struct QueueReport {
    pub id: i32,
    pub key: i32,
    pub mode: String,
    pub uid: u32,
    pub messages: usize,
    pub bytes: usize,
}

pub fn ptys(snapshot: &Snapshot) -> Vec<PtyReport> {
    let all = (0..).zip(&snapshot.ptys);
    all.map(|(index, pty)| {
        let leads = |terminal: Option<u32>| terminal == Some(index);
        let mut leaders = snapshot.processes.iter();
        let leader = leaders.find(|process| process.terminal.is_some_and(|terminal| leads(terminal.pty)));
        PtyReport {
            number: pty.number,
            rows: pty.size[0],
            columns: pty.size[1],
            input_bytes: pty.waiting.input.iter().map(|input| input.bytes.len()).sum(),
            output_bytes: pty.waiting.output.len(),
            session: leader.map(|process| process.sid),
        }
    })
    .collect()
}

fn mode(ipc: &Ipc) -> String {
    format!("{:04o}", ipc.mode)
}

pub fn semaphores(snapshot: &Snapshot) -> Vec<SemaphoreReport> {
    let adjustments = |id: i32| {
        let all = snapshot
            .processes
            .iter()
            .flat_map(|process| process.undos.iter().map(|undo| (process.pid, undo)));
        let of_set = all.filter(move |(_, undo)| undo.set == id);
        of_set.map(|(pid, undo)| (pid, undo.number, undo.adjustment)).collect()
    };
    let sets = snapshot.semaphore_sets.iter();
    sets.map(|set| SemaphoreReport {
        id: set.ipc.id,
        key: set.ipc.key,
        mode: mode(&set.ipc),
        uid: set.ipc.uid,
        values: set.semaphores.iter().map(|semaphore| semaphore.value).collect(),
        adjustments: adjustments(set.ipc.id),
    })
    .collect()
}

pub fn queues(snapshot: &Snapshot) -> Vec<QueueReport> {
    let queues = snapshot.message_queues.iter();
    queues
        .map(|queue| QueueReport {
            id: queue.ipc.id,
            key: queue.ipc.key,
            mode: mode(&queue.ipc),
            uid: queue.ipc.uid,
            messages: queue.messages.len(),
            bytes: queue.messages.iter().map(|message| message.text.len()).sum(),
        })
        .collect()
}

pub fn table_of_ptys(ptys: &[PtyReport]) -> Vec<Vec<String>> {
    let row = |pty: &PtyReport| {
        vec![
            format!("/dev/pts/{}", pty.number),
            format!("{}x{}", pty.rows, pty.columns),
            pty.input_bytes.to_string(),
            pty.output_bytes.to_string(),
            pty.session.map_or_else(|| "-".into(), |session| session.to_string()),
        ]
    };
    table(
        &["TERMINAL", "SIZE", ">INPUT", ">OUTPUT", ">SESSION"],
        ptys.iter().map(row),
    )
}

pub fn table_of_semaphores(sets: &[SemaphoreReport]) -> Vec<Vec<String>> {
    let row = |set: &SemaphoreReport| {
        let values: Vec<String> = set.values.iter().map(u16::to_string).collect();
        let adjustments = set.adjustments.iter();
        let adjustments: Vec<String> = adjustments
            .map(|(pid, number, by)| format!("pid {pid} adds {by} to {number}"))
            .collect();
        vec![
            set.id.to_string(),
            format!("{:#x}", set.key),
            set.mode.clone(),
            set.uid.to_string(),
            values.join(" "),
            adjustments.join(", "),
        ]
    };
    table(
        &[">ID", ">KEY", "MODE", ">UID", "VALUES", "AT THE END"],
        sets.iter().map(row),
    )
}

pub fn table_of_queues(queues: &[QueueReport]) -> Vec<Vec<String>> {
    let row = |queue: &QueueReport| {
        vec![
            queue.id.to_string(),
            format!("{:#x}", queue.key),
            queue.mode.clone(),
            queue.uid.to_string(),
            queue.messages.to_string(),
            queue.bytes.to_string(),
        ]
    };
    table(
        &[">ID", ">KEY", "MODE", ">UID", ">MESSAGES", ">BYTES"],
        queues.iter().map(row),
    )
}
