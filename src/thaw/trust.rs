//! An image is a program, and to thaw it is to run it: whose word is it?
#![deny(unsafe_code)]

use std::os::unix::fs::MetadataExt;

use anyhow::{Context, Result};
use nix::unistd::Uid;

use super::Source;
use crate::image::state::{Process, Snapshot};
use crate::refusal::Refusal;

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Trust {
    /// Root runs images of root, and those of others only with what these others have anyway.
    #[default]
    OwnersRights,
    /// `--trust`.
    Anything,
}

/// Who may have written the image file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Owner {
    pub uid: u32,
    /// Group or others may write it.
    pub writable_by_others: bool,
}

/// None for stdin, which is trusted as its caller is.
pub fn owner(source: &Source) -> Result<Option<Owner>> {
    let Source::File { file, path } = source else {
        return Ok(None);
    };
    let stat = file.metadata().with_context(|| format!("stat {}", path.display()))?;
    Ok(Some(Owner {
        uid: stat.uid(),
        writable_by_others: stat.mode() & 0o022 != 0,
    }))
}

/// As root: an image file that is not root's, or that others can write, gets no other uid than its owner's and no capability.
/// As anybody: a set-user-ID executable is thawed by its own user only, since it would run with that user's secrets in memory.
pub fn against(snapshot: &Snapshot, owner: Option<Owner>, trust: Trust) -> Vec<Refusal> {
    if trust == Trust::Anything {
        return Vec::new();
    }
    let caller = Uid::effective();
    let processes = snapshot.processes.iter();
    if caller.is_root() {
        let Some(owner) = owner.filter(|owner| owner.uid != 0 || owner.writable_by_others) else {
            return Vec::new();
        };
        return processes.filter_map(|process| against_rights(process, owner)).collect();
    }
    processes
        .filter_map(|process| against_setuid(snapshot, process))
        .collect()
}

fn against_rights(process: &Process, owner: Owner) -> Option<Refusal> {
    let others_id = process
        .threads
        .iter()
        .any(|thread| thread.credentials.uids.iter().any(|uid| *uid != owner.uid));
    let capable = process.threads.iter().any(|thread| {
        let credentials = &thread.credentials;
        credentials.permitted | credentials.effective | credentials.inheritable | credentials.ambient != 0
    });
    let asks = match (others_id, capable) {
        (false, false) => return None,
        (true, _) => "another user's rights",
        (false, true) => "capabilities",
    };
    let whose = if owner.writable_by_others {
        "can be written by others".into()
    } else {
        format!("is uid {}'s", owner.uid)
    };
    let reason = format!("{whose}, and the program in it asks for {asks}");
    let remedy = "if you know where it comes from, thaw it with --trust, or make it root's with mode 0600";
    Some(Refusal::new(process.pid, "the image file", reason, remedy))
}

fn against_setuid(snapshot: &Snapshot, process: &Process) -> Option<Refusal> {
    let exe = snapshot.files.get(process.exe as usize)?;
    let changes_id = exe.mode & (libc::S_ISUID | libc::S_ISGID) != 0;
    let own = Uid::effective().as_raw();
    let foreign = process
        .threads
        .iter()
        .any(|thread| thread.credentials.uids.iter().any(|uid| *uid != own));
    (changes_id && foreign).then(|| {
        let object = String::from_utf8_lossy(&exe.path);
        Refusal::new(
            process.pid,
            object,
            "is a set-user-ID program that ran as somebody else",
            "run thaw as root",
        )
    })
}
