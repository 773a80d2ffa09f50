//! What a program writes, line by line, as it comes.

use std::fmt;
use std::io::{BufRead, BufReader, Read};
use std::process::Child;
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::time::{Duration, Instant};

/// The lines that a program wrote on stdout and stderr so far, gathered by threads of ours.
#[derive(Clone, Default)]
pub struct Output(Arc<(Mutex<State>, Condvar)>);

#[derive(Default)]
struct State {
    lines: Vec<String>,
    /// Streams that have not come to their end.
    open: usize,
}

impl Output {
    /// Takes the pipes of `child`.
    pub fn of(child: &mut Child) -> Self {
        let output = Output::default();
        if let Some(stream) = child.stdout.take() {
            output.gather(stream);
        }
        if let Some(stream) = child.stderr.take() {
            output.gather(stream);
        }
        output
    }

    /// Waits until a line fulfils a condition, and returns the first that does.
    pub fn wait_for(&self, condition: impl Fn(&str) -> bool, child: &mut Child) -> String {
        let deadline = Instant::now() + super::PATIENCE;
        let mut state = self.state();
        loop {
            if let Some(line) = state.lines.iter().find(|line| condition(line)) {
                return line.clone();
            }
            if state.open == 0 {
                let status = child.try_wait();
                panic!("the output ended without the line ({status:?}): {:?}", state.lines);
            }
            assert!(
                Instant::now() < deadline,
                "waited in vain for a line: {:?}",
                state.lines
            );
            let (woken, _) = self
                .0
                .1
                .wait_timeout(state, Duration::from_millis(200))
                .expect("no reader panics");
            state = woken;
        }
    }

    pub fn has(&self, line: &str) -> bool {
        self.state().lines.iter().any(|l| l == line)
    }

    pub fn lines(&self) -> Vec<String> {
        self.state().lines.clone()
    }

    fn gather(&self, stream: impl Read + Send + 'static) {
        self.state().open += 1;
        let output = self.clone();
        std::thread::spawn(move || {
            for line in BufReader::new(stream).split(b'\n').map_while(Result::ok) {
                output.state().lines.push(String::from_utf8_lossy(&line).into_owned());
                output.0.1.notify_all();
            }
            output.state().open -= 1;
            output.0.1.notify_all();
        });
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.0.lock().expect("no reader panics")
    }
}

impl fmt::Display for Output {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", self.lines())
    }
}
