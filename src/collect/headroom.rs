//! Whether there is memory for a copy-on-write copy of a process: for its page tables, since its pages are shared at first.

use std::path::Path;

use anyhow::{Context, Result};

use super::control_groups::group_dirs;
use super::proc::ProcDir;

/// What the kernel needs besides: structures of each mapping, and reserves of its own.
const BESIDES: u64 = 8 << 20;

/// None where there is memory enough, else the reason, a clause. Asked before the kernel is: a control group that is full would let the
/// kernel kill the process for want of page tables (mem_cgroup_out_of_memory(), mm/memcontrol.c).
pub fn too_little_memory(process: &ProcDir) -> Result<Option<String>> {
    let needed = kibibytes(&process.text("status")?, "VmPTE:").context("status")? + BESIDES;
    let machine = std::fs::read_to_string("/proc/meminfo").context("/proc/meminfo")?;
    if kibibytes(&machine, "MemAvailable:").context("/proc/meminfo")? < needed {
        return Ok(Some("the machine has too little memory for a copy".into()));
    }
    let groups = group_dirs(process, "memory");
    let full = groups.iter().find(|dir| room(dir).is_some_and(|room| room < needed));
    Ok(full.map(|dir| {
        format!(
            "its control group {} has too little memory left for a copy",
            dir.display()
        )
    }))
}

/// `MemAvailable:   18874368 kB`, in bytes.
pub(super) fn kibibytes(text: &str, name: &str) -> Option<u64> {
    let line = text.lines().find_map(|line| line.strip_prefix(name))?;
    Some(line.trim().trim_end_matches(" kB").parse::<u64>().ok()? << 10)
}

/// Bytes that a group may still take, with those of files that were not used lately, which it would give up. None without a limit.
fn room(dir: &Path) -> Option<u64> {
    let read = |name: &str| std::fs::read_to_string(dir.join(name)).ok();
    let number = |names: [&str; 2]| names.into_iter().find_map(read)?.trim().parse::<u64>().ok();
    let limit = number(["memory.max", "memory.limit_in_bytes"])?;
    let used = number(["memory.current", "memory.usage_in_bytes"])?;
    let idle = read("memory.stat").and_then(|stat| idle_files(&stat)).unwrap_or(0);
    Some((limit + idle).saturating_sub(used))
}

/// Of version 2, or of version 1 with the groups below.
fn idle_files(stat: &str) -> Option<u64> {
    let number = |name| {
        stat.lines()
            .find_map(|line: &str| line.strip_prefix(name)?.strip_prefix(' '))
    };
    let text = number("total_inactive_file").or_else(|| number("inactive_file"));
    text?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn amounts_are_read_in_kibibytes() {
        let text = "MemTotal:       24617256 kB\nMemAvailable:   23068672 kB\n"; // Linux 6.18
        assert_eq!(kibibytes(text, "MemAvailable:"), Some(22 << 30));
        assert_eq!(kibibytes(text, "VmPTE:"), None);
    }

    #[test]
    fn what_a_group_would_give_up_counts_as_room() {
        let dir = tempfile::tempdir().unwrap();
        let write = |name: &str, text: &str| std::fs::write(dir.path().join(name), text).unwrap();
        assert_eq!(room(dir.path()), None);
        write("memory.max", "max\n");
        write("memory.current", "900\n");
        assert_eq!(room(dir.path()), None);
        write("memory.max", "1000\n");
        assert_eq!(room(dir.path()), Some(100));
        write("memory.stat", "anon 600\ninactive_file 250\nactive_file 50\n");
        assert_eq!(room(dir.path()), Some(350));
        write("memory.stat", "inactive_file 1\ntotal_inactive_file 30\n");
        assert_eq!(room(dir.path()), Some(130));
    }

    #[test]
    fn there_is_memory_for_a_copy_of_this_test() {
        let own = ProcDir::by_pid(std::process::id() as i32).unwrap();
        assert_eq!(too_little_memory(&own).unwrap(), None);
    }
}
