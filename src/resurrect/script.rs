//! System calls of the task that is rebuilt, gathered and run many at a time by the stub. They read as calls.
#![deny(unsafe_code)]

use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use nix::errno::Errno;

use super::stage::{DATA_LEN, OPS_MAX, Stage};
use super::wire::{FIRST_ERROR, GO_ON, Op};
use crate::arch;
use crate::tracer::{Resume, Stop, Stopped};

/// Calls for one task. They are queued, and run when the stage is full, when a result is asked for, or by [`run`](Self::run).
pub struct Script<'a> {
    stage: &'a Stage,
    task: &'a mut Stopped,
    queue: Vec<(&'static str, Op)>,
    /// What arguments of the queue point at: the beginning of the data area, written when the queue runs.
    data: Vec<u8>,
}

/// An argument of a call: a number, or bytes that it points at.
#[derive(Clone, Copy)]
pub enum Arg<'b> {
    Is(u64),
    At(&'b [u8]),
    /// Bytes in which the pointer at offset `at` is to point at offset `to` of the same bytes.
    Linked {
        bytes: &'b [u8],
        at: usize,
        to: usize,
    },
}

impl Arg<'_> {
    fn data_len(&self) -> usize {
        match self {
            Arg::Is(_) => 0,
            Arg::At(bytes) | Arg::Linked { bytes, .. } => bytes.len() + ALIGN,
        }
    }
}

impl From<u64> for Arg<'_> {
    fn from(number: u64) -> Self {
        Arg::Is(number)
    }
}

impl From<i32> for Arg<'_> {
    /// Sign-extended, as the C library passes it.
    fn from(number: i32) -> Self {
        Arg::Is(number as i64 as u64)
    }
}

impl From<u32> for Arg<'_> {
    fn from(number: u32) -> Self {
        Arg::Is(number.into())
    }
}

impl From<bool> for Arg<'_> {
    fn from(flag: bool) -> Self {
        Arg::Is(flag.into())
    }
}

impl<'b> From<&'b [u8]> for Arg<'b> {
    fn from(bytes: &'b [u8]) -> Self {
        Arg::At(bytes)
    }
}

const ALIGN: usize = 64;

impl<'a> Script<'a> {
    pub fn new(stage: &'a Stage, task: &'a mut Stopped) -> Self {
        Script {
            stage,
            task,
            queue: Vec::new(),
            data: Vec::new(),
        }
    }

    /// Queues a call that must succeed.
    pub fn call<const N: usize>(&mut self, name: &'static str, number: i64, args: [Arg<'_>; N]) -> Result<()> {
        self.push(name, number as u64, args)
    }

    /// Queues a call whose failure does not matter; the caller says why at the call.
    pub fn attempt<const N: usize>(&mut self, name: &'static str, number: i64, args: [Arg<'_>; N]) -> Result<()> {
        self.push(name, number as u64 | GO_ON, args)
    }

    /// Queues a prctl(2), whose unused arguments must be 0.
    pub fn prctl(&mut self, name: &'static str, option: i32, args: &[Arg<'_>]) -> Result<()> {
        let arg = |index: usize| args.get(index).copied().unwrap_or(Arg::Is(0));
        self.call(name, libc::SYS_prctl, [option.into(), arg(0), arg(1), arg(2), arg(3)])
    }

    /// Runs a call now, after all queued ones, and returns its result.
    pub fn ask<const N: usize>(&mut self, name: &'static str, number: i64, args: [Arg<'_>; N]) -> Result<u64> {
        self.call(name, number, args)?;
        let results = self.flush()?;
        Ok(*results.last().expect("one call was queued") as u64)
    }

    /// Like [`ask`](Self::ask), for a call that may fail: the errno is the caller's to judge.
    pub fn try_ask<const N: usize>(
        &mut self,
        name: &'static str,
        number: i64,
        args: [Arg<'_>; N],
    ) -> Result<std::result::Result<u64, Errno>> {
        self.attempt(name, number, args)?;
        let result = *self.flush()?.last().expect("one call was queued");
        Ok(if is_error(result) {
            Err(Errno::from_raw(-result as i32))
        } else {
            Ok(result as u64)
        })
    }

    /// Runs what is queued.
    pub fn run(mut self) -> Result<()> {
        self.flush().map(drop)
    }

    fn push<const N: usize>(&mut self, name: &'static str, number: u64, args: [Arg<'_>; N]) -> Result<()> {
        let wanted: usize = args.iter().map(Arg::data_len).sum();
        if wanted > DATA_LEN as usize {
            bail!("{name}: {wanted} bytes of arguments");
        }
        if self.queue.len() == OPS_MAX || self.data.len() + wanted > DATA_LEN as usize {
            self.flush()?;
        }
        let mut op = Op {
            number,
            ..Op::default()
        };
        for (slot, arg) in op.args.iter_mut().zip(args) {
            *slot = match arg {
                Arg::Is(number) => number,
                Arg::At(bytes) => self.place(bytes),
                Arg::Linked { bytes, at, to } => self.place_linked(bytes, at, to),
            };
        }
        self.queue.push((name, op));
        Ok(())
    }

    fn place(&mut self, bytes: &[u8]) -> u64 {
        let offset = self.data.len().next_multiple_of(ALIGN);
        self.data.resize(offset, 0);
        self.data.extend_from_slice(bytes);
        self.stage.data_addr(offset)
    }

    fn place_linked(&mut self, bytes: &[u8], at: usize, to: usize) -> u64 {
        let addr = self.place(bytes);
        let pointer = self.data.len() - bytes.len() + at;
        self.data[pointer..pointer + 8].copy_from_slice(&(addr + to as u64).to_ne_bytes());
        addr
    }

    fn flush(&mut self) -> Result<Vec<i64>> {
        let queue = std::mem::take(&mut self.queue);
        if queue.is_empty() {
            return Ok(Vec::new());
        }
        if !self.data.is_empty() {
            self.stage.write_data(0, &self.data)?;
            self.data.clear();
        }
        let ops: Vec<Op> = queue.iter().map(|(_, op)| *op).collect();
        let (mut results, patience) = (Vec::with_capacity(ops.len()), IdPatience::new());
        while results.len() < ops.len() {
            let rest = &ops[results.len()..];
            self.stage.write_ops(rest)?;
            let done = run_stub(self.stage, self.task, rest.len())?;
            results.extend(self.stage.results(done)?);
            if done == rest.len() {
                break;
            }
            let result = self.stage.results(done + 1)?[done];
            let (name, op) = queue[results.len()];
            if op.number != libc::SYS_clone3 as u64 || !patience.waits(result) {
                return Err(failed(name, &op, result)).with_context(|| format!("task {}", self.task.tid()));
            }
        }
        Ok(results)
    }
}

/// Whoever has an id that was free when we looked may be gone in a moment. And since Linux 6.15 a task that has ended and was waited for is out
/// of everybody's sight some time before its id can be used again (free_pids() in release_task(), kernel/exit.c).
pub(super) struct IdPatience(Instant);

impl IdPatience {
    pub fn new() -> Self {
        IdPatience(Instant::now())
    }

    /// Whether clone3(2), with that result, is worth another attempt; waits a moment before.
    pub fn waits(&self, result: i64) -> bool {
        const LIMIT: Duration = Duration::from_millis(500);
        let again = result == -i64::from(libc::EEXIST) && self.0.elapsed() <= LIMIT;
        if again {
            std::thread::sleep(Duration::from_millis(1));
        }
        again
    }
}

/// Lets the stub run `count` operations and returns how many it ran before an error.
fn run_stub(stage: &Stage, task: &mut Stopped, count: usize) -> Result<usize> {
    let mut regs = task.regs()?;
    regs.set_function_call(
        stage.entry() + arch::STUB_RUN,
        stage.stack_top(),
        stage.ops_addr(),
        count as u64,
    );
    task.set_regs(&regs)?;
    run_to_trap(task)?;
    Ok(usize::try_from(task.regs()?.result()).unwrap_or(0).min(count))
}

/// Lets the task run to its next trap instruction. Signals are blocked while it is rebuilt, so nothing else comes in between.
pub fn run_to_trap(task: &mut Stopped) -> Result<()> {
    loop {
        match task.resume_and_wait(Resume::Continue, 0)? {
            Stop::Signal(libc::SIGTRAP) => return Ok(()),
            // Somebody sent SIGSTOP or SIGCONT: signals that cannot be blocked do not hold up the work.
            Stop::Interrupted { .. } | Stop::Signal(libc::SIGSTOP) => {}
            stop => bail!(
                "task {} stopped by {stop:?} at {:#x} while it was rebuilt",
                task.tid(),
                task.regs()?.pc()
            ),
        }
    }
}

fn failed(name: &str, op: &Op, result: i64) -> anyhow::Error {
    let args: Vec<String> = op.args.iter().map(|arg| format!("{arg:#x}")).collect();
    anyhow::Error::new(std::io::Error::from_raw_os_error(-result as i32))
        .context(format!("{name}({})", args.join(", ")))
}

fn is_error(result: i64) -> bool {
    (FIRST_ERROR..0).contains(&result)
}
