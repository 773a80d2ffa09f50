//! Thaw side: descriptions are made in our own table, from where the owner inherits them.

use std::collections::{BTreeMap, HashSet};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use anyhow::{Context, Result, ensure};
use nix::fcntl::{FcntlArg, OFlag, fcntl};

use super::io_signals::{self, IoSignalsCall};
use super::kind::{AnyKind, Made};
use super::mqueue::MadeQueue;
use super::pty::MadePty;
use super::standard::{Pump, Stdio};
use super::{limit, shared};
use crate::image::state::{Description, Snapshot};
use crate::refusal::Refusal;

/// What stands against reopening, and what looks different from the freeze.
pub struct Check<'a> {
    pub snapshot: &'a Snapshot,
    pub stdio: &'a Stdio,
    pub refusals: Vec<Refusal>,
    pub warnings: Vec<String>,
    /// A descriptor that refers to the description being checked.
    owner: (i32, i32),
    /// Whether an epoll set watches it.
    pub(super) watched: bool,
}

impl Check<'_> {
    pub(super) fn refuse(&mut self, description: &Description, reason: impl Into<String>, remedy: impl Into<String>) {
        let (pid, fd) = self.owner;
        self.refusals.push(Refusal::new(
            pid,
            format!("fd {fd} ({})", description.label),
            reason,
            remedy,
        ));
    }

    /// Whether all descriptions and shared objects have room in our own table.
    fn limit(&mut self) {
        let wanted =
            self.snapshot.descriptions.len() + self.snapshot.shared_objects.len() + 2 * self.snapshot.ptys.len();
        let reason = limit::refusal(wanted).unwrap_or_else(|error| Some(format!("cannot be made: {error:#}")));
        if let Some(reason) = reason {
            let pid = self.snapshot.processes.first().map_or(0, |process| process.pid);
            let remedy = "raise the hard limit of descriptors of thaw (ulimit -Hn)";
            self.refusals
                .push(Refusal::new(pid, "its table of descriptors", reason, remedy));
        }
    }

    /// Whether what thaw is given is wanted.
    fn given(&mut self) {
        let leads_outside = |description: &Description| matches!(AnyKind::decode(description), Ok(AnyKind::Outside(_)));
        for (label, _) in &self.stdio.given {
            let mut all = self.snapshot.descriptions.iter();
            if !all.any(|description| description.label == *label && leads_outside(description)) {
                let pid = self.snapshot.processes.first().map_or(0, |process| process.pid);
                let reason = "is no pipe or terminal of the image that led outside";
                let object = format!("--inherit-fd {label}");
                self.refusals
                    .push(Refusal::new(pid, object, reason, "see what there is: cryopod inspect"));
            }
        }
    }

    pub(super) fn warn(&mut self, description: &Description, what: &str) {
        let (pid, fd) = self.owner;
        self.warnings
            .push(format!("pid {pid}: fd {fd} ({}) {what}", description.label));
    }
}

/// Looks at everything that descriptors of the image refer to, before anything is made.
pub fn check<'a>(snapshot: &'a Snapshot, stdio: &'a Stdio) -> Check<'a> {
    let mut check = Check {
        snapshot,
        stdio,
        refusals: Vec::new(),
        warnings: Vec::new(),
        owner: (0, 0),
        watched: false,
    };
    check.limit();
    let (owners, watched) = (owners(snapshot), watched(snapshot));
    for (index, description) in snapshot.descriptions.iter().enumerate() {
        (check.owner, check.watched) = (owners[index], watched.contains(&index));
        match AnyKind::decode(description) {
            Ok(kind) => kind.check(description, &mut check),
            Err(error) => check.refuse(description, format!("cannot be made: {error:#}"), "use a newer cryopod"),
        }
    }
    check.given();
    check
}

/// What [`reopen`] needs and what it leaves for its caller.
pub struct ReopenContext {
    /// One for each of Snapshot::shared_objects.
    pub shared: Vec<OwnedFd>,
    /// One for each of Snapshot::ptys.
    pub ptys: Vec<MadePty>,
    pub stdio: Stdio,
    /// To be run while the program runs.
    pub pumps: Vec<Pump>,
    /// Whether an epoll set watches the description being made.
    pub(super) watched: bool,
    /// Pipes and FIFOs of which more descriptions are to come.
    pub(super) pipes: Made<super::pipe::MadePipe>,
    pub(super) nameless: Made<OwnedFd>,
    /// By their inodes at the freeze.
    pub(super) queues: Vec<((u64, u64), MadeQueue)>,
}

impl ReopenContext {
    pub fn new(shared: Vec<OwnedFd>, ptys: Vec<MadePty>, stdio: Stdio) -> Self {
        ReopenContext {
            shared,
            ptys,
            stdio,
            pumps: Vec::new(),
            watched: false,
            pipes: Made::new(),
            nameless: Made::new(),
            queues: Vec::new(),
        }
    }

    /// What was made anew and has a name stays, whoever comes and goes.
    pub fn take_queues(&mut self) -> Vec<MadeQueue> {
        self.queues.drain(..).map(|(_, queue)| queue).collect()
    }

    pub(super) fn pty(&self, index: u32) -> Result<&MadePty> {
        self.ptys
            .get(index as usize)
            .context("a pseudo-terminal that is not there")
    }
}

/// Makes all descriptions, in the order of Snapshot::descriptions, with FD_CLOEXEC.
pub fn reopen(snapshot: &Snapshot, context: &mut ReopenContext) -> Result<Vec<OwnedFd>> {
    ensure!(
        context.shared.len() == snapshot.shared_objects.len(),
        "every shared object must be there first"
    );
    let mut files = Vec::with_capacity(snapshot.descriptions.len());
    limit::raise()?;
    let watched = watched(snapshot);
    for (index, description) in snapshot.descriptions.iter().enumerate() {
        context.watched = watched.contains(&index);
        let file = reopen_one(description, context).with_context(|| name(snapshot, index))?;
        files.push(file);
    }
    // What is left of them are ends that nobody holds: with them open, the program would wait for a writer that never writes.
    context.pipes.clear();
    context.nameless.clear();
    Ok(files)
}

fn reopen_one(description: &Description, context: &mut ReopenContext) -> Result<OwnedFd> {
    let kind = AnyKind::decode(description)?;
    let file = kind.reopen(description, context)?;
    if !matches!(kind, AnyKind::Outside(_)) {
        set_status_flags(file.as_fd(), description.status_flags)?;
    }
    Ok(file)
}

/// Status flags that can be changed (fcntl(2), F_SETFL), but O_ASYNC, which comes last ([`io_signals`]).
pub const SETTABLE: i32 = libc::O_APPEND | libc::O_DIRECT | libc::O_NOATIME | libc::O_NONBLOCK;

pub(super) fn set_status_flags(file: BorrowedFd<'_>, recorded: u32) -> Result<()> {
    let has = fcntl(file, FcntlArg::F_GETFL).context("fcntl F_GETFL")?;
    let recorded = recorded.cast_signed();
    if has & libc::O_PATH == 0 && has & SETTABLE != recorded & SETTABLE {
        let flags = OFlag::from_bits_retain(has & !SETTABLE | recorded & SETTABLE);
        fcntl(file, FcntlArg::F_SETFL(flags)).with_context(|| format!("fcntl F_SETFL {:#o}", flags.bits()))?;
    }
    Ok(())
}

/// A call that the owner of a table must make itself, once its numbers are final.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OwnerCall {
    /// epoll_ctl(2), EPOLL_CTL_ADD.
    EpollAdd { epfd: i32, fd: i32, events: u32, data: u64 },
    /// With its own rights.
    IoSignals(IoSignalsCall),
}

/// The calls for each table, in order. The snapshot was checked. Of a description that several tables refer to, the first makes them.
pub fn relink(snapshot: &Snapshot) -> Result<Vec<Vec<OwnerCall>>> {
    let mut done = HashSet::new();
    let mut all = Vec::with_capacity(snapshot.fd_tables.len());
    for table in &snapshot.fd_tables {
        let mut numbers: BTreeMap<u32, Vec<i32>> = BTreeMap::new();
        for entry in table.entries.iter().filter(|entry| !done.contains(&entry.description)) {
            numbers.entry(entry.description).or_default().push(entry.fd);
        }
        let mut calls = Vec::new();
        for (&index, numbers) in &numbers {
            let kind = AnyKind::decode(&snapshot.descriptions[index as usize])
                .with_context(|| name(snapshot, index as usize))?;
            calls.extend(kind.relink(numbers));
            let io_signals = io_signals::call(&snapshot.descriptions[index as usize], numbers[0]);
            calls.extend(io_signals.map(OwnerCall::IoSignals));
        }
        done.extend(numbers.into_keys());
        all.push(calls);
    }
    Ok(all)
}

/// The descriptions that epoll sets watch.
fn watched(snapshot: &Snapshot) -> HashSet<usize> {
    let mut watched = HashSet::new();
    for table in &snapshot.fd_tables {
        for epoll in table
            .entries
            .iter()
            .filter_map(|entry| snapshot.descriptions.get(entry.description as usize))
        {
            let Ok(AnyKind::Epoll(epoll)) = AnyKind::decode(epoll) else {
                continue;
            };
            for watch in &epoll.watches {
                let entry = table.entries.binary_search_by_key(&watch.fd, |entry| entry.fd);
                watched.extend(entry.map(|index| table.entries[index].description as usize));
            }
        }
    }
    watched
}

/// Does what must come last, just before the program goes on: timers get the time they had left, memfds their seals.
/// `files` is what [`reopen`] returned, `shared` the objects.
pub fn finish(snapshot: &Snapshot, files: &[OwnedFd], shared: &[OwnedFd]) -> Result<()> {
    for (file, object) in shared.iter().zip(&snapshot.shared_objects) {
        shared::finish(file, object)?;
    }
    for (index, (file, description)) in files.iter().zip(&snapshot.descriptions).enumerate() {
        let kind = AnyKind::decode(description)?;
        kind.finish(file.as_fd(), description, snapshot)
            .with_context(|| name(snapshot, index))?;
    }
    Ok(())
}

/// For each description a process and a number that refer to it.
fn owners(snapshot: &Snapshot) -> Vec<(i32, i32)> {
    let mut owners = vec![(0, -1); snapshot.descriptions.len()];
    for process in snapshot.processes.iter().rev() {
        let table = snapshot.fd_tables.get(process.fd_table as usize);
        for entry in table.iter().flat_map(|table| table.entries.iter().rev()) {
            if let Some(owner) = owners.get_mut(entry.description as usize) {
                *owner = (process.pid, entry.fd);
            }
        }
    }
    owners
}

fn name(snapshot: &Snapshot, description: usize) -> String {
    let (pid, fd) = owners(snapshot)[description];
    format!("fd {fd} of pid {pid} ({})", snapshot.descriptions[description].label)
}

/// A description of its own on what `file` refers to: open(2) of /proc/self/fd/N.
pub fn open_again(file: BorrowedFd<'_>, flags: i32) -> Result<OwnedFd> {
    let flags = OFlag::from_bits_retain(flags) | OFlag::O_CLOEXEC | OFlag::O_NOCTTY;
    nix::fcntl::open(
        super::probe::own_path(file).as_str(),
        flags,
        nix::sys::stat::Mode::empty(),
    )
    .with_context(|| format!("open /proc/self/fd/{} with flags {:#o}", file.as_raw_fd(), flags.bits()))
}
