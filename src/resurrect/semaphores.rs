//! What the end of a process adds to System V semaphores (semop(2), SEM_UNDO): only its own operations can make it so.
#![deny(unsafe_code)]

use anyhow::Result;

use super::process::Rebuilt;
use super::script::Script;
use crate::image::state::Undo;
use crate::sysv::sem::{self, operation};

impl Rebuilt<'_> {
    /// Before there are threads, which share it (CLONE_SYSVSEM), and with the rights of a thaw.
    pub fn adjust_semaphores(&mut self) -> Result<()> {
        let undos = &self.parts.process.undos;
        if undos.is_empty() {
            return Ok(());
        }
        let mut script = Script::new(&self.stage, &mut self.tasks[0]);
        for undo in undos {
            for (lower, raise) in operations(undo) {
                // One of the two can be done, whatever the value is.
                let args = |operations: &[libc::sembuf]| (sem::bytes(operations), operations.len() as u64);
                let (bytes, count) = args(&lower);
                let lowered = script.try_ask(
                    "semop",
                    libc::SYS_semop,
                    [undo.set.into(), bytes.as_slice().into(), count.into()],
                )?;
                if lowered.is_err() {
                    let (bytes, count) = args(&raise);
                    script.call(
                        "semop",
                        libc::SYS_semop,
                        [undo.set.into(), bytes.as_slice().into(), count.into()],
                    )?;
                }
            }
        }
        script.run()
    }

    /// It becomes the last that changed these semaphores, whose values are given.
    pub fn touch_semaphores(&mut self, sets: &[(i32, Vec<(u16, u16)>)]) -> Result<()> {
        let mut script = Script::new(&self.stage, &mut self.tasks[0]);
        for (set, semaphores) in sets {
            for (number, value) in semaphores {
                let operations = sem::bytes(&sem::touch(*number, *value));
                let args = [(*set).into(), operations.as_slice().into(), 2u64.into()];
                script.call("semop", libc::SYS_semop, args)?;
            }
        }
        script.run()
    }
}

/// Pairs of arrays that leave the value as it is, and add up to the adjustment: the first of a pair goes down and up again, the second up
/// and down. In steps of half of what a semaphore holds: there is room for that above its value or below.
fn operations(undo: &Undo) -> impl Iterator<Item = ([libc::sembuf; 2], [libc::sembuf; 2])> {
    const STEP: i32 = 1 << 14;
    let number = undo.number;
    let rest = undo.adjustment;
    let steps = (0..rest.unsigned_abs().div_ceil(STEP as u32)).map(move |index| {
        let done = index as i32 * STEP;
        (rest.abs() - done).min(STEP) * rest.signum()
    });
    // An operation with SEM_UNDO takes from the adjustment what it adds to the value.
    steps.map(move |step| {
        let adjusts = operation(number, (-step) as i16, libc::SEM_UNDO | libc::IPC_NOWAIT);
        let plain = operation(number, step as i16, libc::IPC_NOWAIT);
        if step > 0 {
            ([adjusts, plain], [plain, adjusts])
        } else {
            ([plain, adjusts], [adjusts, plain])
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_steps_of_every_adjustment_can_be_done_at_every_value() {
        for adjustment in [-32768, -32767, -16385, -16384, -1, 1, 5, 16384, 16385, 32767] {
            for value in [0, 1, 16383, 16384, 32766, 32767] {
                let undo = Undo {
                    set: 1,
                    number: 0,
                    adjustment,
                };
                let mut sum = 0;
                for (lower, raise) in operations(&undo) {
                    let runs = |operations: &[libc::sembuf; 2]| {
                        let mut now = value;
                        operations.iter().all(|operation| {
                            now += i32::from(operation.sem_op);
                            (0..=32767).contains(&now)
                        }) && now == value
                    };
                    assert!(runs(&lower) || runs(&raise), "{adjustment} at {value}");
                    let with_undo = lower.iter().find(|one| i32::from(one.sem_flg) & libc::SEM_UNDO != 0);
                    sum -= i32::from(with_undo.unwrap().sem_op);
                }
                assert_eq!(sum, adjustment);
            }
        }
    }
}
