//! What the thawing process and the stub say to each other: an array of system calls, run in order.
//!
//! Compiled into both.

/// One system call of a script. `result` is written by the stub: the kernel's return value.
#[derive(Debug, Clone, Copy, Default)]
#[repr(C)]
pub struct Op {
    pub number: u64,
    pub args: [u64; 6],
    pub result: i64,
}

const _: () = assert!(size_of::<Op>() == 64);

/// In `Op::number`: an error does not end the script.
pub const GO_ON: u64 = 1 << 63;

/// Results from here up to -1 are errors (IS_ERR_VALUE(), include/linux/err.h).
pub const FIRST_ERROR: i64 = -4095;
