//! A program that has set everything is the same after a freeze and a thaw, in all that /proc shows and that getters tell, but for what
//! `exact/known.rs` lists with its reason. And nothing creeps: ten freezes and thaws leave a process as it was.

mod common;
#[path = "exact/known.rs"]
mod known;
#[path = "exact/seen.rs"]
mod seen;

use common::{Program, build, can_thaw, scratch};
use nix::sys::signal::Signal;
use seen::Seen;
use std::collections::BTreeMap;
use std::path::Path;

/// The program, and how often it was asked.
struct Subject {
    program: Program,
    asked: usize,
}

impl Subject {
    fn start(dir: &Path) -> Self {
        let mut program = Program::start(build::fixture("exact/everything.c").current_dir(dir));
        program.wait_for(|line| line == "READY");
        let mut subject = Subject { program, asked: 0 };
        // What it touches when it is asked is touched from now on.
        for _ in 0..3 {
            subject.ask();
        }
        subject
    }

    /// What the getters tell: `0.PR_GET_DUMPABLE` → `0`.
    fn ask(&mut self) -> BTreeMap<String, String> {
        self.program.signal(Signal::SIGUSR1);
        let (lines, asked) = (self.program.output.clone(), self.asked);
        common::wait_until("the program's answer", || ends(&lines.lines()) > asked);
        self.asked += 1;
        let lines = self.program.output.lines();
        let begin = lines.iter().rposition(|line| line == "BEGIN").expect("it began");
        let answers = lines[begin + 1..].iter().take_while(|line| *line != "END");
        answers
            .map(|line| line.split_once('=').unwrap_or((line, "")))
            .map(|(name, value)| (format!("getter {name}"), value.to_owned()))
            .collect()
    }

    /// All that it and /proc tell, once all its threads wait.
    fn look(&mut self) -> BTreeMap<String, String> {
        let mut all = self.ask();
        let pid = self.program.pid;
        common::wait_until("all threads to sleep", || {
            let tasks = std::fs::read_dir(format!("/proc/{pid}/task")).expect("it lives");
            tasks.flatten().all(|task| {
                let stat = std::fs::read_to_string(task.path().join("stat")).unwrap_or_default();
                stat.rsplit_once(") ")
                    .is_some_and(|(_, fields)| fields.starts_with('S'))
            })
        });
        let seen = Seen::of(pid);
        assert!(seen.unknown.is_empty(), "nobody has decided about {:#?}", seen.unknown);
        all.extend(seen.values);
        all
    }

    fn cycle(self, image: &Path) -> Self {
        let pid = self.program.pid;
        self.program.freeze(image);
        Subject {
            program: Program::thaw(image, pid),
            asked: 0,
        }
    }
}

fn ends(lines: &[String]) -> usize {
    lines.iter().filter(|line| *line == "END").count()
}

fn differences(before: &BTreeMap<String, String>, after: &BTreeMap<String, String>) -> Vec<String> {
    let nothing = || "nothing".to_owned();
    let names: std::collections::BTreeSet<_> = before.keys().chain(after.keys()).collect();
    let differs = names.into_iter().filter(|name| before.get(*name) != after.get(*name));
    differs
        .map(|name| {
            let (was, is) = (before.get(name), after.get(name));
            format!(
                "{name}: was {:?}, is {:?}",
                was.cloned().unwrap_or_else(nothing),
                is.cloned().unwrap_or_else(nothing)
            )
        })
        .collect()
}

fn stays_the_same(times: usize) {
    if !can_thaw() {
        return;
    }
    let dir = scratch();
    let mut subject = Subject::start(dir.path());
    let before = subject.look();
    for n in 0..times {
        subject = subject.cycle(&dir.path().join(format!("{n}.img")));
        let differences = differences(&before, &subject.look());
        assert!(differences.is_empty(), "after {} thaws: {differences:#?}", n + 1);
    }
}

#[test]
fn nothing_that_can_be_seen_is_different_after_a_thaw() {
    stays_the_same(1);
}

#[test]
fn nothing_that_can_be_seen_is_different_after_two() {
    stays_the_same(2);
}

/// Without a freeze there is no difference either: the test compares nothing that moves by itself.
#[test]
fn two_looks_at_an_undisturbed_program_are_the_same() {
    let dir = scratch();
    let mut subject = Subject::start(dir.path());
    let before = subject.look();
    let differences = differences(&before, &subject.look());
    assert!(differences.is_empty(), "{differences:#?}");
    assert!(before.len() > 1000, "only {} things were compared", before.len());
}

/// A freeze that leaves it running changes nothing.
#[test]
fn a_freeze_that_leaves_it_running_is_not_seen() {
    let dir = scratch();
    let mut subject = Subject::start(dir.path());
    let before = subject.look();
    subject
        .program
        .freeze_with(&dir.path().join("running.img"), &["--leave-running"]);
    let differences = differences(&before, &subject.look());
    assert!(differences.is_empty(), "{differences:#?}");
}

/// Sums over all mappings: what creeps shows here.
fn totals(pid: i32) -> BTreeMap<String, String> {
    let rollup = std::fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).expect("smaps_rollup");
    let sums = rollup.lines().filter_map(|line| line.split_once(':'));
    let sums = sums.filter(|(name, _)| ["Anonymous", "Locked", "Shared_Hugetlb", "Private_Hugetlb"].contains(name));
    sums.map(|(name, value)| (name.to_owned(), value.trim().to_owned()))
        .collect()
}

#[test]
fn ten_freezes_and_thaws_leave_it_as_it_was() {
    if !can_thaw() {
        return;
    }
    let dir = scratch();
    let mut subject = Subject::start(dir.path());
    let (before, sums) = (subject.look(), totals(subject.program.pid));
    for _ in 0..10 {
        subject = subject.cycle(&dir.path().join("app.img"));
    }
    let mut differences = differences(&before, &subject.look());
    differences.extend(self::differences(&sums, &totals(subject.program.pid)));
    assert!(differences.is_empty(), "{differences:#?}");
}
