//! `cryopod demo`: a counter is frozen, is gone, is thawed, and counts on.
//!
//! It drives this very executable as a user would, and reads what the counter writes, so it can prove that no number was
//! lost or came twice.

use super::style::{Colour, Style};
use crate::probe::{Need, probe};
use crate::sys;
use anyhow::{Context, Result, bail, ensure};
use std::fs::{self, DirBuilder};
use std::io::{BufRead, BufReader, IsTerminal, Write};
use std::os::unix::fs::DirBuilderExt;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitCode, Stdio};
use std::time::Duration;

/// Shows what cryopod does: starts a counter of its own, freezes it, thaws it, and the counter counts on
#[derive(clap::Args, Debug)]
pub struct Args {}

/// How far the counter counts, and the number after which it is frozen.
const LAST: u64 = 40;
const FREEZE_AFTER: u64 = 15;
const STEP: Duration = Duration::from_millis(100);

pub fn run(_args: &Args) -> Result<ExitCode> {
    refuse_where_impossible()?;
    // The counter is to have no descriptors that only happen to be ours.
    sys::close_others_at_exec().context("keep our descriptors to ourselves")?;
    let dir = Scratch::make()?;
    let image = dir.0.join("counter.img");
    let mut stage = Stage::of_stdout();

    stage.say("1. A program that nobody prepared: a counter, with a second thread that checks every sum.")?;
    let mut counter = Counter::start(&mut own_command(&["demo-counter"])?)?;
    let pid = counter.child.id();
    let mut counted = counter.watch(0, FREEZE_AFTER, pid, &mut stage)?;

    stage.say(&format!("\n2. Freeze it:  cryopod freeze {pid} -o counter.img"))?;
    let report = freeze(pid, &image)?;
    counted = counter.watch(counted, LAST, pid, &mut Stage::silent())?; // what was still on its way to us
    prove_gone(pid, counter)?;
    let size = fs::metadata(&image).context("look at the image")?.len();
    for line in report.lines() {
        stage.say(&format!("   {line}"))?;
    }
    stage.say(&format!(
        "   /proc/{pid} is gone. What is left of it is a file of {} KiB.",
        size.div_ceil(1024)
    ))?;
    stage.rest("   Nobody counts now")?;

    stage.say("\n3. Thaw it:  cryopod thaw counter.img")?;
    let mut thawed = Counter::start(own_command(&["thaw"])?.arg(&image))?;
    counted = thawed.watch(counted, LAST, pid, &mut stage)?;
    let status = thawed.child.wait().context("wait for thaw")?;
    ensure!(status.success(), "thaw ended with {status}");
    ensure!(counted == LAST, "the counter ended at {counted} instead of {LAST}");

    stage.say(&format!(
        "\n{} It was process {pid} again, and counted from 1 to {LAST}: no number is missing, none came twice.",
        stage.style.paint(Colour::Green, "That is all.")
    ))?;
    stage.say("Now try it on a program of yours:  cryopod freeze PID -o app.img;  cryopod thaw app.img")?;
    Ok(ExitCode::SUCCESS)
}

fn refuse_where_impossible() -> Result<()> {
    let report = probe();
    let missing = |finding: &&crate::probe::Finding| !finding.present && finding.needed_for != Need::Some;
    if let Some(finding) = report.findings.iter().find(missing) {
        bail!(
            "the demo needs {}, which is {}; run it as root, or see `cryopod check`",
            finding.name,
            finding.detail
        );
    }
    Ok(())
}

fn own_command(args: &[&str]) -> Result<Command> {
    let mut command = Command::new(std::env::current_exe().context("find our own executable")?);
    command.args(args);
    Ok(command)
}

/// Freezes the process, and returns what freeze said.
fn freeze(pid: u32, image: &Path) -> Result<String> {
    let freeze = own_command(&["freeze", &pid.to_string(), "-o"])?
        .arg(image)
        .output()
        .context("run freeze")?;
    let said = [freeze.stdout, freeze.stderr].concat();
    let said = String::from_utf8_lossy(&said).into_owned();
    ensure!(freeze.status.success(), "freeze ended with {}: {said}", freeze.status);
    Ok(said)
}

/// We are the parent, so the pid is free only when we have waited for it.
fn prove_gone(pid: u32, mut counter: Counter) -> Result<()> {
    let status = counter.child.wait().context("wait for the frozen counter")?;
    ensure!(
        status.signal() == Some(libc::SIGKILL),
        "the counter ended with {status} instead of being frozen"
    );
    ensure!(
        !Path::new(&format!("/proc/{pid}")).exists(),
        "process {pid} is still there"
    );
    Ok(())
}

/// The counter, or the thaw that it lives in. Ended when dropped.
struct Counter {
    child: Child,
    lines: std::io::Lines<BufReader<std::process::ChildStdout>>,
}

impl Counter {
    fn start(command: &mut Command) -> Result<Self> {
        let mut child = command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()
            .with_context(|| format!("start {command:?}"))?;
        let stdout = child.stdout.take().expect("it was asked for");
        Ok(Counter {
            child,
            lines: BufReader::new(stdout).lines(),
        })
    }

    /// Shows numbers from after `counted` up to `until`, or the end of the output, and returns the last one.
    fn watch(&mut self, mut counted: u64, until: u64, pid: u32, stage: &mut Stage) -> Result<u64> {
        while counted < until {
            let Some(line) = self.lines.next() else { break };
            let line = line.context("read what the counter writes")?;
            let number: u64 = line.parse().with_context(|| format!("the counter wrote {line:?}"))?;
            ensure!(number == counted + 1, "the counter wrote {number} after {counted}");
            counted = number;
            stage.count(pid, number)?;
        }
        stage.end_of_count()?;
        Ok(counted)
    }
}

impl Drop for Counter {
    fn drop(&mut self) {
        // Where it has ended, which is as it should be, there is nothing to end.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Where the show takes place: a terminal, where a line changes, or plain text.
struct Stage {
    out: Option<std::io::Stdout>,
    terminal: bool,
    style: Style,
    /// Nothing is written on the current line yet.
    fresh_line: bool,
}

impl Stage {
    fn of_stdout() -> Self {
        let out = std::io::stdout();
        Stage {
            terminal: out.is_terminal(),
            out: Some(out),
            style: Style::of_stdout(),
            fresh_line: true,
        }
    }

    fn silent() -> Self {
        Stage {
            out: None,
            terminal: false,
            style: Style::plain(),
            fresh_line: true,
        }
    }

    fn say(&self, line: &str) -> Result<()> {
        self.write(&format!("{line}\n"))
    }

    fn count(&mut self, pid: u32, number: u64) -> Result<()> {
        const SPINNER: [&str; 4] = ["|", "/", "-", "\\"];
        let indent = std::mem::take(&mut self.fresh_line);
        if !self.terminal {
            return self.write(&format!("{}{number} ", if indent { "   " } else { "" }));
        }
        let bar = "#".repeat(number as usize) + &".".repeat((LAST - number.min(LAST)) as usize);
        let spinner = SPINNER[number as usize % SPINNER.len()];
        let number = self.style.bold(&format!("{number:3}"));
        self.write(&format!(
            "\r   process {pid} {spinner} {number} {}",
            self.style.paint(Colour::Cyan, &bar)
        ))
    }

    fn end_of_count(&mut self) -> Result<()> {
        match std::mem::replace(&mut self.fresh_line, true) {
            true => Ok(()),
            false => self.write("\n"),
        }
    }

    /// A moment of silence.
    fn rest(&self, line: &str) -> Result<()> {
        self.write(line)?;
        for _ in 0..3 {
            std::thread::sleep(4 * STEP);
            self.write(" .")?;
        }
        self.write("\n")
    }

    fn write(&self, text: &str) -> Result<()> {
        if let Some(mut out) = self.out.as_ref() {
            out.write_all(text.as_bytes())?;
            out.flush()?;
        }
        Ok(())
    }
}

/// A directory for the image, which goes with all that is in it.
struct Scratch(PathBuf);

impl Scratch {
    fn make() -> Result<Self> {
        let path = std::env::temp_dir().join(format!("cryopod-demo-{}", std::process::id()));
        let made = DirBuilder::new().mode(0o700).create(&path);
        made.with_context(|| format!("make the directory {}", path.display()))?;
        Ok(Scratch(path))
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        if let Err(e) = fs::remove_dir_all(&self.0) {
            eprintln!("cryopod: remove {}: {e}", self.0.display());
        }
    }
}

/// The counter itself: what `cryopod demo-counter` runs.
pub mod counter {
    use super::{LAST, STEP};
    use anyhow::{Context, Result, ensure};
    use std::io::Write;
    use std::process::ExitCode;
    use std::sync::mpsc::channel;

    /// Writes the numbers from 1 on; a second thread keeps the sum of their squares and checks it by the formula.
    pub fn run() -> Result<ExitCode> {
        let (to_checker, numbers) = channel::<u64>();
        let (confirm, confirmed) = channel::<u64>();
        let checker = std::thread::spawn(move || {
            let mut sum = 0;
            for n in numbers {
                sum += n * n;
                assert_eq!(sum, n * (n + 1) * (2 * n + 1) / 6, "the sum of squares up to {n}");
                if confirm.send(n).is_err() {
                    break;
                }
            }
        });
        for n in 1..=LAST {
            to_checker.send(n).context("the checking thread is gone")?;
            ensure!(
                confirmed.recv().context("a sum was wrong")? == n,
                "the checking thread is out of step"
            );
            writeln!(std::io::stdout(), "{n}")?;
            std::thread::sleep(STEP);
        }
        drop(to_checker);
        checker.join().expect("all sums were right");
        Ok(ExitCode::SUCCESS)
    }
}
