//! Starts the stub under the wanted pid, traced, with PTRACE_O_EXITKILL: should we die, it dies.
//!
//! A child shares our memory only until it executes the stub (as vfork's does), so the cost does not depend on our size.
//! The child of a new time namespace is a plain copy, made through a helper, because CLONE_VM forbids another namespace.

use std::os::fd::{AsRawFd, BorrowedFd};
use std::ptr;
use std::sync::atomic::{AtomicI32, AtomicU32, Ordering};

use anyhow::{Context, Result, bail};
use nix::errno::Errno;
use nix::fcntl::{FcntlArg, FdFlag, fcntl};
use nix::unistd::Pid;

use super::plan::Born;
use super::script::{IdPatience, run_to_trap};
use super::stage::{STUB, Stage, executable_memfd};
use super::timens::TimeOffsets;
use crate::arch::{self, CloneArgs, clone3, raw_syscall};
use crate::tracer::{Running, Stop, Stopped};

/// Size of the embedded stub in bytes, for `cryopod check`.
pub fn embed_stub_size() -> usize {
    STUB.len()
}

/// What the stub has to be born with.
pub struct Birth<'a> {
    pub pid: Pid,
    /// A memfd of the stub, see [`stub_file`].
    pub stub: BorrowedFd<'a>,
    pub time_offsets: Option<TimeOffsets>,
    /// ADDR_NO_RANDOMIZE and a stack limit set the base for later mmaps.
    pub born: Born,
    /// Descriptors that it inherits under the numbers they have here.
    pub inherited: &'a [BorrowedFd<'a>],
}

/// What parent and child share until the exec. In shared memory, since the child may be a copy.
#[repr(C)]
struct Gate {
    /// 0 wait, 1 go. A futex.
    go: AtomicU32,
    /// An errno that the child or the helper met.
    errno: AtomicI32,
    parent: i32,
    exec_fd: i32,
    personality: u64,
    wanted_tid: i32,
    offsets_len: u32,
    offsets: [u8; 128],
}

const STACK_LEN: usize = 64 << 10;

/// The stub as a file. Not the stage: PR_SET_MM_EXE_FILE is EBUSY while the executed file is mapped (replace_mm_exe_file(), kernel/fork.c).
pub fn stub_file() -> Result<std::fs::File> {
    let stub = std::fs::File::from(executable_memfd(c"cryopod-stub")?);
    std::os::unix::fs::FileExt::write_all_at(&stub, STUB, 0).context("fill the stub's memfd")?;
    Ok(stub)
}

/// Starts the stub and waits for its first trap.
pub fn spawn(birth: &Birth<'_>) -> Result<Stopped> {
    for fd in birth.inherited {
        fcntl(fd, FcntlArg::F_SETFD(FdFlag::empty())).context("let a descriptor be inherited")?;
    }
    let gate = SharedGate::new(birth, birth.stub.as_raw_fd())?;
    let mut stack = vec![0u8; STACK_LEN];
    let pid = match birth.time_offsets {
        None => clone_child(&gate, &mut stack)?,
        Some(_) => clone_in_time_namespace(&gate)?,
    };
    let child = Unexecuted { pid, _stack: stack };
    let running = Running::seize(pid, libc::PTRACE_O_EXITKILL | libc::PTRACE_O_TRACESYSGOOD)?;
    set_soft_stack_limit(pid, birth.born.stack_limit)?;
    gate.open();
    let stopped = running
        .wait()
        .map_err(|error| gate.error("execute the stub").unwrap_or(error.into()))?;
    if stopped.stop() != Stop::Signal(libc::SIGTRAP) {
        bail!("the stub began with {:?}", stopped.stop());
    }
    child.executed();
    Ok(stopped)
}

/// A child that may still use our memory: it is killed and waited for unless it has executed the stub.
struct Unexecuted {
    pid: Pid,
    _stack: Vec<u8>,
}

impl Unexecuted {
    fn executed(mut self) {
        self.pid = Pid::from_raw(0);
    }
}

impl Drop for Unexecuted {
    fn drop(&mut self) {
        if self.pid.as_raw() != 0 {
            kill_and_reap(self.pid);
        }
    }
}

/// Kills a child of ours and waits until it is gone; there is nobody to tell if it already is.
pub fn kill_and_reap(pid: Pid) {
    kill_only(pid);
    reap_whole(pid);
}

/// Waits for a process that was killed, as its parent or tracer.
pub fn reap_whole(pid: Pid) {
    // Threads that we trace stay as zombies until we have seen them, and their leader's end is reported after theirs
    // (delay_group_leader(), include/linux/sched/signal.h).
    for thread in threads_of(pid).into_iter().filter(|thread| *thread != pid) {
        reap(thread);
    }
    reap(pid);
}

pub fn kill_only(pid: Pid) {
    // SAFETY: kill takes numbers only.
    unsafe { libc::kill(pid.as_raw(), libc::SIGKILL) };
}

fn threads_of(pid: Pid) -> Vec<Pid> {
    let entries = std::fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten();
    let names = entries.flatten().map(|entry| entry.file_name());
    names
        .filter_map(|name| name.to_str()?.parse().ok().map(Pid::from_raw))
        .collect()
}

/// A tracee reports its stops too; after its end there is no child of that id: ECHILD.
fn reap(tid: Pid) {
    // SAFETY: a null status is allowed.
    while unsafe { libc::waitpid(tid.as_raw(), ptr::null_mut(), libc::__WALL) } == tid.as_raw()
        || Errno::last() == Errno::EINTR
    {}
}

struct SharedGate(ptr::NonNull<Gate>);

impl SharedGate {
    fn new(birth: &Birth<'_>, exec_fd: i32) -> Result<Self> {
        let mut offsets = [0; 128];
        let text = birth
            .time_offsets
            .map(|offsets| offsets.to_string())
            .unwrap_or_default();
        offsets
            .get_mut(..text.len())
            .context("time offsets too long")?
            .copy_from_slice(text.as_bytes());
        // SAFETY: a new mapping; nothing refers to it yet.
        let page = unsafe {
            let (prot, flags) = (
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_SHARED | libc::MAP_ANONYMOUS,
            );
            libc::mmap(ptr::null_mut(), size_of::<Gate>(), prot, flags, -1, 0)
        };
        if page == libc::MAP_FAILED {
            return Err(Errno::last()).context("mmap");
        }
        let gate = ptr::NonNull::new(page.cast::<Gate>()).context("mmap returned null")?;
        // SAFETY: the mapping is page-aligned and large enough, and only this value is ever in it.
        unsafe {
            gate.write(Gate {
                go: AtomicU32::new(0),
                errno: AtomicI32::new(0),
                parent: libc::getpid(),
                exec_fd,
                personality: birth.born.personality,
                wanted_tid: birth.pid.as_raw(),
                offsets_len: text.len() as u32,
                offsets,
            });
        }
        Ok(SharedGate(gate))
    }

    fn get(&self) -> &Gate {
        // SAFETY: written in new(), unmapped in drop() only; what others write is atomic.
        unsafe { self.0.as_ref() }
    }

    fn open(&self) {
        self.get().go.store(1, Ordering::Release);
        // SAFETY: FUTEX_WAKE reads no memory.
        unsafe { libc::syscall(libc::SYS_futex, &raw const self.get().go, libc::FUTEX_WAKE, 1, 0, 0, 0) };
    }

    fn error(&self, what: &'static str) -> Option<anyhow::Error> {
        match self.get().errno.load(Ordering::Acquire) {
            0 => None,
            errno => Some(anyhow::Error::new(std::io::Error::from_raw_os_error(errno)).context(what)),
        }
    }
}

impl Drop for SharedGate {
    fn drop(&mut self) {
        // SAFETY: mapped in new() with this size; no child uses it any more, each has its own mapping of it or is past it.
        unsafe { libc::munmap(self.0.as_ptr().cast(), size_of::<Gate>()) };
    }
}

fn clone_child(gate: &SharedGate, stack: &mut [u8]) -> Result<Pid> {
    let wanted = gate.get().wanted_tid;
    let args = CloneArgs {
        flags: libc::CLONE_VM as u64,
        exit_signal: libc::SIGCHLD as u64,
        stack: stack.as_mut_ptr() as u64,
        stack_size: stack.len() as u64,
        set_tid: (&raw const wanted) as u64,
        set_tid_size: 1,
        ..CloneArgs::default()
    };
    let patience = IdPatience::new();
    loop {
        // SAFETY: `child` makes raw system calls only; the stack is kept until it has executed the stub or is dead (Unexecuted).
        let result = unsafe { clone3(&args, child, gate.0.as_ptr() as u64) };
        if !patience.waits(result) {
            return cloned(result, wanted);
        }
    }
}

fn cloned(result: i64, wanted: i32) -> Result<Pid> {
    if result < 0 {
        let error = std::io::Error::from_raw_os_error(-result as i32);
        return Err(error).with_context(|| format!("clone3 of pid {wanted}"));
    }
    Ok(Pid::from_raw(result as i32))
}

/// unshare(CLONE_NEWTIME) holds for children only: a helper makes the namespace, and in it a child of ours (CLONE_PARENT).
fn clone_in_time_namespace(gate: &SharedGate) -> Result<Pid> {
    let patience = IdPatience::new();
    loop {
        let result = try_in_time_namespace(gate);
        let errno = gate.get().errno.swap(0, Ordering::AcqRel);
        if !patience.waits(-i64::from(errno)) {
            return result;
        }
    }
}

fn try_in_time_namespace(gate: &SharedGate) -> Result<Pid> {
    let args = CloneArgs {
        exit_signal: libc::SIGCHLD as u64,
        ..CloneArgs::default()
    };
    // SAFETY: `helper` makes raw system calls only, on its copy of our stack.
    let helper = cloned(unsafe { clone3(&args, helper, gate.0.as_ptr() as u64) }, 0)?;
    let mut status = 0;
    // SAFETY: `status` is live.
    while unsafe { libc::waitpid(helper.as_raw(), &raw mut status, libc::__WALL) } < 0 && Errno::last() == Errno::EINTR
    {
    }
    match gate.error("make a time namespace with a process in it") {
        Some(error) => Err(error),
        // Killed before it could say anything: then there may be no child of ours under that id.
        None if status != 0 => bail!("the helper that makes a time namespace ended with status {status:#x}"),
        None => Ok(Pid::from_raw(gate.get().wanted_tid)),
    }
}

/// Runs in the child that becomes the stub, on shared or copied memory: raw system calls only.
extern "C" fn child(gate: u64) -> ! {
    let empty = [0u64; 1];
    // SAFETY: `gate` points at the Gate, which outlives the exec; all arguments are live here.
    unsafe {
        let gate = &*(gate as *const Gate);
        // Until we are seized with EXITKILL; the program's own setting is restored at the end.
        raw_syscall(
            libc::SYS_prctl,
            [libc::PR_SET_PDEATHSIG as u64, libc::SIGKILL as u64, 0, 0, 0],
        );
        if raw_syscall(libc::SYS_getppid, [0; 5]) == i64::from(gate.parent) {
            while gate.go.load(Ordering::Acquire) == 0 {
                raw_syscall(
                    libc::SYS_futex,
                    [(&raw const gate.go) as u64, libc::FUTEX_WAIT as u64, 0, 0, 0],
                );
            }
            raw_syscall(libc::SYS_personality, [gate.personality, 0, 0, 0, 0]);
            let list = empty.as_ptr() as u64;
            let path = c"".as_ptr() as u64;
            let error = raw_syscall(
                libc::SYS_execveat,
                [gate.exec_fd as u64, path, list, list, libc::AT_EMPTY_PATH as u64],
            );
            gate.errno.store(-error as i32, Ordering::Release);
        }
        loop {
            raw_syscall(libc::SYS_exit_group, [77, 0, 0, 0, 0]);
        }
    }
}

/// Runs in the helper, a copy of us: makes the time namespace, sets its clocks, clones the child into it.
extern "C" fn helper(gate: u64) -> ! {
    // SAFETY: `gate` points at the Gate; raw system calls only, with arguments that live here.
    unsafe {
        let shared = &*(gate as *const Gate);
        let error = in_new_time_namespace(shared, gate).err().unwrap_or(0);
        shared.errno.store(error, Ordering::Release);
        loop {
            raw_syscall(libc::SYS_exit_group, [0; 5]);
        }
    }
}

/// # Safety
/// As for [`helper`].
unsafe fn in_new_time_namespace(shared: &Gate, gate: u64) -> std::result::Result<(), i32> {
    let check = |result: i64| {
        if result < 0 {
            Err(-result as i32)
        } else {
            Ok(result as u64)
        }
    };
    // SAFETY: raw system calls with live arguments; the child makes raw system calls only, on its copy of the stack.
    unsafe {
        check(raw_syscall(libc::SYS_unshare, [libc::CLONE_NEWTIME as u64, 0, 0, 0, 0]))?;
        let path = c"/proc/self/timens_offsets".as_ptr() as u64;
        let file = check(raw_syscall(
            libc::SYS_openat,
            [libc::AT_FDCWD as u64, path, libc::O_WRONLY as u64, 0, 0],
        ))?;
        let text = shared.offsets.as_ptr() as u64;
        check(raw_syscall(
            libc::SYS_write,
            [file, text, shared.offsets_len.into(), 0, 0],
        ))?;
        check(raw_syscall(libc::SYS_close, [file, 0, 0, 0, 0]))?;
        let args = CloneArgs {
            flags: libc::CLONE_PARENT as u64, // with exit_signal 0: it gets the helper's, SIGCHLD (copy_process())
            set_tid: (&raw const shared.wanted_tid) as u64,
            set_tid_size: 1,
            ..CloneArgs::default()
        };
        check(clone3(&args, child, gate)).map(drop)
    }
}

/// Executes the stub anew in a task that has the stage, as [`spawn`] does it for the first: with a base of its own for later mmaps.
pub fn execute_again(task: &mut Stopped, stage: &Stage, stub: BorrowedFd<'_>, born: Born) -> Result<()> {
    set_soft_stack_limit(task.tid(), born.stack_limit)?;
    call_in_stub(
        task,
        stage.entry(),
        "personality",
        libc::SYS_personality,
        [born.personality, 0, 0, 0, 0, 0],
    )?;
    // An empty path, and lists of arguments and environment that are empty as well.
    stage.write_data(0, &[0; 16])?;
    let empty = stage.data_addr(0);
    let mut regs = task.regs()?;
    regs.set_pc(stage.entry() + arch::STUB_SYSCALL);
    let args = [
        stub.as_raw_fd() as u64,
        empty,
        empty,
        empty,
        libc::AT_EMPTY_PATH as u64,
        0,
    ];
    regs.set_call(libc::SYS_execveat as u64, args);
    task.set_regs(&regs)?;
    run_to_trap(task)?;
    // A call that failed comes back to the stage.
    let regs = task.regs()?;
    if (stage.addr()..stage.end()).contains(&regs.pc()) {
        return Err(std::io::Error::from_raw_os_error(-regs.result() as i32)).context("execveat of the stub");
    }
    Ok(())
}

fn set_soft_stack_limit(pid: Pid, bytes: u64) -> Result<()> {
    let mut limit = libc::rlimit {
        rlim_cur: 0,
        rlim_max: 0,
    };
    // SAFETY: both pointers are to live structures or null.
    let rc = unsafe {
        libc::prlimit(pid.as_raw(), libc::RLIMIT_STACK, ptr::null(), &raw mut limit);
        limit.rlim_cur = bytes.min(limit.rlim_max);
        libc::prlimit(pid.as_raw(), libc::RLIMIT_STACK, &raw const limit, ptr::null_mut())
    };
    Errno::result(rc).map(drop).context("set the stub's stack limit")
}

/// Runs one call through the `syscall; trap` at the start of the stub whose `_start` is at `entry`.
pub fn call_in_stub(task: &mut Stopped, entry: u64, name: &str, number: i64, args: [u64; 6]) -> Result<u64> {
    let mut regs = task.regs()?;
    regs.set_pc(entry + arch::STUB_SYSCALL);
    regs.set_call(number as u64, args);
    task.set_regs(&regs)?;
    run_to_trap(task)?;
    let result = task.regs()?.result();
    if (-4095..0).contains(&result) {
        return Err(std::io::Error::from_raw_os_error(-result as i32)).with_context(|| format!("{name} in the stub"));
    }
    Ok(result as u64)
}

/// Maps the stage at its place in the task.
pub fn plant(task: &mut Stopped, exec_entry: u64, stage: &Stage) -> Result<()> {
    let fd = stage.memfd().as_raw_fd() as u64;
    let text = super::stage::TEXT_LEN;
    let (read, write, exec) = (libc::PROT_READ as u64, libc::PROT_WRITE as u64, libc::PROT_EXEC as u64);
    let (private, shared) = (libc::MAP_PRIVATE as u64, libc::MAP_SHARED as u64);
    let fixed = libc::MAP_FIXED_NOREPLACE as u64;
    call_in_stub(
        task,
        exec_entry,
        "mmap",
        libc::SYS_mmap,
        [stage.addr(), text, read | exec, private | fixed, fd, 0],
    )?;
    let (start, len) = (stage.addr() + text, stage.end() - stage.addr() - text);
    call_in_stub(
        task,
        exec_entry,
        "mmap",
        libc::SYS_mmap,
        [start, len, read | write, shared | fixed, fd, text],
    )?;
    Ok(())
}
