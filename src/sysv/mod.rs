//! System V objects (sysvipc(7)): shared memory, semaphores and message queues, found at a freeze and made again under their ids at a thaw.
//!
//! They belong to nobody: the kernel keeps them by number until somebody removes them. A thaw on the machine of the freeze finds those that are
//! still there, and gives them back the content that they had.

mod as_process;
pub mod msg;
pub mod objects;
pub mod queues;
pub mod segments;
pub mod sem;
pub mod semaphores;
pub mod shm;

use std::collections::HashMap;
use std::fs;
use std::io;

use crate::image::state::Ipc;
use anyhow::{Context, Result, bail};
use as_process::as_process;

/// A line of /proc/sysvipc (proc_sysvipc(5)), by the names of its columns.
#[derive(Debug, Clone)]
pub struct Row(HashMap<String, i64>);

impl Row {
    pub fn get(&self, column: &str) -> i64 {
        self.0.get(column).copied().unwrap_or(-1)
    }

    /// `id`: the column of the id.
    pub fn ipc(&self, id: &str) -> Ipc {
        let unsigned = |column: &str| u32::try_from(self.get(column)).unwrap_or(0);
        Ipc {
            id: i32::try_from(self.get(id)).unwrap_or(-1),
            key: self.get("key") as i32, // printed as a number with sign
            mode: unsigned("perms"),
            uid: unsigned("uid"),
            gid: unsigned("gid"),
            cuid: unsigned("cuid"),
            cgid: unsigned("cgid"),
        }
    }
}

/// A kind of object.
#[derive(Debug)]
pub struct Kind {
    /// Of its list in /proc/sysvipc, and of kernel.NAME_next_id.
    name: &'static str,
    /// The column of that list that is the id.
    pub id: &'static str,
    /// For people.
    pub what: &'static str,
    /// Of ipcrm(1).
    option: &'static str,
}

pub const SEGMENTS: Kind = Kind {
    name: "shm",
    id: "shmid",
    what: "System V shared memory",
    option: "-m",
};
pub const SEMAPHORES: Kind = Kind {
    name: "sem",
    id: "semid",
    what: "the set of System V semaphores",
    option: "-s",
};
pub const QUEUES: Kind = Kind {
    name: "msg",
    id: "msqid",
    what: "the System V message queue",
    option: "-q",
};

/// Why, and what can be done about it.
type Objection = (String, String);

impl Kind {
    /// All objects of the kind; none where the kernel has no such thing.
    pub fn table(&self) -> Result<Vec<Row>> {
        let path = format!("/proc/sysvipc/{}", self.name);
        let text = match fs::read_to_string(&path) {
            Ok(text) => text,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(error) => return Err(error).with_context(|| format!("read {path}")),
        };
        let mut lines = text.lines();
        let columns: Vec<&str> = lines.next().unwrap_or_default().split_whitespace().collect();
        lines
            .map(|line| {
                let value = |(column, value): (&&str, &str)| {
                    let radix = if *column == "perms" { 8 } else { 10 };
                    i64::from_str_radix(value, radix).map(|value| ((*column).to_owned(), value))
                };
                let row = columns.iter().zip(line.split_whitespace()).map(value);
                Ok(Row(row
                    .collect::<Result<_, _>>()
                    .with_context(|| format!("{path}: {line}"))?))
            })
            .collect()
    }

    pub fn find(&self, id: i32) -> Result<Option<Row>> {
        let mut all = self.table()?.into_iter();
        Ok(all.find(|row| row.get(self.id) == i64::from(id)))
    }

    /// What stands against an object here. `still` judges one that has its id: None, where it is the same and may get back its content.
    fn against(&self, ipc: &Ipc, here: &[Row], still: impl Fn(&Row) -> Option<Objection>) -> Option<Objection> {
        let key_of = |row: &Row| row.ipc(self.id).key;
        if let Some(row) = here.iter().find(|row| row.get(self.id) == i64::from(ipc.id)) {
            return match row.ipc(self.id) {
                Ipc { key, cuid, cgid, .. } if (key, cuid, cgid) == (ipc.key, ipc.cuid, ipc.cgid) => still(row),
                _ => Some(self.another(ipc.id, row)),
            };
        }
        if let Some(row) = here.iter().find(|row| ipc.key != 0 && key_of(row) == ipc.key) {
            let other = row.get(self.id);
            let reason = format!("has the key {:#x}, which {other} has here", ipc.key);
            return Some((reason, self.remove_first(other)));
        }
        (!self.can_set_next_id()).then(|| {
            let reason = format!("cannot be given its id (kernel.{}_next_id)", self.name);
            let remedy = "run thaw as root, on a kernel with CONFIG_CHECKPOINT_RESTORE";
            (reason, remedy.into())
        })
    }

    fn another(&self, id: i32, row: &Row) -> Objection {
        let reason = format!("is another one here, with key {:#x}", row.ipc(self.id).key);
        (reason, self.remove_first(id.into()))
    }

    fn remove_first(&self, id: i64) -> String {
        format!("remove that first (ipcrm {} {id})", self.option)
    }

    /// That which is there, or one made under its id, by `creator` or a process of its user.
    fn find_or_make(
        &self,
        ipc: &Ipc,
        creator: i32,
        create: impl Fn() -> nix::Result<i32>,
        remove: fn(i32) -> nix::Result<()>,
    ) -> Result<Kept> {
        let is_new = self.find(ipc.id)?.is_none();
        if is_new {
            self.with_id(ipc.id, || as_process(creator, (ipc.cuid, ipc.cgid), &create), remove)?;
        }
        Ok(Kept {
            id: ipc.id,
            is_new,
            remove,
        })
    }

    /// Makes an object of this id: the kernel gives it to the next that anybody makes, so somebody may be first (kernel.shm_next_id,
    /// proc_sys_kernel(5); Linux 3.9 with CONFIG_CHECKPOINT_RESTORE; CAP_CHECKPOINT_RESTORE).
    fn with_id(
        &self,
        id: i32,
        create: impl Fn() -> nix::Result<i32>,
        remove: impl Fn(i32) -> nix::Result<()>,
    ) -> Result<()> {
        const TRIES: usize = 20;
        let path = self.next_id();
        for _ in 0..TRIES {
            fs::write(&path, id.to_string()).with_context(|| format!("write {path}"))?;
            let made = create().with_context(|| format!("{}get", self.name))?;
            if made == id {
                return Ok(());
            }
            remove(made).with_context(|| format!("{}ctl IPC_RMID", self.name))?;
        }
        bail!("the id {id} is not to be had")
    }

    fn can_set_next_id(&self) -> bool {
        nix::unistd::access(self.next_id().as_str(), nix::unistd::AccessFlags::W_OK).is_ok()
    }

    fn next_id(&self) -> String {
        format!("/proc/sys/kernel/{}_next_id", self.name)
    }
}

/// An object that was made or found. Dropped before it is [kept](Self::keep), a new one is removed again.
#[derive(Debug)]
pub struct Kept {
    id: i32,
    is_new: bool,
    remove: fn(i32) -> nix::Result<()>,
}

impl Kept {
    pub fn keep(&mut self) {
        self.is_new = false;
    }
}

impl Drop for Kept {
    fn drop(&mut self) {
        if self.is_new {
            // There is nobody to tell; what is gone already is as it should be.
            let _gone = (self.remove)(self.id);
        }
    }
}
