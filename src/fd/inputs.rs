//! Pipes from other processes, which those may go on to fill while the reader stands still and its image is written.

use std::os::fd::{AsFd, OwnedFd};

use crate::sys::fds::bytes_waiting;

/// The read ends of such pipes, and how much of each is in the image.
#[derive(Debug, Default)]
pub struct Inputs(Vec<Input>);

#[derive(Debug)]
struct Input {
    end: OwnedFd,
    recorded_bytes: usize,
    /// As `fd 0 (pipe:[4711])`.
    name: String,
}

impl Inputs {
    pub(super) fn push(&mut self, end: OwnedFd, recorded_bytes: usize, name: String) {
        self.0.push(Input {
            end,
            recorded_bytes,
            name,
        });
    }

    /// What came since they were looked at, for people: it is not in the image, and goes with the last reader. No answer is none.
    pub fn late(&self) -> Vec<String> {
        let late = self.0.iter().filter_map(|input| {
            let bytes = bytes_waiting(input.end.as_fd())
                .ok()?
                .checked_sub(input.recorded_bytes)?;
            (bytes > 0).then(|| format!("{bytes} bytes came into {} too late to be in the image", input.name))
        });
        late.collect()
    }
}
