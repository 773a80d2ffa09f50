//! /proc/PID/fdinfo/N (proc_pid_fdinfo(5)).

use anyhow::{Context, Result};

/// The text of one fdinfo file, with the lines that every kind has decoded.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FdInfo {
    /// The offset.
    pub pos: i64,
    /// Access mode, status flags and O_CLOEXEC.
    pub flags: u32,
    pub text: String,
}

impl FdInfo {
    pub fn parse(text: String) -> Result<Self> {
        let pos = value(&text, "pos").context("no pos line")?;
        let pos = pos.parse().with_context(|| format!("pos {pos:?}"))?;
        // Octal, with a leading 0: seq_show(), fs/proc/fd.c.
        let flags = value(&text, "flags").context("no flags line")?;
        let flags = u32::from_str_radix(flags, 8).with_context(|| format!("flags {flags:?}"))?;
        Ok(FdInfo { pos, flags, text })
    }

    pub fn cloexec(&self) -> bool {
        self.flags & libc::O_CLOEXEC.cast_unsigned() != 0
    }

    /// What stands behind `key:` on the first such line.
    pub fn value(&self, key: &str) -> Option<&str> {
        value(&self.text, key)
    }

    /// What stands behind `key:` on each such line.
    pub fn values<'a>(&'a self, key: &'a str) -> impl Iterator<Item = &'a str> {
        self.text
            .lines()
            .filter_map(move |line| Some(line.strip_prefix(key)?.strip_prefix(':')?.trim()))
    }

    /// The number behind `key:`, written in `radix`.
    pub fn number(&self, key: &str, radix: u32) -> Result<u64> {
        let text = self.value(key).with_context(|| format!("fdinfo has no {key} line"))?;
        u64::from_str_radix(text, radix).with_context(|| format!("{key} {text:?} in fdinfo"))
    }
}

fn value<'a>(text: &'a str, key: &str) -> Option<&'a str> {
    text.lines()
        .find_map(|line| Some(line.strip_prefix(key)?.strip_prefix(':')?.trim()))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Linux 6.18: a file with a lock, opened O_RDWR | O_CLOEXEC.
    const LOCKED: &str = "pos:\t4096\nflags:\t02100002\nmnt_id:\t29\nino:\t1443\n\
                          lock:\t1: FLOCK  ADVISORY  WRITE 4127 fe:00:1443 0 EOF\n";

    #[test]
    fn flags_are_octal_and_tell_cloexec() {
        let info = FdInfo::parse(LOCKED.into()).unwrap();
        assert_eq!((info.pos, info.flags, info.cloexec()), (4096, 0o2100002, true));
    }

    #[test]
    fn a_key_is_a_whole_word() {
        let info = FdInfo::parse(LOCKED.into()).unwrap();
        assert_eq!(info.values("lock").count(), 1);
        assert_eq!(info.value("loc"), None);
    }

    #[test]
    fn text_without_a_position_is_an_error() {
        assert!(FdInfo::parse("flags:\t02\n".into()).is_err());
        assert!(FdInfo::parse("pos:\tx\nflags:\t02\n".into()).is_err());
    }
}
