//! `cryopod check`: what this machine can do, and what each missing thing costs.

use super::style::{Colour, Style};
use crate::probe::{Finding, Kind, Need, Report, probe};
use anyhow::Result;
use std::io::Write;
use std::process::ExitCode;

/// Shows what this machine has of what cryopod uses, and what each missing thing costs
///
/// Every kernel interface and capability is really tried, for the user who runs this. Ends with 0 when programs can be
/// frozen and thawed here, else with 1.
#[derive(clap::Args, Debug)]
pub struct Args {
    /// Print JSON
    #[arg(long)]
    json: bool,
}

pub fn run(args: &Args) -> Result<ExitCode> {
    let report = probe();
    let mut out = std::io::stdout().lock();
    if args.json {
        serde_json::to_writer_pretty(&mut out, &report)?;
        writeln!(out)?;
    } else {
        out.write_all(table(&report, Style::of_stdout()).as_bytes())?;
    }
    Ok(match report.freeze && report.thaw {
        true => ExitCode::SUCCESS,
        false => ExitCode::FAILURE,
    })
}

fn table(report: &Report, style: Style) -> String {
    let mut text = format!(
        "cryopod {} on Linux {} {}\n",
        report.cryopod, report.kernel, report.machine
    );
    let width = report
        .findings
        .iter()
        .map(|finding| finding.name.len())
        .max()
        .unwrap_or(0);
    for (kind, title) in [
        (Kind::Interface, "Kernel interfaces"),
        (Kind::Capability, "Capabilities"),
    ] {
        text += &format!("\n{}\n", style.bold(title));
        for finding in report.findings.iter().filter(|finding| finding.kind == kind) {
            text += &line(finding, width, style);
        }
    }
    text.push('\n');
    for (what, possible) in [("Freezing", report.freeze), ("Thawing", report.thaw)] {
        let verdict = match possible {
            true => style.paint(Colour::Green, "is possible here"),
            false => style.paint(Colour::Red, "is not possible here, see above"),
        };
        text += &format!("{what} {verdict}.\n");
    }
    text
}

fn line(finding: &Finding, width: usize, style: Style) -> String {
    let needed = finding.needed_for != Need::Some;
    let mark = match (finding.present, needed) {
        (true, _) => style.paint(Colour::Green, "yes"),
        (false, true) => style.paint(Colour::Red, "NO "),
        (false, false) => style.paint(Colour::Yellow, "no "),
    };
    let mut line = format!("  {mark}  {:width$}  {}\n", finding.name, finding.detail);
    if !finding.present {
        line += &format!("       {:width$}  without it, {}\n", "", finding.without);
    }
    line
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report(present: bool) -> Report {
        Report {
            cryopod: "0.1.0",
            kernel: "6.18.0".to_owned(),
            machine: "x86_64".to_owned(),
            freeze: true,
            thaw: present,
            findings: vec![Finding {
                name: "clone3 with set_tid",
                kind: Kind::Interface,
                present,
                detail: "works".to_owned(),
                needed_for: Need::Thaw,
                without: "pids cannot be given back",
            }],
        }
    }

    #[test]
    fn what_is_missing_says_what_it_costs() {
        let missing = table(&report(false), Style::plain());
        assert!(missing.contains("NO   clone3 with set_tid"), "{missing}");
        assert!(missing.contains("without it, pids cannot be given back"));
        assert!(missing.contains("Thawing is not possible here"));
        assert!(!table(&report(true), Style::plain()).contains("without it"));
    }
}
