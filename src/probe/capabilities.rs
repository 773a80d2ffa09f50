//! The capabilities (capabilities(7)) that we have now.

use super::{Finding, Kind, Need};

/// A set of capabilities, by number.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Capabilities(u64);

/// Number, name, what it is needed for, what is missed without it.
const USED: [(u32, &str, Need, &str); 8] = [
    (
        19,
        "CAP_SYS_PTRACE",
        Need::Some,
        "programs of other users, and those that are not dumpable, cannot be frozen",
    ),
    (
        40,
        "CAP_CHECKPOINT_RESTORE",
        Need::Some,
        "CAP_SYS_ADMIN must do its work: choosing pids, opening mapped files, setting /proc/PID/exe",
    ),
    (
        21,
        "CAP_SYS_ADMIN",
        Need::Some,
        "no time namespaces: no thaw after another boot or with --clock=continue",
    ),
    (
        24,
        "CAP_SYS_RESOURCE",
        Need::Some,
        "hard limits above cryopod's own, and pipes above pipe-max-size, cannot be set at thaw",
    ),
    (
        7,
        "CAP_SETUID",
        Need::Some,
        "programs with other or mixed user ids cannot be thawed",
    ),
    (
        6,
        "CAP_SETGID",
        Need::Some,
        "programs with other groups cannot be thawed",
    ),
    (
        8,
        "CAP_SETPCAP",
        Need::Some,
        "programs with a reduced bounding set or secure bits cannot be thawed",
    ),
    (
        2,
        "CAP_DAC_READ_SEARCH",
        Need::Some,
        "files that the program had open but that you may not read cannot be opened again",
    ),
];

impl Capabilities {
    /// The effective set of the calling thread.
    pub fn ours() -> Self {
        Capabilities(crate::sys::capabilities())
    }

    pub fn has(self, number: u32) -> bool {
        self.0 & (1 << number) != 0
    }

    pub fn has_sys_ptrace(self) -> bool {
        self.has(19)
    }

    /// CAP_CHECKPOINT_RESTORE (Linux 5.9), or CAP_SYS_ADMIN that it was carved out of.
    pub fn has_checkpoint_restore(self) -> bool {
        self.has(40) || self.has(21)
    }

    pub(super) fn findings(self) -> impl Iterator<Item = Finding> {
        USED.iter().map(move |&(number, name, needed_for, without)| Finding {
            name,
            kind: Kind::Capability,
            present: self.has(number),
            detail: if self.has(number) { "held" } else { "not held" }.to_owned(),
            needed_for,
            without,
        })
    }
}
