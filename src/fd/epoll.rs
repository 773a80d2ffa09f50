//! epoll(7): the set of watched descriptors. It is filled by the owner itself, since it remembers (file, number) pairs.
//!
//! Which files are ready is not recorded: a fresh EPOLL_CTL_ADD asks each once more, so that a file that was reported
//! edge-triggered and has not changed since is reported one more time.

use std::collections::HashMap;
use std::os::fd::OwnedFd;

use anyhow::{Context, Result};
use nix::sys::epoll::{Epoll as NixEpoll, EpollCreateFlags};
use serde::{Deserialize, Serialize};

use super::fdinfo::FdInfo;
use super::kind::{Kind, Probe, Unfit};
use super::look::Look;
use super::probe::Seen;
use super::thaw::{OwnerCall, ReopenContext};
use crate::image::state::Description;
use crate::sys::fds;

#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Epoll {
    pub watches: Vec<Watch>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Watch {
    pub fd: i32,
    /// Of an EPOLLONESHOT that has fired only the flags are left, and so it stays disarmed.
    pub events: u32,
    pub data: u64,
}

impl Kind for Epoll {
    fn claims(seen: &Seen, _look: &Look<'_>) -> bool {
        seen.is_anon_inode("[eventpoll]") && !seen.only_path()
    }

    fn describe(probe: &Probe<'_>, look: &mut Look<'_>) -> Result<Self, Unfit> {
        let watches = parse(&probe.seen.info)?;
        let mut nth_of: HashMap<i32, u32> = HashMap::new();
        for watch in &watches {
            let nth = nth_of.entry(watch.fd).or_default();
            if !is_still_watched(probe.seen, watch.fd, *nth, look)? {
                return Err(Unfit::refused(
                    format!(
                        "watches a file by number {}, which is closed or another file by now",
                        watch.fd
                    ),
                    "have the program take it out of the set (EPOLL_CTL_DEL) before it closes the number",
                ));
            }
            *nth += 1;
        }
        Ok(Epoll { watches })
    }

    fn reopen(&self, _description: &Description, _context: &mut ReopenContext) -> Result<OwnedFd> {
        Ok(NixEpoll::new(EpollCreateFlags::EPOLL_CLOEXEC)
            .context("epoll_create1")?
            .0)
    }

    fn relink(&self, numbers: &[i32]) -> Vec<OwnerCall> {
        let epfd = numbers[0];
        self.watches
            .iter()
            .map(|&Watch { fd, events, data }| OwnerCall::EpollAdd { epfd, fd, events, data })
            .collect()
    }
}

/// The set remembers a file that is open anywhere, under a number that may mean something else today.
fn is_still_watched(epoll: &Seen, target: i32, nth: u32, look: &Look<'_>) -> Result<bool> {
    if look.find(epoll.owner, target).is_none() {
        return Ok(false);
    }
    fds::kcmp_epoll_target(look.pid(epoll), target, epoll.fd, target, nth).context("kcmp KCMP_EPOLL_TFD")
}

/// `tfd:        8 events: 80000019 data:                8  pos:0 ino:d415 sdev:f`: ep_show_fdinfo(), fs/eventpoll.c.
fn parse(info: &FdInfo) -> Result<Vec<Watch>> {
    let watch = |line: &str| {
        let mut words = line.split_whitespace();
        let fd = words.next()?.parse().ok()?;
        let mut hexadecimal = |key: &str| {
            let word = words.by_ref().next().filter(|&word| word == key).and(words.next())?;
            u64::from_str_radix(word, 16).ok()
        };
        let events = u32::try_from(hexadecimal("events:")?).ok()?;
        Some(Watch {
            fd,
            events,
            data: hexadecimal("data:")?,
        })
    };
    info.values("tfd")
        .map(|line| watch(line).with_context(|| format!("tfd line {line:?} in fdinfo")))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn info(lines: &str) -> FdInfo {
        FdInfo::parse(format!("pos:\t0\nflags:\t02000002\nmnt_id:\t17\nino:\t1038\n{lines}")).unwrap()
    }

    #[test]
    fn every_line_is_a_watch() {
        // Linux 6.18
        let info = info(
            "tfd:        3 events: 40000000 data:                3  pos:0 ino:40e sdev:10\n\
             tfd:        8 events: 80000019 data: ffff00000000abcd  pos:0 ino:d415 sdev:f\n",
        );
        let fired = Watch {
            fd: 3,
            events: 0x4000_0000,
            data: 3,
        };
        let edge = Watch {
            fd: 8,
            events: 0x8000_0019,
            data: 0xffff_0000_0000_abcd,
        };
        assert_eq!(parse(&info).unwrap(), [fired, edge]);
    }

    #[test]
    fn other_lines_are_errors() {
        for line in [
            "tfd: 3\n",
            "tfd: 3 events: 19 datum: 3\n",
            "tfd: x events: 19 data: 3\n",
        ] {
            assert!(parse(&info(line)).is_err(), "{line}");
        }
    }
}
