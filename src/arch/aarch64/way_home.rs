//! The way home: where a task goes by itself when whoever borrowed its registers died.
//!
//! A loaned system call runs at the start of a slot; the instructions after it load every register that the call changed, and go to where
//! the task was. They need no stack, no flags, no vector registers and no signal mask. AArch64 cannot jump without a register or a near
//! place: a task that was caught in a call issues it here, since behind a call x8 is free (setup_restart_syscall(),
//! arch/arm64/kernel/signal.c); from anywhere else it branches; too far for that, it loses x17, which linkers use for such branches.

use super::regs::Registers;
use crate::arch::slot::Slot;

/// Bytes of one slot.
pub const SLOT_LEN: usize = 224;

/// The system call instruction of a slot is its first one.
pub const CALL_AT: u64 = 0;
/// Where clone(2) is called: a child whose tracer died does not go home but ends.
pub const CLONE_AT: u64 = 8;
/// Where a script begins: x5 points at its entries of `SCRIPT_WORDS` words each: the number of a call, which its result replaces, five
/// arguments, and whether another entry follows.
pub const SCRIPT_AT: u64 = 24;
/// Where a task is after the last call of a script.
pub const SCRIPT_END_AT: u64 = 44;
/// Where [`Slot::results`] is in a slot.
pub const RESULTS_AT: usize = GENERATION_AT + 8;

/// Where the code that differs begins: how the task leaves for home.
const LEAVE_AT: usize = 4 * CODE.len();
const LEAVE_LEN: usize = 3;
const VALUES_AT: usize = 128;
const VALUES: usize = 9;
const GENERATION_AT: usize = VALUES_AT + 8 * VALUES;
const _: () = assert!(RESULTS_AT + 8 <= SLOT_LEN && LEAVE_AT + 4 * LEAVE_LEN <= VALUES_AT);

#[rustfmt::skip]
const CODE: [u32; 23] = [
    0xd400_0001, //      svc #0
    0x1400_000e, //      b home
    0xd400_0001, //      svc #0             clone
    0xb500_0180, //      cbnz x0, home
    0xd280_0ba8, //      mov x8, #93        exit(2) in the child
    0xd400_0001, //      svc #0
    0xf940_00a8, // 1:   ldr x8, [x5]       script
    0xa940_84a0, //      ldp x0, x1, [x5, #8]
    0xa941_8ca2, //      ldp x2, x3, [x5, #24]
    0xf940_14a4, //      ldr x4, [x5, #40]
    0xd400_0001, //      svc #0
    0xf900_00a0, //      str x0, [x5]
    0xf940_18a6, //      ldr x6, [x5, #48]
    0x9103_00a5, //      add x5, x5, #192
    0xb5ff_ff06, //      cbnz x6, 1b
    0x5800_0220, // home: ldr x0, values
    0x5800_0241, //      ldr x1, values + 8
    0x5800_0262, //      ldr x2, values + 16
    0x5800_0283, //      ldr x3, values + 24
    0x5800_02a4, //      ldr x4, values + 32
    0x5800_02c5, //      ldr x5, values + 40
    0x5800_02e6, //      ldr x6, values + 48
    0x5800_0308, //      ldr x8, values + 56
];

/// `svc #0; ldr x8, values + 64; ret x8`: `ret` and not `br`, which pages with BTI do not let in everywhere.
const LEAVE_BY_CALL: [u32; LEAVE_LEN] = [0xd400_0001, 0x5800_0308, 0xd65f_0100];
/// `ldr x17, values + 64; ret x17`.
const LEAVE_BY_X17: [u32; LEAVE_LEN] = [0x5800_0331, 0xd65f_0220, BRK];
/// `b`, to be completed.
const BRANCH: u32 = 0x1400_0000;
const BRK: u32 = 0xd420_0000;
const INSTRUCTION_LEN: u64 = 4;

impl Slot {
    /// As it is to lie at `at`.
    pub fn to_bytes(self, at: u64) -> [u8; SLOT_LEN] {
        let (leave, target) = self.leave(at);
        let mut bytes = [0; SLOT_LEN];
        let code = CODE.into_iter().chain(leave);
        for (instruction, bytes) in code.zip(bytes.chunks_exact_mut(4)) {
            bytes.copy_from_slice(&instruction.to_le_bytes());
        }
        let values = home_values(&self.home)
            .into_iter()
            .chain([target, self.generation, self.results]);
        for (word, bytes) in values.zip(bytes[VALUES_AT..].chunks_exact_mut(8)) {
            bytes.copy_from_slice(&word.to_ne_bytes());
        }
        bytes
    }

    /// The last instructions, and the pc after them.
    fn leave(&self, at: u64) -> ([u32; LEAVE_LEN], u64) {
        let home = self.home.pc();
        let distance = home.wrapping_sub(at + LEAVE_AT as u64) as i64;
        const NEAR: std::ops::Range<i64> = -(128 << 20)..128 << 20;
        if self.home.is_at_call() {
            (LEAVE_BY_CALL, home + INSTRUCTION_LEN)
        } else if NEAR.contains(&distance) && distance % 4 == 0 {
            let branch = BRANCH | (distance / 4) as u32 & 0x03ff_ffff;
            ([branch, BRK, BRK], home)
        } else {
            (LEAVE_BY_X17, home)
        }
    }

    /// Generation and results page of a slot that an earlier loan left behind; None where the bytes are not a slot.
    pub fn left_behind(bytes: &[u8]) -> Option<(u64, u64)> {
        let code = CODE.iter().flat_map(|instruction| instruction.to_le_bytes());
        bytes.get(..LEAVE_AT)?.iter().copied().eq(code).then_some(())?;
        Some((word(bytes, GENERATION_AT)?, word(bytes, RESULTS_AT)?))
    }

    /// A task that issued its call in a slot that was left behind, and waits there, is put back to where it would have returned. `read`
    /// reads its memory.
    pub fn leave_slot(regs: &mut Registers, read: impl Fn(u64, &mut [u8]) -> bool) {
        let mut bytes = [0; SLOT_LEN];
        let slot = regs.pc().wrapping_sub(LEAVE_AT as u64);
        if regs.is_at_call()
            && read(slot, &mut bytes)
            && Slot::left_behind(&bytes).is_some()
            && let Some(target) = word(&bytes, VALUES_AT + 8 * (VALUES - 1))
        {
            regs.set_pc(target.wrapping_sub(INSTRUCTION_LEN));
        }
    }
}

fn word(bytes: &[u8], at: usize) -> Option<u64> {
    Some(u64::from_ne_bytes(bytes.get(at..at + 8)?.try_into().ok()?))
}

/// The registers that loans change: x0 to x6, x8.
fn home_values(home: &Registers) -> [u64; VALUES - 1] {
    home.changed_by_loans()
}

/// The registers with which a task stopped like this enters user mode: the kernel has seen to that before the stop.
pub fn as_resumed(stopped: &Registers) -> Registers {
    *stopped
}

#[cfg(test)]
mod tests {
    use super::*;

    fn registers(pc: u64) -> Registers {
        let bytes: Vec<u8> = (1..=34u64).flat_map(|word| (word << 8).to_ne_bytes()).collect();
        let mut regs = Registers::from_bytes(&bytes).unwrap();
        regs.set_pc(pc);
        regs
    }

    fn slot(home: Registers) -> Slot {
        Slot {
            home,
            generation: 7,
            results: 0x7000,
        }
    }

    fn instruction(bytes: &[u8], at: usize) -> u32 {
        u32::from_le_bytes(bytes[at..at + 4].try_into().unwrap())
    }

    #[test]
    fn a_slot_left_behind_is_known_again() {
        assert_eq!(
            Slot::left_behind(&slot(registers(0x4000)).to_bytes(0x1000)),
            Some((7, 0x7000))
        );
        assert_eq!(Slot::left_behind(&[0; SLOT_LEN]), None);
    }

    #[test]
    fn calls_stand_where_they_are_said_to() {
        let bytes = slot(registers(0x4000)).to_bytes(0x1000);
        for at in [CALL_AT, CLONE_AT, SCRIPT_END_AT - INSTRUCTION_LEN] {
            assert_eq!(bytes[at as usize..][..4], *super::super::SYSCALL_INSTRUCTION);
        }
    }

    #[test]
    fn what_is_near_is_branched_to_and_what_is_far_costs_a_register() {
        let near = slot(registers(0x4000)).to_bytes(0x1000);
        assert_eq!(
            instruction(&near, LEAVE_AT),
            BRANCH | ((0x4000 - 0x1000 - LEAVE_AT as u32) / 4)
        );
        let back = slot(registers(0x1000)).to_bytes(0x1000);
        assert_eq!(
            instruction(&back, LEAVE_AT),
            BRANCH | (0x0400_0000 - LEAVE_AT as u32 / 4)
        );
        let far = slot(registers(0xffff_0000_0000)).to_bytes(0x1000);
        assert_eq!(instruction(&far, LEAVE_AT), LEAVE_BY_X17[0]);
        assert_eq!(word(&far, VALUES_AT + 64), Some(0xffff_0000_0000));
    }

    #[test]
    fn a_call_is_issued_in_the_slot_and_its_task_put_back() {
        let mut home = registers(0x4000);
        let args = home.arguments();
        home.note_call(9 << 8, &args, 0x4004);
        let bytes = slot(home).to_bytes(0x1000);
        assert_eq!(instruction(&bytes, LEAVE_AT), LEAVE_BY_CALL[0]);
        assert_eq!(word(&bytes, VALUES_AT + 64), Some(0x4004));
        let mut waiting = home;
        waiting.set_pc(0x1000 + LEAVE_AT as u64);
        Slot::leave_slot(&mut waiting, |at, buffer| {
            buffer.copy_from_slice(&bytes);
            at == 0x1000
        });
        assert_eq!(waiting, home);
    }
}
