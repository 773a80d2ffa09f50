//! Facts about this machine and about ourselves that a plan needs.
#![deny(unsafe_code)]

use std::collections::HashSet;
use std::fs;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};

use crate::arch;
use crate::collect::{ProcDir, Status, TaskFlags, clocks, limits, login_uid, scheduling, security_label};
use crate::image::state::ThreadSettings;
use crate::image::state::{Credentials, Snapshot};
use crate::refusal::Refusal;
use crate::resurrect::Inherited;
use crate::resurrect::plan::settings::Surroundings;
use crate::resurrect::plan::{Machine, Taken};
use crate::resurrect::timens::{HostClocks, TimeOffsets};
use crate::sys::settings;

const CAP_SYS_ADMIN: u64 = 1 << 21;
const CAP_SYS_RESOURCE: u64 = 1 << 24;
const CAP_SYS_TIME: u64 = 1 << 25;
const CAP_CHECKPOINT_RESTORE: u64 = 1 << 40;

pub fn look(snapshot: &Snapshot) -> Result<Machine> {
    let own = own_directory()?;
    let status = Status::of(&own)?;
    let can = |capability: u64| status.credentials.effective & capability != 0;
    let clocks = clocks(&own)?;
    let offsets = TimeOffsets {
        monotonic_ns: clocks.monotonic_offset_ns,
        boottime_ns: clocks.boottime_offset_ns,
    };
    Ok(Machine {
        boot_id: read_line("/proc/sys/kernel/random/boot_id")?,
        clocks: HostClocks {
            monotonic_ns: clocks.monotonic_ns - offsets.monotonic_ns,
            monotonic_raw_ns: clocks.monotonic_raw_ns - offsets.monotonic_ns,
            boottime_ns: clocks.boottime_ns - offsets.boottime_ns,
            own_offsets: offsets,
        },
        pid_max: read_line("/proc/sys/kernel/pid_max")?
            .parse()
            .context("kernel.pid_max")?,
        can_choose_pids: can(CAP_CHECKPOINT_RESTORE) || can(CAP_SYS_ADMIN),
        can_set_clocks: can(CAP_SYS_ADMIN) && can(CAP_SYS_TIME) && fs::exists("/proc/self/ns/time")?,
        can_raise_limits: can(CAP_SYS_RESOURCE),
        credentials: Credentials {
            securebits: crate::sys::securebits().context("prctl(PR_GET_SECUREBITS)")?,
            ..status.credentials.clone()
        },
        rlimits: limits(&own)?,
        oom_score_adj: read_line("/proc/self/oom_score_adj")?
            .parse()
            .context("oom_score_adj")?,
        taken: taken_for_long(snapshot),
        lacking: lacking(snapshot),
        surroundings: Surroundings {
            speculation: settings::speculation(),
            nodes: nodes_online(),
            mdwe: settings::mdwe(),
            io_flusher: TaskFlags::of(&own)?.io_flusher(),
            label: security_label(&own)?,
            is_admin: can(CAP_SYS_ADMIN),
            is_filtered: status.seccomp != 0,
        },
        max_mappings: read_line("/proc/sys/vm/max_map_count")?
            .parse()
            .context("vm.max_map_count")?,
    })
}

/// What the stub will have of us, whose `credentials` these are.
pub fn inherited(credentials: Credentials) -> Result<Inherited> {
    let own = std::process::id().cast_signed();
    Ok(Inherited {
        credentials,
        scheduling: scheduling(own, own_timer_slack()?)?,
        settings: own_settings()?,
    })
}

/// Those that a thread passes on and that [`resurrect`](crate::resurrect) compares with.
fn own_settings() -> Result<ThreadSettings> {
    Ok(ThreadSettings {
        io_flusher: TaskFlags::of(&own_directory()?)?.io_flusher(),
        login_uid: login_uid(&own_directory()?)?,
        speculation: settings::speculation(),
        ..ThreadSettings::default()
    })
}

fn own_directory() -> Result<ProcDir> {
    ProcDir::by_pid(std::process::id().cast_signed()).context("open /proc/self")
}

fn read_line(path: &str) -> Result<String> {
    Ok(fs::read_to_string(path)
        .with_context(|| format!("read {path}"))?
        .trim()
        .to_owned())
}

/// `0-1,4` of sysfs as a mask. Without CONFIG_NUMA there is no such file: all memory is node 0.
fn nodes_online() -> Vec<u8> {
    let list = fs::read_to_string("/sys/devices/system/node/has_memory");
    mask(list.as_deref().unwrap_or("0").trim()).unwrap_or_else(|| vec![1])
}

fn mask(list: &str) -> Option<Vec<u8>> {
    let mut mask = Vec::new();
    for range in list.split(',').filter(|range| !range.is_empty()) {
        let (first, last) = range.split_once('-').unwrap_or((range, range));
        for node in first.parse::<usize>().ok()?..=last.parse().ok()? {
            mask.resize(mask.len().max(node / 8 + 1), 0);
            mask[node / 8] |= 1 << (node % 8);
        }
    }
    Some(mask)
}

/// CPU features that the machine of the freeze had and this one lacks, as a refusal and as a warning.
pub fn against_features(snapshot: &Snapshot) -> Result<Option<(Refusal, String)>> {
    let own = arch::cpu_features().context("/proc/cpuinfo")?;
    let wanted = snapshot.host.cpu_features.iter();
    let lacking: Vec<&str> = wanted
        .filter(|feature| !own.contains(*feature))
        .map(String::as_str)
        .collect();
    if lacking.is_empty() {
        return Ok(None);
    }
    let lacking = lacking.join(", ");
    let reason = format!("may use what this CPU lacks and that of the freeze had: {lacking}");
    let remedy = "thaw it on a machine that has it, or, if you know that it uses none of this, with --cpu-check=warn";
    let warning = format!("this CPU lacks what the program may use: {lacking}");
    let refusal = Refusal::new(snapshot.processes[0].pid, "its code", reason, remedy);
    Ok(Some((refusal, warning)))
}

fn lacking(snapshot: &Snapshot) -> Vec<(i32, String)> {
    let threads = snapshot.processes.iter().flat_map(|process| &process.threads);
    let lacking = threads.map(|thread| {
        let sets = thread.regsets.iter();
        let features: Vec<String> = sets
            .flat_map(|set| arch::unsupported_features(set.note, &set.data))
            .collect();
        (thread.tid, features.join(", "))
    });
    lacking.filter(|(_, features)| !features.is_empty()).collect()
}

/// How long init may take to wait for what was left to it, as the processes of a tree are that was just frozen; and another parent.
const INITS_PATIENCE: Duration = Duration::from_secs(5);
const PATIENCE: Duration = Duration::from_millis(500);

fn patience(is_zombie: bool, parent: i32) -> Duration {
    match (is_zombie, parent) {
        (true, 1) => INITS_PATIENCE,
        (true, _) => PATIENCE,
        (false, _) => Duration::ZERO,
    }
}

/// As [`taken_ids`], without those that are free in a moment.
fn taken_for_long(snapshot: &Snapshot) -> Vec<Taken> {
    let begin = Instant::now();
    loop {
        let taken = taken_ids(snapshot);
        if taken.iter().all(|taken| begin.elapsed() >= taken.patience) {
            return taken;
        }
        // What is not going to be free is told at once.
        if taken.iter().any(|taken| taken.patience.is_zero()) {
            return taken;
        }
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// Ids of the image that are in use. Every task answers under /proc/TID, threads that no listing shows included; an id is also held by
/// a process group or session whose leader has ended.
pub fn taken_ids(snapshot: &Snapshot) -> Vec<Taken> {
    let ids: HashSet<i32> = snapshot.ids().collect();
    let mut taken: Vec<Taken> = ids.iter().filter_map(|id| taken_by_task(*id)).collect();
    for member in members() {
        for (id, what) in [(member.group, "process group"), (member.session, "session")] {
            if ids.contains(&id) && !taken.iter().any(|taken| taken.id == id) {
                taken.push(Taken {
                    id,
                    holder: format!("a {what} without its leader, of pid {} ({})", member.pid, member.name),
                    remedy: format!("wait until it has ended, or end it: kill {}", member.pid),
                    patience: member.patience,
                });
            }
        }
    }
    taken
}

/// A process as a member of its process group and session.
struct Member {
    pid: i32,
    name: String,
    group: i32,
    session: i32,
    patience: Duration,
}

/// All processes; those that end meanwhile hold nothing any more.
fn members() -> impl Iterator<Item = Member> {
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    entries.filter_map(|entry| {
        let pid = entry.file_name().to_str()?.parse().ok()?;
        let stat = fs::read(entry.path().join("stat")).ok()?;
        member(pid, &String::from_utf8_lossy(&stat))
    })
}

/// From a line of /proc/PID/stat (proc_pid_stat(5)): the name may hold anything, the last parenthesis ends it.
fn member(pid: i32, stat: &str) -> Option<Member> {
    let (head, tail) = stat.rsplit_once(')')?;
    let (_, name) = head.split_once('(')?;
    // state, ppid, pgrp, session.
    let mut fields = tail.split_ascii_whitespace();
    let (state, parent) = (fields.next()?, fields.next()?);
    Some(Member {
        pid,
        name: name.to_owned(),
        patience: patience(state == "Z", parent.parse().ok()?),
        group: fields.next()?.parse().ok()?,
        session: fields.next()?.parse().ok()?,
    })
}

fn taken_by_task(id: i32) -> Option<Taken> {
    let status = Status::of(&ProcDir::by_pid(id).ok()?).ok()?;
    // It may be gone by now; then the id is free, or clone3 will say that it is not.
    let name = fs::read_to_string(format!("/proc/{id}/comm")).ok()?;
    let name = name.trim_end();
    let remedy = format!("wait until it has ended, or end it: kill {}", status.tgid);
    let (holder, remedy) = match status.state {
        'Z' => {
            let holder = format!(
                "{name}, which has ended and whose parent, pid {}, has not waited for it",
                status.ppid
            );
            (
                holder,
                format!("wait until pid {} has done so, or end that", status.ppid),
            )
        }
        _ if status.tgid != id => (format!("a thread of pid {} ({name})", status.tgid), remedy),
        _ => (format!("process {name}"), remedy),
    };
    Some(Taken {
        id,
        holder,
        remedy,
        patience: patience(status.state == 'Z', status.ppid),
    })
}

fn own_timer_slack() -> Result<u64> {
    let slack = nix::sys::prctl::get_timerslack().context("PR_GET_TIMERSLACK")?;
    Ok(slack.unsigned_abs().into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_of_nodes_are_read() {
        assert_eq!(mask("0-1,8").unwrap(), [0b11, 1]);
        assert!(mask("").unwrap().is_empty());
        assert!(mask("a").is_none());
    }

    #[test]
    fn a_name_with_parentheses_does_not_hide_a_group() {
        let found = member(7, "7 (a) S 1 (b)) S 1 77 78 0 -1 4194304").expect("it is a line of stat");
        assert_eq!((found.group, found.session, &*found.name), (77, 78, "a) S 1 (b)"));
        assert!(member(7, "7 (a").is_none());
    }
}
