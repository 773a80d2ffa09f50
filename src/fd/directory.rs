//! Directories: opened again by their path, at the same position of readdir(3).

use std::os::fd::OwnedFd;

use anyhow::Result;
use serde::{Deserialize, Serialize};

use super::kind::{Kind, Probe, Unfit};
use super::look::Look;
use super::place::Place;
use super::probe::Seen;
use super::regular::{refuse_own_proc, seek};
use super::thaw::{Check, ReopenContext};
use crate::image::state::Description;

#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Directory {
    pub place: Place,
    /// What telldir(3) shows; the file system's own, and in most a hash of the next name.
    pub position: i64,
}

impl Kind for Directory {
    fn claims(seen: &Seen, _look: &Look<'_>) -> bool {
        seen.file_type() == libc::S_IFDIR && !seen.only_path()
    }

    fn describe(probe: &Probe<'_>, _look: &mut Look<'_>) -> Result<Self, Unfit> {
        refuse_own_proc(probe)?;
        Ok(Directory {
            place: Place::describe(probe)?,
            position: probe.seen.info.pos,
        })
    }

    fn check(&self, description: &Description, check: &mut Check<'_>) {
        self.place.check(description, check);
    }

    fn reopen(&self, description: &Description, _context: &mut ReopenContext) -> Result<OwnedFd> {
        let file = self.place.reopen(description.status_flags)?;
        seek(&file, self.position)?;
        Ok(file)
    }
}
