//! How much of each mapping and shared object is in an image, and what it takes there.

use crate::image::pages::{FrameHead, Space};
use crate::image::state::{Snapshot, Vma};
use serde::Serialize;

/// Memory in an image.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct Amount {
    /// Before compression.
    pub stored: u64,
    /// In the file: a frame's pages share what it takes, each by its length.
    pub compressed: u64,
}

/// The amounts of a whole image.
pub struct Stored {
    /// By process and mapping.
    pub mappings: Vec<Vec<Amount>>,
    pub shared_objects: Vec<Amount>,
}

impl Stored {
    pub fn new(snapshot: &Snapshot) -> Self {
        let of_process = |process: &crate::image::state::Process| vec![Amount::default(); process.memory.vmas.len()];
        Stored {
            mappings: snapshot.processes.iter().map(of_process).collect(),
            shared_objects: vec![Amount::default(); snapshot.shared_objects.len()],
        }
    }

    /// Adds a frame, whose runs the reader found to be in mappings and objects of the snapshot.
    pub fn add(&mut self, snapshot: &Snapshot, frame: &FrameHead, body_len: u64) {
        for run in frame.runs.iter().filter(|run| !run.zero) {
            let amount = match run.space {
                Space::Shared(object) => &mut self.shared_objects[object as usize],
                Space::Process(process) | Space::Inherited(process) => {
                    let vmas = &snapshot.processes[process as usize].memory.vmas;
                    &mut self.mappings[process as usize][mapping_at(vmas, run.offset)]
                }
            };
            amount.stored += run.len;
            // A frame has at most 1 MiB, so this cannot overflow.
            amount.compressed += run.len * body_len / u64::from(frame.raw_len);
        }
    }
}

fn mapping_at(vmas: &[Vma], address: u64) -> usize {
    vmas.partition_point(|vma| vma.end <= address)
}
