//! `cryopod freeze`: a running process into an image.

use std::io::IsTerminal;
use std::path::PathBuf;
use std::process::ExitCode;
use std::str::FromStr;
use std::sync::OnceLock;

use anyhow::{Result, bail};

use super::progress::{Progress, Verbosity};
use crate::freeze::choose::{self, Choice};
use crate::freeze::{self, Afterwards, Embed, Observer, Options, Output, Report};
use crate::image::write::Compression;

/// Freeze a running process into an image file
///
/// The process ends once the image is safely on the disk. If anything fails before that, it goes on as if nothing had happened.
#[derive(clap::Args, Debug)]
pub struct Args {
    /// The process to freeze, and everybody below it; several that have to do with each other
    #[arg(value_name = "PID", value_parser = clap::value_parser!(i32).range(1..), required_unless_present_any = ["pgid", "sid", "cgroup", "unit"])]
    pids: Vec<i32>,
    /// All processes of a process group, such as a pipeline of a shell
    #[arg(long, value_name = "ID", value_parser = clap::value_parser!(i32).range(1..))]
    pgid: Vec<i32>,
    /// All processes of a session
    #[arg(long, value_name = "ID", value_parser = clap::value_parser!(i32).range(1..))]
    sid: Vec<i32>,
    /// All processes of a control group and of those below it: its directory, or its path as /proc/PID/cgroup shows it
    #[arg(long, value_name = "PATH")]
    cgroup: Vec<PathBuf>,
    /// All processes of a unit of systemd
    #[arg(long, value_name = "NAME")]
    unit: Vec<String>,
    /// The image; `-` is the standard output. An existing FILE is replaced once the new image is complete
    #[arg(short, long, value_name = "FILE", required_unless_present = "dry_run")]
    output: Option<PathBuf>,
    /// Let the process go on afterwards
    #[arg(long, group = "afterwards")]
    leave_running: bool,
    /// Leave the process stopped afterwards
    #[arg(long, group = "afterwards")]
    leave_stopped: bool,
    /// End the process afterwards, as is done anyway
    #[arg(short, long, group = "afterwards")]
    kill: bool,
    /// End the process also where FILE is a pipe or a device, which proves nothing about what arrived
    ///
    /// Without this it stays stopped then, until `cryopod end PID` or `cryopod resume PID`.
    #[arg(long, group = "afterwards")]
    end: bool,
    /// How to compress: auto, zstd, zstd:LEVEL (1 to 22) or none
    ///
    /// auto writes pages as they are while the disk or the pipe keeps up, and compresses with zstd while it does not: large images
    /// quickly on a fast disk, small ones on a slow one.
    #[arg(long, value_name = "HOW", default_value = "auto")]
    compress: Compress,
    /// Threads that compress; 0: as many as there are processors
    #[arg(long, value_name = "N", default_value_t = 0)]
    jobs: usize,
    /// Put the executable and the libraries into the image as well, so that it can be thawed where they are missing or newer
    ///
    /// All files that the program has mapped so that it cannot write to them. Those that were deleted, by an upgrade perhaps, go into the
    /// image anyway.
    #[arg(long)]
    embed_files: bool,
    /// Write nothing: tell what stands against a freeze, and how much memory there is to store
    ///
    /// The process stops for a look, and goes on.
    #[arg(long)]
    dry_run: bool,
    /// Do not wait until the image is on the disk; a power failure may then take image and process
    #[arg(long)]
    no_sync: bool,
}

#[derive(Debug, Clone, Copy)]
struct Compress(Compression);

impl FromStr for Compress {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match (text, text.strip_prefix("zstd:")) {
            ("auto", _) => Ok(Compress(Compression::Auto)),
            ("none", _) => Ok(Compress(Compression::None)),
            ("zstd", _) => Ok(Compress(Compression::Zstd(3))), // zstd's own default
            (_, Some(level)) => match level.parse() {
                Ok(level @ 1..=22) => Ok(Compress(Compression::Zstd(level))),
                _ => Err(format!("{level:?} is no level from 1 to 22")),
            },
            _ => Err("it is auto, zstd, zstd:LEVEL or none".into()),
        }
    }
}

pub fn run(args: &Args, verbosity: Verbosity) -> Result<ExitCode> {
    let watch = Watch {
        verbosity,
        file: args.name(),
        progress: OnceLock::new(),
    };
    let pids = choose::processes(&args.choices())?;
    if args.dry_run {
        return dry_run(&pids, args.embed(), &watch);
    }
    let output = args.open()?;
    let to_stdout = args.is_stdout();
    let options = Options {
        afterwards: args.afterwards(&output),
        compression: args.compress.0,
        jobs: args.jobs,
        sync: !args.no_sync,
        embed: args.embed(),
        observer: &watch,
    };
    let report = freeze::freeze(&pids, output, &options)?;
    watch.warn(&report.warnings);
    let line = last_line(&report, &watch.file);
    match to_stdout {
        true => verbosity.say(line),
        false if verbosity != Verbosity::Quiet => println!("{line}"),
        false => {}
    }
    Ok(ExitCode::SUCCESS)
}

fn dry_run(pids: &[i32], embed: Embed, watch: &Watch) -> Result<ExitCode> {
    let look = freeze::look(pids, embed, watch)?;
    watch.warn(&look.warnings);
    println!(
        "{} can be frozen: {} of memory to store before compression; it was stopped for {:.1} ms and goes on",
        named(pids[0], look.processes),
        size(look.memory_bytes),
        look.stopped_for.as_secs_f64() * 1e3
    );
    Ok(ExitCode::SUCCESS)
}

impl Args {
    fn choices(&self) -> Vec<Choice> {
        let pids = self.pids.iter().map(|&pid| Choice::Pid(pid));
        let groups = self.pgid.iter().map(|&id| Choice::Group(id));
        let sessions = self.sid.iter().map(|&id| Choice::Session(id));
        let control_groups = self.cgroup.iter().cloned().map(Choice::ControlGroup);
        let units = self.unit.iter().cloned().map(Choice::Unit);
        pids.chain(groups)
            .chain(sessions)
            .chain(control_groups)
            .chain(units)
            .collect()
    }

    fn embed(&self) -> Embed {
        match self.embed_files {
            true => Embed::All,
            false => Embed::Deleted,
        }
    }

    fn is_stdout(&self) -> bool {
        self.output.as_ref().is_some_and(|path| path.as_os_str() == "-")
    }

    /// What messages call the image.
    fn name(&self) -> String {
        match &self.output {
            Some(_) if self.is_stdout() => "image".into(),
            Some(path) => path.display().to_string(),
            None => String::new(),
        }
    }

    fn open(&self) -> Result<Output> {
        let path = self.output.as_ref().expect("clap demands it where there is no dry run");
        if !self.is_stdout() {
            return Output::open(path);
        }
        if std::io::stdout().is_terminal() {
            bail!("the image would go to a terminal: redirect the standard output, or name a file");
        }
        Output::stdout()
    }

    /// A stream proves nothing about what arrived at its other end, so the process must not end by default.
    fn afterwards(&self, output: &Output) -> Afterwards {
        if self.leave_running {
            Afterwards::KeepRunning
        } else if self.leave_stopped || (matches!(output, Output::Stream(_)) && !self.end) {
            Afterwards::LeaveStopped
        } else {
            Afterwards::End
        }
    }
}

/// `pid 4127`, or `pid 4127 and 3 more`.
pub fn named(pid: i32, processes: usize) -> String {
    match processes {
        1 => format!("pid {pid}"),
        all => format!("pid {pid} and {} more", all - 1),
    }
}

fn last_line(report: &Report, file: &str) -> String {
    let Report { pid, afterwards, .. } = report;
    let who = named(*pid, report.processes);
    let (end, go, is, stay) = match report.processes {
        1 => ("ended", "goes on", "is stopped as before", "stays stopped"),
        _ => ("ended", "go on", "are stopped as before", "stay stopped"),
    };
    let image = format!("{file} {}", size(report.file_bytes));
    let paused = report.paused.as_secs_f64() * 1e3;
    match afterwards {
        Afterwards::End => format!("{who} {end}; {image}"),
        Afterwards::KeepRunning if report.was_stopped => format!("{who} {is}; {image}"),
        Afterwards::KeepRunning => format!("{who} {go}; {image}; paused for {paused:.1} ms"),
        Afterwards::LeaveStopped => {
            format!("{who} {stay}; {image}: `cryopod resume {pid}` or `cryopod end {pid}`")
        }
    }
}

/// Three digits with a decimal unit, as disks are labelled: `812 MB`, `4.07 MB`, `96 kB`.
fn size(bytes: u64) -> String {
    let units = ["kB", "MB", "GB", "TB", "PB"];
    let mut value = bytes as f64 / 1e3;
    let mut unit = 0;
    while value >= 999.5 && unit + 1 < units.len() {
        value /= 1e3;
        unit += 1;
    }
    let decimals = if value >= 99.95 || unit == 0 {
        0
    } else if value >= 9.995 {
        1
    } else {
        2
    };
    format!("{value:.decimals$} {}", units[unit])
}

/// Shows on stderr what a freeze does.
struct Watch {
    verbosity: Verbosity,
    file: String,
    progress: OnceLock<Progress>,
}

impl Watch {
    fn warn(&self, warnings: &[String]) {
        for warning in warnings {
            self.verbosity.say(format!("note: {warning}"));
        }
    }
}

impl Observer for Watch {
    fn step(&self, name: &str) {
        self.verbosity.detail(name);
    }

    fn writes(&self, bytes: u64) {
        self.progress
            .get_or_init(|| Progress::start(self.verbosity, format!("writing {}", self.file), bytes));
    }

    fn wrote(&self, bytes: u64) {
        if let Some(progress) = self.progress.get() {
            progress.set(bytes);
        }
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        if let Some(progress) = self.progress.take() {
            progress.finish();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_have_three_digits() {
        assert_eq!(size(812_300_000), "812 MB");
        assert_eq!(size(4_070_000), "4.07 MB");
        assert_eq!(size(96_400), "96 kB");
        assert_eq!(size(999_600), "1.00 MB");
        assert_eq!(size(12_340_000_000), "12.3 GB");
    }

    #[test]
    fn compression_is_named_with_its_level() {
        assert_eq!("zstd:19".parse::<Compress>().unwrap().0, Compression::Zstd(19));
        assert_eq!("none".parse::<Compress>().unwrap().0, Compression::None);
        assert!("zstd:23".parse::<Compress>().is_err());
        assert!("gzip".parse::<Compress>().is_err());
    }

    #[test]
    fn the_last_line_says_what_became_of_the_process() {
        let report = |afterwards| Report {
            pid: 4127,
            processes: 1,
            afterwards,
            was_stopped: false,
            file_bytes: 812_000_000,
            paused: std::time::Duration::from_micros(3_120),
            warnings: vec![],
        };
        assert_eq!(
            last_line(&report(Afterwards::End), "app.img"),
            "pid 4127 ended; app.img 812 MB"
        );
        assert_eq!(
            last_line(&report(Afterwards::KeepRunning), "app.img"),
            "pid 4127 goes on; app.img 812 MB; paused for 3.1 ms"
        );
        assert_eq!(
            last_line(&report(Afterwards::LeaveStopped), "app.img"),
            "pid 4127 stays stopped; app.img 812 MB: `cryopod resume 4127` or `cryopod end 4127`"
        );
    }
}
