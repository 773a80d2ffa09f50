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
        const TRIES: usize = 1000;
        let mut known = semaphores.to_vec();
        let mut tries = 0..TRIES;
        loop {
            match of_set(remote, id, &known)? {
                Found::Undos(found) => undos.extend(found),
                Found::NotAllowed(call) if sets.has_user(pid) => {
                    return Ok(Err(format!("it is not allowed to be asked ({call})")));
                }
                Found::NotAllowed(_) | Found::Gone => {}
                Found::OtherValue if tries.next().is_none() => {
                    return Ok(Err(format!("others use the set of semaphores {id} at the same time")));
                }
                Found::OtherValue => {
                    known = sets.look_again(id)?.unwrap_or_default();
                    continue;
                }
            }
            break;
        }
    }
    Ok(Ok(undos))
}

enum Found {
    Undos(Vec<Undo>),
    /// By the permissions of the set, or by a seccomp filter: who may not use a set adjusts nothing in it.
    NotAllowed(&'static str),
    Gone,
    /// Somebody outside uses the set meanwhile.
    OtherValue,
}

/// What an array of operations that cannot be done has shown.
enum Shown {
    OutOfRange(bool),
    Not(Found),
}

fn of_set(remote: &mut Remote<'_>, id: i32, semaphores: &[Semaphore]) -> Result<Found> {
    let mut undos = Vec::new();
    for (number, semaphore) in (0..).zip(semaphores) {
        let mut not_shown = None;
        let found = adjustment(
            number,
            semaphore.value,
            &mut |operations| match try_operations(remote, id, operations)? {
                Shown::OutOfRange(is) => Ok(is),
                Shown::Not(why) => {
                    not_shown = Some(why);
                    Ok(false)
                }
            },
        )?;
        if let Some(why) = not_shown {
            return Ok(why);
        }
        match found {
            None => return Ok(Found::OtherValue),
            Some(0) => {}
            Some(adjustment) => undos.push(Undo {
                set: id,
                number,
                adjustment,
            }),
        }
    }
    Ok(Found::Undos(undos))
}

fn try_operations(remote: &mut Remote<'_>, id: i32, operations: &[libc::sembuf]) -> Result<Shown> {
    match remote.semop_that_fails(id, &bytes(operations)) {
        Ok(Errno::ERANGE) => Ok(Shown::OutOfRange(true)),
        Ok(Errno::EAGAIN) => Ok(Shown::OutOfRange(false)),
        Ok(Errno::EACCES) => Ok(Shown::Not(Found::NotAllowed("EACCES"))),
        Ok(Errno::EINVAL | Errno::EIDRM) => Ok(Shown::Not(Found::Gone)),
        Ok(errno) => Err(errno).context("semop"),
        Err(Error::Forbidden { call, .. }) => Ok(Shown::Not(Found::NotAllowed(call))),
        Err(error) => Err(error.into()),
    }
}

/// SEMVMX, SEMAEM: values lie between 0 and this, adjustments between -1 - this and this.
const MOST: i32 = i16::MAX as i32;

/// The adjustment of a semaphore that has this value; None, if it had another meanwhile. `is_out_of_range` tries operations that cannot be done.
fn adjustment(
    number: u16,
    value: u16,
    is_out_of_range: &mut impl FnMut(&[libc::sembuf]) -> Result<bool>,
) -> Result<Option<i32>> {
    let add = |add: i32, flags: i32| operation(number, add as i16, flags | libc::IPC_NOWAIT);
    // An array is done whole or not at all. Its first two fail with EAGAIN at any other value: that is taken, and 0 waits for 0. Its last
    // two take more than any semaphore has.
    let mut out_of_range = |steps: &[libc::sembuf]| {
        let taken = (value != 0).then(|| add(-i32::from(value), 0));
        let first = taken.into_iter().chain([add(0, 0)]);
        let operations: Vec<_> = first.chain(steps.iter().copied()).chain([add(-MOST, 0); 2]).collect();
        is_out_of_range(&operations)
    };
    // Each step leaves the semaphore at 0, and moves the adjustment; so many in all as bring one that is more, or less, than `bound` out of range.
    let steps = |sum: i32| (0..sum).step_by(MOST as usize).map(move |done| (sum - done).min(MOST));
    let mut is = |than: Than, bound: i32| {
        let steps: Vec<_> = match than {
            Than::More => steps(MOST - bound)
                .flat_map(|by| [add(by, 0), add(-by, libc::SEM_UNDO)])
                .collect(),
            Than::Less => steps(MOST + 1 + bound)
                .flat_map(|by| [add(by, libc::SEM_UNDO), add(-by, 0)])
                .collect(),
        };
        out_of_range(&steps)
    };
    // Only what is out of range is certain: what is not may have had another value.
    let is_exactly = |is: &mut dyn FnMut(Than, i32) -> Result<bool>, found: i32| {
        Ok::<_, anyhow::Error>(
            (found == -MOST - 1 || is(Than::More, found - 1)?) && (found == MOST || is(Than::Less, found + 1)?),
        )
    };
    if is_exactly(&mut is, 0)? {
        return Ok(Some(0));
    }
    let found = if is(Than::More, 0)? {
        first_where(1, MOST, |bound| is(Than::More, bound).map(|is_more| !is_more))?
    } else {
        first_where(-MOST - 1, -1, |bound| is(Than::Less, bound + 1))?
    };
    Ok(is_exactly(&mut is, found)?.then_some(found))
}

#[derive(Clone, Copy)]
enum Than {
    More,
    Less,
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
            assert_ne!(i32::from(operation.sem_flg) & libc::IPC_NOWAIT, 0);
            if operation.sem_op == 0 && value != 0 {
                return false;
            }
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

    const VALUES: [u16; 6] = [0, 1, 2, 1000, 32766, 32767];

    fn adjustments() -> impl Iterator<Item = i32> {
        (-32768..=32767).step_by(331).chain([-32767, -1, 0, 1, 2, 32766, 32767])
    }

    #[test]
    fn every_adjustment_is_found_at_every_value() {
        for value in VALUES {
            for wanted in adjustments() {
                let found = adjustment(3, value, &mut |operations| Ok(kernel(value.into(), wanted, operations)));
                assert_eq!(found.unwrap(), Some(wanted), "value {value}");
            }
        }
    }

    /// Also where it has the value again in the end.
    #[test]
    fn a_value_that_changes_meanwhile_makes_no_adjustment() {
        for (value, other) in VALUES.into_iter().flat_map(|value| VALUES.map(|other| (value, other))) {
            for (wanted, wrong) in
                adjustments().flat_map(|wanted| [0b1, 0b10, 0b110, 0xff00, !0u32].map(|wrong| (wanted, wrong)))
            {
                let mut calls = 0..32;
                let found = adjustment(3, value, &mut |operations| {
                    let is_other = wrong >> calls.next().unwrap_or(0) & 1 == 1;
                    let value = if is_other { other } else { value };
                    Ok(kernel(value.into(), wanted, operations))
                });
                let found = found.unwrap();
                assert!(
                    found.is_none_or(|found| found == wanted),
                    "value {value}, {other}: {found:?}, not {wanted}"
                );
            }
        }
    }
}
