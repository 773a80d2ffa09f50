//! What belongs to the process as a whole and not to one of its threads.

use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use anyhow::{Context, Result};
use nix::fcntl::{AT_FDCWD, AtFlags};
use nix::sys::stat::fstatat;
use procfs::FromRead;
use procfs::process::Stat;

use super::facts::Place;
use super::proc::ProcDir;
use crate::image::state::{Host, MemoryLayout};

pub fn stat(dir: &ProcDir) -> Result<Stat> {
    Stat::from_read(dir.open("stat").context("open stat")?).context("stat")
}

/// All but `brk`, which no file shows to the byte. Readable for whoever may trace the process: zeros for others.
pub fn layout(stat: &Stat, brk: u64) -> Result<MemoryLayout> {
    let shown = |value: Option<u64>, name| value.with_context(|| format!("stat has no {name}"));
    Ok(MemoryLayout {
        start_code: stat.startcode,
        end_code: stat.endcode,
        start_data: shown(stat.start_data, "start_data")?,
        end_data: shown(stat.end_data, "end_data")?,
        start_brk: shown(stat.start_brk, "start_brk")?,
        brk,
        start_stack: stat.startstack,
        arg_start: shown(stat.arg_start, "arg_start")?,
        arg_end: shown(stat.arg_end, "arg_end")?,
        env_start: shown(stat.env_start, "env_start")?,
        env_end: shown(stat.env_end, "env_end")?,
    })
}

/// A hexadecimal number, as in `personality` and `coredump_filter`.
pub fn hex(dir: &ProcDir, name: &str) -> Result<u32> {
    let text = dir.text(name)?;
    u32::from_str_radix(&text, 16).with_context(|| format!("{name}: {text:?}"))
}

/// A kernel built without core dumps has no such file, and nothing to set.
pub fn coredump_filter(dir: &ProcDir) -> Result<u32> {
    match dir.read_if_any("coredump_filter")? {
        Some(_) => hex(dir, "coredump_filter"),
        None => Ok(0),
    }
}

/// `/autogroup-658 nice 5` (proc_sched_autogroup_show_task(), kernel/sched/autogroup.c). 0 in a kernel without CONFIG_SCHED_AUTOGROUP, and
/// empty for a task that has none.
pub fn autogroup_nice(dir: &ProcDir) -> Result<i32> {
    let text = dir.read_if_any("autogroup")?.unwrap_or_default();
    let text = String::from_utf8_lossy(&text);
    let nice = text.trim().rsplit_once(" nice ").map(|(_, nice)| nice.parse());
    nice.unwrap_or(Ok(0)).with_context(|| format!("autogroup: {text:?}"))
}

pub fn decimal(dir: &ProcDir, name: &str) -> Result<i32> {
    let text = dir.text(name)?;
    text.parse().with_context(|| format!("{name}: {text:?}"))
}

/// `cwd` or `root`, compared with what its path leads to now.
pub fn place(dir: &ProcDir, link: &str) -> Result<Place> {
    let path = dir.link(link)?;
    let actual = dir.stat(link).with_context(|| format!("stat {link}"))?;
    let named = fstatat(
        AT_FDCWD,
        Path::new(std::ffi::OsStr::from_bytes(&path)),
        AtFlags::empty(),
    );
    let is_there = named.is_ok_and(|named| (named.st_dev, named.st_ino) == (actual.st_dev, actual.st_ino));
    Ok(Place { path, is_there })
}

/// This machine; `vdso` is the content of `[vdso]` in the process.
pub fn host(vdso: Vec<u8>) -> Result<Host> {
    let uname = nix::sys::utsname::uname().context("uname")?;
    let boot_id = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").context("read boot_id")?;
    Ok(Host {
        cryopod_version: env!("CARGO_PKG_VERSION").into(),
        hostname: uname.nodename().to_string_lossy().into_owned(),
        kernel_release: uname.release().to_string_lossy().into_owned(),
        boot_id: boot_id.trim().into(),
        vdso,
        cpu_features: crate::arch::cpu_features().context("/proc/cpuinfo")?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn our_own_layout_is_read() {
        let stat = stat(&ProcDir::by_pid(std::process::id() as i32).unwrap()).unwrap();
        let layout = layout(&stat, 7).unwrap();
        assert!(layout.start_code < layout.end_code && layout.arg_start < layout.arg_end);
        assert_eq!(layout.brk, 7);
    }

    #[test]
    fn our_own_places_are_there() {
        let own = ProcDir::by_pid(std::process::id() as i32).unwrap();
        assert_eq!(
            place(&own, "root").unwrap(),
            Place {
                path: b"/".to_vec(),
                is_there: true
            }
        );
        assert!(place(&own, "cwd").unwrap().is_there);
        assert_eq!(hex(&own, "personality").unwrap(), 0);
    }
}
