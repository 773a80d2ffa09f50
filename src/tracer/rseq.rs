//! The rseq(2) registration of a thread.

use super::{Error, ProcessMemory, Result, Stopped};
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

/// PTRACE_GET_RSEQ_CONFIGURATION, since Linux 5.13; a kernel without it answers EIO, and then nothing is known of a registration.
pub(super) fn registration(task: &Stopped, memory: &ProcessMemory) -> Result<Option<Rseq>> {
    const PTRACE_GET_RSEQ_CONFIGURATION: u32 = 0x420f;
    let mut conf = RseqConfiguration::default();
    let (size, to) = (size_of::<RseqConfiguration>(), (&raw mut conf) as usize);
    match task.request(PTRACE_GET_RSEQ_CONFIGURATION, "PTRACE_GET_RSEQ_CONFIGURATION", size, to) {
        Ok(_) if conf.pointer == 0 => return Ok(None),
        Ok(_) => {}
        Err(error) if error.errno() == Some(nix::Error::EIO) => return Ok(None),
        Err(error) => return Err(error),
    }
    let critical_section = memory
        .read_u64(conf.pointer + RSEQ_CS_AT)
        .map_err(|error| Error::memory(task.tid(), "its struct rseq", &error))?;
    Ok(Some(Rseq {
        addr: conf.pointer,
        size: conf.size,
        flags: conf.flags,
        signature: conf.signature,
        critical_section,
    }))
}
