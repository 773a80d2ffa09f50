//! `thaw --new-pid-namespace`: the same pids, whoever has them outside.

mod common;

use common::frozen::Frozen;
use common::{CRYOPOD, Program, can_thaw, cryopod, exists, scratch, stderr, wait_until};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};

/// A parent and a child that know each other's ids, and what a signal did.
const FAMILY: &str = r#"
    my ($own, $term) = ($$, 0);
    $SIG{TERM} = sub { $term = 1 };
    pipe(my $read, my $write);
    my $child = fork() // die;
    if ($child == 0) { close $write; sysread($read, my $byte, 1); exit(getppid() == $own ? 5 : 6); }
    close $read;
    print "READY\n";
    select(undef, undef, undef, 0.005) until -e "go" or $term;
    kill(0, $child) or die;
    close $write;
    my $right = waitpid($child, 0) == $child && $? == 5 << 8 && $$ == $own && readlink("/proc/self") == $own;
    print $right ? "PASS $own $child term$term\n" : "FAIL\n";
    exit 3 if $term;
"#;

/// The processes below /proc that are in the same pid namespace as `pid`.
fn in_namespace_of(pid: i32) -> Vec<i32> {
    let link = |pid: i32| fs::read_link(format!("/proc/{pid}/ns/pid")).ok();
    let namespace = link(pid).expect("it is there");
    let all = fs::read_dir("/proc").expect("/proc").flatten();
    let pids = all.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    pids.filter(|pid| link(*pid).as_ref() == Some(&namespace)).collect()
}

fn name(pid: i32) -> String {
    fs::read_to_string(format!("/proc/{pid}/comm"))
        .unwrap_or_default()
        .trim()
        .to_owned()
}

/// The id that a process has in its own pid namespace.
fn inner(pid: i32) -> i32 {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).expect("it is there");
    let line = status.lines().find_map(|line| line.strip_prefix("NSpid:"));
    line.and_then(|line| line.split_whitespace().last()?.parse().ok())
        .expect("NSpid")
}

fn thaw(image: &Path, dir: &Path) -> Program {
    let mut command = Command::new(CRYOPOD);
    command
        .args(["thaw", "--new-pid-namespace"])
        .arg(image)
        .current_dir(dir);
    Program::start(&mut command)
}

/// Its output goes to a file: what it holds open would keep a pipe from ending.
fn detached(frozen: &Frozen, options: &[&dyn AsRef<std::ffi::OsStr>]) -> i32 {
    let said = frozen.dir.path().join("said");
    let create = |path: &Path| fs::File::create(path).expect("the directory takes a file");
    let status = Command::new(CRYOPOD)
        .args(["thaw", "-d", "--new-pid-namespace"])
        .args(options)
        .arg(&frozen.image)
        .stdin(Stdio::null())
        .stdout(create(&said))
        .stderr(create(&frozen.dir.path().join("errors")))
        .status()
        .expect("cryopod can be run");
    assert!(status.success());
    let said = fs::read_to_string(&said).expect("it was written");
    said.trim().parse().expect("a pid")
}

/// Its ids, and that it has found all as it was.
fn passes(mut program: Program) -> String {
    let line = program.wait_for(|line| line.starts_with("PASS") || line.starts_with("FAIL"));
    assert!(line.starts_with("PASS"), "{line}");
    assert!(program.wait().success());
    line
}

/// The ids are even taken: by the program itself, which was left running.
#[test]
fn two_of_an_image_run_side_by_side() {
    if !can_thaw() {
        return;
    }
    let dir = scratch();
    let mut original = Program::perl(FAMILY, dir.path());
    let image = dir.path().join("app.img");
    original.freeze_with(&image, &["--leave-running"]);
    let refused = cryopod(&[&"thaw", &"-d", &image]);
    assert_eq!(refused.status.code(), Some(3));
    assert!(stderr(&refused).contains("--new-pid-namespace"), "{}", stderr(&refused));
    let copies = [thaw(&image, dir.path()), thaw(&image, dir.path())];
    fs::write(dir.path().join("go"), "").expect("a file");
    let said = original.wait_for(|line| line.starts_with("PASS"));
    assert!(original.wait().success());
    for copy in copies {
        assert_eq!(passes(copy), said);
    }
}

/// A tree that was thawed so is frozen again from within, and thawed once more.
#[test]
fn it_is_frozen_again_from_within() {
    let Some(frozen) = Frozen::perl(FAMILY) else { return };
    let (dir, again) = (frozen.dir.path(), frozen.dir.path().join("again.img"));
    let pid = detached(&frozen, &[]);
    assert_eq!(inner(pid), frozen.pid);
    let outside = cryopod(&[&"freeze", &pid.to_string(), &"-o", &again]);
    assert_eq!(outside.status.code(), Some(3));
    assert!(stderr(&outside).contains("nsenter"), "{}", stderr(&outside));
    let within = Command::new("nsenter")
        .args([
            "-t",
            &pid.to_string(),
            "-p",
            "-m",
            CRYOPOD,
            "freeze",
            &frozen.pid.to_string(),
            "-o",
        ])
        .arg(&again)
        .stdin(Stdio::null())
        .output()
        .expect("nsenter can be run");
    assert!(within.status.success(), "{}", stderr(&within));
    wait_until("the tree ends", || !exists(pid));
    fs::write(dir.join("go"), "").expect("a file");
    // Its output is still the file.
    assert!(thaw(&again, dir).wait().success());
    let said = fs::read_to_string(dir.join("said")).expect("it was written");
    assert!(said.contains(&format!("PASS {}", frozen.pid)), "{said}");
}

#[test]
fn the_reaper_stays_as_long_as_anybody_does() {
    let Some(frozen) = Frozen::perl(FAMILY) else { return };
    let pid_file = frozen.dir.path().join("pid");
    let pid = detached(&frozen, &[&"--pid-file", &pid_file]);
    assert_eq!(fs::read_to_string(&pid_file).expect("a file"), format!("{pid}\n"));
    let all = in_namespace_of(pid);
    let reaper: Vec<i32> = all.iter().copied().filter(|pid| inner(*pid) == 1).collect();
    let [reaper] = reaper[..] else { panic!("{all:?}") };
    assert_eq!((all.len(), name(reaper).as_str()), (3, "cryopod-reaper"));
    // The parent ends, and the child is the reaper's: it still reads, from a pipe that nobody writes any more.
    let child = all
        .into_iter()
        .find(|other| ![pid, reaper].contains(other))
        .expect("the child");
    kill(Pid::from_raw(child), Signal::SIGSTOP).expect("it is there");
    kill(Pid::from_raw(pid), Signal::SIGKILL).expect("it is there");
    wait_until("the parent is gone", || !exists(pid));
    std::thread::sleep(std::time::Duration::from_millis(100));
    assert!(exists(child) && exists(reaper));
    kill(Pid::from_raw(child), Signal::SIGCONT).expect("it is there");
    wait_until("the reaper ends", || is_zombie(reaper));
}

fn is_zombie(pid: i32) -> bool {
    common::state(pid).is_none_or(|state| state == 'Z')
}

#[test]
fn signals_and_the_exit_code_pass_through() {
    let Some(frozen) = Frozen::perl(FAMILY) else { return };
    let mut thawed = thaw(&frozen.image, frozen.dir.path());
    let is_there = || {
        let children =
            fs::read_to_string(format!("/proc/{0}/task/{0}/children", thawed.child_id())).unwrap_or_default();
        let inside = children.split_whitespace().filter_map(|pid| pid.parse().ok());
        inside
            .flat_map(descendants)
            .any(|pid| inner(pid) == frozen.pid && common::runs_by_itself(pid))
    };
    wait_until("the program runs", is_there);
    thawed.signal(Signal::SIGTERM);
    let line = thawed.wait_for(|line| line.starts_with("PASS") || line.starts_with("FAIL"));
    assert!(line.ends_with("term1"), "{line}");
    assert_eq!(thawed.wait().code(), Some(3));
}

fn descendants(pid: i32) -> Vec<i32> {
    let children = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap_or_default();
    children.split_whitespace().filter_map(|pid| pid.parse().ok()).collect()
}

#[test]
fn a_thaw_that_fails_leaves_nobody() {
    let Some(frozen) = Frozen::perl(FAMILY) else { return };
    let before = reapers();
    let failed = frozen.thaw_fails_late("--new-pid-namespace");
    assert_eq!(failed.status.code(), Some(125), "{}", stderr(&failed));
    wait_until("its reaper ends", || {
        reapers().iter().all(|pid| before.contains(pid) || !exists(*pid))
    });
}

/// Those of other tests as well.
fn reapers() -> Vec<i32> {
    let all = fs::read_dir("/proc").expect("/proc").flatten();
    let pids = all.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    pids.filter(|pid| name(*pid) == "cryopod-reaper").collect()
}
