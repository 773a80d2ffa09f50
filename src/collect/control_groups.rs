//! Control groups (cgroups(7)): in which a task is, and where their directories are.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use super::frozen::is_frozen_dir;
use super::proc::ProcDir;
use crate::image::state::ControlGroup;

/// The lines of /proc/PID/cgroup or /proc/PID/task/TID/cgroup. None in a kernel without CONFIG_CGROUPS.
pub fn control_groups(task: &ProcDir) -> Result<Vec<ControlGroup>> {
    let text = task.read_if_any("cgroup")?.unwrap_or_default();
    let text = String::from_utf8_lossy(&text);
    let groups = text
        .lines()
        .map(|line| parse(line).with_context(|| format!("cgroup: {line:?}")));
    groups.collect()
}

/// `4:memory:/a/b`; of version 2 `0::/a/b`.
fn parse(line: &str) -> Option<ControlGroup> {
    let mut fields = line.splitn(3, ':').skip(1);
    Some(ControlGroup {
        hierarchy: fields.next()?.to_owned(),
        path: fields.next()?.as_bytes().to_vec(),
    })
}

/// Where the group can be joined. The error is a clause that says why it cannot.
pub fn directory(group: &ControlGroup) -> Result<PathBuf, String> {
    let path = String::from_utf8_lossy(&group.path);
    // A group above the root of our cgroup namespace; or an image that would have us write elsewhere.
    if path.split('/').any(|name| name == "..") {
        return Err("lies outside of what can be seen here".into());
    }
    let dir = place(group, &mounts()).ok_or("is in a hierarchy that is not mounted here")?;
    match dir.is_dir() {
        false => Err("does not exist here".into()),
        true if is_frozen_dir(&dir) => Err("is frozen".into()),
        true => Ok(dir),
    }
}

/// The directories of the group of the process that a controller minds, and of those above it: as far as they can be seen.
pub(super) fn group_dirs(process: &ProcDir, controller: &str) -> Vec<PathBuf> {
    let (groups, mounts) = (control_groups(process).unwrap_or_default(), mounts());
    let minded = groups
        .iter()
        .filter(|group| group.hierarchy.is_empty() || group.hierarchy.split(',').any(|name| name == controller));
    let dirs = minded.filter_map(|group| place(group, &mounts));
    let with_parents = dirs.flat_map(|dir| dir.ancestors().map(Path::to_owned).collect::<Vec<_>>());
    with_parents.filter(|dir| dir.join("cgroup.procs").exists()).collect()
}

/// Where hierarchies are mounted in which systemd keeps its units: that of version 2, and its own of version 1.
pub fn roots_of_control_groups() -> impl Iterator<Item = PathBuf> {
    let mounts = mounts();
    let roots = [("cgroup2", None), ("cgroup", Some("name=systemd"))];
    roots
        .into_iter()
        .filter_map(move |(kind, controller)| dir_of(&mounts, kind, controller, "/"))
}

fn mounts() -> String {
    std::fs::read_to_string("/proc/self/mountinfo").unwrap_or_default()
}

/// The directory of the group, whether it is there or not. A hierarchy of version 1 is known by any of its controllers.
fn place(group: &ControlGroup, mounts: &str) -> Option<PathBuf> {
    let path = String::from_utf8_lossy(&group.path);
    match group.hierarchy.split(',').next() {
        Some("") | None => dir_of(mounts, "cgroup2", None, &path),
        controller => dir_of(mounts, "cgroup", controller, &path),
    }
}

/// The directory of the group `path`, below the first mount of that type (and with that controller) that shows it; proc_pid_mountinfo(5).
fn dir_of(mounts: &str, kind: &str, controller: Option<&str>, path: &str) -> Option<PathBuf> {
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
    fn a_path_may_hold_colons() {
        let group = parse("9:name=systemd:/a:b/c").unwrap();
        assert_eq!(
            (&*group.hierarchy, &*group.path),
            ("name=systemd", b"/a:b/c".as_slice())
        );
        assert_eq!(parse("0::/").unwrap().hierarchy, "");
        assert!(parse("nonsense").is_none());
    }

    #[test]
    fn a_group_that_is_nowhere_cannot_be_joined() {
        let group = |hierarchy: &str| ControlGroup {
            hierarchy: hierarchy.into(),
            path: b"/no/such/group".to_vec(),
        };
        assert!(
            directory(&group("no_such_controller"))
                .unwrap_err()
                .contains("not mounted")
        );
        assert!(directory(&group("")).is_err());
    }

    #[test]
    fn a_path_does_not_lead_out_of_the_hierarchy() {
        let group = ControlGroup {
            hierarchy: String::new(),
            path: b"/a/../../../etc".to_vec(),
        };
        assert!(directory(&group).unwrap_err().contains("outside"));
    }
}
