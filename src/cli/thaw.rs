//! `cryopod thaw`: the program goes on, in the foreground as if it had been started here, or detached.

use std::io::Write;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::process::{Command, ExitCode, Stdio};
use std::sync::{Arc, OnceLock};

use anyhow::{Context, Result};

use super::progress::{Progress, Verbosity};
use crate::sys;
use crate::thaw::{self, Check, ClockPolicy, Options, Source, Thawed, Trust, Tty, foreground};

/// Lets a frozen program go on
///
/// In the foreground thaw is the program as far as a shell can see: stdin, stdout and stderr that led to a terminal or a pipe are thaw's
/// own, signals sent to thaw reach the program, ^C and ^Z work, and thaw ends with the program's exit code, or 128+N where
/// signal N ended it. A failure of thaw itself is 125, a refusal 126.
#[derive(clap::Args, Debug)]
pub struct Args {
    /// The image; `-` reads it from stdin, in one pass
    image: PathBuf,
    /// Return once the program runs, in a session of its own, and print its pid
    #[arg(short, long)]
    detach: bool,
    /// The terminal that those of the program become, and the controlling one of a session that was led on one
    ///
    /// Without it they become that which thaw runs on; where the program led its session on one, as a shell in a window does, by a
    /// pseudo-terminal in between.
    ///
    /// `new` is a new pseudo-terminal: what comes on stdin is typed, what the program shows goes to stdout. Detached, nothing is typed.
    #[arg(long, value_name = "PATH|new")]
    tty: Option<PathBuf>,
    /// What a pipe or terminal of the program becomes that led to a process outside: descriptor FD of thaw. May be given several times
    ///
    /// NAME is what /proc/PID/fd showed and `cryopod inspect` shows, such as `pipe:[4127]`. In a shell: --inherit-fd 'pipe:[4127]=5' 5<file
    #[arg(long, value_name = "NAME=FD", value_parser = name_and_fd)]
    inherit_fd: Vec<(String, Arc<OwnedFd>)>,
    /// Give the program a pid namespace of its own, where its pids are free whoever has them here
    ///
    /// It gets a mount namespace with a /proc of its own as well. Process 1 there is a small reaper, which stays for as long as anybody
    /// does. The pid that is printed, or written to a file, is that which the program has here.
    #[arg(long)]
    new_pid_namespace: bool,
    /// Write the program's pid to FILE
    #[arg(long, value_name = "FILE")]
    pid_file: Option<PathBuf>,
    /// Leave the program stopped, for a debugger; SIGCONT lets it go on
    #[arg(long)]
    stopped: bool,
    /// What the program's monotonic and boot-time clocks show
    #[arg(long, value_enum, default_value_t = Clock::Auto)]
    clock: Clock,
    /// What to do where a mapped file is not as it was (by its ELF build id, else by size and modification time)
    #[arg(long, value_enum, default_value_t = OnDifference::Strict)]
    file_check: OnDifference,
    /// What to do where this CPU lacks a feature that the CPU of the freeze had: programs choose their code by these when they start
    #[arg(long, value_enum, default_value_t = OnDifference::Strict)]
    cpu_check: OnDifference,
    /// As root, thaw an image that somebody else could have written, whatever rights it asks for
    #[arg(long)]
    trust: bool,
    /// Threads that fill memory
    #[arg(short, long, value_name = "N")]
    jobs: Option<std::num::NonZeroUsize>,
}

#[derive(clap::ValueEnum, Debug, Clone, Copy)]
enum Clock {
    /// They went on meanwhile on the same boot; on another they go on from the freeze, in a time namespace
    Auto,
    /// They go on from the freeze: the gap is hidden, by a time namespace
    Continue,
    /// They are the machine's, even if they run backwards
    Host,
}

#[derive(clap::ValueEnum, Debug, Clone, Copy)]
enum OnDifference {
    /// Refuse
    Strict,
    /// Say so and go on
    Warn,
    /// Go on
    Off,
}

impl From<OnDifference> for Check {
    fn from(wanted: OnDifference) -> Self {
        match wanted {
            OnDifference::Strict => Check::Strict,
            OnDifference::Warn => Check::Warn,
            OnDifference::Off => Check::Off,
        }
    }
}

impl Args {
    fn options(&self) -> Options {
        Options {
            detach: self.detach,
            stopped: self.stopped,
            clock: match self.clock {
                Clock::Auto => ClockPolicy::Auto,
                Clock::Continue => ClockPolicy::Continue,
                Clock::Host => ClockPolicy::Host,
            },
            file_check: self.file_check.into(),
            cpu_check: self.cpu_check.into(),
            trust: if self.trust {
                Trust::Anything
            } else {
                Trust::OwnersRights
            },
            pid_file: self.pid_file.clone(),
            tty: self.tty.clone().map(|path| match path.as_os_str() == "new" {
                true => Tty::New,
                false => Tty::Path(path),
            }),
            new_pid_namespace: self.new_pid_namespace,
            inherit: self.inherit_fd.clone(),
            jobs: self.jobs.map_or_else(default_jobs, std::num::NonZeroUsize::get),
        }
    }

    /// In the foreground the small numbers are the program's own.
    pub fn failure_code(&self, refused: bool) -> u8 {
        match (self.detach, refused) {
            (true, false) => 1,
            (true, true) => 3,
            (false, false) => 125,
            (false, true) => 126,
        }
    }
}

/// The descriptor is duplicated at once: later on its number could be one of our own. A name may have an equals sign in it.
fn name_and_fd(given: &str) -> Result<(String, Arc<OwnedFd>), String> {
    let (name, fd) = given.rsplit_once('=').ok_or("there is no = in it")?;
    let fd = fd.parse().map_err(|_| format!("{fd:?} is no number"))?;
    let file = sys::fds::duplicate_number(fd).map_err(|error| format!("{fd} is no open descriptor: {error}"))?;
    Ok((name.into(), Arc::new(file)))
}

fn default_jobs() -> usize {
    std::thread::available_parallelism().map_or(2, std::num::NonZeroUsize::get)
}

pub fn run(args: &Args, verbosity: Verbosity) -> Result<ExitCode> {
    let image = args.image.display();
    let thawed = start(args, verbosity).with_context(|| format!("cannot thaw {image}"))?;
    for warning in &thawed.warnings {
        verbosity.say(format_args!("cryopod: warning: {warning}"));
    }
    let pid = thawed.pid_outside;
    verbosity.detail(format_args!(
        "pid {pid} goes on; {} bytes of memory; all threads let go within {:?}",
        thawed.memory_bytes, thawed.window
    ));
    if args.detach {
        detach_pumps(thawed)?;
        // The program runs whether or not somebody reads this.
        writeln!(std::io::stdout(), "{pid}").with_context(|| format!("pid {pid} runs, but cannot be printed"))?;
        return Ok(ExitCode::SUCCESS);
    }
    foreground::follow(thawed, args.stopped).map(ExitCode::from)
}

fn start(args: &Args, verbosity: Verbosity) -> Result<Thawed> {
    let source = Source::open(&args.image)?;
    let progress = OnceLock::new();
    let thawed = thaw::thaw(source, &args.options(), &|done, total| {
        let start = || {
            Progress::start(
                verbosity,
                format!("filling memory from {}", args.image.display()),
                total,
            )
        };
        progress.get_or_init(start).set(done);
    })?;
    if let Some(progress) = progress.into_inner() {
        progress.finish();
    }
    Ok(thawed)
}

/// Unread bytes came first on a pipe of ours; what comes after them is carried on by a small process that stays as long.
fn detach_pumps(thawed: Thawed) -> Result<()> {
    for pump in thawed.pumps {
        Command::new("/proc/self/exe")
            .arg("pump")
            .stdin(Stdio::from(pump.from))
            .stdout(Stdio::from(pump.into))
            .stderr(Stdio::null())
            .spawn()
            .context("start a process that carries stdin on")?;
    }
    Ok(())
}
