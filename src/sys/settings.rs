//! Our own settings, as prctl(2) tells them.

/// PR_GET_SPECULATION_CTRL of PR_SPEC_STORE_BYPASS, PR_SPEC_INDIRECT_BRANCH, PR_SPEC_L1D_FLUSH; 0 where the kernel does not know it.
pub fn speculation() -> [u32; 3] {
    const PR_GET_SPECULATION_CTRL: i32 = 52;
    [0, 1, 2].map(|which| get(PR_GET_SPECULATION_CTRL, which))
}

/// PR_GET_MDWE; 0 before Linux 6.3.
pub fn mdwe() -> u32 {
    const PR_GET_MDWE: i32 = 66;
    get(PR_GET_MDWE, 0)
}

/// A kernel that does not know the command has nothing set.
fn get(command: i32, argument: libc::c_ulong) -> u32 {
    const UNUSED: libc::c_ulong = 0;
    // SAFETY: these commands take and return numbers only.
    let value = unsafe { libc::prctl(command, argument, UNUSED, UNUSED, UNUSED) };
    u32::try_from(value).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_unknown_command_tells_nothing() {
        assert_eq!(get(12345, 0), 0);
        assert!(mdwe() <= 3);
    }
}
