//! Settings that are not the default, in the words of prctl(2) and its like.

use super::names::printable;
use crate::image::state::{ControlGroup, Dispatch, MemoryPolicy, ProcessSettings, ThreadSettings};

pub fn of_process(settings: &ProcessSettings) -> Vec<String> {
    let mut words = Vec::new();
    let mut add = |is_set: bool, word: &dyn Fn() -> String| words.extend(is_set.then(word));
    add(settings.thp_disable != 0, &|| {
        format!("PR_SET_THP_DISABLE {:#x}", settings.thp_disable)
    });
    add(settings.mdwe != 0, &|| format!("PR_SET_MDWE {:#x}", settings.mdwe));
    add(settings.autogroup_nice != 0, &|| {
        format!("nice {} of its session", settings.autogroup_nice)
    });
    add(settings.memory_merge, &|| "PR_SET_MEMORY_MERGE".into());
    add(settings.membarrier != 0, &|| {
        format!("membarrier {}", membarrier(settings.membarrier))
    });
    words
}

pub fn of_thread(settings: &ThreadSettings) -> Vec<String> {
    const PR_MCE_KILL: [&str; 2] = ["late", "early"];
    const SPECULATION: [&str; 3] = ["store bypass", "indirect branches", "L1D flush"];
    let mut words = Vec::new();
    words.extend((settings.tsc == libc::PR_TSC_SIGSEGV as u32).then(|| "PR_TSC_SIGSEGV".to_owned()));
    words.extend(settings.cpuid_faults.then(|| "CPUID faults".to_owned()));
    words.extend(
        PR_MCE_KILL
            .get(settings.mce_kill as usize)
            .map(|when| format!("PR_MCE_KILL {when}")),
    );
    words.extend(settings.io_flusher.then(|| "PR_SET_IO_FLUSHER".to_owned()));
    let chosen = SPECULATION.iter().zip(settings.speculation);
    words.extend(chosen.filter_map(|(name, state)| speculation(state).map(|state| format!("{name} {state}"))));
    words.extend(
        settings
            .memory_policy
            .as_ref()
            .map(|policy| format!("memory policy {}", self::policy(policy))),
    );
    words.extend(settings.dispatch.map(dispatch));
    words.extend(
        settings
            .control_groups
            .iter()
            .filter(|group| group.path != b"/")
            .map(control_group),
    );
    if !settings.security_label.is_empty() {
        words.push(format!("label {}", printable(&settings.security_label)));
    }
    words.extend((settings.login_uid != u32::MAX).then(|| format!("login of uid {}", settings.login_uid)));
    words.extend((!settings.filters.is_empty()).then(|| format!("{} seccomp filters", settings.filters.len())));
    words
}

fn control_group(group: &ControlGroup) -> String {
    let path = printable(&group.path);
    match group.hierarchy.as_str() {
        "" => format!("control group {path}"),
        hierarchy => format!("control group {path} ({hierarchy})"),
    }
}

/// As numa_maps shows them: `bind=static:0-1,4`.
pub fn policy(policy: &MemoryPolicy) -> String {
    const NAMES: [&str; 7] = [
        "default",
        "prefer",
        "bind",
        "interleave",
        "local",
        "prefer (many)",
        "weighted interleave",
    ];
    /// MPOL_F_STATIC_NODES, MPOL_F_RELATIVE_NODES, MPOL_F_NUMA_BALANCING.
    const FLAGS: [(u32, &str); 3] = [(1 << 15, "static"), (1 << 14, "relative"), (1 << 13, "balancing")];
    let bare = policy.mode & 0x1fff;
    let mut text = NAMES
        .get(bare as usize)
        .map_or_else(|| bare.to_string(), |name| (*name).to_owned());
    let flags: Vec<&str> = FLAGS
        .iter()
        .filter(|(bit, _)| policy.mode & bit != 0)
        .map(|(_, name)| *name)
        .collect();
    if !flags.is_empty() {
        text += &format!("={}", flags.join("|"));
    }
    let is_in = |node: &usize| policy.nodes[node / 8] & (1 << (node % 8)) != 0;
    let nodes: Vec<String> = (0..policy.nodes.len() * 8)
        .filter(is_in)
        .map(|node| node.to_string())
        .collect();
    if !nodes.is_empty() {
        text += &format!(":{}", nodes.join(","));
    }
    text
}

/// Registrations, MEMBARRIER_CMD_REGISTER_*.
fn membarrier(registrations: u32) -> String {
    const NAMES: [(u32, &str); 4] = [
        (1 << 2, "global expedited"),
        (1 << 4, "private expedited"),
        (1 << 6, "private expedited sync-core"),
        (1 << 8, "private expedited rseq"),
    ];
    let known = NAMES.iter().filter(|(bit, _)| registrations & bit != 0);
    known.map(|(_, name)| *name).collect::<Vec<_>>().join(", ")
}

/// None where the thread has no say or let it be.
fn speculation(state: u32) -> Option<&'static str> {
    const PR_SPEC_PRCTL: u32 = 1;
    match state & !PR_SPEC_PRCTL {
        _ if state & PR_SPEC_PRCTL == 0 => None,
        2 => Some("enabled"),
        4 => Some("disabled"),
        8 => Some("disabled by force"),
        16 => Some("disabled until execve"),
        _ => None,
    }
}

fn dispatch(dispatch: Dispatch) -> String {
    let Dispatch {
        mode,
        selector,
        offset,
        len,
    } = dispatch;
    format!("PR_SET_SYSCALL_USER_DISPATCH {mode}, {offset:#x} + {len:#x}, selector {selector:#x}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_policy_reads_as_in_numa_maps() {
        let bound = MemoryPolicy {
            mode: 1 << 15 | 2,
            nodes: vec![0b10001, 1],
        };
        assert_eq!(policy(&bound), "bind=static:0,4,8");
        let local = MemoryPolicy { mode: 4, nodes: vec![] };
        assert_eq!(policy(&local), "local");
    }

    #[test]
    fn defaults_are_not_shown() {
        let default = ThreadSettings {
            mce_kill: 2,
            tsc: 1,
            speculation: [2, 2, 8],
            login_uid: u32::MAX,
            ..ThreadSettings::default()
        };
        assert!(of_thread(&default).is_empty() && of_process(&ProcessSettings::default()).is_empty());
        let chosen = ThreadSettings {
            tsc: 2,
            speculation: [5, 0, 0],
            ..default
        };
        assert_eq!(of_thread(&chosen), ["PR_TSC_SIGSEGV", "store bypass disabled"]);
    }
}
