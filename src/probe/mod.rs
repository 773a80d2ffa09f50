//! What this machine can do: every kernel interface and capability that cryopod uses, tried and not guessed from a version.
#![deny(unsafe_code)]

mod capabilities;
mod interfaces;

use serde::Serialize;

pub use capabilities::Capabilities;

/// One interface, capability or setting.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Finding {
    pub name: &'static str,
    pub kind: Kind,
    pub present: bool,
    /// What was seen: a value, or why it does not work.
    pub detail: String,
    pub needed_for: Need,
    /// What the user misses without it.
    pub without: &'static str,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    Interface,
    Capability,
}

/// What is impossible without it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Need {
    Freeze,
    Thaw,
    Both,
    /// Some programs, or some speed.
    Some,
}

/// All findings of this machine, for the user who asks.
#[derive(Debug, Clone, Serialize)]
pub struct Report {
    pub cryopod: &'static str,
    pub kernel: String,
    pub machine: String,
    /// Whether programs of this user can be frozen here.
    pub freeze: bool,
    /// Whether they can be thawed here.
    pub thaw: bool,
    pub findings: Vec<Finding>,
}

/// Tries everything. Takes a few milliseconds and a few short-lived children.
pub fn probe() -> Report {
    let capabilities = Capabilities::ours();
    let mut findings = interfaces::probe(&capabilities);
    findings.extend(capabilities.findings());
    let system = nix::sys::utsname::uname().ok();
    let name = |part: fn(&nix::sys::utsname::UtsName) -> &std::ffi::OsStr| match &system {
        Some(system) => part(system).to_string_lossy().into_owned(),
        None => "unknown".to_owned(),
    };
    Report {
        cryopod: env!("CARGO_PKG_VERSION"),
        kernel: name(|system| system.release()),
        machine: name(|system| system.machine()),
        freeze: nothing_missing(&findings, Need::Freeze),
        thaw: nothing_missing(&findings, Need::Thaw),
        findings,
    }
}

fn nothing_missing(findings: &[Finding], what: Need) -> bool {
    let needed = |finding: &&Finding| finding.needed_for == what || finding.needed_for == Need::Both;
    findings.iter().filter(needed).all(|finding| finding.present)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn finding(needed_for: Need, present: bool) -> Finding {
        Finding {
            name: "x",
            kind: Kind::Interface,
            present,
            detail: String::new(),
            needed_for,
            without: "",
        }
    }

    #[test]
    fn what_only_some_programs_need_stops_nothing() {
        let findings = [
            finding(Need::Some, false),
            finding(Need::Freeze, true),
            finding(Need::Thaw, false),
        ];
        assert!(nothing_missing(&findings, Need::Freeze));
        assert!(!nothing_missing(&findings, Need::Thaw));
    }

    #[test]
    fn every_finding_says_what_it_costs() {
        for finding in probe().findings {
            assert!(!finding.without.is_empty(), "{finding:?}");
            assert!(finding.present || !finding.detail.is_empty(), "{finding:?}");
        }
    }
}
