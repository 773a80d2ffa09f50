//! The memory of a stopped process, through /proc/PID/mem.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

use nix::fcntl::OFlag;

use super::proc::ProcDir;

/// Reads the memory of one process, from any number of threads at once.
///
/// /proc/PID/mem neither pins pages nor breaks copy-on-write sharing, unlike process_vm_readv(2). It stays with the address space it
/// was opened on.
#[derive(Debug)]
pub struct ProcessMemory(File);

impl ProcessMemory {
    pub(super) fn open(proc: &ProcDir) -> io::Result<Self> {
        Ok(ProcessMemory(proc.open_file("mem", OFlag::O_RDWR)?))
    }

    /// Fills `buffer` from the address on. EIO where nothing readable is mapped.
    pub fn read_at(&self, addr: u64, buffer: &mut [u8]) -> io::Result<()> {
        self.0.read_exact_at(buffer, addr)
    }

    pub fn read_u64(&self, addr: u64) -> io::Result<u64> {
        let mut word = [0; 8];
        self.read_at(addr, &mut word)?;
        Ok(u64::from_ne_bytes(word))
    }

    /// Writes, also to private mappings that are read-only for the process itself (FOLL_FORCE).
    pub(super) fn write_at(&self, addr: u64, bytes: &[u8]) -> io::Result<()> {
        self.0.write_all_at(bytes, addr)
    }
}
