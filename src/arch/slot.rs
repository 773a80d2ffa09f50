//! What is laid in a target before its registers are borrowed, the same on every architecture; its code is in the folders.

use super::Registers;

/// What one slot holds besides its code.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Slot {
    /// The task's registers once it is home.
    pub home: Registers,
    /// Counts up, so that the newest of several slots is known.
    pub generation: u64,
    /// The page for results that the loan maps, 0 for none.
    pub results: u64,
}

/// Words of an entry of a script, the first bytes of the [`SCRIPT_STRIDE`] that it takes; the rest is for what the call writes.
pub const SCRIPT_WORDS: usize = 7;
/// Bytes from one entry to the next.
pub const SCRIPT_STRIDE: usize = 192;
