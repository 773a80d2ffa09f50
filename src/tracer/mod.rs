//! Tasks under ptrace: seizing, stopping, registers, and system calls that a task is made to run.
//!
//! All requests for a task must come from the thread that seized it (ptrace(2)).

mod before_stop;
mod bpf;
mod copy;
mod deadline;
mod dispatch;
mod elf;
mod error;
mod kernels_code;
mod loan;
mod memory;
mod nursery;
mod pin;
mod proc;
mod process;
mod refuse;
mod release;
mod remote;
mod rseq;
mod script;
mod seccomp;
mod seize;
mod settings;
mod signal_frames;
mod task;
mod thread;
mod tree;
mod vdso;
mod wait;
mod way_home;

pub use before_stop::BeforeStop;
pub use copy::{Copied, MemoryCopy};
pub use error::{Error, Result};
pub use memory::ProcessMemory;
pub use pin::{Lifted, Pinned};
pub use process::{StoppedProcess, children};
pub use remote::Remote;
pub use seccomp::Filters;
pub use seize::seize;
pub use signal_frames::Context;
pub use task::{Resume, Running, Stopped, seize_options};
pub use thread::StoppedThread;
pub use tree::{Ended, StoppedTree};
pub use wait::{Stop, Waited, wait_for};
