//! What others have stuck on a task: the label of a security module (apparmor(7), selinux(8)), and the login id of the audit system.

use anyhow::{Context, Result};

use super::proc::ProcDir;

/// /proc/PID/attr/current. EINVAL, or no such file, where no security module has labels.
pub fn security_label(task: &ProcDir) -> Result<Vec<u8>> {
    use std::io::Read;
    let mut label = Vec::new();
    let read = match task.open("attr/current") {
        Ok(mut file) => file.read_to_end(&mut label),
        Err(nix::Error::ENOENT) => return Ok(Vec::new()),
        Err(errno) => return Err(errno).context("open attr/current"),
    };
    match read {
        Err(error) if error.raw_os_error() == Some(libc::EINVAL) => return Ok(Vec::new()),
        other => other.context("read attr/current")?,
    };
    // SELinux ends it with a zero, AppArmor with a line break.
    let end = label.iter().rposition(|byte| !matches!(byte, 0 | b'\n'));
    label.truncate(end.map_or(0, |last| last + 1));
    Ok(label)
}

/// No login: AUDIT_UID_UNSET.
pub const NO_LOGIN: u32 = u32::MAX;

/// /proc/PID/loginuid. A kernel without CONFIG_AUDIT has no such file, and no login.
pub fn login_uid(task: &ProcDir) -> Result<u32> {
    match task.read_if_any("loginuid")? {
        Some(text) => {
            let text = String::from_utf8_lossy(&text);
            text.trim().parse().with_context(|| format!("loginuid {text:?}"))
        }
        None => Ok(NO_LOGIN),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn our_own_label_and_login_are_read() {
        let own = ProcDir::by_pid(std::process::id() as i32).unwrap();
        let label = security_label(&own).unwrap();
        assert!(!label.contains(&0) && !label.ends_with(b"\n"));
        login_uid(&own).unwrap();
    }
}
