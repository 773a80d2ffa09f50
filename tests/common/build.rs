//! Building fixtures: each once, until its source changes, also when many tests ask at the same time.

use nix::fcntl::{Flock, FlockArg};
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::SystemTime;

/// How to start `fixtures/SOURCE`, which is one file of C, Rust, Go or Java, or a script.
pub fn fixture(source: &str) -> Command {
    let fixtures = Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures");
    let path = fixtures.join(source);
    let (_, language) = source.rsplit_once('.').expect("a fixture's name tells its language");
    let mut compiler = match language {
        "c" => compiler("gcc", &["-O1", "-g", "-Wall", "-Wextra", "-pthread"]),
        "rs" => compiler("rustc", &["--edition=2024", "-O", "-g"]),
        "go" => compiler("go", &["build"]),
        "java" => return java(source, &path),
        "py" => return script("/usr/bin/python3", &path), // Debian's, whatever else PATH offers
        "pl" => return script("perl", &path),
        "js" => return script("node", &path),
        _ => panic!("{source}: no idea how to start that"),
    };
    let text = fs::read_to_string(&path).unwrap_or_else(|e| panic!("read {}: {e}", path.display()));
    Command::new(once(source, &[&path, &fixtures.join("fixture.h")], |unfinished| {
        compiler.arg("-o").arg(unfinished);
        if language == "c" {
            compiler.arg("-I").arg(&fixtures);
        }
        run(compiler.arg(&path).args(flags(&text))); // libraries come after what needs them
    }))
}

fn compiler(name: &str, options: &[&str]) -> Command {
    let mut command = Command::new(name);
    command.args(options);
    command
}

fn script(interpreter: &str, path: &Path) -> Command {
    let mut command = Command::new(interpreter);
    command.arg(path);
    command
}

fn java(source: &str, path: &Path) -> Command {
    let classes = once(source, &[path], |unfinished| {
        run(Command::new("javac").arg("-d").arg(unfinished).arg(path))
    });
    let mut command = Command::new("java");
    command
        .arg("-cp")
        .arg(classes)
        .arg(path.file_stem().expect("a Java file is named as its class"));
    command
}

/// The options that a first line like `/* flags: -static` names.
fn flags(source: &str) -> Vec<&str> {
    let first = source.lines().next().unwrap_or_default();
    let Some((_, flags)) = first.split_once("flags:") else {
        return Vec::new();
    };
    flags.trim_end_matches("*/").split_whitespace().collect()
}

/// Makes `target/tmp/fixtures/NAME` by `make` unless it is there and newer than all that it is made of.
pub fn once(name: &str, sources: &[&Path], make: impl FnOnce(&Path)) -> PathBuf {
    let dir = Path::new(env!("CARGO_TARGET_TMPDIR")).join("fixtures");
    fs::create_dir_all(&dir).expect("a directory for fixtures");
    let name = name.replace(['/', '.'], "_");
    let made = dir.join(&name);
    let newest = sources
        .iter()
        .map(|source| changed(source).expect("a source is there"))
        .max();
    if changed(&made) < newest {
        // Made once, and never replaced under a program that runs: freeze would find its executable deleted.
        let _alone = alone(&name);
        if changed(&made) < newest {
            let unfinished = dir.join(format!("{name}.new"));
            remove(&unfinished);
            make(&unfinished);
            remove(&made);
            fs::rename(&unfinished, &made).expect("the fixture was made");
        }
    }
    made
}

/// Removes a file or a directory that may be there.
fn remove(path: &Path) {
    let removed = match path.is_dir() {
        true => fs::remove_dir_all(path),
        false => fs::remove_file(path),
    };
    if let Err(e) = removed
        && e.kind() != std::io::ErrorKind::NotFound
    {
        panic!("remove {}: {e}", path.display());
    }
}

/// Keeps other tests that ask for the same name waiting while the result lives.
pub fn alone(name: &str) -> Flock<File> {
    let path = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("{name}.lock"));
    let file = File::create(&path).unwrap_or_else(|e| panic!("create {}: {e}", path.display()));
    Flock::lock(file, FlockArg::LockExclusive).unwrap_or_else(|(_, e)| panic!("lock {}: {e}", path.display()))
}

pub fn run(command: &mut Command) {
    let result = command
        .output()
        .unwrap_or_else(|e| panic!("{command:?}: {e}; tests/setup installs what is missing"));
    let messages = String::from_utf8_lossy(&result.stderr);
    assert!(result.status.success(), "{command:?}: {}: {messages}", result.status);
}

fn changed(path: &Path) -> Option<SystemTime> {
    fs::metadata(path).and_then(|meta| meta.modified()).ok()
}
