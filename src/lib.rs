//! cryopod freezes a live Linux process into one image file and thaws it later, with nothing prepared beforehand.
//!
//! ```text
//! freeze   seize → collect → describe → encode → release
//! thaw     decode → plan → rebuild → resume
//! ```
//! `tracer` stops tasks and runs system calls in them; `collect` gathers facts, `describe` turns facts into a
//! [`image::state::Snapshot`] or into refusals; `image` writes and reads the file; `fd` knows the kinds of descriptors, `sysv` the System V objects;
//! `resurrect` rebuilds a process around a tiny stub; `arch` holds what differs by CPU. ARCHITECTURE.md tells the reasons.

#[cfg(not(target_os = "linux"))]
compile_error!("cryopod is built on Linux's ptrace and /proc");

// The image's unit tests share their sample with tests/.
#[cfg(test)]
extern crate self as cryopod;

pub mod arch;
pub mod cli;
pub mod collect;
pub mod describe;
pub mod fd;
pub mod freeze;
pub mod image;
pub mod probe;
pub mod refusal;
pub mod resurrect;
pub mod sys;
pub mod sysv;
pub mod thaw;
pub mod tracer;
