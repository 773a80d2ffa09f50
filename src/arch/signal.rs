//! struct kernel_sigaction, what rt_sigaction(2) itself takes, of 64-bit architectures: not that of the C library.

use crate::image::state::SignalAction;

/// Bytes of struct kernel_sigaction: handler, flags, restorer, mask.
pub const SIGACTION_LEN: usize = 32;

pub fn signal_action(signal: i32, bytes: &[u8; SIGACTION_LEN]) -> SignalAction {
    let word = |at: usize| u64::from_ne_bytes(bytes[at..at + 8].try_into().expect("eight bytes are eight"));
    SignalAction {
        signal,
        handler: word(0),
        flags: word(8),
        restorer: word(16),
        mask: word(24),
    }
}
