//! The kinds of open file descriptions, and the table of them.
#![deny(unsafe_code)]
