//! Filters of seccomp(2): read by ptrace(2), and asked beforehand about every call that a thread is to make for us. A call that they
//! forbid is not made: a freezer that suspended filters (PTRACE_O_SUSPEND_SECCOMP) and died would leave the program to be killed by them.

use nix::errno::Errno;

use super::bpf::{self, Call, INSTRUCTION_LEN, Instruction};
use super::{Result, Stopped};
use crate::image::state::Filter;

const PTRACE_SECCOMP_GET_FILTER: u32 = 0x420c;
const PTRACE_SECCOMP_GET_METADATA: u32 = 0x420d;

/// The filters of a thread, the oldest first.
#[derive(Debug, Clone, Default)]
pub struct Filters(Vec<(Filter, Vec<Instruction>)>);

impl Filters {
    /// Of a thread in SECCOMP_MODE_FILTER. EACCES without CAP_SYS_ADMIN or under a filter of our own, EMEDIUMTYPE for a filter that is
    /// no classic BPF, EINVAL in a kernel without CONFIG_CHECKPOINT_RESTORE (seccomp_get_filter(), kernel/seccomp.c).
    pub fn of(task: &Stopped) -> Result<Self> {
        let mut filters = Vec::new();
        loop {
            match instructions(task, filters.len()) {
                Ok(bytes) => {
                    let (whole, _) = bytes.as_chunks::<INSTRUCTION_LEN>();
                    let program = whole.iter().map(|bytes| Instruction::from_bytes(*bytes)).collect();
                    let flags = flags(task, filters.len())?;
                    filters.push((
                        Filter {
                            flags,
                            instructions: bytes,
                        },
                        program,
                    ));
                }
                Err(error) if error.errno() == Some(Errno::ENOENT) => return Ok(Filters(filters)),
                Err(error) => return Err(error),
            }
        }
    }

    pub fn for_image(&self) -> impl Iterator<Item = &Filter> {
        self.0.iter().map(|(filter, _)| filter)
    }

    /// Whether all of them let the call through (seccomp(2): the answer that takes precedence is the least one).
    pub fn allow(&self, call: Call) -> bool {
        const SECCOMP_RET_LOG: u32 = 0x7ffc_0000;
        const ACTION: u32 = 0xffff_0000;
        // SECCOMP_RET_KILL_PROCESS is the least as a signed number.
        let is_allowed = |answer: u32| (answer & ACTION).cast_signed() >= SECCOMP_RET_LOG.cast_signed();
        self.0
            .iter()
            .all(|(_, program)| bpf::run(program, call).is_some_and(is_allowed))
    }

    /// Whether one of them leaves decisions to a supervisor (seccomp_unotify(2)).
    pub fn has_supervisor(&self) -> bool {
        const SECCOMP_RET_USER_NOTIF: u32 = 0x7fc0_0000;
        const ACTION: u32 = 0xffff_0000;
        let asks = |instruction: &Instruction| {
            instruction
                .constant_answer()
                .is_some_and(|answer| answer & ACTION == SECCOMP_RET_USER_NOTIF)
        };
        self.0.iter().any(|(_, program)| program.iter().any(asks))
    }
}

fn instructions(task: &Stopped, index: usize) -> Result<Vec<u8>> {
    let name = "PTRACE_SECCOMP_GET_FILTER";
    let count = task.request(PTRACE_SECCOMP_GET_FILTER, name, index, 0)?;
    let mut bytes = vec![0u8; usize::try_from(count).unwrap_or(0) * INSTRUCTION_LEN];
    // The task is stopped, so that the filter is as long as it was.
    task.request(PTRACE_SECCOMP_GET_FILTER, name, index, bytes.as_mut_ptr() as usize)?;
    Ok(bytes)
}

/// SECCOMP_FILTER_FLAG_LOG is all that the kernel tells.
fn flags(task: &Stopped, index: usize) -> Result<u64> {
    let mut metadata = [index as u64, 0]; // struct seccomp_metadata: filter_off, flags
    let (size, to) = (size_of_val(&metadata), metadata.as_mut_ptr() as usize);
    task.request(PTRACE_SECCOMP_GET_METADATA, "PTRACE_SECCOMP_GET_METADATA", size, to)?;
    Ok(metadata[1])
}

impl Stopped {
    /// From now on filters let every call of the task through, until it is let go. For tasks of ours, that die with us
    /// (PTRACE_O_EXITKILL); needs CAP_SYS_ADMIN and no filter of our own.
    pub fn suspend_filters(&mut self) -> Result<()> {
        const PTRACE_O_SUSPEND_SECCOMP: i32 = 1 << 21;
        self.set_options(libc::PTRACE_O_EXITKILL | libc::PTRACE_O_TRACESYSGOOD | PTRACE_O_SUSPEND_SECCOMP)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn filters(answers: &[u32]) -> Filters {
        let program = |answer: &u32| {
            let instruction = Instruction {
                code: 0x06,
                jump_true: 0,
                jump_false: 0,
                k: *answer,
            };
            let filter = Filter {
                flags: 0,
                instructions: Vec::new(),
            };
            (filter, vec![instruction])
        };
        Filters(answers.iter().map(program).collect())
    }

    #[test]
    fn one_filter_that_forbids_is_enough() {
        let call = Call {
            number: 39,
            pc: 0,
            args: [0; 6],
        };
        assert!(filters(&[0x7fff_0000, 0x7ffc_0000]).allow(call));
        for forbids in [0x8000_0000, 0, 0x3_0000, 0x5_0001, 0x7fc0_0000, 0x7ff0_0000] {
            assert!(!filters(&[0x7fff_0000, forbids]).allow(call), "{forbids:#x}");
        }
        assert!(filters(&[0x7fc0_0000]).has_supervisor() && !filters(&[0x7fff_0000]).has_supervisor());
    }
}
