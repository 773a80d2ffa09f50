//! Processes that were born of those we trace, and that are traced therefore.

use nix::unistd::Pid;

use super::{Error, Result, Running};

/// Processes that are traced from their birth, as their parents were, and stopped then. Dropping it detaches them.
#[derive(Debug, Default)]
pub(super) struct Nursery(Vec<Running>);

impl Nursery {
    pub fn tids(&self) -> Vec<Pid> {
        self.0.iter().map(Running::tid).collect()
    }

    pub fn add(&mut self, child: Running) {
        self.0.push(child);
    }

    /// All that are in another one.
    pub fn adopt(&mut self, others: &mut Nursery) {
        self.0.append(&mut others.0);
    }

    pub fn take(&mut self, pid: Pid) -> bool {
        let found = self.0.iter().position(|child| child.tid() == pid);
        found.map(|at| self.0.swap_remove(at)).is_some()
    }

    pub fn let_go(&mut self) -> Result<()> {
        self.0.drain(..).try_for_each(let_go_its_way)
    }
}

impl Drop for Nursery {
    fn drop(&mut self) {
        // Those that are gone need nothing.
        let _gone = self.let_go();
    }
}

/// A process that was born of one that we trace, and traced therefore.
pub(super) fn let_go_its_way(child: Running) -> Result<()> {
    match child.wait().and_then(|stopped| stopped.detach(0)) {
        Err(Error::Gone(_)) => Ok(()),
        other => other,
    }
}
