//! Rebuilds one process out of a stub: memory map, content (by [`ProcessFill`]), state, threads.

use std::fs::{File, OpenOptions};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::rc::Rc;

use anyhow::{Context, Result};
use nix::errno::Errno;
use nix::unistd::Pid;

use super::descriptors::Move;
use super::fill::ProcessFill;
use super::maps::{self, MappedFds, Spread};
use super::plan::Plan;
use super::script::Script;
use super::stage::Stage;
use super::threads::Inherited;
use super::uffd::{UFFD_USER_MODE_ONLY, Uffd};
use super::vdso;
use crate::fd::OwnerCall;
use crate::image::state::Process;
use crate::sys::fds;
use crate::tracer::Stopped;

/// What was made for the process in our own descriptor table, and what it begins with.
pub struct Parts<'a> {
    pub plan: &'a Plan,
    pub process: &'a Process,
    pub mapped: &'a MappedFds<'a>,
    pub exe: BorrowedFd<'a>,
    pub cwd: BorrowedFd<'a>,
    /// Its root directory, where that is not ours.
    pub root: Option<BorrowedFd<'a>>,
    /// None of one whose table another has as well that is finished later.
    pub moves: Option<Vec<Move>>,
    pub owner_calls: Vec<OwnerCall>,
    pub inherited: &'a Inherited,
    /// Where a system call instruction of this kernel's `[vdso]` is in it.
    pub vdso_syscall: u64,
    /// What is to be in its memory, and where, instead of the `[vdso]` of the freeze.
    pub redirected: Option<&'a (u64, Vec<u8>)>,
    /// It is in a session that was begun for the image.
    pub new_session: bool,
    /// Of one that leads a session with a controlling terminal: that.
    pub terminal: Option<BorrowedFd<'a>>,
}

impl Parts<'_> {
    pub fn pid(&self) -> Pid {
        Pid::from_raw(self.process.pid)
    }
}

/// A process that is being rebuilt, one of a [`Tree`](super::Tree), which kills it should it not come to be let go.
pub struct Rebuilt<'a> {
    pub(super) parts: Parts<'a>,
    /// The leader first, then the other threads in the order of the image.
    pub(super) tasks: Vec<Stopped>,
    /// The same in all processes of the tree: one task runs at a time.
    pub(super) stage: Rc<Stage>,
    /// /proc/PID/mem, opened before credentials change.
    pub(super) memory: File,
    pub(super) is_mapped: bool,
}

impl Rebuilt<'_> {
    /// Takes over a stub, in which the stage is.
    pub(super) fn new<'a>(parts: Parts<'a>, leader: Stopped, stage: Rc<Stage>) -> Result<Rebuilt<'a>> {
        let path = format!("/proc/{}/mem", parts.pid());
        let memory = OpenOptions::new().read(true).write(true).open(&path);
        Ok(Rebuilt {
            memory: memory.with_context(|| format!("open {path}"))?,
            parts,
            tasks: vec![leader],
            stage,
            is_mapped: false,
        })
    }

    /// Makes the memory map, without content yet.
    pub(super) fn map(&mut self, mappings: &[Spread<'_>]) -> Result<()> {
        let mut script = Script::new(&self.stage, &mut self.tasks[0]);
        let parts = &self.parts;
        maps::make(&mut script, &self.stage, parts.process, mappings, parts.mapped)?;
        script.run()?;
        self.is_mapped = true;
        vdso::verify(parts.process)
    }

    /// Once its children are there.
    pub(super) fn trim(&mut self, mappings: &[Spread<'_>]) -> Result<()> {
        let mut script = Script::new(&self.stage, &mut self.tasks[0]);
        maps::trim(&mut script, mappings)?;
        script.run()
    }

    /// Once all others are there that have its memory from it.
    pub(super) fn redirect(&self) -> Result<()> {
        let Some((at, code)) = self.parts.redirected else {
            return Ok(());
        };
        self.memory.write_all_at(code, *at).context("write the old [vdso]")
    }

    /// The door for memory's content. It works from any thread, while the process stays stopped.
    pub(super) fn fill(&mut self, jobs: usize) -> Result<ProcessFill> {
        let uffd = self.userfaultfd()?;
        let memory = self.memory.try_clone().context("duplicate a descriptor")?;
        ProcessFill::new(self.parts.pid(), memory, uffd, &self.parts.process.memory, jobs)
    }

    /// userfaultfd(2) must be called by the task whose memory it serves; the descriptor is then fetched. None where the kernel
    /// or its settings do not allow it.
    fn userfaultfd(&mut self) -> Result<Option<Uffd>> {
        let flags = libc::O_CLOEXEC | libc::O_NONBLOCK | UFFD_USER_MODE_ONLY;
        let mut script = Script::new(&self.stage, &mut self.tasks[0]);
        let fd = match script.try_ask("userfaultfd", libc::SYS_userfaultfd, [flags.into()])? {
            Ok(fd) => fd,
            Err(Errno::EPERM | Errno::ENOSYS | Errno::EINVAL) => return Ok(None),
            Err(errno) => return Err(errno).context("userfaultfd"),
        };
        let uffd = Uffd::new(fetch(self.parts.pid(), fd as i32)?)?;
        let mut script = Script::new(&self.stage, &mut self.tasks[0]);
        script.call("close", libc::SYS_close, [fd.into()])?;
        script.run()?;
        Ok(Some(uffd))
    }
}

pub(super) fn sigmask_bit(signal: i32) -> u64 {
    1 << (signal - 1)
}

/// pidfd_getfd(2).
fn fetch(pid: Pid, fd: i32) -> Result<OwnedFd> {
    let pidfd = fds::pidfd_open(pid).context("pidfd_open")?;
    fds::pidfd_getfd(pidfd.as_fd(), fd).context("pidfd_getfd")
}

type Mapping = (String, std::ops::Range<u64>);

/// Name and range of each line of /proc/PID/maps.
pub(super) fn memory_map(pid: Pid) -> Result<Vec<Mapping>> {
    let text = std::fs::read_to_string(format!("/proc/{pid}/maps")).context("read the stub's memory map")?;
    text.lines()
        .map(|line| parse_map_line(line).with_context(|| format!("a line of maps: {line:?}")))
        .collect()
}

fn parse_map_line(line: &str) -> Option<Mapping> {
    let (range, rest) = line.split_once(' ')?;
    let (start, end) = range.split_once('-')?;
    let name = rest.split_whitespace().nth(4).unwrap_or_default().to_owned();
    Some((
        name,
        u64::from_str_radix(start, 16).ok()?..u64::from_str_radix(end, 16).ok()?,
    ))
}
