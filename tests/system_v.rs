//! System V objects at a thaw: on a machine that has none of them, that still has them, or that has others of their ids.

mod common;

use common::{Program, build, can_thaw, cryopod, scratch, stderr};
use nix::sys::signal::Signal;
use std::path::PathBuf;

/// Ids of the objects of a kind, as /proc/sysvipc lists them, that belong to a process: by this column.
fn ids(kind: &str, pid: i32) -> Vec<i32> {
    let text = std::fs::read_to_string(format!("/proc/sysvipc/{kind}")).expect("a list of /proc/sysvipc");
    let columns: Vec<&str> = text.lines().next().expect("a head").split_whitespace().collect();
    let column = |name: &str| columns.iter().position(|column| *column == name).expect("the column");
    let (id, creator) = (column(&format!("{kind}id")), column("cpid"));
    let rows = text
        .lines()
        .skip(1)
        .map(|line| line.split_whitespace().collect::<Vec<_>>());
    rows.filter(|row| row[creator] == pid.to_string())
        .map(|row| row[id].parse().expect("a number"))
        .collect()
}

fn remove(id: i32) {
    // SAFETY: takes numbers.
    assert_eq!(unsafe { libc::shmctl(id, libc::IPC_RMID, std::ptr::null_mut()) }, 0);
}

/// A frozen program with shared memory; what is left of it at the end is removed.
struct Frozen {
    dir: tempfile::TempDir,
    image: PathBuf,
    pid: i32,
    left: Vec<i32>,
}

impl Frozen {
    fn new() -> Self {
        let dir = scratch();
        let mut program = Program::start(build::fixture("tree/system_v_memory.c").current_dir(dir.path()));
        program.wait_for(|line| line == "READY");
        let (image, pid) = (dir.path().join("app.img"), program.pid);
        program.freeze(&image);
        common::reap_orphans();
        let left = ids("shm", pid);
        assert!(left.len() >= 3, "{left:?}");
        Frozen { dir, image, pid, left }
    }

    fn refused(&self, words: &[&str]) {
        let thaw = cryopod(&[&"thaw", &"-d", &self.image]);
        assert_eq!(thaw.status.code(), Some(3), "{}", stderr(&thaw));
        for word in words {
            assert!(stderr(&thaw).contains(word), "{word:?} is not in: {}", stderr(&thaw));
        }
    }
}

impl Drop for Frozen {
    fn drop(&mut self) {
        for id in ids("shm", self.pid) {
            remove(id);
        }
    }
}

#[test]
fn what_is_gone_is_made_again_under_its_id() {
    if !can_thaw() {
        return;
    }
    let frozen = Frozen::new();
    frozen.left.iter().for_each(|id| remove(*id));
    let program = Program::thaw(&frozen.image, frozen.pid);
    let mut now = ids("shm", frozen.pid);
    now.retain(|id| frozen.left.contains(id));
    assert_eq!(now, frozen.left);
    program.signal(Signal::SIGUSR1);
    program.expect_pass();
}

/// Nothing that it made is left, and what was there stays.
#[test]
fn a_thaw_that_fails_leaves_none() {
    if !can_thaw() {
        return;
    }
    let frozen = Frozen::new();
    frozen.left.iter().for_each(|id| remove(*id));
    let whole = std::fs::read(&frozen.image).expect("the image");
    let damaged = frozen.dir.path().join("damaged.img");
    // The last frames and the index are missing.
    std::fs::write(&damaged, &whole[..whole.len() - 2000]).expect("an image");
    let thaw = std::process::Command::new("sh")
        .args(["-c", "cat \"$1\" | \"$0\" thaw -d -", common::CRYOPOD])
        .arg(&damaged)
        .output()
        .expect("sh can be run");
    assert!(!thaw.status.success(), "{}", stderr(&thaw));
    assert_eq!(ids("shm", frozen.pid), Vec::<i32>::new());
}

#[test]
fn one_that_somebody_has_attached_is_left_alone() {
    if !can_thaw() {
        return;
    }
    let frozen = Frozen::new();
    // SAFETY: attached here, and detached below; nothing else refers to it.
    let addr = unsafe { libc::shmat(frozen.left[0], std::ptr::null(), libc::SHM_RDONLY) };
    assert_ne!(addr as isize, -1);
    frozen.refused(&["System V shared memory", "is attached by others", "end them first"]);
    // SAFETY: as above.
    unsafe { libc::shmdt(addr) };
    let program = Program::thaw(&frozen.image, frozen.pid);
    program.signal(Signal::SIGUSR1);
    program.expect_pass();
}

#[test]
fn another_of_its_key_stands_against_it() {
    if !can_thaw() {
        return;
    }
    let frozen = Frozen::new();
    let key = 0x4300_0000 + frozen.pid;
    frozen.left.iter().for_each(|id| remove(*id));
    // SAFETY: takes numbers.
    let other = unsafe { libc::shmget(key, 4096, libc::IPC_CREAT | libc::IPC_EXCL | 0o600) };
    assert!(other >= 0);
    let words = [format!("key {key:#x}"), format!("ipcrm -m {other}")];
    // Another id or the same: either is said.
    frozen.refused(&[&words[0], &words[1]]);
    remove(other);
}
