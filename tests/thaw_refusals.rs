//! What thaw refuses, and that nothing of the program is there then.

mod common;

use common::frozen::Frozen;
use common::rewrite::rewrite;
use common::{CRYOPOD, Program, build, can_thaw, cryopod, exists, scratch, skipped, stderr, wait_until};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use std::fs::{self, File};
use std::os::unix::fs::chown;
use std::path::Path;
use std::process::{Command, Stdio};

const WAIT_FOR_GO: &str = r#"print "READY\n"; select(undef, undef, undef, 0.005) until -e "go";"#;

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

/// Programs choose their code by what the CPU can do when they start.
#[test]
fn a_cpu_that_lacks_a_feature_of_the_freezes_is_refused_by_its_name() {
    if !can_thaw() {
        return;
    }
    for (check, warns) in [("warn", true), ("off", false)] {
        let dir = scratch();
        let mut program = Program::start(build::fixture("memory/heap.c").current_dir(dir.path()));
        program.wait_for(|line| line == "READY");
        let frozen = Frozen::program(dir, program);
        rewrite(&frozen.image, |snapshot| {
            assert!(!snapshot.host.cpu_features.is_empty());
            snapshot.host.cpu_features.push("warp_drive".into());
        });
        let strict = cryopod(&[&"thaw", &frozen.image]);
        assert_eq!(strict.status.code(), Some(126), "{}", stderr(&strict));
        let said = stderr(&strict);
        assert!(
            said.contains("warp_drive") && said.contains("--cpu-check=warn"),
            "{said}"
        );
        assert!(!exists(frozen.pid));
        let mut command = Command::new(CRYOPOD);
        command.args(["thaw", "--cpu-check", check]).arg(&frozen.image);
        let mut thaw = Program::thaw_by(&mut command, frozen.pid, Stdio::null());
        thaw.signal(Signal::SIGUSR1);
        thaw.wait_for(|line| line == "PASS");
        assert_eq!(thaw.wait().code(), Some(0));
        let warned = thaw.output.lines().iter().any(|line| line.contains("warp_drive"));
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
