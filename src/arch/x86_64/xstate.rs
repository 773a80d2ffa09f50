//! The extended state (NT_X86_XSTATE) in the light of what this CPU, under this kernel, can hold.

use std::arch::asm;
use std::arch::x86_64::{__cpuid, __cpuid_count};
use std::sync::OnceLock;

const NT_X86_XSTATE: u32 = 0x202;
/// Where the kernel's copy names the features it has room for (USER_XSTATE_XCR0_WORD, arch/x86/include/asm/fpu/regset.h).
const XCR0_AT: usize = 464;
/// XSTATE_BV of the header: features that are in use.
const XSTATE_BV_AT: usize = 512;
/// The legacy area and the header.
const LEN_MIN: usize = 576;

/// By number of the bit in XCR0 (enum xfeature, arch/x86/include/asm/fpu/types.h).
const FEATURES: [&str; 20] = [
    "x87",
    "SSE",
    "AVX",
    "MPX bounds",
    "MPX configuration",
    "AVX-512 masks",
    "AVX-512 upper halves",
    "AVX-512 registers 16 to 31",
    "processor trace",
    "protection keys",
    "PASID",
    "shadow stacks",
    "kernel shadow stacks",
    "hardware duty cycling",
    "user interrupts",
    "last branch records",
    "hardware P-states",
    "AMX tile configuration",
    "AMX tile data",
    "APX registers",
];

/// What a register set needs and this CPU or kernel lacks, in words for the user. Empty where it can be set here.
pub fn unsupported_features(note: u32, data: &[u8]) -> Vec<String> {
    match note {
        NT_X86_XSTATE => lacking(data, own_features(), own_len()),
        _ => Vec::new(),
    }
}

fn lacking(data: &[u8], own: u64, own_len: usize) -> Vec<String> {
    if data.len() < LEN_MIN {
        return vec![format!("an extended state of {} bytes", data.len())];
    }
    let word = |at: usize| data[at..].first_chunk().map_or(0, |bytes| u64::from_le_bytes(*bytes));
    let missing = (word(XCR0_AT) | word(XSTATE_BV_AT)) & !own;
    let mut lacking: Vec<String> = (0..64).filter(|bit| missing & (1 << bit) != 0).map(name).collect();
    // The offsets within belong to the CPU, and PTRACE_SETREGSET takes the size of this one only (xstateregs_set()).
    if lacking.is_empty() && data.len() != own_len {
        lacking.push(format!("an extended state of {} bytes, it has {own_len}", data.len()));
    }
    lacking
}

fn name(bit: usize) -> String {
    FEATURES
        .get(bit)
        .map_or_else(|| format!("feature {bit} of XCR0"), |name| (*name).to_owned())
}

/// XCR0, or x87 and SSE where the kernel does not use XSAVE.
fn own_features() -> u64 {
    // Under a hypervisor each CPUID is a trip to it, of some 30 µs.
    static FEATURES: OnceLock<u64> = OnceLock::new();
    *FEATURES.get_or_init(read_own_features)
}

fn read_own_features() -> u64 {
    const OSXSAVE: u32 = 1 << 27;
    if __cpuid(1).ecx & OSXSAVE == 0 {
        return 0b11;
    }
    let (low, high): (u32, u32);
    // SAFETY: OSXSAVE says that the kernel allows xgetbv, which reads a register.
    unsafe { asm!("xgetbv", in("ecx") 0, out("eax") low, out("edx") high, options(nomem, nostack)) };
    u64::from(low) | u64::from(high) << 32
}

/// Size of the area with all features of XCR0 (CPUID 0xD, EBX).
fn own_len() -> usize {
    static LEN: OnceLock<usize> = OnceLock::new();
    *LEN.get_or_init(|| __cpuid_count(0xd, 0).ebx as usize)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn state(xcr0: u64, in_use: u64, len: usize) -> Vec<u8> {
        let mut data = vec![0; len];
        data[XCR0_AT..XCR0_AT + 8].copy_from_slice(&xcr0.to_le_bytes());
        data[XSTATE_BV_AT..XSTATE_BV_AT + 8].copy_from_slice(&in_use.to_le_bytes());
        data
    }

    #[test]
    fn a_feature_that_the_cpu_lacks_is_named() {
        assert!(lacking(&state(0b111, 0b11, 832), 0b111, 832).is_empty());
        assert_eq!(lacking(&state(0b111, 0, 832), 0b11, 576), ["AVX"]);
        assert_eq!(
            lacking(&state(0b111, 1 << 18 | 1 << 63, 832), 0b111, 832),
            ["AMX tile data", "feature 63 of XCR0"]
        );
    }

    #[test]
    fn a_state_of_another_size_is_none_for_this_cpu() {
        assert_eq!(
            lacking(&state(0b11, 0, 576), 0b111, 832),
            ["an extended state of 576 bytes, it has 832"]
        );
        assert_eq!(lacking(&[0; 100], 0b111, 832), ["an extended state of 100 bytes"]);
    }

    #[test]
    fn this_cpu_has_what_it_has() {
        assert!(unsupported_features(NT_X86_XSTATE, &state(own_features(), 0, own_len())).is_empty());
        assert!(unsupported_features(1, &[]).is_empty());
    }
}
