//! The stub's half of aarch64: its start, the raw system call, the trap. Compiled into the stub only.

use core::arch::{asm, naked_asm};

/// Traps at once; then `svc #0; brk #0` for single calls from outside (the pc is left at `svc`), then the script runner.
///
/// Offsets from here are known to `arch::STUB_RUN`.
#[unsafe(naked)]
#[unsafe(no_mangle)]
#[unsafe(link_section = ".text._start")]
pub extern "C" fn _start() -> ! {
    naked_asm!("brk #0", "svc #0", "brk #0", "bl {run}", "brk #0", run = sym crate::run)
}

/// # Safety
/// The caller answers for what the call does.
pub unsafe fn syscall(number: u64, args: &[u64; 6]) -> i64 {
    let result: i64;
    // SAFETY: the kernel changes x0 only.
    unsafe {
        asm!("svc #0", in("x8") number, inlateout("x0") args[0] => result, in("x1") args[1], in("x2") args[2], in("x3") args[3],
             in("x4") args[4], in("x5") args[5]);
    }
    result
}
