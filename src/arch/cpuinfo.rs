//! Features of the CPU by which programs choose their code.

use std::fs;
use std::io;

use super::{CPU_FEATURES_LINE, matters};

/// As /proc/cpuinfo calls them, in its order. It shows what the kernel lets programs use.
pub fn cpu_features() -> io::Result<Vec<String>> {
    Ok(parse(&fs::read_to_string("/proc/cpuinfo")?))
}

/// Of the first CPU: the kernel brings up none that lacks something of it.
fn parse(cpuinfo: &str) -> Vec<String> {
    let line = cpuinfo.lines().find_map(|line| {
        let (name, features) = line.split_once(':')?;
        (name.trim() == CPU_FEATURES_LINE).then_some(features)
    });
    let features = line.unwrap_or_default().split_whitespace();
    features.filter(|feature| matters(feature)).map(str::to_owned).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn features_are_those_of_the_first_cpu() {
        let own = cpu_features().unwrap();
        assert!(!own.is_empty() && own.iter().all(|feature| matters(feature)));
        let line = |features: &str| format!("{CPU_FEATURES_LINE}\t: {features}\n");
        let first = own[0].as_str();
        assert_eq!(
            parse(&format!("processor\t: 0\n{}{}", line(first), line("other"))),
            [first]
        );
        assert!(parse("processor\t: 0\n").is_empty());
    }
}
