//! signalfd(2): the mask. What a read returns is pending at the process and its threads, not here.

use std::os::fd::OwnedFd;

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};

use super::kind::{Kind, Probe, Unfit};
use super::look::Look;
use super::probe::Seen;
use super::thaw::ReopenContext;
use crate::image::state::Description;
use crate::sys::fds;

#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SignalFd {
    /// Signal N is bit N - 1.
    pub mask: u64,
}

impl Kind for SignalFd {
    fn claims(seen: &Seen, _look: &Look<'_>) -> bool {
        seen.is_anon_inode("[signalfd]") && !seen.only_path()
    }

    fn describe(probe: &Probe<'_>, _look: &mut Look<'_>) -> Result<Self, Unfit> {
        Ok(SignalFd {
            mask: probe.seen.info.number("sigmask", 16)?,
        })
    }

    fn reopen(&self, _description: &Description, _context: &mut ReopenContext) -> Result<OwnedFd> {
        fds::signalfd(self.mask, libc::SFD_CLOEXEC).context("signalfd")
    }
}
