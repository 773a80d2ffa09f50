//! Whole trees: nobody escapes, nobody is lost, and nothing is left of a thaw that fails.

mod common;

use common::{CRYOPOD, Program, can_thaw, cryopod, exists, scratch, state, stderr, wait_until};
use nix::sys::signal::Signal;
use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};

/// The processes below `pid`, itself among them.
fn below(pid: i32) -> Vec<i32> {
    let children = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap_or_default();
    let children = children.split_whitespace().filter_map(|child| child.parse().ok());
    std::iter::once(pid).chain(children.flat_map(below)).collect()
}

fn go(dir: &Path) {
    fs::write(dir.join("go"), "").expect("the directory takes a file");
}

fn bash(script: &str, dir: &Path) -> Program {
    let mut command = Command::new("bash");
    let mut program = Program::start(command.args(["-c", script]).current_dir(dir));
    program.wait_for(|line| line == "READY");
    program
}

#[test]
fn children_come_along() {
    if !can_thaw() {
        return;
    }
    common::reap_orphans();
    let dir = scratch();
    let script = r#"pipe(my $r, my $w); my $child = fork // die;
        if (!$child) { close $w; my $got = <$r>; exit($got eq "hello\n" ? 7 : 1) }
        close $r; print "$child\n"; print "READY\n"; select(undef, undef, undef, 0.005) until -e "go";
        syswrite $w, "hello\n"; waitpid $child, 0; print $? >> 8 == 7 ? "PASS\n" : "FAIL $?\n""#;
    let program = Program::perl(script, dir.path());
    let (pid, child) = (program.pid, below(program.pid)[1]);
    assert!(program.output.has(&child.to_string()));
    let image = dir.path().join("app.img");
    program.freeze(&image);
    wait_until("the child is gone", || !exists(child));
    let program = Program::thaw(&image, pid);
    assert_eq!(below(pid), [pid, child]);
    go(dir.path());
    program.expect_pass();
}

/// Children that fork children and end, as fast as they can: none runs while they are frozen, and each generation is counted once.
#[test]
fn nobody_escapes_from_a_fork_loop() {
    if !can_thaw() {
        return;
    }
    common::reap_orphans();
    let script = r#"use IO::Handle; syscall(157, 36, 1, 0, 0, 0) == 0 or die; open(my $log, ">>", "log"); $log->autoflush(1);
        if (!fork) { for (my $n = 1;; $n++) {
            syswrite $log, "$n\n"; select(undef, undef, undef, 0.002); exit 0 if fork;
            if (-e "go") { syswrite $log, "end\n"; exit 0 } } }
        print "READY\n"; until (-e "go") { waitpid(-1, 1); select(undef, undef, undef, 0.002) } 1 while wait > 0; print "PASS\n""#;
    let script = script.replace("157", &nix::libc::SYS_prctl.to_string());
    for _ in 0..10 {
        let dir = scratch();
        let log = || fs::read_to_string(dir.path().join("log")).unwrap_or_default();
        let program = Program::perl(&script, dir.path());
        wait_until("it forks", || log().len() > 100);
        let pid = program.pid;
        let image = dir.path().join("app.img");
        program.freeze(&image);
        let before = log();
        std::thread::sleep(std::time::Duration::from_millis(20));
        assert_eq!(log(), before, "somebody was not frozen");
        let program = Program::thaw(&image, pid);
        wait_until("it goes on", || log().len() > before.len() + 20);
        go(dir.path());
        program.expect_pass();
        let log = log();
        let numbers: Vec<&str> = log.lines().collect();
        let expected = (1..numbers.len())
            .map(|number| number.to_string())
            .chain(["end".to_owned()]);
        assert!(numbers.iter().map(|line| (*line).to_owned()).eq(expected), "{log}");
    }
}

/// A pipe between two that are no relatives.
#[test]
fn several_processes_in_one_image() {
    if !can_thaw() {
        return;
    }
    common::reap_orphans();
    let dir = scratch();
    let fifo = dir.path().join("fifo");
    nix::unistd::mkfifo(&fifo, nix::sys::stat::Mode::S_IRWXU).expect("mkfifo");
    let reader =
        r#"open(my $f, "+<", "fifo"); print "READY\n"; my $got = <$f>; print $got eq "hello\n" ? "PASS\n" : "FAIL\n""#;
    let mut reader = Program::perl(reader, dir.path());
    let writer = r#"open(my $f, ">", "fifo"); print "READY\n"; select(undef, undef, undef, 0.005) until -e "go";
        syswrite $f, "hello\n"; print "PASS\n""#;
    let mut writer = Program::perl(writer, dir.path());
    let (first, second) = (reader.pid.to_string(), writer.pid.to_string());
    let image = dir.path().join("app.img");
    let freeze = cryopod(&[&"freeze", &first, &second, &"--no-sync", &"-o", &image]);
    assert_eq!(freeze.status.code(), Some(0), "{}", stderr(&freeze));
    reader.wait();
    writer.wait();
    let thawed = Program::thaw(&image, reader.pid);
    wait_until("the second is there as well", || exists(writer.pid));
    go(dir.path());
    thawed.expect_pass();
}

/// The last of three ids is taken: of the first two nothing is left.
#[test]
fn a_thaw_that_fails_leaves_nobody() {
    if !can_thaw() {
        return;
    }
    common::reap_orphans();
    let dir = scratch();
    let program = bash("sleep 1000 & sleep 1001 & echo READY; wait", dir.path());
    let pid = program.pid;
    wait_until("both are there", || below(pid).len() == 3);
    let all = below(pid);
    let image = dir.path().join("app.img");
    program.freeze(&image);
    wait_until("all are gone", || all.iter().all(|pid| !exists(*pid)));
    // A limit of descriptors that the table of thaw fits in, but not that of the image with everything that is made for it.
    let thaw = Command::new("sh")
        .args(["-c", "ulimit -n 14; exec \"$0\" thaw \"$1\"", CRYOPOD])
        .arg(&image)
        .stdin(Stdio::null())
        .output()
        .expect("sh is there");
    assert!(
        matches!(thaw.status.code(), Some(125 | 126)),
        "{:?} {}",
        thaw.status,
        stderr(&thaw)
    );
    wait_until("nothing is left", || all.iter().all(|pid| !exists(*pid)));
    let program = Program::thaw(&image, pid);
    assert_eq!(below(pid), all);
    program.signal_program(Signal::SIGKILL);
    for pid in &all[1..] {
        let _gone = nix::sys::signal::kill(nix::unistd::Pid::from_raw(*pid), Signal::SIGKILL);
    }
}

/// bash with variables, a function, a job that runs and one that is stopped; asked afterwards, twice in a row. Its wait(1) may return 147, for the
/// stop, though the job has just been ended: without any freeze as well, on a loaded machine, 1 time in 60.
#[test]
fn bash_with_jobs() {
    if !can_thaw() {
        return;
    }
    common::reap_orphans();
    let dir = scratch();
    let script = r#"set -m; f() { echo "$1-$x"; }; x=41; declare -A map=([a]=1 [b]=2)
        sleep 1000 & p1=$!; sleep 1001 & p2=$!; kill -STOP %2; exec 5< <(seq 1 100000); read -u 5 first; echo READY
        until [ -e go ]; do read -t 0.02 < /dev/zero; ((x++, x--)); done
        jobs > jobs; read -u 5 second; kill %1 %2; wait $p1; one=$?; until wait $p2; two=$?; [ $two != 147 ]; do :; done
        [ "$(f a) ${map[b]} $first $second $one $two" = "a-41 2 1 2 143 143" ] && grep -q "Running.*1000" jobs && grep -q "Stopped.*1001" jobs && echo PASS"#;
    let mut program = bash(script, dir.path());
    let pid = program.pid;
    wait_until("a job is stopped", || {
        below(pid).iter().any(|pid| state(*pid) == Some('T'))
    });
    let all = below(pid);
    for image in ["1.img", "2.img"] {
        let image = dir.path().join(image);
        program.freeze(&image);
        program = Program::thaw(&image, pid);
        assert_eq!(below(pid), all);
        // It takes its stop as soon as it is scheduled.
        wait_until("the job is stopped again", || {
            below(pid).iter().any(|pid| state(*pid) == Some('T'))
        });
    }
    go(dir.path());
    program.expect_pass();
}

/// Only CAP_SYS_ADMIN is shown where pages are. The fixture looks whether they are shared afterwards.
#[test]
fn inherited_memory_is_found_without_frame_numbers() {
    if !can_thaw() {
        return;
    }
    common::reap_orphans();
    let dir = scratch();
    let mut command = common::build::fixture("tree/inherited.c");
    let mut program = Program::start(command.current_dir(dir.path()).env("FREEZES", "1"));
    program.wait_for(|line| line == "READY");
    let (pid, image) = (program.pid, dir.path().join("app.img"));
    let freeze = Command::new("setpriv")
        .args([
            "--bounding-set",
            "-sys_admin",
            "--inh-caps",
            "-sys_admin",
            CRYOPOD,
            "freeze",
        ])
        .args([&pid.to_string(), "--no-sync", "-o"])
        .arg(&image)
        .output()
        .expect("setpriv is there");
    assert_eq!(freeze.status.code(), Some(0), "{}", stderr(&freeze));
    program.wait();
    // Eight processes have 8 MiB in common, and the parts of it that some have changed.
    let size = fs::metadata(&image).expect("it is there").len();
    assert!(size < 24 << 20, "the image takes {size} bytes");
    let thawed = Program::thaw(&image, pid);
    thawed.signal(Signal::SIGUSR1);
    thawed.expect_pass();
}

/// A child alone would lose what it has in common with its parent.
#[test]
fn memory_in_common_with_others_is_refused() {
    let dir = scratch();
    let mut parent = Program::start(common::build::fixture("tree/sharing.c").current_dir(dir.path()));
    parent.wait_for(|line| line == "READY");
    let child = below(parent.pid)[1];
    let image = dir.path().join("app.img");
    let freeze = cryopod(&[&"freeze", &child.to_string(), &"-o", &image]);
    assert_eq!(freeze.status.code(), Some(3), "{}", stderr(&freeze));
    let expected = format!("freeze both: name pid {} as well", parent.pid);
    assert!(stderr(&freeze).contains(&expected), "{}", stderr(&freeze));
    assert!(!image.exists());
    parent.signal(Signal::SIGUSR1);
    parent.expect_pass();
}

#[test]
fn a_tree_that_was_left_stopped_goes_on_or_ends() {
    common::reap_orphans();
    let dir = scratch();
    let mut program = bash(
        "(until [ -e go ]; do sleep 0.01; done; echo PASS) & echo READY; wait",
        dir.path(),
    );
    let pid = program.pid;
    let image = dir.path().join("app.img");
    for verb in ["resume", "end"] {
        let stopped = || below(pid).iter().all(|pid| matches!(state(*pid), Some('T' | 'Z')));
        // A sleep that ends between two looks is not one of the tree.
        program.freeze_with(&image, &["--leave-stopped"]);
        assert!(stopped() && below(pid).len() >= 2, "{:?}", below(pid));
        let all = below(pid);
        let done = cryopod(&[&verb, &pid.to_string()]);
        assert_eq!(done.status.code(), Some(0), "{}", stderr(&done));
        if verb == "end" {
            program.wait();
            wait_until("all are gone", || all.iter().all(|pid| !exists(*pid)));
            return;
        }
        wait_until("all go on", || below(pid).iter().all(|pid| state(*pid) != Some('T')));
    }
}

/// make -j4 in the middle of compiling, twice: what comes out is what an undisturbed one makes.
#[test]
fn make_in_the_middle_of_compiling() {
    if !can_thaw() {
        return;
    }
    common::reap_orphans();
    let dir = scratch();
    let function = |file: usize, n: usize| {
        format!(
            "int f{file}_{n}(int x) {{ int s = 0; for (int i = 0; i < x; i++) s += i * {n} ^ (s >> 3); return s; }}\n"
        )
    };
    for file in 0..8 {
        let source: String = (0..400).map(|n| function(file, n)).collect();
        fs::write(dir.path().join(format!("f{file}.c")), source).expect("the directory takes a file");
    }
    let objects = (0..8).map(|file| format!("f{file}.o")).collect::<Vec<_>>().join(" ");
    let makefile =
        format!("all: {objects}\n\tcat {objects} > all\n\techo PASS\n%.o: %.c\n\techo READY\n\tgcc -O2 -c -o $@ $<\n");
    fs::write(dir.path().join("Makefile"), makefile).expect("the directory takes a file");
    let make = || {
        let mut command = Command::new("make");
        command.args(["-s", "-j4"]).current_dir(dir.path());
        command
    };
    let made = || fs::read(dir.path().join("all")).expect("make has made it");
    assert!(make().output().expect("make is there").status.success());
    let undisturbed = made();
    for file in (0..8).map(|file| format!("f{file}.o")).chain(["all".to_owned()]) {
        fs::remove_file(dir.path().join(file)).expect("make has made it");
    }
    let mut program = Program::start(&mut make());
    program.wait_for(|line| line == "READY");
    let pid = program.pid;
    for image in ["1.img", "2.img"] {
        std::thread::sleep(std::time::Duration::from_millis(300));
        assert!(below(pid).len() > 3, "it is done already");
        let image = dir.path().join(image);
        program.freeze(&image);
        program = Program::thaw(&image, pid);
    }
    program.expect_pass();
    assert!(made() == undisturbed);
}

/// A member that somebody kills while the tree is being frozen is either frozen, or ended in the image, or the freeze fails and all others go on.
#[test]
fn a_member_that_is_killed_meanwhile() {
    if !can_thaw() {
        return;
    }
    common::reap_orphans();
    let (mut carried, mut refused) = (0, 0);
    for round in 0..40u64 {
        let dir = scratch();
        let mut program = bash(
            "for i in 1 2 3 4 5 6; do sleep 1000 & done; echo READY; until [ -e go ]; do read -t 0.01 < /dev/zero; done; kill %1; echo PASS",
            dir.path(),
        );
        let (pid, image) = (program.pid, dir.path().join("app.img"));
        wait_until("all are there", || below(pid).len() == 7);
        let victim = nix::unistd::Pid::from_raw(below(pid)[4]);
        let mut freeze = Command::new(CRYOPOD)
            .args(["-q", "freeze", &pid.to_string(), "--no-sync", "-o"])
            .arg(&image)
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .expect("cryopod can be run");
        std::thread::sleep(std::time::Duration::from_micros(500 * round));
        // It may be gone: frozen.
        let _killed = nix::sys::signal::kill(victim, Signal::SIGKILL);
        let frozen = freeze.wait().expect("it is our child").success();
        if frozen {
            carried += 1;
            program.wait();
            program = Program::thaw(&image, pid);
        } else {
            refused += 1;
            assert!(!image.exists());
            assert!(below(pid).iter().all(|pid| state(*pid) != Some('T')));
        }
        assert!(below(pid).len() >= 6, "{:?}", below(pid));
        let all = below(pid);
        go(dir.path());
        program.expect_pass();
        for pid in &all[1..] {
            let _gone = nix::sys::signal::kill(nix::unistd::Pid::from_raw(*pid), Signal::SIGKILL);
        }
    }
    println!("40 members were killed: {carried} trees were frozen, {refused} went on without it");
    assert!(carried > 0, "no kill came late enough");
}
