//! The command line as users see it: help, exit codes, names it answers to, and what it installs.

mod common;

use common::{CRYOPOD, can_thaw, scratch};
use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, Output};

fn cryopod(args: &[&str]) -> Output {
    Command::new(CRYOPOD).args(args).output().expect("cryopod can be run")
}

fn stdout(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned()
}

fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// A pid that nobody has: that of a child which has ended.
fn free_pid() -> String {
    let mut child = Command::new("true").spawn().expect("true(1) is there");
    child.wait().expect("it is our child");
    child.id().to_string()
}

#[test]
fn help_names_every_command_and_shows_examples() {
    let help = cryopod(&["--help"]);
    assert!(help.status.success());
    for word in [
        "freeze",
        "thaw",
        "inspect",
        "verify",
        "check",
        "demo",
        "end",
        "resume",
        "Examples:",
        "Exit codes:",
    ] {
        assert!(stdout(&help).contains(word), "{word} is missing in {}", stdout(&help));
    }
    assert!(!stdout(&help).contains("demo-counter"));
}

#[test]
fn every_command_has_help() {
    for command in [
        "freeze", "thaw", "inspect", "verify", "check", "demo", "end", "resume", "generate", "install",
    ] {
        let help = cryopod(&[command, "--help"]);
        assert!(help.status.success(), "{command}");
        assert!(stdout(&help).contains("Usage:"), "{command}");
    }
}

#[test]
fn usage_errors_end_with_2() {
    for wrong in [
        &["freeze"][..],
        &["thaw"],
        &["nonsense"],
        &["freeze", "1", "--nonsense"],
        &[],
    ] {
        let output = cryopod(wrong);
        assert_eq!(output.status.code(), Some(2), "{wrong:?}: {}", stderr(&output));
    }
}

#[test]
fn an_error_is_one_sentence_that_begins_with_the_name() {
    let output = cryopod(&["inspect", "/nowhere/app.img"]);
    assert_eq!(output.status.code(), Some(1));
    assert!(stderr(&output).starts_with("cryopod: "), "{}", stderr(&output));
    assert!(stderr(&output).contains("/nowhere/app.img"));
    assert!(stderr(&output).contains("No such file or directory"));
    assert_eq!(stderr(&output).lines().count(), 1, "{}", stderr(&output));
}

#[test]
fn freezing_a_pid_that_is_gone_fails() {
    let dir = scratch();
    let image = dir.path().join("app.img");
    let pid = free_pid();
    let output = Command::new(CRYOPOD)
        .args(["freeze", &pid, "-o"])
        .arg(&image)
        .output()
        .expect("cryopod runs");
    assert!(
        matches!(output.status.code(), Some(1 | 3)),
        "{}: {}",
        output.status,
        stderr(&output)
    );
    assert!(stderr(&output).contains(&pid), "{}", stderr(&output));
    assert!(!image.exists());
}

#[test]
fn thaw_reports_its_own_failure_as_125() {
    let dir = scratch();
    let image = dir.path().join("damaged.img");
    fs::write(&image, b"this is no image").expect("the directory takes a file");
    let foreground = Command::new(CRYOPOD)
        .arg("thaw")
        .arg(&image)
        .output()
        .expect("cryopod runs");
    assert_eq!(foreground.status.code(), Some(125), "{}", stderr(&foreground));
    let detached = Command::new(CRYOPOD)
        .args(["thaw", "-d"])
        .arg(&image)
        .output()
        .expect("cryopod runs");
    assert_eq!(detached.status.code(), Some(1), "{}", stderr(&detached));
}

#[test]
fn links_are_commands() {
    let dir = scratch();
    for name in ["freeze", "thaw", "inspect"] {
        let link = dir.path().join(name);
        symlink(CRYOPOD, &link).expect("the directory takes a link");
        let by_link = Command::new(&link)
            .arg("--help")
            .output()
            .expect("the link leads to cryopod");
        assert_eq!(stdout(&by_link), stdout(&cryopod(&[name, "--help"])));
        let wrong = Command::new(&link)
            .arg("--nonsense")
            .output()
            .expect("the link leads to cryopod");
        assert_eq!(wrong.status.code(), Some(2));
    }
    let by_name = Command::new(CRYOPOD)
        .arg0("freeze")
        .arg("--help")
        .output()
        .expect("cryopod runs");
    assert_eq!(stdout(&by_name), stdout(&cryopod(&["freeze", "--help"])));
}

#[test]
fn man_pages_and_completions_are_generated() {
    let dir = scratch();
    let path = dir.path().to_str().expect("a plain name");
    assert!(cryopod(&["generate", "man", path]).status.success());
    for page in [
        "cryopod",
        "cryopod-freeze",
        "cryopod-thaw",
        "cryopod-inspect",
        "cryopod-verify",
        "cryopod-check",
    ] {
        let text = fs::read_to_string(dir.path().join(format!("{page}.1"))).expect("the page is there");
        assert!(text.contains(".TH"), "{page}");
    }
    assert!(!dir.path().join("cryopod-demo-counter.1").exists());
    assert!(cryopod(&["generate", "completions", path]).status.success());
    for file in ["cryopod.bash", "_cryopod", "cryopod.fish"] {
        let text = fs::read_to_string(dir.path().join(file)).expect("the completions are there");
        assert!(text.contains("leave-running"), "{file}");
    }
}

#[test]
fn install_puts_everything_in_its_place() {
    let dir = scratch();
    let path = dir.path().to_str().expect("a plain name");
    for _ in 0..2 {
        let output = cryopod(&["install", "--prefix", "/opt/cryopod", "--destdir", path]);
        assert!(output.status.success(), "{}", stderr(&output));
    }
    let prefix = dir.path().join("opt/cryopod");
    let version = Command::new(prefix.join("bin/cryopod"))
        .arg("--version")
        .output()
        .expect("it was installed");
    assert!(stdout(&version).starts_with("cryopod "));
    for name in ["freeze", "thaw", "inspect"] {
        assert_eq!(
            fs::read_link(prefix.join("bin").join(name)).expect("the link is there"),
            Path::new("cryopod")
        );
        assert!(prefix.join(format!("share/man/man1/{name}.1")).exists());
    }
    assert!(prefix.join("share/man/man1/cryopod-freeze.1").exists());
    assert!(prefix.join("share/bash-completion/completions/cryopod.bash").exists());
}

#[test]
fn install_overwrites_no_program_of_somebody_else() {
    let dir = scratch();
    let bin = dir.path().join("bin");
    fs::create_dir(&bin).expect("the directory takes another");
    fs::write(bin.join("freeze"), "somebody else's").expect("the directory takes a file");
    let output = cryopod(&["install", "--prefix", dir.path().to_str().expect("a plain name")]);
    assert_eq!(output.status.code(), Some(1));
    assert!(stderr(&output).contains("bin/freeze"), "{}", stderr(&output));
    assert_eq!(
        fs::read_to_string(bin.join("freeze")).expect("it is still there"),
        "somebody else's"
    );
}

#[test]
fn check_prints_json_and_tells_by_its_exit_code() {
    let output = cryopod(&["check", "--json"]);
    let report: serde_json::Value = serde_json::from_slice(&output.stdout).expect("it is JSON");
    let possible = report["freeze"] == true && report["thaw"] == true;
    assert_eq!(output.status.code(), Some(if possible { 0 } else { 1 }));
    let findings = report["findings"].as_array().expect("a list");
    assert!(findings.iter().any(|finding| finding["name"] == "clone3 with set_tid"));
    assert!(
        findings
            .iter()
            .all(|finding| finding["present"].is_boolean() && finding["without"].is_string())
    );
    let table = cryopod(&["check"]);
    assert!(!stdout(&table).contains('\x1b'), "no colours but on a terminal");
}

#[test]
fn the_demo_runs() {
    if !can_thaw() {
        return;
    }
    let demo = cryopod(&["demo"]);
    assert!(demo.status.success(), "{}{}", stdout(&demo), stderr(&demo));
    for text in [" is gone.", "no number is missing, none came twice"] {
        assert!(stdout(&demo).contains(text), "{}", stdout(&demo));
    }
}

#[test]
fn a_reader_that_leaves_is_no_error() {
    let script = format!("'{CRYOPOD}' check | true; exit ${{PIPESTATUS[0]}}");
    let output = Command::new("bash")
        .args(["-c", &script])
        .output()
        .expect("bash is there");
    assert!(!stderr(&output).contains("panicked"), "{}", stderr(&output));
}

/// AT_SECURE, getauxval(3): rights that come from the executable are not used for anybody.
#[test]
fn a_set_user_id_cryopod_does_nothing() {
    if !can_thaw() {
        return;
    }
    let dir = tempfile::Builder::new()
        .tempdir_in("/var/tmp")
        .expect("a directory for a copy");
    fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o755)).expect("it is ours");
    let copy = dir.path().join("cryopod");
    fs::copy(CRYOPOD, &copy).expect("the directory takes a file");
    fs::set_permissions(&copy, fs::Permissions::from_mode(0o4755)).expect("it is ours");
    let output = Command::new(&copy)
        .arg("check")
        .uid(65534)
        .gid(65534)
        .output()
        .expect("the copy runs");
    assert_eq!(output.status.code(), Some(1));
    assert!(stderr(&output).contains("does nothing"), "{}", stderr(&output));
    assert!(output.stdout.is_empty());
}
