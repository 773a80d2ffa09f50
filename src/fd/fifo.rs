//! FIFOs (fifo(7)) that only this process has open, with the bytes that wait in them.

use std::os::fd::{AsFd, OwnedFd};

use anyhow::{Context, Result, ensure};
use nix::poll::PollFlags;
use serde::{Deserialize, Serialize};

use super::kind::{Kind, Probe, Unfit};
use super::look::Look;
use super::pipe::{MadePipe, check_size, content, is_pipe, refuse_mixture};
use super::pipe_content::Content;
use super::place::Place;
use super::probe::Seen;
use super::thaw::{Check, ReopenContext, open_again};
use crate::image::state::Description;
use crate::sys::fds::bytes_waiting;

/// One description of a FIFO.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Fifo {
    pub place: Place,
    /// The inode at the freeze: equal in all descriptions of one FIFO.
    pub inode: (u64, u64),
    /// In the FIFO's first description.
    pub content: Option<Content>,
    /// Whether the process has an end that writes.
    pub writers: bool,
    /// POLLHUP: a writer came and went since this description was opened.
    pub hung_up: bool,
}

impl Kind for Fifo {
    fn claims(seen: &Seen, _look: &Look<'_>) -> bool {
        seen.file_type() == libc::S_IFIFO && !is_pipe(seen) && !seen.only_path()
    }

    fn describe(probe: &Probe<'_>, look: &mut Look<'_>) -> Result<Self, Unfit> {
        let inode = probe.seen.inode();
        look.ends.refuse_shared(probe.seen)?;
        let place = Place::describe(probe)?;
        let content = if look.told.insert(inode) {
            Some(content(probe, look)?)
        } else {
            None
        };
        content.as_ref().map_or(Ok(()), refuse_mixture)?;
        let writers = look.ends.has_writer(probe.seen);
        let hung_up = probe.seen.ready.contains(PollFlags::POLLHUP);
        Ok(Fifo {
            place,
            inode,
            content,
            writers,
            hung_up,
        })
    }

    fn check(&self, description: &Description, check: &mut Check<'_>) {
        self.place.check(description, check);
        if let Some(content) = &self.content {
            check_size(content, description, check);
        }
    }

    fn reopen(&self, description: &Description, context: &mut ReopenContext) -> Result<OwnedFd> {
        let found = self.place.find_same()?;
        if let Some(content) = self
            .content
            .as_ref()
            .filter(|content| self.writers || content.len_bytes() > 0)
        {
            // An end for both directions neither waits for another nor lets the others wait (fifo(7)).
            let keeper = open_again(found.as_fd(), libc::O_RDWR | libc::O_NONBLOCK)?;
            let waiting = bytes_waiting(keeper.as_fd()).context("FIONREAD")?;
            ensure!(waiting == 0, "somebody else uses the FIFO {} by now", self.place.name());
            content.fill(keeper.as_fd())?;
            context.pipes.insert(self.inode, MadePipe::kept_by(keeper));
        }
        let access = description.status_flags.cast_signed() & libc::O_ACCMODE;
        let file = open_again(found.as_fd(), access | libc::O_NONBLOCK)?;
        if !context.pipes.contains_key(&self.inode) {
            self.content
                .as_ref()
                .map_or(Ok(()), |content| content.fill(file.as_fd()))?;
            if self.hung_up {
                drop(open_again(found.as_fd(), libc::O_WRONLY | libc::O_NONBLOCK)?);
            }
        }
        Ok(file)
    }
}
