//! Resource limits from /proc/PID/limits, which needs no privilege where prlimit(2) would.

use anyhow::{Context, Result, bail};

use super::proc::ProcDir;
use crate::image::state::Rlimit;

/// The names that fs/proc/base.c gives the limits, by RLIMIT_* number, which all Linux architectures of ours share.
const NAMES: [&str; 16] = [
    "Max cpu time",
    "Max file size",
    "Max data size",
    "Max stack size",
    "Max core file size",
    "Max resident set",
    "Max processes",
    "Max open files",
    "Max locked memory",
    "Max address space",
    "Max file locks",
    "Max pending signals",
    "Max msgqueue size",
    "Max nice priority",
    "Max realtime priority",
    "Max realtime timeout",
];

pub fn limits(dir: &ProcDir) -> Result<Vec<Rlimit>> {
    parse(&dir.text("limits")?).context("limits")
}

fn parse(text: &str) -> Result<Vec<Rlimit>> {
    let limits: Vec<Rlimit> = text.lines().skip(1).map(line).collect::<Result<_>>()?;
    if limits.len() < NAMES.len() {
        bail!("{} limits, not {}", limits.len(), NAMES.len());
    }
    Ok(limits)
}

fn line(line: &str) -> Result<Rlimit> {
    let resource = NAMES.iter().position(|name| line.starts_with(name));
    let resource = resource.with_context(|| format!("{line:?} is no limit that cryopod knows"))?;
    let mut values = line[NAMES[resource].len()..].split_whitespace();
    let mut value = || values.next().with_context(|| format!("line {line:?}")).and_then(number);
    Ok(Rlimit {
        resource: resource as u32,
        soft: value()?,
        hard: value()?,
    })
}

fn number(text: &str) -> Result<u64> {
    Ok(if text == "unlimited" {
        libc::RLIM_INFINITY
    } else {
        text.parse()?
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn our_own_limits_are_as_getrlimit_shows_them() {
        let limits = limits(&ProcDir::by_pid(std::process::id() as i32).unwrap()).unwrap();
        let own = nix::sys::resource::getrlimit(nix::sys::resource::Resource::RLIMIT_NOFILE).unwrap();
        let files = limits
            .iter()
            .find(|limit| limit.resource == libc::RLIMIT_NOFILE)
            .unwrap();
        assert_eq!((files.soft, files.hard), own);
        assert_eq!(limits.len(), 16);
    }

    #[test]
    fn unlimited_is_infinity() {
        // Linux 6.18.
        let limit = line("Max stack size            8388608              unlimited            bytes     ").unwrap();
        assert_eq!(
            limit,
            Rlimit {
                resource: 3,
                soft: 8 << 20,
                hard: libc::RLIM_INFINITY
            }
        );
    }
}
