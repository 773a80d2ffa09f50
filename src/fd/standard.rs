//! Thaw's own stdin, stdout and stderr, and how they become the program's.

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use anyhow::{Context, Result, bail, ensure};
use nix::errno::Errno;
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent};
use nix::sys::stat::fstat;
use nix::unistd::{isatty, pipe2};

use super::pipe::MadePipe;
use super::pipe_content::Content;
use super::probe::file_type;
use super::stdio::Becomes;
use super::thaw::open_again;
use crate::image::state::Description;

/// What becomes the program's stdin, stdout and stderr where these led outside.
pub struct Stdio {
    pub three: [OwnedFd; 3],
    /// What all its terminals become, where that is another than thaw's.
    pub terminal: Option<OwnedFd>,
    /// What others become, by what /proc/PID/fd/N showed.
    pub given: Vec<(String, OwnedFd)>,
}

/// How thaw is told what a descriptor becomes that showed as `label`.
pub fn inherit_fd(label: &str) -> String {
    format!("--inherit-fd '{label}=FD'")
}

impl Stdio {
    /// Thaw's own, the terminal that is the program's, if that is another, and what is given for others.
    pub fn own(terminal: Option<OwnedFd>, given: Vec<(String, OwnedFd)>) -> Result<Self> {
        let duplicate = |fd: BorrowedFd<'_>| fd.try_clone_to_owned().context("duplicate stdin, stdout and stderr");
        let three = [
            duplicate(io::stdin().as_fd())?,
            duplicate(io::stdout().as_fd())?,
            duplicate(io::stderr().as_fd())?,
        ];
        Ok(Stdio {
            terminal,
            given,
            ..Self::of(three)
        })
    }

    pub fn of(three: [OwnedFd; 3]) -> Self {
        Stdio {
            three,
            terminal: None,
            given: Vec::new(),
        }
    }

    pub(super) fn is_given(&self, label: &str) -> bool {
        self.given.iter().any(|(given, _)| given == label)
    }

    /// Which it is: what is given for it, or one of the three. A terminal is any of them that is one, else what can be read and written
    /// as it could.
    pub(super) fn source(&self, becomes: Becomes, description: &Description) -> Result<BorrowedFd<'_>> {
        let (label, status_flags) = (&description.label, description.status_flags);
        if let Some((_, file)) = self.given.iter().find(|(given, _)| given == label) {
            ensure!(
                access_fits(file.as_fd(), status_flags),
                "what is given for it cannot be read, or written, as it could"
            );
            return Ok(file.as_fd());
        }
        match becomes {
            Becomes::Given => bail!("nothing is given for it"),
            Becomes::Number(number) => match self.three.get(usize::from(number)) {
                Some(file) => Ok(file.as_fd()),
                None => bail!("there is no standard descriptor {number}"),
            },
            Becomes::Terminal => {
                let terminal = self.three.iter().find(|file| isatty(file).unwrap_or(false));
                let fitting = || self.three.iter().find(|file| access_fits(file.as_fd(), status_flags));
                let file = terminal.or_else(fitting);
                Ok(file.context("none of stdin, stdout and stderr is a terminal")?.as_fd())
            }
        }
    }
}

/// Carries bytes between one of thaw's three and the program, while the program runs.
#[derive(Debug)]
pub struct Pump {
    pub from: OwnedFd,
    pub into: OwnedFd,
    /// These are the program's output: thaw must not end before [`run`](Self::run) has.
    pub output: bool,
}

impl Pump {
    /// For stdin: a pipe for the program that first has `content`, then what comes into `source`.
    pub(super) fn into_program(source: BorrowedFd<'_>, content: &Content) -> Result<(MadePipe, Self)> {
        let mut pipe = MadePipe::new(content)?;
        let into = pipe.write_end.take().context("a new pipe has both ends")?;
        let from = source.try_clone_to_owned().context("duplicate stdin")?;
        Ok((
            pipe,
            Pump {
                from,
                into,
                output: false,
            },
        ))
    }

    /// The end of a pipe that stands for `source`, where that is nothing that can be polled and an epoll set is to watch it.
    pub(super) fn beside(source: BorrowedFd<'_>, becomes: Becomes, status_flags: u32) -> Result<(OwnedFd, Self)> {
        let reads = status_flags.cast_signed() & libc::O_ACCMODE == libc::O_RDONLY;
        let (read_end, write_end) = pipe2(OFlag::O_CLOEXEC).context("pipe2")?;
        let source = source.try_clone_to_owned().context("duplicate a standard descriptor")?;
        let reading = |end: OwnedFd, into: OwnedFd, from: OwnedFd| {
            let pump = Pump {
                from,
                into,
                output: false,
            };
            (end, pump)
        };
        match becomes {
            Becomes::Number(0) => Ok(reading(read_end, write_end, source)),
            Becomes::Given if reads => Ok(reading(read_end, write_end, source)),
            Becomes::Number(_) | Becomes::Given => Ok((
                write_end,
                Pump {
                    from: read_end,
                    into: source,
                    output: true,
                },
            )),
            Becomes::Terminal => {
                bail!("is a terminal that an epoll set watches, and thaw was not started on a terminal")
            }
        }
    }

    /// Runs until the input ends or nobody reads what it writes.
    pub fn run(self) -> io::Result<()> {
        let (mut from, mut into) = (File::from(self.from), File::from(self.into));
        let mut buffer = vec![0; 64 << 10];
        loop {
            let len = match from.read(&mut buffer) {
                Ok(0) => return Ok(()),
                Ok(len) => len,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => return Err(error),
            };
            match into.write_all(&buffer[..len]) {
                Err(error) if error.kind() == io::ErrorKind::BrokenPipe => return Ok(()),
                other => other?,
            }
        }
    }
}

/// Whether epoll_ctl(2) takes it; regular files and /dev/null it does not (EPERM).
pub fn pollable(file: BorrowedFd<'_>) -> Result<bool> {
    let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC).context("epoll_create1")?;
    match epoll.add(file, EpollEvent::empty()) {
        Ok(()) => Ok(true),
        Err(Errno::EPERM) => Ok(false),
        Err(errno) => Err(errno).context("EPOLL_CTL_ADD of a standard descriptor"),
    }
}

/// A description of its own on a terminal.
pub fn open_terminal(terminal: BorrowedFd<'_>, status_flags: u32) -> Result<OwnedFd> {
    let flags = status_flags.cast_signed() & (libc::O_ACCMODE | libc::O_NONBLOCK);
    open_again(terminal, flags)
}

/// Thaw's descriptor itself, sharing its description as a child of a shell would. A description of its own on the same
/// terminal or pipe where it is to be non-blocking, which the shell must not notice, or where the terminal was opened
/// for more. A file has an offset to share, and so stays as it is, as does a terminal that is not ours to open.
pub fn adopt(file: BorrowedFd<'_>, status_flags: u32) -> Result<OwnedFd> {
    let flags = status_flags.cast_signed();
    let has = fcntl(file, FcntlArg::F_GETFL).context("fcntl F_GETFL")?;
    let terminal = isatty(file).unwrap_or(false);
    let pipe = file_type(&fstat(file).context("fstat")?) == libc::S_IFIFO;
    let nonblocking = flags & libc::O_NONBLOCK;
    if (terminal && !access_fits(file, status_flags)) || ((terminal || pipe) && nonblocking & !has != 0) {
        let access = if terminal { flags } else { has } & libc::O_ACCMODE;
        if let Ok(own) = open_again(file, access | libc::O_NONBLOCK) {
            fcntl(&own, FcntlArg::F_SETFL(OFlag::from_bits_retain(nonblocking))).context("fcntl F_SETFL")?;
            return Ok(own);
        }
    }
    file.try_clone_to_owned().context("duplicate a standard descriptor")
}

fn access_fits(file: BorrowedFd<'_>, status_flags: u32) -> bool {
    let wanted = status_flags.cast_signed() & libc::O_ACCMODE;
    fcntl(file, FcntlArg::F_GETFL)
        .is_ok_and(|has| has & libc::O_ACCMODE == libc::O_RDWR || has & libc::O_ACCMODE == wanted)
}
