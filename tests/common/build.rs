//! Building fixtures: each once, until its source changes, also when many tests ask at the same time.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::SystemTime;

/// The executable of `fixtures/SOURCE`, which is a C program or a Rust program of one file.
pub fn fixture(source: &str) -> PathBuf {
    let fixtures = Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures");
    let path = fixtures.join(source);
    let text = fs::read_to_string(&path).unwrap_or_else(|e| panic!("read {}: {e}", path.display()));
    let mut command = if source.ends_with(".rs") {
        Command::new("rustc")
    } else {
        Command::new("gcc")
    };
    match source.ends_with(".rs") {
        true => command.args(["--edition=2024", "-O", "-g"]),
        false => command
            .args(["-O1", "-g", "-Wall", "-Wextra", "-pthread", "-I"])
            .arg(&fixtures),
    };
    command.args(flags(&text)).arg(&path);
    once(source, &[&path, &fixtures.join("fixture.h")], |unfinished| {
        run(command.arg("-o").arg(unfinished));
    })
}

/// The options that a first line like `/* flags: -static` names.
fn flags(source: &str) -> Vec<&str> {
    let first = source.lines().next().unwrap_or_default();
    let Some((_, flags)) = first.split_once("flags:") else {
        return Vec::new();
    };
    flags.trim_end_matches("*/").split_whitespace().collect()
}

/// Makes `target/fixtures/NAME` by `make` unless it is there and newer than all that it is made of.
pub fn once(name: &str, sources: &[&Path], make: impl FnOnce(&Path)) -> PathBuf {
    let dir = Path::new(env!("CARGO_TARGET_TMPDIR")).join("fixtures");
    let made = dir.join(name.replace(['/', '.'], "_"));
    let newest = sources
        .iter()
        .map(|source| changed(source).expect("a source is there"))
        .max();
    if changed(&made) < newest {
        fs::create_dir_all(&dir).expect("a directory for fixtures");
        let unfinished = made.with_extension(format!("{}-{:?}", std::process::id(), std::thread::current().id()));
        make(&unfinished);
        fs::rename(&unfinished, &made).expect("the fixture was made");
    }
    made
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
