//! `cryopod inspect` and `cryopod verify` on images that no process stands behind.

mod image_sample;

use cryopod::image::pages::Extent;
use cryopod::image::state::{RegSet, Snapshot};
use cryopod::image::write::{Compression, Options, Sink, write_image};
use image_sample::*;
use serde_json::Value;
use std::fs::File;
use std::path::PathBuf;
use std::process::{Command, Output, Stdio};
use std::sync::atomic::AtomicBool;
use tempfile::TempDir;

/// A file with an image in it.
struct Image {
    directory: TempDir,
}

impl Image {
    fn of(bytes: &[u8]) -> Self {
        let image = Image {
            directory: tempfile::tempdir().unwrap(),
        };
        std::fs::write(image.path(), bytes).unwrap();
        image
    }

    fn path(&self) -> PathBuf {
        self.directory.path().join("app.img")
    }

    fn cryopod(&self, arguments: &[&str]) -> Output {
        cryopod().args(arguments).arg(self.path()).output().unwrap()
    }
}

fn cryopod() -> Command {
    Command::new(env!("CARGO_BIN_EXE_cryopod"))
}

fn sample() -> Image {
    Image::of(&image(300, 20, Compression::Auto, 2).0)
}

/// The sample as of another machine, whose general registers are `len` bytes.
fn foreign(machine: u16, len: usize) -> Image {
    let mut snapshot = snapshot(3, 2);
    for thread in &mut snapshot.processes[0].threads {
        thread.regsets[0] = RegSet {
            note: 1,
            data: (0..len).map(|i| i as u8).collect(),
        };
    }
    // Its addresses may be none of that machine's.
    snapshot.processes[0].memory.vmas.clear();
    Image::of(&write(machine, &snapshot, &[]))
}

fn write(machine: u16, snapshot: &Snapshot, extents: &[Extent]) -> Vec<u8> {
    let mut bytes = Vec::new();
    let cancelled = AtomicBool::new(false);
    let compression = Compression::Auto;
    let options = Options {
        machine,
        page_size: PAGE as u32,
        compression,
        jobs: 1,
        progress: &|_| (),
        cancelled: &cancelled,
    };
    write_image(Sink::Stream(&mut bytes), snapshot, extents, &Pattern, &options).unwrap();
    bytes
}

#[track_caller]
fn stdout(output: Output) -> String {
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

fn json(output: Output) -> Value {
    serde_json::from_str(&stdout(output)).unwrap()
}

/// The line that contains `what`, without its spaces.
#[track_caller]
fn line(text: &str, what: &str) -> String {
    let line = text.lines().find(|line| line.contains(what));
    let line = line.unwrap_or_else(|| panic!("nothing about {what} in\n{text}"));
    line.split_whitespace().collect::<Vec<_>>().join(" ")
}

#[test]
fn inspect_shows_all_of_it() {
    let text = stdout(sample().cryopod(&["inspect"]));
    assert_eq!(line(&text, "host "), "host host, Linux 6.18, x86_64");
    assert_eq!(line(&text, "taken"), "taken 2023-11-14T22:13:20Z");
    assert_eq!(line(&text, "processes"), "processes 1, threads 2");
    assert_eq!(line(&text, "Process 4127"), "Process 4127 /usr/bin/app");
    assert_eq!(line(&text, "Thread 4128"), "Thread 4128 worker");
    assert!(line(&text, "rip 0x").contains("rip 0x8786858483828180"));
    assert!(line(&text, "555500000000-55550012c000").starts_with("555500000000-55550012c000 rw-p 1.2 MiB - 800 KiB"));
    assert_eq!(
        line(&text, "of-the-future"),
        "7 1 9999 unknown O_RDWR|O_CLOEXEC anon_inode:[of-the-future]"
    );
    assert_eq!(line(&text, "SIGINT"), "SIGINT 0x401000 SA_RESTORER -");
    assert_eq!(line(&text, "ITIMER_REAL"), "- ITIMER_REAL 5 ns 10 ns - -");
    assert_eq!(line(&text, "CLOCK_MONOTONIC"), "0 CLOCK_MONOTONIC 1 ns - SIGRTMIN 4128");
    assert_eq!(line(&text, "RLIMIT_NOFILE"), "RLIMIT_NOFILE 1024 unlimited");
    assert!(line(&text, "memfd").starts_with("0 memfd 80.0 KiB"));
    assert_eq!(line(&text, "24x80"), "/dev/pts/3 24x80 9 2 4127");
    assert_eq!(
        line(&text, "0x53000001"),
        "3 0x53000001 0600 0 2 0 pid 4127 adds -1 to 1"
    );
    assert_eq!(line(&text, " 0x0 "), "4 0x0 0600 0 1 9");
}

#[test]
fn inspect_gives_the_same_as_json() {
    let json = json(sample().cryopod(&["inspect", "--json"]));
    assert_eq!(json["machine"], "x86_64");
    let process = &json["processes"][0];
    assert_eq!(process["pid"], 4127);
    assert_eq!(process["threads"][1]["registers"][16]["name"], "rip");
    assert_eq!(process["threads"][1]["registers"][16]["value"], "0x8786858483828180");
    assert_eq!(process["mappings"][0]["start"], "0x555500000000");
    assert_eq!(process["mappings"][0]["bytes"], 300 * PAGE);
    assert_eq!(process["descriptors"][2]["kind_name"], Value::Null);
    assert_eq!(process["descriptors"][2]["close_on_exec"], true);
    let stored = |of: &Value| of["stored_bytes"].as_u64().unwrap();
    let all =
        process["mappings"].as_array().unwrap().iter().map(stored).sum::<u64>() + stored(&json["shared_objects"][0]);
    assert_eq!(all, stored(&json["memory"]));
    assert_eq!(json["ptys"][0]["output_bytes"], 2);
    assert_eq!(json["semaphore_sets"][0]["values"], serde_json::json!([2, 0]));
    assert_eq!(
        json["semaphore_sets"][0]["adjustments"],
        serde_json::json!([[4127, 1, -1]])
    );
    assert_eq!(json["message_queues"][0]["messages"], 1);
}

#[test]
fn registers_of_other_machines_have_their_names() {
    for (machine, name, len, pc) in [(40, "arm", 72, "pc"), (183, "aarch64", 272, "pstate")] {
        let json = json(foreign(machine, len).cryopod(&["inspect", "--json"]));
        assert_eq!(json["machine"], name);
        let registers = json["processes"][0]["threads"][0]["registers"]
            .as_array()
            .unwrap()
            .clone();
        assert!(registers.iter().any(|register| register["name"] == pc), "{registers:?}");
    }
}

#[test]
fn an_image_of_an_unknown_machine_is_shown_without_registers() {
    let text = stdout(foreign(0xfeed, 100).cryopod(&["inspect"]));
    assert_eq!(line(&text, "host "), "host host, Linux 6.18, ELF machine 65261");
    assert!(line(&text, "register sets").contains("NT_PRSTATUS 100 B"));
}

#[test]
fn names_from_an_image_do_not_reach_the_terminal_raw() {
    let mut snapshot = snapshot(3, 2);
    snapshot.host.hostname = "\x1b]0;owned\x07".into();
    snapshot.processes[0].threads[0].name = b"\x1b[2J".to_vec();
    snapshot.processes[0].cwd = b"/\x1b[2J".to_vec();
    snapshot.files[0].path = b"/\x1b[2J".to_vec();
    snapshot.descriptions[0].label = "\x1b[2J".into();
    for vma in &mut snapshot.processes[0].memory.vmas {
        vma.name = b"\x1b[2J".to_vec();
        vma.flags.0 = vec![*b"\x1b["];
    }
    let text = stdout(Image::of(&write(X86_64, &snapshot, &extents(3, 2))).cryopod(&["inspect"]));
    assert!(!text.contains(['\x1b', '\x07']), "{text}");
}

#[test]
fn inspect_reads_a_pipe() {
    let image = sample();
    let named = json(image.cryopod(&["inspect", "--json"]));
    let from = Stdio::from(File::open(image.path()).unwrap());
    let mut piped = Command::new("cat").stdin(from).stdout(Stdio::piped()).spawn().unwrap();
    let pipe = piped.stdout.take().unwrap();
    let mut read = json(cryopod().args(["inspect", "--json", "-"]).stdin(pipe).output().unwrap());
    assert!(piped.wait().unwrap().success());
    read["image"] = named["image"].clone();
    assert_eq!(read, named);
}

#[test]
fn verify_says_that_an_image_is_complete() {
    let image = sample();
    let text = stdout(image.cryopod(&["verify"]));
    assert!(
        text.starts_with(&format!("{}: complete, ", image.path().display())),
        "{text}"
    );
}

#[test]
fn verify_finds_damage_in_pages_and_cut_files() {
    let (mut bytes, _) = image(300, 20, Compression::None, 2);
    let cut = Image::of(&bytes[..bytes.len() - 1]).cryopod(&["verify"]);
    assert_eq!(cut.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&cut.stderr).contains("is cut off"));
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    let damaged = Image::of(&bytes).cryopod(&["verify"]);
    assert_eq!(damaged.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&damaged.stderr).contains("is damaged"));
}

#[test]
fn a_reader_that_leaves_is_no_failure() {
    let image = sample();
    let mut child = cryopod()
        .arg("inspect")
        .arg(image.path())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    drop(child.stdout.take());
    let output = child.wait_with_output().unwrap();
    assert_eq!(String::from_utf8_lossy(&output.stderr), "");
}
