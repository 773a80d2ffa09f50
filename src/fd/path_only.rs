//! O_PATH descriptors (open(2)): a place in the tree of files, nothing opened.

use std::os::fd::{AsFd, OwnedFd};

use anyhow::Result;
use serde::{Deserialize, Serialize};

use super::kind::{Kind, Probe, Unfit};
use super::look::Look;
use super::place::Place;
use super::probe::Seen;
use super::regular::refuse_own_proc;
use super::thaw::{Check, ReopenContext, open_again};
use crate::image::state::Description;

#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PathOnly {
    pub place: Place,
}

impl Kind for PathOnly {
    fn claims(seen: &Seen, _look: &Look<'_>) -> bool {
        seen.only_path()
    }

    fn describe(probe: &Probe<'_>, _look: &mut Look<'_>) -> Result<Self, Unfit> {
        refuse_own_proc(probe)?;
        Ok(PathOnly {
            place: Place::describe(probe)?,
        })
    }

    fn check(&self, description: &Description, check: &mut Check<'_>) {
        self.place.check(description, check);
    }

    fn reopen(&self, description: &Description, _context: &mut ReopenContext) -> Result<OwnedFd> {
        let found = self.place.find_same()?;
        let flags = description.status_flags.cast_signed();
        if flags & libc::O_NOFOLLOW != 0 {
            return Ok(found); // /proc/self/fd/N is a link itself
        }
        open_again(found.as_fd(), libc::O_PATH | flags & libc::O_DIRECTORY)
    }
}
