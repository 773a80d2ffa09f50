//! Sets of semaphores: looked at, and made again or given back their values.

use std::collections::BTreeMap;

use anyhow::{Context, Result};

use super::as_process::as_process;
use super::{Kept, Objection, Row, SEMAPHORES, sem};
use crate::image::state::{Semaphore, SemaphoreSet, Snapshot};

/// The semaphores of a set that the kernel lists.
pub fn look(row: &Row) -> nix::Result<Vec<Semaphore>> {
    let (id, count) = (row.ipc(SEMAPHORES.id).id, count(row));
    let both = sem::values(id, count)?.into_iter().zip(sem::users(id, count)?);
    Ok(both.map(|(value, user)| Semaphore { value, user }).collect())
}

fn count(row: &Row) -> usize {
    usize::try_from(row.get("nsems")).unwrap_or(0)
}

/// What stands against it here.
pub(super) fn against(set: &SemaphoreSet, snapshot: &Snapshot, here: &[Row]) -> Option<Objection> {
    SEMAPHORES.against(&set.ipc, here, |row| {
        let now = match look(row) {
            Ok(now) if now.len() == set.semaphores.len() => now,
            Ok(_) => return Some(SEMAPHORES.another(set.ipc.id, row)),
            Err(errno) => {
                return Some((
                    format!("cannot be looked at: {}", errno.desc()),
                    "run thaw as root".into(),
                ));
            }
        };
        let both = now.iter().zip(&set.semaphores);
        let is_others = |(now, then): &(&Semaphore, &Semaphore)| now != then && !snapshot.has_id(now.user);
        let (other, _) = both.into_iter().find(is_others)?;
        let whom = match other.user {
            0 => "somebody whose pid is not to be seen here".into(),
            user => format!("pid {user}"),
        };
        let reason = format!("was changed by others since the freeze ({whom} was the last)");
        Some((
            reason,
            format!(
                "end those who use it, and remove it (ipcrm {} {})",
                SEMAPHORES.option, set.ipc.id
            ),
        ))
    })
}

/// The set with its values; [`Users`] come later.
pub(super) fn make(set: &SemaphoreSet) -> Result<Kept> {
    let SemaphoreSet { ipc, semaphores, .. } = set;
    let create = || sem::create(ipc.key, semaphores.len(), ipc.mode);
    let kept = SEMAPHORES.find_or_make(ipc, 0, create, sem::remove)?;
    let now = sem::values(ipc.id, semaphores.len()).context("semctl GETALL")?;
    for (number, (semaphore, now)) in (0..).zip(semaphores.iter().zip(now)) {
        // Not where it has the value: what others would have undone goes with it.
        if semaphore.value != now {
            sem::set_value(ipc.id, number, semaphore.value).context("semctl SETVAL")?;
        }
    }
    sem::set(ipc).context("semctl IPC_SET")?;
    Ok(kept)
}

/// By process: the semaphores of each set that it is to have changed last, with their values.
pub type Users = BTreeMap<i32, Vec<(i32, Vec<(u16, u16)>)>>;

/// Who is not noted yet as the last that changed a semaphore.
pub fn users(snapshot: &Snapshot) -> Result<Users> {
    let mut users = Users::new();
    for set in &snapshot.semaphore_sets {
        let found = SEMAPHORES.find(set.ipc.id)?.context("a set of semaphores has gone")?;
        let now = look(&found).context("semctl GETPID")?;
        let mut of_set: BTreeMap<i32, Vec<(u16, u16)>> = BTreeMap::new();
        for (number, (then, now)) in (0..).zip(set.semaphores.iter().zip(now)) {
            if then.user != 0 && then.user != now.user {
                of_set.entry(then.user).or_default().push((number, then.value));
            }
        }
        for (user, semaphores) in of_set {
            users.entry(user).or_default().push((set.ipc.id, semaphores));
        }
    }
    Ok(users)
}

/// Makes a process that is not there the last that changed these; where its id is somebody else's, we are.
pub fn touch_as(pid: i32, sets: &[(i32, Vec<(u16, u16)>)]) -> nix::Result<()> {
    let own = (nix::unistd::geteuid().as_raw(), nix::unistd::getegid().as_raw());
    let touch = || {
        for (id, semaphores) in sets {
            for (number, value) in semaphores {
                sem::operate(*id, &mut sem::touch(*number, *value))?;
            }
        }
        Ok(0)
    };
    as_process(pid, own, touch).map(drop)
}
