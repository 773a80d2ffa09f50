//! Whether a control group keeps a process frozen: the tasks of such a group cannot be stopped by a tracer (version 1), or not be made to
//! run a call (version 2).

use std::path::{Path, PathBuf};

use super::proc::ProcDir;

/// True where the group of the process, or one above it, is frozen (cgroups(7)). False where that cannot be seen.
pub fn is_frozen(process: &ProcDir) -> bool {
    let groups = process.text("cgroup").unwrap_or_default();
    let mounts = std::fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    groups.lines().any(|group| {
        let mut fields = group.splitn(3, ':').skip(1);
        match (fields.next(), fields.next()) {
            (Some(""), Some(path)) => dir_of(&mounts, "cgroup2", None, path).is_some_and(|dir| is_frozen_dir(&dir)),
            (Some("freezer"), Some(path)) => {
                dir_of(&mounts, "cgroup", Some("freezer"), path).is_some_and(|dir| is_frozen_dir(&dir))
            }
            _ => false,
        }
    })
}

/// The directories of the group of the process that a controller minds, and of those above it.
pub(super) fn group_dirs(process: &ProcDir, controller: &str) -> Vec<PathBuf> {
    let groups = process.text("cgroup").unwrap_or_default();
    let mounts = std::fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    let dirs = groups.lines().filter_map(|group| {
        let mut fields = group.splitn(3, ':').skip(1);
        match (fields.next()?, fields.next()?) {
            ("", path) => dir_of(&mounts, "cgroup2", None, path),
            (controllers, path) if controllers.split(',').any(|name| name == controller) => {
                dir_of(&mounts, "cgroup", Some(controller), path)
            }
            _ => None,
        }
    });
    let with_parents = dirs.flat_map(|dir| dir.ancestors().map(Path::to_owned).collect::<Vec<_>>());
    with_parents.filter(|dir| dir.join("cgroup.procs").exists()).collect()
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

/// The directory of the group `path`, below the first mount of that type (and with that controller) that shows it; proc_pid_mountinfo(5).
pub(super) fn dir_of(mounts: &str, kind: &str, controller: Option<&str>, path: &str) -> Option<PathBuf> {
    mounts.lines().find_map(|mount| {
        let (place, file_system) = mount.split_once(" - ")?;
        let mut file_system = file_system.split(' ');
        if file_system.next()? != kind {
            return None;
        }
        let mut options = file_system.nth(1)?.split(',');
        if !controller.is_none_or(|controller| options.any(|option| option == controller)) {
            return None;
        }
        let mut place = place.split(' ').skip(3);
        let (root, mounted_on) = (place.next()?, place.next()?);
        let below = Path::new(path).strip_prefix(root).ok()?;
        Some(Path::new(mounted_on).join(below))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    // Linux 6.18.
    const MOUNTS: &str = "\
        35 26 0:30 / /sys/fs/cgroup/freezer rw,relatime shared:9 - cgroup cgroup rw,freezer\n\
        36 26 0:31 / /sys/fs/cgroup/cpu rw,relatime - cgroup cgroup rw,cpu,cpuacct\n\
        38 26 0:33 /box /sys/fs/cgroup/unified rw,relatime - cgroup2 cgroup2 rw\n";

    #[test]
    fn a_group_is_found_where_its_hierarchy_is_mounted() {
        let dir = |kind, controller, path| dir_of(MOUNTS, kind, controller, path);
        assert_eq!(
            dir("cgroup", Some("freezer"), "/a/b"),
            Some("/sys/fs/cgroup/freezer/a/b".into())
        );
        assert_eq!(dir("cgroup", Some("pids"), "/a/b"), None);
        assert_eq!(dir("cgroup2", None, "/box/a"), Some("/sys/fs/cgroup/unified/a".into()));
        assert_eq!(dir("cgroup2", None, "/elsewhere"), None);
    }

    #[test]
    fn we_are_not_frozen() {
        assert!(!is_frozen(&ProcDir::by_pid(std::process::id() as i32).unwrap()));
    }
}
