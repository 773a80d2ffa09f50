//! The way home: where a task goes by itself when whoever borrowed its registers died.
//!
//! A loaned system call runs at the start of a slot; the instructions after it load every register that the call changed, and
//! jump to where the task was. They need no stack, no flags, no vector registers and no signal mask, so nothing of the task is lost.

use super::regs::Registers;
use crate::arch::calls::Interrupted;
use crate::arch::slot::{SCRIPT_STRIDE, Slot};

/// Bytes of one slot.
pub const SLOT_LEN: usize = 224;

/// The system call instruction of a slot is its first byte.
pub const CALL_AT: u64 = 0;
/// Where clone(2) is called: a child whose tracer died does not go home but ends.
pub const CLONE_AT: u64 = 4;
/// Where a script begins: r9 points at its entries of `SCRIPT_WORDS` words each: the number of a call, which its result replaces, five
/// arguments, and whether another entry follows.
pub const SCRIPT_AT: u64 = (EXIT_AT + EXIT.len()) as u64;
/// Where a task is after the last call of a script.
pub const SCRIPT_END_AT: u64 = SCRIPT_AT + 25;
/// Where [`Slot::results`] is in a slot.
pub const RESULTS_AT: usize = GENERATION_AT + 8;

const VALUES_AT: usize = 128;
const VALUES: usize = 10;
const GENERATION_AT: usize = VALUES_AT + 8 * VALUES;
const _: () = assert!(RESULTS_AT + 8 <= SLOT_LEN);

/// `mov value(%rip), register` without its displacement, in the order of [`home_values`].
const LOADS: [[u8; 3]; 9] = [
    [0x48, 0x8b, 0x05], // rax
    [0x48, 0x8b, 0x0d], // rcx, which the syscall instruction overwrites
    [0x48, 0x8b, 0x15], // rdx
    [0x48, 0x8b, 0x35], // rsi
    [0x48, 0x8b, 0x3d], // rdi
    [0x4c, 0x8b, 0x05], // r8
    [0x4c, 0x8b, 0x0d], // r9
    [0x4c, 0x8b, 0x15], // r10
    [0x4c, 0x8b, 0x1d], // r11, likewise
];

const CODE: [u8; VALUES_AT] = code();
/// `syscall; jmp 1f; syscall; xchg %rax,%rcx; jrcxz 2f; 1:`.
const CALLS: [u8; LOADS_AT] = [
    0x0f,
    0x05,
    0xeb,
    0x06,
    0x0f,
    0x05,
    0x48,
    0x91,
    0xe3,
    (EXIT_AT - LOADS_AT) as u8,
];
/// `2: lea 60(%rcx),%eax; syscall`: exit(2), since rcx is 0, the result of clone(2) in a child.
const EXIT: [u8; 5] = [0x8d, 0x41, 0x3c, 0x0f, 0x05];
const LOADS_AT: usize = 10;
const EXIT_AT: usize = LOADS_AT + 7 * LOADS.len() + 6;
/// `3: mov (%r9),%rax; mov 8(%r9),%rdi; mov 16(%r9),%rsi; mov 24(%r9),%rdx; mov 32(%r9),%r10; mov 40(%r9),%r8; syscall; mov %rax,(%r9);
/// mov 48(%r9),%rcx; lea STRIDE(%r9),%r9; jrcxz 1b; jmp 3b`. No flags, as on the way home; a system call leaves r9 alone.
const SCRIPT: [u8; SCRIPT_LEN] = {
    let mut code =
        *b"\x49\x8b\x01\x49\x8b\x79\x08\x49\x8b\x71\x10\x49\x8b\x51\x18\x4d\x8b\x51\x20\x4d\x8b\x41\x28\x0f\x05\
        \x49\x89\x01\x49\x8b\x49\x30\x4d\x8d\x89\0\0\0\0\xe3\0\xeb\0";
    code[35] = SCRIPT_STRIDE as u8;
    // Displacements count from the end of the instruction.
    code[SCRIPT_LEN - 3] = (LOADS_AT as i64 - (SCRIPT_AT as i64 + SCRIPT_LEN as i64 - 2)) as u8;
    code[SCRIPT_LEN - 1] = -(SCRIPT_LEN as i64) as u8;
    code
};
const SCRIPT_LEN: usize = 43;
const _: () = assert!(SCRIPT_STRIDE < 256);
const _: () = assert!(SCRIPT_AT as usize + SCRIPT.len() <= VALUES_AT);

/// [`CALLS`], `1: mov … (nine times); jmp *value(%rip)`, [`EXIT`], [`SCRIPT`].
const fn code() -> [u8; VALUES_AT] {
    let mut code = [0; VALUES_AT];
    let mut at = 0;
    while at < LOADS_AT {
        code[at] = CALLS[at];
        at += 1;
    }
    let mut value = 0;
    while value < LOADS.len() {
        code[at] = LOADS[value][0];
        code[at + 1] = LOADS[value][1];
        code[at + 2] = LOADS[value][2];
        code[at + 3] = (VALUES_AT + 8 * value - (at + 7)) as u8;
        at += 7;
        value += 1;
    }
    code[at] = 0xff;
    code[at + 1] = 0x25;
    code[at + 2] = (VALUES_AT + 8 * value - (at + 6)) as u8;
    let mut byte = 0;
    while byte < EXIT.len() {
        code[EXIT_AT + byte] = EXIT[byte];
        byte += 1;
    }
    let mut byte = 0;
    while byte < SCRIPT.len() {
        code[SCRIPT_AT as usize + byte] = SCRIPT[byte];
        byte += 1;
    }
    code
}

impl Slot {
    /// As it is to lie anywhere.
    pub fn to_bytes(self, _at: u64) -> [u8; SLOT_LEN] {
        let mut bytes = [0; SLOT_LEN];
        bytes[..VALUES_AT].copy_from_slice(&CODE);
        let words = home_values(&self.home)
            .into_iter()
            .chain([self.generation, self.results]);
        for (word, bytes) in words.zip(bytes[VALUES_AT..].chunks_exact_mut(8)) {
            bytes.copy_from_slice(&word.to_ne_bytes());
        }
        bytes
    }

    /// Generation and results page of a slot that an earlier loan left behind; None where the bytes are not a slot.
    pub fn left_behind(bytes: &[u8]) -> Option<(u64, u64)> {
        let word = |at: usize| Some(u64::from_ne_bytes(bytes.get(at..at + 8)?.try_into().ok()?));
        bytes.starts_with(&CODE).then_some(())?;
        Some((word(GENERATION_AT)?, word(RESULTS_AT)?))
    }

    /// A task leaves a slot at once: none is ever found waiting in one.
    pub fn leave_slot(_regs: &mut Registers, _read: impl Fn(u64, &mut [u8]) -> bool) {}
}

/// The registers that a system call changes or takes, and the pc.
fn home_values(home: &Registers) -> [u64; VALUES] {
    let [rdi, rsi, rdx, r10, r8, r9] = home.arguments();
    let (rcx, r11) = home.syscall_scratch();
    [home.result() as u64, rcx, rdx, rsi, rdi, r8, r9, r10, r11, home.pc()]
}

/// The registers with which a task stopped like this enters user mode: what arch_do_signal_or_restart() makes of them.
pub fn as_resumed(stopped: &Registers) -> Registers {
    const SYS_RESTART_SYSCALL: i64 = 219;
    let mut home = *stopped;
    let number = match stopped.interrupted() {
        Some(Interrupted::Restarts) => stopped.syscall_number().map(|number| number as i64),
        Some(Interrupted::RestartBlock) => Some(SYS_RESTART_SYSCALL),
        Some(Interrupted::Fails) | None => None,
    };
    if let Some(number) = number {
        home.set_result(number);
        home.set_pc(home.pc().wrapping_sub(super::SYSCALL_INSTRUCTION.len() as u64));
    }
    home.forget_syscall();
    home
}

#[cfg(test)]
mod tests {
    use super::*;

    fn registers() -> Registers {
        let bytes: Vec<u8> = (1..=27u64).flat_map(|word| (word << 8).to_ne_bytes()).collect();
        Registers::from_bytes(&bytes).unwrap()
    }

    #[test]
    fn the_last_load_ends_before_the_values() {
        let jump = LOADS_AT + 7 * LOADS.len();
        assert_eq!(jump + 6, EXIT_AT);
        // The displacement counts from the end of the instruction.
        assert_eq!(jump + 6 + usize::from(CODE[jump + 2]), VALUES_AT + 8 * 9);
    }

    #[test]
    fn a_call_goes_to_the_loads_and_a_child_to_its_exit() {
        // Displacements of the two short jumps count from the end of the instruction.
        assert_eq!(4 + usize::from(CODE[3]), LOADS_AT);
        assert_eq!(CODE[CLONE_AT as usize..][..2], *super::super::SYSCALL_INSTRUCTION);
        assert_eq!(LOADS_AT + usize::from(CODE[LOADS_AT - 1]), EXIT_AT);
        assert_eq!(i64::from(EXIT[2]), libc::SYS_exit);
    }

    #[test]
    fn a_script_ends_at_the_loads_and_its_calls_at_a_known_place() {
        let at = |offset: u64| CODE[(SCRIPT_AT + offset) as usize];
        assert_eq!(
            CODE[SCRIPT_END_AT as usize - 2..][..2],
            *super::super::SYSCALL_INSTRUCTION
        );
        let target = |end: u64, displacement: u8| (SCRIPT_AT + end).wrapping_add_signed(i64::from(displacement as i8));
        assert_eq!(target(41, at(40)), LOADS_AT as u64);
        assert_eq!(target(43, at(42)), SCRIPT_AT);
    }

    #[test]
    fn a_slot_left_behind_is_known_again() {
        let slot = Slot {
            home: registers(),
            generation: 7,
            results: 0x7000,
        };
        let bytes = slot.to_bytes(0x1000);
        assert_eq!(Slot::left_behind(&bytes), Some((7, 0x7000)));
        assert_eq!(Slot::left_behind(&[0; SLOT_LEN]), None);
    }

    #[test]
    fn an_interrupted_call_is_issued_again_on_the_way_home() {
        let mut stopped = registers();
        stopped.set_syscall_number(0);
        stopped.set_pc(0x40_0002);
        stopped.set_result(-512);
        let home = as_resumed(&stopped);
        assert_eq!((home.result(), home.pc(), home.syscall_number()), (0, 0x40_0000, None));
        stopped.set_result(-516);
        assert_eq!(as_resumed(&stopped).result(), 219);
        stopped.set_result(5);
        assert_eq!(
            (as_resumed(&stopped).result(), as_resumed(&stopped).pc()),
            (5, 0x40_0002)
        );
    }
}
