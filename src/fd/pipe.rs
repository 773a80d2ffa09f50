//! Pipes whose ends are all inside the processes that are frozen, with the bytes that wait in them (pipe(7)).

use std::os::fd::{AsFd, OwnedFd};

use anyhow::{Context, Result, bail};
use nix::fcntl::OFlag;
use nix::unistd::pipe2;
use serde::{Deserialize, Serialize};

use super::kind::{Kind, Probe, Unfit};
use super::look::Look;
use super::pipe_content::Content;
use super::probe::Seen;
use super::thaw::{Check, ReopenContext, SETTABLE, open_again};
use crate::image::state::Description;

/// One description of a pipe's end.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pipe {
    /// The inode at the freeze: equal in all descriptions of one pipe.
    pub inode: (u64, u64),
    /// In the pipe's first description.
    pub content: Option<Content>,
}

/// A pipe at thaw, whose ends descriptions are made from. Ends that nobody holds are closed with it.
pub struct MadePipe {
    /// The ends that pipe2(2) made, until a description takes them.
    pub read_end: Option<OwnedFd>,
    pub write_end: Option<OwnedFd>,
    /// Keeps the pipe alive and openable.
    keeper: OwnedFd,
}

impl Kind for Pipe {
    fn claims(seen: &Seen, look: &Look<'_>) -> bool {
        is_pipe(seen) && !seen.only_path() && !look.ends.lead_outside(seen)
    }

    fn describe(probe: &Probe<'_>, look: &mut Look<'_>) -> Result<Self, Unfit> {
        let inode = probe.seen.inode();
        look.ends.refuse_shared(probe.seen)?;
        let content = if look.told.insert(inode) {
            Some(content(probe, look)?)
        } else {
            None
        };
        Ok(Pipe { inode, content })
    }

    fn check(&self, description: &Description, check: &mut Check<'_>) {
        if let Some(content) = &self.content {
            check_size(content, description, check);
        }
    }

    fn reopen(&self, description: &Description, context: &mut ReopenContext) -> Result<OwnedFd> {
        if let Some(content) = &self.content {
            context.pipes.insert(self.inode, MadePipe::new(content)?);
        }
        let pipe = context
            .pipes
            .get_mut(&self.inode)
            .context("the pipe's first description is not in the image")?;
        pipe.description(description.status_flags)
    }
}

impl MadePipe {
    pub fn new(content: &Content) -> Result<Self> {
        let (read_end, write_end) = pipe2(OFlag::O_CLOEXEC).context("pipe2")?;
        content.fill(write_end.as_fd())?;
        let keeper = read_end.try_clone().context("duplicate a pipe's end")?;
        Ok(MadePipe {
            read_end: Some(read_end),
            write_end: Some(write_end),
            keeper,
        })
    }

    /// For a FIFO, whose ends are all opened.
    pub fn kept_by(keeper: OwnedFd) -> Self {
        MadePipe {
            read_end: None,
            write_end: None,
            keeper,
        }
    }

    /// A description of the end that the flags tell. pipe2(2) makes one of each; a description with a flag that neither
    /// pipe2(2) nor fcntl(2) gives was opened, as /proc/self/fd/N: open(2) adds O_LARGEFILE by itself.
    pub fn description(&mut self, status_flags: u32) -> Result<OwnedFd> {
        let flags = status_flags.cast_signed();
        let opened = flags & !(libc::O_ACCMODE | SETTABLE) != 0;
        let made = match flags & libc::O_ACCMODE {
            libc::O_RDONLY if !opened => self.read_end.take(),
            libc::O_WRONLY if !opened => self.write_end.take(),
            libc::O_RDONLY | libc::O_WRONLY | libc::O_RDWR => None,
            mode => bail!("a pipe's end of access mode {mode}"),
        };
        match made {
            Some(end) => Ok(end),
            None => open_again(self.keeper.as_fd(), flags & libc::O_ACCMODE | libc::O_NONBLOCK),
        }
    }
}

/// An anonymous pipe; a FIFO's link is its path.
pub fn is_pipe(seen: &Seen) -> bool {
    seen.file_type() == libc::S_IFIFO && seen.link.starts_with(b"pipe:[")
}

/// Read through whichever description can be read. In a pipe without readers nobody can ever read what waits.
pub fn content(probe: &Probe<'_>, look: &Look<'_>) -> Result<Content> {
    let reader = look
        .seen
        .iter()
        .find(|seen| seen.inode() == probe.seen.inode() && seen.readable() && !seen.only_path());
    match reader {
        Some(reader) => Content::of(look.duplicate(reader)?.as_fd()),
        None => Content::none(probe.file.as_fd()),
    }
}

pub fn refuse_mixture(content: &Content) -> Result<(), Unfit> {
    if content.can_be_made()? {
        return Ok(());
    }
    Err(Unfit::refused(
        "is a pipe in which packets wait behind bytes of a stream",
        "freeze again once they were read",
    ))
}

/// Without CAP_SYS_RESOURCE no pipe can be made larger than fs.pipe-max-size.
pub fn check_size(content: &Content, description: &Description, check: &mut Check<'_>) {
    let probe = || -> Result<()> {
        let (_read_end, write_end) = pipe2(OFlag::O_CLOEXEC).context("pipe2")?;
        Content {
            size: content.size,
            segments: Vec::new(),
        }
        .fill(write_end.as_fd())
    };
    const ALWAYS: u32 = 65536; // pipe(7), "Pipe capacity"
    if content.size > ALWAYS
        && let Err(error) = probe()
    {
        let remedy = format!("sysctl fs.pipe-max-size={}, or run thaw as root", content.size);
        check.refuse(description, format!("cannot be made: {error:#}"), remedy);
    }
}
