//! The papers are true in what can be looked up: files that they name exist, and no fixture is left out of the table of support.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

const PAPERS: [&str; 6] = [
    "ARCHITECTURE.md",
    "CHANGELOG.md",
    "README.md",
    "docs/image-format.md",
    "docs/performance.md",
    "docs/support.md",
];

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn read(paper: &str) -> String {
    fs::read_to_string(root().join(paper)).expect("the paper is there")
}

/// What stands between backquotes and looks like a file of this repository.
fn named_files(text: &str) -> BTreeSet<String> {
    const ENDINGS: [&str; 8] = [".c", ".go", ".java", ".js", ".md", ".pl", ".py", ".rs"];
    let quoted = text.split('`').skip(1).step_by(2);
    quoted
        .filter(|word| !word.contains(char::is_whitespace) && word.contains('/'))
        .filter(|word| ENDINGS.iter().any(|ending| word.ends_with(ending)))
        .map(str::to_owned)
        .collect()
}

/// A fixture is named by its family and its file.
fn exists(name: &str) -> bool {
    root().join(name).exists() || root().join("fixtures").join(name).exists()
}

fn fixtures() -> Vec<PathBuf> {
    let fixtures = root().join("fixtures");
    let families = fixtures.read_dir().expect("fixtures/ is there").flatten();
    families
        .filter(|family| family.path().is_dir())
        .flat_map(|family| family.path().read_dir().expect("a family is a directory").flatten())
        .map(|file| file.path().strip_prefix(&fixtures).expect("it is below").to_owned())
        .filter(|file| file.extension().is_none_or(|ending| ending != "h"))
        .collect()
}

#[test]
fn every_fixture_is_in_the_table_of_support() {
    let named = named_files(&read("docs/support.md"));
    for fixture in fixtures() {
        let fixture = fixture.display().to_string();
        assert!(named.contains(&fixture), "docs/support.md does not name {fixture}");
    }
}

#[test]
fn every_file_that_is_named_exists() {
    for paper in PAPERS {
        for name in named_files(&read(paper)) {
            assert!(exists(&name), "{paper} names {name}, which is not there");
        }
    }
}

#[test]
fn links_lead_somewhere() {
    for paper in PAPERS {
        let folder = root().join(paper);
        let folder = folder.parent().expect("a paper lies in a folder");
        for link in read(paper).split("](").skip(1) {
            let target = link.split([')', '#']).next().unwrap_or_default();
            let local = !target.is_empty() && !target.contains("://");
            assert!(!local || folder.join(target).exists(), "{paper} links to {target}");
        }
    }
}
