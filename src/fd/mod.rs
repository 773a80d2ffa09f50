//! Descriptors: a table holds numbers that refer to open file descriptions (open(2)), and every description is of a kind.
//!
//! [`look`] records a stopped process's table from outside. At thaw [`check`] says what stands against it, [`reopen`] makes the
//! descriptions in our own table, [`relink`] lists the calls that their owner must make itself, and [`finish`] does what must
//! come last. A kind of description is one file here and one line in the table of `kind`.
#![deny(unsafe_code)]

mod device;
mod directory;
mod ends;
mod epoll;
mod eventfd;
mod fdinfo;
mod fifo;
mod holders;
mod identity;
mod inputs;
mod io_signals;
mod kind;
mod limit;
mod look;
mod memfd;
mod mqueue;
mod nameless;
mod path_only;
mod pipe;
mod pipe_content;
mod place;
mod probe;
mod pty;
mod refuse;
mod regular;
mod shared;
mod signalfd;
mod standard;
mod stdio;
mod terminal;
mod thaw;
mod timerfd;

pub use inputs::Inputs;
pub use io_signals::IoSignalsCall;
pub use kind::name as kind_name;
pub use look::{Looked, look};
pub use mqueue::MadeQueue;
pub use pty::{MadePty, make_all as make_ptys};
pub use shared::{SYSTEM_V, SYSTEM_V_PREFIX, SharedObjects, make_memfd};
pub use standard::{Pump, Stdio};
pub use stdio::terminal_settings;
pub use terminal::TerminalSettings;
pub use thaw::{Check, OwnerCall, ReopenContext, check, finish, open_again, relink, reopen};
