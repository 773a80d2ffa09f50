//! Getters of settings that a thread is made to call: prctl(2), membarrier(2), get_mempolicy(2) and their like.

use super::remote::Remote;
use super::{Error, Result};
use crate::arch;
use crate::image::state::MemoryPolicy;

/// MAX_NUMNODES of the kernel is at most 1024 (CONFIG_NODES_SHIFT), and get_mempolicy(2) wants a mask at least as long as it has nodes.
const NODES_MAX: u64 = 1024;

impl Remote<'_> {
    /// PR_GET_THP_DISABLE(2const), of the process.
    pub fn get_thp_disable(&mut self) -> Result<u32> {
        Ok(self.prctl("PR_GET_THP_DISABLE", libc::PR_GET_THP_DISABLE, 0)? as u32)
    }

    /// PR_GET_MDWE(2const), of the process. 0 before Linux 6.3.
    pub fn get_mdwe(&mut self) -> Result<u32> {
        const PR_GET_MDWE: i32 = 66;
        none_if_unknown(self.prctl("PR_GET_MDWE", PR_GET_MDWE, 0)).map(|bits| bits as u32)
    }

    /// prctl(PR_GET_MEMORY_MERGE), of the process. False before Linux 6.4 and without CONFIG_KSM.
    pub fn get_memory_merge(&mut self) -> Result<bool> {
        const PR_GET_MEMORY_MERGE: i32 = 68;
        none_if_unknown(self.prctl("PR_GET_MEMORY_MERGE", PR_GET_MEMORY_MERGE, 0)).map(|on| on != 0)
    }

    /// prctl(PR_FUTEX_HASH, PR_FUTEX_HASH_GET_SLOTS), of the process. None before Linux 6.16.
    pub fn get_futex_slots(&mut self) -> Result<Option<u32>> {
        const PR_FUTEX_HASH: i32 = 78;
        const GET_SLOTS: u64 = 2;
        match self.prctl("PR_FUTEX_HASH_GET_SLOTS", PR_FUTEX_HASH, GET_SLOTS) {
            Err(error) if is_unknown(&error) => Ok(None),
            other => other.map(|slots| Some(slots as u32)),
        }
    }

    /// PR_GET_TSC(2const), of the thread. 0 where the architecture has none.
    pub fn get_tsc(&mut self) -> Result<u32> {
        let to = self.results_at();
        match self.prctl("PR_GET_TSC", libc::PR_GET_TSC, to) {
            Err(error) if is_unknown(&error) => Ok(0),
            other => other.and_then(|_| Ok(self.words::<1>()?[0] as u32)),
        }
    }

    /// PR_GET_SPECULATION_CTRL(2const), of the thread. 0, not affected, where the kernel does not know of it.
    pub fn get_speculation(&mut self, which: u32) -> Result<u32> {
        const PR_GET_SPECULATION_CTRL: i32 = 52;
        let answer = self.prctl("PR_GET_SPECULATION_CTRL", PR_GET_SPECULATION_CTRL, which.into());
        match answer {
            Err(error) if error.errno() == Some(nix::Error::ENODEV) => Ok(0),
            other => none_if_unknown(other).map(|state| state as u32),
        }
    }

    /// membarrier(2), MEMBARRIER_CMD_GET_REGISTRATIONS, of the process.
    ///
    /// Before Linux 6.3 there is no such command; then the barriers themselves tell, since they are for those who registered (EPERM).
    /// Only the registration for global barriers cannot be told then; taken for there, it has no effect but on the others' speed.
    pub fn membarrier_registrations(&mut self) -> Result<u32> {
        const GET_REGISTRATIONS: u64 = 1 << 9;
        match self.membarrier(GET_REGISTRATIONS) {
            Err(error) if is_unknown(&error) => self.membarriers_that_work(),
            Err(error) if error.errno() == Some(nix::Error::ENOSYS) => Ok(0),
            other => other.map(|registrations| registrations as u32),
        }
    }

    /// For kernels that do not tell registrations: commands of which each works after its registration, whose number is twice its own.
    pub fn membarriers_that_work(&mut self) -> Result<u32> {
        /// MEMBARRIER_CMD_PRIVATE_EXPEDITED, …_SYNC_CORE, …_RSEQ (include/uapi/linux/membarrier.h), and what registers for them.
        const COMMANDS: [(u64, u32); 3] = [(1 << 3, 1 << 4), (1 << 5, 1 << 6), (1 << 7, 1 << 8)];
        const REGISTER_GLOBAL_EXPEDITED: u32 = 1 << 2;
        let mut registrations = REGISTER_GLOBAL_EXPEDITED;
        for (command, registration) in COMMANDS {
            match self.membarrier(command) {
                Ok(_) => registrations |= registration,
                Err(error) if matches!(error.errno(), Some(nix::Error::EPERM | nix::Error::EINVAL)) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(registrations)
    }

    fn membarrier(&mut self, command: u64) -> Result<u64> {
        self.call("membarrier", libc::SYS_membarrier, [command, 0, 0, 0, 0, 0])
    }

    /// get_mempolicy(2): of the thread, or with an address of the mapping there (MPOL_F_ADDR), which does not fall back to the
    /// thread's (do_get_mempolicy(), mm/mempolicy.c). None is the default, and all that a kernel without CONFIG_NUMA has.
    pub fn memory_policy(&mut self, address: Option<u64>) -> Result<Option<MemoryPolicy>> {
        const MPOL_DEFAULT: u32 = 0;
        const MPOL_F_ADDR: u64 = 2;
        let flags = if address.is_some() { MPOL_F_ADDR } else { 0 };
        let (mode_at, nodes_at) = (self.results_at(), self.results_at() + 8);
        let args = [mode_at, nodes_at, NODES_MAX + 1, address.unwrap_or(0), flags, 0];
        match self.call("get_mempolicy", libc::SYS_get_mempolicy, args) {
            Err(error) if error.errno() == Some(nix::Error::ENOSYS) => return Ok(None),
            other => other?,
        };
        const LEN: usize = 8 + NODES_MAX as usize / 8;
        let bytes = self.results::<LEN>()?;
        let (mode, nodes) = bytes.split_at(8);
        let mode = mode.first_chunk().map_or(0, |mode| u32::from_ne_bytes(*mode));
        let used = nodes.iter().rposition(|byte| *byte != 0).map_or(0, |last| last + 1);
        Ok((mode != MPOL_DEFAULT).then(|| MemoryPolicy {
            mode,
            nodes: nodes[..used].to_vec(),
        }))
    }

    /// Whether the instruction CPUID raises a signal in the thread (arch_prctl(2), ARCH_GET_CPUID).
    pub fn cpuid_faults(&mut self) -> Result<bool> {
        let Some((number, command)) = arch::GET_CPUID else {
            return Ok(false);
        };
        Ok(self.call("arch_prctl(ARCH_GET_CPUID)", number, [command, 0, 0, 0, 0, 0])? == 0)
    }

    /// The extended states that the process may use (arch_prctl(ARCH_GET_XCOMP_PERM), Linux 5.16).
    pub fn xstate_permission(&mut self) -> Result<u64> {
        let Some((number, command)) = arch::GET_XCOMP_PERM else {
            return Ok(0);
        };
        let to = self.results_at();
        match self.call("arch_prctl(ARCH_GET_XCOMP_PERM)", number, [command, to, 0, 0, 0, 0]) {
            Err(error) if is_unknown(&error) => Ok(0),
            other => other.and_then(|_| Ok(self.words::<1>()?[0])),
        }
    }

    /// Whether the process has segments of its own: modify_ldt(2), function 0, returns how many bytes of them it has read. None are there
    /// in a kernel without CONFIG_MODIFY_LDT_SYSCALL (ENOSYS).
    pub fn has_ldt(&mut self) -> Result<bool> {
        const READ: u64 = 0;
        const ONE_ENTRY: u64 = 8;
        let Some(number) = arch::MODIFY_LDT else {
            return Ok(false);
        };
        let to = self.results_at();
        match self.call("modify_ldt", number, [READ, to, ONE_ENTRY, 0, 0, 0]) {
            Ok(len) => Ok(len > 0),
            Err(error) if error.errno() == Some(nix::Error::ENOSYS) => Ok(false),
            Err(error) => Err(error),
        }
    }
}

/// A kernel that does not know a command says EINVAL: what it would tell is not set then.
fn none_if_unknown(answer: Result<u64>) -> Result<u64> {
    match answer {
        Err(error) if is_unknown(&error) => Ok(0),
        other => other,
    }
}

fn is_unknown(error: &Error) -> bool {
    error.errno() == Some(nix::Error::EINVAL)
}
