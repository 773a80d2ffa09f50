//! The image file: plain data in [`state`], and how it is laid out, written and read (docs/image-format.md).
//!
//! A header, then records: the state, frames of pages, an index, and a trailer without which a file is not an image. Everything is
//! written and read in one pass, so an image can travel through a pipe.
#![deny(unsafe_code)]

mod codec;
mod coverage;
mod error;
pub mod family;
pub mod file;
pub mod header;
mod index;
mod input;
mod ipc;
pub mod lineage;
mod output;
mod pace;
pub mod pages;
mod place;
pub mod ranges;
pub mod read;
mod record;
mod settings;
pub mod state;
mod terminals;
mod validate;
mod worker;
pub mod write;

pub use error::Error;

#[cfg(test)]
mod hostile;
#[cfg(test)]
#[path = "../../tests/image_sample/mod.rs"]
pub(crate) mod sample;
