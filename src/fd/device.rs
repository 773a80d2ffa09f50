//! Character devices that keep no state for a description: /dev/null and its kin.

use std::os::fd::OwnedFd;

use anyhow::Result;
use nix::sys::stat::{major, minor};
use serde::{Deserialize, Serialize};

use super::kind::{Kind, Probe, Unfit};
use super::look::Look;
use super::place::Place;
use super::probe::Seen;
use super::thaw::{Check, ReopenContext};
use crate::image::state::Description;

#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Device {
    pub place: Place,
}

/// null, zero, full, random and urandom (devlist[], drivers/char/mem.c).
const STATELESS: &[(u64, u64)] = &[(1, 3), (1, 5), (1, 7), (1, 8), (1, 9)];

impl Kind for Device {
    fn claims(seen: &Seen, _look: &Look<'_>) -> bool {
        let number = (major(seen.stat.st_rdev), minor(seen.stat.st_rdev));
        seen.file_type() == libc::S_IFCHR && !seen.only_path() && STATELESS.contains(&number)
    }

    fn describe(probe: &Probe<'_>, _look: &mut Look<'_>) -> Result<Self, Unfit> {
        Ok(Device {
            place: Place::describe(probe)?,
        })
    }

    fn check(&self, description: &Description, check: &mut Check<'_>) {
        self.place.check(description, check);
    }

    fn reopen(&self, description: &Description, _context: &mut ReopenContext) -> Result<OwnedFd> {
        self.place.reopen(description.status_flags)
    }
}
