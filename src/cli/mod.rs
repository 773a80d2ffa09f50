//! The command line: which subcommands there are and what their exit codes are.
//!
//! Each subcommand is a file with `Args` (what it accepts) and `run` (what it does), which returns the exit code.
#![deny(unsafe_code)]

mod check;
mod demo;
mod end_resume;
mod freeze;
mod generate;
mod inspect;
pub mod progress;
mod pump;
mod reaper;
pub mod style;
mod thaw;
mod verify;

use crate::refusal::Refused;
use clap::{Parser, Subcommand};
use progress::Verbosity;
use std::ffi::OsString;
use std::path::Path;
use std::process::ExitCode;

/// Freezes a running program into a file, and thaws it later.
#[derive(Parser, Debug)]
#[command(name = "cryopod", version, about, long_about = LONG_ABOUT, after_long_help = AFTER_HELP)]
pub struct Cli {
    #[command(subcommand)]
    command: Command,
    /// Say nothing but errors
    #[arg(short, long, global = true, conflicts_with = "verbose")]
    quiet: bool,
    /// Say more about what is done
    #[arg(short, long, global = true)]
    verbose: bool,
}

const LONG_ABOUT: &str = "\
Freezes a running program into one file, and thaws it later: the program goes on in the middle of what it was doing.

Nothing need be prepared: any program that runs can be frozen, be it python3, node, Java, Go, Rust or a static binary. \
What cannot be carried is refused by name, before anything is changed.";

const AFTER_HELP: &str = "\
Examples:
  cryopod demo                         see it work, on a counter of its own
  cryopod freeze 4127 -o app.img       freeze process 4127; it ends once app.img is safe
  cryopod thaw app.img                 let it go on, here
  cryopod inspect app.img              what is in the file?
  cryopod check                        what can this machine do?

Exit codes:
  0  done
  1  failed
  2  wrong usage
  3  refused: something cannot be carried, and nothing was changed
  A thaw in the foreground ends as the program does: with its exit code, or
  128+N where signal N ended it; 125 is thaw's own failure, 126 its refusal.

Called through links named freeze, thaw and inspect, cryopod is these commands.";

/// Names that cryopod answers to when it is called through a link.
pub const LINK_NAMES: [&str; 3] = ["freeze", "thaw", "inspect"];

#[derive(Subcommand, Debug)]
enum Command {
    Check(check::Args),
    Demo(demo::Args),
    /// The program that the demo freezes
    #[command(hide = true)]
    DemoCounter,
    Inspect(inspect::Args),
    Verify(verify::Args),
    Freeze(freeze::Args),
    End(end_resume::EndArgs),
    Resume(end_resume::ResumeArgs),
    Thaw(thaw::Args),
    Generate(generate::Args),
    Install(generate::InstallArgs),
    #[command(hide = true)]
    Pump(pump::Args),
    #[command(hide = true)]
    Reaper(reaper::Args),
}

impl Cli {
    /// Parses the command line; prints help or a usage error and exits where there is nothing to run.
    pub fn from_command_line(args: impl IntoIterator<Item = OsString>) -> Self {
        Cli::parse_from(with_link_name(args.into_iter().collect()))
    }

    pub fn run(&self) -> anyhow::Result<ExitCode> {
        match &self.command {
            Command::Check(args) => check::run(args),
            Command::Demo(args) => demo::run(args),
            Command::DemoCounter => demo::counter::run(),
            Command::Inspect(args) => inspect::run(args),
            Command::Verify(args) => verify::run(args),
            Command::Freeze(args) => freeze::run(args, self.verbosity()),
            Command::End(args) => end_resume::end(args, self.verbosity()),
            Command::Resume(args) => end_resume::resume(args, self.verbosity()),
            Command::Thaw(args) => thaw::run(args, self.verbosity()),
            Command::Pump(args) => pump::run(args),
            Command::Reaper(args) => reaper::run(args),
            Command::Generate(args) => generate::run(args),
            Command::Install(args) => generate::install(args, self.verbosity()),
        }
    }

    /// The exit code that says how `error` left things.
    pub fn failure_code(&self, error: &anyhow::Error) -> ExitCode {
        let refused = error.chain().any(|cause| cause.is::<Refused>());
        ExitCode::from(match (&self.command, refused) {
            (Command::Thaw(args), refused) => args.failure_code(refused),
            (_, true) => 3,
            (_, false) => 1,
        })
    }

    /// Whether `error` is only that nobody reads our output any more, as in `cryopod inspect app.img | head`.
    pub fn reader_left(&self, error: &anyhow::Error) -> bool {
        let only_prints = matches!(
            self.command,
            Command::Check(_) | Command::Demo(_) | Command::Inspect(_) | Command::Verify(_)
        );
        let broken_pipe = |cause: &(dyn std::error::Error + 'static)| {
            cause
                .downcast_ref::<std::io::Error>()
                .is_some_and(|e| e.kind() == std::io::ErrorKind::BrokenPipe)
        };
        only_prints && error.chain().any(broken_pipe)
    }

    fn verbosity(&self) -> Verbosity {
        match (self.quiet, self.verbose) {
            (true, _) => Verbosity::Quiet,
            (_, true) => Verbosity::Verbose,
            _ => Verbosity::Normal,
        }
    }
}

/// `thaw x` through a link named thaw means `cryopod thaw x`.
fn with_link_name(mut args: Vec<OsString>) -> Vec<OsString> {
    let called_as = args
        .first()
        .and_then(|name| Path::new(name).file_name())
        .map(OsString::from);
    if let Some(name) = called_as
        && LINK_NAMES.iter().any(|link| name == *link)
    {
        args[0] = "cryopod".into();
        args.insert(1, name);
    }
    args
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    fn words(text: &str) -> Vec<OsString> {
        text.split(' ').map(OsString::from).collect()
    }

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn a_link_names_its_subcommand() {
        assert_eq!(
            with_link_name(words("/usr/bin/thaw app.img")),
            words("cryopod thaw app.img")
        );
        assert_eq!(
            with_link_name(words("./cryopod thaw app.img")),
            words("./cryopod thaw app.img")
        );
    }
}
