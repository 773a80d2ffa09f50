//! The few facts of /proc/PID that seizing needs, read below one directory descriptor, so that a reused pid cannot slip in.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use nix::fcntl::{OFlag, openat};
use nix::sys::stat::Mode;
use nix::unistd::Pid;

use crate::sys;

/// /proc/PID, opened. Reads fail with ESRCH or ENOENT once the process is gone, whoever has its number then.
#[derive(Debug)]
pub struct ProcDir(OwnedFd);

impl ProcDir {
    pub fn open(pid: Pid) -> io::Result<Self> {
        let flags = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
        Ok(ProcDir(nix::fcntl::open(
            format!("/proc/{pid}").as_str(),
            flags,
            Mode::empty(),
        )?))
    }

    pub fn try_clone(&self) -> io::Result<Self> {
        self.0.try_clone().map(ProcDir)
    }

    pub fn open_file(&self, path: &str, flags: OFlag) -> io::Result<File> {
        Ok(openat(&self.0, path, flags | OFlag::O_CLOEXEC, Mode::empty())?.into())
    }

    pub fn read(&self, path: &str) -> io::Result<Vec<u8>> {
        Ok(sys::read_whole(&self.open_file(path, OFlag::O_RDONLY)?)?)
    }

    pub fn read_text(&self, path: &str) -> io::Result<String> {
        Ok(String::from_utf8_lossy(&self.read(path)?).into_owned())
    }

    /// All tasks of the process, as /proc/PID/task lists them.
    pub fn tids(&self) -> io::Result<Vec<Pid>> {
        let entries = std::fs::read_dir(format!("/proc/self/fd/{}/task", self.0.as_raw_fd()))?;
        let mut tids = Vec::new();
        for entry in entries {
            if let Ok(tid) = entry?.file_name().to_string_lossy().parse() {
                tids.push(Pid::from_raw(tid));
            }
        }
        Ok(tids)
    }

    pub fn stat(&self) -> io::Result<Stat> {
        Stat::parse(&self.read_text("stat")?)
    }

    pub fn task_stat(&self, tid: Pid) -> io::Result<Stat> {
        Stat::parse(&self.read_text(&format!("task/{tid}/stat"))?)
    }

    pub fn task_status(&self, tid: Pid) -> io::Result<Status> {
        Ok(Status(self.read(&format!("task/{tid}/status"))?))
    }
}

impl AsFd for ProcDir {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// Fields of /proc/PID/stat (proc_pid_stat(5)).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Stat {
    pub comm: String,
    pub state: char,
    pub ppid: i32,
    pub pgid: i32,
    pub sid: i32,
    pub flags: u32,
    pub start_time: u64,
    /// Sent to its parent when it ends; -1 of a thread.
    pub exit_signal: i32,
    /// The CPU it last ran on.
    pub processor: usize,
    /// As wait(2) will tell it of one that has ended.
    pub exit_code: i32,
}

/// PF_* of include/linux/sched.h, in the field `flags`.
const PF_IO_WORKER: u32 = 0x10;
const PF_USER_WORKER: u32 = 0x4000; // since Linux 6.4; before that the bit is unused
const PF_KTHREAD: u32 = 0x20_0000;

impl Stat {
    fn parse(text: &str) -> io::Result<Self> {
        Self::parse_fields(text)
            .ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, format!("/proc/PID/stat reads {text:?}")))
    }

    /// A comm may hold spaces and parentheses: it ends at the last `)`.
    fn parse_fields(text: &str) -> Option<Self> {
        let (open, close) = (text.find('(')?, text.rfind(')')?);
        let fields: Vec<&str> = text.get(close + 1..)?.split_whitespace().collect();
        // proc_pid_stat(5) numbers fields from 1; the state, the first after the comm, is field 3.
        let field = |number: usize| fields.get(number - 3);
        Some(Stat {
            comm: text.get(open + 1..close)?.to_owned(),
            state: field(3)?.chars().next()?,
            ppid: field(4)?.parse().ok()?,
            pgid: field(5)?.parse().ok()?,
            sid: field(6)?.parse().ok()?,
            flags: field(9)?.parse().ok()?,
            start_time: field(22)?.parse().ok()?,
            exit_signal: field(38)?.parse().ok()?,
            processor: field(39)?.parse().ok()?,
            exit_code: field(52)?.parse().ok()?,
        })
    }

    /// Ended, and not yet (or never) waited for.
    pub fn is_dead(&self) -> bool {
        matches!(self.state, 'Z' | 'X' | 'x')
    }

    pub fn is_kernel_thread(&self) -> bool {
        self.flags & PF_KTHREAD != 0
    }

    /// A worker that the kernel added to the process, for io_uring or vhost; ptrace(2) does not take it.
    pub fn is_kernel_worker(&self) -> bool {
        self.flags & (PF_IO_WORKER | PF_USER_WORKER) != 0
    }
}

/// /proc/PID/status (proc_pid_status(5)): bytes, since a name need not be UTF-8.
#[derive(Debug)]
pub struct Status(pub Vec<u8>);

impl Status {
    pub fn field(&self, name: &str) -> Option<&str> {
        let lines = self.0.split(|&byte| byte == b'\n');
        let mut values = lines.filter_map(|line| line.strip_prefix(name.as_bytes())?.strip_prefix(b":"));
        std::str::from_utf8(values.next()?).ok().map(str::trim)
    }

    pub fn number(&self, name: &str) -> Option<i64> {
        self.field(name)?.split_whitespace().next()?.parse().ok()
    }

    pub(super) fn mask(&self, name: &str) -> Option<u64> {
        u64::from_str_radix(self.field(name)?, 16).ok()
    }

    /// Signals that would be delivered at once, were the task to run. `SigBlk` is the mask in force, also inside sigsuspend(2).
    pub fn deliverable_signals(&self) -> Option<u64> {
        Some((self.mask("SigPnd")? | self.mask("ShdPnd")?) & !self.mask("SigBlk")?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_comm_with_parentheses_does_not_shift_the_fields() {
        // Linux 6.18, a process renamed by prctl(PR_SET_NAME).
        let text = "4127 (a) b (c) S 4101 4127 4101 34817 4127 4194304 98 0 0 0 0 0 0 0 20 0 1 0 138012 3289088 411 \
                    18446744073709551615 1 1 0 0 0 0 0 0 0 0 0 0 17 1 0 0 0 0 0 0 0 0 0 0 0 0 0\n";
        let stat = Stat::parse(text).unwrap();
        assert_eq!(stat.comm, "a) b (c");
        assert_eq!(
            (stat.state, stat.ppid, stat.start_time, stat.exit_signal, stat.processor),
            ('S', 4101, 138_012, 17, 1)
        );
        assert!(!stat.is_kernel_thread());
    }

    #[test]
    fn a_blocked_pending_signal_is_not_deliverable() {
        let status =
            Status(b"SigPnd:\t0000000000000200\nShdPnd:\t0000000000002000\nSigBlk:\t0000000000000200\n".to_vec());
        assert_eq!(status.deliverable_signals(), Some(0x2000));
    }
}
