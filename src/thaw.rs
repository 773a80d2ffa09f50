//! The thaw: decode → plan → rebuild → resume. Until the first thread is let go, an error or our death leaves nothing behind.
#![deny(unsafe_code)]

mod control_groups;
mod copies;
mod files;
pub mod foreground;
mod machine;
mod make;
pub mod namespace;
mod pid_file;
mod screen;
mod terminal;
mod trust;

use std::fs::File;
use std::io::Read;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use anyhow::{Context, Result};
use nix::unistd::{Pid, getpgrp};

use crate::arch;
use crate::fd::{self, MadeQueue, Pump, Stdio};
use crate::image::read::{Group, Reader};
use crate::image::state::{Process, Snapshot};
use crate::refusal::{Refusal, Refused};
use crate::resurrect::plan::{Plan, Session, Wishes, plan, rights};
use crate::resurrect::{GoesOn, Inherited, MappedFds, Tree, Vdso, redirect};
use crate::sysv::{Kept, objects, segments, semaphores};
use control_groups::Groups;
use copies::Copies;
use files::MappedFiles;
use make::{Made, make, tree_to_make};
use screen::{Relay, Screen};
use terminal::Lending;

pub use crate::resurrect::timens::ClockPolicy;
pub use files::Check;
pub use screen::Tty;
pub use trust::Trust;

#[derive(Debug, Clone)]
pub struct Options {
    pub detach: bool,
    /// Leaves the program in group-stop, for a debugger.
    pub stopped: bool,
    pub clock: ClockPolicy,
    pub file_check: Check,
    pub cpu_check: Check,
    pub trust: Trust,
    pub pid_file: Option<PathBuf>,
    /// What the terminals of the program become, instead of thaw's own.
    pub tty: Option<Tty>,
    /// The program is alone with its pids.
    pub new_pid_namespace: bool,
    /// What else of thaw's descriptors becomes what, by what /proc/PID/fd/N showed.
    pub inherit: Vec<(String, Arc<OwnedFd>)>,
    /// Threads that decompress and fill memory.
    pub jobs: usize,
}

/// A program that runs again.
pub struct Thawed {
    pub pid: Pid,
    /// What it is called where thaw was started: another number if it has a pid namespace of its own.
    pub pid_outside: Pid,
    pub session: Session,
    pub pumps: Vec<Pump>,
    lending: Lending,
    relay: Option<Relay>,
    /// What looks different from the freeze, but is not in the way.
    pub warnings: Vec<String>,
    pub memory_bytes: u64,
    /// From the first to the last thread let go.
    pub window: std::time::Duration,
}

/// Where an image comes from.
pub enum Source {
    File {
        file: File,
        path: PathBuf,
    },
    /// Trusted as its caller is.
    Stdin,
}

impl Source {
    pub fn open(path: &Path) -> Result<Self> {
        if path.as_os_str() == "-" {
            return Ok(Source::Stdin);
        }
        let file = File::open(path).with_context(|| format!("open {}", path.display()))?;
        Ok(Source::File {
            file,
            path: path.to_owned(),
        })
    }
}

/// Gets the bytes of memory that are in place, and of how many, from any thread.
pub type Progress<'a> = &'a (dyn Fn(u64, u64) + Sync);

pub fn thaw(source: Source, options: &Options, progress: Progress<'_>) -> Result<Thawed> {
    if !options.detach {
        foreground::hold_signals_but_aborts()?;
    }
    let owner = trust::owner(&source)?;
    match source {
        Source::File { file, .. } if file.metadata().is_ok_and(|metadata| metadata.is_file()) => {
            thaw_from(Reader::open(file)?.leave_bodies()?, owner, options, progress)
        }
        Source::File { file, .. } => thaw_from(Reader::open(file)?, owner, options, progress),
        Source::Stdin => thaw_from(Reader::open(std::io::stdin())?, owner, options, progress),
    }
}

fn thaw_from<R: Read>(
    mut reader: Reader<R>,
    owner: Option<trust::Owner>,
    options: &Options,
    progress: Progress<'_>,
) -> Result<Thawed> {
    let mut snapshot = decode(&mut reader)?;
    let vdso = Vdso::own()?;
    let mut redirected = redirect(&mut snapshot, &vdso);
    if options.new_pid_namespace {
        namespace::enter(&snapshot)?;
    }
    let against = std::mem::take(&mut redirected.refusals);
    let decided = decide(&snapshot, against, owner, options)?;
    let mut warnings: Vec<String> = redirected.note.iter().cloned().collect();
    warnings.extend_from_slice(&decided.warnings);

    let mut made = trust::with_rights_over_files(owner, options.trust, || make(&snapshot, decided, vdso, redirected))??;
    let renumbered = made.ptys.iter().zip(&snapshot.ptys);
    warnings.extend(renumbered.filter_map(|(made, wanted)| made.note(wanted)));
    let copies = Copies::of(made.shared_memory.take_writers());
    let brought = bring_back(&snapshot, &made, copies, reader, options, progress);
    let Brought {
        pid_outside,
        memory_bytes,
        window,
        notes,
        lending,
    } = brought.map_err(|error| taken_meanwhile(error, &snapshot))?;
    made.shared_memory.keep();
    made.system_v.iter_mut().for_each(Kept::keep);
    made.queues.iter_mut().for_each(MadeQueue::keep);
    warnings.extend(notes);
    Ok(Thawed {
        pid: made.plan.pid,
        pid_outside,
        session: made.plan.session,
        pumps: made.pumps,
        lending,
        relay: made.relay,
        warnings,
        memory_bytes,
        window,
    })
}

/// What is to be said of a program that was brought back, and done until it ends.
struct Brought {
    pid_outside: Pid,
    memory_bytes: u64,
    /// From the first to the last thread let go.
    window: std::time::Duration,
    /// For people.
    notes: Vec<String>,
    lending: Lending,
}

/// Rebuilds and resumes. An error leaves nothing.
fn bring_back<R: Read>(
    snapshot: &Snapshot,
    made: &Made,
    copies: Copies,
    reader: Reader<R>,
    options: &Options,
    progress: Progress<'_>,
) -> Result<Brought> {
    let mapped = MappedFds {
        files: made.files.by_access(),
        shared: made.shared_memory.by_access(),
        segments: segments::all(snapshot)
            .map(|(index, segment, size)| (index, (segment.ipc.id, size)))
            .collect(),
    };
    let mut tree = tree_to_make(snapshot, made, &mapped, options.jobs)?;
    let shared = copies.among(&made.shared);
    let (memory_bytes, mut notes) = rebuild(&mut tree, reader, (snapshot, made), &shared, options.jobs, progress)?;
    copies.finish(snapshot)?;
    notes.extend(tree.set_login()?);
    tree.adjust_semaphores(&semaphores::users(snapshot)?)?;
    tree.finish()?;
    notes.extend(made.groups.join_threads());

    let pid_outside = namespace::outside(made.plan.pid)?;
    let pid_file = options
        .pid_file
        .as_deref()
        .map(|path| pid_file::create(path, pid_outside))
        .transpose()?;
    fd::finish(snapshot, &made.descriptions, &made.shared)?;
    tree.arm_timers()?;
    foreground::hold_signals()?;
    let mut lending = match made.terminal {
        Some(_) => Lending::none(),
        None => lending(snapshot, &made.plan),
    };
    let redraws = match made.terminal {
        Some(_) => snapshot.processes.iter().find_map(Process::foreground_outside),
        None => lending.lend()?.then(|| snapshot.processes[0].pgid),
    };
    let how = if options.stopped {
        GoesOn::Stopped
    } else {
        GoesOn::AsItWas
    };
    let window = match tree.resume(how, redraws) {
        Ok(window) => window,
        Err(error) => {
            lending.end(true)?;
            return Err(error);
        }
    };
    if let Some(pid_file) = pid_file {
        pid_file.keep();
    }
    Ok(Brought {
        pid_outside,
        memory_bytes,
        window,
        notes,
        lending,
    })
}

/// What the program gets of our terminal: nothing where it has a session of its own.
fn lending(snapshot: &Snapshot, plan: &Plan) -> Lending {
    let group = match plan.session {
        Session::New => return Lending::none(),
        Session::OwnGroup(group) => group,
        Session::Join => getpgrp(),
    };
    Lending::new(group, fd::terminal_settings(snapshot))
}

/// Those who led a session on a terminal, and have none here.
fn without_terminal(snapshot: &Snapshot, stdio: &Stdio) -> Vec<String> {
    let leaders = snapshot
        .processes
        .iter()
        .filter(|process| process.foreground_outside().is_some());
    let note = "led its session on a terminal and has none now, and with it no job control; --tty gives it one";
    leaders
        .filter(|_| stdio.terminal.is_none())
        .map(|process| format!("pid {} {note}", process.pid))
        .collect()
}

/// Somebody may have taken an id between our look and its clone3(2), which then fails with EEXIST: that is a refusal as well.
fn taken_meanwhile(error: anyhow::Error, snapshot: &Snapshot) -> anyhow::Error {
    let is_exists = |cause: &std::io::Error| cause.raw_os_error() == Some(libc::EEXIST);
    if !error.chain().filter_map(|cause| cause.downcast_ref()).any(is_exists) {
        return error;
    }
    let pid = snapshot.processes.first().map_or(0, |process| process.pid);
    let taken = machine::taken_ids(snapshot);
    match taken.is_empty() {
        true => error,
        false => Refused(taken.iter().map(|taken| taken.refusal(pid)).collect()).into(),
    }
}

fn decode<R: Read>(reader: &mut Reader<R>) -> Result<Snapshot> {
    let header = reader.header();
    if header.machine != arch::ELF_MACHINE {
        let reason = format!("is of another kind of CPU (ELF machine {})", header.machine);
        let remedy = format!("thaw it there; this is {}", arch::NAME);
        return Err(Refused::from(Refusal::new(0, "the image", reason, remedy)).into());
    }
    let page_size = nix::unistd::sysconf(nix::unistd::SysconfVar::PAGE_SIZE)?.unwrap_or(4096);
    if i64::from(header.page_size) != page_size {
        let reason = format!("has pages of {} bytes, this machine of {page_size}", header.page_size);
        return Err(Refused::from(Refusal::new(0, "the image", reason, "thaw it on such a machine")).into());
    }
    Ok(reader.snapshot()?)
}

struct Decided {
    plan: Plan,
    stdio: Stdio,
    relay: Option<Relay>,
    /// Of a terminal that nobody relays.
    pump: Option<Pump>,
    inherited: Inherited,
    files: MappedFiles,
    groups: Groups,
    warnings: Vec<String>,
}

/// All that stands against the thaw, at once; nothing has been made yet.
/// `refusals` are there already.
fn decide(
    snapshot: &Snapshot,
    mut refusals: Vec<Refusal>,
    owner: Option<trust::Owner>,
    options: &Options,
) -> Result<Decided> {
    let machine = machine::look(snapshot)?;
    let Screen { terminal, relay, pump } = Screen::choose(snapshot, options.tty.as_ref(), options.detach)?;
    let given = options.inherit.iter().map(|(label, file)| {
        let file = file.try_clone().context("duplicate a descriptor")?;
        Ok((label.clone(), file))
    });
    let stdio = Stdio::own(terminal, given.collect::<Result<_>>()?)?;
    let (files, checked, groups) = trust::with_rights_over_files(owner, options.trust, || {
        let files = MappedFiles::open(snapshot, options.file_check);
        let groups = Groups::open(&snapshot.processes);
        (files, fd::check(snapshot, &stdio), groups)
    })?;
    let (groups, notes) = groups.context("control groups")?;
    let wishes = Wishes {
        detach: options.detach,
        clock: options.clock,
    };
    refusals.extend(trust::against(snapshot, owner, options.trust));
    let mut warnings = checked.warnings;
    warnings.extend(notes);
    warnings.extend(machine.surroundings.warning(snapshot));
    warnings.extend(without_terminal(snapshot, &stdio));
    warnings.extend(
        snapshot
            .processes
            .iter()
            .filter_map(|process| rights::note(process, &machine)),
    );
    refusals.extend(checked.refusals);
    if options.cpu_check != Check::Off
        && let Some((refusal, warning)) = machine::against_features(snapshot)?
    {
        match options.cpu_check {
            Check::Strict => refusals.push(refusal),
            Check::Warn | Check::Off => warnings.push(warning),
        }
    }
    refusals.extend(segments::check(snapshot)?);
    refusals.extend(objects::check(snapshot)?);
    let planned = plan(snapshot, &machine, wishes);
    let files = match files {
        Ok(files) => Some(files),
        Err(found) => {
            refusals.extend(found);
            None
        }
    };
    match (planned, files) {
        (Ok(plan), Some(files)) if refusals.is_empty() => {
            warnings.extend_from_slice(&files.warnings);
            Ok(Decided {
                plan,
                stdio,
                relay,
                pump,
                inherited: machine::inherited(machine.credentials)?,
                files,
                groups,
                warnings,
            })
        }
        (planned, _) => {
            refusals.extend(planned.err().unwrap_or_default());
            Err(Refused(refusals).into())
        }
    }
}

/// Makes the processes and streams their content into place: what children inherit before they are made, then the rest. Returns how much
/// memory came, and notes.
fn rebuild<R: Read>(
    tree: &mut Tree<'_>,
    mut reader: Reader<R>,
    (snapshot, made): (&Snapshot, &Made),
    shared: &[BorrowedFd<'_>],
    jobs: usize,
    progress: Progress<'_>,
) -> Result<(u64, Vec<String>)> {
    let (done, total) = (AtomicU64::new(0), resident_bytes(snapshot));
    let took = |len: u64| progress(done.fetch_add(len, Ordering::Relaxed) + len, total);
    let mut notes = Vec::new();
    while let Some(Group::Inherited(index)) = reader.next_group()? {
        let pid = snapshot.processes[index as usize].pid;
        tree.make(pid)?;
        notes.extend(made.groups.join_process(pid));
        tree.map(index as usize)?;
        let fill = tree.fill(shared);
        reader.place(jobs, &|run| fill.write(&run).map(|()| took(run.len)))?;
    }
    tree.make_all()?;
    notes.extend(made.groups.join_processes());
    tree.map_all()?;
    let fill = tree.fill(shared);
    reader.pages(jobs, &|run| fill.write(&run).map(|()| took(run.len)))?;
    Ok((done.into_inner(), notes))
}

/// How much content is to come, at most: pages of zeros are left out.
fn resident_bytes(snapshot: &Snapshot) -> u64 {
    let mappings = snapshot.processes.iter().flat_map(|process| &process.memory.vmas);
    let private = mappings.filter(|vma| !vma.shared).map(|vma| vma.resident);
    private
        .chain(snapshot.shared_objects.iter().map(|object| object.size))
        .fold(0, u64::saturating_add)
}
