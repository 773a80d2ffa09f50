//! System calls about another process: its pages, how its threads are scheduled, what they share, signals to it.

use std::cmp::Ordering;
use std::fs::File;
use std::os::fd::{AsFd, AsRawFd};
use std::sync::atomic::{AtomicBool, Ordering as AtomicOrdering};

use nix::errno::Errno;
use nix::sys::signal::{SaFlags, SigAction, SigHandler, SigSet, Signal, sigaction};

/// struct page_region of PAGEMAP_SCAN (include/uapi/linux/fs.h).
#[derive(Debug, Clone, Copy, Default)]
#[repr(C)]
pub struct PageRegion {
    pub start: u64,
    pub end: u64,
    pub categories: u64,
}

/// What PAGEMAP_SCAN is asked: pages whose categories, after `inverted` ones are flipped, have all of `all_of` and one of `any_of`.
#[derive(Debug, Clone, Copy, Default)]
pub struct ScanRequest {
    pub start: u64,
    pub end: u64,
    pub inverted: u64,
    pub all_of: u64,
    pub any_of: u64,
    pub returned: u64,
}

/// struct pm_scan_arg.
#[repr(C)]
struct PmScanArg {
    size: u64,
    flags: u64,
    start: u64,
    end: u64,
    walk_end: u64,
    vec: u64,
    vec_len: u64,
    max_pages: u64,
    category_inverted: u64,
    category_mask: u64,
    category_anyof_mask: u64,
    return_mask: u64,
}
const _: () = assert!(size_of::<PmScanArg>() == 96);

nix::ioctl_readwrite!(pagemap_scan_ioctl, b'f', 16, PmScanArg);

/// ioctl(PAGEMAP_SCAN) on /proc/PID/pagemap: how many of `regions` were filled, and the address where the walk ended.
pub fn pagemap_scan(pagemap: &File, request: &ScanRequest, regions: &mut [PageRegion]) -> nix::Result<(usize, u64)> {
    let mut arg = PmScanArg {
        size: size_of::<PmScanArg>() as u64,
        flags: 0,
        start: request.start,
        end: request.end,
        walk_end: 0,
        vec: if regions.is_empty() {
            0
        } else {
            regions.as_mut_ptr() as u64
        },
        vec_len: regions.len() as u64,
        max_pages: 0,
        category_inverted: request.inverted,
        category_mask: request.all_of,
        category_anyof_mask: request.any_of,
        return_mask: request.returned,
    };
    // SAFETY: `arg` is what the request wants, and `vec` points to `vec_len` regions that are ours to write.
    let filled = unsafe { pagemap_scan_ioctl(pagemap.as_raw_fd(), &raw mut arg) }?;
    Ok((filled as usize, arg.walk_end))
}

/// struct sched_attr as of Linux 5.3 (sched_setattr(2)).
#[derive(Debug, Clone, Copy, Default)]
#[repr(C)]
pub struct SchedAttr {
    pub size: u32,
    pub policy: u32,
    pub flags: u64,
    pub nice: i32,
    pub priority: u32,
    pub runtime: u64,
    pub deadline: u64,
    pub period: u64,
    pub util_min: u32,
    pub util_max: u32,
}
const _: () = assert!(size_of::<SchedAttr>() == 56);

pub fn sched_getattr(tid: i32) -> nix::Result<SchedAttr> {
    let mut attr = SchedAttr::default();
    // SAFETY: the kernel writes at most the size given.
    let rc = unsafe { libc::syscall(libc::SYS_sched_getattr, tid, &raw mut attr, size_of::<SchedAttr>(), 0) };
    Errno::result(rc).map(|_| attr)
}

/// The mask as the kernel has it: as long as it needs for the CPUs it was built or booted for.
pub fn sched_getaffinity(tid: i32) -> nix::Result<Vec<u8>> {
    // EINVAL where the buffer is smaller than the kernel's mask (sched_getaffinity(2)); 8 KiB is that of 65536 CPUs.
    let mut mask = vec![0u8; 8192];
    // SAFETY: the kernel writes at most the length given.
    let rc = unsafe { libc::syscall(libc::SYS_sched_getaffinity, tid, mask.len(), mask.as_mut_ptr()) };
    mask.truncate(Errno::result(rc)? as usize);
    Ok(mask)
}

/// ioprio_get(2) of a thread; 0 without a class, with which kernels before Linux 5.18 show a level that none takes (get_task_ioprio(),
/// block/ioprio.c).
pub fn ioprio_get(tid: i32) -> nix::Result<u32> {
    const IOPRIO_WHO_PROCESS: i32 = 1;
    const IOPRIO_CLASS_SHIFT: u32 = 13;
    // SAFETY: takes and returns numbers only.
    let rc = unsafe { libc::syscall(libc::SYS_ioprio_get, IOPRIO_WHO_PROCESS, tid) };
    let value = Errno::result(rc)? as u32;
    Ok(if value >> IOPRIO_CLASS_SHIFT == 0 { 0 } else { value })
}

/// What kcmp(2) compares that belongs to a task as a whole.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Shared {
    Memory = 1,
    Descriptors = 2,
    FileSystem = 3,
    SignalActions = 4,
    Io = 5,
    SemaphoreUndo = 6,
}

/// Whether two tasks share it (kcmp(2)).
pub fn share(a: i32, b: i32, what: Shared) -> nix::Result<bool> {
    order(a, b, what).map(Ordering::is_eq)
}

/// Equal for tasks that share it, else an order that is stable until the next boot (kcmp(2)).
pub fn order(a: i32, b: i32, what: Shared) -> nix::Result<Ordering> {
    // SAFETY: these comparisons take numbers only.
    let rc = unsafe { libc::syscall(libc::SYS_kcmp, a, b, what as i32, 0, 0) };
    match Errno::result(rc)? {
        0 => Ok(Ordering::Equal),
        1 => Ok(Ordering::Less),
        2 => Ok(Ordering::Greater),
        _ => Err(Errno::EINVAL),
    }
}

/// pidfd_send_signal(2), Linux 5.1: to that very process, whoever has its number now.
pub fn pidfd_send_signal(pidfd: impl AsFd, signal: Signal) -> nix::Result<()> {
    let pidfd = pidfd.as_fd().as_raw_fd();
    // SAFETY: without a siginfo_t the call takes numbers only.
    let rc = unsafe {
        libc::syscall(
            libc::SYS_pidfd_send_signal,
            pidfd,
            signal as i32,
            std::ptr::null::<u8>(),
            0,
        )
    };
    Errno::result(rc).map(drop)
}

/// Set by the signals of [`cancel_on`].
static CANCELLED: AtomicBool = AtomicBool::new(false);

/// From now on these signals end nothing: they set the flag, and interrupt a blocking call (no SA_RESTART).
pub fn cancel_on(signals: &[Signal]) -> nix::Result<&'static AtomicBool> {
    extern "C" fn note(_: i32) {
        CANCELLED.store(true, AtomicOrdering::Relaxed);
    }
    let action = SigAction::new(SigHandler::Handler(note), SaFlags::empty(), SigSet::empty());
    for signal in signals {
        // SAFETY: the handler only stores to an atomic, which is async-signal-safe.
        unsafe { sigaction(*signal, &action) }?;
    }
    Ok(&CANCELLED)
}

/// Now, as /proc/PID/stat counts start times: in ticks of USER_HZ, which is 100 wherever Linux runs, since boot.
pub fn boottime_ticks() -> nix::Result<u64> {
    let now = nix::time::clock_gettime(nix::time::ClockId::CLOCK_BOOTTIME)?;
    Ok(now.tv_sec() as u64 * 100 + now.tv_nsec() as u64 / 10_000_000)
}
