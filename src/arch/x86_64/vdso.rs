//! `[vdso]`: its functions, what may stand at their beginnings instead, and what tells a signal frame that was laid there.

use crate::arch::vdso::Function;

/// All that kernels up to 6.18 export, by the names that begin with `__vdso_` (arch/x86/entry/vdso/vdso.lds.S).
pub const VDSO_FUNCTIONS: &[(&str, Function)] = &[
    ("__vdso_clock_gettime", Function::Call(libc::SYS_clock_gettime)),
    ("__vdso_gettimeofday", Function::Call(libc::SYS_gettimeofday)),
    ("__vdso_time", Function::Call(libc::SYS_time)),
    ("__vdso_getcpu", Function::Call(libc::SYS_getcpu)),
    ("__vdso_clock_getres", Function::Call(libc::SYS_clock_getres)),
    ("__vdso_getrandom", Function::Random),
    ("__vdso_sgx_enter_enclave", Function::Itself),
];

/// `jmp` to an address. None where that is too far.
pub fn jump_code(from: u64, to: u64) -> Option<Vec<u8>> {
    const LEN: u64 = 5;
    let distance = i32::try_from(to.wrapping_sub(from + LEN).cast_signed()).ok()?;
    Some([&[0xe9], &distance.to_le_bytes()[..]].concat())
}

/// `mov $number, %eax; syscall; ret`. Up to three arguments are where the kernel looks for them.
pub fn syscall_code(number: i64) -> Vec<u8> {
    [&[0xb8], &(number as u32).to_le_bytes()[..], &[0x0f, 0x05, 0xc3]].concat()
}

/// As getrandom(2), but -ENOSYS to who asks for the state that vgetrandom takes (fifth argument -1):
/// `cmp $-1, %r8; je 1f; (the call) 1: mov $-ENOSYS, %eax; cltq; ret`.
pub fn getrandom_code() -> Vec<u8> {
    let call = syscall_code(libc::SYS_getrandom);
    let mut code = vec![0x49, 0x83, 0xf8, 0xff, 0x74, call.len() as u8];
    code.extend(call);
    code.push(0xb8);
    code.extend((-libc::ENOSYS).to_le_bytes());
    code.extend([0x48, 0x98, 0xc3]);
    code
}

/// Of struct sigcontext (asm/sigcontext.h): sp, ip, flags, then cs, gs, fs and ss of 16 bits each.
pub const CONTEXT_WORDS: usize = 4;

/// Whether words are of a context: flags that user space can have, with the bit that is always set, and the segment of 64-bit code.
pub fn is_context(words: &[u64]) -> bool {
    const USER_CS: u64 = 0x33;
    words[2] & 2 != 0 && words[2] >> 22 == 0 && words[3] & 0xffff == USER_CS
}
