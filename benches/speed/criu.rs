//! CRIU on the same programs, where it is installed.

use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::{Context, Result};

use crate::Settings;
use crate::command::{self, Target};
use crate::report::{Report, Row};

/// Dumps and restores `target`, which runs again afterwards.
pub fn measure(settings: &Settings, report: &mut Report, name: &str, target: &Target, directory: &Path) -> Result<()> {
    if !is_installed() {
        return Ok(());
    }
    let images = directory.join(format!("cryopod-bench-criu-{}", std::process::id()));
    let (mut dumps, mut restores) = (Vec::new(), Vec::new());
    for _ in 0..settings.rounds(5) {
        let _left_by_nobody = std::fs::remove_dir_all(&images);
        std::fs::create_dir(&images).with_context(|| format!("create {}", images.display()))?;
        let mut dump = criu("dump", &images);
        dumps.push(command::run(dump.args(["-t", &target.pid.to_string()]))?);
        command::wait(target.pid)?;
        restores.push(command::run(criu("restore", &images).arg("-d"))?);
    }
    std::fs::remove_dir_all(&images).with_context(|| format!("remove {}", images.display()))?;
    report.add(Row::of_runs(format!("criu dump {name}"), &dumps));
    report.add(Row::of_runs(format!("criu restore {name}"), &restores));
    Ok(())
}

fn criu(verb: &str, images: &Path) -> Command {
    let mut command = Command::new("criu");
    command.arg(verb).arg("-D").arg(images).args(["--shell-job", "-v0"]);
    command
}

fn is_installed() -> bool {
    let version = Command::new("criu")
        .arg("--version")
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status();
    version.is_ok_and(|status| status.success())
}
