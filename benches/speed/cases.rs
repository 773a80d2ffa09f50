//! The cases that have a goal.

use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};

use crate::command::{self, CRYOPOD, Target, Took};
use crate::machine::file_system;
use crate::report::{Goal, Report, Row};
use crate::{Settings, criu, reference};

const GIB: usize = 1 << 30;
/// What cryopod itself may take, whatever the size of the program.
const OWN_MEMORY: Goal = Goal::AtMost(64.0);
pub const TMPFS: &str = "/dev/shm";
const NO_COMPRESSION: &[&str] = &["--compress", "none"];

pub fn run(settings: &Settings, report: &mut Report) -> Result<()> {
    tiny(settings, report)?;
    let disk = PathBuf::from(env!("CARGO_TARGET_TMPDIR"));
    let kind = file_system(&disk);
    let to = |directory: &Path, name: &str, copier: &'static str, options: &[&'static str]| Memory {
        name: name.into(),
        directory: directory.to_owned(),
        pages: "small",
        copier,
        options: options.to_vec(),
    };
    let tmpfs = Path::new(TMPFS);
    memory(
        settings,
        report,
        &to(tmpfs, "1 GiB, none, tmpfs", "plain", NO_COMPRESSION),
    )?;
    let huge = Memory {
        pages: "huge",
        ..to(tmpfs, "1 GiB of huge pages, none, tmpfs", "plain", NO_COMPRESSION)
    };
    memory(settings, report, &huge)?;
    memory(
        settings,
        report,
        &to(
            &disk,
            &format!("1 GiB, none, {kind}, durable"),
            "durable",
            NO_COMPRESSION,
        ),
    )?;
    let not_durable = ["--compress", "none", "--no-sync"];
    memory(
        settings,
        report,
        &to(&disk, &format!("1 GiB, none, {kind}, --no-sync"), "plain", &not_durable),
    )?;
    compressed(settings, report)?;
    automatic(settings, report)?;
    slow_pipe(settings, report)?;
    many(settings, report, "500 threads", &["threads", "500"], 30.0)?;
    many(settings, report, "30,000 mappings", &["mappings", "30000"], 150.0)?;
    many(settings, report, "200 processes", &["processes", "200"], 80.0)
}

/// An image file, removed with the value.
pub struct Image(pub PathBuf);

impl Image {
    pub fn in_directory(directory: &Path) -> Self {
        Image(directory.join(format!("cryopod-bench-{}.img", std::process::id())))
    }

    /// Its place, without the image of the round before: to give back a gibibyte of a file that is replaced takes 40 ms, and is no part
    /// of a freeze.
    pub fn fresh(&self) -> &Path {
        let _never_made = std::fs::remove_file(&self.0);
        &self.0
    }
}

impl Drop for Image {
    fn drop(&mut self) {
        let _never_made = std::fs::remove_file(&self.0);
    }
}

pub fn walls(took: &[Took]) -> Vec<Duration> {
    took.iter().map(|took| took.wall).collect()
}

fn peaks(took: &[Took]) -> Vec<u64> {
    took.iter().map(|took| took.peak_bytes).collect()
}

/// The least process, beside a start of cryopod that does nothing.
fn tiny(settings: &Settings, report: &mut Report) -> Result<()> {
    let disk = PathBuf::from(env!("CARGO_TARGET_TMPDIR"));
    let places = [
        ("tmpfs".to_owned(), PathBuf::from(TMPFS), &[][..]),
        (format!("{}, durable", file_system(&disk)), disk.clone(), &[][..]),
        (format!("{}, --no-sync", file_system(&disk)), disk, &["--no-sync"][..]),
    ];
    for (place, directory, options) in places {
        let name = format!("tiny process, {place}");
        if !settings.wants(&name) {
            continue;
        }
        let image = Image::in_directory(&directory);
        let target = Target::tiny()?;
        let (mut starts, mut freezes, mut thaws) = (Vec::new(), Vec::new(), Vec::new());
        for _ in 0..settings.rounds(40) {
            starts.push(command::run(Command::new(CRYOPOD).arg("--version"))?);
            freezes.push(command::freeze(target.pid, &image.0, options)?);
            thaws.push(command::thaw(&image.0)?);
        }
        let starts = walls(&starts);
        let freeze = Row::of_runs(format!("freeze {name}"), &freezes).beside("cryopod --version", &starts);
        let thaw = Row::of_runs(format!("thaw {name}"), &thaws).beside("cryopod --version", &starts);
        // What a disk takes to say that it has the data is not ours.
        let is_durable = place.ends_with("durable");
        report.add(if is_durable {
            freeze
        } else {
            freeze.goal(Goal::AtMost(2.0))
        });
        report.add(thaw.goal(Goal::AtMost(2.0)));
        if place == "tmpfs" {
            report.add(Row::of_bytes("resident set of freeze, tiny process", &peaks(&freezes)).goal(OWN_MEMORY));
            report.add(Row::of_bytes("resident set of thaw, tiny process", &peaks(&thaws)).goal(OWN_MEMORY));
            criu::measure(settings, report, "tiny process", &target, &directory)?;
        }
    }
    Ok(())
}

/// A process with a gibibyte of memory.
struct Memory {
    name: String,
    directory: PathBuf,
    pages: &'static str,
    copier: &'static str,
    options: Vec<&'static str>,
}

fn memory(settings: &Settings, report: &mut Report, case: &Memory) -> Result<()> {
    let name = &case.name;
    if !settings.wants(name) {
        return Ok(());
    }
    let image = Image::in_directory(&case.directory);
    let directory = case.directory.to_str().context("the name of a directory")?;
    let target = Target::start(&["memory", &GIB.to_string(), case.pages])?;
    let (mut copies, mut freezes, mut fills, mut thaws) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
    let filler = if case.pages == "huge" { "fill-huge" } else { "fill" };
    for _ in 0..settings.rounds(7) {
        copies.push(reference::measure(&[
            "copy",
            &target.pid.to_string(),
            directory,
            case.copier,
        ])?);
        freezes.push(command::freeze(target.pid, image.fresh(), &case.options)?);
        fills.push(reference::measure(&[filler, &GIB.to_string(), directory])?);
        thaws.push(command::thaw(&image.0)?);
        ensure!(
            resident(target.pid)? >= GIB as u64,
            "{name}: the memory did not come back"
        );
    }
    let freeze = Row::of_runs(format!("freeze {name}"), &freezes);
    report.add(freeze.beside("two threads copy", &copies).goal(Goal::Ratio(0.85)));
    let thaw = Row::of_runs(format!("thaw {name}"), &thaws);
    report.add(thaw.beside("two threads fill", &fills).goal(Goal::Ratio(0.8)));
    report.add(Row::of_bytes(format!("resident set of freeze, {name}"), &peaks(&freezes)).goal(OWN_MEMORY));
    report.add(Row::of_bytes(format!("resident set of thaw, {name}"), &peaks(&thaws)).goal(OWN_MEMORY));
    if case.pages == "huge" {
        let lost = GIB as u64 - huge(target.pid)?.min(GIB as u64);
        report.add(Row::of_bytes(format!("huge pages lost, {name}"), &[lost]).goal(Goal::AtMost(0.0)));
    }
    if case.copier == "plain" {
        criu::measure(settings, report, name, &target, &case.directory)?;
    }
    Ok(())
}

/// VmRSS of proc_pid_status(5), in bytes.
fn resident(pid: i32) -> Result<u64> {
    field(&std::fs::read_to_string(format!("/proc/{pid}/status"))?, "VmRSS:")
}

/// AnonHugePages of proc_pid_smaps(5), in bytes.
fn huge(pid: i32) -> Result<u64> {
    field(
        &std::fs::read_to_string(format!("/proc/{pid}/smaps_rollup"))?,
        "AnonHugePages:",
    )
}

fn field(text: &str, name: &str) -> Result<u64> {
    let line = text
        .lines()
        .find_map(|line| line.strip_prefix(name))
        .with_context(|| format!("no {name}"))?;
    Ok(line.trim().trim_end_matches(" kB").parse::<u64>()? * 1024)
}

/// A thaw from zstd level 1, beside two threads that only decompress.
fn compressed(settings: &Settings, report: &mut Report) -> Result<()> {
    let name = "1 GiB, zstd:1, tmpfs";
    if !settings.wants(name) {
        return Ok(());
    }
    let image = Image::in_directory(Path::new(TMPFS));
    let target = Target::start(&["memory", &GIB.to_string(), "small"])?;
    let (mut freezes, mut reference, mut thaws) = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..settings.rounds(5) {
        freezes.push(command::freeze(target.pid, image.fresh(), &["--compress", "zstd:1"])?);
        reference.push(reference::measure(&["decompress", &GIB.to_string()])?);
        thaws.push(command::thaw(&image.0)?);
    }
    report.add(Row::of_runs(format!("freeze {name}"), &freezes));
    let thaw = Row::of_runs(format!("thaw {name}"), &thaws);
    report.add(thaw.beside("two threads decompress", &reference).goal(Goal::Ratio(1.0)));
    report.add(Row::of_bytes(format!("image, {name}"), &[image.0.metadata()?.len()]));
    report.add(Row::of_bytes(format!("resident set of freeze, {name}"), &peaks(&freezes)).goal(OWN_MEMORY));
    report.add(Row::of_bytes(format!("resident set of thaw, {name}"), &peaks(&thaws)).goal(OWN_MEMORY));
    Ok(())
}

/// What is done without being asked, beside no compression, where the sink is fast.
fn automatic(settings: &Settings, report: &mut Report) -> Result<()> {
    let name = "1 GiB, auto, tmpfs";
    if !settings.wants(name) {
        return Ok(());
    }
    let image = Image::in_directory(Path::new(TMPFS));
    let target = Target::start(&["memory", &GIB.to_string(), "small"])?;
    let (mut automatic, mut none) = (Vec::new(), Vec::new());
    for _ in 0..settings.rounds(7) {
        none.push(command::freeze(target.pid, image.fresh(), NO_COMPRESSION)?);
        command::thaw(&image.0)?;
        automatic.push(command::freeze(target.pid, image.fresh(), &["--compress", "auto"])?);
        command::thaw(&image.0)?;
    }
    let row = Row::of_runs(format!("freeze {name}"), &automatic);
    // Not slower than raw, give or take what two runs of the same differ by.
    report.add(row.beside("--compress none", &walls(&none)).goal(Goal::Ratio(0.95)));
    report.add(Row::of_bytes(format!("image, {name}"), &[image.0.metadata()?.len()]));
    Ok(())
}

/// A reader that takes a tenth of what memory would give.
fn slow_pipe(settings: &Settings, report: &mut Report) -> Result<()> {
    let name = "1 GiB through a pipe of 250 MB/s";
    if !settings.wants(name) {
        return Ok(());
    }
    let (mut automatic, mut none, mut sizes) = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..settings.rounds(2) {
        for (how, times) in [("none", &mut none), ("auto", &mut automatic)] {
            let target = Target::start(&["memory", &GIB.to_string(), "small"])?;
            let (took, bytes) = through_pipe(&target, how, 250_000_000)?;
            times.push(took);
            if how == "auto" {
                sizes.push(bytes);
            }
        }
    }
    let row = Row::of_times(format!("freeze {name}, auto"), &automatic);
    report.add(row.beside("--compress none", &none).goal(Goal::Ratio(4.0)));
    report.add(Row::of_bytes(format!("image of {name}, auto"), &sizes).goal(Goal::AtMost(256.0)));
    Ok(())
}

/// Freezes into a pipe that is read at `rate` bytes a second.
fn through_pipe(target: &Target, how: &str, rate: u64) -> Result<(Duration, u64)> {
    let mut command = Command::new(CRYOPOD);
    command.args([
        "-q",
        "freeze",
        &target.pid.to_string(),
        "-o",
        "-",
        "--end",
        "--compress",
        how,
    ]);
    let begin = Instant::now();
    let mut child = command.stdin(Stdio::null()).stdout(Stdio::piped()).spawn()?;
    let mut pipe = child.stdout.take().expect("it is piped");
    let (mut buffer, mut bytes) = (vec![0; 64 << 10], 0u64);
    loop {
        let read = pipe.read(&mut buffer)?;
        if read == 0 {
            break;
        }
        bytes += read as u64;
        let due = Duration::from_secs_f64(bytes as f64 / rate as f64);
        std::thread::sleep(due.saturating_sub(begin.elapsed()));
    }
    let (status, _) = command::wait(child.id() as i32)?;
    ensure!(status.success(), "{command:?}: {status}");
    Ok((begin.elapsed(), bytes))
}

/// Many threads, mappings or processes.
fn many(settings: &Settings, report: &mut Report, name: &str, program: &[&str], most: f64) -> Result<()> {
    if !settings.wants(name) {
        return Ok(());
    }
    let image = Image::in_directory(Path::new(TMPFS));
    let target = Target::start(program)?;
    let (mut freezes, mut thaws) = (Vec::new(), Vec::new());
    for _ in 0..settings.rounds(15) {
        freezes.push(command::freeze(target.pid, &image.0, &[])?);
        thaws.push(command::thaw(&image.0)?);
    }
    report.add(Row::of_runs(format!("freeze {name}"), &freezes).goal(Goal::AtMost(most)));
    report.add(Row::of_runs(format!("thaw {name}"), &thaws).goal(Goal::AtMost(most)));
    report.add(Row::of_bytes(format!("resident set of freeze, {name}"), &peaks(&freezes)).goal(OWN_MEMORY));
    report.add(Row::of_bytes(format!("resident set of thaw, {name}"), &peaks(&thaws)).goal(OWN_MEMORY));
    criu::measure(settings, report, name, &target, Path::new(TMPFS))
}
