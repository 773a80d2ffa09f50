//! Tasks under ptrace: seizing, stopping, registers, and system calls that a task is made to run.
//!
//! All requests for a task must come from the thread that seized it (ptrace(2)).

mod error;
mod task;
mod wait;

pub use error::{Error, Result};
pub use task::{Resume, Running, Stopped, seize_options};
pub use wait::{Stop, Waited, wait_for};
