//! Descriptors of a process that only waits are looked at from outside and made again here. The process is a forked child
//! of the test; the whole way through an image and another process is proved by the fixtures in fixtures/fd.

mod files;
mod kinds;
mod pipes;
mod waiting;
