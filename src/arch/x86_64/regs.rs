//! The general registers as NT_PRSTATUS has them (struct user_regs_struct), and the system call convention.

use std::mem::size_of;

use crate::arch::calls::Interrupted;

/// struct user_regs_struct.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(transparent)]
pub struct Registers([u64; COUNT]);

const COUNT: usize = 27;
const _: () = assert!(size_of::<Registers>() == size_of::<libc::user_regs_struct>());

/// Indices into struct user_regs_struct (arch/x86/include/asm/user_64.h).
mod index {
    pub const R11: usize = 6;
    pub const R10: usize = 7;
    pub const R9: usize = 8;
    pub const R8: usize = 9;
    pub const RAX: usize = 10;
    pub const RCX: usize = 11;
    pub const RDX: usize = 12;
    pub const RSI: usize = 13;
    pub const RDI: usize = 14;
    pub const ORIG_RAX: usize = 15;
    pub const RIP: usize = 16;
    pub const CS: usize = 17;
    pub const EFLAGS: usize = 18;
    pub const RSP: usize = 19;
    pub const FS_BASE: usize = 21;
}

const ERESTARTNOHAND: i64 = 514;

impl Registers {
    /// None where the size is not this architecture's, as that of a 32-bit task.
    pub fn from_bytes(bytes: &[u8]) -> Option<Self> {
        if bytes.len() != size_of::<Self>() {
            return None;
        }
        let mut words = [0; COUNT];
        for (word, bytes) in words.iter_mut().zip(bytes.chunks_exact(8)) {
            *word = u64::from_ne_bytes(bytes.try_into().ok()?);
        }
        Some(Registers(words))
    }

    pub fn as_bytes(&self) -> &[u8] {
        // SAFETY: an array of u64 has no padding, and the slice lives as long as `self`.
        unsafe { std::slice::from_raw_parts(self.0.as_ptr().cast(), size_of::<Self>()) }
    }

    pub fn pc(&self) -> u64 {
        self.0[index::RIP]
    }

    pub fn set_pc(&mut self, pc: u64) {
        self.0[index::RIP] = pc;
    }

    pub fn sp(&self) -> u64 {
        self.0[index::RSP]
    }

    pub fn set_sp(&mut self, sp: u64) {
        self.0[index::RSP] = sp;
    }

    /// Where thread-local storage is, in place of what a register set says.
    pub fn thread_pointer(&self, _regset: &[u8]) -> u64 {
        self.0[index::FS_BASE]
    }

    /// What a system call returned, or is about to.
    pub fn result(&self) -> i64 {
        self.0[index::RAX] as i64
    }

    pub fn set_result(&mut self, result: i64) {
        self.0[index::RAX] = result as u64;
    }

    /// The number of the system call the task is in or was caught in, if any.
    pub fn syscall_number(&self) -> Option<u64> {
        let number = self.0[index::ORIG_RAX];
        (number as i64 >= 0).then_some(number)
    }

    /// The number of the call that it has just returned from, if it stands behind a system call instruction.
    pub fn number_before(&self) -> Option<u64> {
        self.syscall_number()
    }

    /// Makes a call that was restart_syscall(2) the original one again.
    pub fn set_syscall_number(&mut self, number: u64) {
        self.0[index::ORIG_RAX] = number;
    }

    /// Arguments of the system call the task is in.
    pub fn arguments(&self) -> [u64; 6] {
        [index::RDI, index::RSI, index::RDX, index::R10, index::R8, index::R9].map(|i| self.0[i])
    }

    /// rcx and r11, which the system call instruction overwrites.
    pub fn syscall_scratch(&self) -> (u64, u64) {
        (self.0[index::RCX], self.0[index::R11])
    }

    /// Loads the arguments of a system call.
    pub fn set_arguments(&mut self, args: [u64; 6]) {
        for (i, arg) in [index::RDI, index::RSI, index::RDX, index::R10, index::R8, index::R9]
            .into_iter()
            .zip(args)
        {
            self.0[i] = arg;
        }
    }

    /// Prepares a call through a system call instruction at the pc. orig_rax = -1, so that the kernel restarts nothing.
    pub fn set_call(&mut self, number: u64, args: [u64; 6]) {
        self.0[index::RAX] = number;
        self.forget_syscall();
        self.set_arguments(args);
    }

    /// orig_rax = -1: the kernel sees no system call to restart (arch_do_signal_or_restart()).
    pub fn forget_syscall(&mut self) {
        self.0[index::ORIG_RAX] = u64::MAX;
    }

    /// Prepares a C call `function(first, second)` on its own stack, flags clean.
    pub fn set_function_call(&mut self, function: u64, stack: u64, first: u64, second: u64) {
        self.forget_syscall();
        self.0[index::RAX] = 0;
        self.0[index::RIP] = function;
        self.0[index::RSP] = stack;
        self.0[index::RDI] = first;
        self.0[index::RSI] = second;
        self.0[index::EFLAGS] = 0x202; // interrupts on, nothing else: no trap flag, no direction flag
    }

    /// Where to issue the call again that the task was caught in.
    pub fn call_site(&self, elsewhere: u64) -> u64 {
        elsewhere
    }

    /// How the task was caught in a system call, if it was.
    pub fn interrupted(&self) -> Option<Interrupted> {
        self.syscall_number()?;
        match self.result() {
            -514..=-512 => Some(Interrupted::Restarts),
            -516 => Some(Interrupted::RestartBlock),
            -4 => Some(Interrupted::Fails),
            _ => None,
        }
    }

    /// The registers themselves tell.
    pub fn note_call(&mut self, _number: u64, _args: &[u64; 6], _pc: u64) {}

    /// -ERESTART_RESTARTBLOCK says so.
    pub fn use_restart_block(&mut self) {}

    /// What came of a call that `_issued` was to begin and that was interrupted: None where it returned.
    pub fn interrupted_since(&self, _issued: &Registers) -> Option<Interrupted> {
        self.interrupted()
    }

    /// Lets the kernel issue the call again when the task goes on; a handler that is pending still gives its EINTR.
    pub fn reissue(&mut self) {
        self.set_result(-ERESTARTNOHAND);
    }

    /// True of the 64-bit code segment; 0x23 is that of 32-bit tasks.
    pub fn is_native(&self) -> bool {
        self.0[index::CS] == 0x33
    }
}
