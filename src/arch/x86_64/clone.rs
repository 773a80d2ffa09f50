//! clone3(2) with a stack of its own: libc's wrappers cannot choose the pid.

use std::arch::asm;

pub use crate::arch::clone_args::CloneArgs;

/// Clones; the child calls `child(argument)` on the stack that `args` names, or on a copy of ours where it names none.
/// Returns the child's pid or a negative errno, in the parent only.
///
/// # Safety
/// `child` may only make raw system calls: where CLONE_VM is set it shares our memory, locks included, else it is a copy of a
/// process with several threads. The stack must stay its own until it is gone.
pub unsafe fn clone3(args: &CloneArgs, child: extern "C" fn(u64) -> !, argument: u64) -> i64 {
    let result: i64;
    // SAFETY: the parent's registers are as declared; the child leaves this frame for good.
    unsafe {
        asm!("syscall", "test rax, rax", "jnz 2f", "xor ebp, ebp", "mov rdi, r9", "and rsp, -16", "call r8", "ud2", "2:",
             inlateout("rax") libc::SYS_clone3 => result, in("rdi") args, in("rsi") size_of::<CloneArgs>(),
             in("r8") child, in("r9") argument, lateout("rcx") _, lateout("r11") _);
    }
    result
}

/// A raw system call, for the child of [`clone3`], which must not touch libc's errno.
///
/// # Safety
/// The caller answers for what the call does.
pub unsafe fn raw_syscall(number: i64, args: [u64; 5]) -> i64 {
    let result: i64;
    // SAFETY: the kernel clobbers rcx and r11 only.
    unsafe {
        asm!("syscall", inlateout("rax") number => result, in("rdi") args[0], in("rsi") args[1], in("rdx") args[2],
             in("r10") args[3], in("r8") args[4], lateout("rcx") _, lateout("r11") _);
    }
    result
}
