//! Descriptors of memfds (memfd_create(2)). The content and the seals belong to the shared object, which mappings may use, too.

use std::os::fd::{AsFd, OwnedFd};

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};

use super::kind::{Kind, Probe, Unfit};
use super::look::Look;
use super::probe::Seen;
use super::regular::seek;
use super::thaw::{Check, ReopenContext, open_again};
use crate::image::state::Description;

#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Memfd {
    /// Index into Snapshot::shared_objects.
    pub object: u32,
    pub offset: i64,
}

impl Kind for Memfd {
    fn claims(seen: &Seen, look: &Look<'_>) -> bool {
        look.shared.holds(&seen.stat) && seen.file_type() == libc::S_IFREG && !seen.only_path()
    }

    fn describe(probe: &Probe<'_>, look: &mut Look<'_>) -> Result<Self, Unfit> {
        if probe.seen.link.starts_with(b"/SYSV") {
            let reason = "is System V shared memory, which cryopod does not carry yet";
            return Err(Unfit::refused(reason, "have the program detach and close it first"));
        }
        let file = probe.file.try_clone().context("duplicate a memfd")?;
        Ok(Memfd {
            object: look.shared.intern(file)?,
            offset: probe.seen.info.pos,
        })
    }

    fn check(&self, description: &Description, check: &mut Check<'_>) {
        if check.snapshot.shared_objects.get(self.object as usize).is_none() {
            let reason = format!("is shared object {}, which is not in the image", self.object);
            check.refuse(description, reason, "");
        }
    }

    fn reopen(&self, description: &Description, context: &mut ReopenContext) -> Result<OwnedFd> {
        let object = context
            .shared
            .get(self.object as usize)
            .context("the shared object is not in the image")?;
        let flags = description.status_flags.cast_signed() & (libc::O_ACCMODE | libc::O_LARGEFILE | libc::O_APPEND);
        let file = open_again(object.as_fd(), flags)?;
        seek(&file, self.offset)?;
        Ok(file)
    }
}
