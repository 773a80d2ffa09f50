//! System V objects (sysvipc(7)): shared memory, semaphores and message queues, found at a freeze and made again under their ids at a thaw.
//!
//! They belong to nobody: the kernel keeps them by number until somebody removes them. A thaw on the machine of the freeze finds those that are
//! still there, and gives them back the content that they had.

mod as_process;
pub mod segments;
pub mod shm;

use std::collections::HashMap;
use std::fs;
use std::io;

use crate::image::state::Ipc;
use anyhow::{Context, Result, bail};

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

/// All objects of a kind, `shm`, `sem` or `msg`; none where the kernel has no such thing.
pub fn table(kind: &str) -> Result<Vec<Row>> {
    let path = format!("/proc/sysvipc/{kind}");
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

/// Makes an object of this id: the kernel gives it to the next that anybody makes, so somebody may be first (kernel.shm_next_id,
/// proc_sys_kernel(5); Linux 3.9 with CONFIG_CHECKPOINT_RESTORE; CAP_CHECKPOINT_RESTORE).
fn with_id(kind: &str, id: i32, create: impl Fn() -> Result<i32>, remove: impl Fn(i32) -> Result<()>) -> Result<()> {
    const TRIES: usize = 20;
    let path = format!("/proc/sys/kernel/{kind}_next_id");
    for _ in 0..TRIES {
        fs::write(&path, id.to_string()).with_context(|| format!("write {path}"))?;
        let made = create()?;
        if made == id {
            return Ok(());
        }
        remove(made)?;
    }
    bail!("the id {id} is not to be had")
}

pub fn can_set_next_id(kind: &str) -> bool {
    let path = format!("/proc/sys/kernel/{kind}_next_id");
    nix::unistd::access(path.as_str(), nix::unistd::AccessFlags::W_OK).is_ok()
}

/// Who changed each semaphore of a set last (semctl(2), GETPID); nobody, where we may not look.
pub fn semaphore_users(id: i32, count: i64) -> Vec<i32> {
    let count = i32::try_from(count).unwrap_or(0);
    // SAFETY: GETPID takes numbers.
    let user = |number: i32| unsafe { libc::semctl(id, number, libc::GETPID) };
    (0..count).map(user).filter(|pid| *pid > 0).collect()
}
