//! /proc/PID/status and /proc/PID/task/TID/status (proc_pid_status(5)): identity, credentials, what restricts a thread.

use anyhow::{Context, Result};

use super::proc::ProcDir;
use super::speculation::{self, States};
use crate::image::state::Credentials;

/// The lines that matter here. All but `umask` are facts of one thread.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Status {
    /// The letter of "State:": `R`, `S`, `D`, `T` (stopped), `t` (stopped by a tracer), `Z`, `X`, `I`.
    pub state: char,
    pub tgid: i32,
    pub ppid: i32,
    pub tracer: i32,
    /// Kernel threads have no memory of their own. The line is there since Linux 6.9.
    pub kernel_thread: Option<bool>,
    pub umask: u32,
    /// All but `securebits`, which no file shows.
    pub credentials: Credentials,
    /// SECCOMP_MODE_*: 0 none, 1 strict, 2 filter.
    pub seccomp: u32,
    /// Of PR_SPEC_STORE_BYPASS, PR_SPEC_INDIRECT_BRANCH, PR_SPEC_L1D_FLUSH, where the file tells without doubt.
    pub speculation: States<Option<u32>>,
    /// "x86_Thread_features:", as `shstk` (Linux 6.6).
    pub features: Vec<String>,
}

impl Status {
    pub fn of(dir: &ProcDir) -> Result<Self> {
        Self::parse(&dir.read("status")?).context("status")
    }

    /// Bytes, since a thread's name need not be UTF-8; it has no line breaks, which the kernel escapes.
    pub fn parse(text: &[u8]) -> Result<Self> {
        let mut status = Status::default();
        for line in text.split(|&b| b == b'\n') {
            let line = String::from_utf8_lossy(line);
            let Some((key, value)) = line.split_once(':') else {
                continue;
            };
            status
                .take(key, value.trim())
                .with_context(|| format!("line {line:?}"))?;
        }
        Ok(status)
    }

    fn take(&mut self, key: &str, value: &str) -> Result<()> {
        let credentials = &mut self.credentials;
        match key {
            "State" => self.state = value.chars().next().context("empty")?,
            "Tgid" => self.tgid = value.parse()?,
            "PPid" => self.ppid = value.parse()?,
            "TracerPid" => self.tracer = value.parse()?,
            "Kthread" => self.kernel_thread = Some(value == "1"),
            "Umask" => self.umask = u32::from_str_radix(value, 8)?,
            "Uid" => credentials.uids = four(value)?,
            "Gid" => credentials.gids = four(value)?,
            "Groups" => credentials.groups = numbers(value)?,
            "CapInh" => credentials.inheritable = mask(value)?,
            "CapPrm" => credentials.permitted = mask(value)?,
            "CapEff" => credentials.effective = mask(value)?,
            "CapBnd" => credentials.bounding = mask(value)?,
            "CapAmb" => credentials.ambient = mask(value)?,
            "NoNewPrivs" => credentials.no_new_privs = value == "1",
            "Seccomp" => self.seccomp = value.parse()?,
            "Speculation_Store_Bypass" => self.speculation[0] = speculation::store_bypass(value),
            "SpeculationIndirectBranch" => self.speculation[1] = speculation::indirect_branch(value),
            "x86_Thread_features" => self.features = value.split_whitespace().map(str::to_owned).collect(),
            _ => {}
        }
        Ok(())
    }
}

fn numbers(value: &str) -> Result<Vec<u32>> {
    Ok(value.split_whitespace().map(str::parse).collect::<Result<_, _>>()?)
}

fn four(value: &str) -> Result<[u32; 4]> {
    numbers(value)?.try_into().ok().context("not four numbers")
}

fn mask(value: &str) -> Result<u64> {
    Ok(u64::from_str_radix(value, 16)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    // Linux 6.18, with a name that is not UTF-8 and looks like a line of its own.
    const TEXT: &[u8] = b"Name:\tUid: \xff\nUmask:\t0022\nState:\tS (sleeping)\nTgid:\t9247\nNgid:\t0\nPid:\t9248\n\
        PPid:\t9245\nTracerPid:\t7\nUid:\t1000\t1001\t1002\t1003\nGid:\t4\t5\t6\t7\nFDSize:\t256\nGroups:\t4 24 27 \n\
        Kthread:\t0\nVmPeak:\t    3060 kB\nThreads:\t1\nCapInh:\t0000000000000000\nCapPrm:\t000001fffeffffff\n\
        CapEff:\t0000000000000001\nCapBnd:\t000001fffeffffff\nCapAmb:\t0000000000000400\nNoNewPrivs:\t1\nSeccomp:\t2\n\
        Seccomp_filters:\t1\nx86_Thread_features:\tshstk \nvoluntary_ctxt_switches:\t12\n";

    #[test]
    fn uids_groups_and_capabilities_are_read() {
        let status = Status::parse(TEXT).unwrap();
        assert_eq!(status.credentials.uids, [1000, 1001, 1002, 1003]);
        assert_eq!(status.credentials.gids, [4, 5, 6, 7]);
        assert_eq!(status.credentials.groups, [4, 24, 27]);
        assert_eq!(status.credentials.permitted, 0x1ff_feff_ffff);
        assert_eq!(status.credentials.ambient, 0x400);
        assert!(status.credentials.no_new_privs);
    }

    #[test]
    fn what_restricts_a_thread_is_read() {
        let status = Status::parse(TEXT).unwrap();
        assert_eq!(
            (status.seccomp, status.tracer, status.state, status.umask),
            (2, 7, 'S', 0o22)
        );
        assert_eq!(status.features, ["shstk"]);
        assert_eq!(status.kernel_thread, Some(false));
    }

    #[test]
    fn a_line_that_makes_no_sense_is_an_error() {
        assert!(Status::parse(b"Uid:\t1\t2\n").is_err());
    }
}
