//! Control groups (cgroups(7)): in which a task is, and where their directories are.

use std::path::PathBuf;

use anyhow::{Context, Result};

use super::frozen::{dir_of, is_frozen_dir};
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
    let mounts = std::fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    let path = String::from_utf8_lossy(&group.path);
    // A group above the root of our cgroup namespace; or an image that would have us write elsewhere.
    if path.split('/').any(|name| name == "..") {
        return Err("lies outside of what can be seen here".into());
    }
    let dir = match group.hierarchy.split(',').next() {
        Some("") | None => dir_of(&mounts, "cgroup2", None, &path),
        controller => dir_of(&mounts, "cgroup", controller, &path),
    };
    let dir = dir.ok_or("is in a hierarchy that is not mounted here")?;
    match dir.is_dir() {
        false => Err("does not exist here".into()),
        true if is_frozen_dir(&dir) => Err("is frozen".into()),
        true => Ok(dir),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

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
