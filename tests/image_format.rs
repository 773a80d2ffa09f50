//! docs/image-format.md lists the types of an image as the sources have them: their order is the format.
//!
//! After an intended change, `UPDATE_DOCS=1 cargo test --test image_format` writes the lists anew.

use std::fs;
use std::path::{Path, PathBuf};

const DOCUMENT: &str = "docs/image-format.md";

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// How to write bytes at once, in the encoding that they have anyway.
const AT_ONCE: &str = "#[serde(with = \"serde_bytes\")]";

/// The items of a source file that are serialised, with their comments, without `pub`, derives and [`AT_ONCE`].
fn serialised_items(source: &str) -> String {
    let mut items = String::new();
    let mut comments: Vec<&str> = Vec::new();
    let mut lines = source.lines().take_while(|line| *line != "#[cfg(test)]");
    while let Some(line) = lines.next() {
        match line {
            _ if line.starts_with("///") => comments.push(line),
            _ if line.starts_with("#[derive(") && line.contains("Serialize") => {
                let item = lines
                    .by_ref()
                    .take_while_inclusive(|line| !line.starts_with('}') && !line.ends_with(';'));
                for line in comments.drain(..).chain(item).filter(|line| line.trim() != AT_ONCE) {
                    let line = line.replace(&format!("{AT_ONCE} "), "");
                    items.push_str(&line.replacen("pub ", "", 1));
                    items.push('\n');
                }
                items.push('\n');
            }
            _ => comments.clear(),
        }
    }
    items
}

/// The items of a file below its name.
fn items_of_file(path: &Path) -> String {
    let items = serialised_items(&fs::read_to_string(path).unwrap());
    let name = path.strip_prefix(root()).unwrap().display();
    if items.is_empty() {
        items
    } else {
        format!("// {name}\n\n{items}")
    }
}

/// What take_while() would be if it kept the line that ends it.
trait TakeWhileInclusive: Iterator + Sized {
    fn take_while_inclusive(self, more: impl Fn(&Self::Item) -> bool) -> impl Iterator<Item = Self::Item> {
        let mut ended = false;
        self.take_while(move |item| {
            let before = ended;
            ended = !more(item);
            !before
        })
    }
}

impl<I: Iterator> TakeWhileInclusive for I {}

fn sources(folder: &Path) -> Vec<PathBuf> {
    let mut paths: Vec<_> = fs::read_dir(folder)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .collect();
    paths.sort();
    let is_source = |path: &PathBuf| path.extension().is_some_and(|extension| extension == "rs");
    paths
        .into_iter()
        .flat_map(|path| match path.is_dir() {
            true => sources(&path),
            false => vec![path],
        })
        .filter(is_source)
        .collect()
}

/// The lines of the table of kinds.
fn kinds(source: &str) -> String {
    let table = source
        .lines()
        .skip_while(|line| *line != "kinds! {")
        .skip(1)
        .take_while(|line| *line != "}");
    table.map(|line| line.trim().to_owned() + "\n").collect()
}

fn expected(block: &str) -> String {
    match block {
        "kinds" => kinds(&fs::read_to_string(root().join("src/fd/kind.rs")).unwrap()),
        folder if root().join(folder).is_dir() => sources(&root().join(folder))
            .iter()
            .map(|path| items_of_file(path))
            .collect(),
        file => serialised_items(&fs::read_to_string(root().join(file)).unwrap()),
    }
}

/// The document with its lists made anew.
fn renewed(document: &str) -> String {
    const BEGIN: &str = "<!-- checked by tests/image_format.rs: ";
    let mut renewed = String::new();
    let mut lines = document.lines();
    while let Some(line) = lines.next() {
        renewed += &format!("{line}\n");
        if let Some(block) = line.strip_prefix(BEGIN).and_then(|rest| rest.strip_suffix(" -->")) {
            let list = expected(block);
            assert!(!list.trim().is_empty(), "{block} has no types");
            renewed += &format!("```rust\n{}\n```\n<!-- end -->\n", list.trim_end());
            lines
                .by_ref()
                .find(|line| *line == "<!-- end -->")
                .expect("a list has its end");
        }
    }
    renewed
}

#[test]
fn the_document_lists_the_types_of_an_image() {
    let path = root().join(DOCUMENT);
    let document = fs::read_to_string(&path).unwrap();
    let renewed = renewed(&document);
    if std::env::var_os("UPDATE_DOCS").is_some() {
        fs::write(path, renewed).unwrap();
        return;
    }
    let line = document
        .lines()
        .zip(renewed.lines())
        .position(|(is, should)| is != should);
    assert!(
        document == renewed,
        "{DOCUMENT} differs from the sources at line {}; if the change of the format is meant, \
         UPDATE_DOCS=1 cargo test --test image_format writes it",
        line.unwrap_or(0) + 1
    );
}
