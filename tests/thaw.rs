//! What a thaw is to whoever runs it: signals, exit codes, stdio, detaching, refusals; and what is left when it fails or dies.

mod common;

use common::{CRYOPOD, PATIENCE, Program, can_thaw, exists, scratch};
use nix::sys::signal::Signal;
use std::io::Write;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::PathBuf;
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

/// An image of a program that is a C fixture written here, frozen after it printed READY.
struct Frozen {
    dir: tempfile::TempDir,
    image: PathBuf,
    pid: i32,
}

impl Frozen {
    fn of(command: &mut Command) -> Self {
        let dir = scratch();
        let image = dir.path().join("app.img");
        let mut program = Program::start(command.current_dir(dir.path()));
        program.wait_for(|line| line == "READY");
        let pid = program.pid;
        program.freeze(&image);
        Frozen { dir, image, pid }
    }

    /// A shell script; the shell itself is what is frozen, so it must start nothing while it waits.
    fn python(code: &str) -> Self {
        Self::of(Command::new("/usr/bin/python3").args(["-u", "-c", code]))
    }

    fn thaw(&self, options: &[&str]) -> Output {
        Command::new(CRYOPOD)
            .arg("thaw")
            .args(options)
            .arg(&self.image)
            .stdin(Stdio::null())
            .output()
            .expect("cryopod can be run")
    }

    /// A thaw that must fail: its exit code and what it said.
    fn refused(&self, options: &[&str]) -> (i32, String) {
        let result = self.thaw(options);
        assert!(!exists(self.pid), "a failed thaw left process {} behind", self.pid);
        (result.status.code().expect("thaw was not killed"), String::from_utf8_lossy(&result.stderr).into_owned())
    }
}

const WAIT_FOR_USR1: &str = "\
import signal, sys, os
signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGUSR1])
print('READY')
signal.sigwait([signal.SIGUSR1])
";

fn ends_with(code: &str) -> Frozen {
    Frozen::python(&format!("{WAIT_FOR_USR1}{code}"))
}

fn wait_until(what: &str, condition: impl Fn() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !condition() {
        assert!(Instant::now() < deadline, "{what} takes too long");
        std::thread::sleep(Duration::from_millis(5));
    }
}

#[test]
fn the_exit_code_is_the_programs() {
    if !can_thaw() {
        return;
    }
    let frozen = ends_with("sys.exit(42)");
    let mut program = Program::thaw(&frozen.image, frozen.pid);
    program.signal(Signal::SIGUSR1);
    assert_eq!(program.wait().code(), Some(42));
}

#[test]
fn a_death_by_signal_is_128_and_its_number() {
    if !can_thaw() {
        return;
    }
    let frozen = ends_with("os.kill(os.getpid(), signal.SIGKILL)");
    let mut program = Program::thaw(&frozen.image, frozen.pid);
    program.signal(Signal::SIGUSR1);
    assert_eq!(program.wait().code(), Some(128 + 9));
}

#[test]
fn signals_reach_the_program() {
    if !can_thaw() {
        return;
    }
    let code = "\
import signal, sys, time
def handler(number, frame): print('GOT', number)
for s in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT, signal.SIGUSR1, signal.SIGUSR2, signal.SIGWINCH,
          signal.SIGALRM, signal.SIGRTMIN + 3):
    signal.signal(s, handler)
print('READY')
while True: time.sleep(100)
";
    let frozen = Frozen::python(code);
    let mut program = Program::thaw(&frozen.image, frozen.pid);
    let signals = [Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP, Signal::SIGQUIT, Signal::SIGUSR1, Signal::SIGUSR2];
    for signal in signals.into_iter().chain([Signal::SIGWINCH, Signal::SIGALRM]) {
        program.signal(signal);
        let expected = format!("GOT {}", signal as i32);
        program.wait_for(|line| line == expected);
    }
    assert!(exists(frozen.pid));
}

#[test]
fn a_stopped_program_stops_the_thaw_and_goes_on_with_it() {
    if !can_thaw() {
        return;
    }
    let frozen = ends_with("print('ON')");
    let mut program = Program::thaw(&frozen.image, frozen.pid);
    let thaw = parent(frozen.pid);
    program.signal(Signal::SIGTSTP);
    wait_until("stopping both", || state(frozen.pid) == 'T' && state(thaw) == 'T');
    program.signal(Signal::SIGCONT);
    wait_until("going on", || state(frozen.pid) != 'T' && state(thaw) != 'T');
    program.signal(Signal::SIGUSR1);
    program.wait_for(|line| line == "ON");
    assert_eq!(program.wait().code(), Some(0));
}

#[test]
fn a_detached_program_runs_on_in_a_session_of_its_own() {
    if !can_thaw() {
        return;
    }
    let frozen = ends_with("open('done', 'w').write(str(os.getsid(0) == os.getpid() == os.getpgrp()))");
    let pid_file = frozen.dir.path().join("pid");
    let result = frozen.thaw(&["-d", "--pid-file", pid_file.to_str().unwrap()]);
    assert!(result.status.success(), "{}", String::from_utf8_lossy(&result.stderr));
    assert_eq!(String::from_utf8_lossy(&result.stdout).trim(), frozen.pid.to_string());
    assert_eq!(std::fs::read_to_string(&pid_file).unwrap().trim(), frozen.pid.to_string());
    assert!(Command::new("kill").args(["-USR1", &frozen.pid.to_string()]).status().unwrap().success());
    wait_until("the end of the program", || !exists(frozen.pid));
    assert_eq!(std::fs::read_to_string(frozen.dir.path().join("done")).unwrap(), "True");
}

#[test]
fn stopped_leaves_the_program_to_a_debugger() {
    if !can_thaw() {
        return;
    }
    let frozen = ends_with("print('ON')");
    let mut program = Program::start(Command::new(CRYOPOD).args(["thaw", "--stopped"]).arg(&frozen.image));
    wait_until("the thaw", || exists(frozen.pid) && state(frozen.pid) == 'T');
    program.signal(Signal::SIGCONT);
    wait_until("going on", || state(frozen.pid) != 'T');
    program.signal(Signal::SIGUSR1);
    program.wait_for(|line| line == "ON");
}

#[test]
fn a_program_that_was_stopped_is_thawed_stopped() {
    if !can_thaw() {
        return;
    }
    let dir = scratch();
    let image = dir.path().join("app.img");
    let code = format!("{WAIT_FOR_USR1}print('ON')");
    let mut program = Program::start(Command::new("/usr/bin/python3").args(["-u", "-c", &code]));
    program.wait_for(|line| line == "READY");
    let pid = program.pid;
    program.signal(Signal::SIGSTOP);
    wait_until("stopping", || state(pid) == 'T');
    program.freeze(&image);
    let mut program = Program::thaw(&image, pid);
    wait_until("the thaw", || state(pid) == 'T');
    wait_until("the stop of thaw", || state(parent(pid)) == 'T');
    program.signal(Signal::SIGCONT);
    wait_until("going on", || state(pid) != 'T');
    program.signal(Signal::SIGUSR1);
    program.wait_for(|line| line == "ON");
}

#[test]
fn an_image_comes_through_a_pipe() {
    if !can_thaw() {
        return;
    }
    let frozen = ends_with("print('ON')");
    let mut child = Command::new(CRYOPOD)
        .args(["thaw", "-"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .expect("cryopod can be run");
    let bytes = std::fs::read(&frozen.image).unwrap();
    child.stdin.take().unwrap().write_all(&bytes).unwrap();
    wait_until("the thaw", || parent(frozen.pid) == child.id() as i32);
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(child.id() as i32), Signal::SIGUSR1).unwrap();
    let result = child.wait_with_output().unwrap();
    assert_eq!((result.status.code(), result.stdout.as_slice()), (Some(0), b"ON\n".as_slice()));
}

#[test]
fn unread_input_comes_first_and_then_thaws_own() {
    if !can_thaw() {
        return;
    }
    let dir = scratch();
    let image = dir.path().join("app.img");
    let code = format!("{WAIT_FOR_USR1}print(sys.stdin.buffer.raw.read(5)); print(sys.stdin.buffer.read())");
    let mut child = Command::new("/usr/bin/python3")
        .args(["-u", "-c", &code])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let pid = child.id() as i32;
    let mut stdin = child.stdin.take().unwrap();
    stdin.write_all(b"hello world").unwrap();
    let mut ready = [0; 6];
    std::io::Read::read_exact(child.stdout.as_mut().unwrap(), &mut ready).unwrap();
    let status = Command::new(CRYOPOD).args(["freeze", &pid.to_string(), "-o"]).arg(&image).status().unwrap();
    assert!(status.success());
    child.wait().unwrap();
    drop(stdin);
    let mut thaw = Command::new(CRYOPOD)
        .arg("thaw")
        .arg(&image)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    thaw.stdin.take().unwrap().write_all(b", again").unwrap();
    wait_until("the thaw", || parent(pid) == thaw.id() as i32);
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), Signal::SIGUSR1).unwrap();
    let result = thaw.wait_with_output().unwrap();
    assert_eq!(String::from_utf8_lossy(&result.stdout), "b'hello'\nb' world, again'\n");
}

#[test]
fn a_taken_pid_is_refused_with_its_holder() {
    if !can_thaw() {
        return;
    }
    let frozen = ends_with("pass");
    let _program = Program::thaw(&frozen.image, frozen.pid);
    let result = frozen.thaw(&[]);
    let message = String::from_utf8_lossy(&result.stderr);
    assert_eq!(result.status.code(), Some(126), "{message}");
    assert!(message.contains("is taken by process python3"), "{message}");
    assert!(exists(frozen.pid), "the holder was harmed");
    assert_eq!(frozen.thaw(&["-d"]).status.code(), Some(3));
}

#[test]
fn a_mapped_file_that_changed_is_refused_unless_told_otherwise() {
    if !can_thaw() {
        return;
    }
    let dir = scratch();
    let file = dir.path().join("data");
    std::fs::write(&file, vec![7; 10000]).unwrap();
    let code = format!("import mmap; f = open({:?}, 'r+b'); m = mmap.mmap(f.fileno(), 0, prot=mmap.PROT_READ); f.close()
{WAIT_FOR_USR1}print(m[9999])", file.to_str().unwrap());
    let frozen = Frozen::python(&code);
    std::fs::write(&file, vec![8; 10000]).unwrap();
    let (code, message) = frozen.refused(&[]);
    assert!(code == 126 && message.contains("has been modified") && message.contains("--file-check=warn"), "{message}");
    std::fs::remove_file(&file).unwrap();
    let (code, message) = frozen.refused(&["--file-check=off"]);
    assert!(code == 126 && message.contains("No such file"), "{message}");
    std::fs::write(&file, vec![8; 10000]).unwrap();
    let mut program =
        Program::start(Command::new(CRYOPOD).args(["thaw", "--file-check=warn"]).arg(&frozen.image));
    wait_until("the thaw", || exists(frozen.pid));
    wait_until("the first detach", || tracer(frozen.pid) == 0);
    program.signal(Signal::SIGUSR1);
    program.wait_for(|line| line == "8");
}

#[test]
fn an_image_of_somebody_else_is_not_trusted() {
    if !can_thaw() {
        return;
    }
    let frozen = ends_with("sys.exit(5)");
    std::os::unix::fs::chown(&frozen.image, Some(65534), None).unwrap();
    let (code, message) = frozen.refused(&[]);
    assert!(code == 126 && message.contains("uid 65534") && message.contains("--trust"), "{message}");
    std::os::unix::fs::chown(&frozen.image, Some(0), None).unwrap();
    std::fs::set_permissions(&frozen.image, std::fs::Permissions::from_mode(0o666)).unwrap();
    let (code, message) = frozen.refused(&[]);
    assert!(code == 126 && message.contains("written by others"), "{message}");
    let result = frozen.thaw(&["-d", "--trust"]);
    assert!(result.status.success(), "{}", String::from_utf8_lossy(&result.stderr));
    Command::new("kill").args(["-USR1", &frozen.pid.to_string()]).status().unwrap();
    wait_until("the end of the program", || !exists(frozen.pid));
}

#[test]
fn a_planted_link_is_not_followed() {
    if !can_thaw() {
        return;
    }
    let frozen = ends_with("sys.exit(5)");
    let (victim, link) = (frozen.dir.path().join("victim"), frozen.dir.path().join("pid"));
    std::fs::write(&victim, "precious").unwrap();
    symlink(&victim, &link).unwrap();
    let (code, message) = frozen.refused(&["--pid-file", link.to_str().unwrap()]);
    assert!(code == 125 && message.contains("pid"), "{message}");
    assert_eq!(std::fs::read_to_string(&victim).unwrap(), "precious");
}

#[test]
fn a_missing_directory_is_refused() {
    if !can_thaw() {
        return;
    }
    let dir = scratch();
    let work = dir.path().join("work");
    std::fs::create_dir(&work).unwrap();
    let frozen = Frozen::python(&format!("import os; os.chdir({:?})\n{WAIT_FOR_USR1}", work.to_str().unwrap()));
    std::fs::remove_dir(&work).unwrap();
    let (code, message) = frozen.refused(&[]);
    assert!(code == 126 && message.contains("working directory"), "{message}");
}

#[test]
fn a_cut_image_leaves_nothing_behind() {
    if !can_thaw() {
        return;
    }
    let frozen = ends_with("pass");
    let bytes = std::fs::read(&frozen.image).unwrap();
    for share in 1..20 {
        std::fs::write(&frozen.image, &bytes[..bytes.len() * share / 20]).unwrap();
        let (code, message) = frozen.refused(&[]);
        assert!(code == 125 && message.contains("cut off"), "{share}/20: {message}");
    }
    let mut damaged = bytes;
    let middle = damaged.len() / 2;
    damaged[middle] ^= 1;
    std::fs::write(&frozen.image, &damaged).unwrap();
    let (code, message) = frozen.refused(&[]);
    assert!(code == 125 && message.contains("damaged"), "{message}");
}

/// Kills thaws at instants spread over their whole run: whatever is left must be the whole program or nothing.
#[test]
fn a_killed_thaw_leaves_nothing_half_built() {
    if !can_thaw() {
        return;
    }
    let code = format!("import threading, time
data = [bytes([n]) * 100000 for n in range(200)]
for n in range(5): threading.Thread(target=time.sleep, args=(1000,), daemon=True).start()
{WAIT_FOR_USR1}print('SUM', sum(map(sum, data)))");
    let frozen = Frozen::python(&code);
    let begun = Instant::now();
    drop(Program::thaw(&frozen.image, frozen.pid));
    wait_until("the end of the program", || !exists(frozen.pid));
    let whole = begun.elapsed();
    let (mut nothing, mut running) = (0, 0);
    for n in 0..60 {
        let mut thaw = Command::new(CRYOPOD)
            .arg("thaw")
            .arg(&frozen.image)
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        std::thread::sleep(whole * n / 60);
        thaw.kill().unwrap();
        thaw.wait().unwrap();
        if !settled(frozen.pid) {
            nothing += 1;
            continue;
        }
        running += 1;
        assert_eq!(tracer(frozen.pid), 0);
        assert_eq!(std::fs::read_dir(format!("/proc/{}/task", frozen.pid)).unwrap().count(), 6);
        let exe = std::fs::read_link(format!("/proc/{}/exe", frozen.pid)).unwrap();
        assert!(exe.to_string_lossy().contains("python"), "{exe:?}");
        Command::new("kill").args(["-KILL", &frozen.pid.to_string()]).status().unwrap();
        wait_until("the end of the program", || !exists(frozen.pid));
    }
    println!("60 killed thaws: {nothing} left nothing, {running} had let the program go");
    assert!(nothing > 0, "no thaw was killed before it was done");
}

/// What the kernel is still killing is given time to go; true where a process stays.
fn settled(pid: i32) -> bool {
    for _ in 0..40 {
        if !exists(pid) {
            return false;
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    true
}

fn status_field(pid: i32, name: &str) -> String {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix(name).map(str::to_owned));
    line.unwrap_or_default().trim_start_matches(':').trim().to_owned()
}

fn state(pid: i32) -> char {
    status_field(pid, "State").chars().next().unwrap_or('?')
}

fn parent(pid: i32) -> i32 {
    status_field(pid, "PPid").parse().unwrap_or(0)
}

fn tracer(pid: i32) -> i32 {
    status_field(pid, "TracerPid").parse().unwrap_or(0)
}
