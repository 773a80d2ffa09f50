//! Where `[vdso]` (vdso(7)) is in a process, and whether a thread is in the middle of a function of it.

use std::io;

use super::ProcessMemory;
use super::elf::{Elf, Segment};
use super::proc::ProcDir;
use super::way_home::{DeadBytes, PAGE};
use crate::arch::vdso::Function;
use crate::arch::{Registers, SYSCALL_INSTRUCTION, VDSO_FUNCTIONS};

/// `[vdso]`: the kernel's code in the memory of a process.
#[derive(Debug, Clone)]
pub(super) struct Vdso {
    pub code: std::ops::Range<u64>,
    /// What follows on its last page, where that is enough.
    pub dead: Option<DeadBytes>,
}

impl Vdso {
    /// Through the auxiliary vector. None where there is none.
    pub fn find(proc: &ProcDir, memory: &ProcessMemory) -> Option<Self> {
        let base = vdso_base(&proc.read("auxv").ok()?)?;
        let (start, end) = dead_tail(base, memory).ok()??;
        Some(Vdso {
            code: base..start,
            dead: DeadBytes::between(start, end),
        })
    }

    /// Whether a thread is in a function that works on the kernel's data. Behind a system call it is not: those that read clocks make one only where
    /// they cannot tell the time themselves, and return what it says (clock_gettime_fallback() and its like, lib/vdso/gettimeofday.c).
    pub fn is_midway(&self, regs: &Registers, memory: &ProcessMemory) -> bool {
        self.code.contains(&regs.pc()) && !is_behind_its_call(regs, memory)
    }
}

fn is_behind_its_call(regs: &Registers, memory: &ProcessMemory) -> bool {
    let is_own = |function: &Function| match function {
        Function::Call(number) => regs.number_before() == u64::try_from(*number).ok(),
        Function::Random | Function::Itself => false,
    };
    VDSO_FUNCTIONS.iter().any(|(_, function)| is_own(function)) && is_a_call(behind(regs), memory)
}

/// Whether a thread may be in a system call: one stands before its pc or, where the kernel has put that back already, there.
pub(super) fn is_at_a_call(regs: &Registers, memory: &ProcessMemory) -> bool {
    is_a_call(behind(regs), memory) || is_a_call(regs.pc(), memory)
}

fn behind(regs: &Registers) -> u64 {
    regs.pc().saturating_sub(SYSCALL_INSTRUCTION.len() as u64)
}

fn is_a_call(at: u64, memory: &ProcessMemory) -> bool {
    let mut instruction = vec![0; SYSCALL_INSTRUCTION.len()];
    memory.read_at(at, &mut instruction).is_ok() && instruction == SYSCALL_INSTRUCTION
}

/// AT_SYSINFO_EHDR of the auxiliary vector (getauxval(3)).
fn vdso_base(auxv: &[u8]) -> Option<u64> {
    let words: Vec<u64> = auxv
        .chunks_exact(8)
        .filter_map(|word| Some(u64::from_ne_bytes(word.try_into().ok()?)))
        .collect();
    words
        .chunks_exact(2)
        .find(|pair| pair[0] == libc::AT_SYSINFO_EHDR)
        .map(|pair| pair[1])
}

/// After the section headers and every segment, up to the end of that page. The kernel maps the vDSO as whole pages, filled with zeros.
fn dead_tail(base: u64, memory: &ProcessMemory) -> io::Result<Option<(u64, u64)>> {
    let mut page = [0; PAGE as usize];
    memory.read_at(base, &mut page)?;
    let elf = Elf::read(
        |at, buffer| match page.get(at as usize..).and_then(|rest| rest.get(..buffer.len())) {
            Some(bytes) => {
                buffer.copy_from_slice(bytes);
                Ok(())
            }
            None => memory.read_at(base.saturating_add(at), buffer),
        },
    )?;
    Ok(elf.map(|elf| {
        let last = elf
            .segments
            .iter()
            .map(Segment::end)
            .fold(elf.section_headers_end, u64::max);
        let start = base + last.next_multiple_of(16);
        (start, start.next_multiple_of(PAGE))
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_vdso_is_found_in_the_auxiliary_vector() {
        let auxv: Vec<u8> = [6u64, 4096, 33, 0x7ffd_1234_0000, 0, 0]
            .iter()
            .flat_map(|word| word.to_ne_bytes())
            .collect();
        assert_eq!(vdso_base(&auxv), Some(0x7ffd_1234_0000));
    }
}
