//! The stage: one memfd, mapped in the task that is rebuilt, with the stub's text, room for scripts and their data, and a stack.
//!
//! The host writes it through its descriptor, so a script costs two pwrites and no copy by ptrace.
#![deny(unsafe_code)]

use std::cell::Cell;
use std::fs::File;
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileExt;

use anyhow::{Context, Result, ensure};
use nix::errno::Errno;
use nix::sys::memfd::{MFdFlags, memfd_create};

use super::wire::Op;

/// The stub as build.rs made it: an ELF of one segment that runs at any address.
pub const STUB: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/stub.elf"));

/// Room for the stub's text at the start of the stage, mapped private and executable.
pub const TEXT_LEN: u64 = 16 << 10;
const _: () = assert!(STUB.len() as u64 <= TEXT_LEN);
/// What calls point at: structures, path names, arrays.
pub const DATA_LEN: u64 = 128 << 10;
/// The operations, [`OPS_MAX`] at most.
const OPS_LEN: u64 = 96 << 10;
pub const OPS_MAX: usize = (OPS_LEN / size_of::<Op>() as u64) as usize;
const STACK_LEN: u64 = 16 << 10;
/// Length of the whole mapping in the task.
pub const STAGE_LEN: u64 = TEXT_LEN + DATA_LEN + OPS_LEN + STACK_LEN;

/// The stage and the address at which the task has it mapped.
pub struct Stage {
    memfd: File,
    addr: Cell<u64>,
}

impl Stage {
    /// Makes the memfd. It has no place in a task yet, see [`place`](Self::place).
    pub fn new() -> Result<Self> {
        let memfd = File::from(executable_memfd(c"cryopod-stage")?);
        memfd
            .set_len(STAGE_LEN)
            .and_then(|()| memfd.write_all_at(STUB, 0))
            .context("fill the stage")?;
        Ok(Stage {
            memfd,
            addr: Cell::new(0),
        })
    }

    pub fn memfd(&self) -> &File {
        &self.memfd
    }

    /// Says where in the task it is to be mapped, which is known only after the exec.
    pub fn place(&self, addr: u64) {
        self.addr.set(addr);
    }

    pub fn addr(&self) -> u64 {
        self.addr.get()
    }

    pub fn end(&self) -> u64 {
        self.addr() + STAGE_LEN
    }

    /// Where the stub's `_start` is in the task.
    pub fn entry(&self) -> u64 {
        self.addr() + stub_entry_offset()
    }

    pub fn data_addr(&self, offset: usize) -> u64 {
        self.addr() + TEXT_LEN + offset as u64
    }

    pub fn ops_addr(&self) -> u64 {
        self.addr() + TEXT_LEN + DATA_LEN
    }

    /// Top of the stack, aligned as at a function's entry by call (System V ABI).
    pub fn stack_top(&self) -> u64 {
        self.end() - 64
    }

    pub fn write_data(&self, offset: usize, bytes: &[u8]) -> Result<()> {
        self.memfd
            .write_all_at(bytes, TEXT_LEN + offset as u64)
            .context("write the stage")
    }

    pub fn write_ops(&self, ops: &[Op]) -> Result<()> {
        ensure!(ops.len() <= OPS_MAX, "a script of {} calls", ops.len());
        let bytes: Vec<u8> = ops.iter().flat_map(op_bytes).collect();
        self.memfd
            .write_all_at(&bytes, TEXT_LEN + DATA_LEN)
            .context("write the stage")
    }

    /// The results of the first `count` operations.
    pub fn results(&self, count: usize) -> Result<Vec<i64>> {
        let mut bytes = vec![0; count * size_of::<Op>()];
        self.memfd
            .read_exact_at(&mut bytes, TEXT_LEN + DATA_LEN)
            .context("read the stage")?;
        let result = |op: &[u8]| i64::from_ne_bytes(op[size_of::<Op>() - 8..].try_into().expect("eight bytes"));
        Ok(bytes.chunks_exact(size_of::<Op>()).map(result).collect())
    }
}

/// Offset of `_start` in the stub's file, which is also that from where the file is mapped: its segment begins at offset 0.
fn stub_entry_offset() -> u64 {
    let word = |at: usize| u64::from_ne_bytes(STUB[at..at + 8].try_into().expect("eight bytes"));
    // e_entry of the ELF header; p_vaddr of the first program header, which follows the header (elf(5)).
    word(24) - word(64 + 16)
}

fn op_bytes(op: &Op) -> [u8; size_of::<Op>()] {
    let mut bytes = [0; size_of::<Op>()];
    let words = [op.number].into_iter().chain(op.args).chain([op.result as u64]);
    for (slot, word) in bytes.chunks_exact_mut(8).zip(words) {
        slot.copy_from_slice(&word.to_ne_bytes());
    }
    bytes
}

/// A memfd that may be executed or mapped so: MFD_EXEC says it since Linux 6.3 (vm.memfd_noexec); before, all may.
pub fn executable_memfd(name: &std::ffi::CStr) -> Result<OwnedFd> {
    let exec = MFdFlags::MFD_CLOEXEC | MFdFlags::from_bits_retain(libc::MFD_EXEC);
    match memfd_create(name, exec) {
        Err(Errno::EINVAL) => memfd_create(name, MFdFlags::MFD_CLOEXEC).context("memfd_create"),
        Err(Errno::EACCES) => {
            Err(Errno::EACCES).context("vm.memfd_noexec is 2, so no memfd can be executed; set it to 1 or 0")
        }
        made => made.context("memfd_create"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_stub_is_small_and_begins_with_a_trap() {
        assert!(STUB.len() < 16 << 10, "{} bytes", STUB.len());
        #[cfg(target_arch = "x86_64")]
        assert_eq!(STUB[stub_entry_offset() as usize..][..4], [0xcc, 0x0f, 0x05, 0xcc]);
    }

    #[test]
    fn results_are_read_where_the_stub_writes_them() {
        let stage = Stage::new().unwrap();
        let op = Op {
            number: 1,
            args: [2, 3, 4, 5, 6, 7],
            result: -8,
        };
        stage.write_ops(&[op, Op { result: 9, ..op }]).unwrap();
        assert_eq!(stage.results(2).unwrap(), [-8, 9]);
    }
}
