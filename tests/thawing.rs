//! What thaw is to the one who runs it: the program's exit code, its signals, its stdin.

mod common;

use common::frozen::Frozen;
use common::{CRYOPOD, Program, build, can_thaw, cryopod, exists, scratch, state, status, stderr, wait_until};
use nix::sys::signal::{Signal, kill};
use nix::sys::wait::{WaitPidFlag, waitpid};
use nix::unistd::Pid;
use std::fs::{self, File};
use std::io::Write;
use std::process::{Command, Stdio};

const WAIT_FOR_GO: &str = r#"print "READY\n"; select(undef, undef, undef, 0.005) until -e "go";"#;

#[test]
fn the_exit_code_is_the_programs() {
    let Some(frozen) = Frozen::perl(&format!("{WAIT_FOR_GO} exit 7")) else {
        return;
    };
    let mut thaw = frozen.thaw();
    frozen.go();
    assert_eq!(thaw.wait().code(), Some(7));
}

/// The first thread ends the program before thaw has let the last one go.
#[test]
fn a_program_that_ends_at_once_keeps_its_exit_code() {
    if !can_thaw() {
        return;
    }
    let dir = scratch();
    let mut program = Program::start(build::fixture("freezer/ending.c").current_dir(dir.path()));
    program.wait_for(|line| line == "READY");
    let frozen = Frozen::program(dir, program);
    frozen.go();
    for round in 0..20 {
        let thaw = cryopod(&[&"thaw", &frozen.image]);
        assert_eq!(thaw.status.code(), Some(7), "round {round}: {}", stderr(&thaw));
        assert!(!exists(frozen.pid));
    }
}

#[test]
fn a_program_that_a_signal_ends_gives_128_and_its_number() {
    let Some(frozen) = Frozen::perl(WAIT_FOR_GO) else {
        return;
    };
    let mut thaw = frozen.thaw();
    thaw.signal_program(Signal::SIGKILL);
    assert_eq!(thaw.wait().code(), Some(128 + 9));
    let mut thaw = frozen.thaw(); // the image can be used again
    thaw.signal(Signal::SIGTERM);
    assert_eq!(thaw.wait().code(), Some(128 + 15));
}

/// The C library has no names for real-time signals; they end a program all the same.
#[test]
fn real_time_signals_pass_through() {
    let Some(frozen) = Frozen::perl(WAIT_FOR_GO) else {
        return;
    };
    let mut thaw = frozen.thaw();
    let signal = libc::SIGRTMIN() + 3;
    // SAFETY: kill takes numbers only; thaw is our child.
    assert_eq!(unsafe { libc::kill(thaw.child_id(), signal) }, 0);
    assert_eq!(thaw.wait().code(), Some(128 + signal));
}

/// A pipe whose reader has left is told of, but the program runs.
#[test]
fn detached_where_nobody_reads_the_pid_it_runs_all_the_same() {
    let Some(frozen) = Frozen::perl(WAIT_FOR_GO) else {
        return;
    };
    let (reader, writer) = std::io::pipe().expect("a pipe can be made");
    drop(reader);
    let errors = frozen.dir.path().join("errors");
    let thaw = Command::new(CRYOPOD)
        .args(["thaw", "--detach"])
        .arg(&frozen.image)
        .stdin(Stdio::null())
        .stdout(writer)
        .stderr(File::create(&errors).expect("the directory takes a file"))
        .status()
        .expect("cryopod runs");
    let said = fs::read_to_string(&errors).expect("it was made");
    assert_eq!(thaw.code(), Some(1), "{said}");
    assert!(
        said.contains(&format!("pid {} runs", frozen.pid)) && !said.contains("panicked"),
        "{said}"
    );
    assert!(exists(frozen.pid));
    frozen.go();
    wait_until("the program ends", || matches!(state(frozen.pid), None | Some('Z')));
}

#[test]
fn signals_sent_to_thaw_reach_the_program() {
    let names = ["INT", "TERM", "HUP", "QUIT", "USR1", "USR2", "WINCH", "CONT", "TSTP"];
    let handlers = r#"for my $name (qw(INT TERM HUP QUIT USR1 USR2 WINCH CONT TSTP)) { $SIG{$name} = sub { print "got $name\n" } }"#;
    let Some(frozen) = Frozen::perl(&format!("{handlers} {WAIT_FOR_GO}")) else {
        return;
    };
    let mut thaw = frozen.thaw();
    for name in names {
        thaw.signal(format!("SIG{name}").parse().expect("it is a signal"));
        let wanted = format!("got {name}");
        thaw.wait_for(|line| line == wanted);
    }
    frozen.go();
    assert_eq!(thaw.wait().code(), Some(0));
}

#[test]
fn what_waited_on_stdin_comes_before_thaws_own() {
    if !can_thaw() {
        return;
    }
    let dir = scratch();
    let script = format!(r#"{WAIT_FOR_GO} while (<STDIN>) {{ print "read $_" }} print "end\n""#);
    let mut program = Program::perl_reading(&script, dir.path(), Stdio::piped());
    let mut old_stdin = program.stdin();
    old_stdin.write_all(b"first\nsecond\n").expect("a pipe takes that");
    let frozen = Frozen::program(dir, program);
    drop(old_stdin);

    let mut command = Command::new(CRYOPOD);
    let mut thaw = Program::thaw_by(command.arg("thaw").arg(&frozen.image), frozen.pid, Stdio::piped());
    let mut new_stdin = thaw.stdin();
    new_stdin.write_all(b"third\n").expect("a pipe takes that");
    frozen.go();
    thaw.wait_for(|line| line == "read third");
    new_stdin.write_all(b"fourth\n").expect("a pipe takes that");
    drop(new_stdin);
    thaw.wait_for(|line| line == "end");
    let lines = thaw.output.lines();
    assert_eq!(lines, ["read first", "read second", "read third", "read fourth", "end"]);
    assert_eq!(thaw.wait().code(), Some(0));
}

#[test]
fn an_image_is_thawed_from_stdin_in_one_pass() {
    let Some(frozen) = Frozen::perl(&format!("{WAIT_FOR_GO} exit 5")) else {
        return;
    };
    let mut cat = Command::new("cat")
        .arg(&frozen.image)
        .stdout(Stdio::piped())
        .spawn()
        .expect("cat is there");
    let image = Stdio::from(cat.stdout.take().expect("it was asked for"));
    let mut thaw = Program::thaw_by(Command::new(CRYOPOD).args(["thaw", "-"]), frozen.pid, image);
    cat.wait().expect("it is our child");
    frozen.go();
    assert_eq!(thaw.wait().code(), Some(5));
}

#[test]
fn detached_it_prints_the_pid_and_returns() {
    let Some(frozen) = Frozen::perl(&format!(r#"{WAIT_FOR_GO} open(my $f, ">", "done"); exit 0"#)) else {
        return;
    };
    let pid_file = frozen.dir.path().join("app.pid");
    // What was a pipe of the program's is now thaw's stdout and stderr: nobody could wait for the end of a pipe here.
    let said = frozen.dir.path().join("said");
    let thaw = Command::new(CRYOPOD)
        .args(["thaw", "--detach", "--pid-file"])
        .args([&pid_file, &frozen.image])
        .stdin(Stdio::null())
        .stdout(File::create(&said).expect("the directory takes a file"))
        .stderr(File::create(frozen.dir.path().join("errors")).expect("the directory takes a file"))
        .status()
        .expect("cryopod runs");
    let errors = fs::read_to_string(frozen.dir.path().join("errors")).expect("it was made");
    assert!(thaw.success(), "{errors}");
    let said = fs::read_to_string(&said).expect("it was made");
    assert_eq!(said.trim(), frozen.pid.to_string());
    assert_eq!(
        fs::read_to_string(&pid_file).expect("it was asked for").trim(),
        frozen.pid.to_string()
    );
    assert!(exists(frozen.pid));
    let session = nix::unistd::getsid(Some(Pid::from_raw(frozen.pid))).expect("it is there");
    assert_ne!(
        session,
        nix::unistd::getsid(None).expect("we are there"),
        "it is in our session"
    );
    frozen.go();
    wait_until("the program does its work", || frozen.dir.path().join("done").exists());
    wait_until("the program ends", || matches!(state(frozen.pid), None | Some('Z')));
}

#[test]
fn left_stopped_it_waits_for_sigcont() {
    let Some(frozen) = Frozen::perl(&format!("{WAIT_FOR_GO} exit 3")) else {
        return;
    };
    frozen.go();
    let mut command = Command::new(CRYOPOD);
    let mut thaw = Program::thaw_by(
        command.args(["thaw", "--stopped"]).arg(&frozen.image),
        frozen.pid,
        Stdio::null(),
    );
    wait_until("the program is stopped", || state(frozen.pid) == Some('T'));
    std::thread::sleep(std::time::Duration::from_millis(50));
    assert_eq!(state(frozen.pid), Some('T'));
    thaw.signal_program(Signal::SIGCONT);
    assert_eq!(thaw.wait().code(), Some(3));
}

#[test]
fn a_stopped_program_is_stopped_again() {
    if !can_thaw() {
        return;
    }
    let dir = scratch();
    let program = Program::perl(&format!("{WAIT_FOR_GO} exit 4"), dir.path());
    program.signal_program(Signal::SIGSTOP);
    wait_until("the program is stopped", || state(program.pid) == Some('T'));
    let frozen = Frozen::program(dir, program);
    frozen.go();
    let mut thaw = frozen.thaw();
    wait_until("the program is stopped again", || state(frozen.pid) == Some('T'));
    std::thread::sleep(std::time::Duration::from_millis(50));
    assert_eq!(state(frozen.pid), Some('T'));
    // A program that stops takes its thaw with it, as a shell that shows jobs would have it; SIGCONT gets both going.
    thaw.signal(Signal::SIGCONT);
    assert_eq!(thaw.wait().code(), Some(4));
}

#[test]
fn a_thaw_that_is_killed_half_way_leaves_nothing_or_the_whole_program() {
    let Some(frozen) = Frozen::perl(WAIT_FOR_GO) else {
        return;
    };
    // What a thaw leaves is ours to wait for: init takes its time.
    nix::sys::prctl::set_child_subreaper(true).expect("PR_SET_CHILD_SUBREAPER");
    let is_there = || {
        let _unless_it_runs = waitpid(Pid::from_raw(frozen.pid), Some(WaitPidFlag::WNOHANG));
        exists(frozen.pid)
    };
    for micros in (0..20_000).step_by(500) {
        let mut thaw = Command::new(CRYOPOD)
            .arg("thaw")
            .arg(&frozen.image)
            .spawn()
            .expect("cryopod runs");
        std::thread::sleep(std::time::Duration::from_micros(micros));
        thaw.kill().expect("it is our child");
        thaw.wait().expect("it is our child");
        // Whole is what runs perl; the half-built goes with its thaw (PTRACE_O_EXITKILL), which takes a moment.
        wait_until("what is there is whole", || match state(frozen.pid) {
            _ if !is_there() => true,
            None => true,
            Some('t') => false,
            Some(_) => status(frozen.pid, "Name").as_deref() == Some("perl"),
        });
        if is_there() {
            assert_eq!(status(frozen.pid, "TracerPid").as_deref(), Some("0"));
            kill(Pid::from_raw(frozen.pid), Signal::SIGKILL).expect("it is our program");
            wait_until("the program is gone", || !is_there());
        }
    }
}
