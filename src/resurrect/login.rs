//! The login id of the audit system (/proc/PID/loginuid), which only the task itself may write (proc_loginuid_write(), fs/proc/base.c).
#![deny(unsafe_code)]

use anyhow::{Context, Result};

use super::process::Rebuilt;
use super::script::Script;

impl Rebuilt<'_> {
    /// Before there are threads, which take it over, and before the program has its own root directory. A note says what was not
    /// allowed: another id once there is one takes CAP_AUDIT_CONTROL (audit_set_loginuid_perm(), kernel/auditsc.c).
    pub fn set_login(&mut self) -> Result<Vec<String>> {
        let process = self.parts.process;
        let own = self.parts.inherited.settings.login_uid;
        let first = process.threads.first().context("a process without threads")?;
        let wanted = first.settings.login_uid;
        let mut notes = Vec::new();
        if wanted != own
            && let Err(errno) = self.write_login(wanted)?
        {
            let (pid, was, is) = (process.pid, shown(wanted), shown(own));
            notes.push(format!(
                "the login id of pid {pid} was {was} and is {is}, that of thaw: {}",
                errno.desc()
            ));
        }
        Ok(notes)
    }

    fn write_login(&mut self, uid: u32) -> Result<std::result::Result<(), nix::Error>> {
        let text = uid.to_string();
        let mut script = Script::new(&self.stage, &mut self.tasks[0]);
        let args = [
            libc::AT_FDCWD.into(),
            b"/proc/self/loginuid\0".as_slice().into(),
            libc::O_WRONLY.into(),
        ];
        let fd = match script.try_ask("openat", libc::SYS_openat, args)? {
            Ok(fd) => fd,
            Err(errno) => return Ok(Err(errno)),
        };
        let args = [fd.into(), text.as_bytes().into(), (text.len() as u64).into()];
        let written = script.try_ask("write", libc::SYS_write, args)?;
        script.call("close", libc::SYS_close, [fd.into()])?;
        script.run()?;
        Ok(written.map(drop))
    }
}

fn shown(login: u32) -> String {
    match login {
        u32::MAX => "unset".into(),
        uid => uid.to_string(),
    }
}
