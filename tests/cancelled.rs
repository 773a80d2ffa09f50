//! A freeze that is interrupted by a signal ends with 1, leaves nothing behind, and lets the program go on.

mod common;

use common::{CRYOPOD, Program, build, cryopod, scratch, state, stderr, wait_until};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use std::io::Read;
use std::process::{Command, Stdio};

/// Freezes into a pipe that nobody empties, so that it lasts, and sends a signal meanwhile.
fn cancelled_by(signal: Signal) {
    let mut program = Program::start(&mut build::fixture("memory/anon.c"));
    program.wait_for(|line| line == "READY");
    let pid = program.pid.to_string();
    let mut freeze = Command::new(CRYOPOD)
        .args(["freeze", &pid, "--compress", "none", "--end", "-o", "-"])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("cryopod can be run");
    let mut pipe = freeze.stdout.take().expect("it was asked for");
    pipe.read_exact(&mut [0; 100]).expect("an image is longer than that");
    wait_until("the pipe is full", || state(freeze.id() as i32) == Some('S'));
    kill(Pid::from_raw(freeze.id() as i32), signal).expect("it is our child");
    let freeze = freeze.wait_with_output().expect("it is our child");
    assert_eq!(freeze.status.code(), Some(1), "{}", stderr(&freeze));
    assert!(stderr(&freeze).contains("cancelled"), "{}", stderr(&freeze));
    program.signal(Signal::SIGUSR1);
    program.expect_pass();
}

#[test]
fn by_sigint() {
    cancelled_by(Signal::SIGINT);
}

#[test]
fn by_sigterm() {
    cancelled_by(Signal::SIGTERM);
}

#[test]
fn by_sighup() {
    cancelled_by(Signal::SIGHUP);
}

#[test]
fn an_existing_image_survives_a_cancelled_freeze() {
    let dir = scratch();
    let image = dir.path().join("app.img");
    let mut program = Program::start(&mut build::fixture("memory/anon.c"));
    program.wait_for(|line| line == "READY");
    let pid = program.pid.to_string();
    let first = cryopod(&[&"freeze", &pid, &"--leave-running", &"-o", &image]);
    assert_eq!(first.status.code(), Some(0), "{}", stderr(&first));
    for after_ms in [0, 5, 20, 40] {
        let mut freeze = Command::new(CRYOPOD);
        freeze
            .args(["freeze", &pid, "--leave-running", "--compress", "zstd:19", "-o"])
            .arg(&image);
        let mut freeze = freeze
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("cryopod can be run");
        std::thread::sleep(std::time::Duration::from_millis(after_ms));
        kill(Pid::from_raw(freeze.id() as i32), Signal::SIGINT).expect("it is our child");
        freeze.wait().expect("it is our child");
        assert_eq!(cryopod(&[&"verify", &image]).status.code(), Some(0));
        assert_eq!(std::fs::read_dir(dir.path()).expect("it is ours").count(), 1);
    }
    program.signal(Signal::SIGUSR1);
    program.expect_pass();
}
