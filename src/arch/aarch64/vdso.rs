//! `[vdso]`: its functions, what may stand at their beginnings instead, and what tells a signal frame that was laid there.

use crate::arch::vdso::Function;

/// All that kernels up to 6.18 export (arch/arm64/kernel/vdso/vdso.lds.S). The return from a signal handler is the kernel's in name only: a
/// system call, whose place debuggers know frames by.
pub const VDSO_FUNCTIONS: &[(&str, Function)] = &[
    ("__kernel_clock_gettime", Function::Call(libc::SYS_clock_gettime)),
    ("__kernel_gettimeofday", Function::Call(libc::SYS_gettimeofday)),
    ("__kernel_clock_getres", Function::Call(libc::SYS_clock_getres)),
    ("__kernel_getrandom", Function::Random),
    ("__kernel_rt_sigreturn", Function::Itself),
];

fn code(instructions: &[u32]) -> Vec<u8> {
    instructions
        .iter()
        .flat_map(|instruction| instruction.to_le_bytes())
        .collect()
}

/// `b` to an address. None where that is too far.
pub fn jump_code(from: u64, to: u64) -> Option<Vec<u8>> {
    const REACH: i64 = 128 << 20;
    let distance = to.wrapping_sub(from).cast_signed();
    (-REACH..REACH)
        .contains(&distance)
        .then(|| code(&[0x1400_0000 | ((distance >> 2) as u32 & 0x03ff_ffff)]))
}

/// `mov x8, #number; svc #0; ret`.
pub fn syscall_code(number: i64) -> Vec<u8> {
    code(&[0xd280_0008 | (number as u32 & 0xffff) << 5, 0xd400_0001, 0xd65f_03c0])
}

/// As getrandom(2), but -ENOSYS to who asks for the state that vgetrandom takes (fifth argument -1):
/// `cmn x4, #1; b.eq 1f; (the call) 1: mov x0, #-ENOSYS; ret`.
pub fn getrandom_code() -> Vec<u8> {
    let mut all = code(&[0xb100_049f, 0x5400_0080]);
    all.extend(syscall_code(libc::SYS_getrandom));
    all.extend(code(&[0x9280_0000 | (libc::ENOSYS as u32 - 1) << 5, 0xd65f_03c0]));
    all
}

/// Of struct sigcontext (asm/sigcontext.h): sp, pc, pstate.
pub const CONTEXT_WORDS: usize = 3;

/// Whether words are of a context: an aligned stack pointer, and the state of 64-bit user code (PSR_MODE_EL0t).
pub fn is_context(words: &[u64]) -> bool {
    words[0] != 0 && words[0].is_multiple_of(16) && words[2] & 0x1f == 0 && words[2] >> 32 == 0
}
