//! Whether thaw has the rights that the program has, and those that it takes to become it. Pure.

use super::Machine;
use crate::image::state::{Credentials, Process};
use crate::refusal::Refusal;
use crate::resurrect::credentials::differ_in_capabilities;

const CAP_SETGID: u64 = 1 << 6;
const CAP_SETUID: u64 = 1 << 7;
const CAP_SETPCAP: u64 = 1 << 8;
const CAP_IPC_LOCK: u64 = 1 << 14;

/// By number (include/uapi/linux/capability.h).
const NAMES: [&str; 41] = [
    "CHOWN",
    "DAC_OVERRIDE",
    "DAC_READ_SEARCH",
    "FOWNER",
    "FSETID",
    "KILL",
    "SETGID",
    "SETUID",
    "SETPCAP",
    "LINUX_IMMUTABLE",
    "NET_BIND_SERVICE",
    "NET_BROADCAST",
    "NET_ADMIN",
    "NET_RAW",
    "IPC_LOCK",
    "IPC_OWNER",
    "SYS_MODULE",
    "SYS_RAWIO",
    "SYS_CHROOT",
    "SYS_PTRACE",
    "SYS_PACCT",
    "SYS_ADMIN",
    "SYS_BOOT",
    "SYS_NICE",
    "SYS_RESOURCE",
    "SYS_TIME",
    "SYS_TTY_CONFIG",
    "MKNOD",
    "LEASE",
    "AUDIT_WRITE",
    "AUDIT_CONTROL",
    "SETFCAP",
    "MAC_OVERRIDE",
    "MAC_ADMIN",
    "SYSLOG",
    "WAKE_ALARM",
    "BLOCK_SUSPEND",
    "AUDIT_READ",
    "PERFMON",
    "BPF",
    "CHECKPOINT_RESTORE",
];

pub fn against(process: &Process, machine: &Machine) -> Vec<Refusal> {
    let own = &machine.credentials;
    let threads = || process.threads.iter().map(|thread| &thread.credentials);
    let refuse = |object: &str, reason: String, remedy: &str| Refusal::new(process.pid, object, reason, remedy);
    let mut refusals = Vec::new();
    let lacking = threads().fold(0, |all, wanted| all | wanted.permitted) & !own.permitted;
    if lacking != 0 {
        let reason = format!("hold what thaw does not: {}", names(lacking));
        refusals.push(refuse(
            "its capabilities",
            reason,
            "run thaw with them, as root perhaps",
        ));
    }
    let needed = threads().fold(0, |all, wanted| all | needs(own, wanted)) & !own.effective;
    if needed != 0 {
        let reason = format!("are others than thaw's, and to set them it needs {}", names(needed));
        refusals.push(refuse("its credentials", reason, "run thaw as root"));
    }
    if own.no_new_privs && !threads().all(|wanted| wanted.no_new_privs) {
        let reason = "was not set, and thaw's cannot be taken back".to_owned();
        refusals.push(refuse("its no_new_privs", reason, "run thaw from a shell without it"));
    }
    refusals.extend(against_locks(process, machine));
    refusals
}

/// What it takes to make `wanted` of our own.
fn needs(own: &Credentials, wanted: &Credentials) -> u64 {
    let needed = [
        (own.uids != wanted.uids, CAP_SETUID),
        (own.gids != wanted.gids || own.groups != wanted.groups, CAP_SETGID),
        (differ_in_capabilities(own, wanted), CAP_SETPCAP),
    ];
    let needed = needed.into_iter().filter(|(differs, _)| *differs);
    needed.fold(0, |all, (_, capability)| all | capability)
}

/// What is carried as far as thaw's own bounding set goes: nobody can add to that.
pub fn note(process: &Process, machine: &Machine) -> Option<String> {
    let wanted = process.threads.iter().map(|thread| thread.credentials.bounding);
    let lost = wanted.fold(0, |all, bounding| all | bounding) & !machine.credentials.bounding;
    let pid = process.pid;
    (lost != 0).then(|| format!("pid {pid}: its bounding set loses what thaw's lacks: {}", names(lost)))
}

pub fn lock_limit(machine: &Machine) -> u64 {
    let own = machine.rlimits.iter().find(|own| own.resource == libc::RLIMIT_MEMLOCK);
    own.map_or(u64::MAX, |own| own.hard)
}

/// mlock(2) is not given back what it was given by a higher limit, or by a capability.
fn against_locks(process: &Process, machine: &Machine) -> Option<Refusal> {
    let locked = process.memory.vmas.iter().filter(|vma| vma.flags.has(b"lo"));
    let locked: u64 = locked.map(|vma| vma.end - vma.start).sum();
    let limit = lock_limit(machine);
    let reason = format!("takes {locked} bytes, and the hard limit RLIMIT_MEMLOCK of thaw is {limit}");
    let remedy = "run thaw with CAP_IPC_LOCK, or from a shell with a higher limit (ulimit -l)";
    let may_lock_more = machine.credentials.effective & CAP_IPC_LOCK != 0;
    (!may_lock_more && locked > limit).then(|| Refusal::new(process.pid, "its locked memory", reason, remedy))
}

fn names(capabilities: u64) -> String {
    let name = |bit: usize| match NAMES.get(bit) {
        Some(name) => format!("CAP_{name}"),
        None => format!("capability {bit}"),
    };
    let set = (0..64).filter(|bit| capabilities & (1 << bit) != 0);
    set.map(name).collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn capabilities_have_their_names() {
        assert_eq!(
            names(1 | 1 << 14 | 1 << 40 | 1 << 41),
            "CAP_CHOWN, CAP_IPC_LOCK, CAP_CHECKPOINT_RESTORE, capability 41"
        );
    }

    #[test]
    fn another_user_takes_the_right_to_become_that() {
        let root = Credentials::default();
        let user = Credentials {
            uids: [1000; 4],
            ..Credentials::default()
        };
        assert_eq!(needs(&root, &root), 0);
        assert_eq!(needs(&root, &user), CAP_SETUID | CAP_SETPCAP);
    }
}
