//! Whether a thread has a function of `[vdso]` still to go through: such works on data of the kernel's own, which another build of the kernel
//! lays out otherwise.

use crate::arch::Registers;
use crate::image::state::SigAltStack;
use crate::tracer::{Context, StoppedProcess};

/// How much of a stack is looked at, from the stack pointer on: handlers within handlers take some KiB each.
const LOOKED_AT: u64 = 256 << 10;
/// How far below the interrupted stack pointer its context may be on the same stack: the largest extended state is that of AMX, 11 KiB.
const FRAME_MAX: u64 = 64 << 10;

/// Its own pc may be there, or that of a signal frame that it has still to return through. `all_stacks`: those that threads of the process have
/// for handlers.
pub fn is_in_vdso(
    process: &StoppedProcess,
    regs: &Registers,
    own_stack: SigAltStack,
    all_stacks: &[SigAltStack],
) -> bool {
    let Some(code) = process.vdso_code() else {
        return false;
    };
    let memory = process.memory();
    let range = |stack: &SigAltStack| stack.sp..stack.sp.saturating_add(stack.size);
    let own_stack = range(&own_stack);
    let is_interrupted = |sp: u64| {
        let found = memory.contexts(sp, sp.saturating_add(LOOKED_AT));
        // Others are left of earlier handlers.
        let is_of_this_stack = |context: &Context| {
            (context.at..context.at + FRAME_MAX).contains(&context.sp)
                && !all_stacks.iter().any(|stack| range(stack).contains(&context.at))
        };
        found
            .iter()
            .any(|context| is_of_this_stack(context) && code.contains(&context.pc))
    };
    if process.is_in_vdso(regs) || is_interrupted(regs.sp()) {
        return true;
    }
    // On a stack for handlers alone the first is of what ran on another.
    own_stack.contains(&regs.sp())
        && memory
            .contexts(regs.sp(), own_stack.end)
            .iter()
            .any(|context| code.contains(&context.pc) || is_interrupted(context.sp))
}
