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
        asm!("svc #0", "cbnz x0, 2f", "mov x29, xzr", "mov x30, xzr", "mov x0, {argument}", "blr {child}", "brk #0", "2:",
             argument = in(reg) argument, child = in(reg) child,
             in("x8") libc::SYS_clone3, inlateout("x0") args as *const CloneArgs => result, in("x1") size_of::<CloneArgs>());
    }
    result
}

/// A raw system call, for the child of [`clone3`], which must not touch libc's errno.
///
/// # Safety
/// The caller answers for what the call does.
pub unsafe fn raw_syscall(number: i64, args: [u64; 5]) -> i64 {
    let result: i64;
    // SAFETY: the kernel changes x0 only.
    unsafe {
        asm!("svc #0", in("x8") number, inlateout("x0") args[0] => result, in("x1") args[1], in("x2") args[2], in("x3") args[3],
             in("x4") args[4]);
    }
    result
}
