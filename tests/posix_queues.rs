//! POSIX message queues at a thaw where they are gone, changed or another's.

mod common;

use common::frozen::Frozen;
use common::{Program, build, can_thaw, scratch};
use nix::sys::signal::Signal;
use std::ffi::CString;

/// A frozen `tree/posix_queues.c`; the queues that it has left behind are removed in the end.
struct Left(Frozen);

impl Left {
    fn behind() -> Option<Self> {
        if !can_thaw() {
            return None;
        }
        let dir = scratch();
        let mut program = Program::start(build::fixture("tree/posix_queues.c").current_dir(dir.path()));
        program.wait_for(|line| line == "READY");
        let frozen = Frozen::program(dir, program);
        common::reap_orphans();
        Some(Left(frozen))
    }

    fn name(&self, which: &str) -> CString {
        CString::new(format!("/cryopod-{which}-{}", self.0.pid)).expect("a name")
    }

    fn names(&self) -> [CString; 3] {
        ["named", "full", "empty"].map(|which| self.name(which))
    }

    /// How many are gone now that were there.
    fn remove(&self) -> usize {
        // SAFETY: names are C strings.
        let removed = self.names().map(|name| unsafe { libc::mq_unlink(name.as_ptr()) });
        removed.iter().filter(|rc| **rc == 0).count()
    }

    fn goes_on(&self) {
        let program = self.0.thaw();
        program.signal(Signal::SIGUSR1);
        program.expect_pass();
    }
}

impl Drop for Left {
    fn drop(&mut self) {
        self.remove();
    }
}

#[test]
fn those_that_are_gone_are_made_again() {
    let Some(left) = Left::behind() else { return };
    assert_eq!(left.remove(), 3);
    left.goes_on();
}

#[test]
fn a_thaw_that_fails_leaves_none() {
    let Some(left) = Left::behind() else { return };
    assert_eq!(left.remove(), 3);
    left.0.thaw_fails_late("-d");
    assert_eq!(left.remove(), 0);
}

#[test]
fn one_that_others_have_used_stands_against_a_thaw() {
    let Some(left) = Left::behind() else { return };
    let name = left.name("empty");
    // SAFETY: a name, and a message of the length that is given.
    let sent = unsafe {
        let queue = libc::mq_open(name.as_ptr(), libc::O_WRONLY);
        let sent = libc::mq_send(queue, c"theirs".as_ptr(), 6, 1);
        libc::mq_close(queue);
        sent
    };
    assert_eq!(sent, 0);
    let remedy = format!("rm /dev/mqueue{}", name.to_string_lossy());
    left.0.is_refused(&["holds other messages", &remedy]);
    assert_eq!(left.remove(), 3);
    left.goes_on();
}
