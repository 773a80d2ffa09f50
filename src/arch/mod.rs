//! What differs by CPU, behind one contract: each folder offers the same names. The only place that asks for the target's.
//!
//! - `Registers`: the general registers (NT_PRSTATUS), with the system call convention.
//! - `REGSETS`: the ELF notes of all other register sets to carry; `OPTIONAL_REGSETS` and `DEFAULT_REGSETS`: those that not all have.
//! - `unsupported_features`: what a register set needs and this CPU lacks, by name.
//! - `task_size`, `NAME`, `ELF_MACHINE`.
//! - `CPU_FEATURES_LINE`, `matters`: which of the CPU's features programs choose their code by.
//! - `SLOT_LEN`, `as_resumed` and what a `Slot` can do: the way home of a task whose registers are on loan.
//! - `VDSO_FUNCTIONS`, `jump_code`, `syscall_code`, `getrandom_code`: what `[vdso]` offers, and code to stand there instead; `is_context`: what tells a signal frame.
//! - `LOST_IN_CALLS`, `FORGET_SYSCALL`, `SYSCALL_STOPS_CHANGE_REGISTERS`, `MAP_VDSO`, `PROT_BY_FLAG`: what its kernel does otherwise.
//!
//! Beside the folders stands what they have in common: `may_be_reissued`, which calls that gave EINTR without a handler may be issued again;
//! `signal_action`, struct kernel_sigaction; `cpu_features`; `CloneArgs`; `Interrupted`; `Slot`.
//!
//! - `stub` (compiled into the resurrector, not into this crate): `_start`, the raw system call, the trap.

#[cfg(target_arch = "aarch64")]
mod aarch64;
mod calls;
mod clone_args;
mod cpuinfo;
pub mod registers;
mod signal;
mod slot;
pub mod vdso;
#[cfg(target_arch = "x86_64")]
mod x86_64;

#[cfg(target_arch = "aarch64")]
pub use aarch64::*;
pub use calls::{Interrupted, may_be_reissued};
pub use cpuinfo::cpu_features;
pub use signal::{SIGACTION_LEN, signal_action};
pub use slot::{SCRIPT_STRIDE, SCRIPT_WORDS, Slot};
#[cfg(target_arch = "x86_64")]
pub use x86_64::*;
