//! System V objects at a thaw: on a machine that has none of them, that still has them, or that has others of their ids.

mod common;

use common::frozen::Frozen;
use common::{Program, build, can_thaw, scratch};
use nix::sys::signal::Signal;

/// The segments that a process made, as /proc/sysvipc lists them.
fn segments_of(pid: i32) -> Vec<i32> {
    let text = std::fs::read_to_string("/proc/sysvipc/shm").expect("a list of /proc/sysvipc");
    let columns: Vec<&str> = text.lines().next().expect("a head").split_whitespace().collect();
    let column = |name: &str| columns.iter().position(|column| *column == name).expect("the column");
    let (id, creator) = (column("shmid"), column("cpid"));
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
struct Left {
    frozen: Frozen,
    ids: Vec<i32>,
}

impl Left {
    /// None where nothing can be thawed.
    fn behind() -> Option<Self> {
        if !can_thaw() {
            return None;
        }
        let dir = scratch();
        let mut program = Program::start(build::fixture("tree/system_v_memory.c").current_dir(dir.path()));
        program.wait_for(|line| line == "READY");
        let frozen = Frozen::program(dir, program);
        common::reap_orphans();
        let ids = segments_of(frozen.pid);
        assert!(ids.len() >= 3, "{ids:?}");
        Some(Left { frozen, ids })
    }

    fn remove_all(&self) {
        self.ids.iter().for_each(|id| remove(*id));
    }
}

impl Drop for Left {
    fn drop(&mut self) {
        segments_of(self.frozen.pid).into_iter().for_each(remove);
    }
}

/// It finds all as it was.
fn goes_on(program: Program) {
    program.signal(Signal::SIGUSR1);
    program.expect_pass();
}

#[test]
fn what_is_gone_is_made_again_under_its_id() {
    let Some(left) = Left::behind() else { return };
    left.remove_all();
    let program = left.frozen.thaw();
    let mut now = segments_of(left.frozen.pid);
    now.retain(|id| left.ids.contains(id));
    assert_eq!(now, left.ids);
    goes_on(program);
}

/// Nothing that it made is left, and what was there stays.
#[test]
fn a_thaw_that_fails_leaves_none() {
    let Some(left) = Left::behind() else { return };
    left.remove_all();
    left.frozen.thaw_fails_late("-d");
    assert_eq!(segments_of(left.frozen.pid), Vec::<i32>::new());
}

#[test]
fn one_that_somebody_has_attached_is_left_alone() {
    let Some(left) = Left::behind() else { return };
    // SAFETY: attached here, and detached below; nothing else refers to it.
    let addr = unsafe { libc::shmat(left.ids[0], std::ptr::null(), libc::SHM_RDONLY) };
    assert_ne!(addr as isize, -1);
    left.frozen
        .is_refused(&["System V shared memory", "is attached by others", "end them first"]);
    // SAFETY: as above.
    unsafe { libc::shmdt(addr) };
    goes_on(left.frozen.thaw());
}

#[test]
fn another_of_its_key_stands_against_it() {
    let Some(left) = Left::behind() else { return };
    let key = 0x4300_0000 + left.frozen.pid;
    left.remove_all();
    // SAFETY: takes numbers.
    let other = unsafe { libc::shmget(key, 4096, libc::IPC_CREAT | libc::IPC_EXCL | 0o600) };
    assert!(other >= 0);
    let words = [format!("key {key:#x}"), format!("ipcrm -m {other}")];
    // Another id or the same: either is said.
    left.frozen.is_refused(&[&words[0], &words[1]]);
    remove(other);
}
