//! System calls that no library of ours wraps safely: one wrapper each.

/// Whether the kernel gave this process rights by its executable: set-user-ID, set-group-ID, file capabilities.
pub fn at_secure() -> bool {
    // SAFETY: getauxval(3) only reads the auxiliary vector.
    unsafe { libc::getauxval(libc::AT_SECURE) != 0 }
}
