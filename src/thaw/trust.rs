//! An image is a program, and to thaw it is to run it: whose word is it?
#![deny(unsafe_code)]

use std::os::unix::fs::MetadataExt;

use anyhow::{Context, Result};
use nix::unistd::{Gid, Uid, User, getgrouplist, getgroups, setfsgid, setfsuid, setgroups};

use super::Source;
use crate::image::state::{Ipc, Process, Snapshot};
use crate::refusal::Refusal;
use crate::sysv::{Kind, QUEUES, SEGMENTS, SEMAPHORES, segments};

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

/// As root: an image file that is not root's, or that others can write, gets no other ids than its owner's and no capability.
/// As anybody: a set-user-ID executable is thawed by its own user only, since it would run with that user's secrets in memory.
pub fn against(snapshot: &Snapshot, owner: Option<Owner>, trust: Trust) -> Vec<Refusal> {
    let processes = snapshot.processes.iter();
    if Uid::effective().is_root() {
        let Some(owner) = untrusted(owner, trust) else {
            return Vec::new();
        };
        let of_processes = processes.filter_map(|process| against_rights(process, owner));
        return of_processes.chain(against_system_v(snapshot, owner)).collect();
    }
    processes
        .filter_map(|process| against_setuid(snapshot, process))
        .collect()
}

/// The owner whose rights are all that the image may have.
fn untrusted(owner: Option<Owner>, trust: Trust) -> Option<Owner> {
    let others = owner.filter(|owner| owner.uid != 0 || owner.writable_by_others)?;
    (trust == Trust::OwnersRights && Uid::effective().is_root()).then_some(others)
}

/// Runs `open` with the rights that the image's owner has over files, where the image is not to be trusted with ours: else it could
/// name any file of this machine as one of its own.
pub fn with_rights_over_files<T>(owner: Option<Owner>, trust: Trust, open: impl FnOnce() -> T) -> Result<T> {
    let Some(owner) = untrusted(owner, trust).filter(|owner| owner.uid != 0) else {
        return Ok(open());
    };
    let theirs = groups_of(owner.uid);
    let own = getgroups().context("getgroups")?;
    setgroups(&theirs).context("setgroups")?;
    // Nobody's group, 65534, where the owner has none that we know of. An effective uid of 0 may set any, and without an error:
    // setfsgid(2), setfsuid(2). Leaving uid 0 drops the capabilities over files, coming back raises them (capabilities(7)).
    setfsgid(theirs.first().copied().unwrap_or(Gid::from_raw(65534)));
    setfsuid(Uid::from_raw(owner.uid));
    let opened = open();
    setfsuid(Uid::effective());
    setfsgid(Gid::effective());
    setgroups(&own).context("setgroups")?;
    Ok(opened)
}

/// The groups of a user, as the system's database has them; the file's own group may be anybody's (a set-group-ID directory).
fn groups_of(uid: u32) -> Vec<Gid> {
    let Ok(Some(user)) = User::from_uid(Uid::from_raw(uid)) else {
        return Vec::new();
    };
    let name = std::ffi::CString::new(user.name).unwrap_or_default();
    getgrouplist(&name, user.gid).unwrap_or_else(|_| vec![user.gid])
}

fn against_rights(process: &Process, owner: Owner) -> Option<Refusal> {
    let mut uids = process.threads.iter().flat_map(|thread| thread.credentials.uids);
    // Uid 0 has root's files even without a capability: whoever may write root's file would get them.
    let others_id = uids.any(|uid| uid != owner.uid || uid == 0);
    let groups = groups_of(owner.uid);
    let others_group = process.threads.iter().any(|thread| {
        let credentials = &thread.credentials;
        let mut asked = credentials.gids.iter().chain(&credentials.groups);
        asked.any(|gid| !groups.contains(&Gid::from_raw(*gid)))
    });
    let capable = process.threads.iter().any(|thread| {
        let credentials = &thread.credentials;
        credentials.permitted | credentials.effective | credentials.inheritable | credentials.ambient != 0
    });
    let asks = match (others_id, others_group, capable) {
        (true, _, _) => "another user's rights",
        (_, true, _) => "another group's rights",
        (_, _, true) => "capabilities",
        _ => return None,
    };
    let reason = format!("{}, and the program in it asks for {asks}", whose(owner));
    Some(Refusal::new(process.pid, "the image file", reason, TRUST_IT))
}

const TRUST_IT: &str = "if you know where it comes from, thaw it with --trust, or make it root's with mode 0600";

/// Of an image file, why it is not to be trusted.
fn whose(owner: Owner) -> String {
    if owner.writable_by_others {
        "can be written by others".into()
    } else {
        format!("is uid {}'s", owner.uid)
    }
}

/// What is there by its id would be overwritten, whoever has it.
fn against_system_v(snapshot: &Snapshot, owner: Owner) -> Vec<Refusal> {
    let pid = snapshot.processes.first().map_or(0, |process| process.pid);
    let segments = segments::all(snapshot).map(|(_, segment, _)| (&SEGMENTS, segment.ipc));
    let sets = snapshot.semaphore_sets.iter().map(|set| (&SEMAPHORES, set.ipc));
    let queues = snapshot.message_queues.iter().map(|queue| (&QUEUES, queue.ipc));
    let of_others = segments.chain(sets).chain(queues).filter(|(_, ipc)| {
        let Ipc { uid, cuid, .. } = *ipc;
        owner.uid == 0 || uid != owner.uid || cuid != owner.uid
    });
    let refusal = |(kind, ipc): (&Kind, Ipc)| {
        let asks = format!("{} {}, which is another user's", kind.what, ipc.id);
        let reason = format!("{}, and the program in it asks for {asks}", whose(owner));
        Refusal::new(pid, "the image file", reason, TRUST_IT)
    };
    of_others.map(refusal).collect()
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::image::state::{Segment, SharedKind, SharedObject};

    #[test]
    fn a_segment_of_somebody_else_is_not_for_the_owner_of_the_file() {
        let mut snapshot = crate::image::sample::snapshot(1, 1);
        (snapshot.semaphore_sets, snapshot.message_queues) = (vec![], vec![]);
        let owner = Owner {
            uid: 1000,
            writable_by_others: false,
        };
        let mut with = |uid, cuid| {
            let segment = Segment {
                ipc: Ipc {
                    id: 5,
                    uid,
                    cuid,
                    ..Ipc::default()
                },
                creator: 1,
            };
            snapshot.shared_objects = vec![SharedObject {
                kind: SharedKind::SystemV(segment),
                size: 4096,
            }];
            against_system_v(&snapshot, owner).len()
        };
        assert_eq!((with(1000, 1000), with(0, 1000), with(1000, 0)), (0, 1, 1));
    }
}
