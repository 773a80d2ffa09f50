//! FIFOs (fifo(7)) that only these processes have open, also such as have no name any more, with the bytes that wait in them.

use std::collections::hash_map::Entry;
use std::os::fd::{AsFd, OwnedFd};

use anyhow::{Context, Result, ensure};
use nix::fcntl::{AT_FDCWD, OFlag, open};
use nix::poll::PollFlags;
use nix::sys::stat::{FchmodatFlags, Mode, fchmodat};
use nix::unistd::{Gid, Uid, chown, mkdtemp, mkfifo, unlink};
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
    pub at: At,
    /// The inode at the freeze: equal in all descriptions of one FIFO.
    pub inode: (u64, u64),
    /// In the FIFO's first description.
    pub content: Option<Content>,
    /// Whether the process has an end that writes.
    pub writers: bool,
    /// POLLHUP: a writer came and went since this description was opened.
    pub hung_up: bool,
}

#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum At {
    Name(Place),
    /// It was unlinked. `mode` is st_mode.
    Nowhere {
        mode: u32,
        uid: u32,
        gid: u32,
    },
}

impl At {
    fn describe(probe: &Probe<'_>) -> Result<Self, Unfit> {
        let stat = &probe.seen.stat;
        Ok(match stat.st_nlink {
            0 => At::Nowhere {
                mode: stat.st_mode,
                uid: stat.st_uid,
                gid: stat.st_gid,
            },
            _ => At::Name(Place::describe(probe)?),
        })
    }

    /// The FIFO itself (O_PATH), which has no name any more: in a directory that is nobody else's, for as long as it has one.
    fn make_nowhere(mode: u32, uid: u32, gid: u32) -> Result<OwnedFd> {
        let directory = mkdtemp(&std::env::temp_dir().join("cryopod-XXXXXX")).context("mkdtemp")?;
        let path = directory.join("fifo");
        let made = mkfifo(&path, Mode::S_IRUSR | Mode::S_IWUSR).and_then(|()| {
            open(
                &path,
                OFlag::O_PATH | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC,
                Mode::empty(),
            )
        });
        let owned = made.and_then(|fifo| {
            chown(&path, Some(Uid::from_raw(uid)), Some(Gid::from_raw(gid)))?;
            fchmodat(
                AT_FDCWD,
                &path,
                Mode::from_bits_truncate(mode),
                FchmodatFlags::FollowSymlink,
            )?;
            Ok(fifo)
        });
        // What is not there need not be removed.
        let _gone = unlink(&path);
        let _gone = std::fs::remove_dir(&directory);
        owned.context("make a FIFO without a name")
    }
}

impl Kind for Fifo {
    fn claims(seen: &Seen, _look: &Look<'_>) -> bool {
        seen.file_type() == libc::S_IFIFO && !is_pipe(seen) && !seen.only_path()
    }

    fn describe(probe: &Probe<'_>, look: &mut Look<'_>) -> Result<Self, Unfit> {
        let inode = probe.seen.inode();
        look.ends.refuse_shared(probe.seen)?;
        let at = At::describe(probe)?;
        let content = if look.told.insert(inode) {
            Some(content(probe, look)?)
        } else {
            None
        };
        content.as_ref().map_or(Ok(()), refuse_mixture)?;
        let writers = look.ends.has_writer(probe.seen);
        let hung_up = probe.seen.ready.contains(PollFlags::POLLHUP);
        Ok(Fifo {
            at,
            inode,
            content,
            writers,
            hung_up,
        })
    }

    fn check(&self, description: &Description, check: &mut Check<'_>) {
        if let At::Name(place) = &self.at {
            place.check(description, check);
        }
        if let Some(content) = &self.content {
            check_size(content, description, check);
        }
    }

    fn reopen(&self, description: &Description, context: &mut ReopenContext) -> Result<OwnedFd> {
        let found = match &self.at {
            At::Name(place) => place.find_same()?,
            At::Nowhere { mode, uid, gid } => {
                let made = match context.nameless.entry(self.inode) {
                    Entry::Occupied(made) => made.into_mut(),
                    Entry::Vacant(place) => place.insert(At::make_nowhere(*mode, *uid, *gid)?),
                };
                made.try_clone().context("duplicate a descriptor")?
            }
        };
        if let Some(content) = self
            .content
            .as_ref()
            .filter(|content| self.writers || content.len_bytes() > 0)
        {
            // An end for both directions neither waits for another nor lets the others wait (fifo(7)).
            let keeper = open_again(found.as_fd(), libc::O_RDWR | libc::O_NONBLOCK)?;
            let waiting = bytes_waiting(keeper.as_fd()).context("FIONREAD")?;
            ensure!(waiting == 0, "somebody else uses the FIFO {} by now", description.label);
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
