//! A freezer that is killed at any moment: the program that it had stopped goes on unharmed, and nothing of it stays behind.
//!
//! The programs watch their own registers, vector registers, timings and data, and tell of it in a shared file.

#[path = "common/build.rs"]
#[allow(dead_code)]
mod build;
#[path = "common/watched.rs"]
#[allow(dead_code)]
mod watched;

use std::io::Read;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use nix::unistd::Pid;
use watched::{Watched, freeze_and_ask};

/// Names the target in the environment of a freezer: this test program once more, which only freezes, over and over.
const FREEZE_THIS: &str = "CRYOPOD_TEST_FREEZE_THIS";

#[test]
fn threads_in_many_calls_survive_100_dead_freezers() {
    survives(build::fixture("freezer/watched.c"), 100);
}

#[test]
fn a_static_program_survives_60_dead_freezers() {
    survives(build::fixture("freezer/watched_static.c"), 60);
}

#[test]
fn a_python_program_survives_60_dead_freezers() {
    survives(build::fixture("freezer/watched.py"), 60);
}

#[test]
fn a_storm_of_signals_survives_80_dead_freezers() {
    survives(build::fixture("freezer/signalled.c"), 80);
}

fn survives(program: Command, deaths: u32) {
    let target = Watched::start(program);
    let maps = target.maps();
    for death in 0..deaths {
        kill_a_freezer_of(target.pid());
        target.assert_unharmed(&format!("after death {death}"));
    }
    freeze_and_ask(target.pid());
    target.assert_unharmed("after a last, whole freeze");
    assert_eq!(target.maps(), maps, "something of a freezer stays mapped");
}

/// The freezer, in a process of its own: does nothing unless it is asked to by [`kill_a_freezer_of`].
#[test]
fn freezer() {
    let Ok(pid) = std::env::var(FREEZE_THIS) else { return };
    let pid = Pid::from_raw(pid.parse().expect("a number"));
    println!("freezing");
    loop {
        freeze_and_ask(pid);
        std::thread::sleep(Duration::from_micros(200));
    }
}

fn kill_a_freezer_of(pid: Pid) {
    let mut freezer = Command::new(std::env::current_exe().expect("this program"))
        .args(["--exact", "freezer", "--nocapture", "--test-threads=1"])
        .env(FREEZE_THIS, pid.to_string())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("a freezer starts");
    wait_for_line(&mut freezer);
    std::thread::sleep(Duration::from_micros(random_below(12_000)));
    let ended = freezer.try_wait().expect("wait for the freezer");
    freezer.kill().expect("kill the freezer");
    freezer.wait().expect("wait for the freezer");
    if ended.is_some() {
        let mut stderr = String::new();
        let mut pipe = freezer.stderr.take().expect("its stderr is piped");
        pipe.read_to_string(&mut stderr).expect("its stderr");
        panic!("the freezer failed: {stderr}");
    }
}

/// Until the freezer says that it begins.
fn wait_for_line(freezer: &mut Child) {
    let stdout = freezer.stdout.as_mut().expect("its stdout is piped");
    let mut seen = Vec::new();
    let mut byte = [0];
    while !seen.ends_with(b"freezing\n") {
        assert_eq!(
            stdout.read(&mut byte).expect("its stdout"),
            1,
            "the freezer did not begin"
        );
        seen.push(byte[0]);
    }
}

/// Good enough to hit every moment.
fn random_below(limit: u64) -> u64 {
    let now = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .expect("after 1970")
        .as_nanos() as u64;
    (now.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 20) % limit
}
