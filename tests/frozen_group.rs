//! Programs in a frozen control group: they are refused, and whatever was begun with them is undone.

mod common;

use common::control_group::{Group, name_of};
use common::{Program, cryopod, exists, scratch, skipped, state, stderr, wait_until};
use cryopod::tracer::{Remote, seize};
use nix::unistd::Pid;
use std::fs;
use std::path::PathBuf;

/// A program in a control group of its own, which goes with it.
struct Member {
    program: Program,
    switch: PathBuf,
    words: [&'static str; 2],
    _group: Group,
    _dir: tempfile::TempDir,
}

/// Of both hierarchies of cgroups(7): where they may be mounted, the file that freezes a group, and the words to write there.
const HIERARCHIES: [(&str, &str, [&str; 2]); 3] = [
    ("/sys/fs/cgroup", "cgroup.freeze", ["1", "0"]),
    ("/sys/fs/cgroup/unified", "cgroup.freeze", ["1", "0"]),
    ("/sys/fs/cgroup/freezer", "freezer.state", ["FROZEN", "THAWED"]),
];

impl Member {
    /// None where that hierarchy is not mounted there, or we may make no group.
    fn of((root, file, words): (&str, &str, [&'static str; 2])) -> Option<Self> {
        let dir = scratch();
        let group = Group::make(root, &name_of(dir.path()))?;
        let switch = group.file(file);
        if !switch.exists() {
            return None;
        }
        let program = Program::perl(
            r#"print "READY\n"; select(undef, undef, undef, 0.005) until -e "go"; exit 7"#,
            dir.path(),
        );
        fs::write(group.file("cgroup.procs"), program.pid.to_string()).ok()?;
        Some(Member {
            program,
            switch,
            words,
            _group: group,
            _dir: dir,
        })
    }

    fn freeze_group(&self) {
        fs::write(&self.switch, self.words[0]).expect("the group can be frozen");
    }

    /// Lets the group go on, and the program end.
    fn unharmed(mut self) {
        fs::write(&self.switch, self.words[1]).expect("the group can go on");
        assert!(exists(self.program.pid));
        fs::write(self._dir.path().join("go"), "").expect("the directory takes a file");
        assert_eq!(self.program.wait().code(), Some(7));
    }
}

#[test]
fn a_frozen_program_is_refused() {
    let mut members = 0;
    for hierarchy in HIERARCHIES {
        let Some(member) = Member::of(hierarchy) else { continue };
        members += 1;
        let image = member._dir.path().join("app.img");
        member.freeze_group();
        let freeze = cryopod(&[&"freeze", &member.program.pid.to_string(), &"-o", &image]);
        assert_eq!(freeze.status.code(), Some(3), "{hierarchy:?}: {}", stderr(&freeze));
        assert!(stderr(&freeze).contains("control group"), "{}", stderr(&freeze));
        assert!(!image.exists());
        member.unharmed();
    }
    if members == 0 {
        skipped("no control groups to make here");
    }
}

/// The group is frozen after the look at it: a task of version 2 can be stopped all the same, but runs no call.
#[test]
fn a_thread_that_runs_no_call_is_given_up() {
    let Some(member) = HIERARCHIES[..2].iter().find_map(|hierarchy| Member::of(*hierarchy)) else {
        return skipped("no control groups of version 2 to make here");
    };
    let pid = Pid::from_raw(member.program.pid);
    let maps = || fs::read_to_string(format!("/proc/{pid}/maps")).expect("its maps");
    let before = maps();
    member.freeze_group();
    let mut process = seize(pid).expect("it can be stopped");
    let error = Remote::borrow(&mut process, 0).expect_err("it cannot run a call");
    assert!(error.to_string().contains("control group"), "{error}");
    process.resume().expect("it is let go");
    wait_until("it is let go", || state(member.program.pid) != Some('t'));
    assert_eq!(maps(), before);
    member.unharmed();
}
