//! Features of the CPU by which programs choose their code.

use std::fs::File;
use std::io::{self, BufRead, BufReader};

use super::{CPU_FEATURES_LINE, matters};

/// As /proc/cpuinfo calls them, in its order. It shows what the kernel lets programs use.
pub fn cpu_features() -> io::Result<Vec<String>> {
    parse(BufReader::new(File::open("/proc/cpuinfo")?))
}

/// Of the first CPU, and no further: the kernel brings up none that lacks something of it. Without that line it tells of none.
fn parse(cpuinfo: impl BufRead) -> io::Result<Vec<String>> {
    for line in cpuinfo.lines() {
        if let Some((name, features)) = line?.split_once(':')
            && name.trim() == CPU_FEATURES_LINE
        {
            let features = features.split_whitespace().filter(|feature| matters(feature));
            return Ok(features.map(str::to_owned).collect());
        }
    }
    Ok(Vec::new())
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
        let two = format!("processor\t: 0\n{}{}", line(first), line("other"));
        assert_eq!(parse(two.as_bytes()).unwrap(), [first]);
        assert!(parse("processor\t: 0\n".as_bytes()).unwrap().is_empty());
    }
}
