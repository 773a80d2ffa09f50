//! Whether the kernel has the interfaces that only this architecture has.

use std::io;

/// arch_prctl(ARCH_MAP_VDSO_64): with the vDSO already mapped the kernel says EEXIST, without the interface EINVAL.
pub fn map_vdso() -> io::Result<()> {
    const ARCH_MAP_VDSO_64: i32 = 0x2003;
    // SAFETY: the call takes integers only; should it map a second vDSO, nobody would mind.
    let rc = unsafe { libc::syscall(libc::SYS_arch_prctl, ARCH_MAP_VDSO_64, 0) };
    match io::Error::last_os_error() {
        _ if rc >= 0 => Ok(()),
        e if e.raw_os_error() == Some(libc::EEXIST) => Ok(()),
        e => Err(e),
    }
}

/// Whether the CPU can make the instruction CPUID raise a signal: arch_prctl(ARCH_SET_CPUID) says ENODEV where it cannot
/// (set_cpuid_mode(), arch/x86/kernel/process.c). What is asked for is how it is: that it works.
pub fn cpuid_may_fault() -> bool {
    const ARCH_SET_CPUID: i32 = 0x1012;
    // SAFETY: the call takes integers only.
    unsafe { libc::syscall(libc::SYS_arch_prctl, ARCH_SET_CPUID, 1) == 0 }
}
