//! The image file: plain data in [`state`], and how it is laid out, written and read.
#![deny(unsafe_code)]

pub mod state;
