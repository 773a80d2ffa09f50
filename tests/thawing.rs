//! What thaw is to the one who runs it: the program's exit code, its signals, its stdin; and what it refuses.

mod common;

use common::frozen::Frozen;
use common::{CRYOPOD, Program, build, can_thaw, cryopod, exists, scratch, skipped, state, status, stderr, wait_until};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use std::fs::{self, File};
use std::io::Write;
use std::os::unix::fs::chown;
use std::path::Path;
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
fn a_pid_that_is_taken_is_refused_with_its_holder() {
    if !can_thaw() {
        return;
    }
    let dir = scratch();
    let mut program = Program::perl(&format!("{WAIT_FOR_GO} exit 0"), dir.path());
    let image = dir.path().join("app.img");
    program.freeze_with(&image, &["--leave-running"]);
    let thaw = cryopod(&[&"thaw", &image]);
    assert_eq!(thaw.status.code(), Some(126), "{}", stderr(&thaw));
    assert!(stderr(&thaw).contains(&program.pid.to_string()), "{}", stderr(&thaw));
    assert!(stderr(&thaw).contains("perl"), "it tells by what: {}", stderr(&thaw));
    fs::write(dir.path().join("go"), "").expect("the directory takes a file");
    assert_eq!(program.wait().code(), Some(0));
}

/// An id is in use as long as a process group bears it, its leader may long be gone.
#[test]
fn a_pid_that_a_process_group_holds_is_refused_with_a_member() {
    let script = r#"setpgrp; print "READY\n"; select(undef, undef, undef, 0.005) until -e "go";
        exit 0 if fork; open(my $f, ">", "member"); print $f "$$ "; close $f; sleep 100"#;
    let Some(frozen) = Frozen::perl(script) else {
        return;
    };
    let mut thaw = frozen.thaw();
    frozen.go();
    let member_file = frozen.dir.path().join("member");
    let member = || fs::read_to_string(&member_file).unwrap_or_default();
    wait_until("a member of the group is there", || member().ends_with(' '));
    assert_eq!(thaw.wait().code(), Some(0));
    let refused = cryopod(&[&"thaw", &frozen.image]);
    kill(
        Pid::from_raw(member().trim().parse().expect("it is a pid")),
        Signal::SIGKILL,
    )
    .expect("it is ours");
    assert_eq!(refused.status.code(), Some(126), "{}", stderr(&refused));
    let expected = format!(
        "id {} is taken by a process group without its leader, of pid {}",
        frozen.pid,
        member().trim()
    );
    assert!(stderr(&refused).contains(&expected), "{}", stderr(&refused));
}

/// A command without these capabilities (setpriv(1)), after the limits of ulimit(1).
fn without(capability: &str, limits: &str, command: &Command) -> Command {
    let mut less = Command::new("setpriv");
    less.arg(format!("--bounding-set=-{capability}")).args(["sh", "-c"]);
    less.arg(format!("{limits} && exec \"$0\" \"$@\""));
    less.arg(command.get_program()).args(command.get_args());
    less
}

fn thaw_of(image: &Path) -> Command {
    let mut thaw = Command::new(CRYOPOD);
    thaw.arg("thaw").arg(image);
    thaw
}

#[test]
fn memory_that_cannot_be_locked_again_is_a_refusal() {
    if !can_thaw() {
        return;
    }
    let dir = scratch();
    let fixture = build::fixture("memory/locked.c");
    let mut program = Program::start(without("ipc_lock", "true", &fixture).current_dir(dir.path()));
    let line = program.wait_for(|line| line == "READY" || line.starts_with("SKIP "));
    if let Some(why) = line.strip_prefix("SKIP ") {
        return skipped(why);
    }
    let frozen = Frozen::program(dir, program);
    let thaw = without("ipc_lock", "ulimit -l 64", &thaw_of(&frozen.image)).output();
    let thaw = thaw.expect("setpriv is there");
    assert_eq!(thaw.status.code(), Some(126), "{}", stderr(&thaw));
    assert!(stderr(&thaw).contains("RLIMIT_MEMLOCK"), "{}", stderr(&thaw));
    assert!(!exists(frozen.pid));
    // A hard limit that suffices will do, whatever the soft one is.
    let limits = "ulimit -S -l 64 && ulimit -H -l 2048";
    let mut thaw = without("ipc_lock", limits, &thaw_of(&frozen.image));
    let program = Program::thaw_by(&mut thaw, frozen.pid, Stdio::null());
    program.signal(Signal::SIGUSR1);
    program.expect_pass();
}

#[test]
fn rights_that_thaw_does_not_have_are_a_refusal() {
    let Some(frozen) = Frozen::perl(&format!("{WAIT_FOR_GO} exit 7")) else {
        return;
    };
    let thaw = without("net_raw", "true", &thaw_of(&frozen.image)).output();
    let thaw = thaw.expect("setpriv is there");
    assert_eq!(thaw.status.code(), Some(126), "{}", stderr(&thaw));
    assert!(stderr(&thaw).contains("CAP_NET_RAW"), "{}", stderr(&thaw));
    let mut unprivileged = Command::new("setpriv");
    unprivileged
        .arg("--no-new-privs")
        .args([CRYOPOD, "thaw"])
        .arg(&frozen.image);
    let thaw = unprivileged.output().expect("setpriv is there");
    assert_eq!(thaw.status.code(), Some(126), "{}", stderr(&thaw));
    assert!(stderr(&thaw).contains("no_new_privs"), "{}", stderr(&thaw));
    assert!(!exists(frozen.pid));
    let mut thaw = frozen.thaw();
    frozen.go();
    assert_eq!(thaw.wait().code(), Some(7));
}

/// A program without capabilities still has a bounding set, which thaw can only make smaller.
#[test]
fn a_smaller_bounding_set_is_told() {
    if !can_thaw() {
        return;
    }
    let dir = scratch();
    let mut command = Command::new("setpriv");
    command.args(["--reuid=65534", "--regid=65534", "--clear-groups", "perl", "-e"]);
    command.arg("$| = 1; print \"READY\\n\"; sleep 1 until $done; BEGIN { $SIG{USR1} = sub { exit 7 } }");
    let mut program = Program::start(&mut command);
    program.wait_for(|line| line == "READY");
    let frozen = Frozen::program(dir, program);
    let mut thaw = without("net_raw", "true", &thaw_of(&frozen.image));
    let mut program = Program::thaw_by(&mut thaw, frozen.pid, Stdio::null());
    program.wait_for(|line| line.contains("bounding set loses") && line.contains("CAP_NET_RAW"));
    program.signal(Signal::SIGUSR1);
    assert_eq!(program.wait().code(), Some(7));
}

#[test]
fn a_mapped_file_that_changed_is_refused() {
    if !can_thaw() {
        return;
    }
    let dir = scratch();
    let mut program = Program::start(build::fixture("memory/private_file.c").current_dir(dir.path()));
    program.wait_for(|line| line == "READY");
    let frozen = Frozen::program(dir, program);
    let file = frozen.dir.path().join("private_file.data");
    let content = fs::read(&file).expect("the fixture made it");
    fs::write(&file, &content[4096..]).expect("it is ours");
    let thaw = cryopod(&[&"thaw", &frozen.image]);
    assert_eq!(thaw.status.code(), Some(126), "{}", stderr(&thaw));
    assert!(stderr(&thaw).contains("private_file.data"), "{}", stderr(&thaw));
    assert!(!exists(frozen.pid));
    fs::remove_file(&file).expect("it is ours");
    let thaw = cryopod(&[&"thaw", &frozen.image]);
    assert!(
        matches!(thaw.status.code(), Some(125 | 126)),
        "{}: {}",
        thaw.status,
        stderr(&thaw)
    );
    assert!(stderr(&thaw).contains("private_file.data"), "{}", stderr(&thaw));
    assert!(!exists(frozen.pid));
}

/// A file that was only touched is another one by its time; whoever knows better may say so.
#[test]
fn a_mapped_file_that_was_touched_is_used_where_that_is_asked_for() {
    if !can_thaw() {
        return;
    }
    for (check, warns) in [("warn", true), ("off", false)] {
        let dir = scratch();
        let mut program = Program::start(build::fixture("memory/private_file.c").current_dir(dir.path()));
        program.wait_for(|line| line == "READY");
        let frozen = Frozen::program(dir, program);
        let file = File::open(frozen.dir.path().join("private_file.data")).expect("the fixture made it");
        file.set_modified(std::time::UNIX_EPOCH).expect("it is ours");
        let strict = cryopod(&[&"thaw", &frozen.image]);
        assert_eq!(strict.status.code(), Some(126), "{}", stderr(&strict));
        assert!(stderr(&strict).contains("--file-check=warn"), "{}", stderr(&strict));
        let mut command = Command::new(CRYOPOD);
        command.args(["thaw", "--file-check", check]).arg(&frozen.image);
        let mut thaw = Program::thaw_by(&mut command, frozen.pid, Stdio::null());
        if warns {
            thaw.wait_for(|line| line.contains("private_file.data"));
        }
        thaw.signal(Signal::SIGUSR1);
        thaw.wait_for(|line| line == "PASS");
        assert_eq!(thaw.wait().code(), Some(0));
        let warned = thaw
            .output
            .lines()
            .iter()
            .any(|line| line.contains("private_file.data"));
        assert_eq!(warned, warns, "{check}: {}", thaw.output);
    }
}

/// An upgrade between freeze and thaw: the program's memory fits to the old file only.
#[test]
fn another_build_of_the_executable_is_refused() {
    if !can_thaw() {
        return;
    }
    let dir = scratch();
    let exe = dir.path().join("program");
    fs::copy(build::fixture("memory/anon.c").get_program(), &exe).expect("the directory takes a file");
    let mut program = Program::start(Command::new(&exe).current_dir(dir.path()));
    program.wait_for(|line| line == "READY");
    let frozen = Frozen::program(dir, program);
    fs::copy(build::fixture("memory/heap.c").get_program(), &exe).expect("the directory takes a file");
    let thaw = cryopod(&[&"thaw", &frozen.image]);
    assert_eq!(thaw.status.code(), Some(126), "{}", stderr(&thaw));
    assert!(stderr(&thaw).contains("its build id is "), "{}", stderr(&thaw));
    assert!(!exists(frozen.pid));
}

#[test]
fn a_cut_off_image_leaves_nothing_behind() {
    let Some(frozen) = Frozen::perl(WAIT_FOR_GO) else {
        return;
    };
    let image = fs::read(&frozen.image).expect("it was written");
    for len in [0, 10, 100, image.len() / 2, image.len() - 1] {
        fs::write(&frozen.image, &image[..len]).expect("it is ours");
        let thaw = cryopod(&[&"thaw", &frozen.image]);
        assert_eq!(thaw.status.code(), Some(125), "{len} bytes: {}", stderr(&thaw));
        assert!(!exists(frozen.pid), "{len} bytes left a process behind");
    }
}

/// An image is a program: root does not run that of somebody else who asks for more than is theirs.
#[test]
fn root_does_not_thaw_what_others_could_have_written() {
    let Some(frozen) = Frozen::perl(&format!("{WAIT_FOR_GO} exit 6")) else {
        return;
    };
    chown(&frozen.image, Some(65534), Some(65534)).expect("root may do that");
    let thaw = cryopod(&[&"thaw", &frozen.image]);
    assert_eq!(thaw.status.code(), Some(126), "{}", stderr(&thaw));
    assert!(stderr(&thaw).contains("--trust"), "{}", stderr(&thaw));
    assert!(!exists(frozen.pid));
    chown(&frozen.image, Some(0), Some(0)).expect("root may do that");
    fs::set_permissions(&frozen.image, std::os::unix::fs::PermissionsExt::from_mode(0o620)).expect("root may do that");
    let thaw = cryopod(&[&"thaw", &frozen.image]);
    assert_eq!(thaw.status.code(), Some(126), "{}", stderr(&thaw));
    assert!(stderr(&thaw).contains("can be written by others"), "{}", stderr(&thaw));
    let mut command = Command::new(CRYOPOD);
    let mut thaw = Program::thaw_by(
        command.args(["thaw", "--trust"]).arg(&frozen.image),
        frozen.pid,
        Stdio::null(),
    );
    frozen.go();
    assert_eq!(thaw.wait().code(), Some(6));
}

/// What somebody else's image names as its files is opened with that user's rights, not with root's.
#[test]
fn root_opens_the_files_of_others_images_with_their_rights() {
    if !can_thaw() {
        return;
    }
    const NOBODY: u32 = 65534;
    let dir = scratch();
    let secret = dir.path().join("secret");
    fs::write(&secret, "of root").expect("the directory takes a file");
    fs::set_permissions(dir.path(), std::os::unix::fs::PermissionsExt::from_mode(0o755)).expect("it is ours");
    let script = format!(r#"open(my $f, "<", "secret") or die; print "READY\n"; {WAIT_FOR_GO} exit 6"#);
    let mut command = Command::new("setpriv");
    command.args([
        "--reuid=65534",
        "--regid=65534",
        "--clear-groups",
        "--bounding-set=-all",
        "--inh-caps=-all",
    ]);
    command
        .args(["perl", "-e", &format!("$| = 1; {script}")])
        .current_dir(dir.path());
    let mut program = Program::start(&mut command);
    program.wait_for(|line| line == "READY");
    let frozen = Frozen::program(dir, program);
    chown(&frozen.image, Some(NOBODY), Some(NOBODY)).expect("root may do that");
    let mut thaw = frozen.thaw();
    thaw.signal_program(Signal::SIGKILL);
    assert_eq!(thaw.wait().code(), Some(128 + 9), "what is its own it gets");

    fs::set_permissions(&secret, std::os::unix::fs::PermissionsExt::from_mode(0o600)).expect("it is ours");
    let refused = cryopod(&[&"thaw", &frozen.image]);
    assert!(matches!(refused.status.code(), Some(125 | 126)), "{}", stderr(&refused));
    assert!(stderr(&refused).contains("secret"), "{}", stderr(&refused));
    assert!(!exists(frozen.pid));
}

#[test]
fn a_thaw_that_is_killed_half_way_leaves_nothing_or_the_whole_program() {
    let Some(frozen) = Frozen::perl(WAIT_FOR_GO) else {
        return;
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
            None => true,
            Some('t') => false,
            Some(_) => status(frozen.pid, "Name").as_deref() == Some("perl"),
        });
        if exists(frozen.pid) {
            assert_eq!(status(frozen.pid, "TracerPid").as_deref(), Some("0"));
            kill(Pid::from_raw(frozen.pid), Signal::SIGKILL).expect("it is our program");
            wait_until("the program is gone", || matches!(state(frozen.pid), None | Some('Z')));
            wait_until("its new parent reaps it", || !exists(frozen.pid));
        }
    }
}
