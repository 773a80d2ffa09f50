//! An image of another boot: clocks that have come further than those of this machine must not go back for the program.

mod common;

use common::{CRYOPOD, Program, build, can_thaw, scratch};
use cryopod::image::pages::{Extent, PageSource, Space, Zeros};
use cryopod::image::read::Reader;
use cryopod::image::state::Snapshot;
use cryopod::image::write::{Compression, Options, write_image};
use nix::sys::signal::Signal;
use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Mutex;
use std::sync::atomic::AtomicBool;

const HOURS: i64 = 5 * 3600;

/// All memory of an image, by place; `None` are zeros.
#[derive(Default)]
struct Memory(BTreeMap<(u8, u32, u64), Option<Vec<u8>>>);

fn key(space: Space, offset: u64) -> (u8, u32, u64) {
    match space {
        Space::Process(index) => (0, index, offset),
        Space::Shared(index) => (1, index, offset),
    }
}

const PAGE: usize = 4096;

impl Memory {
    fn extents(&self) -> Vec<Extent> {
        let extent = |&(kind, index, offset): &(u8, u32, u64)| Extent {
            space: if kind == 0 {
                Space::Process(index)
            } else {
                Space::Shared(index)
            },
            offset,
            len: PAGE as u64,
            zeros: Zeros::Keep,
        };
        self.0.keys().map(extent).collect()
    }
}

impl PageSource for Memory {
    fn read(&self, space: Space, offset: u64, buffer: &mut [u8]) -> io::Result<()> {
        for (i, page) in buffer.chunks_mut(PAGE).enumerate() {
            let page_at = key(space, offset + (i * PAGE) as u64);
            match self.0.get(&page_at).ok_or(io::ErrorKind::NotFound)? {
                Some(bytes) => page.copy_from_slice(bytes),
                None => page.fill(0),
            }
        }
        Ok(())
    }
}

/// Writes the image once more, with the state that `change` makes of it.
fn rewrite(image: &Path, change: impl FnOnce(&mut Snapshot)) {
    let mut reader = Reader::open(File::open(image).expect("it was written")).expect("it is an image");
    let mut snapshot = reader.snapshot().expect("it has a state");
    let (machine, page_size) = (reader.header().machine, reader.header().page_size);
    let memory = Mutex::new(Memory::default());
    reader
        .pages(2, &|run| {
            let mut memory = memory.lock().expect("no reader panics");
            for at in (0..run.len as usize).step_by(PAGE) {
                let page = run.bytes.map(|bytes| bytes[at..at + PAGE].to_vec());
                memory.0.insert(key(run.space, run.offset + at as u64), page);
            }
            Ok(())
        })
        .expect("it is whole");
    let memory = memory.into_inner().expect("no reader panics");
    change(&mut snapshot);
    let options = Options {
        compression: Compression::Auto,
        jobs: 2,
        machine,
        page_size,
        progress: &|_| {},
        cancelled: &AtomicBool::new(false),
    };
    let mut file = File::create(image).expect("it is ours");
    write_image(&mut file, &snapshot, &memory.extents(), &memory, &options).expect("it can be written");
}

/// A fixture that was frozen hours after this machine has booted, if one believes its image.
fn frozen_hours_ahead(source: &str, dir: &Path) -> (PathBuf, i32) {
    let mut program = Program::start(build::fixture(source).current_dir(dir));
    program.wait_for(|line| line == "READY");
    let (pid, image) = (program.pid, dir.join("app.img"));
    program.freeze(&image);
    rewrite(&image, |snapshot| {
        snapshot.host.boot_id = "00000000-0000-4000-8000-000000000000".to_owned();
        snapshot.clocks.monotonic_ns += HOURS * 1_000_000_000;
        snapshot.clocks.boottime_ns += HOURS * 1_000_000_000;
    });
    fs::write(dir.join("ahead"), HOURS.to_string()).expect("the directory takes a file");
    (image, pid)
}

fn goes_on_hours_ahead(source: &str) {
    if !can_thaw() {
        return;
    }
    let dir = scratch();
    let (image, pid) = frozen_hours_ahead(source, dir.path());
    let program = Program::thaw(&image, pid);
    match source.ends_with(".java") {
        true => fs::write(dir.path().join("go"), "").expect("the directory takes a file"),
        false => program.signal(Signal::SIGUSR1),
    }
    program.expect_pass();
}

#[test]
fn clocks_of_a_c_program_go_on_from_the_freeze() {
    goes_on_hours_ahead("clock/monotonic.c");
}

#[test]
fn clocks_of_a_go_program_go_on_from_the_freeze() {
    goes_on_hours_ahead("clock/clock.go");
}

#[test]
fn clocks_of_a_java_program_go_on_from_the_freeze() {
    let _alone = build::alone("java");
    goes_on_hours_ahead("clock/Clock.java");
}

/// What went on in a time namespace can be frozen and thawed again.
#[test]
fn clocks_go_on_after_a_second_freeze() {
    if !can_thaw() {
        return;
    }
    let dir = scratch();
    let (image, pid) = frozen_hours_ahead("clock/monotonic.c", dir.path());
    let again = dir.path().join("again.img");
    Program::thaw(&image, pid).freeze(&again);
    let program = Program::thaw(&again, pid);
    program.signal(Signal::SIGUSR1);
    program.expect_pass();
}

#[test]
fn the_machines_clocks_are_taken_where_that_is_asked_for() {
    if !can_thaw() {
        return;
    }
    let dir = scratch();
    let (image, pid) = frozen_hours_ahead("clock/monotonic.c", dir.path());
    fs::remove_file(dir.path().join("ahead")).expect("it was made");
    let mut command = Command::new(CRYOPOD);
    let program = Program::thaw_by(command.args(["thaw", "--clock=host"]).arg(&image), pid, Stdio::null());
    program.signal(Signal::SIGUSR1);
    program.expect_pass();
}

#[test]
fn a_gap_is_hidden_where_that_is_asked_for() {
    if !can_thaw() {
        return;
    }
    let dir = scratch();
    let mut program = Program::start(build::fixture("blocked/clock_nanosleep_absolute.c").current_dir(dir.path()));
    program.wait_for(|line| line == "READY");
    let (pid, image) = (program.pid, dir.path().join("app.img"));
    program.freeze(&image);
    // Longer than the fixture's sleep: it would end late by the machine's clock.
    std::thread::sleep(std::time::Duration::from_secs(5));
    let mut command = Command::new(CRYOPOD);
    let program = Program::thaw_by(
        command.args(["thaw", "--clock=continue"]).arg(&image),
        pid,
        Stdio::null(),
    );
    program.signal(Signal::SIGUSR1);
    program.expect_pass();
}
