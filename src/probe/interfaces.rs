//! The kernel's interfaces, each tried on ourselves or on a child that does nothing.

use super::{Capabilities, Finding, Kind, Need};
use crate::sys::process::{ScanRequest, pagemap_scan};
use crate::sys::{fds, probe as sys};
use crate::{arch, tracer};
use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::unistd::Pid;
use std::fs::{self, File};
use std::io;
use std::os::fd::{AsFd, AsRawFd};

/// What a try saw where it worked, or why it did not.
type Seen = Result<String, String>;

pub(super) fn probe(capabilities: &Capabilities) -> Vec<Finding> {
    let mut findings = Vec::new();
    let mut add = |name, needed_for, seen: Seen, without| {
        let (present, detail) = match seen {
            Ok(detail) => (true, detail),
            Err(reason) => (false, reason),
        };
        findings.push(Finding {
            name,
            kind: Kind::Interface,
            present,
            detail,
            needed_for,
            without,
        });
    };
    add(
        "ptrace (PTRACE_SEIZE)",
        Need::Both,
        seize(),
        "nothing can be stopped, looked at or rebuilt",
    );
    add(
        "yama ptrace_scope",
        Need::Some,
        yama(*capabilities),
        "only your own children can be frozen, or nothing at all",
    );
    add(
        "PTRACE_GET_RSEQ_CONFIGURATION",
        Need::Some,
        rseq_configuration(),
        "the restartable sequences of programs (rseq(2)) are not seen",
    );
    add(
        "pidfd_open, pidfd_getfd",
        Need::Freeze,
        pidfd_getfd(),
        "descriptors cannot be looked at",
    );
    add(
        "kcmp",
        Need::Freeze,
        kcmp(),
        "which descriptors share a description cannot be seen",
    );
    add(
        "/proc/PID/map_files",
        Need::Some,
        map_files(),
        "memory that is shared (memfd, MAP_SHARED) cannot be frozen",
    );
    add(
        "/proc/PID/timers",
        Need::Some,
        proc_timers(),
        "programs with POSIX timers cannot be frozen",
    );
    add(
        "PAGEMAP_SCAN",
        Need::Some,
        scan_of_pages(),
        "memory in use is found by /proc/PID/pagemap, more slowly",
    );
    add(
        "clone3 with set_tid",
        Need::Thaw,
        set_tid(),
        "pids cannot be given back",
    );
    add(
        "PR_SET_MM_MAP",
        Need::Thaw,
        words(sys::mm_map_size()),
        "the heap and /proc's view of a program cannot be set",
    );
    add(
        "memfd that can be executed",
        Need::Thaw,
        executable_memfd(),
        "the program that rebuilds others cannot start",
    );
    add(
        "ARCH_MAP_VDSO_64",
        Need::Some,
        words(arch::probe::map_vdso()),
        "the vDSO cannot be put where it was",
    );
    add(
        "userfaultfd",
        Need::Some,
        userfaultfd(),
        "memory is filled another way, more slowly",
    );
    add(
        "time namespaces",
        Need::Some,
        time_namespace(),
        "no thaw after another boot, nor with --clock=continue",
    );
    add(
        "PR_TIMER_CREATE_RESTORE_IDS",
        Need::Some,
        words(sys::timer_create_restore_ids()),
        "ids of POSIX timers are reached by making and deleting timers in between",
    );
    findings
}

/// A short text for what worked, the system's words for what did not.
fn words<T>(tried: io::Result<T>) -> Seen {
    match tried {
        Ok(_) => Ok("works".to_owned()),
        Err(e) => Err(match e.raw_os_error() {
            Some(libc::ENOSYS) => "not in this kernel".to_owned(),
            // prctl(2) and ioctl(2) say so of a request that they do not know.
            Some(libc::EINVAL | libc::ENOTTY) => "not known to this kernel".to_owned(),
            Some(libc::EPERM | libc::EACCES) => "not permitted".to_owned(),
            _ => e.to_string(),
        }),
    }
}

fn seize() -> Seen {
    let tried = || -> anyhow::Result<()> {
        let child = sys::IdleChild::start()?;
        stop(child.pid())?.detach(0)?;
        Ok(())
    };
    tried().map(|()| "works".to_owned()).map_err(|e| format!("{e:#}"))
}

fn stop(pid: Pid) -> tracer::Result<tracer::Stopped> {
    let running = tracer::Running::seize(pid, 0)?;
    running.interrupt()?;
    running.wait()
}

/// Documentation/admin-guide/LSM/Yama.rst.
fn yama(capabilities: Capabilities) -> Seen {
    let Ok(scope) = fs::read_to_string("/proc/sys/kernel/yama/ptrace_scope") else {
        return Ok("no Yama here".to_owned());
    };
    let scope = scope.trim();
    match (scope, capabilities.has_sys_ptrace()) {
        ("0", _) => Ok("0: any program of the same user".to_owned()),
        ("1" | "2", true) => Ok(format!("{scope}, which CAP_SYS_PTRACE overrides")),
        ("1", false) => Err("1: only descendants, without CAP_SYS_PTRACE".to_owned()),
        ("2", false) => Err("2: nothing without CAP_SYS_PTRACE".to_owned()),
        _ => Err(format!("{scope}: no process may trace another one until the next boot")),
    }
}

fn rseq_configuration() -> Seen {
    const PTRACE_GET_RSEQ_CONFIGURATION: u32 = 0x420f;
    let tried = || -> anyhow::Result<()> {
        let child = sys::IdleChild::start()?;
        let stopped = stop(child.pid())?;
        let mut configuration = [0u8; 24]; // struct ptrace_rseq_configuration, linux/ptrace.h
        let (len, data) = (configuration.len(), configuration.as_mut_ptr() as usize);
        stopped.request(
            PTRACE_GET_RSEQ_CONFIGURATION,
            "PTRACE_GET_RSEQ_CONFIGURATION",
            len,
            data,
        )?;
        Ok(())
    };
    tried().map(|()| "works".to_owned()).map_err(|e| format!("{e:#}"))
}

fn pidfd_getfd() -> Seen {
    let tried = || {
        let file = File::open("/dev/null")?; // the child inherits it
        let child = sys::IdleChild::start()?;
        let pidfd = fds::pidfd_open(child.pid())?;
        fds::pidfd_getfd(pidfd.as_fd(), file.as_raw_fd())
    };
    words(tried())
}

fn kcmp() -> Seen {
    let tried = || {
        let file = File::open("/dev/null")?;
        let own = (nix::unistd::getpid(), file.as_raw_fd());
        fds::kcmp_file(own, own)
    };
    words(tried())
}

/// Opening an entry needs CAP_CHECKPOINT_RESTORE or CAP_SYS_ADMIN (proc_map_files_get_link(), fs/proc/base.c).
fn map_files() -> Seen {
    let tried = || {
        let entry = fs::read_dir("/proc/self/map_files")?.next();
        let entry = entry.ok_or_else(|| io::Error::other("/proc/self/map_files is empty"))??;
        File::open(entry.path())
    };
    words(tried()).map_err(|why| match why.as_str() {
        "not permitted" => "not permitted: needs CAP_CHECKPOINT_RESTORE".to_owned(),
        _ => why,
    })
}

fn proc_timers() -> Seen {
    match fs::read("/proc/self/timers") {
        Err(e) if e.kind() == io::ErrorKind::NotFound => Err("not in this kernel".to_owned()),
        tried => words(tried),
    }
}

fn scan_of_pages() -> Seen {
    let of_nothing = ScanRequest::default();
    words(File::open("/proc/self/pagemap").and_then(|pagemap| Ok(pagemap_scan(&pagemap, &of_nothing, &mut [])?)))
}

/// The pid of a child that has just ended is free, so it is one that can be asked for.
fn set_tid() -> Seen {
    let tried = || {
        let child = sys::IdleChild::start()?;
        let pid = child.pid();
        drop(child);
        sys::clone3(0, Some(pid))
    };
    words(tried()).map_err(|why| match why.as_str() {
        "not permitted" => "not permitted: needs CAP_CHECKPOINT_RESTORE".to_owned(),
        _ => why,
    })
}

/// vm.memfd_noexec, Documentation/userspace-api/mfd_noexec.rst. MFD_EXEC is known since Linux 6.3.
fn executable_memfd() -> Seen {
    let flags = MFdFlags::MFD_CLOEXEC;
    let tried = memfd_create("probe", flags | MFdFlags::from_bits_retain(libc::MFD_EXEC)).or_else(|e| match e {
        nix::errno::Errno::EINVAL => memfd_create("probe", flags),
        e => Err(e),
    });
    words(tried.map_err(io::Error::from)).map_err(|why| format!("{why}: vm.memfd_noexec is 2"))
}

fn userfaultfd() -> Seen {
    const UFFD_USER_MODE_ONLY: i32 = 1;
    match sys::userfaultfd(0) {
        Ok(_) => Ok("works".to_owned()),
        Err(all) => match sys::userfaultfd(UFFD_USER_MODE_ONLY) {
            Ok(_) => Ok("works, for faults in user mode (vm.unprivileged_userfaultfd is 0)".to_owned()),
            Err(_) => words::<()>(Err(all)),
        },
    }
}

fn time_namespace() -> Seen {
    const CLONE_NEWTIME: u64 = 0x80;
    if !fs::exists("/proc/self/ns/time").unwrap_or(false) {
        return Err("not in this kernel".to_owned());
    }
    words(sys::clone3(CLONE_NEWTIME, None)).map_err(|why| match why.as_str() {
        "not permitted" => "not permitted: needs CAP_SYS_ADMIN".to_owned(),
        _ => why,
    })
}
