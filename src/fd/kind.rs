//! What a kind of descriptor is, and the table of kinds.

use std::collections::HashMap;
use std::os::fd::{BorrowedFd, OwnedFd};

use anyhow::{Context, Result, anyhow, ensure};
use serde::{Serialize, de::DeserializeOwned};

use super::look::Look;
use super::probe::Seen;
use super::thaw::{Check, OwnerCall, ReopenContext};
use crate::image::state::{Description, Snapshot};

/// A kind of description: what is recorded of it, and how it is made again.
pub trait Kind: Sized + Serialize + DeserializeOwned {
    /// Whether a descriptor is of this kind. At most one kind claims a descriptor.
    fn claims(seen: &Seen, look: &Look<'_>) -> bool;

    /// Freeze side: looks, without changing anything of the description.
    fn describe(probe: &Probe<'_>, look: &mut Look<'_>) -> Result<Self, Unfit>;

    /// Thaw side, before anything is made: says what stands against it.
    fn check(&self, _description: &Description, _check: &mut Check<'_>) {}

    /// Thaw side: makes the description, with FD_CLOEXEC. Status flags that fcntl(F_SETFL) can set are set by the caller.
    fn reopen(&self, description: &Description, context: &mut ReopenContext) -> Result<OwnedFd>;

    /// Thaw side: calls that the owner must make itself once its table is final. `numbers` are its descriptors of this.
    fn relink(&self, _numbers: &[i32]) -> Vec<OwnerCall> {
        Vec::new()
    }

    /// Thaw side: what must come last, just before the program goes on.
    fn finish(&self, _file: BorrowedFd<'_>, _description: &Description, _snapshot: &Snapshot) -> Result<()> {
        Ok(())
    }
}

/// A description that is being described: its facts by one of its descriptors, and a duplicate of that.
pub struct Probe<'a> {
    pub seen: &'a Seen,
    pub file: OwnedFd,
}

/// Why a description cannot be described.
#[derive(Debug)]
pub enum Unfit {
    /// It is not carried: the reason as a clause (`is a socket, …`), and what the user can do.
    Refused { reason: String, remedy: String },
    /// Looking failed.
    Failed(anyhow::Error),
}

impl Unfit {
    pub fn refused(reason: impl Into<String>, remedy: impl Into<String>) -> Self {
        Unfit::Refused {
            reason: reason.into(),
            remedy: remedy.into(),
        }
    }
}

impl From<anyhow::Error> for Unfit {
    fn from(error: anyhow::Error) -> Self {
        Unfit::Failed(error)
    }
}

/// One line a kind: its number, which is the tag in images (appended, never renumbered), and its type.
macro_rules! kinds {
    ($($number:literal => $module:ident :: $kind:ident,)+) => {
        /// A description of any kind.
        #[derive(Debug)]
        pub enum AnyKind { $($kind(super::$module::$kind)),+ }

        impl AnyKind {
            /// The number and payload of the kind that claims the descriptor; `None` where none does.
            pub fn describe(probe: &Probe<'_>, look: &mut Look<'_>) -> Option<Result<(u16, Vec<u8>), Unfit>> {
                $(if super::$module::$kind::claims(probe.seen, look) {
                    return Some(super::$module::$kind::describe(probe, look).and_then(|kind| {
                        let payload = postcard::to_stdvec(&kind).context("encode the payload")?;
                        Ok(($number, payload))
                    }));
                })+
                None
            }

            pub fn decode(description: &Description) -> Result<Self> {
                match description.kind {
                    $($number => decode_payload(&description.payload).map(AnyKind::$kind),)+
                    other => Err(anyhow!("descriptors of kind {other} are unknown to this version of cryopod")),
                }
            }

            pub fn check(&self, description: &Description, check: &mut Check<'_>) {
                match self { $(AnyKind::$kind(kind) => kind.check(description, check)),+ }
            }

            pub fn reopen(&self, description: &Description, context: &mut ReopenContext) -> Result<OwnedFd> {
                match self { $(AnyKind::$kind(kind) => kind.reopen(description, context)),+ }
            }

            pub fn relink(&self, numbers: &[i32]) -> Vec<OwnerCall> {
                match self { $(AnyKind::$kind(kind) => kind.relink(numbers)),+ }
            }

            pub fn finish(&self, file: BorrowedFd<'_>, description: &Description, snapshot: &Snapshot) -> Result<()> {
                match self { $(AnyKind::$kind(kind) => kind.finish(file, description, snapshot)),+ }
            }
        }

        /// The name of a kind by its number; `None` for a number of a later version.
        pub fn name(number: u16) -> Option<&'static str> {
            match number { $($number => Some(stringify!($module)),)+ _ => None }
        }

        #[cfg(test)]
        const NUMBERS: &[u16] = &[$($number),+];
    };
}

kinds! {
    1 => stdio::Outside,
    2 => regular::Regular,
    3 => directory::Directory,
    4 => device::Device,
    5 => pipe::Pipe,
    6 => eventfd::EventFd,
    7 => timerfd::TimerFd,
    8 => signalfd::SignalFd,
    9 => epoll::Epoll,
    10 => memfd::Memfd,
    11 => path_only::PathOnly,
    12 => fifo::Fifo,
    13 => nameless::Nameless,
    14 => pty::Master,
    15 => pty::Slave,
    16 => pty::HungUp,
    17 => mqueue::Mqueue,
}

fn decode_payload<T: DeserializeOwned>(payload: &[u8]) -> Result<T> {
    let (value, rest) = postcard::take_from_bytes(payload).context("the payload of a descriptor is damaged")?;
    ensure!(
        rest.is_empty(),
        "the payload of a descriptor has {} bytes too many",
        rest.len()
    );
    Ok(value)
}

/// Things that several descriptions refer to, by their inode (device and number) at the freeze.
pub type Made<T> = HashMap<(u64, u64), T>;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_of_kinds_differ() {
        let mut numbers = NUMBERS.to_vec();
        numbers.dedup();
        assert_eq!(numbers.len(), NUMBERS.len());
        assert!(NUMBERS.is_sorted());
    }

    #[test]
    fn a_kind_of_a_later_version_is_an_error() {
        let description = Description {
            kind: 9999,
            label: String::new(),
            status_flags: 0,
            io_signals: None,
            payload: vec![],
        };
        let error = AnyKind::decode(&description).unwrap_err();
        assert_eq!(
            error.to_string(),
            "descriptors of kind 9999 are unknown to this version of cryopod"
        );
        assert_eq!(name(9999), None);
    }

    #[test]
    fn no_payload_makes_the_decoder_panic() {
        for &kind in NUMBERS {
            for byte in 0..=255u8 {
                for len in 0..40 {
                    let payload = vec![byte; len];
                    let description = Description {
                        kind,
                        label: String::new(),
                        status_flags: 0,
                        io_signals: None,
                        payload,
                    };
                    let _any_outcome = AnyKind::decode(&description);
                }
            }
        }
    }
}
