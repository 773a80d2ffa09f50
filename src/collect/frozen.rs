//! Whether a control group keeps a process frozen: the tasks of such a group cannot be stopped by a tracer (version 1), or not be made to
//! run a call (version 2).

use std::path::Path;

use super::control_groups::group_dirs;
use super::proc::ProcDir;

/// True where the group of the process, or one above it, is frozen (cgroups(7)). False where that cannot be seen.
pub fn is_frozen(process: &ProcDir) -> bool {
    group_dirs(process, "freezer").iter().any(|dir| is_frozen_dir(dir))
}

/// Whether the group in that directory is frozen, or one above it. It takes a moment until all tasks are, of which the event tells.
pub(super) fn is_frozen_dir(dir: &Path) -> bool {
    let has = |file: &str, wanted: &str| has_line(&dir.join(file), wanted);
    has("cgroup.events", "frozen 1")
        || has("cgroup.freeze", "1")
        || has("freezer.state", "FROZEN")
        || has("freezer.state", "FREEZING")
}

fn has_line(file: &Path, wanted: &str) -> bool {
    std::fs::read_to_string(file).is_ok_and(|text| text.lines().any(|line| line == wanted))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn we_are_not_frozen() {
        assert!(!is_frozen(&ProcDir::by_pid(std::process::id() as i32).unwrap()));
    }
}
