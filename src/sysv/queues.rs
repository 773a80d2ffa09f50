//! Message queues: looked into without taking anything, and made again or given back their messages.

use anyhow::{Context, Result, bail};
use nix::errno::Errno;

use super::as_process::as_process;
use super::{Kept, Objection, QUEUES, Row, msg};
use crate::image::state::{Message, MessageQueue, Snapshot};
use crate::sys::may_exceed_limits;

/// A queue that the kernel lists, with its messages.
pub fn look(row: &Row) -> Result<MessageQueue> {
    let ipc = row.ipc(QUEUES.id);
    let facts = msg::facts(ipc.id).context("msgctl IPC_STAT")?;
    let mut buffer = vec![0; 8 + longest()?];
    let mut messages = Vec::new();
    for place in 0.. {
        match msg::peek(ipc.id, place, &mut buffer) {
            Ok(message) => messages.push(message),
            Err(Errno::ENOMSG) => break,
            Err(errno) => return Err(errno).context("msgrcv MSG_COPY"),
        }
    }
    Ok(MessageQueue {
        ipc,
        capacity: facts.msg_qbytes,
        sender: facts.msg_lspid,
        receiver: facts.msg_lrpid,
        messages,
    })
}

/// kernel.msgmax: more is not to be had by MSG_COPY (prepare_copy(), ipc/msg.c).
fn longest() -> Result<usize> {
    setting("msgmax")
}

fn setting<T: std::str::FromStr<Err: Send + Sync + std::error::Error + 'static>>(name: &str) -> Result<T> {
    let path = format!("/proc/sys/kernel/{name}");
    let text = std::fs::read_to_string(&path).with_context(|| format!("read {path}"))?;
    text.trim().parse().with_context(|| path)
}

/// What stands against it here.
pub(super) fn against(queue: &MessageQueue, snapshot: &Snapshot, here: &[Row]) -> Option<Objection> {
    let objection = QUEUES.against(&queue.ipc, here, |row| {
        let now = match look(row) {
            Ok(now) => now,
            Err(error) => return Some((format!("cannot be looked into: {error:#}"), "run thaw as root".into())),
        };
        let mut users = [now.sender, now.receiver].into_iter();
        let other = users.find(|user| *user != 0 && !snapshot.has_id(*user))?;
        (now.messages != queue.messages).then(|| {
            let reason = format!("holds other messages than at the freeze, and pid {other} used it");
            let remedy = format!(
                "remove it (ipcrm {} {}): the image has its messages",
                QUEUES.option, now.ipc.id
            );
            (reason, remedy)
        })
    });
    objection.or_else(|| too_large(queue).unwrap_or_else(|error| Some((format!("{error:#}"), String::new()))))
}

/// The limits of this machine.
fn too_large(queue: &MessageQueue) -> Result<Option<Objection>> {
    let largest = queue.messages.iter().map(|message| message.text.len()).max();
    let longest = longest()?;
    if let Some(len) = largest.filter(|len| *len > longest) {
        let reason = format!("has a message of {len} bytes, of which {longest} are allowed here");
        return Ok(Some((reason, format!("sysctl kernel.msgmax={len}"))));
    }
    let (wanted, most) = (room(queue), setting("msgmnb")?);
    let may_exceed = may_exceed_limits();
    Ok((wanted > most && !may_exceed).then(|| {
        let reason = format!("holds up to {wanted} bytes, of which {most} are allowed here");
        (reason, format!("sysctl kernel.msgmnb={wanted}"))
    }))
}

/// What has to fit in while it is filled: less may be allowed later on.
fn room(queue: &MessageQueue) -> u64 {
    let held: usize = queue.messages.iter().map(|message| message.text.len()).sum();
    // A message of no byte counts as one of a queue's messages (msgsnd(2)).
    queue.capacity.max(held as u64).max(queue.messages.len() as u64)
}

/// The queue with its messages.
pub(super) fn make(queue: &MessageQueue) -> Result<Kept> {
    let ipc = &queue.ipc;
    let kept = QUEUES.find_or_make(ipc, 0, || msg::create(ipc.key, ipc.mode), msg::remove)?;
    let now = QUEUES.find(ipc.id)?.as_ref().map(look).transpose()?;
    let is_as_it_was = !kept.is_new && now.is_some_and(|now| now.messages == queue.messages);
    if !is_as_it_was {
        msg::set(ipc, room(queue)).context("msgctl IPC_SET")?;
        fill(queue)?;
    }
    msg::set(ipc, queue.capacity).context("msgctl IPC_SET")?;
    Ok(kept)
}

/// Sent and received by those who were the last.
fn fill(queue: &MessageQueue) -> Result<()> {
    let id = queue.ipc.id;
    let mut buffer = vec![0; 8 + longest()?];
    loop {
        match msg::take(id, &mut buffer) {
            Ok(_) => {}
            Err(Errno::ENOMSG) => break,
            Err(errno) => return Err(errno).context("msgrcv"),
        }
    }
    let own = (nix::unistd::geteuid().as_raw(), nix::unistd::getegid().as_raw());
    let send = |messages: &[Vec<u8>]| {
        as_process(queue.sender, own, || {
            messages.iter().try_for_each(|message| msg::send(id, message))?;
            Ok(0)
        })
    };
    if queue.receiver != 0 {
        let passing = Message {
            kind: 1,
            text: Vec::new(),
        };
        send(&[msg::bytes(&passing)]).context("msgsnd")?;
        let received = as_process(queue.receiver, own, || {
            let mut buffer = [0; 8];
            msg::take(id, &mut buffer).map(|_| 0)
        });
        received.context("msgrcv")?;
    }
    let messages: Vec<Vec<u8>> = queue.messages.iter().map(msg::bytes).collect();
    if !messages.is_empty() {
        send(&messages).context("msgsnd")?;
    }
    let now = QUEUES.find(id)?.map(|row| look(&row)).transpose()?;
    if now.is_none_or(|now| now.messages != queue.messages) {
        bail!("somebody else uses it at the same time");
    }
    Ok(())
}
