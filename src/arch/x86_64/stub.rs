//! The stub's half of x86_64: its start, the raw system call, the trap. Compiled into the stub only.

use core::arch::{asm, naked_asm};

/// Traps at once; then `syscall; int3` for single calls from outside (the pc is left at `syscall`), then the script runner.
///
/// Offsets from here are known to `arch::STUB_RUN`.
#[unsafe(naked)]
#[unsafe(no_mangle)]
#[unsafe(link_section = ".text._start")]
pub extern "C" fn _start() -> ! {
    naked_asm!("int3", "syscall", "int3", "call {run}", "int3", "ud2", run = sym crate::run)
}

/// # Safety
/// The caller answers for what the call does.
pub unsafe fn syscall(number: u64, args: &[u64; 6]) -> i64 {
    let result: i64;
    // SAFETY: the kernel clobbers rcx and r11 only.
    unsafe {
        asm!("syscall", inlateout("rax") number => result, in("rdi") args[0], in("rsi") args[1], in("rdx") args[2],
             in("r10") args[3], in("r8") args[4], in("r9") args[5], lateout("rcx") _, lateout("r11") _);
    }
    result
}
