//! All that /proc shows of a process, as names and values, for comparing.

use super::known::{self, Treatment};
use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

/// What was seen: `task/4128/status/CapEff` → `0000…`.
#[derive(Debug, Default)]
pub struct Seen {
    pub values: BTreeMap<String, String>,
    /// Files and fields that no list knows.
    pub unknown: Vec<String>,
}

const VDSO: &str = "[vdso]";

type Table = &'static [(&'static str, Treatment)];

impl Seen {
    /// Of the process and of each of its threads.
    pub fn of(pid: i32) -> Self {
        let mut seen = Seen::default();
        let dir = Path::new("/proc").join(pid.to_string());
        seen.directory("", &dir, known::FILES);
        for tid in names(&dir.join("task")) {
            seen.directory(&format!("task/{tid}/"), &dir.join("task").join(&tid), known::FILES);
        }
        seen
    }

    fn directory(&mut self, prefix: &str, dir: &Path, table: Table) {
        let in_thread = |name: &String| !prefix.is_empty() && known::ONCE.contains(&name.as_str());
        for name in names(dir).into_iter().filter(|name| !in_thread(name)) {
            match known::treatment(table, &name) {
                None => self.unknown.push(format!("{prefix}{name}")),
                Some(treatment) => self.file(&format!("{prefix}{name}"), &dir.join(&name), treatment),
            }
        }
    }

    fn file(&mut self, name: &str, path: &Path, treatment: Treatment) {
        match treatment {
            Treatment::Differs(_) => {}
            Treatment::Same => self.add(name, read(path)),
            Treatment::LastWord => self.add(
                name,
                read(path).split_whitespace().last().unwrap_or_default().to_owned(),
            ),
            Treatment::Link => self.add(name, link(path)),
            Treatment::Fields(table) => self.fields(name, &read(path), table),
            Treatment::Numbered(table) => self.numbered(name, &read(path), table),
            Treatment::Mappings(table) => self.mappings(name, &read(path), table),
            Treatment::Scheduler(table) => self.scheduler(name, &read(path), table),
            Treatment::Links => {
                for entry in names(path) {
                    self.add(&format!("{name}/{entry}"), link(&path.join(&entry)));
                }
            }
            Treatment::Directory(table) => self.small_files(name, path, table),
        }
    }

    /// Of attr each file is a value; of fdinfo each has fields.
    fn small_files(&mut self, name: &str, dir: &Path, table: Table) {
        for entry in names(dir) {
            let at = format!("{name}/{entry}");
            if entry.parse::<i32>().is_ok() {
                self.fields(&at, &read(&dir.join(&entry)), table);
            } else {
                match known::treatment(table, &entry) {
                    None => self.unknown.push(at),
                    Some(treatment) => self.file(&at, &dir.join(&entry), treatment),
                }
            }
        }
    }

    /// `Name:\tvalue`, or `name value` as ksm_stat has it. Of several lines with one name each gets a number.
    fn fields(&mut self, name: &str, text: &str, table: Table) {
        for (number, line) in text.lines().enumerate() {
            let (field, value) = line
                .split_once(':')
                .or_else(|| line.split_once(' '))
                .unwrap_or((line, ""));
            let field = field.trim();
            match known::treatment(table, field) {
                None => self.unknown.push(format!("{name}: {line}")),
                Some(Treatment::Differs(_)) => {}
                Some(_) if field == "tfd" => self.add(&format!("{name}/tfd {number}"), without_inode(value)),
                Some(_) => self.add(&format!("{name}/{field}"), value.trim().to_owned()),
            }
        }
    }

    fn numbered(&mut self, name: &str, text: &str, table: Table) {
        let (head, tail) = text.rsplit_once(')').expect("stat has a name in parentheses");
        let (pid, comm) = head.split_once(" (").expect("stat has a name in parentheses");
        let fields = [pid, comm].into_iter().chain(tail.split_whitespace());
        for (index, value) in fields.enumerate() {
            match known::numbered(table, index) {
                None => self.unknown.push(format!("{name}: field {} ({value})", index + 1)),
                Some((_, Treatment::Differs(_))) => {}
                Some((field, _)) => self.add(&format!("{name}/{field}"), value.to_owned()),
            }
        }
    }

    fn mappings(&mut self, name: &str, text: &str, table: Table) {
        let mut mapping = String::new();
        for line in text.lines() {
            if !line.starts_with(|first: char| first.is_ascii_uppercase()) {
                let last = if line.ends_with(VDSO) { VDSO } else { "" };
                mapping = format!("{name}/{}{last}", line.split_whitespace().next().unwrap_or_default());
                self.add(&mapping, without_inode_of_nothing(line));
            } else if mapping.ends_with(VDSO) && line.starts_with("Anonymous:") {
                // A freezer writes a way home into it, and a copy of the page stays.
            } else {
                self.fields(&mapping, line, table);
            }
        }
    }

    /// `se.exec_start    :   12182041.464127`, and lines of several `name=value`.
    fn scheduler(&mut self, name: &str, text: &str, table: Table) {
        for line in text.lines().filter(|line| !line.starts_with("---")) {
            let Some((field, value)) = line.split_once([':', '=']) else {
                self.unknown.push(format!("{name}: {line}"));
                continue;
            };
            match known::treatment(table, field.trim()) {
                // The first line: the name and how many threads there are.
                None if line.contains(", #threads: ") => self.add(&format!("{name}/head"), line.to_owned()),
                None => self.unknown.push(format!("{name}: {line}")),
                Some(Treatment::Differs(_)) => {}
                Some(_) => self.add(&format!("{name}/{}", field.trim()), value.trim().to_owned()),
            }
        }
    }

    fn add(&mut self, name: &str, value: String) {
        self.values.insert(name.to_owned(), value);
    }
}

/// In a line of an epoll set the watched file's inode is one without a name: `tfd: 5 events: 1 data: 7 pos:0 ino:1 sdev:e`.
fn without_inode(line: &str) -> String {
    let words = line.split_whitespace().filter(|word| !word.starts_with("ino:"));
    words.collect::<Vec<_>>().join(" ")
}

/// `7f-80 rw-s 00000000 00:01 80643   /dev/zero (deleted)`: shared memory without a file (device 0:1) has a new inode.
fn without_inode_of_nothing(line: &str) -> String {
    let words: Vec<&str> = line.split_whitespace().collect();
    match words.as_slice() {
        [range, protection, offset, device @ "00:01", _inode, name @ ..] => {
            format!("{range} {protection} {offset} {device} {}", name.join(" "))
        }
        _ => line.to_owned(),
    }
}

fn names(dir: &Path) -> Vec<String> {
    let entries = fs::read_dir(dir).unwrap_or_else(|e| panic!("list {}: {e}", dir.display()));
    let mut names: Vec<String> = entries
        .map(|entry| entry.expect("an entry").file_name().to_string_lossy().into_owned())
        .collect();
    names.sort();
    names
}

/// A file that cannot be read is the same if it cannot be read for the same reason.
fn read(path: &Path) -> String {
    match fs::read(path) {
        Ok(bytes) => String::from_utf8_lossy(&bytes).into_owned(),
        Err(error) => format!("{error}"),
    }
}

/// A pipe, or memory without a name, has a new inode number.
fn link(path: &Path) -> String {
    let target = fs::read_link(path).map_or_else(|e| e.to_string(), |target| target.display().to_string());
    match target.split_once(":[") {
        Some(("pipe", _)) => "pipe".into(),
        _ => target,
    }
}
