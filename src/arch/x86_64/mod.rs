//! x86_64 (the 64-bit ABI; a 32-bit task is recognised and refused).

mod clone;
mod features;
pub mod probe;
mod regs;
mod vdso;
mod way_home;
mod xstate;

pub use clone::{CloneArgs, clone3, raw_syscall};
pub use features::matters;
pub use regs::Registers;
pub use vdso::{CONTEXT_WORDS, VDSO_FUNCTIONS, getrandom_code, is_context, jump_code, syscall_code};
pub use way_home::{CALL_AT, CLONE_AT, RESULTS_AT, SCRIPT_AT, SCRIPT_END_AT, SLOT_LEN, as_resumed};
pub use xstate::unsupported_features;

pub const NAME: &str = "x86_64";
/// e_machine of ELF files.
pub const ELF_MACHINE: u16 = 62;
/// As seccomp(2) shows it to filters (include/uapi/linux/audit.h).
pub const AUDIT_ARCH: u32 = 0xc000_003e;
/// First address that user space cannot have with four-level paging (arch/x86/include/asm/page_64_types.h).
pub fn task_size() -> u64 {
    0x7fff_ffff_f000
}
/// What /proc/cpuinfo calls them.
pub const CPU_FEATURES_LINE: &str = "flags";
/// Of the smallest page.
pub const PAGE_SIZE: u64 = 4096;
/// What an entry of a page table's middle level maps (HPAGE_PMD_SIZE).
pub const HUGE_PAGE_SIZE: u64 = 2 << 20;
/// The extended state holds x87, SSE, AVX, AVX-512, PKRU and AMX (NT_X86_XSTATE).
pub const REGSETS: &[u32] = &[0x202];
/// No others: all is in the extended state.
pub const OPTIONAL_REGSETS: &[u32] = &[];
pub const DEFAULT_REGSETS: &[(u32, &[u8])] = &[];
/// The register set of the thread pointer, where the general registers do not hold it.
pub const THREAD_POINTER: Option<u32> = None;
/// Signatures of aborts that C libraries use (RSEQ_SIG, sys/rseq.h).
pub const RSEQ_SIGNATURES: &[u32] = &[0x5305_3053];
/// Register sets that no thaw sets, how long they are where there is nothing in them, and what is so where there is: NT_386_IOPERM.
pub const NOT_CARRIED: &[(u32, usize, &str)] = &[(0x201, 0, "may use I/O ports (ioperm(2))")];
/// Calls leave the registers alone.
pub const LOST_IN_CALLS: Option<u32> = None;
/// Rights of mappings beyond those to read, write and execute, by the flags that smaps shows.
pub const PROT_BY_FLAG: &[(&[u8; 2], i32)] = &[];
/// modify_ldt(2), where the architecture has local descriptor tables.
pub const MODIFY_LDT: Option<i64> = Some(libc::SYS_modify_ldt);
/// Number and command of arch_prctl(2), where there is such: whether CPUID raises a signal, and setting that.
pub const GET_CPUID: Option<(i64, u64)> = Some((libc::SYS_arch_prctl, 0x1011));
pub const SET_CPUID: Option<(i64, u64)> = Some((libc::SYS_arch_prctl, 0x1012));
/// Number and command of arch_prctl(2) about extended states that a process must ask for (Linux 5.16), AMX.
pub const GET_XCOMP_PERM: Option<(i64, u64)> = Some((libc::SYS_arch_prctl, 0x1022));
pub const REQ_XCOMP_PERM: Option<(i64, u64)> = Some((libc::SYS_arch_prctl, 0x1023));
/// Bits of XCR0 that a process gets on request only: AMX tile data (XFEATURE_MASK_USER_DYNAMIC, arch/x86/include/asm/fpu/xstate.h).
pub const XSTATE_BY_PERMISSION: u64 = 1 << 18;
/// Number and command of arch_prctl(2) that maps a `[vdso]` anew (ARCH_MAP_VDSO_64).
pub const MAP_VDSO: Option<(i64, u64)> = Some((libc::SYS_arch_prctl, 0x2003));
/// The instruction that enters the kernel.
pub const SYSCALL_INSTRUCTION: &[u8] = &[0x0f, 0x05];
/// [`Registers`] themselves say that the kernel has no call to restart.
pub const FORGET_SYSCALL: Option<u32> = None;
/// A task at the entry or exit of a call keeps the registers that its tracer gives it.
pub const SYSCALL_STOPS_CHANGE_REGISTERS: bool = false;

/// Numbers of system calls (arch/x86/entry/syscalls/syscall_64.tbl) that a thread may be caught in.
pub mod syscall {
    pub const POLL: u64 = 7;
    pub const NANOSLEEP: u64 = 35;
    pub const RT_SIGTIMEDWAIT: u64 = 128;
    pub const FUTEX: u64 = 202;
    pub const RESTART_SYSCALL: u64 = 219;
    pub const SEMTIMEDOP: u64 = 220;
    pub const CLOCK_NANOSLEEP: u64 = 230;
    pub const EPOLL_WAIT: u64 = 232;
    pub const EPOLL_PWAIT: u64 = 281;
    pub const EPOLL_PWAIT2: u64 = 441;
}
/// Where the pc is at the stub's first trap, counted from its entry.
pub const STUB_TRAPPED: u64 = 1;
/// Where in the stub, counted from its entry, a single system call instruction stands, followed by a trap.
pub const STUB_SYSCALL: u64 = 1;
/// Where the script runner begins: `run(ops, count)`, which returns its result in [`Registers::result`] and traps.
pub const STUB_RUN: u64 = 4;
