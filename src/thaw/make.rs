//! What a program inherits: made in our own descriptor table, once, before there is any process.
#![deny(unsafe_code)]

use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use anyhow::Result;

use super::control_groups::Groups;
use super::files::MappedFiles;
use super::screen::Relay;
use super::{Decided, copies};
use crate::fd::{self, MadePty, MadeQueue, OwnerCall, Pump, ReopenContext};
use crate::image::state::{Process, Snapshot};
use crate::resurrect::plan::{Plan, Session};
use crate::resurrect::{Inherited, MappedFds, Move, Parts, Redirected, SharedMemory, Tree, Vdso};
use crate::sysv::{Kept, objects};

/// What is made in our own descriptor table, from where the program inherits it.
pub(super) struct Made {
    pub plan: Plan,
    pub vdso: Vdso,
    pub redirected: Redirected,
    pub inherited: Inherited,
    pub files: MappedFiles,
    pub groups: Groups,
    pub shared: Vec<OwnedFd>,
    pub shared_memory: SharedMemory,
    pub system_v: Vec<Kept>,
    pub queues: Vec<MadeQueue>,
    pub descriptions: Vec<OwnedFd>,
    pub pumps: Vec<Pump>,
    pub terminal: Option<OwnedFd>,
    pub ptys: Vec<MadePty>,
    pub relay: Option<Relay>,
}

pub(super) fn make(snapshot: &Snapshot, decided: Decided, vdso: Vdso, redirected: Redirected) -> Result<Made> {
    let files = decided.files.copies();
    let shared_memory = SharedMemory::make(snapshot, |object| {
        files.contains(&object) || copies::is_mapped(snapshot, object)
    })?;
    let system_v = objects::make(snapshot)?;
    let mut context = ReopenContext::new(shared_memory.duplicates()?, fd::make_ptys(snapshot)?, decided.stdio);
    let descriptions = fd::reopen(snapshot, &mut context)?;
    let queues = context.take_queues();
    let Decided {
        plan,
        inherited,
        mut files,
        groups,
        relay,
        pump,
        ..
    } = decided;
    context.pumps.extend(pump);
    files.complete(&shared_memory)?;
    Ok(Made {
        plan,
        vdso,
        redirected,
        inherited,
        files,
        groups,
        shared: context.shared,
        shared_memory,
        system_v,
        queues,
        descriptions,
        pumps: context.pumps,
        terminal: context.stdio.terminal,
        ptys: context.ptys,
        relay,
    })
}

pub(super) fn tree_to_make<'a>(
    snapshot: &'a Snapshot,
    made: &'a Made,
    mapped: &'a MappedFds<'a>,
    jobs: usize,
) -> Result<Tree<'a>> {
    let mut owner_calls = fd::relink(snapshot)?;
    let parts = snapshot.processes.iter().map(|process| {
        let mut later = snapshot
            .processes
            .iter()
            .rev()
            .take_while(|other| other.pid != process.pid);
        let calls = match later.any(|other| other.fd_table == process.fd_table) {
            true => None,
            false => Some(std::mem::take(&mut owner_calls[process.fd_table as usize])),
        };
        parts_of(snapshot, made, mapped, process, calls)
    });
    let mut inherited: Vec<BorrowedFd<'a>> = made.descriptions.iter().map(AsFd::as_fd).collect();
    inherited.extend(made.files.all());
    inherited.extend(made.shared_memory.all());
    inherited.extend(made.terminal.as_ref().map(AsFd::as_fd));
    inherited.extend(made.ptys.iter().map(MadePty::slave));
    Tree::new(snapshot, &made.plan, parts.collect::<Result<_>>()?, inherited, jobs)
}

fn parts_of<'a>(
    snapshot: &'a Snapshot,
    made: &'a Made,
    mapped: &'a MappedFds<'a>,
    process: &'a Process,
    owner_calls: Option<Vec<OwnerCall>>,
) -> Result<Parts<'a>> {
    let table = &snapshot.fd_tables[process.fd_table as usize];
    let moves = table.entries.iter().map(|entry| Move {
        from: made.descriptions[entry.description as usize].as_raw_fd(),
        to: entry.fd,
        cloexec: entry.cloexec,
    });
    Ok(Parts {
        plan: &made.plan,
        process,
        mapped,
        exe: made.files.exe(process),
        cwd: made.files.cwd(process),
        root: made.files.root(process),
        moves: owner_calls.is_some().then(|| moves.collect()),
        owner_calls: owner_calls.unwrap_or_default(),
        inherited: &made.inherited,
        vdso_syscall: made.vdso.syscall_in(process)?,
        redirected: made.redirected.code.get(&process.pid),
        terminal: process.terminal.and_then(|terminal| match terminal.pty {
            Some(index) => made.ptys.get(index as usize).map(MadePty::slave),
            None => made.terminal.as_ref().map(AsFd::as_fd),
        }),
        new_session: made.plan.session == Session::New || snapshot.has_id(process.sid),
    })
}
