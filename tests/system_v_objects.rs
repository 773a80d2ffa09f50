//! System V semaphores and message queues of Perl programs, at a thaw where they are still there, gone, changed, or another's.

mod common;

use common::can_thaw;
use common::frozen::Frozen;

/// A set with values 2 and 0, the second adjusted by one at its end; a queue with two messages.
const PROGRAM: &str = r#"
    use IPC::SysV qw(IPC_CREAT IPC_EXCL IPC_NOWAIT IPC_RMID SETVAL GETVAL SEM_UNDO);
    my ($sems, $queue) = (semget(0x54000000 + $$, 2, IPC_CREAT | IPC_EXCL | 0600), msgget(0x54000000 + $$, IPC_CREAT | IPC_EXCL | 0600));
    sub value { semctl($sems, $_[0], GETVAL, 0) + 0 }
    END { semctl($sems, 0, IPC_RMID, 0); msgctl($queue, IPC_RMID, 0); }
    semctl($sems, 0, SETVAL, 2); semctl($sems, 1, SETVAL, 1);
    semop($sems, pack("sss", 1, -1, SEM_UNDO)) or die;
    msgsnd($queue, pack("l! a*", $_, "text $_"), 0) or die for 5, 3;
    print "READY\n";
    select(undef, undef, undef, 0.005) until -e "go";
    my $got = value(0) == 2 && value(1) == 0;
    my $child = fork() // die;
    if ($child == 0) { semop($sems, pack("sss", 0, -1, SEM_UNDO)); require POSIX; POSIX::_exit(0); }
    waitpid($child, 0);
    $got &&= value(0) == 2;
    for (5, 3) { my $message; msgrcv($queue, $message, 100, 0, IPC_NOWAIT); $got &&= $message eq pack("l! a*", $_, "text $_"); }
    print $got ? "PASS\n" : "FAIL\n";
"#;

/// The ids of the set and of the queue of a program, where they are.
fn ids(pid: i32) -> [Option<i32>; 2] {
    let key = 0x5400_0000 + pid;
    // SAFETY: both take numbers.
    let ids = unsafe { [libc::semget(key, 0, 0), libc::msgget(key, 0)] };
    ids.map(|id| (id >= 0).then_some(id))
}

fn remove(pid: i32) {
    let [set, queue] = ids(pid);
    // SAFETY: both take numbers.
    unsafe {
        set.map(|id| libc::semctl(id, 0, libc::IPC_RMID));
        queue.map(|id| libc::msgctl(id, libc::IPC_RMID, std::ptr::null_mut()));
    }
}

/// A frozen program, and what it has left behind, which is removed in the end.
struct Left(Frozen);

impl Left {
    fn behind() -> Option<Self> {
        let frozen = Frozen::perl(PROGRAM)?;
        common::reap_orphans();
        assert!(ids(frozen.pid).iter().all(Option::is_some));
        Some(Left(frozen))
    }

    fn goes_on(&self) {
        let program = self.0.thaw();
        self.0.go();
        program.expect_pass();
    }
}

impl Drop for Left {
    fn drop(&mut self) {
        remove(self.0.pid);
    }
}

/// Its end has given back what it held of the second semaphore: it holds that again.
#[test]
fn they_are_found_where_they_are() {
    let Some(left) = Left::behind() else { return };
    left.goes_on();
    assert_eq!(ids(left.0.pid), [None, None]);
}

#[test]
fn they_are_made_under_their_ids_where_they_are_not() {
    let Some(left) = Left::behind() else { return };
    let before = ids(left.0.pid);
    remove(left.0.pid);
    let program = left.0.thaw();
    assert_eq!(ids(left.0.pid), before);
    left.0.go();
    program.expect_pass();
}

#[test]
fn a_thaw_that_fails_leaves_none() {
    let Some(left) = Left::behind() else { return };
    remove(left.0.pid);
    left.0.thaw_fails_late("-d");
    assert_eq!(ids(left.0.pid), [None, None]);
}

/// What others did with them since the freeze is not undone behind their back.
#[test]
fn what_others_have_changed_stands_against_a_thaw() {
    let Some(left) = Left::behind() else { return };
    let [Some(set), Some(queue)] = ids(left.0.pid) else {
        panic!("they are there");
    };
    let message = [1u64.to_ne_bytes(), *b"theirs  "].concat();
    // SAFETY: numbers, and a message of the length that is given.
    let rc = unsafe {
        libc::semctl(set, 0, libc::SETVAL, 7) | libc::msgsnd(queue, message.as_ptr().cast(), 6, libc::IPC_NOWAIT)
    };
    assert_eq!(rc, 0);
    let words = [format!("ipcrm -s {set}"), format!("ipcrm -q {queue}")];
    left.0
        .is_refused(&["changed by others", "holds other messages", &words[0], &words[1]]);
    remove(left.0.pid);
    left.goes_on();
}

#[test]
fn others_of_their_keys_stand_against_a_thaw() {
    let Some(left) = Left::behind() else { return };
    remove(left.0.pid);
    let key = 0x5400_0000 + left.0.pid;
    let flags = libc::IPC_CREAT | libc::IPC_EXCL | 0o600;
    // SAFETY: both take numbers.
    let made = unsafe { libc::semget(key, 5, flags) | libc::msgget(key, flags) };
    assert!(made >= 0);
    left.0.is_refused(&[
        "the set of System V semaphores",
        &format!("{key:#x}"),
        "remove that first",
    ]);
}

/// What was only made, or used by somebody else, is not for this program's thaw to bring back.
#[test]
fn a_queue_of_somebody_else_is_left_alone() {
    if !can_thaw() {
        return;
    }
    let dir = common::scratch();
    let program = common::Program::perl(PROGRAM, dir.path());
    let pid = program.pid;
    // SAFETY: takes numbers.
    let other = unsafe { libc::msgget(0x5500_0000 + pid, libc::IPC_CREAT | libc::IPC_EXCL | 0o600) };
    let message = [1u64.to_ne_bytes(), *b"theirs  "].concat();
    // SAFETY: a message of the length that is given, and numbers.
    let gone = unsafe {
        assert_eq!(libc::msgsnd(other, message.as_ptr().cast(), 6, libc::IPC_NOWAIT), 0);
        let left = Left(Frozen::program(dir, program));
        common::reap_orphans();
        assert_eq!(libc::msgctl(other, libc::IPC_RMID, std::ptr::null_mut()), 0);
        left.goes_on();
        libc::msgget(0x5500_0000 + pid, 0)
    };
    assert_eq!(gone, -1);
}

/// Adjustments are asked for one semaphore after the other, while its value changes and comes back.
#[test]
fn a_set_that_others_use_all_the_time_is_not_taken_for_the_tree_s() {
    const OTHERS: &str = r#"
        use IPC::SysV qw(IPC_CREAT IPC_PRIVATE IPC_RMID);
        my $sems = semget(IPC_PRIVATE, 3, IPC_CREAT | 0600);
        print "READY\n";
        until (-e "stop") { for my $n (0, 1, 2) { semop($sems, pack("sss", $n, 1, 0)) && semop($sems, pack("sss", $n, -1, 0)) or die for 1 .. 99 } }
        print semctl($sems, 0, IPC_RMID, 0) ? "PASS\n" : "FAIL\n";
    "#;
    if !can_thaw() {
        return;
    }
    let dir = common::scratch();
    let others = common::Program::perl(OTHERS, dir.path());
    for _ in 0..10 {
        let Some(left) = Left::behind() else { return };
        left.goes_on();
    }
    std::fs::write(dir.path().join("stop"), "").expect("the directory takes a file");
    others.expect_pass();
}
