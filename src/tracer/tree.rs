//! Stopping whole trees of processes as one consistent cut: when all stand still, nobody below the named ones is missing.

use std::collections::{HashMap, HashSet};
use std::time::Instant;

use anyhow::{Context, bail};
use nix::unistd::Pid;

use super::Result;
use super::nursery::Nursery;
use super::proc::{ProcDir, Stat};
use super::process::StoppedProcess;
use super::seize::seize_member;
use crate::sys::process::boottime_ticks;

/// Processes all of which are in ptrace-stop, with everybody below the ones that were named. Dropping it lets all go on as they were.
#[derive(Debug)]
pub struct StoppedTree {
    /// Each before its children.
    processes: Vec<StoppedProcess>,
    /// Before the first was told to stop.
    since: Instant,
}

/// A process that has ended and whose parent, one of the tree, has not waited for it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ended {
    pub pid: Pid,
    pub stat: Stat,
    /// The real user id.
    pub uid: u32,
}

/// So often a tree is seized from the beginning whose processes have lost somebody meanwhile.
const MAX_ATTEMPTS: usize = 5;

impl StoppedTree {
    /// Stops the processes and all below them. What stands against it is the error [`Refused`](crate::refusal::Refused); then, and on any
    /// other error, all go on as they were.
    pub fn seize(roots: &[Pid]) -> anyhow::Result<Self> {
        for _ in 0..MAX_ATTEMPTS {
            let since = Instant::now();
            let born_since = boottime_ticks().context("clock_gettime CLOCK_BOOTTIME")?;
            let mut hunt = Hunt {
                last_pid: last_pid()?,
                ..Hunt::default()
            };
            for &root in roots {
                hunt.take(root, true)?;
            }
            if let Hunted::All = hunt.down(born_since)? {
                return Ok(StoppedTree {
                    processes: hunt.caught,
                    since,
                });
            }
        }
        bail!(
            "processes are orphaned in the session of pid {} faster than they can be stopped, and nobody can tell whose they are: try again",
            roots[0]
        )
    }

    pub fn processes(&self) -> &[StoppedProcess] {
        &self.processes
    }

    pub fn processes_mut(&mut self) -> &mut [StoppedProcess] {
        &mut self.processes
    }

    pub fn first(&self) -> &StoppedProcess {
        &self.processes[0]
    }

    pub fn stopped_since(&self) -> Instant {
        self.since
    }

    /// Ended children of the processes; and whether there is one that lives and was not stopped, made in a moment in which its parent ran for
    /// the sake of a signal.
    pub fn ended(&self) -> anyhow::Result<(Vec<Ended>, Option<Pid>)> {
        let known: HashSet<Pid> = self.processes.iter().map(StoppedProcess::pid).collect();
        let (mut ended, mut missing) = (Vec::new(), None);
        for process in &self.processes {
            let children = process.children().context("children")?;
            for child in children.into_iter().filter(|child| !known.contains(child)) {
                let Ok(proc) = ProcDir::open(child) else { continue };
                match look_at_dead(child, &proc) {
                    Some(dead) => ended.push(dead),
                    None if proc.stat().is_ok_and(|stat| !is_copy(&stat)) => missing = Some(child),
                    None => {}
                }
            }
        }
        Ok((ended, missing))
    }

    /// Everything goes on as it was.
    pub fn resume(self) -> Result<()> {
        let mut outcome = Ok(());
        for process in self.processes {
            match process.resume() {
                Err(error) if outcome.is_ok() => outcome = Err(error),
                _ => {}
            }
        }
        outcome
    }

    /// Ends all, and waits until each is gone or a zombie.
    pub fn end(self) -> anyhow::Result<()> {
        // All before any is waited for, so that none finds out that another is gone.
        self.processes.iter().try_for_each(StoppedProcess::kill)?;
        let mut all = self.processes.into_iter().rev();
        all.try_for_each(StoppedProcess::wait_for_end)
    }

    /// Stopped as by SIGSTOP once this returns.
    pub fn leave_stopped(self) -> anyhow::Result<()> {
        // Children first: a parent that ran could continue them.
        self.processes
            .into_iter()
            .rev()
            .try_for_each(StoppedProcess::leave_stopped)
    }
}

enum Hunted {
    All,
    /// Somebody may have got away.
    Uncertain,
}

#[derive(Default)]
struct Hunt {
    /// Before anybody was stopped.
    last_pid: i32,
    caught: Vec<StoppedProcess>,
    known: HashSet<Pid>,
    /// Found ended, or a copy that another freeze has made.
    dead: HashSet<Pid>,
    /// Born of one that was traced already, and traced therefore.
    nursery: Nursery,
}

impl Hunt {
    /// One that is gone or a zombie is no member, unless it was asked for by name.
    fn take(&mut self, pid: Pid, by_name: bool) -> anyhow::Result<()> {
        if self.known.contains(&pid) {
            return Ok(());
        }
        if !by_name && !is_member(pid) {
            self.dead.insert(pid);
            return Ok(());
        }
        match seize_member(pid, &mut self.nursery) {
            Ok(process) => {
                self.known.insert(pid);
                self.caught.push(process);
                Ok(())
            }
            Err(_ended) if !by_name && !is_member(pid) => {
                self.dead.insert(pid);
                Ok(())
            }
            Err(error) => Err(error),
        }
    }

    /// Everybody below those that were caught. A parent that stands still makes no more children, but those of a process that ended before it
    /// was stopped become children of another one, here or outside: so this goes on until nobody new is there, nor anybody newly dead.
    fn down(&mut self, born_since: u64) -> anyhow::Result<Hunted> {
        loop {
            let before = (self.known.len(), self.dead.len());
            let mut looked = 0;
            while looked < self.caught.len() {
                for child in self.caught[looked].children().context("children")? {
                    self.take(child, false)?;
                }
                looked += 1;
            }
            let (ours, strays) = self.orphans(born_since)?;
            for pid in ours {
                self.take(pid, false)?;
            }
            if (self.known.len(), self.dead.len()) == before {
                self.sort();
                return Ok(if strays { Hunted::Uncertain } else { Hunted::All });
            }
        }
    }

    /// Processes born since whose parents are gone: those who are certainly ours, as their session or group is led by one of us or because they
    /// were born of one that we traced, and whether there are others in a session or group that we have in common with the world.
    fn orphans(&self, born_since: u64) -> anyhow::Result<(Vec<Pid>, bool)> {
        let mut ours: Vec<Pid> = self.nursery.tids();
        if last_pid()? == self.last_pid {
            return Ok((ours, false));
        }
        let stats = self.caught.iter().filter_map(|process| process.proc.stat().ok());
        let groups: HashSet<i32> = stats.map(|stat| stat.pgid).collect();
        let pids: HashSet<i32> = self.known.iter().map(|pid| pid.as_raw()).collect();
        let mut strays = false;
        for entry in std::fs::read_dir("/proc").context("read /proc")?.flatten() {
            let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse().ok()) else {
                continue;
            };
            let Ok(stat) = ProcDir::open(Pid::from_raw(pid)).and_then(|proc| proc.stat()) else {
                continue;
            };
            let news =
                stat.start_time >= born_since && !stat.is_dead() && !pids.contains(&pid) && !pids.contains(&stat.ppid);
            if !news || pid == std::process::id() as i32 {
                continue;
            }
            if pids.contains(&stat.sid) || pids.contains(&stat.pgid) {
                ours.push(Pid::from_raw(pid));
            } else if groups.contains(&stat.pgid) && stat.ppid == 1 {
                strays = true;
            }
        }
        Ok((ours, strays))
    }

    /// Parents before their children, in the order in which they were found otherwise.
    fn sort(&mut self) {
        let parent = |process: &StoppedProcess| process.proc.stat().map_or(0, |stat| stat.ppid);
        let all = self
            .caught
            .iter()
            .map(|process| (process.pid.as_raw(), parent(process)));
        let parents: HashMap<i32, i32> = all.collect();
        self.caught.sort_by_cached_key(|process| {
            let ancestors = std::iter::successors(parents.get(&process.pid.as_raw()), |pid| parents.get(pid));
            // No more than there are, whatever /proc says.
            ancestors.take(parents.len()).count()
        });
    }
}

fn is_member(pid: Pid) -> bool {
    match ProcDir::open(pid).and_then(|proc| Ok((proc.stat()?, proc.tids()?))) {
        Ok((stat, tids)) => (!stat.is_dead() || tids.len() > 1) && !is_copy(&stat),
        Err(_gone) => false,
    }
}

/// What another freeze has made of a process to read its memory, see [`MemoryCopy`](super::MemoryCopy).
fn is_copy(stat: &Stat) -> bool {
    stat.exit_signal == super::copy::EXIT_SIGNAL
}

/// The number that was given to a new task last (proc_loadavg(5)): while it is the same, nobody was born.
fn last_pid() -> anyhow::Result<i32> {
    let text = std::fs::read_to_string("/proc/loadavg").context("read /proc/loadavg")?;
    let last = text.split_whitespace().last().and_then(|last| last.parse().ok());
    last.with_context(|| format!("/proc/loadavg reads {text:?}"))
}

fn look_at_dead(pid: Pid, proc: &ProcDir) -> Option<Ended> {
    let stat = proc.stat().ok()?;
    let status = super::proc::Status(proc.read("status").ok()?);
    let uid = status.number("Uid").and_then(|uid| u32::try_from(uid).ok())?;
    (stat.is_dead() && !is_copy(&stat)).then_some(Ended { pid, stat, uid })
}
