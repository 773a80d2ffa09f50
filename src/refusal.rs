//! What cannot be carried, and what can be done about it. A refusal is decided before anything is changed.
#![deny(unsafe_code)]

use std::fmt;

/// One thing that stands against a freeze or a thaw: which process, which object, why, and the way out.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refusal {
    pub pid: i32,
    /// What it is about, as the user knows it: `fd 9`, `mapping 7f00…-7f10… of /dev/dri/card0`, `child 4130`.
    pub object: String,
    /// The reason, a clause: `is a socket, which cryopod does not carry yet`.
    pub reason: String,
    /// What the user can do: `close it first`. Empty where nothing helps.
    pub remedy: String,
}

impl Refusal {
    pub fn new(pid: i32, object: impl Into<String>, reason: impl Into<String>, remedy: impl Into<String>) -> Self {
        Refusal {
            pid,
            object: object.into(),
            reason: reason.into(),
            remedy: remedy.into(),
        }
    }
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "pid {}: {} {}", self.pid, self.object, self.reason)?;
        if !self.remedy.is_empty() {
            write!(f, "; {}", self.remedy)?;
        }
        Ok(())
    }
}

/// All refusals of one run, as an error: nothing was changed. Leads to exit code 3 (126 for a thaw in the foreground).
#[derive(Debug)]
pub struct Refused(pub Vec<Refusal>);

/// One on the line of whoever tells of it, several on lines of their own.
impl fmt::Display for Refused {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let [only] = self.0.as_slice() {
            return write!(f, "{only}");
        }
        self.0.iter().try_for_each(|refusal| write!(f, "\n  {refusal}"))
    }
}

impl std::error::Error for Refused {}

impl From<Refusal> for Refused {
    fn from(refusal: Refusal) -> Self {
        Refused(vec![refusal])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn several_refusals_have_lines_of_their_own() {
        let refusal = |object| Refusal::new(7, object, "is a socket", "");
        assert_eq!(Refused(vec![refusal("fd 3")]).to_string(), "pid 7: fd 3 is a socket");
        let several = Refused(vec![refusal("fd 3"), refusal("fd 4")]);
        assert_eq!(
            several.to_string(),
            "\n  pid 7: fd 3 is a socket\n  pid 7: fd 4 is a socket"
        );
    }

    #[test]
    fn a_refusal_reads_as_one_sentence() {
        let refusal = Refusal::new(
            4127,
            "fd 9",
            "is an io_uring, which cryopod does not carry",
            "close it first",
        );
        assert_eq!(
            refusal.to_string(),
            "pid 4127: fd 9 is an io_uring, which cryopod does not carry; close it first"
        );
    }
}
