//! What handlers of signals have interrupted, as the kernel has laid it on the stack (struct sigcontext).

use super::ProcessMemory;
use crate::arch;

/// What a signal interrupted.
#[derive(Debug, Clone, Copy)]
pub struct Context {
    /// Where this stands.
    pub at: u64,
    pub sp: u64,
    pub pc: u64,
}

impl ProcessMemory {
    /// From the stack pointer `sp` up to `end` or the end of the mapping, also such as are left of handlers that have returned.
    pub fn contexts(&self, sp: u64, end: u64) -> Vec<Context> {
        contexts(sp, &self.stack(sp, end))
    }

    /// Page by page.
    fn stack(&self, sp: u64, end: u64) -> Vec<u64> {
        let (mut words, mut at) = (Vec::new(), sp.next_multiple_of(8));
        while at < end {
            let mut bytes = vec![0; (arch::PAGE_SIZE - at % arch::PAGE_SIZE).min(end - at) as usize];
            if self.read_at(at, &mut bytes).is_err() {
                break;
            }
            let word = |bytes: &[u8]| u64::from_ne_bytes(bytes.try_into().expect("eight bytes"));
            words.extend(bytes.chunks_exact(8).map(word));
            at += bytes.len() as u64;
        }
        words
    }
}

fn contexts(sp: u64, stack: &[u64]) -> Vec<Context> {
    let places = (sp.next_multiple_of(8)..)
        .step_by(8)
        .zip(stack.windows(arch::CONTEXT_WORDS));
    let contexts = places.filter(|(_, words)| arch::is_context(words));
    contexts
        .map(|(at, words)| Context {
            at,
            sp: words[0],
            pc: words[1],
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn return_addresses_are_no_signal_frames() {
        assert!(contexts(0x7ffe_0000, &[0x7ffe_1000, 0x7fff_1100, 0x7fff_1100, 0x33, 0x7fff_1101]).is_empty());
    }
}
