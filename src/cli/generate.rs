//! `cryopod generate` and `cryopod install`: man pages, shell completions, and all of it put in its place.

use super::progress::Verbosity;
use super::{Cli, LINK_NAMES};
use anyhow::{Context, Result};
use clap::CommandFactory;
use clap_complete::Shell;
use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

/// Writes man pages or shell completions into a directory
#[derive(clap::Args, Debug)]
pub struct Args {
    #[command(subcommand)]
    what: What,
}

#[derive(clap::Subcommand, Debug)]
enum What {
    /// Man pages, one for each command
    Man { dir: PathBuf },
    /// Completions for bash, zsh and fish
    Completions { dir: PathBuf },
}

/// Copies cryopod to PREFIX, with the links freeze, thaw and inspect, the man pages and the shell completions
#[derive(clap::Args, Debug)]
pub struct InstallArgs {
    /// Where to install to
    #[arg(long, default_value = "/usr/local")]
    prefix: PathBuf,
    /// Put this directory before every path, as packagers need it
    #[arg(long)]
    destdir: Option<PathBuf>,
}

pub fn run(args: &Args) -> Result<ExitCode> {
    match &args.what {
        What::Man { dir } => man_pages(dir)?,
        What::Completions { dir } => {
            for (shell, _) in SHELL_DIRS {
                completions(shell, dir)?;
            }
        }
    }
    Ok(ExitCode::SUCCESS)
}

const SHELL_DIRS: [(Shell, &str); 3] = [
    (Shell::Bash, "share/bash-completion/completions"),
    (Shell::Zsh, "share/zsh/site-functions"),
    (Shell::Fish, "share/fish/vendor_completions.d"),
];

pub fn install(args: &InstallArgs, verbosity: Verbosity) -> Result<ExitCode> {
    let prefix = match &args.destdir {
        Some(destdir) => destdir.join(args.prefix.strip_prefix("/").unwrap_or(&args.prefix)),
        None => args.prefix.clone(),
    };
    let bin = prefix.join("bin");
    install_binary(&bin)?;
    for name in LINK_NAMES {
        replace_link(Path::new("cryopod"), &bin.join(name))?;
    }
    let man = prefix.join("share/man/man1");
    man_pages(&man)?;
    for name in LINK_NAMES {
        replace_link(Path::new(&format!("cryopod-{name}.1")), &man.join(format!("{name}.1")))?;
    }
    for (shell, dir) in SHELL_DIRS {
        completions(shell, &prefix.join(dir))?;
    }
    verbosity.say(format_args!(
        "cryopod, {} installed in {}",
        LINK_NAMES.join(", "),
        bin.display()
    ));
    Ok(ExitCode::SUCCESS)
}

/// Copies under another name first, so that a cryopod that runs meanwhile is not disturbed (ETXTBSY).
fn install_binary(bin: &Path) -> Result<()> {
    make_dir(bin)?;
    let unfinished = bin.join(".cryopod.new");
    let copy = || -> Result<()> {
        fs::copy(std::env::current_exe()?, &unfinished)?;
        fs::set_permissions(&unfinished, fs::Permissions::from_mode(0o755))?;
        fs::rename(&unfinished, bin.join("cryopod"))?;
        Ok(())
    };
    copy().with_context(|| format!("copy cryopod to {}", bin.display()))
}

/// Puts a link of ours at `at`. What is there and is not a link of ours stays, and is reported.
fn replace_link(target: &Path, at: &Path) -> Result<()> {
    match fs::read_link(at) {
        Ok(there) if there == target => return Ok(()),
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => {}
        _ => anyhow::bail!(
            "{} exists and is not a link to {}; move it away first",
            at.display(),
            target.display()
        ),
    }
    symlink(target, at).with_context(|| format!("make the link {}", at.display()))
}

fn man_pages(dir: &Path) -> Result<()> {
    make_dir(dir)?;
    let command = Cli::command().disable_help_subcommand(true);
    clap_mangen::generate_to(command, dir).with_context(|| format!("write man pages into {}", dir.display()))
}

fn completions(shell: Shell, dir: &Path) -> Result<()> {
    make_dir(dir)?;
    clap_complete::generate_to(shell, &mut Cli::command(), "cryopod", dir)
        .with_context(|| format!("write {shell} completions into {}", dir.display()))?;
    Ok(())
}

fn make_dir(dir: &Path) -> Result<()> {
    fs::create_dir_all(dir).with_context(|| format!("make the directory {}", dir.display()))
}
