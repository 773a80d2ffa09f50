//! The general registers as NT_PRSTATUS has them (struct user_pt_regs), and the system call convention.
//!
//! A task that is stopped in a system call shows registers that are already those with which it issues the call again: the pc at the
//! instruction, x0 as it was (do_signal(), arch/arm64/kernel/signal.c). That it was in a call, and in which, is known from outside only
//! (proc_pid_syscall(5)), and kept beside the registers.

use std::mem::size_of;

use super::syscall;
use crate::arch::calls::Interrupted;

/// struct user_pt_regs, and the call that the task was caught in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Registers {
    words: [u64; COUNT],
    call: Option<Call>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Call {
    number: u64,
    how: Interrupted,
    /// The first argument, which the result has replaced where the call failed.
    first: u64,
}

const COUNT: usize = 34;
const LEN: usize = COUNT * 8;
const _: () = assert!(LEN == size_of::<libc::user_regs_struct>());

/// Indices into struct user_pt_regs (arch/arm64/include/uapi/asm/ptrace.h); x0 to x30 are 0 to 30.
mod index {
    pub const NUMBER: usize = 8;
    pub const SP: usize = 31;
    pub const PC: usize = 32;
    pub const PSTATE: usize = 33;
}

/// PSR_MODE32_BIT: AArch32.
const MODE_32_BIT: u64 = 0x10;
const EINTR: i64 = 4;
const INSTRUCTION_LEN: u64 = 4;

impl Registers {
    /// None where the size is not this architecture's, as that of a 32-bit task.
    pub fn from_bytes(bytes: &[u8]) -> Option<Self> {
        if bytes.len() != LEN {
            return None;
        }
        let mut words = [0; COUNT];
        for (word, bytes) in words.iter_mut().zip(bytes.chunks_exact(8)) {
            *word = u64::from_ne_bytes(bytes.try_into().ok()?);
        }
        let continues = words[index::NUMBER] == syscall::RESTART_SYSCALL;
        let call = continues.then_some(Call {
            number: syscall::RESTART_SYSCALL,
            how: Interrupted::RestartBlock,
            first: words[0],
        });
        Some(Registers { words, call })
    }

    pub fn as_bytes(&self) -> &[u8] {
        // SAFETY: an array of u64 has no padding, and the slice lives as long as `self`.
        unsafe { std::slice::from_raw_parts(self.words.as_ptr().cast(), LEN) }
    }

    pub fn pc(&self) -> u64 {
        self.words[index::PC]
    }

    pub fn set_pc(&mut self, pc: u64) {
        self.words[index::PC] = pc;
    }

    pub fn sp(&self) -> u64 {
        self.words[index::SP]
    }

    pub fn set_sp(&mut self, sp: u64) {
        self.words[index::SP] = sp;
    }

    /// Where thread-local storage is: what [`super::THREAD_POINTER`] says.
    pub fn thread_pointer(&self, regset: &[u8]) -> u64 {
        regset.first_chunk().map_or(0, |bytes| u64::from_ne_bytes(*bytes))
    }

    /// What a system call returned, or is about to.
    pub fn result(&self) -> i64 {
        self.words[0] as i64
    }

    pub fn set_result(&mut self, result: i64) {
        self.words[0] = result as u64;
    }

    /// Notes the call that the task was seen in before it stopped, where its registers say that it is still there.
    pub fn note_call(&mut self, number: u64, args: &[u64; 6], pc: u64) {
        self.call = None;
        let is_number = [number, syscall::RESTART_SYSCALL].contains(&self.words[index::NUMBER]);
        if !is_number || self.words[1..6] != args[1..] {
            return;
        }
        let how = if self.pc() == pc.wrapping_sub(INSTRUCTION_LEN) && self.words[0] == args[0] {
            how_restarted(number, args)
        } else if self.pc() == pc && self.result() == -EINTR {
            Interrupted::Fails
        } else {
            return;
        };
        self.call = Some(Call {
            number,
            how,
            first: args[0],
        });
    }

    /// For a task that certainly has a restart block: it goes on by it.
    pub fn use_restart_block(&mut self) {
        self.words[index::NUMBER] = syscall::RESTART_SYSCALL;
    }

    /// The number of the system call the task was caught in, if any.
    pub fn syscall_number(&self) -> Option<u64> {
        self.call.map(|call| call.number)
    }

    /// The number of the call that it has just returned from, if it stands behind a system call instruction.
    pub fn number_before(&self) -> Option<u64> {
        Some(self.words[index::NUMBER])
    }

    /// Makes a call that was restart_syscall(2) the original one again.
    pub fn set_syscall_number(&mut self, number: u64) {
        if let Some(call) = &mut self.call {
            call.number = number;
        }
    }

    /// Arguments of the system call the task is in.
    pub fn arguments(&self) -> [u64; 6] {
        let first = self.call.map_or(self.words[0], |call| call.first);
        [
            first,
            self.words[1],
            self.words[2],
            self.words[3],
            self.words[4],
            self.words[5],
        ]
    }

    /// Loads the arguments of a system call.
    pub fn set_arguments(&mut self, args: [u64; 6]) {
        self.words[..6].copy_from_slice(&args);
    }

    /// Prepares a call through a system call instruction at the pc.
    pub fn set_call(&mut self, number: u64, args: [u64; 6]) {
        self.forget_syscall();
        self.words[index::NUMBER] = number;
        self.set_arguments(args);
    }

    /// Nothing is to be issued again by the kernel: it forgets the call by [`super::FORGET_SYSCALL`].
    pub fn forget_syscall(&mut self) {
        self.call = None;
    }

    /// Prepares a C call `function(first, second)` on its own stack, flags clean.
    pub fn set_function_call(&mut self, function: u64, stack: u64, first: u64, second: u64) {
        self.forget_syscall();
        self.words[index::PC] = function;
        self.words[index::SP] = stack;
        self.words[..2].copy_from_slice(&[first, second]);
        self.words[index::PSTATE] = 0; // EL0, AArch64, interrupts on, nothing else
    }

    /// Where to issue the call again that the task was caught in: where the program does, since a task that is stopped there and that goes
    /// on from there goes on with that call (do_signal()), whatever its registers say.
    pub fn call_site(&self, _elsewhere: u64) -> u64 {
        self.pc()
    }

    /// How the task was caught in a system call, if it was.
    pub fn interrupted(&self) -> Option<Interrupted> {
        self.call.map(|call| call.how)
    }

    /// What came of a call that `issued` was to begin and that was interrupted: None where it returned.
    pub fn interrupted_since(&self, issued: &Registers) -> Option<Interrupted> {
        let number = issued.words[index::NUMBER];
        if self.pc() == issued.pc() {
            Some(how_restarted(number, &issued.arguments()))
        } else {
            (self.result() == -EINTR).then_some(Interrupted::Fails)
        }
    }

    /// Lets the task issue the call again when it goes on.
    pub fn reissue(&mut self) {
        let Some(call) = &mut self.call else { return };
        if call.how == Interrupted::Fails {
            self.words[index::PC] -= INSTRUCTION_LEN;
        }
        call.how = Interrupted::Restarts;
        self.words[0] = call.first;
        self.words[index::NUMBER] = call.number;
    }

    /// Whether the pc is at the instruction of the call that the task was caught in.
    pub fn is_at_call(&self) -> bool {
        self.call.is_some_and(|call| call.how != Interrupted::Fails)
    }

    /// x0 to x6, and x8.
    pub fn changed_by_loans(&self) -> [u64; 8] {
        [0, 1, 2, 3, 4, 5, 6, index::NUMBER].map(|i| self.words[i])
    }

    /// AArch64; otherwise a 32-bit task.
    pub fn is_native(&self) -> bool {
        self.words[index::PSTATE] & MODE_32_BIT == 0
    }
}

/// Which calls leave a restart block when they are interrupted (include/linux/restart_block.h).
fn how_restarted(number: u64, args: &[u64; 6]) -> Interrupted {
    const TIMER_ABSTIME: u64 = 1;
    const FUTEX_COMMAND: u64 = 0x7f;
    let has_block = match number {
        syscall::NANOSLEEP | syscall::RESTART_SYSCALL => true,
        syscall::CLOCK_NANOSLEEP => args[1] & TIMER_ABSTIME == 0,
        // FUTEX_WAIT and FUTEX_WAIT_BITSET with a time (futex_wait(), kernel/futex).
        syscall::FUTEX => [0, 9].contains(&(args[1] & FUTEX_COMMAND)) && args[3] != 0,
        _ => false,
    };
    match has_block {
        true => Interrupted::RestartBlock,
        false => Interrupted::Restarts,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stopped(number: u64, first: u64, pc: u64) -> Registers {
        let mut regs = Registers::from_bytes(&[0; LEN]).unwrap();
        regs.set_arguments([first, 1, 0x1000, 0, 0, 0]);
        regs.words[index::NUMBER] = number;
        regs.set_pc(pc);
        regs
    }

    #[test]
    fn a_call_is_known_by_what_was_seen_before_the_stop() {
        let args = [7, 1, 0x1000, 0, 0, 0];
        let mut regs = stopped(63, 7, 0x4000);
        assert_eq!(regs.interrupted(), None);
        regs.note_call(63, &args, 0x4004);
        assert_eq!(
            (regs.interrupted(), regs.syscall_number()),
            (Some(Interrupted::Restarts), Some(63))
        );
        regs.note_call(63, &args, 0x5004);
        assert_eq!(regs.interrupted(), None);
    }

    #[test]
    fn a_call_that_failed_is_issued_again_with_its_first_argument() {
        let mut regs = stopped(syscall::EPOLL_PWAIT, -EINTR as u64, 0x4004);
        regs.note_call(syscall::EPOLL_PWAIT, &[7, 1, 0x1000, 0, 0, 0], 0x4004);
        assert_eq!(regs.interrupted(), Some(Interrupted::Fails));
        regs.reissue();
        assert_eq!((regs.pc(), regs.result()), (0x4000, 7));
    }

    #[test]
    fn a_sleep_goes_on_by_its_restart_block_or_begins_anew() {
        let mut regs = stopped(syscall::CLOCK_NANOSLEEP, 1, 0x4000);
        regs.note_call(syscall::CLOCK_NANOSLEEP, &[1, 0, 0x1000, 0, 0, 0], 0x4004);
        assert_eq!(regs.interrupted(), None, "other arguments");
        let mut regs = stopped(syscall::NANOSLEEP, 0x2000, 0x4000);
        regs.note_call(syscall::NANOSLEEP, &[0x2000, 1, 0x1000, 0, 0, 0], 0x4004);
        assert_eq!(regs.interrupted(), Some(Interrupted::RestartBlock));
        regs.use_restart_block();
        let from_image = Registers::from_bytes(regs.as_bytes()).unwrap();
        assert_eq!(from_image.interrupted(), Some(Interrupted::RestartBlock));
        regs.reissue();
        assert_eq!(Registers::from_bytes(regs.as_bytes()).unwrap().interrupted(), None);
    }
}
