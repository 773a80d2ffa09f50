//! The names of registers, of every architecture on every host: an image may come from elsewhere.

/// How the general registers (NT_PRSTATUS) of an architecture are laid out, little-endian words one after the other.
pub struct Layout {
    /// As uname(2) calls the machine.
    pub name: &'static str,
    /// e_machine of ELF files.
    pub machine: u16,
    pub word_len: usize,
    pub names: &'static [&'static str],
    /// Names of the program counter and the stack pointer.
    pub pc: &'static str,
    pub sp: &'static str,
}

impl Layout {
    /// The layout of an ELF machine, if we know it.
    pub fn of(machine: u16) -> Option<&'static Layout> {
        LAYOUTS.iter().find(|layout| layout.machine == machine)
    }

    /// The registers by name; none where `data` has another size than this architecture's.
    pub fn registers(&self, data: &[u8]) -> Option<Vec<(&'static str, u64)>> {
        if data.len() != self.word_len * self.names.len() {
            return None;
        }
        let words = data.chunks_exact(self.word_len).map(word);
        Some(self.names.iter().copied().zip(words).collect())
    }
}

fn word(bytes: &[u8]) -> u64 {
    let mut word = [0; 8];
    word[..bytes.len()].copy_from_slice(bytes);
    u64::from_le_bytes(word)
}

static LAYOUTS: [Layout; 3] = [
    // struct user_regs_struct (arch/x86/include/asm/user_64.h).
    Layout {
        name: "x86_64",
        machine: 62,
        word_len: 8,
        #[rustfmt::skip]
        names: &[
            "r15", "r14", "r13", "r12", "rbp", "rbx", "r11", "r10", "r9", "r8", "rax", "rcx", "rdx", "rsi", "rdi", "orig_rax",
            "rip", "cs", "eflags", "rsp", "ss", "fs_base", "gs_base", "ds", "es", "fs", "gs",
        ],
        pc: "rip",
        sp: "rsp",
    },
    // struct pt_regs (arch/arm/include/uapi/asm/ptrace.h).
    Layout {
        name: "arm",
        machine: 40,
        word_len: 4,
        #[rustfmt::skip]
        names: &[
            "r0", "r1", "r2", "r3", "r4", "r5", "r6", "r7", "r8", "r9", "r10", "fp", "ip", "sp", "lr", "pc", "cpsr", "orig_r0",
        ],
        pc: "pc",
        sp: "sp",
    },
    // struct user_pt_regs (arch/arm64/include/uapi/asm/ptrace.h).
    Layout {
        name: "aarch64",
        machine: 183,
        word_len: 8,
        #[rustfmt::skip]
        names: &[
            "x0", "x1", "x2", "x3", "x4", "x5", "x6", "x7", "x8", "x9", "x10", "x11", "x12", "x13", "x14", "x15", "x16", "x17",
            "x18", "x19", "x20", "x21", "x22", "x23", "x24", "x25", "x26", "x27", "x28", "x29", "x30", "sp", "pc", "pstate",
        ],
        pc: "pc",
        sp: "sp",
    },
];

/// The name of a register set by its ELF note type (include/uapi/linux/elf.h).
pub fn note_name(note: u32) -> Option<&'static str> {
    Some(match note {
        1 => "NT_PRSTATUS",
        2 => "NT_PRFPREG",
        0x200 => "NT_386_TLS",
        0x201 => "NT_386_IOPERM",
        0x202 => "NT_X86_XSTATE",
        0x204 => "NT_X86_SHSTK",
        0x400 => "NT_ARM_VFP",
        0x401 => "NT_ARM_TLS",
        0x402 => "NT_ARM_HW_BREAK",
        0x403 => "NT_ARM_HW_WATCH",
        0x404 => "NT_ARM_SYSTEM_CALL",
        0x405 => "NT_ARM_SVE",
        0x406 => "NT_ARM_PAC_MASK",
        0x407 => "NT_ARM_PACA_KEYS",
        0x408 => "NT_ARM_PACG_KEYS",
        0x409 => "NT_ARM_TAGGED_ADDR_CTRL",
        0x40a => "NT_ARM_PAC_ENABLED_KEYS",
        0x40b => "NT_ARM_SSVE",
        0x40c => "NT_ARM_ZA",
        0x40d => "NT_ARM_ZT",
        0x40e => "NT_ARM_FPMR",
        0x40f => "NT_ARM_POE",
        0x410 => "NT_ARM_GCS",
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn registers_have_the_sizes_of_the_kernel() {
        let sizes = LAYOUTS.each_ref().map(|layout| layout.word_len * layout.names.len());
        assert_eq!(sizes, [27 * 8, 18 * 4, 34 * 8]);
    }

    #[test]
    fn words_of_32_bits_are_read_as_such() {
        let mut data = vec![0; 72];
        data[15 * 4..16 * 4].copy_from_slice(&0xbeef_f00d_u32.to_le_bytes());
        let registers = Layout::of(40).unwrap().registers(&data).unwrap();
        assert_eq!(registers[15], ("pc", 0xbeef_f00d));
        assert_eq!(registers.iter().filter(|(_, value)| *value != 0).count(), 1);
    }

    #[test]
    fn every_layout_names_its_counters() {
        for layout in &LAYOUTS {
            assert!(layout.names.contains(&layout.pc) && layout.names.contains(&layout.sp));
        }
    }
}
