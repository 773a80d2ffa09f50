//! aarch64 (the 64-bit ABI, pages of 4 KiB; a 32-bit task is recognised and refused).

mod clone;
mod features;
pub mod probe;
mod regs;
mod vdso;
mod way_home;

pub use clone::{CloneArgs, clone3, raw_syscall};
pub use features::unsupported_features;
pub use regs::Registers;
pub use vdso::{CONTEXT_WORDS, VDSO_FUNCTIONS, getrandom_code, is_context, jump_code, syscall_code};
pub use way_home::{CALL_AT, CLONE_AT, RESULTS_AT, SCRIPT_AT, SCRIPT_END_AT, SLOT_LEN, as_resumed};

pub const NAME: &str = "aarch64";
/// e_machine of ELF files.
pub const ELF_MACHINE: u16 = 183;
/// As seccomp(2) shows it to filters (include/uapi/linux/audit.h).
pub const AUDIT_ARCH: u32 = 0xc000_00b7;
/// What /proc/cpuinfo calls them.
pub const CPU_FEATURES_LINE: &str = "Features";
/// Of the smallest page.
pub const PAGE_SIZE: u64 = 4096;
/// What an entry of a page table's middle level maps (HPAGE_PMD_SIZE).
pub const HUGE_PAGE_SIZE: u64 = 2 << 20;
/// NT_PRFPREG: the vector registers; NT_ARM_TLS: the thread pointer.
pub const REGSETS: &[u32] = &[2, 0x401];
/// What only some CPUs have: NT_ARM_SVE, the keys of pointer authentication (NT_ARM_PACA_KEYS, NT_ARM_PACG_KEYS) and which of them are in
/// use (NT_ARM_PAC_ENABLED_KEYS), tagged addresses (NT_ARM_TAGGED_ADDR_CTRL).
pub const OPTIONAL_REGSETS: &[u32] = &[0x405, 0x407, 0x408, 0x40a, 0x409];
/// Those that every program begins with, which are left out: all keys in use (PR_PAC_GET_ENABLED_KEYS), no tagged addresses.
pub const DEFAULT_REGSETS: &[(u32, &[u8])] = &[(0x40a, &[0xf, 0, 0, 0, 0, 0, 0, 0]), (0x409, &[0; 8])];
/// The register set of the thread pointer, where the general registers do not hold it.
pub const THREAD_POINTER: Option<u32> = Some(0x401);
/// Signatures of aborts that C libraries use (RSEQ_SIG, sys/rseq.h): `brk #0x45e0`.
pub const RSEQ_SIGNATURES: &[u32] = &[0xd428_bc00];
/// Register sets that no thaw sets, how long they are where there is nothing in them, and what is so where there is: NT_ARM_ZA.
pub const NOT_CARRIED: &[(u32, usize, &str)] = &[(0x40c, 16, "has the matrix storage of SME switched on")];
/// What every call takes from a thread, NT_ARM_SVE: its vectors beyond 128 bits (Documentation/arm64/sve.rst).
pub const LOST_IN_CALLS: Option<u32> = Some(0x405);
/// Rights of mappings beyond those to read, write and execute, by the flags that smaps shows: PROT_BTI.
pub const PROT_BY_FLAG: &[(&[u8; 2], i32)] = &[(b"bt", 0x10)];
/// No local descriptor tables.
pub const MODIFY_LDT: Option<i64> = None;
/// No CPUID.
pub const GET_CPUID: Option<(i64, u64)> = None;
pub const SET_CPUID: Option<(i64, u64)> = None;
/// No register set that a process must ask for.
pub const GET_XCOMP_PERM: Option<(i64, u64)> = None;
pub const REQ_XCOMP_PERM: Option<(i64, u64)> = None;
pub const XSTATE_BY_PERMISSION: u64 = 0;
/// The kernel maps no second `[vdso]`: it is moved.
pub const MAP_VDSO: Option<(i64, u64)> = None;
/// `svc #0`, the instruction that enters the kernel.
pub const SYSCALL_INSTRUCTION: &[u8] = &[0x01, 0x00, 0x00, 0xd4];
/// The register set of the number of the call that a task is in (NT_ARM_SYSTEM_CALL): -1 there makes the kernel forget the call.
pub const FORGET_SYSCALL: Option<u32> = Some(0x404);
/// At the end of a call the kernel puts x7 back, which tells tracers apart where they are (report_syscall(), arch/arm64/kernel/ptrace.c).
pub const SYSCALL_STOPS_CHANGE_REGISTERS: bool = true;

/// Whether programs can use a feature: they are told of all (AT_HWCAP), and two are no instructions.
pub fn matters(feature: &str) -> bool {
    !["evtstrm", "cpuid"].contains(&feature)
}

/// First address that user space cannot have: it depends on CONFIG_ARM64_VA_BITS, 48 on servers, 39 on many devices.
pub fn task_size() -> u64 {
    use std::sync::OnceLock;
    static SIZE: OnceLock<u64> = OnceLock::new();
    *SIZE.get_or_init(|| {
        // The stack is in the upper half.
        let on_the_stack = 0u8;
        ((&raw const on_the_stack) as u64).next_power_of_two()
    })
}

/// Numbers of system calls (include/uapi/asm-generic/unistd.h) that a thread may be caught in.
pub mod syscall {
    pub const EPOLL_PWAIT: u64 = 22;
    pub const FUTEX: u64 = 98;
    pub const NANOSLEEP: u64 = 101;
    pub const CLOCK_NANOSLEEP: u64 = 115;
    pub const RESTART_SYSCALL: u64 = 128;
    pub const RT_SIGTIMEDWAIT: u64 = 137;
    pub const SEMTIMEDOP: u64 = 192;
    pub const EPOLL_PWAIT2: u64 = 441;
    /// There are none such: ppoll(2) and epoll_pwait(2) do their work.
    pub const POLL: u64 = u64::MAX - 1;
    pub const EPOLL_WAIT: u64 = u64::MAX - 2;
}
/// Where the pc is at the stub's first trap, counted from its entry.
pub const STUB_TRAPPED: u64 = 0;
/// Where in the stub, counted from its entry, a single system call instruction stands, followed by a trap.
pub const STUB_SYSCALL: u64 = 4;
/// Where the script runner begins: `run(ops, count)`, which returns its result in [`Registers::result`] and traps.
pub const STUB_RUN: u64 = 12;
