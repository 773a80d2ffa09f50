//! An image of another boot: clocks that have come further than those of this machine must not go back for the program.

mod common;

use common::rewrite::rewrite;
use common::{CRYOPOD, Program, build, can_thaw, scratch};
use nix::sys::signal::Signal;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

const HOURS: i64 = 5 * 3600;

/// A fixture that was frozen hours after this machine has booted, if one believes its image.
fn frozen_hours_ahead(source: &str, dir: &Path) -> (PathBuf, i32) {
    let mut program = Program::start(build::fixture(source).current_dir(dir));
    program.wait_for(|line| line == "READY");
    let (pid, image) = (program.pid, dir.join("app.img"));
    program.freeze(&image);
    rewrite(&image, |snapshot| {
        snapshot.host.boot_id = "00000000-0000-4000-8000-000000000000".to_owned();
        snapshot.clocks.monotonic_ns += HOURS * 1_000_000_000;
        snapshot.clocks.boottime_ns += HOURS * 1_000_000_000;
    });
    fs::write(dir.join("ahead"), HOURS.to_string()).expect("the directory takes a file");
    (image, pid)
}

fn goes_on_hours_ahead(source: &str) {
    if !can_thaw() {
        return;
    }
    let dir = scratch();
    let (image, pid) = frozen_hours_ahead(source, dir.path());
    let program = Program::thaw(&image, pid);
    match source.ends_with(".java") {
        true => fs::write(dir.path().join("go"), "").expect("the directory takes a file"),
        false => program.signal(Signal::SIGUSR1),
    }
    program.expect_pass();
}

#[test]
fn clocks_of_a_c_program_go_on_from_the_freeze() {
    goes_on_hours_ahead("clock/monotonic.c");
}

#[test]
fn clocks_of_a_go_program_go_on_from_the_freeze() {
    goes_on_hours_ahead("clock/clock.go");
}

#[test]
fn clocks_of_a_java_program_go_on_from_the_freeze() {
    let _alone = build::alone("java");
    goes_on_hours_ahead("clock/Clock.java");
}

/// What went on in a time namespace can be frozen and thawed again.
#[test]
fn clocks_go_on_after_a_second_freeze() {
    if !can_thaw() {
        return;
    }
    let dir = scratch();
    let (image, pid) = frozen_hours_ahead("clock/monotonic.c", dir.path());
    let again = dir.path().join("again.img");
    Program::thaw(&image, pid).freeze(&again);
    let program = Program::thaw(&again, pid);
    program.signal(Signal::SIGUSR1);
    program.expect_pass();
}

#[test]
fn the_machines_clocks_are_taken_where_that_is_asked_for() {
    if !can_thaw() {
        return;
    }
    let dir = scratch();
    let (image, pid) = frozen_hours_ahead("clock/monotonic.c", dir.path());
    fs::remove_file(dir.path().join("ahead")).expect("it was made");
    let mut command = Command::new(CRYOPOD);
    let program = Program::thaw_by(command.args(["thaw", "--clock=host"]).arg(&image), pid, Stdio::null());
    program.signal(Signal::SIGUSR1);
    program.expect_pass();
}

#[test]
fn a_gap_is_hidden_where_that_is_asked_for() {
    if !can_thaw() {
        return;
    }
    let dir = scratch();
    let mut program = Program::start(build::fixture("blocked/clock_nanosleep_absolute.c").current_dir(dir.path()));
    program.wait_for(|line| line == "READY");
    let (pid, image) = (program.pid, dir.path().join("app.img"));
    program.freeze(&image);
    // Longer than the fixture's sleep: it would end late by the machine's clock.
    std::thread::sleep(std::time::Duration::from_secs(5));
    let mut command = Command::new(CRYOPOD);
    let program = Program::thaw_by(
        command.args(["thaw", "--clock=continue"]).arg(&image),
        pid,
        Stdio::null(),
    );
    program.signal(Signal::SIGUSR1);
    program.expect_pass();
}
