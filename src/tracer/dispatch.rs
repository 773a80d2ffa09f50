//! Syscall user dispatch (prctl(2), PR_SET_SYSCALL_USER_DISPATCH): system calls that come back to the thread as SIGSYS.

use super::{Result, Stopped};
use crate::image::state::Dispatch;

const PTRACE_SET_SYSCALL_USER_DISPATCH_CONFIG: u32 = 0x4210;
const PTRACE_GET_SYSCALL_USER_DISPATCH_CONFIG: u32 = 0x4211;
/// struct ptrace_sud_config: mode, selector, offset, len (include/uapi/linux/ptrace.h).
type Configuration = [u64; 4];

/// All calls but those from a range, all calls from a range (Linux 6.17).
const PR_SYS_DISPATCH_EXCLUSIVE_ON: u64 = 1;
const PR_SYS_DISPATCH_INCLUSIVE_ON: u64 = 2;

impl Stopped {
    /// None where it is off, and before Linux 6.4, where ptrace does not tell.
    pub fn dispatch(&self) -> Result<Option<Dispatch>> {
        let mut configuration: Configuration = [0; 4];
        let (size, to) = (size_of::<Configuration>(), configuration.as_mut_ptr() as usize);
        let name = "PTRACE_GET_SYSCALL_USER_DISPATCH_CONFIG";
        match self.request(PTRACE_GET_SYSCALL_USER_DISPATCH_CONFIG, name, size, to) {
            Err(error) if error.errno() == Some(nix::Error::EIO) => Ok(None),
            other => other.map(|_| as_it_was_set(configuration)),
        }
    }

    /// After this the task must make no call for us any more.
    pub fn set_dispatch(&mut self, dispatch: Dispatch) -> Result<()> {
        let configuration: Configuration = [dispatch.mode, dispatch.selector, dispatch.offset, dispatch.len];
        let (size, from) = (size_of::<Configuration>(), configuration.as_ptr() as usize);
        let name = "PTRACE_SET_SYSCALL_USER_DISPATCH_CONFIG";
        self.request(PTRACE_SET_SYSCALL_USER_DISPATCH_CONFIG, name, size, from)
            .map(drop)
    }
}

/// The kernel keeps a range of calls to send back as the rest of the address space, which it lets through; and does not take that back
/// as it shows it (task_set_syscall_user_dispatch(), kernel/entry/syscall_user_dispatch.c).
fn as_it_was_set([mode, selector, offset, len]: Configuration) -> Option<Dispatch> {
    let wraps = offset != 0 && offset.wrapping_add(len) <= offset;
    let (mode, offset, len) = match wraps && mode == PR_SYS_DISPATCH_EXCLUSIVE_ON {
        true => (
            PR_SYS_DISPATCH_INCLUSIVE_ON,
            offset.wrapping_add(len),
            len.wrapping_neg(),
        ),
        false => (mode, offset, len),
    };
    (mode != 0).then_some(Dispatch {
        mode,
        selector,
        offset,
        len,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_range_that_is_sent_back_is_told_from_one_that_is_let_through() {
        let through = as_it_was_set([1, 7, 0x1000, 0x2000]).unwrap();
        assert_eq!((through.mode, through.offset, through.len), (1, 0x1000, 0x2000));
        let back = as_it_was_set([1, 7, 0x3000, 0x2000u64.wrapping_neg()]).unwrap();
        assert_eq!((back.mode, back.offset, back.len), (2, 0x1000, 0x2000));
        assert_eq!(as_it_was_set([0; 4]), None);
        assert_eq!(as_it_was_set([1, 0, 0, 0]).unwrap().mode, 1);
    }
}
