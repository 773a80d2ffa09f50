//! `freeze --leave-running`: the program stands still for its state only, and its memory is read from a copy of it. The image is of one
//! moment, and the program notices nothing but a short pause.

mod common;
#[path = "common/watched.rs"]
#[allow(dead_code)]
mod watched;

use common::{
    CRYOPOD, Program, RoundTrip, build, can_thaw, cryopod, exists, scratch, skipped, status, stderr, wait_until,
};
use nix::sys::resource::{Resource, setrlimit};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use std::fs;
use std::io::Read;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use watched::Watched;

/// Takes `count` snapshots of a running program; nothing may happen to it. Thawed afterwards, each checks itself.
fn snapshots_check_themselves(source: &'static str, count: usize) {
    if !can_thaw() {
        return;
    }
    let dir = scratch();
    let mut command = build::fixture(source);
    let mut program = Program::start(command.current_dir(dir.path()).env("FREEZES", "1"));
    let line = program.wait_for(|line| line == "READY" || line.starts_with("SKIP "));
    if let Some(why) = line.strip_prefix("SKIP ") {
        return skipped(why);
    }
    let pid = program.pid;
    let image = |n: usize| dir.path().join(format!("{n}.img"));
    for n in 0..count {
        let output = snapshot(pid, &image(n));
        assert!(stderr(&output).is_empty(), "{}", stderr(&output));
    }
    program.signal(Signal::SIGUSR1);
    program.expect_pass();
    for n in 0..count {
        let thawed = Program::thaw(&image(n), pid);
        thawed.signal(Signal::SIGUSR1);
        thawed.expect_pass();
    }
}

/// A snapshot that succeeds.
fn snapshot(pid: i32, image: &Path) -> Output {
    let output = try_snapshot(pid, image);
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(said.contains("goes on; ") && said.contains("; paused for "), "{said}");
    output
}

fn try_snapshot(pid: i32, image: &Path) -> Output {
    cryopod(&[
        &"freeze",
        &pid.to_string(),
        &"--leave-running",
        &"--no-sync",
        &"-o",
        &image,
    ])
}

#[test]
fn a_hundred_snapshots_of_threads_that_never_rest_are_each_of_one_moment() {
    snapshots_check_themselves("snapshot/consistent.c", 100);
}

#[test]
fn snapshots_of_many_threads_check_themselves() {
    snapshots_check_themselves("threads/hundred.c", 3);
    snapshots_check_themselves("threads/registers.c", 3);
}

#[test]
fn snapshots_of_memory_of_many_kinds_check_themselves() {
    for source in [
        "memory/advice.c",
        "memory/anon.c",
        "memory/huge.c",
        "memory/many_mappings.c",
        "memory/marked.c",
        "memory/memfd.c",
        "memory/private_file.c",
        "memory/protections.c",
        "memory/sparse.c",
        "memory/stack.c",
    ] {
        snapshots_check_themselves(source, 2);
    }
}

#[test]
fn snapshots_of_blocked_calls_check_themselves() {
    for source in [
        "blocked/read_pipe.c",
        "blocked/futex.c",
        "blocked/sigsuspend.c",
        "fd/pipe_full.c",
    ] {
        snapshots_check_themselves(source, 2);
    }
}

/// With SIGCHLD handled, ignored, by default and with SA_NOCLDWAIT.
#[test]
fn a_program_that_waits_for_children_sees_no_copy() {
    let dir = scratch();
    for how in ["handler", "ignore", "default", "reap"] {
        let mut program = Program::start(build::fixture("snapshot/childless.c").env("SIGCHLD", how));
        program.wait_for(|line| line == "READY");
        for _ in 0..20 {
            snapshot(program.pid, &dir.path().join("app.img"));
            assert_eq!(children(program.pid), Vec::<i32>::new(), "the copy is still there");
        }
        program.signal(Signal::SIGUSR1);
        program.expect_pass();
    }
}

#[test]
fn a_program_under_a_storm_of_signals_is_unharmed() {
    unharmed_by_snapshots("freezer/signalled.c", 20, &[0]);
}

#[test]
fn a_program_whose_critical_sections_restart_is_unharmed() {
    unharmed_by_snapshots("freezer/rseq.c", 20, &[0]);
}

/// Children stand against a freeze; whether there is one is a matter of the moment.
#[test]
fn a_program_that_forks_all_the_time_is_unharmed() {
    unharmed_by_snapshots("freezer/forking.c", 20, &[0, 3]);
}

fn unharmed_by_snapshots(source: &'static str, count: usize, codes: &[i32]) {
    let dir = scratch();
    let image = dir.path().join("app.img");
    let target = Watched::start(build::fixture(source));
    for _ in 0..count {
        let output = try_snapshot(target.pid().as_raw(), &image);
        let code = output.status.code().expect("it ends by itself");
        assert!(codes.contains(&code), "{code}: {}", stderr(&output));
        if code == 0 {
            assert_eq!(cryopod(&[&"verify", &image]).status.code(), Some(0));
        }
        target.assert_goes_on("after a snapshot");
    }
}

/// As a plain user: root has no such limit.
#[test]
fn a_program_at_its_limit_of_processes_stands_still_and_is_told_so() {
    if !can_thaw() {
        return;
    }
    // Where that user finds it, wherever the project is.
    let dir = scratch();
    let copy = dir.path().join("fixture");
    fs::copy(build::fixture("snapshot/consistent.c").get_program(), &copy).expect("the directory takes a file");
    fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o755)).expect("it is ours");
    let mut command = Command::new(copy);
    // A user without any other process, since all of a user count; and the threads that the program has.
    let user = 100_000 + std::process::id();
    command.current_dir("/").uid(user).gid(user);
    // SAFETY: setrlimit(2) is async-signal-safe.
    unsafe { command.pre_exec(|| Ok(setrlimit(Resource::RLIMIT_NPROC, 6, 6)?)) };
    stands_still(&mut command, |_| "RLIMIT_NPROC", || {});
}

#[test]
fn a_program_in_a_full_control_group_stands_still_and_is_told_so() {
    let group = PathBuf::from(format!("/sys/fs/cgroup/pids/cryopod-test-{}", std::process::id()));
    if !can_thaw() {
        return;
    }
    if fs::create_dir(&group).is_err() {
        return skipped("there is no pids controller of version 1 here");
    }
    let fill = |pid: i32| {
        fs::write(group.join("cgroup.procs"), pid.to_string()).expect("the group takes it");
        fs::write(group.join("pids.max"), "1").expect("the group takes a limit");
        "pids.max"
    };
    // A thaw joins the group again.
    let make_room = || fs::write(group.join("pids.max"), "max").expect("the group takes a limit");
    stands_still(&mut build::fixture("snapshot/consistent.c"), fill, make_room);
    fs::remove_dir(&group).expect("it is empty again");
}

/// The page tables of a copy would not fit, and the kernel would kill the program for them.
#[test]
fn a_program_without_memory_left_stands_still_and_is_told_so() {
    let group = PathBuf::from(format!("/sys/fs/cgroup/memory/cryopod-test-{}", std::process::id()));
    if !can_thaw() {
        return;
    }
    if fs::create_dir(&group).is_err() {
        return skipped("there is no memory controller of version 1 here");
    }
    let fill = |pid: i32| {
        fs::write(group.join("cgroup.procs"), pid.to_string()).expect("the group takes it");
        fs::write(group.join("memory.limit_in_bytes"), "4M").expect("the group takes a limit");
        "its control group"
    };
    // A thaw joins the group again.
    let make_room = || fs::write(group.join("memory.limit_in_bytes"), "-1").expect("the group takes a limit");
    stands_still(&mut build::fixture("snapshot/consistent.c"), fill, make_room);
    fs::remove_dir(&group).expect("it is empty again");
}

/// Where no copy can be made, the image is made all the same, and a line says why it took so long.
fn stands_still(command: &mut Command, hinder: impl FnOnce(i32) -> &'static str, relieve: impl FnOnce()) {
    let dir = scratch();
    let image = dir.path().join("app.img");
    let mut program = Program::start(command);
    program.wait_for(|line| line == "READY");
    let pid = program.pid;
    let reason = hinder(pid);
    let messages = stderr(&snapshot(pid, &image));
    assert!(
        messages.contains("stands still until the image is written") && messages.contains(reason),
        "{messages}"
    );
    program.signal(Signal::SIGUSR1);
    program.expect_pass();
    relieve();
    let thawed = Program::thaw(&image, pid);
    thawed.signal(Signal::SIGUSR1);
    thawed.expect_pass();
}

/// A snapshot whose image nobody reads: it cannot get on, while its program goes on.
struct Stuck {
    freezer: Child,
    copy: i32,
}

impl Stuck {
    fn of(pid: i32) -> Self {
        let freezer = Command::new(CRYOPOD)
            .args([
                "freeze",
                &pid.to_string(),
                "--leave-running",
                "--compress",
                "none",
                "-o",
                "-",
            ])
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("cryopod can be run");
        wait_until("the program has a copy", || children(pid).len() == 1);
        wait_until("the program goes on", || {
            status(pid, "TracerPid").as_deref() == Some("0")
        });
        let copy = children(pid)[0];
        wait_until("the copy stands aside", || {
            status(copy, "Name").as_deref() == Some("cryopod-copy")
        });
        Stuck { freezer, copy }
    }

    /// The image, read to its end.
    fn image(mut self) -> Vec<u8> {
        let mut image = Vec::new();
        let mut pipe = self.freezer.stdout.take().expect("it was asked for");
        pipe.read_to_end(&mut image).expect("the image arrives");
        let output = self.freezer.wait_with_output().expect("it is our child");
        assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
        image
    }
}

fn children(pid: i32) -> Vec<i32> {
    let children = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).expect("its children");
    children
        .split_whitespace()
        .map(|child| child.parse().expect("a number"))
        .collect()
}

fn stat_field(pid: i32, number: usize) -> String {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).expect("its stat");
    let (_, fields) = stat.rsplit_once(") ").expect("a name in parentheses");
    fields.split(' ').nth(number - 3).expect("so many fields").to_owned()
}

fn ready(source: &'static str) -> Program {
    let mut program = Program::start(&mut build::fixture(source));
    program.wait_for(|line| line == "READY");
    program
}

#[test]
fn the_copy_holds_nothing_but_memory() {
    let program = ready("snapshot/consistent.c");
    let stuck = Stuck::of(program.pid);
    let fds = fs::read_dir(format!("/proc/{}/fd", stuck.copy)).expect("its descriptors");
    assert_eq!(fds.count(), 0);
    let maps = fs::read_to_string(format!("/proc/{}/maps", stuck.copy)).expect("its mappings");
    assert!(!maps.lines().any(|line| line.contains(" rw-s ")), "{maps}");
    assert_eq!(
        stat_field(stuck.copy, 6),
        stuck.copy.to_string(),
        "it is in the session of its original"
    );
    let oom = fs::read_to_string(format!("/proc/{}/oom_score_adj", stuck.copy)).expect("its place in the queue");
    assert_eq!(oom, "1000\n");
    stuck.image();
    assert_eq!(children(program.pid), Vec::<i32>::new());
    program.signal(Signal::SIGUSR1);
    program.expect_pass();
}

#[test]
fn a_second_freeze_waits_for_the_first() {
    let program = ready("snapshot/consistent.c");
    let stuck = Stuck::of(program.pid);
    let dir = scratch();
    let image = dir.path().join("app.img");
    let second = try_snapshot(program.pid, &image);
    assert_eq!(second.status.code(), Some(3));
    assert!(stderr(&second).contains("another freeze"), "{}", stderr(&second));
    stuck.image();
    snapshot(program.pid, &image);
    program.signal(Signal::SIGUSR1);
    program.expect_pass();
}

#[test]
fn a_copy_ends_with_its_freezer() {
    let program = ready("snapshot/consistent.c");
    let mut stuck = Stuck::of(program.pid);
    stuck.freezer.kill().expect("our own child can be killed");
    stuck.freezer.wait().expect("our own child can be waited for");
    wait_until("the copy ends", || stat_field(stuck.copy, 3) == "Z");
    let dir = scratch();
    snapshot(program.pid, &dir.path().join("app.img"));
    assert_eq!(children(program.pid), Vec::<i32>::new(), "the next freeze reaps it");
    program.signal(Signal::SIGUSR1);
    program.expect_pass();
}

#[test]
fn a_copy_that_is_killed_makes_no_image() {
    let program = ready("snapshot/consistent.c");
    let stuck = Stuck::of(program.pid);
    kill(Pid::from_raw(stuck.copy), Signal::SIGKILL).expect("it is there");
    let output = stuck.freezer.wait_with_output().expect("it is our child");
    assert_eq!(output.status.code(), Some(1));
    assert!(
        stderr(&output).contains("was killed") && stderr(&output).contains("goes on"),
        "{}",
        stderr(&output)
    );
    assert_eq!(children(program.pid), Vec::<i32>::new());
    program.signal(Signal::SIGUSR1);
    program.expect_pass();
}

#[test]
fn an_image_is_completed_though_its_program_ends_meanwhile() {
    if !can_thaw() {
        return;
    }
    // Who reaps the copy once its parent is gone: we do.
    // SAFETY: takes numbers only.
    unsafe { libc::prctl(libc::PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) };
    let program = ready("snapshot/consistent.c");
    let pid = program.pid;
    let stuck = Stuck::of(pid);
    let copy = stuck.copy;
    drop(program);
    assert!(!exists(pid));
    let dir = scratch();
    let image = dir.path().join("app.img");
    fs::write(&image, stuck.image()).expect("the directory takes a file");
    nix::sys::wait::waitpid(Pid::from_raw(copy), None).expect("it is ours now");
    let thawed = Program::thaw(&image, pid);
    thawed.signal(Signal::SIGUSR1);
    thawed.expect_pass();
}

/// Stopped by a signal, it has no pause to spare.
#[test]
fn a_stopped_program_needs_no_copy() {
    let program = ready("snapshot/childless.c");
    program.signal(Signal::SIGSTOP);
    wait_until("it is stopped", || common::state(program.pid) == Some('T'));
    let dir = scratch();
    let output = try_snapshot(program.pid, &dir.path().join("app.img"));
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    assert!(String::from_utf8_lossy(&output.stdout).contains("is stopped as before"));
    program.signal(Signal::SIGCONT);
    program.signal(Signal::SIGUSR1);
    program.expect_pass();
}

/// More shared memory than is kept aside in ours.
#[test]
fn much_shared_memory_is_kept_aside() {
    let Some(trip) = RoundTrip::of("snapshot/shared.c") else {
        return;
    };
    trip.left_running();
    snapshots_check_themselves("snapshot/shared.c", 3);
}
