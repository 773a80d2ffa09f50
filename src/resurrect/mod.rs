//! Rebuilds processes around a tiny stub that runs scripts of system calls: `plan` and `layout` decide, the rest drives.

mod brood;
mod credentials;
mod descriptors;
mod fill;
mod finish;
pub mod layout;
mod login;
mod maker;
mod maps;
pub mod plan;
mod process;
mod resume;
mod script;
mod seccomp;
mod semaphores;
mod settings;
mod shared_memory;
mod spawn;
mod stage;
mod stops;
mod threads;
pub mod timens;
mod timers;
mod tree;
mod uffd;
mod wire;
mod zombies;

pub use descriptors::Move;
pub use fill::Fill;
pub use maps::{MappedFds, needs_write};
pub use process::{Parts, own_vdso, vdso_syscall};
pub use resume::GoesOn;
pub use shared_memory::SharedMemory;
pub use spawn::embed_stub_size;
pub use threads::Inherited;
pub use tree::Tree;
