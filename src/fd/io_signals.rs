//! Descriptions that send a signal when they are ready (fcntl(2), F_SETOWN, F_SETSIG, O_ASYNC). The kernel notes with whose rights a signal is
//! sent, those of whoever calls F_SETOWN: so the program calls it again, once it has its own.

use super::kind::Unfit;
use super::look::Look;
use super::probe::Seen;
use super::thaw::SETTABLE;
use crate::image::state::{Description, IoSignals};

/// F_OWNER_TID, F_OWNER_PID, F_OWNER_PGRP (fcntl(2)).
const TID: i32 = 0;
const PID: i32 = 1;
const GROUP: i32 = 2;

/// Those of a description; a refusal where the one that gets them is not frozen along.
pub fn of(seen: &Seen, look: &Look<'_>) -> Result<Option<IoSignals>, Unfit> {
    let (kind, owner) = seen.signal_owner;
    let is_async = seen.status_flags & libc::O_ASYNC != 0;
    if owner == 0 && seen.io_signal == 0 && !is_async {
        return Ok(None);
    }
    let is_ours = match kind {
        _ if owner == 0 => true,
        PID | GROUP => look.has_process(owner),
        TID => look.has_thread(owner),
        _ => false,
    };
    if !is_ours {
        let whom = if kind == GROUP { "process group" } else { "process" };
        return Err(Unfit::refused(
            format!(
                "sends signals when it is ready (F_SETOWN of fcntl(2)) to {whom} {owner}, which is not frozen with it"
            ),
            "have the program take that back first",
        ));
    }
    Ok(Some(IoSignals {
        kind,
        owner,
        signal: seen.io_signal,
    }))
}

/// What a process calls for a description that it has as `fd`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct IoSignalsCall {
    pub fd: i32,
    pub signals: IoSignals,
    /// As F_SETFL takes them.
    pub status_flags: i32,
}

/// For a description that a process has as `fd`.
pub fn call(description: &Description, fd: i32) -> Option<IoSignalsCall> {
    let signals = description.io_signals?;
    Some(IoSignalsCall {
        fd,
        signals,
        status_flags: description.status_flags.cast_signed() & (SETTABLE | libc::O_ASYNC),
    })
}
