//! Register sets that only some CPUs have, by the capabilities that the kernel tells of (AT_HWCAP, getauxval(3)).

const ENABLED_KEYS: u32 = 0x40a;
/// Note, bit of AT_HWCAP (arch/arm64/include/uapi/asm/hwcap.h), and what people call it.
const OPTIONAL: [(u32, u64, &str); 4] = [
    (0x405, 1 << 22, "SVE"),
    (0x407, 1 << 30, "pointer authentication by address"),
    (0x408, 1 << 31, "generic pointer authentication"),
    (ENABLED_KEYS, 1 << 30, "pointer authentication by address"),
];

/// What a register set needs and this CPU or kernel lacks, in words for the user. Empty where it can be set here.
pub fn unsupported_features(note: u32, _data: &[u8]) -> Vec<String> {
    // SAFETY: takes a number only.
    let mut lacking = lacking(note, unsafe { libc::getauxval(libc::AT_HWCAP) });
    if note == ENABLED_KEYS && lacking.is_empty() && !keys_can_be_chosen() {
        lacking.push("a choice of keys of pointer authentication (Linux 5.13)".to_owned());
    }
    lacking
}

fn keys_can_be_chosen() -> bool {
    const PR_PAC_GET_ENABLED_KEYS: i32 = 61;
    // SAFETY: takes numbers only.
    unsafe { libc::prctl(PR_PAC_GET_ENABLED_KEYS, 0, 0, 0, 0) >= 0 }
}

fn lacking(note: u32, capabilities: u64) -> Vec<String> {
    let needs = OPTIONAL
        .into_iter()
        .filter(|(of, bit, _)| *of == note && capabilities & bit == 0);
    needs.map(|(_, _, name)| name.to_owned()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_feature_that_the_cpu_lacks_is_named() {
        assert_eq!(lacking(0x405, 0), ["SVE"]);
        assert!(lacking(0x405, 1 << 22).is_empty());
        assert!(lacking(2, 0).is_empty());
    }
}
