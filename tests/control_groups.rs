//! A program joins its control group again, if that is there; if not, thaw says so and the program runs all the same.

mod common;

use common::control_group::{Group, name_of};
use common::{Program, can_thaw, cryopod, scratch, skipped, stderr};
use nix::sys::signal::Signal;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Stdio;

/// Hierarchies of cgroups(7): where they may be mounted, and how /proc/PID/cgroup names them.
const HIERARCHIES: [(&str, &str); 3] = [
    ("/sys/fs/cgroup", "0::"),
    ("/sys/fs/cgroup/unified", "0::"),
    ("/sys/fs/cgroup/pids", ":pids:"),
];

/// The line of /proc/PID/cgroup that tells of the hierarchy.
fn group_of(path: &str, hierarchy: &str) -> String {
    let groups = fs::read_to_string(path).expect("the program lives");
    let line = groups.lines().find(|line| line.contains(hierarchy));
    line.expect("the hierarchy has a line").to_owned()
}

const SCRIPT: &str = r#"print "READY\n"; select(undef, undef, undef, 0.005) until -e "go"; exit 7"#;

/// A frozen program that was in a group; tells its image and pid.
fn frozen_in(group: &Group, hierarchy: &str, dir: &Path) -> (PathBuf, i32) {
    let program = Program::perl(SCRIPT, dir);
    group.add(program.pid);
    assert!(group_of(&format!("/proc/{}/cgroup", program.pid), hierarchy).ends_with(&name_of(group.path())));
    let (image, pid) = (dir.join("app.img"), program.pid);
    program.freeze(&image);
    (image, pid)
}

#[test]
fn a_program_is_in_its_control_group_again() {
    if !can_thaw() {
        return;
    }
    let mut members = 0;
    for (root, hierarchy) in HIERARCHIES {
        let dir = scratch();
        let Some(group) = Group::make(root, &name_of(dir.path())) else {
            continue;
        };
        members += 1;
        let (image, pid) = frozen_in(&group, hierarchy, dir.path());
        let mut thawed = Program::thaw(&image, pid);
        assert!(group_of(&format!("/proc/{pid}/cgroup"), hierarchy).ends_with(&name_of(group.path())));
        assert!(!thawed.output.lines().iter().any(|line| line.contains("control group")));
        fs::write(dir.path().join("go"), "").expect("the directory takes a file");
        assert_eq!(thawed.wait().code(), Some(7));
    }
    if members == 0 {
        skipped("no control group can be made here");
    }
}

#[test]
fn a_group_that_is_gone_is_told() {
    if !can_thaw() {
        return;
    }
    let dir = scratch();
    let made = HIERARCHIES
        .iter()
        .find_map(|(root, hierarchy)| Some((Group::make(root, &name_of(dir.path()))?, *hierarchy)));
    let Some((group, hierarchy)) = made else {
        skipped("no control group can be made here");
        return;
    };
    let (name, (image, pid)) = (name_of(group.path()), frozen_in(&group, hierarchy, dir.path()));
    drop(group);
    let mut command = std::process::Command::new(common::CRYOPOD);
    let mut thawed = Program::thaw_by(command.arg("thaw").arg(&image), pid, Stdio::null());
    let told = thawed.wait_for(|line| line.contains("control group"));
    assert!(told.contains(&name) && told.contains("does not exist here"), "{told}");
    assert_eq!(
        group_of(&format!("/proc/{pid}/cgroup"), hierarchy),
        group_of("/proc/self/cgroup", hierarchy)
    );
    let shown = cryopod(&[&"inspect", &image]);
    assert!(
        String::from_utf8_lossy(&shown.stdout).contains(&name),
        "{}",
        stderr(&shown)
    );
    thawed.signal(Signal::SIGTERM);
    thawed.wait();
}
