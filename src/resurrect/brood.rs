//! All processes that a thaw has made and not let go: should it fail, they are killed whole.

use anyhow::{Context, Result};
use nix::sys::prctl;
use nix::unistd::Pid;

use super::spawn::{kill_and_reap, kill_only, reap_whole};

/// While it lives, orphans among them come to us, so that nothing is left of them when they are killed.
pub struct Brood {
    pids: Vec<i32>,
    was_subreaper: bool,
}

impl Brood {
    pub fn new() -> Result<Self> {
        let was_subreaper = prctl::get_child_subreaper().context("PR_GET_CHILD_SUBREAPER")?;
        prctl::set_child_subreaper(true).context("PR_SET_CHILD_SUBREAPER")?;
        Ok(Brood {
            pids: Vec::new(),
            was_subreaper,
        })
    }

    pub fn add(&mut self, pid: i32) {
        self.pids.push(pid);
    }

    /// Ends one of them, which stays a zombie where its parent is not us.
    pub fn end(&mut self, pid: i32) {
        self.forget(pid);
        kill_and_reap(Pid::from_raw(pid));
    }

    /// One that has ended.
    pub fn forget(&mut self, pid: i32) {
        self.pids.retain(|other| *other != pid);
    }

    /// They go on: they are nobody's to kill any more.
    pub fn let_go(&mut self) -> Result<()> {
        self.pids.clear();
        prctl::set_child_subreaper(self.was_subreaper).context("PR_SET_CHILD_SUBREAPER")
    }
}

impl Drop for Brood {
    fn drop(&mut self) {
        for &pid in &self.pids {
            kill_only(Pid::from_raw(pid));
        }
        // Twice: as their tracer, and as whom they were left to. Not killed again: the number may be another's by then.
        for _ in 0..2 {
            self.pids.iter().rev().for_each(|&pid| reap_whole(Pid::from_raw(pid)));
        }
        // It was possible to set it.
        let _ = prctl::set_child_subreaper(self.was_subreaper);
    }
}
