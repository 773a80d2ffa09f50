//! Settings (`crate::image::state`) that this machine, or thaw itself, does not allow.

use super::Machine;
use crate::image::state::MemoryPolicy;
use crate::image::state::{Process, Snapshot};
use crate::refusal::Refusal;

/// What thaw finds about itself and the machine.
#[derive(Debug, Clone, Default)]
pub struct Surroundings {
    /// prctl(PR_GET_SPECULATION_CTRL) of thaw.
    pub speculation: [u32; 3],
    /// Memory nodes that are online: node N is bit N % 8 of byte N / 8.
    pub nodes: Vec<u8>,
    /// prctl(PR_GET_MDWE) of thaw.
    pub mdwe: u32,
    /// prctl(PR_SET_IO_FLUSHER) of thaw.
    pub io_flusher: bool,
    /// Of a security module: /proc/self/attr/current.
    pub label: Vec<u8>,
    /// CAP_SYS_ADMIN.
    pub is_admin: bool,
    /// Thaw is under a filter of seccomp(2).
    pub is_filtered: bool,
}

impl Surroundings {
    /// What is not in the way, but different.
    pub fn warning(&self, snapshot: &Snapshot) -> Option<String> {
        let pid = snapshot.processes.first()?.pid;
        self.is_filtered
            .then(|| format!("pid {pid} comes under the seccomp filter that thaw itself is under"))
    }
}

const SPECULATION: [&str; 3] = ["store bypass", "indirect branches", "flushing the L1 data cache"];
const PR_SPEC_PRCTL: u32 = 1;
const PR_SPEC_ENABLE: u32 = 2;
const PR_SPEC_FORCE_DISABLE: u32 = 8;

pub fn against(process: &Process, machine: &Machine) -> Vec<Refusal> {
    let mut refusals = Vec::new();
    refusals.extend(against_mdwe(process, machine));
    refusals.extend(against_io_flusher(process, machine));
    refusals.extend(against_filters(process, machine));
    refusals.extend(against_label(process, machine));
    refusals.extend(against_policies(process, machine));
    refusals.extend((0..SPECULATION.len()).filter_map(|which| against_speculation(process, machine, which)));
    refusals
}

/// It is inherited, also through execve(2), unless PR_MDWE_NO_INHERIT was said, and cannot be taken back.
fn against_mdwe(process: &Process, machine: &Machine) -> Option<Refusal> {
    const PR_MDWE_NO_INHERIT: u32 = 2;
    let own = machine.surroundings.mdwe;
    let passed_on = own != 0 && own & PR_MDWE_NO_INHERIT == 0 && process.settings.mdwe == 0;
    let reason = "would be denied to it by what thaw denies itself (PR_SET_MDWE, MemoryDenyWriteExecute= of systemd)";
    let remedy = "run thaw from another shell or service";
    passed_on.then(|| Refusal::new(process.pid, "writable code", reason, remedy))
}

fn against_io_flusher(process: &Process, machine: &Machine) -> Option<Refusal> {
    let own = machine.surroundings.io_flusher;
    let differs = |flag: bool| flag != own && !machine.can_raise_limits;
    let thread = process
        .threads
        .iter()
        .find(|thread| differs(thread.settings.io_flusher))?;
    let object = format!("thread {}", thread.tid);
    let reason = match thread.settings.io_flusher {
        true => "was an I/O flusher (PR_SET_IO_FLUSHER), and to become one takes CAP_SYS_RESOURCE",
        false => "was no I/O flusher, thaw is one (PR_SET_IO_FLUSHER), and to be none takes CAP_SYS_RESOURCE",
    };
    Some(Refusal::new(
        process.pid,
        object,
        reason,
        "run thaw with CAP_SYS_RESOURCE",
    ))
}

/// PTRACE_O_SUSPEND_SECCOMP (ptrace_setoptions(), kernel/ptrace.c), without which filters forbid what a thaw does.
fn against_filters(process: &Process, machine: &Machine) -> Option<Refusal> {
    let can = machine.surroundings.is_admin && !machine.surroundings.is_filtered;
    let needed = !process.settings.filters.is_empty();
    let reason = "can only be put in place with CAP_SYS_ADMIN, and by a thaw that is under none itself";
    let remedy = "run thaw as root, outside of any sandbox";
    (needed && !can).then(|| Refusal::new(process.pid, "its seccomp filters", reason, remedy))
}

/// Never thawed unconfined, or under somebody else's rules, in silence: a program has the label of whoever thaws it.
fn against_label(process: &Process, machine: &Machine) -> Option<Refusal> {
    let own = &machine.surroundings.label;
    let differs = |thread: &&crate::image::state::Thread| thread.settings.security_label != *own;
    let thread = process.threads.iter().find(differs)?;
    let shown = |label: &[u8]| match label {
        [] => "none".to_owned(),
        label => String::from_utf8_lossy(label).into_owned(),
    };
    let object = format!(
        "the security label of thread {}, {},",
        thread.tid,
        shown(&thread.settings.security_label)
    );
    let reason = format!("is not that of thaw, {}, which the program would get", shown(own));
    let remedy = "run thaw under that label (runcon(1) of SELinux, aa-exec(1) of AppArmor)";
    Some(Refusal::new(process.pid, object, reason, remedy))
}

/// One speaks for all.
fn against_policies(process: &Process, machine: &Machine) -> Option<Refusal> {
    let of_threads = process
        .threads
        .iter()
        .filter_map(|thread| thread.settings.memory_policy.as_ref());
    let of_mappings = process.memory.vmas.iter().filter_map(|vma| vma.policy.as_ref());
    let node = of_threads
        .chain(of_mappings)
        .find_map(|policy| missing_node(policy, &machine.surroundings.nodes))?;
    let reason = format!("names memory node {node} (set_mempolicy(2), mbind(2)), which this machine does not have");
    let remedy = "thaw it on a machine with as many nodes";
    Some(Refusal::new(process.pid, "its memory policy", reason, remedy))
}

fn missing_node(policy: &MemoryPolicy, online: &[u8]) -> Option<usize> {
    (0..policy.nodes.len() * 8).find(|node| has(&policy.nodes, *node) && !has(online, *node))
}

fn has(mask: &[u8], bit: usize) -> bool {
    mask.get(bit / 8).is_some_and(|byte| byte & (1 << (bit % 8)) != 0)
}

/// A thread that chose must be able to choose here, unless what it chose is what everybody has here.
fn against_speculation(process: &Process, machine: &Machine, which: usize) -> Option<Refusal> {
    let own = machine.surroundings.speculation[which];
    let is_possible = |wanted: u32| {
        let forced = own & PR_SPEC_FORCE_DISABLE != 0 && wanted & PR_SPEC_FORCE_DISABLE == 0;
        own & PR_SPEC_PRCTL != 0 && !forced
    };
    let matters = |wanted: u32| {
        let default_here = own & PR_SPEC_PRCTL == 0 && wanted & PR_SPEC_ENABLE != 0;
        wanted & PR_SPEC_PRCTL != 0 && !default_here
    };
    let wanted = |thread: &&crate::image::state::Thread| {
        let wanted = thread.settings.speculation[which];
        matters(wanted) && !is_possible(wanted)
    };
    let thread = process.threads.iter().find(wanted)?;
    let object = format!("speculation control ({}) of thread {}", SPECULATION[which], thread.tid);
    let reason = "cannot be set as it was on this machine, or under this thaw (PR_SET_SPECULATION_CTRL)";
    Some(Refusal::new(
        process.pid,
        object,
        reason,
        "thaw it on a machine with the same mitigations",
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_node_that_is_not_there_is_named() {
        let policy = |nodes: &[u8]| MemoryPolicy {
            mode: 2,
            nodes: nodes.to_vec(),
        };
        assert_eq!(missing_node(&policy(&[0b11]), &[0b1]), Some(1));
        assert_eq!(missing_node(&policy(&[1]), &[1]), None);
        assert_eq!(missing_node(&policy(&[0, 1]), &[1]), Some(8));
        assert_eq!(missing_node(&policy(&[]), &[]), None);
    }
}
