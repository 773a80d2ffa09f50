//! Rebuilds one process: spawn, memory map, content (by [`Fill`]), state, threads; `resume` lets it go on.

use std::fs::{File, OpenOptions};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use anyhow::{Context, Result};
use nix::errno::Errno;
use nix::unistd::Pid;

use super::descriptors::Move;
use super::fill::Fill;
use super::layout;
use super::maps::{self, MappedFds};
use super::plan::Plan;
use super::script::Script;
use super::spawn::{Birth, kill_and_reap, plant, spawn};
use super::stage::{STAGE_LEN, Stage};
use super::threads::Inherited;
use super::uffd::{UFFD_USER_MODE_ONLY, Uffd};
use crate::arch;
use crate::fd::OwnerCall;
use crate::image::state::{Backing, Process};
use crate::sys::fds;
use crate::tracer::Stopped;

/// What was made for the process in our own descriptor table, and what it begins with.
pub struct Parts<'a> {
    pub plan: &'a Plan,
    pub process: &'a Process,
    pub mapped: MappedFds<'a>,
    pub exe: BorrowedFd<'a>,
    pub cwd: BorrowedFd<'a>,
    /// Its root directory, where that is not ours.
    pub root: Option<BorrowedFd<'a>>,
    pub moves: Vec<Move>,
    pub owner_calls: Vec<OwnerCall>,
    /// All descriptors above, which the stub inherits.
    pub inherited_fds: Vec<BorrowedFd<'a>>,
    pub inherited: Inherited,
    /// A `syscall` instruction in the image's `[vdso]`.
    pub vdso_syscall: u64,
}

/// A process that is being rebuilt. Dropped before `resume` lets it go, it is killed whole.
pub struct Rebuilt<'a> {
    pub(super) parts: Parts<'a>,
    /// The leader first, then the other threads in the order of the image.
    pub(super) tasks: Vec<Stopped>,
    pub(super) stage: Stage,
    /// /proc/PID/mem, opened before credentials change.
    pub(super) memory: File,
    pub(super) alive: bool,
}

impl Drop for Rebuilt<'_> {
    fn drop(&mut self) {
        if self.alive {
            kill_and_reap(self.parts.plan.pid);
        }
    }
}

/// Spawns the stub, plants the stage and makes the memory map, without content yet.
pub fn rebuild<'a>(parts: Parts<'a>) -> Result<Rebuilt<'a>> {
    let stage = Stage::new()?;
    let mut inherited = parts.inherited_fds.clone();
    inherited.push(stage.memfd().as_fd());
    let birth = Birth {
        pid: parts.plan.pid,
        time_offsets: parts.plan.time_offsets,
        personality: parts.plan.personality,
        stack_limit: Some(parts.plan.stack_limit),
        inherited: &inherited,
    };
    let leader = spawn(&birth).context("start the resurrector")?;
    let pid = parts.plan.pid;
    let memory = OpenOptions::new()
        .read(true)
        .write(true)
        .open(format!("/proc/{pid}/mem"));
    let memory = match memory {
        Ok(memory) => memory,
        Err(error) => {
            kill_and_reap(pid);
            return Err(error).with_context(|| format!("open /proc/{pid}/mem"));
        }
    };
    let mut rebuilt = Rebuilt {
        parts,
        tasks: vec![leader],
        stage,
        memory,
        alive: true,
    };
    rebuilt.plant_stage()?;
    let mut script = Script::new(&rebuilt.stage, &mut rebuilt.tasks[0]);
    let parts = &rebuilt.parts;
    maps::make(&mut script, &rebuilt.stage, parts.process, &parts.mapped).context("rebuild the memory map")?;
    script.run().context("rebuild the memory map")?;
    maps::verify_vdso(&parts.process.memory, &kernel_mappings(pid)?)?;
    Ok(rebuilt)
}

impl Rebuilt<'_> {
    /// From here on all signals wait, but SIGTRAP: its traps are how scripts end (force_sig_info_to_task()).
    fn plant_stage(&mut self) -> Result<()> {
        self.tasks[0].set_sigmask(!sigmask_bit(libc::SIGTRAP))?;
        let exec_entry = self.tasks[0].regs()?.pc() - arch::STUB_SYSCALL;
        let mut taken: Vec<_> = memory_map(self.parts.plan.pid)?
            .into_iter()
            .map(|(_, range)| range)
            .collect();
        let memory = &self.parts.process.memory;
        taken.extend(memory.vmas.iter().map(|vma| {
            let gap = if vma.flags.has(b"gd") {
                layout::STACK_GUARD_GAP
            } else {
                0
            };
            vma.start.saturating_sub(gap)..vma.end
        }));
        taken.push(memory.layout.start_brk..memory.layout.brk);
        let hole = layout::find_hole(&taken, STAGE_LEN, arch::TASK_SIZE).context("no room for the resurrector")?;
        self.stage.place(hole);
        plant(&mut self.tasks[0], exec_entry, &self.stage)
    }

    /// The door for memory's content. It works from any thread, while the process stays stopped.
    pub fn fill<'f>(&mut self, shared: Vec<BorrowedFd<'f>>, jobs: usize) -> Result<Fill<'f>> {
        let uffd = self.userfaultfd()?;
        let memory = self.memory.try_clone().context("duplicate a descriptor")?;
        Fill::new(
            self.parts.plan.pid,
            memory,
            uffd,
            &self.parts.process.memory,
            shared,
            jobs,
        )
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
        let uffd = Uffd::new(fetch(self.parts.plan.pid, fd as i32)?)?;
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
fn memory_map(pid: Pid) -> Result<Vec<Mapping>> {
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

fn kernel_mappings(pid: Pid) -> Result<Vec<(String, u64, u64)>> {
    let is_kernels = |name: &str| name.starts_with("[v") && name != "[vsyscall]";
    let map = memory_map(pid)?.into_iter().filter(|(name, _)| is_kernels(name));
    Ok(map.map(|(name, range)| (name, range.start, range.end)).collect())
}

/// Address in the image of a system call instruction of this kernel's `[vdso]`.
pub fn vdso_syscall(process: &Process) -> Result<u64> {
    let is_vdso = |backing: &Backing| matches!(backing, Backing::Kernel(name) if name == "[vdso]");
    let vdso = process
        .memory
        .vmas
        .iter()
        .find(|vma| is_vdso(&vma.backing))
        .context("the image has no [vdso]")?;
    let own = own_vdso()?;
    let at = own
        .windows(arch::SYSCALL_INSTRUCTION.len())
        .position(|bytes| bytes == arch::SYSCALL_INSTRUCTION);
    Ok(vdso.start + at.context("the [vdso] has no system call instruction")? as u64)
}

/// The bytes of our own `[vdso]`: the same in all processes under this kernel.
pub fn own_vdso() -> Result<Vec<u8>> {
    let map = memory_map(Pid::this())?;
    let (_, range) = map
        .into_iter()
        .find(|(name, _)| name == "[vdso]")
        .context("this process has no [vdso]")?;
    let mut bytes = vec![0; (range.end - range.start) as usize];
    let memory = File::open("/proc/self/mem").context("open /proc/self/mem")?;
    std::os::unix::fs::FileExt::read_exact_at(&memory, &mut bytes, range.start).context("read our [vdso]")?;
    Ok(bytes)
}
