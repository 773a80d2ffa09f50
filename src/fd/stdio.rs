//! Terminals, and pipes to other processes: at thaw they become thaw's own stdin, stdout and stderr.

use std::collections::HashMap;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use anyhow::{Context, Result, bail};
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::sys::stat::fstat;
use nix::unistd::isatty;
use serde::{Deserialize, Serialize};

use super::kind::{Kind, Probe, Unfit};
use super::look::Look;
use super::pipe::{MadePipe, check_size, leads_outside, refuse_mixture};
use super::pipe_content::Content;
use super::probe::{Seen, file_type};
use super::thaw::{Check, Pump, ReopenContext, open_again};
use crate::image::state::Description;

/// A description that leads outside.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Outside {
    pub becomes: Becomes,
    /// Of a pipe: its inode at the freeze, equal in all descriptions of one pipe.
    pub pipe: Option<u64>,
    /// In the first description of a pipe that the program reads, where bytes wait in it.
    pub unread: Option<Content>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Becomes {
    /// Thaw's descriptor of this number: 0, 1 or 2.
    Number(u8),
    /// The first of thaw's that is a terminal.
    Terminal,
}

impl Kind for Outside {
    fn claims(seen: &Seen, look: &Look<'_>) -> bool {
        is_outside(seen, look.seen)
    }

    fn describe(probe: &Probe<'_>, look: &mut Look<'_>) -> Result<Self, Unfit> {
        let seen = probe.seen;
        let becomes = look.stdio.becomes(seen).ok_or_else(|| {
            Unfit::refused(
                "is a pipe to another process, and stdin, stdout and stderr are taken by others",
                "have the program close it first, or freeze it together with the other process once trees are carried",
            )
        })?;
        if seen.terminal {
            return Ok(Outside {
                becomes,
                pipe: None,
                unread: None,
            });
        }
        let mut unread = None;
        if seen.readable() && look.told.insert(seen.inode()) {
            unread = Some(Content::of(probe.file.as_fd())?).filter(|content| content.len_bytes() > 0);
            unread.as_ref().map_or(Ok(()), refuse_mixture)?;
        }
        Ok(Outside {
            becomes,
            pipe: Some(seen.stat.st_ino),
            unread,
        })
    }

    fn check(&self, description: &Description, check: &mut Check<'_>) {
        if let Some(content) = &self.unread {
            check_size(content, description, check);
        }
        if let Err(error) = source(self.becomes, description.status_flags, &check.stdio.0) {
            check.refuse(
                description,
                format!("has nothing to become: {error:#}"),
                "run thaw on a terminal",
            );
        }
    }

    fn reopen(&self, description: &Description, context: &mut ReopenContext) -> Result<OwnedFd> {
        if let (Some(inode), Some(content)) = (self.pipe, &self.unread) {
            let mut pipe = MadePipe::new(content)?;
            let into = pipe.write_end.take().expect("a new pipe has both ends");
            let from = source(self.becomes, description.status_flags, &context.stdio.0)?;
            let from = from.try_clone_to_owned().context("duplicate stdin")?;
            context.pumps.push(Pump { from, into });
            context.pipes.insert(inode, pipe);
        }
        if let Some(pipe) = self.pipe.and_then(|inode| context.pipes.get_mut(&inode)) {
            let end = pipe.description(description.status_flags)?;
            return Ok(end);
        }
        let source = source(self.becomes, description.status_flags, &context.stdio.0)?;
        adopt(source, self.becomes, description.status_flags)
    }
}

/// A terminal's descriptor, or a pipe whose other end is in another process.
pub fn is_outside(seen: &Seen, all: &[Seen]) -> bool {
    (seen.terminal && !is_master(seen)) || leads_outside(seen, all)
}

/// A pseudo-terminal's master also answers to isatty(3). Majors: Documentation/admin-guide/devices.txt.
fn is_master(seen: &Seen) -> bool {
    let device = (
        nix::sys::stat::major(seen.stat.st_rdev),
        nix::sys::stat::minor(seen.stat.st_rdev),
    );
    device == (5, 2) || matches!(device.0, 2 | 128..=135)
}

/// Which of thaw's three each description that leads outside becomes, decided over the whole table.
#[derive(Debug, Default)]
pub struct Plan {
    pipes: HashMap<(u64, u64), u8>,
}

impl Plan {
    /// Pipes on 0, 1 and 2 become these. Others get what is left, by their direction and in the order of their numbers.
    pub fn new(all: &[Seen]) -> Self {
        let outside: Vec<&Seen> = all.iter().filter(|seen| is_outside(seen, all)).collect();
        let taken = |plan: &Plan, number: u8| {
            plan.pipes.values().any(|&taken| taken == number) || outside.iter().any(|seen| seen.fd == i32::from(number))
        };
        let mut plan = Plan::default();
        for seen in outside.iter().filter(|seen| !seen.terminal) {
            let number = match seen.fd {
                0..=2 => u8::try_from(seen.fd).ok(),
                _ if seen.readable() => Some(0).filter(|&number| !taken(&plan, number)),
                _ => [1, 2].into_iter().find(|&number| !taken(&plan, number)),
            };
            if let Some(number) = number {
                plan.pipes.entry(seen.inode()).or_insert(number);
            }
        }
        plan
    }

    /// Each of 0, 1 and 2 becomes thaw's own of that number, which may be different things there, so each is recorded as a
    /// description of its own. Where thaw's share a description, the program's will, too.
    pub fn split(&self, seen: &Seen, numbers: Vec<i32>) -> Vec<Vec<i32>> {
        if !seen.terminal && !self.pipes.contains_key(&seen.inode()) {
            return vec![numbers];
        }
        let (standard, others): (Vec<i32>, Vec<i32>) = numbers.into_iter().partition(|fd| (0..=2).contains(fd));
        let mut parts: Vec<Vec<i32>> = standard.into_iter().map(|fd| vec![fd]).collect();
        if seen.terminal || parts.is_empty() {
            parts.extend((!others.is_empty()).then_some(others));
        } else {
            parts[0].extend(others);
        }
        parts
    }

    fn becomes(&self, seen: &Seen) -> Option<Becomes> {
        match u8::try_from(seen.fd) {
            Ok(number @ 0..=2) => Some(Becomes::Number(number)),
            _ if seen.terminal => Some(Becomes::Terminal),
            _ => self.pipes.get(&seen.inode()).map(|&number| Becomes::Number(number)),
        }
    }
}

/// Which of thaw's three it is.
fn source(becomes: Becomes, status_flags: u32, stdio: &[OwnedFd; 3]) -> Result<BorrowedFd<'_>> {
    match becomes {
        Becomes::Number(number) => match stdio.get(usize::from(number)) {
            Some(file) => Ok(file.as_fd()),
            None => bail!("there is no standard descriptor {number}"),
        },
        Becomes::Terminal => {
            let terminal = stdio.iter().find(|file| isatty(file).unwrap_or(false));
            let fitting = || stdio.iter().find(|file| access_fits(file.as_fd(), status_flags));
            let file = terminal
                .or_else(fitting)
                .context("none of stdin, stdout and stderr is a terminal")?;
            Ok(file.as_fd())
        }
    }
}

/// Thaw's descriptor itself, sharing its description as a child of a shell would; a description of its own on the same
/// terminal or pipe where that has not the access mode, or where only the program is to have it non-blocking.
fn adopt(file: BorrowedFd<'_>, becomes: Becomes, status_flags: u32) -> Result<OwnedFd> {
    let flags = status_flags.cast_signed();
    let has = fcntl(file, FcntlArg::F_GETFL).context("fcntl F_GETFL")?;
    let nonblocking = (flags & libc::O_NONBLOCK) & !has;
    let unfit = becomes == Becomes::Terminal && !access_fits(file, status_flags);
    if unfit || (nonblocking != 0 && openable(file)?) {
        match open_again(file, flags & libc::O_ACCMODE | libc::O_NONBLOCK) {
            Ok(file) => {
                fcntl(
                    &file,
                    FcntlArg::F_SETFL(OFlag::from_bits_retain(flags & libc::O_NONBLOCK)),
                )?;
                return Ok(file);
            }
            Err(error) if unfit => return Err(error),
            // Another user's terminal: then it stays as it is.
            Err(_) => {}
        }
    }
    file.try_clone_to_owned().context("duplicate a standard descriptor")
}

/// What a second description can be had of that differs in nothing but its flags; not a file, which has an offset.
fn openable(file: BorrowedFd<'_>) -> Result<bool> {
    let pipe = file_type(&fstat(file).context("fstat")?) == libc::S_IFIFO;
    Ok(pipe || isatty(file).unwrap_or(false))
}

fn access_fits(file: BorrowedFd<'_>, status_flags: u32) -> bool {
    let wanted = status_flags.cast_signed() & libc::O_ACCMODE;
    fcntl(file, FcntlArg::F_GETFL)
        .is_ok_and(|has| has & libc::O_ACCMODE == libc::O_RDWR || has & libc::O_ACCMODE == wanted)
}
