//! POSIX message queues (mq_overview(7)) that only these processes have open, with their messages.
//!
//! A queue shows its messages to nobody but those who receive them: they are taken and put back, in a process of its own, so that none is
//! lost should we be killed meanwhile (`sys::apart`).

use std::ffi::CString;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::FileExt;

use anyhow::{Context, Result, ensure};
use nix::errno::Errno;
use nix::sys::stat::{Mode, fchmod};
use nix::unistd::{Gid, Uid, fchown};
use serde::{Deserialize, Serialize};

use super::kind::{Kind, Probe, Unfit};
use super::look::Look;
use super::probe::Seen;
use super::thaw::{Check, ReopenContext, open_again};
use crate::image::state::{Description, Name};
use crate::sys::mqueue::{self, Shape};
use crate::sys::{apart, may_exceed_limits};

/// One description of a queue.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Mqueue {
    /// The inode at the freeze: equal in all descriptions of one queue.
    pub inode: (u64, u64),
    /// In the queue's first description.
    pub queue: Option<Queue>,
}

#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Queue {
    /// With its slash.
    pub name: Name,
    /// mq_unlink(3).
    pub unlinked: bool,
    /// st_mode.
    pub mode: u32,
    pub uid: u32,
    pub gid: u32,
    /// mq_maxmsg and mq_msgsize.
    pub messages_max: i64,
    pub message_len_max: i64,
    /// In the order in which they are received.
    pub messages: Vec<Message>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Message {
    pub priority: u32,
    #[serde(with = "serde_bytes")]
    pub bytes: Vec<u8>,
}

impl Kind for Mqueue {
    fn claims(seen: &Seen, _look: &Look<'_>) -> bool {
        seen.on_mqueue
    }

    fn describe(probe: &Probe<'_>, look: &mut Look<'_>) -> Result<Self, Unfit> {
        let seen = probe.seen;
        look.ends.refuse_shared(seen)?;
        let inode = seen.inode();
        if !look.told.insert(inode) {
            return Ok(Mqueue { inode, queue: None });
        }
        let own = open_again(probe.file.as_fd(), libc::O_RDWR | libc::O_NONBLOCK)?;
        if is_to_be_told(&own)? {
            return Err(Unfit::refused(
                "tells somebody when a message comes (mq_notify(3)), and how is not to be seen",
                "freeze while nobody waits for that",
            ));
        }
        let (shape, _) = mqueue::look(&own).context("mq_getattr")?;
        let unlinked = seen.stat.st_nlink == 0;
        let link = match unlinked {
            true => seen.link.strip_suffix(b" (deleted)").unwrap_or(&seen.link),
            false => &seen.link,
        };
        // Opened as a file, it shows where mqueue is mounted.
        let base = link.rsplit(|byte| *byte == b'/').next().unwrap_or_default();
        let queue = Queue {
            name: [b"/", base].concat(),
            unlinked,
            mode: seen.stat.st_mode,
            uid: seen.stat.st_uid,
            gid: seen.stat.st_gid,
            messages_max: shape.messages_max,
            message_len_max: shape.message_len_max,
            messages: messages(&own)?,
        };
        Ok(Mqueue {
            inode,
            queue: Some(queue),
        })
    }

    fn check(&self, description: &Description, check: &mut Check<'_>) {
        let Some(queue) = &self.queue else { return };
        match queue.against() {
            Ok(None) => {}
            Ok(Some((reason, remedy))) => check.refuse(description, reason, remedy),
            Err(error) => check.refuse(
                description,
                format!("cannot be looked at: {error:#}"),
                "run thaw as root",
            ),
        }
    }

    fn reopen(&self, description: &Description, context: &mut ReopenContext) -> Result<OwnedFd> {
        if let Some(queue) = &self.queue {
            let made = queue.make()?;
            context.queues.push((self.inode, made));
        }
        let mut all = context.queues.iter();
        let (_, made) = all
            .find(|(inode, _)| *inode == self.inode)
            .context("the queue's first description is not in the image")?;
        let access = description.status_flags.cast_signed() & libc::O_ACCMODE;
        open_again(made.file.as_fd(), access | libc::O_NONBLOCK)
    }
}

/// A queue at thaw. Dropped before it is [kept](Self::keep), a new one is removed again.
pub struct MadeQueue {
    file: OwnedFd,
    /// Of a new one that has a name.
    new: Option<CString>,
}

impl MadeQueue {
    pub fn keep(&mut self) {
        self.new = None;
    }
}

impl Drop for MadeQueue {
    fn drop(&mut self) {
        if let Some(name) = self.new.take() {
            // There is nobody to tell; what is gone already is as it should be.
            let _gone = mqueue::unlink(&name);
        }
    }
}

impl Queue {
    fn c_name(&self) -> Result<CString> {
        CString::new(self.name.clone()).context("the name of a message queue")
    }

    fn shown(&self) -> String {
        String::from_utf8_lossy(&self.name).into_owned()
    }

    fn shape(&self) -> Shape {
        Shape {
            messages_max: self.messages_max,
            message_len_max: self.message_len_max,
        }
    }

    fn against(&self) -> Result<Option<(String, String)>> {
        if !self.unlinked {
            match mqueue::open(&self.c_name()?, None) {
                Ok(found) => return self.against_found(&found),
                Err(Errno::ENOENT) => {}
                Err(errno) => return Err(errno).context("mq_open"),
            }
        }
        Ok(self.too_large()?.map(|(setting, wanted)| {
            let reason = format!("is larger than is allowed here (fs.mqueue.{setting})");
            (reason, format!("sysctl fs.mqueue.{setting}={wanted}"))
        }))
    }

    /// One of its name is there: that of the freeze, with its messages, or another.
    fn against_found(&self, found: &OwnedFd) -> Result<Option<(String, String)>> {
        let reason = match mqueue::look(found).context("mq_getattr")?.0 == self.shape() {
            false => "is another one here, of another size",
            // To look into it would call them.
            true if is_to_be_told(found)? => "is one here that others wait for (mq_notify(3))",
            true if messages(found)? != self.messages => "holds other messages than at the freeze",
            true => return Ok(None),
        };
        let remedy = format!("end those who use it, and remove it (rm /dev/mqueue{})", self.shown());
        Ok(Some((reason.into(), remedy)))
    }

    /// The limits of those without CAP_SYS_RESOURCE (mqueue_get_inode(), ipc/mqueue.c).
    fn too_large(&self) -> Result<Option<(&'static str, i64)>> {
        if may_exceed_limits() {
            return Ok(None);
        }
        for (setting, wanted) in [("msg_max", self.messages_max), ("msgsize_max", self.message_len_max)] {
            let path = format!("/proc/sys/fs/mqueue/{setting}");
            let text = std::fs::read_to_string(&path).with_context(|| format!("read {path}"))?;
            if wanted > text.trim().parse().context(path)? {
                return Ok(Some((setting, wanted)));
            }
        }
        Ok(None)
    }

    fn make(&self) -> Result<MadeQueue> {
        let name = self.c_name()?;
        if !self.unlinked {
            match mqueue::open(&name, None) {
                // It was compared, and holds what it did.
                Ok(file) => return Ok(MadeQueue { file, new: None }),
                Err(Errno::ENOENT) => {}
                Err(errno) => return Err(errno).context("mq_open"),
            }
        }
        let made = self.make_new(name)?;
        fchown(&made.file, Some(Uid::from_raw(self.uid)), Some(Gid::from_raw(self.gid))).context("fchown")?;
        fchmod(&made.file, Mode::from_bits_truncate(self.mode)).context("fchmod")?;
        for message in &self.messages {
            mqueue::put(&made.file, message.priority, &message.bytes).context("mq_send")?;
        }
        Ok(made)
    }

    /// One without a name had one that somebody else may have by now.
    fn make_new(&self, mut name: CString) -> Result<MadeQueue> {
        const TRIES: u32 = 1000;
        for attempt in 0..TRIES {
            match mqueue::open(&name, Some(self.shape())) {
                Ok(file) => {
                    let mut made = MadeQueue { file, new: Some(name) };
                    if self.unlinked {
                        // Done by the drop of the name.
                        drop(MadeQueue {
                            file: made.file.try_clone().context("duplicate a descriptor")?,
                            new: made.new.take(),
                        });
                    }
                    return Ok(made);
                }
                Err(Errno::EEXIST) if self.unlinked => {
                    name = CString::new(format!("/cryopod-{}-{attempt}", std::process::id()))?;
                }
                Err(errno) => return Err(errno).context("mq_open (RLIMIT_MSGQUEUE, fs.mqueue.queues_max)"),
            }
        }
        anyhow::bail!("no name is free for a message queue")
    }
}

/// What waits, taken and put back.
fn messages(queue: &OwnedFd) -> Result<Vec<Message>> {
    let (shape, waiting) = mqueue::look(queue).context("mq_getattr")?;
    if waiting == 0 {
        return Ok(Vec::new());
    }
    let room = usize::try_from(shape.message_len_max).context("mq_msgsize")?;
    let answer = apart(|| {
        let seen = take_and_put_back(queue.as_fd(), room);
        postcard::to_stdvec(&seen.map_err(|error| format!("{error:#}"))).unwrap_or_default()
    });
    let answer = answer.context("look into a message queue")?;
    let seen: std::result::Result<Vec<Message>, String> =
        postcard::from_bytes(&answer).context("look into a message queue")?;
    let seen = seen.map_err(anyhow::Error::msg)?;
    ensure!(seen.len() as i64 == waiting, "somebody else uses a message queue");
    Ok(seen)
}

fn take_and_put_back(queue: BorrowedFd<'_>, room: usize) -> Result<Vec<Message>> {
    let mut buffer = vec![0; room];
    let mut seen = Vec::new();
    let taken = loop {
        match mqueue::take(queue, &mut buffer) {
            Ok((priority, bytes)) => seen.push(Message { priority, bytes }),
            Err(Errno::EAGAIN) => break Ok(()),
            Err(Errno::EINTR) => {}
            Err(errno) => break Err(errno),
        }
    };
    for message in &seen {
        mqueue::put(queue, message.priority, &message.bytes).context("mq_send")?;
    }
    taken.context("mq_receive")?;
    Ok(seen)
}

/// Whether somebody has called mq_notify(3): `NOTIFY_PID:0` if not (mqueue_read_file(), ipc/mqueue.c).
fn is_to_be_told(queue: &OwnedFd) -> Result<bool> {
    let file = std::fs::File::from(queue.try_clone().context("duplicate a descriptor")?);
    let mut text = [0; 128];
    let len = file.read_at(&mut text, 0).context("read a message queue's state")?;
    let text = String::from_utf8_lossy(&text[..len]).into_owned();
    let pid = text
        .split_whitespace()
        .find_map(|word| word.strip_prefix("NOTIFY_PID:"));
    let pid = pid.with_context(|| format!("a message queue's state: {text:?}"))?;
    Ok(pid != "0")
}
