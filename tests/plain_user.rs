//! What works without any privilege: freezing one's own programs. As root these tests become the user nobody.

mod common;

use common::{CRYOPOD, Program, build, can_thaw, exists, skipped};
use nix::sys::signal::Signal;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

const NOBODY: u32 = 65534;

/// A plain user with a directory, which has a copy of cryopod (its own may be out of the user's reach).
struct PlainUser {
    dir: tempfile::TempDir,
}

impl PlainUser {
    fn new() -> Self {
        let dir = tempfile::Builder::new()
            .prefix("cryopod-plain-")
            .tempdir_in("/var/tmp")
            .expect("a directory");
        let user = PlainUser { dir };
        user.bring(Path::new(CRYOPOD), "cryopod");
        if is_root() {
            std::os::unix::fs::chown(user.dir.path(), Some(NOBODY), Some(NOBODY)).expect("root may do that");
        }
        user
    }

    fn bring(&self, file: &Path, name: &str) -> PathBuf {
        let copy = self.dir.path().join(name);
        fs::copy(file, &copy).expect("the directory takes a file");
        fs::set_permissions(&copy, fs::Permissions::from_mode(0o755)).expect("it is ours");
        copy
    }

    fn command(&self, program: &Path) -> Command {
        let mut command = Command::new(program);
        command.current_dir(self.dir.path());
        if is_root() {
            command.uid(NOBODY).gid(NOBODY);
        }
        command
    }

    fn cryopod(&self, args: &[&str]) -> Output {
        self.command(&self.dir.path().join("cryopod"))
            .args(args)
            .output()
            .expect("the copy runs")
    }

    /// A fixture of the user's, ready.
    fn fixture(&self, source: &str) -> Program {
        let built = build::fixture(source);
        let copy = self.bring(Path::new(built.get_program()), "fixture");
        let mut program = Program::start(&mut self.command(&copy));
        program.wait_for(|line| line == "READY");
        program
    }
}

#[test]
fn filters_that_cannot_be_read_are_refused() {
    let user = PlainUser::new();
    if !may_freeze(&user) {
        return;
    }
    let program = user.fixture("threads/seccomp_shared.c");
    let freeze = user.cryopod(&["freeze", &program.pid.to_string(), "-o", "app.img"]);
    assert_eq!(freeze.status.code(), Some(3), "{}", words(&freeze));
    assert!(
        words(&freeze).contains("seccomp filters that cannot be read"),
        "{}",
        words(&freeze)
    );
    program.signal(Signal::SIGUSR1);
    program.expect_pass();
}

fn is_root() -> bool {
    nix::unistd::geteuid().is_root()
}

fn words(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// Yama may forbid even that (ptrace_scope 1 and above); then a test says so.
fn may_freeze(user: &PlainUser) -> bool {
    let report = user.cryopod(&["check", "--json"]);
    let report: serde_json::Value = serde_json::from_slice(&report.stdout).expect("check prints JSON");
    let findings = report["findings"].as_array().expect("a list");
    let yama = findings
        .iter()
        .find(|finding| finding["name"] == "yama ptrace_scope")
        .expect("it is in the list");
    let may = yama["present"] == true;
    if !may {
        skipped("Yama's ptrace_scope lets no plain user freeze programs");
    }
    may
}

macro_rules! left_running {
    ($name:ident, $source:literal) => {
        #[test]
        fn $name() {
            let user = PlainUser::new();
            if !may_freeze(&user) {
                return;
            }
            let program = user.fixture($source);
            let pid = program.pid.to_string();
            let freeze = user.cryopod(&["freeze", &pid, "-o", "app.img", "--no-sync", "--leave-running"]);
            assert!(freeze.status.success(), "{}", words(&freeze));
            program.signal(Signal::SIGUSR1);
            program.expect_pass();
        }
    };
}

left_running!(memory_is_frozen_without_privilege, "memory/anon.c");
left_running!(threads_are_frozen_without_privilege, "threads/hundred.c");
left_running!(a_sleep_is_frozen_without_privilege, "blocked/nanosleep.c");
left_running!(signals_are_frozen_without_privilege, "signals/pending.c");

/// A set-user-ID program among the children: all go on.
#[test]
fn a_child_of_other_rights_keeps_the_whole_tree_from_being_frozen() {
    let user = PlainUser::new();
    if !is_root() || !may_freeze(&user) {
        return;
    }
    let sleep = user.bring(Path::new("/usr/bin/sleep"), "other");
    std::os::unix::fs::chown(&sleep, Some(0), Some(0)).expect("root may do that");
    fs::set_permissions(&sleep, fs::Permissions::from_mode(0o4755)).expect("it is ours");
    let mut shell = user.command(Path::new("/bin/sh"));
    let script = "./other 1000 & echo $!; until [ -e go ]; do sleep 0.01; done; kill $!; echo PASS";
    let mut program = Program::start(shell.args(["-c", script]));
    let child: i32 = program
        .wait_for(|line| line.parse::<i32>().is_ok())
        .parse()
        .expect("a pid");
    common::wait_until("it has its rights", || {
        common::status(child, "Uid").is_some_and(|uids| uids.contains('0'))
    });
    let freeze = user.cryopod(&["freeze", &program.pid.to_string(), "-o", "app.img"]);
    assert_eq!(freeze.status.code(), Some(3), "{}", words(&freeze));
    assert!(words(&freeze).contains(&format!("pid {child}")), "{}", words(&freeze));
    assert!(!user.dir.path().join("app.img").exists());
    assert_eq!(common::status(child, "TracerPid").as_deref(), Some("0"));
    // The shell may not signal what is not its user's.
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(child), Signal::SIGKILL).expect("root may do that");
    fs::write(user.dir.path().join("go"), "").expect("it is ours");
    program.expect_pass();
}

#[test]
fn what_a_plain_user_froze_is_thawed_by_root() {
    let user = PlainUser::new();
    if !may_freeze(&user) {
        return;
    }
    let mut program = user.fixture("memory/heap.c");
    let pid = program.pid;
    let freeze = user.cryopod(&["freeze", &pid.to_string(), "-o", "app.img", "--no-sync"]);
    assert!(freeze.status.success(), "{}", words(&freeze));
    program.wait();
    assert!(!exists(pid));
    let thaw = user.cryopod(&["thaw", "app.img"]);
    if is_root() {
        assert_eq!(thaw.status.code(), Some(126), "{}", words(&thaw));
        assert!(words(&thaw).contains("CAP_CHECKPOINT_RESTORE"), "{}", words(&thaw));
    }
    if can_thaw() {
        let program = Program::thaw(&user.dir.path().join("app.img"), pid);
        program.signal(Signal::SIGUSR1);
        program.expect_pass();
    }
}

#[test]
fn a_plain_user_cannot_freeze_a_program_of_another() {
    if !can_thaw() {
        return; // needs a second user
    }
    let user = PlainUser::new();
    let mut program = Program::start(&mut build::fixture("memory/heap.c"));
    program.wait_for(|line| line == "READY");
    let freeze = user.cryopod(&["freeze", &program.pid.to_string(), "-o", "app.img"]);
    assert!(
        matches!(freeze.status.code(), Some(1 | 3)),
        "{}: {}",
        freeze.status,
        words(&freeze)
    );
    assert!(words(&freeze).contains("CAP_SYS_PTRACE"), "{}", words(&freeze));
    assert!(!user.dir.path().join("app.img").exists());
    program.signal(Signal::SIGUSR1);
    program.expect_pass();
}

#[test]
fn check_tells_a_plain_user_what_is_missing() {
    if !is_root() {
        return skipped("needs root, to know that what it becomes has no capabilities");
    }
    let check = PlainUser::new().cryopod(&["check"]);
    assert_eq!(check.status.code(), Some(1));
    let text = String::from_utf8_lossy(&check.stdout).into_owned();
    assert!(text.contains("needs CAP_CHECKPOINT_RESTORE"), "{text}");
    assert!(text.contains("Thawing is not possible here"), "{text}");
}
