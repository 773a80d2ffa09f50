//! Whether the kernel has the interfaces that only this architecture has.

use std::io;

/// The vDSO moves with mremap(2), which every kernel with set_tid has (vdso_mremap(), arch/arm64/kernel/vdso.c).
pub fn map_vdso() -> io::Result<()> {
    Ok(())
}

/// There is no such instruction.
pub fn cpuid_may_fault() -> bool {
    false
}
