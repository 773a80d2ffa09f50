//! Programs that somebody kills while they are frozen: the freeze ends, with an error, and leaves nothing.

mod common;

use common::{CRYOPOD, PATIENCE, Program, build, scratch};
use nix::sys::signal::Signal;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

/// Of a program with several threads the end of the first is reported last, and only once the others were waited for.
#[test]
fn a_freeze_ends_when_its_target_is_killed() {
    let (mut failed, mut done) = (0, 0);
    for round in 0..40u32 {
        let dir = scratch();
        let mut program = Program::start(&mut build::fixture("threads/contended.c"));
        program.wait_for(|line| line == "READY");
        let mut freeze = Command::new(CRYOPOD)
            .args(["-q", "freeze", "--no-sync", &program.pid.to_string(), "-o"])
            .arg(dir.path().join("app.img"))
            .args(["--leave-running"].iter().take(round as usize % 2))
            .stderr(Stdio::null())
            .spawn()
            .expect("cryopod can be run");
        std::thread::sleep(Duration::from_micros(600) * round);
        program.signal_program(Signal::SIGKILL);
        let deadline = Instant::now() + PATIENCE;
        let status = loop {
            if let Some(status) = freeze.try_wait().expect("it is our child") {
                break status;
            }
            assert!(Instant::now() < deadline, "round {round}: the freeze does not end");
            std::thread::sleep(Duration::from_millis(1));
        };
        // A refusal tells of a process that does not exist.
        assert!(matches!(status.code(), Some(0 | 1 | 3)), "round {round}: {status}");
        if status.success() {
            done += 1;
        } else {
            failed += 1;
        }
        program.wait();
    }
    println!("40 targets were killed: {failed} freezes failed, {done} were complete");
    assert!(failed > 0);
}
