//! The machine that the numbers come from.

use serde::Serialize;
use std::fs::read_to_string;
use std::path::Path;

#[derive(Debug, Serialize)]
pub struct Machine {
    pub cpu: String,
    pub cpus: usize,
    pub memory_gib: u64,
    pub kernel: String,
    pub huge_pages: String,
}

impl Machine {
    pub fn own() -> Self {
        let cpu = read_to_string("/proc/cpuinfo").unwrap_or_default();
        let model = cpu
            .lines()
            .find_map(|line| line.strip_prefix("model name")?.split_once(": "));
        Machine {
            cpu: model.map_or("unknown", |(_, name)| name).into(),
            cpus: std::thread::available_parallelism().map_or(1, usize::from),
            memory_gib: (meminfo("MemTotal") + (1 << 29)) >> 30,
            kernel: read_to_string("/proc/sys/kernel/osrelease")
                .unwrap_or_default()
                .trim()
                .into(),
            huge_pages: read_to_string("/sys/kernel/mm/transparent_hugepage/enabled")
                .unwrap_or_default()
                .trim()
                .into(),
        }
    }
}

/// A line of /proc/meminfo, in bytes.
pub fn meminfo(name: &str) -> u64 {
    let text = read_to_string("/proc/meminfo").unwrap_or_default();
    let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
    line.and_then(|line| line.trim().trim_end_matches(" kB").parse::<u64>().ok())
        .unwrap_or(0)
        << 10
}

/// The name of the file system of a directory, as statfs(2) numbers them.
pub fn file_system(directory: &Path) -> String {
    use nix::sys::statfs::{BTRFS_SUPER_MAGIC, EXT4_SUPER_MAGIC, TMPFS_MAGIC, XFS_SUPER_MAGIC, statfs};
    let Ok(kind) = statfs(directory).map(|fs| fs.filesystem_type()) else {
        return "unknown".into();
    };
    let known = [
        (TMPFS_MAGIC, "tmpfs"),
        (EXT4_SUPER_MAGIC, "ext4"),
        (XFS_SUPER_MAGIC, "xfs"),
        (BTRFS_SUPER_MAGIC, "btrfs"),
    ];
    known
        .iter()
        .find(|(magic, _)| *magic == kind)
        .map_or_else(|| format!("{:#x}", kind.0), |(_, name)| (*name).into())
}
