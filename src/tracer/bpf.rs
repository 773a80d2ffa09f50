//! Programs of classic BPF as seccomp(2) takes them, run by hand: what a filter will say to a call, before the call is made.

use crate::arch;

/// struct sock_filter (include/uapi/linux/filter.h).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Instruction {
    pub code: u16,
    pub jump_true: u8,
    pub jump_false: u8,
    pub k: u32,
}

pub const INSTRUCTION_LEN: usize = 8;

impl Instruction {
    pub fn from_bytes(bytes: [u8; INSTRUCTION_LEN]) -> Self {
        let [c0, c1, jump_true, jump_false, k0, k1, k2, k3] = bytes;
        Instruction {
            code: u16::from_ne_bytes([c0, c1]),
            jump_true,
            jump_false,
            k: u32::from_ne_bytes([k0, k1, k2, k3]),
        }
    }

    /// The answer of a return instruction that is in the program itself.
    pub fn constant_answer(&self) -> Option<u32> {
        (self.code == RET | K).then_some(self.k)
    }
}

/// struct seccomp_data: the number, the architecture, where the call is made, its arguments.
#[derive(Debug, Clone, Copy)]
pub struct Call {
    pub number: u32,
    pub pc: u64,
    pub args: [u64; 6],
}

const DATA_LEN: usize = 64;

impl Call {
    fn to_bytes(self) -> [u8; DATA_LEN] {
        let mut bytes = [0; DATA_LEN];
        bytes[..4].copy_from_slice(&self.number.to_ne_bytes());
        bytes[4..8].copy_from_slice(&arch::AUDIT_ARCH.to_ne_bytes());
        bytes[8..16].copy_from_slice(&self.pc.to_ne_bytes());
        for (slot, arg) in bytes[16..].chunks_exact_mut(8).zip(self.args) {
            slot.copy_from_slice(&arg.to_ne_bytes());
        }
        bytes
    }
}

// Classes, sizes, modes and operations (include/uapi/linux/bpf_common.h).
const LD: u16 = 0x00;
const LDX: u16 = 0x01;
const ST: u16 = 0x02;
const STX: u16 = 0x03;
const ALU: u16 = 0x04;
const JMP: u16 = 0x05;
const RET: u16 = 0x06;
const MISC: u16 = 0x07;
const IMM: u16 = 0x00;
const ABS: u16 = 0x20;
const MEM: u16 = 0x60;
const LEN: u16 = 0x80;
const K: u16 = 0x00;
const X: u16 = 0x08;
const A: u16 = 0x10;

/// The answer of a program; None where it does what no program that the kernel took does (seccomp_check_filter(), kernel/seccomp.c).
pub fn run(program: &[Instruction], call: Call) -> Option<u32> {
    let data = call.to_bytes();
    let (mut a, mut x, mut memory) = (0u32, 0u32, [0u32; 16]);
    let mut pc = 0usize;
    loop {
        let Instruction {
            code,
            jump_true,
            jump_false,
            k,
        } = *program.get(pc)?;
        pc += 1;
        match code & 0x07 {
            LD | LDX => {
                let value = match code & 0xe0 {
                    IMM => k,
                    ABS => word(&data, k)?,
                    MEM => *memory.get(k as usize)?,
                    LEN => DATA_LEN as u32,
                    _ => return None,
                };
                *(if code & 0x07 == LD { &mut a } else { &mut x }) = value;
            }
            ST => *memory.get_mut(k as usize)? = a,
            STX => *memory.get_mut(k as usize)? = x,
            ALU => a = calculate(code & 0xf0, a, if code & X == 0 { k } else { x })?,
            JMP if code & 0xf0 == 0 => pc = pc.checked_add(k as usize)?,
            JMP => {
                let is_true = compare(code & 0xf0, a, if code & X == 0 { k } else { x })?;
                pc += usize::from(if is_true { jump_true } else { jump_false });
            }
            RET => return Some(if code & 0x18 == A { a } else { k }),
            MISC if code & 0xf8 == 0 => x = a,
            MISC => a = x,
            _ => return None,
        }
    }
}

fn word(data: &[u8; DATA_LEN], at: u32) -> Option<u32> {
    let at = at as usize;
    data.get(at..)?.first_chunk().map(|bytes| u32::from_ne_bytes(*bytes))
}

/// A division by zero ends the program with 0 (___bpf_prog_run(), kernel/bpf/core.c), which no filter relies on.
fn calculate(operation: u16, a: u32, operand: u32) -> Option<u32> {
    Some(match operation {
        0x00 => a.wrapping_add(operand),
        0x10 => a.wrapping_sub(operand),
        0x20 => a.wrapping_mul(operand),
        0x30 => a.checked_div(operand)?,
        0x40 => a | operand,
        0x50 => a & operand,
        0x60 => a.checked_shl(operand)?,
        0x70 => a.checked_shr(operand)?,
        0x80 => a.wrapping_neg(),
        0xa0 => a ^ operand,
        _ => return None,
    })
}

fn compare(operation: u16, a: u32, operand: u32) -> Option<bool> {
    Some(match operation {
        0x10 => a == operand,
        0x20 => a > operand,
        0x30 => a >= operand,
        0x40 => a & operand != 0,
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn op(code: u16, jump_true: u8, jump_false: u8, k: u32) -> Instruction {
        Instruction {
            code,
            jump_true,
            jump_false,
            k,
        }
    }

    fn call(number: u32, first: u64) -> Call {
        Call {
            number,
            pc: 0x1000,
            args: [first, 0, 0, 0, 0, 0],
        }
    }

    #[test]
    fn a_filter_of_numbers_and_arguments_answers_as_the_kernel_would() {
        let program = [
            op(LD | ABS, 0, 0, 4),                  // the architecture
            op(JMP | 0x10, 1, 0, arch::AUDIT_ARCH), // ours?
            op(RET, 0, 0, 0),                       // no: kill
            op(LD | ABS, 0, 0, 0),                  // the number
            op(JMP | 0x10, 0, 3, 157),              // prctl
            op(LD | ABS, 0, 0, 16),                 // its command
            op(JMP | 0x30, 0, 1, 40),               // 40 or above
            op(RET, 0, 0, 0x5_0001),                // EPERM
            op(RET, 0, 0, 0x7fff_0000),             // allowed
        ];
        assert_eq!(run(&program, call(157, 39)), Some(0x7fff_0000));
        assert_eq!(run(&program, call(157, 40)), Some(0x5_0001));
        assert_eq!(run(&program, call(1, 99)), Some(0x7fff_0000));
        assert_eq!(program[7].constant_answer(), Some(0x5_0001));
    }

    #[test]
    fn arithmetic_and_memory_work() {
        let program = [
            op(LD | IMM, 0, 0, 6),
            op(ST, 0, 0, 3),
            op(LDX | MEM, 0, 0, 3),
            op(ALU | 0x20 | X, 0, 0, 0), // 6 * 6
            op(MISC, 0, 0, 0),           // x = a
            op(LD | LEN, 0, 0, 0),       // 64
            op(ALU | 0x10 | X, 0, 0, 0), // 64 - 36
            op(RET | A, 0, 0, 0),
        ];
        assert_eq!(run(&program, call(0, 0)), Some(28));
    }

    #[test]
    fn nonsense_has_no_answer() {
        assert_eq!(run(&[], call(0, 0)), None);
        assert_eq!(run(&[op(LD | ABS, 0, 0, 62)], call(0, 0)), None);
        assert_eq!(run(&[op(ALU | 0x30, 0, 0, 0), op(RET, 0, 0, 0)], call(0, 0)), None);
    }
}
