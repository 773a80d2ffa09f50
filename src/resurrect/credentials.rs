//! credentials(7) and capabilities(7) of one thread, set by the thread itself with raw system calls (libc's would set all).
#![deny(unsafe_code)]

use anyhow::{Result, ensure};

use super::script::Script;
use crate::image::state::Credentials;

const CAP_SETPCAP: u64 = 1 << 8;
/// CAP_LAST_CAP may grow: the kernel refuses numbers above its own with EINVAL.
const LAST_CAP: u32 = 63;
/// setfsuid(2) takes no -1: an id that changes nothing.
const NO_CHANGE: i32 = -1;
const CAPABILITY_VERSION_3: u32 = 0x2008_0522;
/// SECBIT_NO_SETUID_FIXUP: changing ids leaves the capabilities alone.
const SECBIT_NO_SETUID_FIXUP: u32 = 1 << 2;

/// Makes `wanted` of what the thread has, `current`. Nothing is called where nothing differs.
///
/// The order is the kernel's: dropping from the bounding set needs CAP_SETPCAP; ids change with the fix-up off, so that the
/// capabilities survive it; the ambient set needs the inheritable one; the final capset comes last, no_new_privs after it.
pub fn set(script: &mut Script<'_>, current: &Credentials, wanted: &Credentials) -> Result<()> {
    if current == wanted {
        return Ok(());
    }
    let privileged = differ_in_capabilities(current, wanted);
    if privileged {
        let fixup_off = wanted.securebits | SECBIT_NO_SETUID_FIXUP;
        script.prctl(
            "PR_SET_SECUREBITS",
            libc::PR_SET_SECUREBITS,
            &[(fixup_off & !0b1010_1010).into()],
        )?;
    }
    for cap in 0..=LAST_CAP {
        if current.bounding & !wanted.bounding & (1 << cap) != 0 {
            script.prctl("PR_CAPBSET_DROP", libc::PR_CAPBSET_DROP, &[cap.into()])?;
        }
    }
    set_ids(script, current, wanted)?;
    if privileged {
        let keep = CAP_SETPCAP & current.permitted;
        capset(
            script,
            wanted.inheritable,
            wanted.permitted | keep,
            wanted.effective | keep,
        )?;
        set_ambient(script, current, wanted)?;
        script.prctl(
            "PR_SET_SECUREBITS",
            libc::PR_SET_SECUREBITS,
            &[wanted.securebits.into()],
        )?;
        capset(script, wanted.inheritable, wanted.permitted, wanted.effective)?;
    }
    if wanted.no_new_privs && !current.no_new_privs {
        script.prctl("PR_SET_NO_NEW_PRIVS", libc::PR_SET_NO_NEW_PRIVS, &[1.into()])?;
    }
    ensure!(
        wanted.no_new_privs || !current.no_new_privs,
        "thaw runs with no_new_privs, which the program did not have"
    );
    Ok(())
}

pub fn differ_in_capabilities(a: &Credentials, b: &Credentials) -> bool {
    let sets = |c: &Credentials| {
        (
            c.inheritable,
            c.permitted,
            c.effective,
            c.bounding,
            c.ambient,
            c.securebits,
        )
    };
    // Leaving uid 0 would drop capabilities, entering it would raise them: both only with the fix-up off.
    sets(a) != sets(b) || a.uids != b.uids
}

fn set_ids(script: &mut Script<'_>, current: &Credentials, wanted: &Credentials) -> Result<()> {
    if current.groups != wanted.groups {
        let groups: Vec<u8> = wanted.groups.iter().flat_map(|group| group.to_ne_bytes()).collect();
        let count = wanted.groups.len() as u64;
        script.call(
            "setgroups",
            libc::SYS_setgroups,
            [count.into(), groups.as_slice().into()],
        )?;
    }
    if current.gids != wanted.gids {
        let [real, effective, saved, fs] = wanted.gids;
        script.call(
            "setresgid",
            libc::SYS_setresgid,
            [real.into(), effective.into(), saved.into()],
        )?;
        script.call("setfsgid", libc::SYS_setfsgid, [fs.into()])?;
        check_fs_id(script, "setfsgid", libc::SYS_setfsgid, fs)?;
    }
    if current.uids != wanted.uids {
        let [real, effective, saved, fs] = wanted.uids;
        script.call(
            "setresuid",
            libc::SYS_setresuid,
            [real.into(), effective.into(), saved.into()],
        )?;
        script.call("setfsuid", libc::SYS_setfsuid, [fs.into()])?;
        check_fs_id(script, "setfsuid", libc::SYS_setfsuid, fs)?;
    }
    Ok(())
}

/// setfsuid(2) and setfsgid(2) return the previous id and never fail: a second call shows whether the first did anything.
fn check_fs_id(script: &mut Script<'_>, name: &'static str, number: i64, wanted: u32) -> Result<()> {
    let actual = script.ask(name, number, [NO_CHANGE.into()])?;
    ensure!(actual == u64::from(wanted), "{name}({wanted}) was not allowed");
    Ok(())
}

fn set_ambient(script: &mut Script<'_>, current: &Credentials, wanted: &Credentials) -> Result<()> {
    for cap in 0..=LAST_CAP {
        let (has, wants) = (current.ambient & (1 << cap) != 0, wanted.ambient & (1 << cap) != 0);
        let change = match (has, wants) {
            (_, true) => libc::PR_CAP_AMBIENT_RAISE,
            (true, false) => libc::PR_CAP_AMBIENT_LOWER,
            (false, false) => continue,
        };
        script.prctl("PR_CAP_AMBIENT", libc::PR_CAP_AMBIENT, &[change.into(), cap.into()])?;
    }
    Ok(())
}

/// capset(2), version 3: two 32-bit halves of (effective, permitted, inheritable).
fn capset(script: &mut Script<'_>, inheritable: u64, permitted: u64, effective: u64) -> Result<()> {
    let mut header = CAPABILITY_VERSION_3.to_ne_bytes().to_vec();
    header.extend(0i32.to_ne_bytes());
    let half = |shift: u32| [effective, permitted, inheritable].map(|set| (set >> shift) as u32);
    let data: Vec<u8> = half(0).into_iter().chain(half(32)).flat_map(u32::to_ne_bytes).collect();
    script.call(
        "capset",
        libc::SYS_capset,
        [header.as_slice().into(), data.as_slice().into()],
    )
}
