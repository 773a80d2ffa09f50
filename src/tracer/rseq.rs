//! The rseq(2) registration of a thread: since Linux 5.13 ptrace(2) tells it, before that the call itself does, by its errors.

use super::remote::Remote;
use super::{Error, ProcessMemory, Result, Stopped};
use crate::arch::{self, PAGE_SIZE};
use crate::image::state::Rseq;

/// Offset of rseq_cs in struct rseq (include/uapi/linux/rseq.h).
pub(super) const RSEQ_CS_AT: u64 = 8;

/// struct ptrace_rseq_configuration (include/uapi/linux/ptrace.h).
#[repr(C)]
#[derive(Default)]
struct RseqConfiguration {
    pointer: u64,
    size: u32,
    signature: u32,
    flags: u32,
    pad: u32,
}
const _: () = assert!(size_of::<RseqConfiguration>() == 24);

/// What ptrace(2) tells of a registration.
#[derive(Debug, Clone, Copy)]
pub(super) enum Registration {
    Told(Option<Rseq>),
    /// A kernel before Linux 5.13 does not know the request.
    Untold,
}

/// PTRACE_GET_RSEQ_CONFIGURATION.
pub(super) fn registration(task: &Stopped, memory: &ProcessMemory) -> Result<Registration> {
    const PTRACE_GET_RSEQ_CONFIGURATION: u32 = 0x420f;
    let mut conf = RseqConfiguration::default();
    let (size, to) = (size_of::<RseqConfiguration>(), (&raw mut conf) as usize);
    match task.request(PTRACE_GET_RSEQ_CONFIGURATION, "PTRACE_GET_RSEQ_CONFIGURATION", size, to) {
        Ok(_) if conf.pointer == 0 => return Ok(Registration::Told(None)),
        Ok(_) => {}
        Err(error) if error.errno() == Some(nix::Error::EIO) => return Ok(Registration::Untold),
        Err(error) => return Err(error),
    }
    let critical_section = memory
        .read_u64(conf.pointer + RSEQ_CS_AT)
        .map_err(|error| Error::memory(task.tid(), "its struct rseq", &error))?;
    Ok(Registration::Told(Some(Rseq {
        addr: conf.pointer,
        size: conf.size,
        flags: conf.flags,
        signature: conf.signature,
        critical_section,
    })))
}

/// sizeof(struct rseq) as all kernels take it that do not tell of a registration, and its alignment.
const SIZE: u64 = 32;
/// How far from the thread pointer a C library or an allocator has its struct rseq, which is thread-local.
const REACH: u64 = 32 << 10;

impl Remote<'_> {
    /// The registration of the thread, found by the errors of rseq(2) (kernel/rseq.c), which change nothing: an address that the kernel cannot
    /// use is EFAULT without a registration and EINVAL with one; another address than that of the registration is EINVAL, another
    /// signature EPERM, and the same once more EBUSY. The error is a registration that lies elsewhere.
    pub fn find_rseq(&mut self) -> Result<std::result::Result<Option<Rseq>, &'static str>> {
        const NOWHERE: u64 = !(SIZE - 1);
        match self.register(NOWHERE, 0)? {
            Some(nix::Error::EINVAL) => {}
            _ => return Ok(Ok(None)),
        }
        let center = self.thread_pointer()? / SIZE * SIZE;
        for addr in self.candidates(center) {
            if !matches!(self.register(addr, 0)?, Some(nix::Error::EPERM | nix::Error::EBUSY)) {
                continue;
            }
            for &signature in arch::RSEQ_SIGNATURES.iter().chain([&0]) {
                if self.register(addr, signature)? == Some(nix::Error::EBUSY) {
                    let critical_section = self.read_word(addr + RSEQ_CS_AT)?;
                    let size = SIZE as u32;
                    return Ok(Ok(Some(Rseq {
                        addr,
                        size,
                        flags: 0,
                        signature,
                        critical_section,
                    })));
                }
            }
            return Ok(Err(
                "has registered restartable sequences with a signature of its own, which this kernel does not tell",
            ));
        }
        Ok(Err(
            "has registered restartable sequences, and this kernel does not tell where",
        ))
    }

    /// What may be a struct rseq, nearest to the thread pointer first: both CPU numbers are the same and small.
    fn candidates(&self, center: u64) -> Vec<u64> {
        let mut found = Vec::new();
        let first = center.saturating_sub(REACH) / PAGE_SIZE * PAGE_SIZE;
        for page in (first..center + REACH).step_by(PAGE_SIZE as usize) {
            let mut bytes = [0; PAGE_SIZE as usize];
            if self.read(page, &mut bytes).is_err() {
                continue;
            }
            for (addr, area) in (page..).step_by(SIZE as usize).zip(bytes.chunks_exact(SIZE as usize)) {
                let word = |at: usize| u32::from_ne_bytes(area[at..at + 4].try_into().expect("four bytes"));
                if word(0) == word(4) && word(0) < 8192 {
                    found.push(addr);
                }
            }
        }
        found.sort_by_key(|addr| addr.abs_diff(center));
        found
    }

    fn register(&mut self, addr: u64, signature: u32) -> Result<Option<nix::Error>> {
        match self.call("rseq", libc::SYS_rseq, [addr, SIZE, 0, signature.into(), 0, 0]) {
            Ok(_) => Ok(None),
            Err(error @ Error::Call { .. }) => Ok(error.errno()),
            Err(error) => Err(error),
        }
    }
}
