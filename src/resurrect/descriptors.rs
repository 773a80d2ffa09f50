//! The descriptor table of the task that is rebuilt: descriptions inherited under our numbers are moved to theirs.
#![deny(unsafe_code)]

use std::collections::{BTreeMap, BTreeSet, HashMap};

use anyhow::Result;

use super::script::Script;

/// A descriptor to be: the description comes in as `from` and belongs at `to`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Move {
    pub from: i32,
    pub to: i32,
    pub cloexec: bool,
}

/// One dup3(2), or, where the number is right already, F_SETFD.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Step {
    Dup { from: i32, to: i32, cloexec: bool },
    Mark { fd: i32, cloexec: bool },
}

/// Makes the table exactly what `moves` say; every other descriptor is closed.
pub fn arrange(script: &mut Script<'_>, moves: &[Move]) -> Result<()> {
    for step in steps(moves) {
        match step {
            Step::Dup { from, to, cloexec } => {
                let flags = if cloexec { libc::O_CLOEXEC } else { 0 };
                script.call("dup3", libc::SYS_dup3, [from.into(), to.into(), flags.into()])?;
            }
            Step::Mark { fd, cloexec } => {
                let flags = if cloexec { libc::FD_CLOEXEC } else { 0 };
                script.call(
                    "fcntl(F_SETFD)",
                    libc::SYS_fcntl,
                    [fd.into(), libc::F_SETFD.into(), flags.into()],
                )?;
            }
        }
    }
    close_others(script, moves)
}

fn close_others(script: &mut Script<'_>, moves: &[Move]) -> Result<()> {
    let kept: BTreeSet<u32> = moves.iter().map(|step| step.to as u32).collect();
    let mut first = 0;
    for fd in kept {
        if fd > first {
            close_range(script, first, fd - 1)?;
        }
        first = fd + 1;
    }
    close_range(script, first, u32::MAX)
}

fn close_range(script: &mut Script<'_>, first: u32, last: u32) -> Result<()> {
    script.call(
        "close_range",
        libc::SYS_close_range,
        [first.into(), last.into(), 0u64.into()],
    )
}

/// An order in which no descriptor is overwritten while it is still wanted; a circle is broken through a free number.
fn steps(moves: &[Move]) -> Vec<Step> {
    let (in_place, moving): (Vec<Move>, Vec<Move>) = moves.iter().partition(|step| step.from == step.to);
    let mut steps: Vec<Step> = in_place
        .iter()
        .map(|own| Step::Mark {
            fd: own.to,
            cloexec: own.cloexec,
        })
        .collect();
    let mut pending: BTreeMap<i32, Move> = moving.iter().map(|step| (step.to, *step)).collect();
    let mut uses: HashMap<i32, usize> = HashMap::new();
    for step in &moving {
        *uses.entry(step.from).or_default() += 1;
    }
    let mut spare = moves
        .iter()
        .flat_map(|step| [step.from, step.to])
        .max()
        .map_or(0, |highest| highest + 1);
    // Numbers that nothing needs as a source any more, so that they can be overwritten.
    let mut free: Vec<i32> = pending.keys().copied().filter(|to| !uses.contains_key(to)).collect();
    loop {
        while let Some(to) = free.pop() {
            let Some(step) = pending.remove(&to) else { continue };
            steps.push(Step::Dup {
                from: step.from,
                to,
                cloexec: step.cloexec,
            });
            let left = uses.get_mut(&step.from).expect("each source is counted");
            *left -= 1;
            if *left == 0 {
                free.push(step.from);
            }
        }
        let Some(&waiting) = pending.keys().next() else {
            return steps;
        };
        // All that is left goes round in circles: move what sits at `waiting` out of the way.
        steps.push(Step::Dup {
            from: waiting,
            to: spare,
            cloexec: false,
        });
        for other in pending.values_mut().filter(|other| other.from == waiting) {
            other.from = spare;
        }
        let moved = uses.remove(&waiting).expect("what is waited for is a source");
        uses.insert(spare, moved);
        free.push(waiting);
        spare += 1;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Plays the steps on a table in which each descriptor `n` refers to description `n`.
    fn play(moves: &[(i32, i32)]) {
        let moves: Vec<Move> = moves
            .iter()
            .map(|&(from, to)| Move {
                from,
                to,
                cloexec: false,
            })
            .collect();
        let mut table: HashMap<i32, i32> = moves.iter().map(|step| (step.from, step.from)).collect();
        for step in steps(&moves) {
            match step {
                Step::Dup { from, to, .. } => {
                    assert_ne!(from, to, "dup3 refuses equal numbers");
                    let description = table[&from];
                    table.insert(to, description);
                }
                Step::Mark { fd, .. } => assert_eq!(table[&fd], fd),
            }
        }
        for step in &moves {
            assert_eq!(table.get(&step.to), Some(&step.from), "{moves:?}");
        }
    }

    #[test]
    fn descriptors_reach_their_numbers_in_any_arrangement() {
        play(&[]);
        play(&[(3, 0), (4, 1), (5, 2)]);
        play(&[(3, 4), (4, 3)]);
        play(&[(3, 4), (4, 5), (5, 3), (3, 9), (9, 10)]);
        play(&[(7, 7), (7, 8), (8, 9), (9, 12)]);
        play(&[(5, 3), (5, 4), (5, 5), (3, 6), (4, 7)]);
    }

    #[test]
    fn descriptors_reach_their_numbers_in_random_arrangements() {
        let mut seed = 42u64;
        let mut random = |below: u64| {
            seed = seed.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
            (seed >> 33) % below
        };
        for _ in 0..2_000 {
            let mut targets: Vec<i32> = (0..12).collect();
            let count = random(10);
            let moves: Vec<(i32, i32)> = (0..count)
                .map(|_| {
                    (
                        random(12) as i32,
                        targets.swap_remove(random(targets.len() as u64) as usize),
                    )
                })
                .collect();
            play(&moves);
        }
    }
}
