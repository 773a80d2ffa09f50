//! What cryopod says while it works: a bar on a terminal, a line now and then elsewhere, nothing when asked to be quiet.

use indicatif::{HumanBytes, ProgressBar, ProgressDrawTarget, ProgressStyle};
use std::io::IsTerminal;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// How much cryopod says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verbosity {
    Quiet,
    Normal,
    Verbose,
}

impl Verbosity {
    /// Prints a line on stderr unless all should be quiet.
    pub fn say(self, line: impl std::fmt::Display) {
        if self != Verbosity::Quiet {
            eprintln!("{line}");
        }
    }

    /// Prints a line on stderr where details were asked for.
    pub fn detail(self, line: impl std::fmt::Display) {
        if self == Verbosity::Verbose {
            eprintln!("{line}");
        }
    }
}

/// What takes less than this is not worth a bar.
const PATIENCE: Duration = Duration::from_secs(1);
const BETWEEN_LINES: Duration = Duration::from_secs(5);

/// Progress of a known number of bytes. `set` may be called by several threads.
pub struct Progress {
    what: String,
    total: u64,
    begun: Instant,
    shown_as: Shown,
}

enum Shown {
    Nothing,
    Bar(ProgressBar),
    /// Milliseconds after `begun` when the next line is due.
    Lines {
        next_ms: AtomicU64,
    },
}

impl Progress {
    /// `what` is a phrase such as `writing app.img`.
    pub fn start(verbosity: Verbosity, what: impl Into<String>, total_bytes: u64) -> Self {
        let shown_as = if verbosity == Verbosity::Quiet {
            Shown::Nothing
        } else if std::io::stderr().is_terminal() {
            Shown::Bar(hidden_bar(total_bytes))
        } else {
            Shown::Lines {
                next_ms: AtomicU64::new(millis(BETWEEN_LINES)),
            }
        };
        Progress {
            what: what.into(),
            total: total_bytes,
            begun: Instant::now(),
            shown_as,
        }
    }

    /// `done` bytes of the total are done.
    pub fn set(&self, done: u64) {
        match &self.shown_as {
            Shown::Nothing => {}
            Shown::Bar(bar) => {
                if bar.is_hidden() && self.begun.elapsed() >= PATIENCE {
                    bar.set_message(self.what.clone());
                    bar.set_draw_target(ProgressDrawTarget::stderr());
                }
                bar.set_position(done);
            }
            Shown::Lines { next_ms } => {
                let now = millis(self.begun.elapsed());
                let due = next_ms.load(Ordering::Relaxed);
                let next = now + millis(BETWEEN_LINES);
                // Of several threads, the one that moves the due time prints.
                if now >= due
                    && next_ms
                        .compare_exchange(due, next, Ordering::Relaxed, Ordering::Relaxed)
                        .is_ok()
                {
                    eprintln!("{}", self.line(done));
                }
            }
        }
    }

    /// Removes the bar.
    pub fn finish(self) {
        if let Shown::Bar(bar) = self.shown_as {
            bar.finish_and_clear();
        }
    }

    fn line(&self, done: u64) -> String {
        let percent = (done.min(self.total) * 100).checked_div(self.total).unwrap_or(100);
        let rate = done as f64 / self.begun.elapsed().as_secs_f64().max(0.001);
        format!(
            "{}: {} of {} ({percent} %), {}/s",
            self.what,
            HumanBytes(done),
            HumanBytes(self.total),
            HumanBytes(rate as u64)
        )
    }
}

fn hidden_bar(total: u64) -> ProgressBar {
    let style = ProgressStyle::with_template("{msg} [{bar:30}] {bytes} of {total_bytes}, {bytes_per_sec}, {eta} left")
        .expect("the template is well formed")
        .progress_chars("=> ");
    let bar = ProgressBar::with_draw_target(Some(total), ProgressDrawTarget::hidden());
    bar.set_style(style);
    bar
}

fn millis(duration: Duration) -> u64 {
    duration.as_millis().try_into().unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_tells_bytes_and_share() {
        let progress = Progress::start(Verbosity::Quiet, "writing app.img", 4 << 20);
        assert!(
            progress
                .line(1 << 20)
                .starts_with("writing app.img: 1.00 MiB of 4.00 MiB (25 %), ")
        );
    }

    #[test]
    fn nothing_to_do_is_all_done() {
        assert!(
            Progress::start(Verbosity::Quiet, "reading", 0)
                .line(0)
                .contains("(100 %)")
        );
    }
}
