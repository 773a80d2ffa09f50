//! Which features of /proc/cpuinfo a program can tell from within: those that bring instructions. The others are the kernel's business, or say
//! how fast something is.

/// As the kernel names them (arch/x86/include/asm/cpufeatures.h); those that begin with `avx` and `amx` are not listed.
#[rustfmt::skip]
const WITH_INSTRUCTIONS: [&str; 69] = [
    "fpu", "tsc", "cx8", "sep", "cmov", "clflush", "mmx", "fxsr", "sse", "sse2", "syscall", "mmxext", "rdtscp", "lm", "3dnowext", "3dnow",
    "pni", "pclmulqdq", "ssse3", "fma", "cx16", "sse4_1", "sse4_2", "movbe", "popcnt", "aes", "xsave", "osxsave", "f16c", "rdrand",
    "lahf_lm", "abm", "sse4a", "3dnowprefetch", "xop", "fma4", "tbm", "xsaveopt", "xsavec", "xgetbv1", "fsgsbase", "bmi1", "hle", "bmi2",
    "rtm", "rdseed", "adx", "clflushopt", "clwb", "sha_ni", "sha512", "sm3", "sm4", "gfni", "vaes", "vpclmulqdq", "rdpid", "movdiri",
    "movdir64b", "serialize", "waitpkg", "cldemote", "ospke", "user_shstk", "enqcmd", "ptwrite", "cmpccxadd", "clzero", "mwaitx",
];

pub fn matters(feature: &str) -> bool {
    let family = ["avx", "amx"].iter().any(|family| feature.starts_with(family));
    family || WITH_INSTRUCTIONS.contains(&feature)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_programs_cannot_use_does_not_matter() {
        assert!(matters("avx512_vnni") && matters("sse4_2") && matters("gfni"));
        assert!(!matters("constant_tsc") && !matters("hypervisor") && !matters("ibrs"));
    }
}
