//! The arrows between modules that ARCHITECTURE.md names, and the one place that may ask for the architecture.

use std::fs;
use std::path::{Path, PathBuf};

/// For each module of the crate what it may use. `state` stands for `image::state`, `image::pages`, `image::ranges`, `image::family` and
/// `image::lineage` alone.
const ARROWS: [(&str, &[&str]); 11] = [
    ("arch", &["state"]),
    ("sys", &[]),
    ("refusal", &[]),
    ("image", &["state", "sys"]),
    ("tracer", &["arch", "state", "refusal", "sys"]),
    ("sysv", &["arch", "state", "refusal", "sys"]),
    ("fd", &["state", "sysv", "refusal", "sys"]),
    ("collect", &["arch", "tracer", "fd", "sysv", "state", "refusal", "sys"]),
    ("describe", &["arch", "collect", "fd", "state", "refusal", "sys"]),
    (
        "resurrect",
        &["arch", "tracer", "fd", "sysv", "state", "refusal", "sys"],
    ),
    (
        "thaw",
        &[
            "arch",
            "resurrect",
            "fd",
            "sysv",
            "collect",
            "image",
            "state",
            "refusal",
            "sys",
        ],
    ),
];

#[test]
fn modules_use_only_what_lies_below_them() {
    for (module, allowed) in ARROWS {
        // The stub's half is a part of another program.
        for file in files_of(module).into_iter().filter(|file| !file.ends_with("stub.rs")) {
            for (number, line) in code(&file) {
                for used in uses(&line) {
                    let fine = used == module || allowed.contains(&used.as_str());
                    assert!(fine, "{}:{number}: {module} uses {used}: {line}", file.display());
                }
            }
        }
    }
}

#[test]
fn only_arch_and_the_stub_ask_for_the_architecture() {
    let allowed = [Path::new("src/arch/mod.rs"), Path::new("src/resurrect/stub/main.rs")];
    for file in rust_files(Path::new("src"))
        .into_iter()
        .filter(|file| !allowed.contains(&file.as_path()))
    {
        for (number, line) in code(&file) {
            assert!(!line.contains("target_arch"), "{}:{number}: {line}", file.display());
        }
    }
}

/// Lines up to the unit tests, without comments.
fn code(file: &Path) -> Vec<(usize, String)> {
    let text = fs::read_to_string(file).unwrap();
    let lines = text.lines().take_while(|line| !line.contains("#[cfg(test)]"));
    let numbered = lines.enumerate().map(|(index, line)| (index + 1, line.to_owned()));
    numbered
        .filter(|(_, line)| !line.trim_start().starts_with("//"))
        .collect()
}

/// The first names behind `crate::` in a line, those of a braced list included.
fn uses(line: &str) -> Vec<String> {
    let mut found = Vec::new();
    for (at, _) in line.match_indices("crate::") {
        let rest = &line[at + "crate::".len()..];
        let names: Vec<&str> = match rest.strip_prefix('{') {
            Some(list) => list.split(", ").collect(),
            None => vec![rest],
        };
        for name in names {
            let first: String = name.chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect();
            let of_state = [
                "image::state",
                "image::pages",
                "image::ranges",
                "image::family",
                "image::lineage",
            ]
            .iter()
            .any(|values| name.starts_with(values));
            found.push(if of_state { "state".to_owned() } else { first });
        }
    }
    found
}

fn files_of(module: &str) -> Vec<PathBuf> {
    let file = PathBuf::from(format!("src/{module}.rs"));
    let mut files = rust_files(&PathBuf::from(format!("src/{module}")));
    files.extend(file.exists().then_some(file));
    assert!(!files.is_empty(), "no module {module}");
    files
}

fn rust_files(folder: &Path) -> Vec<PathBuf> {
    let Ok(entries) = fs::read_dir(folder) else {
        return Vec::new();
    };
    let mut files = Vec::new();
    for path in entries.map(|entry| entry.unwrap().path()) {
        if path.is_dir() {
            files.extend(rust_files(&path));
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            files.push(path);
        }
    }
    files
}
