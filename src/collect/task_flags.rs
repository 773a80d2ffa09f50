//! Settings of a thread that the kernel keeps as flags of the task, which /proc/TID/stat shows (proc_pid_stat(5)).

use anyhow::{Context, Result};

use super::proc::ProcDir;

/// PF_* of include/linux/sched.h; those below have had these numbers since Linux 5.8.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TaskFlags(u32);

const PF_MCE_PROCESS: u32 = 0x80;
const PF_MEMALLOC_NOIO: u32 = 0x8_0000;
const PF_LOCAL_THROTTLE: u32 = 0x10_0000;
const PF_MCE_EARLY: u32 = 0x800_0000;

impl TaskFlags {
    pub fn of(dir: &ProcDir) -> Result<Self> {
        Self::parse(&String::from_utf8_lossy(&dir.read("stat")?)).context("stat")
    }

    fn parse(stat: &str) -> Result<Self> {
        // The name may hold anything; behind its last parenthesis come fields 3 and on.
        let (_, fields) = stat.rsplit_once(')').context("no name")?;
        let flags = fields.split_whitespace().nth(9 - 3).context("no flags")?;
        Ok(TaskFlags(flags.parse()?))
    }

    /// As prctl(PR_MCE_KILL_GET) shows it: PR_MCE_KILL_LATE 0, PR_MCE_KILL_EARLY 1, PR_MCE_KILL_DEFAULT 2.
    pub fn mce_kill(self) -> u32 {
        match (self.0 & PF_MCE_PROCESS != 0, self.0 & PF_MCE_EARLY != 0) {
            (false, _) => 2,
            (true, early) => early.into(),
        }
    }

    /// PR_IO_FLUSHER sets both (kernel/sys.c), and prctl(PR_GET_IO_FLUSHER) wants CAP_SYS_RESOURCE.
    pub fn io_flusher(self) -> bool {
        const PR_IO_FLUSHER: u32 = PF_MEMALLOC_NOIO | PF_LOCAL_THROTTLE;
        self.0 & PR_IO_FLUSHER == PR_IO_FLUSHER
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn flags_are_found_behind_any_name() {
        // Linux 6.18.
        let stat = "4127 (a) b (c) S 4101 4127 4101 34817 4127 4194304 98 0 0 0";
        let flags = TaskFlags::parse(stat).unwrap();
        assert_eq!((flags.mce_kill(), flags.io_flusher()), (2, false));
        assert!(TaskFlags::parse("4127 (a").is_err());
    }

    #[test]
    fn settings_are_told_from_flags() {
        assert_eq!(TaskFlags(PF_MCE_PROCESS).mce_kill(), 0);
        assert_eq!(TaskFlags(PF_MCE_PROCESS | PF_MCE_EARLY).mce_kill(), 1);
        assert!(TaskFlags(0x18_0000).io_flusher() && !TaskFlags(0x8_0000).io_flusher());
    }
}
