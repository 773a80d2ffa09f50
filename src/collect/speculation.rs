//! Speculation control as /proc/TID/status words it (proc_pid_status(), fs/proc/array.c), so that hardly anybody need be asked.

/// PR_SPEC_STORE_BYPASS, PR_SPEC_INDIRECT_BRANCH, PR_SPEC_L1D_FLUSH.
pub type States<T> = [T; 3];

/// The thread has a say in it: PR_SPEC_PRCTL.
pub const PRCTL: u32 = 1;

/// The state of prctl(PR_GET_SPECULATION_CTRL) that the value of "Speculation_Store_Bypass:" stands for. None where it may be several.
pub fn store_bypass(words: &str) -> Option<u32> {
    Some(match words {
        "not vulnerable" => 0,
        "thread force mitigated" => PRCTL | 8,
        "thread mitigated" => PRCTL | 4,
        "thread vulnerable" => PRCTL | 2,
        "globally mitigated" => 4,
        _ => return None,
    })
}

/// Likewise of "SpeculationIndirectBranch:".
pub fn indirect_branch(words: &str) -> Option<u32> {
    Some(match words {
        "not affected" => 0,
        "conditional force disabled" => PRCTL | 8,
        "conditional disabled" => PRCTL | 4,
        "conditional enabled" => PRCTL | 2,
        "always enabled" => 2,
        "always disabled" => 4,
        _ => return None,
    })
}

/// What need not be asked of a thread: what its file tells, and what is the machine's and not a thread's, by the answers of the first.
pub fn known(told: &States<Option<u32>>, index: usize, first: States<u32>) -> States<Option<u32>> {
    let mut known = *told;
    if index > 0 {
        for (known, first) in known.iter_mut().zip(first) {
            if known.is_none() && first & PRCTL == 0 {
                *known = Some(first);
            }
        }
    }
    known
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_that_may_mean_several_states_are_asked_about() {
        assert_eq!(store_bypass("thread mitigated"), Some(5));
        assert_eq!(store_bypass("vulnerable"), None);
        assert_eq!(indirect_branch("always enabled"), Some(2));
        assert_eq!(indirect_branch("unsupported"), None);
    }

    #[test]
    fn what_no_thread_can_set_is_asked_of_the_first_only() {
        let told = [None, Some(2), None];
        assert_eq!(known(&told, 0, [2, 2, 8]), told);
        assert_eq!(known(&told, 1, [2, 2, 8]), [Some(2), Some(2), Some(8)]);
        assert_eq!(known(&told, 1, [17, 2, 3]), told);
    }
}
