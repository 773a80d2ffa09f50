//! Which mappings may have a memory policy of their own (mbind(2)): the process is asked about these.

use anyhow::Context;

use super::proc::ProcDir;

/// numa_maps looks at every page: some 5 ms for 1 GiB of small pages, where a question costs 10 µs.
const PAGES_PER_QUESTION: u64 = 500;
/// So many pages are looked at faster than maps is read to count the mappings.
const FEW_PAGES: u64 = 8192;
/// Two microseconds each is what numa_maps takes at least.
const MANY_MAPPINGS: usize = 5000;

/// Where mappings begin that are to be asked about, or a note for people that none are.
pub type Candidates = Result<Vec<u64>, String>;

/// What numa_maps shows is the thread's policy where a mapping has none (show_numa_map(), fs/proc/task_mmu.c), and not to the letter what
/// was set; so it only tells whom to ask. Where reading it would take longer than asking about each mapping, all are asked about; and
/// where there are very many, on a machine of one node, on which no policy has an effect, none.
pub fn candidates(dir: &ProcDir) -> anyhow::Result<Candidates> {
    let resident = resident_pages(&dir.text("statm")?).context("statm")?;
    if resident > FEW_PAGES {
        let maps = dir.text("maps")?;
        let all = maps.lines().filter(|line| !is_kernels(line)).map(address);
        let all = all.collect::<anyhow::Result<Vec<u64>>>().context("maps")?;
        if all.len() > MANY_MAPPINGS && has_one_node() {
            let count = all.len();
            return Ok(Err(format!(
                "memory policies (mbind(2)) of its {count} mappings are not carried: this machine has one node, where they have no effect"
            )));
        }
        if resident > all.len() as u64 * PAGES_PER_QUESTION {
            return Ok(Ok(all));
        }
    }
    // Without CONFIG_NUMA there is no such file, and no policy.
    let text = dir.read_if_any("numa_maps")?.unwrap_or_default();
    with_policy(&String::from_utf8_lossy(&text))
        .context("numa_maps")
        .map(Ok)
}

fn has_one_node() -> bool {
    let nodes = std::fs::read_to_string("/sys/devices/system/node/online").unwrap_or_default();
    matches!(nodes.trim(), "" | "0")
}

/// `[vdso]` and the like have none, and `[vsyscall]` is no mapping.
fn is_kernels(line: &str) -> bool {
    line.ends_with(']') && line.rsplit_once(" [v").is_some()
}

fn address(line: &str) -> anyhow::Result<u64> {
    let end = line.find(['-', ' ']).with_context(|| format!("line {line:?}"))?;
    u64::from_str_radix(&line[..end], 16).with_context(|| format!("line {line:?}"))
}

/// The second number of /proc/PID/statm (proc_pid_statm(5)), in pages of the kernel.
fn resident_pages(statm: &str) -> Option<u64> {
    statm.split(' ').nth(1)?.parse().ok()
}

/// `7f6a4f1f4000 bind:1 anon=3 dirty=3 …`
fn with_policy(numa_maps: &str) -> anyhow::Result<Vec<u64>> {
    let has_policy = |line: &&str| line.split(' ').nth(1).is_some_and(|policy| policy != "default");
    numa_maps.lines().filter(has_policy).map(address).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mapping_with_a_policy_is_asked_about() {
        // Linux 6.18.
        let text = "5633c8fc5000 default file=/usr/bin/cat mapped=2 N0=2 kernelpagesize_kB=4\n\
            7f6a4f1f4000 bind:1 anon=3 dirty=3 N1=3 kernelpagesize_kB=4\n";
        assert_eq!(with_policy(text).unwrap(), [0x7f6a_4f1f_4000]);
    }

    #[test]
    fn mappings_of_the_kernel_are_left_out() {
        assert!(is_kernels(
            "7fff5d1fe000-7fff5d200000 r-xp 00000000 00:00 0                          [vdso]"
        ));
        assert!(!is_kernels(
            "7fff5d1b9000-7fff5d1da000 rw-p 00000000 00:00 0                          [stack]"
        ));
        assert!(!is_kernels("7fff5d1b9000-7fff5d1da000 rw-p 00000000 00:00 0"));
    }
}
