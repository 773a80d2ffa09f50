//! The resurrector's stub: a freestanding program of about a kilobyte around which a process is rebuilt.
//!
//! It knows one thing: to run an array of system calls and to trap. What to do is decided by the thawing process, which
//! traces it. It has no data, no stack of its own and no relocations, and is unmapped before the program goes on.
#![no_std]
#![no_main]

#[cfg(target_arch = "x86_64")]
#[path = "../../arch/x86_64/stub.rs"]
mod arch;
#[cfg(target_arch = "aarch64")]
#[path = "../../arch/aarch64/stub.rs"]
mod arch;
#[path = "../wire.rs"]
mod wire;

use wire::{FIRST_ERROR, GO_ON, Op};

/// Runs `count` calls; returns how many were run before an error, or `count`.
///
/// # Safety
/// `ops` points at `count` operations that this task may write.
unsafe extern "C" fn run(ops: *mut Op, count: u64) -> u64 {
    let mut done = 0;
    while done < count {
        // SAFETY: `done` is below `count`.
        let op = unsafe { &mut *ops.add(done as usize) };
        // SAFETY: what the calls do is the thawing process' decision; the stub's own text and stage are left alone by it.
        op.result = unsafe { arch::syscall(op.number & !GO_ON, &op.args) };
        if (FIRST_ERROR..0).contains(&op.result) && op.number & GO_ON == 0 {
            break;
        }
        done += 1;
    }
    done
}

#[panic_handler]
fn panic(_: &core::panic::PanicInfo<'_>) -> ! {
    loop {}
}
