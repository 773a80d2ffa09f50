//! Many system calls of a target at the price of one: its thread runs them in a row, in the way home (`arch::SCRIPT_AT`), and stops after
//! the last.
//!
//! It stops because the last call sends the thread a signal that it ignores. A traced task shows the signal to its tracer all the same
//! (sig_ignored(), kernel/signal.c); one whose tracer has died ignores it, and goes home. No trap, and nothing to wait for.

use super::proc::Status;
use crate::arch::{SCRIPT_STRIDE, SCRIPT_WORDS};

/// Calls of up to five arguments, and what came of them.
#[derive(Debug, Default)]
pub(super) struct Script {
    calls: Vec<Call>,
    /// What the memory for results held afterwards.
    bytes: Vec<u8>,
}

/// A number and its arguments.
pub(super) type Call = [u64; 6];

const DATA_AT: usize = SCRIPT_WORDS * 8;
/// What a call of a script may write.
pub(super) const DATA_LEN: usize = SCRIPT_STRIDE - DATA_AT;
/// What fits into the memory for results, with its mark and the call that ends a script.
pub(super) const CALLS_MAX: usize = (super::way_home::RESULTS_LEN as usize - 16) / SCRIPT_STRIDE - 1;

impl Script {
    pub fn len(&self) -> usize {
        self.calls.len()
    }

    pub fn push(&mut self, call: Call) {
        self.calls.push(call);
    }

    pub fn call(&self, index: usize) -> Option<&Call> {
        self.calls.get(index)
    }

    /// Where the call of this index may write, counted from the beginning of the memory for results.
    pub fn data_at(index: usize) -> usize {
        index * SCRIPT_STRIDE + DATA_AT
    }

    /// The result of a call, negative errno included, and what it wrote.
    pub fn answer(&self, index: usize) -> (i64, &[u8]) {
        let entry = &self.bytes[index * SCRIPT_STRIDE..][..SCRIPT_STRIDE];
        (word(entry), &entry[DATA_AT..])
    }

    /// As the thread is to find it in the memory for results.
    pub fn table(&self, end: &End) -> Vec<u8> {
        let mut bytes = vec![0; (self.calls.len() + 1) * SCRIPT_STRIDE];
        let last = end.call();
        let calls = self.calls.iter().chain([&last]);
        for (index, (entry, call)) in bytes.chunks_exact_mut(SCRIPT_STRIDE).zip(calls).enumerate() {
            let more = u64::from(index < self.calls.len());
            for (slot, value) in entry.chunks_exact_mut(8).zip(call.iter().chain([&more])) {
                slot.copy_from_slice(&value.to_ne_bytes());
            }
        }
        bytes
    }

    /// Takes the answers; false where one of them says that a signal came in between.
    pub fn take(&mut self, bytes: Vec<u8>) -> bool {
        self.bytes = bytes;
        (0..self.calls.len()).all(|index| !matches!(self.answer(index).0, -516..=-512 | -4))
    }
}

fn word(bytes: &[u8]) -> i64 {
    i64::from_ne_bytes(*bytes.first_chunk().expect("an entry has more than one word"))
}

/// How a script ends: the thread sends itself a signal that it ignores.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct End {
    pub signal: i32,
    /// As the thread itself knows them.
    tgid: u64,
    tid: u64,
}

/// Ignored by default (signal(7)).
const IGNORED_BY_DEFAULT: [i32; 3] = [libc::SIGURG, libc::SIGWINCH, libc::SIGCHLD];
/// Sent, they take back stops that are pending, or SIGCONT (prepare_signal(), kernel/signal.c).
const JOB_CONTROL: [i32; 5] = [
    libc::SIGCONT,
    libc::SIGSTOP,
    libc::SIGTSTP,
    libc::SIGTTIN,
    libc::SIGTTOU,
];

impl End {
    /// Must be in neither the mask in force nor the one that a call like sigsuspend(2) puts back (`saved`), nor be pending.
    pub fn choose(status: &Status, saved: u64) -> Option<Self> {
        let mask = |name| status.mask(name);
        let (caught, ignored) = (mask("SigCgt")?, mask("SigIgn")?);
        let busy = caught | mask("SigBlk")? | saved | mask("SigPnd")? | mask("ShdPnd")?;
        let set_to_be_ignored = (1..32).filter(|signal| ignored & bit(*signal) != 0 && !JOB_CONTROL.contains(signal));
        let mut signals = IGNORED_BY_DEFAULT.into_iter().chain(set_to_be_ignored);
        let own = |name| status.field(name)?.split_whitespace().last()?.parse().ok();
        Some(End {
            signal: signals.find(|signal| busy & bit(*signal) == 0)?,
            tgid: own("NStgid")?,
            tid: own("NSpid")?,
        })
    }

    fn call(&self) -> Call {
        [libc::SYS_tgkill as u64, self.tgid, self.tid, self.signal as u64, 0, 0]
    }
}

fn bit(signal: i32) -> u64 {
    1 << (signal - 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn status(blocked: i32, caught: i32, ignored: i32) -> Status {
        let mask = |signal| if signal == 0 { 0 } else { bit(signal) };
        Status(format!(
            "NStgid:\t700\t7\nNSpid:\t708\t8\nSigPnd:\t0\nShdPnd:\t0\nSigBlk:\t{:x}\nSigIgn:\t{:x}\nSigCgt:\t{:x}\n",
            mask(blocked),
            mask(ignored),
            mask(caught)
        ).into_bytes())
    }

    #[test]
    fn a_script_ends_with_a_signal_that_nobody_sees() {
        let end = End::choose(&status(0, 0, 0), 0).unwrap();
        assert_eq!((end.signal, end.tgid, end.tid), (libc::SIGURG, 7, 8));
        let signal = |status: Status, saved| End::choose(&status, saved).map(|end| end.signal);
        assert_eq!(signal(status(libc::SIGURG, 0, 0), 0), Some(libc::SIGWINCH));
        assert_eq!(
            signal(status(0, libc::SIGURG, 0), bit(libc::SIGWINCH)),
            Some(libc::SIGCHLD)
        );
        assert_eq!(signal(status(0, 0, 0), !0), None);
        assert_eq!(
            signal(status(0, 0, libc::SIGPIPE), !bit(libc::SIGPIPE)),
            Some(libc::SIGPIPE)
        );
    }

    #[test]
    fn a_table_holds_the_calls_and_the_end() {
        let mut script = Script::default();
        script.push([13, 1, 0, 0x7000, 8, 0]);
        let table = script.table(&End::choose(&status(0, 0, 0), 0).unwrap());
        let word = |index: usize, word: usize| super::word(&table[index * SCRIPT_STRIDE + word * 8..]);
        assert_eq!((word(0, 0), word(0, 3), word(0, 6)), (13, 0x7000, 1));
        assert_eq!((word(1, 0), word(1, 6)), (libc::SYS_tgkill, 0));
    }

    #[test]
    fn an_interrupted_call_spoils_a_script() {
        let mut script = Script::default();
        script.push([39, 0, 0, 0, 0, 0]);
        let answers = |result: i64| [&result.to_ne_bytes()[..], &[0; 2 * SCRIPT_STRIDE - 8]].concat();
        assert!(script.take(answers(5)));
        assert_eq!(script.answer(0).0, 5);
        assert!(!script.take(answers(-512)));
    }
}
