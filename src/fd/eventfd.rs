//! eventfd(2): the counter.

use std::os::fd::OwnedFd;

use anyhow::{Context, Result, ensure};
use nix::sys::eventfd::{EfdFlags, EventFd as NixEventFd};
use serde::{Deserialize, Serialize};

use super::fdinfo::FdInfo;
use super::kind::{Kind, Probe, Unfit};
use super::look::Look;
use super::probe::Seen;
use super::thaw::ReopenContext;
use crate::image::state::Description;

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
        if semaphore.is_none() {
            // A read would tell, but would take from the counter, and a freezer that died then would have changed it for good.
            let what = "is taken for a plain counter: before Linux 6.5 the kernel does not show EFD_SEMAPHORE";
            look.warn(probe.seen, what);
        }
        Ok(EventFd {
            count,
            semaphore: semaphore.unwrap_or(false),
        })
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

#[cfg(test)]
mod tests {
    use super::*;

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
