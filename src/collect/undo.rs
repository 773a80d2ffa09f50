//! What the end of a process adds to System V semaphores (semop(2), SEM_UNDO). No interface shows it, but the kernel compares: an
//! operation with SEM_UNDO whose adjustment would leave the range of a short fails with ERANGE, any other fails with EAGAIN if the last
//! operation of its array can never be done (perform_atomic_semop(), ipc/sem.c). Nothing is changed by an array that fails.

use anyhow::{Context, Result};
use nix::errno::Errno;

use super::asked::cannot_borrow;
use super::system_v::Sets;
use crate::image::state::{Semaphore, Undo};
use crate::sys::process::{Shared, share};
use crate::sysv::sem::{bytes, operation};
use crate::tracer::{Error, Remote, StoppedProcess};

/// The adjustments that a process has, or why they are not to be had.
pub type Undos = Result<Vec<Undo>, String>;

/// Threads that do not share the first one's are refused (`collect::threads`).
pub fn of_process(process: &mut StoppedProcess, sets: &Sets) -> Result<Undos> {
    if sets.is_empty() {
        return Ok(Ok(Vec::new()));
    }
    // We have none, and none is the same as none.
    let (pid, own) = (process.pid().as_raw(), std::process::id().cast_signed());
    match share(pid, own, Shared::SemaphoreUndo) {
        Ok(true) => return Ok(Ok(Vec::new())),
        Ok(false) => {}
        Err(Errno::ENOSYS | Errno::EOPNOTSUPP | Errno::EPERM) => {
            return Ok(match sets.has_user(pid) {
                true => Err("this kernel does not tell (kcmp(2), KCMP_SYSVSEM)".into()),
                false => Ok(Vec::new()),
            });
        }
        Err(errno) => return Err(errno).context("kcmp KCMP_SYSVSEM"),
    }
    let mut remote = Remote::borrow(process, 0).map_err(|error| cannot_borrow(pid, error))?;
    let asked = ask(&mut remote, pid, sets);
    remote.give_back().context("give a thread its registers back")?;
    asked
}

fn ask(remote: &mut Remote<'_>, pid: i32, sets: &Sets) -> Result<Undos> {
    let mut undos = Vec::new();
    for (id, semaphores) in sets.readable() {
        const TRIES: usize = 5;
        let mut known = semaphores.to_vec();
        let mut tries = 0..TRIES;
        loop {
            let found = of_set(remote, id, &known)?;
            let now = sets.look_again(id)?;
            // Somebody outside may use the set meanwhile.
            let values = |all: &[Semaphore]| all.iter().map(|semaphore| semaphore.value).collect::<Vec<_>>();
            if now.as_deref().is_none_or(|now| values(now) == values(&known)) {
                match found {
                    Found::Undos(found) => undos.extend(found),
                    Found::NotAllowed(call) if sets.has_user(pid) => {
                        return Ok(Err(format!("it is not allowed to be asked ({call})")));
                    }
                    Found::NotAllowed(_) => {}
                }
                break;
            }
            if tries.next().is_none() {
                return Ok(Err(format!("others use the set of semaphores {id} at the same time")));
            }
            known = now.unwrap_or_default();
        }
    }
    Ok(Ok(undos))
}

enum Found {
    Undos(Vec<Undo>),
    /// By the permissions of the set, or by a seccomp filter: who may not use a set adjusts nothing in it.
    NotAllowed(&'static str),
}

fn of_set(remote: &mut Remote<'_>, id: i32, semaphores: &[Semaphore]) -> Result<Found> {
    let mut undos = Vec::new();
    for (number, semaphore) in (0..).zip(semaphores) {
        let mut not_allowed = None;
        let found = adjustment(number, semaphore.value, &mut |operations| {
            match remote.semop_that_fails(id, &bytes(operations)) {
                Ok(Errno::ERANGE) => Ok(true),
                Ok(Errno::EAGAIN) => Ok(false),
                Ok(Errno::EACCES) => {
                    not_allowed = Some("EACCES");
                    Ok(false)
                }
                // The set has gone.
                Ok(Errno::EINVAL | Errno::EIDRM) => Ok(false),
                Ok(errno) => Err(errno).context("semop"),
                Err(Error::Forbidden { call, .. }) => {
                    not_allowed = Some(call);
                    Ok(false)
                }
                Err(error) => Err(error.into()),
            }
        })?;
        if let Some(why) = not_allowed {
            return Ok(Found::NotAllowed(why));
        }
        if found != 0 {
            undos.push(Undo {
                set: id,
                number,
                adjustment: found,
            });
        }
    }
    Ok(Found::Undos(undos))
}

/// SEMVMX, SEMAEM: values lie between 0 and this, adjustments between -1 - this and this.
const MOST: i32 = i16::MAX as i32;

/// The adjustment of a semaphore that has this value. `is_out_of_range` tries operations that cannot be done.
fn adjustment(
    number: u16,
    value: u16,
    is_out_of_range: &mut impl FnMut(&[libc::sembuf]) -> Result<bool>,
) -> Result<i32> {
    let add = |add: i32, flags: i32| operation(number, add as i16, flags | libc::IPC_NOWAIT);
    let value = i32::from(value);
    let mut out_of_range = |operations: &[(i32, i32)]| {
        // One of 0 would wait for 0. The last two take more than any semaphore has.
        let real = operations.iter().filter(|(by, _)| *by != 0);
        let real = real.map(|(by, flags)| add(*by, *flags));
        let operations: Vec<_> = real.chain([add(-MOST, 0), add(-MOST, 0)]).collect();
        is_out_of_range(&operations)
    };
    // Whether it is more than `bound`, 0 or above: less is taken from the largest value than makes the adjustment too large.
    let mut above = |bound: i32| out_of_range(&[(MOST - value, 0), (bound - MOST, libc::SEM_UNDO)]);
    if above(0)? {
        return first_where(1, MOST, |bound| above(bound).map(|is_above| !is_above));
    }
    // Whether it is less than `bound`, 0 or below, in the same way; what must be added at most is one more than a semaphore holds.
    let mut below = |bound: i32| {
        let sum = bound + MOST + 1;
        let first = sum.min(MOST);
        out_of_range(&[
            (-value, 0),
            (first, libc::SEM_UNDO),
            (first - sum, 0), // makes room
            (sum - first, libc::SEM_UNDO),
        ])
    };
    match below(0)? {
        true => first_where(-MOST - 1, -1, |bound| below(bound + 1)),
        false => Ok(0),
    }
}

/// The first number of `from..=to` for which `holds`, as it does for all behind it.
fn first_where(mut from: i32, mut to: i32, mut holds: impl FnMut(i32) -> Result<bool>) -> Result<i32> {
    while from < to {
        let middle = (from + to).div_euclid(2);
        match holds(middle)? {
            true => to = middle,
            false => from = middle + 1,
        }
    }
    Ok(from)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// As perform_atomic_semop_slow() does it (ipc/sem.c, Linux 6.1).
    fn kernel(mut value: i32, mut adjustment: i32, operations: &[libc::sembuf]) -> bool {
        for operation in operations {
            assert_ne!(operation.sem_op, 0);
            assert_ne!(i32::from(operation.sem_flg) & libc::IPC_NOWAIT, 0);
            value += i32::from(operation.sem_op);
            if value < 0 {
                return false;
            }
            if value > MOST {
                return true;
            }
            if i32::from(operation.sem_flg) & libc::SEM_UNDO != 0 {
                adjustment -= i32::from(operation.sem_op);
                if !(-MOST - 1..=MOST).contains(&adjustment) {
                    return true;
                }
            }
        }
        panic!("this could be done");
    }

    #[test]
    fn every_adjustment_is_found_at_every_value() {
        for value in [0, 1, 2, 1000, 32766, 32767] {
            for wanted in (-32768..=32767).step_by(331).chain([-32767, -1, 0, 1, 2, 32766, 32767]) {
                let found = adjustment(3, value, &mut |operations| Ok(kernel(value.into(), wanted, operations)));
                assert_eq!(found.unwrap(), wanted, "value {value}");
            }
        }
    }
}
