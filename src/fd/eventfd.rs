//! eventfd(2): the counter.

use std::io;
use std::os::fd::{AsFd, OwnedFd};

use anyhow::{Context, Result, ensure};
use nix::sys::eventfd::{EfdFlags, EventFd as NixEventFd};
use serde::{Deserialize, Serialize};

use super::fdinfo::FdInfo;
use super::kind::{Kind, Probe, Unfit};
use super::look::Look;
use super::probe::Seen;
use super::thaw::ReopenContext;
use crate::image::state::Description;
use crate::sys::fds;

#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct EventFd {
    pub count: u64,
    pub semaphore: bool,
}

impl EventFd {
    /// The counter is hexadecimal without a prefix: eventfd_show_fdinfo(), fs/eventfd.c. The flag is shown since Linux 6.5;
    /// `None` where it is not.
    fn parse(info: &FdInfo) -> Result<(u64, Option<bool>)> {
        let semaphore = info.value("eventfd-semaphore").map(|text| text != "0");
        Ok((info.number("eventfd-count", 16)?, semaphore))
    }
}

impl Kind for EventFd {
    fn claims(seen: &Seen, _look: &Look<'_>) -> bool {
        seen.is_anon_inode("[eventfd]") && !seen.only_path()
    }

    fn describe(probe: &Probe<'_>, look: &mut Look<'_>) -> Result<Self, Unfit> {
        let (count, semaphore) = EventFd::parse(&probe.seen.info)?;
        let semaphore = match semaphore {
            Some(known) => known,
            None => match is_semaphore(&probe.file, count) {
                Ok(found) => found,
                Err(_another_took_it) => {
                    let what = "is taken for a plain counter: before Linux 6.5 the kernel does not show EFD_SEMAPHORE, and \
                                another process reads it at this moment";
                    look.warn(probe.seen, what);
                    false
                }
            },
        };
        Ok(EventFd { count, semaphore })
    }

    fn reopen(&self, _description: &Description, _context: &mut ReopenContext) -> Result<OwnedFd> {
        let mut flags = EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK;
        flags.set(EfdFlags::EFD_SEMAPHORE, self.semaphore);
        let eventfd = NixEventFd::from_flags(flags).context("eventfd")?;
        // The initial value of eventfd(2) has 32 bits only. The counter's last value, 2^64 - 1, cannot be written (eventfd(2)).
        if self.count != 0 {
            ensure!(
                self.count < u64::MAX,
                "the counter of an eventfd cannot be {:#x}",
                self.count
            );
            eventfd.write(self.count).context("write to an eventfd")?;
        }
        Ok(eventfd.into())
    }
}

/// What a read tells: a semaphore gives 1 of a counter that holds more (eventfd(2)). What was taken is put back at once; who waits for the
/// counter by epoll(7) with EPOLLET may find it ready once more.
fn is_semaphore(file: &OwnedFd, count: u64) -> io::Result<bool> {
    let added = 2u64.saturating_sub(count);
    if added > 0 {
        add(file, added)?;
    }
    let taken = take(file)?;
    // With what was added, a semaphore has one too many where it held nothing.
    match taken {
        1 if added == 2 => take(file).map(|_one| true),
        1 => add(file, u64::from(added == 0)).map(|()| true),
        all => add(file, all - added).map(|()| false),
    }
}

fn add(file: &OwnedFd, value: u64) -> io::Result<()> {
    match value {
        0 => Ok(()),
        _ => Ok(nix::unistd::write(file, &value.to_ne_bytes()).map(drop)?),
    }
}

/// Without waiting, whatever the description's O_NONBLOCK says.
fn take(file: &OwnedFd) -> io::Result<u64> {
    let mut value = [0; 8];
    match fds::read_at_once(file.as_fd(), &mut value)? {
        8 => Ok(u64::from_ne_bytes(value)),
        read => Err(io::Error::other(format!("an eventfd gave {read} bytes"))),
    }
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsRawFd;

    use super::*;

    #[test]
    fn a_semaphore_is_told_from_a_counter_and_nothing_changes() {
        for count in [0, 1, 2, 3, 1 << 40] {
            for semaphore in [false, true] {
                let flags = match semaphore {
                    true => EfdFlags::EFD_SEMAPHORE,
                    false => EfdFlags::empty(),
                };
                let file: OwnedFd = NixEventFd::from_flags(flags).unwrap().into();
                add(&file, count).unwrap();
                assert_eq!(is_semaphore(&file, count).unwrap(), semaphore, "{count}");
                let info = std::fs::read_to_string(format!("/proc/self/fdinfo/{}", file.as_raw_fd())).unwrap();
                assert_eq!(EventFd::parse(&FdInfo::parse(info).unwrap()).unwrap().0, count);
            }
        }
    }

    fn info(lines: &str) -> FdInfo {
        FdInfo::parse(format!("pos:\t0\nflags:\t02\nmnt_id:\t17\nino:\t1038\n{lines}")).unwrap()
    }

    #[test]
    fn the_counter_is_read_as_hexadecimal() {
        let info = info("eventfd-count:               1a\neventfd-id: 1\neventfd-semaphore: 1\n"); // Linux 6.18
        assert_eq!(EventFd::parse(&info).unwrap(), (26, Some(true)));
    }

    #[test]
    fn an_old_kernel_does_not_show_the_flag() {
        let info = info("eventfd-count: ffffffff00000000\neventfd-id: 3\n"); // Linux 5.10
        assert_eq!(EventFd::parse(&info).unwrap(), (0xffff_ffff_0000_0000, None));
    }

    #[test]
    fn without_a_counter_it_is_an_error() {
        assert!(EventFd::parse(&info("eventfd-id: 3\n")).is_err());
    }
}
