//! Which processes a freeze takes: those of a process group, a session, a control group or a unit.

mod common;

use common::control_group::{Group, name_of};
use common::{CRYOPOD, Program, can_thaw, cryopod, exists, scratch, skipped, stderr, wait_until};
use std::fs;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Command;

const READER: &str =
    r#"open(my $f, "+<", "fifo"); print "READY\n"; my $got = <$f>; print $got eq "hello\n" ? "PASS\n" : "FAIL\n""#;
const WRITER: &str = r#"open(my $f, ">", "fifo"); print "READY\n"; select(undef, undef, undef, 0.005) until -e "go";
    syswrite $f, "hello\n"; print "PASS\n""#;

fn perl(script: &str, dir: &Path, group: i32) -> Program {
    let mut command = Command::new("perl");
    command.args(["-e", &format!("$| = 1; {script}")]).current_dir(dir);
    command.process_group(group);
    let mut program = Program::start(&mut command);
    program.wait_for(|line| line == "READY");
    program
}

/// Two that talk to each other and are no relatives, in one process group, the first its leader.
fn pipeline(dir: &Path) -> (Program, Program) {
    common::reap_orphans();
    nix::unistd::mkfifo(&dir.join("fifo"), nix::sys::stat::Mode::S_IRWXU).expect("mkfifo");
    let reader = perl(READER, dir, 0);
    let writer = perl(WRITER, dir, reader.pid);
    (reader, writer)
}

fn both_come_back(options: &[&str], dir: &Path, (mut reader, mut writer): (Program, Program)) {
    let image = dir.join("app.img");
    let freeze = Command::new(CRYOPOD)
        .args(["freeze", "--no-sync", "-o"])
        .arg(&image)
        .args(options)
        .output()
        .expect("cryopod can be run");
    assert_eq!(freeze.status.code(), Some(0), "{}", stderr(&freeze));
    let said = String::from_utf8_lossy(&freeze.stdout);
    assert!(
        said.starts_with(&format!("pid {} and 1 more ended", reader.pid)),
        "{said}"
    );
    reader.wait();
    writer.wait();
    let thawed = Program::thaw(&image, reader.pid);
    wait_until("the second is there as well", || exists(writer.pid));
    fs::write(dir.join("go"), "").expect("the directory takes a file");
    thawed.expect_pass();
}

#[test]
fn a_process_group_comes_along() {
    if !can_thaw() {
        return;
    }
    let dir = scratch();
    let programs = pipeline(dir.path());
    let group = programs.0.pid.to_string();
    both_come_back(&["--pgid", &group], dir.path(), programs);
}

/// A child whose parent has ended is below nobody, but in the session.
#[test]
fn a_session_comes_along() {
    if !can_thaw() {
        return;
    }
    common::reap_orphans();
    let dir = scratch();
    let script = r#"use POSIX; pipe(my $r, my $w); if (!fork) { if (!fork) { close $w; my $got = <$r>; open(my $f, ">", "got"); print $f $got; exit 0 } exit 0 }
        wait; close $r; $| = 1; print "READY\n"; select(undef, undef, undef, 0.005) until -e "go"; syswrite $w, "hello\n"; close $w;
        select(undef, undef, undef, 0.005) until -s "got"; print "PASS\n""#;
    let mut command = Command::new("setsid");
    let mut program = Program::start(command.args(["perl", "-e", script]).current_dir(dir.path()));
    program.wait_for(|line| line == "READY");
    let (pid, image) = (program.pid, dir.path().join("app.img"));
    let freeze = cryopod(&[&"freeze", &"--sid", &pid.to_string(), &"--no-sync", &"-o", &image]);
    assert_eq!(freeze.status.code(), Some(0), "{}", stderr(&freeze));
    let said = String::from_utf8_lossy(&freeze.stdout);
    assert!(said.starts_with(&format!("pid {pid} and 1 more ended")), "{said}");
    program.wait();
    let thawed = Program::thaw(&image, pid);
    fs::write(dir.path().join("go"), "").expect("the directory takes a file");
    thawed.expect_pass();
}

#[test]
fn a_control_group_comes_along_by_its_directory_its_path_and_as_a_unit() {
    if !can_thaw() {
        return;
    }
    let roots = ["/sys/fs/cgroup", "/sys/fs/cgroup/unified"];
    for how in ["directory", "path", "unit"] {
        let dir = scratch();
        let name = name_of(dir.path());
        let unit = format!("{name}.service");
        let Some(group) = roots.iter().find_map(|root| Group::make(root, &unit)) else {
            return skipped("no control group of version 2 can be made here");
        };
        let programs = pipeline(dir.path());
        group.add(programs.0.pid);
        group.add(programs.1.pid);
        let path = match how {
            "directory" => group.path().to_string_lossy().into_owned(),
            "path" => format!("/{unit}"),
            _ => name,
        };
        let option = if how == "unit" { "--unit" } else { "--cgroup" };
        both_come_back(&[option, &path], dir.path(), programs);
    }
}

#[test]
fn what_has_no_processes_or_cryopod_in_it_is_refused() {
    let dir = scratch();
    let image = dir.path().join("app.img");
    let own = nix::unistd::getpgrp().to_string();
    for (option, value, code, reason) in [
        ("--pgid", own.as_str(), 3, "has cryopod itself in it"),
        ("--sid", "4194303", 3, "has no process in it"),
        ("--unit", "no-such-unit", 3, "has no control group"),
        ("--cgroup", "/no/such/group", 1, "there is no control group"),
    ] {
        let freeze = cryopod(&[&"freeze", &option, &value, &"-o", &image]);
        assert_eq!(freeze.status.code(), Some(code), "{option}: {}", stderr(&freeze));
        assert!(stderr(&freeze).contains(reason), "{}", stderr(&freeze));
        assert!(!image.exists());
    }
}
