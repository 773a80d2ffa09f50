//! Executables and libraries in the image: `freeze --embed-files`, and those that were deleted under a running program.

mod common;

use common::{CRYOPOD, Program, can_thaw, cryopod, exists, scratch, stderr};
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// Uses its libraries in every round, and says so.
const SCRIPT: &str = "
import zlib, math, time
n = 0
while True:
    data = bytes([n % 251]) * 1000
    assert zlib.decompress(zlib.compress(data)) == data and math.floor(math.sqrt(n * n)) == n
    print('round', n, flush=True)
    n += 1
    time.sleep(0.01)
";

/// A python3 with libraries of its own, in a directory of the test.
struct Python {
    dir: tempfile::TempDir,
    program: Program,
}

const LIBRARIES: [&str; 2] = ["libz.so.1", "libm.so.6"];

impl Python {
    fn start() -> Option<Self> {
        if !can_thaw() {
            return None;
        }
        let dir = scratch();
        let own = dir.path().join("own");
        fs::create_dir(&own).expect("the directory is ours");
        fs::copy("/usr/bin/python3", own.join("python")).expect("python3 is there");
        for library in LIBRARIES {
            fs::copy(library_of_python(library), own.join(library)).expect("it is there");
        }
        let mut command = Command::new(own.join("python"));
        command.args(["-c", SCRIPT]).env("LD_LIBRARY_PATH", &own);
        let mut program = Program::start(&mut command);
        program.wait_for(|line| line == "round 3");
        Some(Python { dir, program })
    }

    fn own(&self) -> PathBuf {
        self.dir.path().join("own")
    }

    fn image(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// Freezes the program, which ends, and returns its pid.
    fn freeze(&mut self, image: &str, options: &[&str]) -> i32 {
        let (pid, path) = (self.program.pid, self.image(image));
        self.program.freeze_with(&path, options);
        self.program.wait();
        assert!(!exists(pid));
        pid
    }

    /// Thaws it and sees it going on.
    fn thaw(&mut self, image: &str, pid: i32) {
        self.program = Program::thaw(&self.image(image), pid);
        self.goes_on();
    }

    fn goes_on(&mut self) {
        self.program.wait_for(|line| line.starts_with("round "));
        let maps = fs::read_to_string(format!("/proc/{}/maps", self.program.pid)).expect("it runs");
        assert!(maps.contains("libz.so.1"), "{maps}");
    }

    fn is_mapped(&self, what: &str) -> bool {
        let maps = fs::read_to_string(format!("/proc/{}/maps", self.program.pid)).expect("it runs");
        maps.contains(what)
    }
}

fn library_of_python(name: &str) -> String {
    let listed = Command::new("ldd")
        .arg("/usr/bin/python3")
        .output()
        .expect("ldd is there");
    let listed = String::from_utf8_lossy(&listed.stdout).into_owned();
    let line = listed.lines().find(|line| line.trim().starts_with(name));
    let path = line.and_then(|line| line.split_whitespace().nth(2));
    path.expect("python3 is linked with it").to_owned()
}

#[test]
fn a_program_is_thawed_without_its_files_and_again() {
    let Some(mut python) = Python::start() else { return };
    let pid = python.freeze("1.img", &["--embed-files"]);
    fs::remove_dir_all(python.own()).expect("it is ours");
    python.thaw("1.img", pid);
    assert!(python.is_mapped("/memfd:") && python.is_mapped("own/libz.so.1 (deleted)"));
    let exe = fs::read_link(format!("/proc/{pid}/exe")).expect("it runs");
    assert!(exe.to_string_lossy().ends_with("own/python (deleted)"), "{exe:?}");
    // What was thawed so is carried without being asked, as nothing else has it.
    let pid = python.freeze("2.img", &[]);
    python.thaw("2.img", pid);
}

#[test]
fn files_that_are_there_are_used_as_they_are() {
    let Some(mut python) = Python::start() else { return };
    let pid = python.freeze("1.img", &["--embed-files"]);
    python.thaw("1.img", pid);
    assert!(!python.is_mapped("/memfd:"));
}

#[test]
fn a_newer_library_is_not_taken_for_the_old_one() {
    let Some(mut python) = Python::start() else { return };
    let pid = python.freeze("with.img", &["--embed-files"]);
    let library = python.own().join("libz.so.1");
    fs::remove_file(&library).expect("it is ours");
    fs::copy(library_of_python("libm.so.6"), &library).expect("another library");
    python.thaw("with.img", pid);
    assert!(python.is_mapped("libz.so.1 (deleted)"));
    assert!(!python.is_mapped("libm.so.6 (deleted)"));
}

#[test]
fn without_them_the_thaw_is_refused_and_says_how_to_do_better() {
    let Some(mut python) = Python::start() else { return };
    let pid = python.freeze("without.img", &[]);
    fs::remove_dir_all(python.own()).expect("it is ours");
    let thaw = cryopod(&[&"thaw", &python.image("without.img")]);
    assert_eq!(thaw.status.code(), Some(126), "{}", stderr(&thaw));
    assert!(stderr(&thaw).contains("--embed-files"), "{}", stderr(&thaw));
    assert!(!exists(pid));
}

#[test]
fn an_upgrade_under_a_running_program_is_survived() {
    let Some(mut python) = Python::start() else { return };
    // As dpkg does it: the new file takes the name of the old one.
    for name in ["python", "libz.so.1", "libm.so.6"] {
        let (new, old) = (python.dir.path().join("new"), python.own().join(name));
        fs::copy(library_of_python("libz.so.1"), &new).expect("a file");
        fs::rename(&new, &old).expect("it is ours");
    }
    let pid = python.freeze("1.img", &[]);
    python.thaw("1.img", pid);
    let pid = python.freeze("2.img", &[]);
    python.thaw("2.img", pid);
}

#[test]
fn files_come_through_a_pipe_too_and_from_a_program_that_runs_on() {
    let Some(mut python) = Python::start() else { return };
    let (pid, image) = (python.program.pid, python.image("1.img"));
    python
        .program
        .freeze_with(&image, &["--embed-files", "--leave-running"]);
    python.goes_on();
    python.program.signal(nix::sys::signal::Signal::SIGKILL);
    python.program.wait();
    fs::remove_dir_all(python.own()).expect("it is ours");
    let mut thaw = Command::new(CRYOPOD);
    thaw.args(["thaw", "-"]);
    let stdin = Stdio::from(File::open(&image).expect("the image is there"));
    python.program = Program::thaw_by(&mut thaw, pid, stdin);
    python.goes_on();
}

#[test]
fn each_file_is_in_the_image_once_and_listed() {
    let Some(mut python) = Python::start() else { return };
    python.freeze("1.img", &["--embed-files", "--compress", "none"]);
    let listed = inspect(&python.image("1.img"));
    let objects = listed["shared_objects"].as_array().expect("a list");
    for name in ["own/python", "own/libz.so.1", "own/libm.so.6"] {
        let copies: Vec<_> = objects
            .iter()
            .filter(|object| object["name"].as_str().is_some_and(|path| path.ends_with(name)))
            .collect();
        assert_eq!(copies.len(), 1, "{name}: {objects:?}");
        assert_eq!(copies[0]["kind"], "file");
        let len = fs::metadata(python.dir.path().join(name)).expect("it is there").len();
        assert_eq!(copies[0]["bytes"], len);
    }
}

fn inspect(image: &Path) -> serde_json::Value {
    let output = cryopod(&[&"inspect", &"--json", &image]);
    assert!(output.status.success(), "{}", stderr(&output));
    serde_json::from_slice(&output.stdout).expect("it is JSON")
}
