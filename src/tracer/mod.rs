//! Tasks under ptrace: seizing, stopping, registers, and system calls that a task is made to run.
//!
//! All requests for a task must come from the thread that seized it (ptrace(2)).

mod elf;
mod error;
mod loan;
mod memory;
mod pin;
mod proc;
mod process;
mod refuse;
mod release;
mod remote;
mod seize;
mod task;
mod wait;
mod way_home;

pub use error::{Error, Result};
pub use memory::ProcessMemory;
pub use process::{BeforeStop, StoppedProcess, StoppedThread};
pub use remote::Remote;
pub use seize::seize;
pub use task::{Resume, Running, Stopped, seize_options};
pub use wait::{Stop, Waited, wait_for};
