//! How many descriptors cryopod itself may have open at a time: a thaw makes all descriptions of an image in its own table.

use anyhow::{Context, Result};
use nix::sys::resource::{Resource, getrlimit, setrlimit};

/// For whatever else is open: the image, the terminal, helpers.
const OTHERS: u64 = 64;

/// Raises the soft limit to the hard one, which needs no privilege (getrlimit(2)), and returns it.
pub fn raise() -> Result<u64> {
    let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE).context("getrlimit RLIMIT_NOFILE")?;
    if soft < hard {
        setrlimit(Resource::RLIMIT_NOFILE, hard, hard).context("setrlimit RLIMIT_NOFILE")?;
    }
    Ok(hard)
}

/// Whether so many descriptors of an image have room below the hard limit; the reason where they have not.
pub fn refusal(wanted: usize) -> Result<Option<String>> {
    let hard = raise()?;
    let wanted = u64::try_from(wanted).context("a count")?.saturating_add(OTHERS);
    let reason = || format!("needs {wanted} descriptors at a time, and the hard limit of thaw is {hard}");
    Ok((wanted > hard).then(reason))
}
