//! Whether the sink keeps up. Decides which frames of [`Compression::Auto`](super::write::Compression::Auto) are compressed: none while it
//! takes them faster than they could be compressed, all while it does not.

use std::sync::Mutex;
use std::time::Duration;

/// What the sink takes is measured over so much, since a pipe takes the first bytes, and a page cache the first megabytes, at once.
const STREAM_WINDOW: u64 = 4 << 20;
const FILE_WINDOW: u64 = 24 << 20;
/// So much is compressed before the sink gets another chance, as a multiple of the window; twice as much after each that it misses.
const STAY_FACTOR: u64 = 32;
const STAY_MAX: u64 = 8 << 30;

pub struct Pace {
    /// How many threads compress for each thread that writes.
    compressors: u32,
    window: u64,
    state: Mutex<State>,
}

struct State {
    phase: Phase,
    stay: u64,
    /// What writing without compression took since the phase began.
    sink: Rate,
    compression: Rate,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    Raw,
    /// Compresses, for so many bytes of memory still.
    Compress(u64),
}

impl Pace {
    /// One thread writes what `jobs` threads compress.
    pub fn of_stream(jobs: usize) -> Self {
        Self::new(jobs as u32, STREAM_WINDOW)
    }

    /// Each thread writes what it compresses.
    pub fn of_file() -> Self {
        Self::new(1, FILE_WINDOW)
    }

    fn new(compressors: u32, window: u64) -> Self {
        let state = State {
            phase: Phase::Raw,
            stay: STAY_FACTOR * window,
            sink: Rate::default(),
            compression: Rate::default(),
        };
        Pace {
            compressors,
            window,
            state: Mutex::new(state),
        }
    }

    /// Whether the next frame, of so many bytes, is to be compressed.
    pub fn compresses(&self, bytes: usize) -> bool {
        let mut state = self.state();
        match state.phase {
            Phase::Raw if state.sink.bytes < self.window => false,
            // Once, to know.
            Phase::Raw if state.compression.bytes == 0 => true,
            Phase::Raw if state.sink.per_byte() <= state.compression.per_byte() / f64::from(self.compressors) => {
                // What it takes later counts as much as what it took at first.
                state.sink.fade(2 * self.window);
                false
            }
            Phase::Raw => {
                state.phase = Phase::Compress(state.stay);
                state.stay = (2 * state.stay).min(STAY_MAX);
                true
            }
            Phase::Compress(left) => {
                state.phase = match left.checked_sub(bytes as u64) {
                    Some(left) => Phase::Compress(left),
                    None => {
                        state.sink = Rate::default();
                        Phase::Raw
                    }
                };
                true
            }
        }
    }

    /// A frame was written as it is.
    pub fn wrote_raw(&self, bytes: usize, took: Duration) {
        self.state().sink.add(bytes, took);
    }

    pub fn compressed(&self, bytes: usize, took: Duration) {
        let mut state = self.state();
        state.compression.fade(STREAM_WINDOW);
        state.compression.add(bytes, took);
    }

    fn state(&self) -> std::sync::MutexGuard<'_, State> {
        self.state.lock().expect("nobody panics with it in hand")
    }
}

/// A mean in which the latest counts most.
#[derive(Debug, Default)]
struct Rate {
    bytes: u64,
    nanoseconds: u64,
}

impl Rate {
    fn add(&mut self, bytes: usize, took: Duration) {
        self.bytes += bytes as u64;
        self.nanoseconds += took.as_nanos() as u64;
    }

    /// Lets what was long ago count less, where there is more than so much.
    fn fade(&mut self, bytes: u64) {
        if self.bytes > bytes {
            self.bytes /= 2;
            self.nanoseconds /= 2;
        }
    }

    /// Nanoseconds.
    fn per_byte(&self) -> f64 {
        self.nanoseconds as f64 / self.bytes.max(1) as f64
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const FRAME: usize = 256 << 10;

    /// Of `count` frames, those that are compressed, where a frame takes so many microseconds to be written raw and to be compressed.
    fn compressed(pace: &Pace, count: usize, write_us: u64, compress_us: u64) -> usize {
        let frames = (0..count).filter(|_| {
            let compresses = pace.compresses(FRAME);
            match compresses {
                true => pace.compressed(FRAME, Duration::from_micros(compress_us)),
                false => pace.wrote_raw(FRAME, Duration::from_micros(write_us)),
            }
            compresses
        });
        frames.count()
    }

    #[test]
    fn a_fast_sink_gets_frames_as_they_are_but_for_one_to_measure() {
        assert_eq!(compressed(&Pace::of_file(), 4096, 90, 500), 1);
        assert_eq!(compressed(&Pace::of_stream(2), 4096, 200, 500), 1);
    }

    #[test]
    fn a_slow_sink_gets_hardly_any_frame_as_it_is() {
        let raw = 4096 - compressed(&Pace::of_stream(2), 4096, 1000, 500);
        assert!(raw <= 6 * 16, "{raw}");
        let raw = 4096 - compressed(&Pace::of_file(), 4096, 5000, 500);
        assert!(raw <= 2 * 96, "{raw}");
    }

    #[test]
    fn all_compressors_together_count_against_the_one_writer_of_a_stream() {
        // 400 µs are less than one needs, and more than two side by side.
        assert_eq!(compressed(&Pace::of_stream(1), 1000, 400, 500), 1);
        assert!(compressed(&Pace::of_stream(2), 1000, 400, 500) > 900);
    }

    #[test]
    fn a_sink_that_becomes_slow_is_noticed_and_one_that_recovers_too() {
        let pace = Pace::of_stream(2);
        assert_eq!(compressed(&pace, 1000, 100, 500), 1);
        assert!(compressed(&pace, 4096, 5000, 500) > 3900);
        let stays = 4096 * 4;
        compressed(&pace, stays, 100, 500);
        assert_eq!(compressed(&pace, 100, 100, 500), 0);
    }
}
