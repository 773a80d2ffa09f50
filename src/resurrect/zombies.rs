//! Processes that have ended, and whose parents can still ask how (wait(2)): made like others, and ended the same way.

use anyhow::{Context, Result, bail};

use super::finish::{set_action, set_limit};
use super::maker::{Maker, drop_without_detaching};
use super::process::sigmask_bit;
use super::script::Script;
use super::spawn::call_in_stub;
use super::stage::Stage;
use crate::image::state::{SignalAction, Zombie};
use crate::tracer::{Error, Resume, Stop, Stopped};

/// Ends one that was made for that. Nobody gets a signal for it: what was still pending is part of the image.
pub(super) fn end_one(maker: &mut Maker<'_>, zombie: &Zombie) -> Result<()> {
    let stage = maker.stage();
    if let Ok(parent) = maker.task(zombie.ppid) {
        // A parent that ignores SIGCHLD has no zombies.
        let mut script = Script::new(&stage, parent);
        set_action(
            &mut script,
            &SignalAction {
                signal: libc::SIGCHLD,
                ..SignalAction::default()
            },
        )?;
        script.run()?;
    }
    let mut stub = maker.remove(zombie.pid).context("no step has made it")?;
    let gone = die(zombie, &mut stub, &stage);
    drop_without_detaching(Some(stub));
    gone?;
    maker.brood.forget(zombie.pid);
    match maker.task(zombie.ppid) {
        Ok(parent) if zombie.exit_signal > 0 => forget_signal(&mut Script::new(&stage, parent), zombie.exit_signal),
        _ => Ok(()),
    }
}

fn die(zombie: &Zombie, stub: &mut Stopped, stage: &Stage) -> Result<()> {
    prepare(Script::new(stage, stub), zombie)?;
    let gone = match libc::WIFSIGNALED(zombie.status) {
        true => end_by_signal(stub, libc::WTERMSIG(zombie.status)),
        false => {
            let code = libc::WEXITSTATUS(zombie.status) as u64;
            let args = [code, 0, 0, 0, 0, 0];
            call_in_stub(stub, stage.entry(), "exit_group", libc::SYS_exit_group, args).map(drop)
        }
    };
    match gone {
        Err(error) if matches!(error.downcast_ref(), Some(Error::Gone(_))) => Ok(()),
        Err(error) => Err(error),
        Ok(()) => bail!("it goes on"),
    }
}

/// What can still be seen of it: its name and its user. No core is dumped once more.
fn prepare(mut script: Script<'_>, zombie: &Zombie) -> Result<()> {
    let name: Vec<u8> = zombie.name.iter().copied().take(15).chain([0]).collect();
    script.prctl("PR_SET_NAME", libc::PR_SET_NAME, &[name.as_slice().into()])?;
    set_limit(&mut script, libc::RLIMIT_CORE, 0, 0)?;
    if zombie.uid != nix::unistd::getuid().as_raw() {
        let uid = zombie.uid;
        script.call("setresuid", libc::SYS_setresuid, [uid.into(), uid.into(), uid.into()])?;
    }
    script.run()
}

/// Its signals have their default actions, as in any program that was just executed, unless they were ignored.
fn end_by_signal(stub: &mut Stopped, signal: i32) -> Result<()> {
    if signal == libc::SIGKILL {
        nix::sys::signal::kill(stub.tid(), nix::sys::signal::SIGKILL).context("kill")?;
        return stub.wait().map(drop).map_err(Into::into);
    }
    stub.set_sigmask(0)?;
    // In the stop of a signal, that of its trap, another one may be put in its place (ptrace(2)).
    match stub.resume_and_wait(Resume::Continue, signal)? {
        Stop::Signal(_) | Stop::Interrupted { .. } => bail!("signal {signal} does not end it"),
        _ => Ok(()),
    }
}

/// Takes back the signal that the end of a child has sent.
pub fn forget_signal(script: &mut Script<'_>, signal: i32) -> Result<()> {
    let mask = sigmask_bit(signal).to_ne_bytes();
    let args = [
        mask.as_slice().into(),
        0u64.into(),
        [0u8; 16].as_slice().into(),
        8u64.into(),
    ];
    // There is none where the child sent none.
    script
        .try_ask("rt_sigtimedwait", libc::SYS_rt_sigtimedwait, args)
        .map(drop)
}
