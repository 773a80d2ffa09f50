//! System calls that a thread of the target is made to run, for facts that no interface shows from outside. None changes anything.

use super::loan::Loan;
use super::process::StoppedProcess;
use super::script::{CALLS_MAX, Call, DATA_LEN, Script};
use super::{Error, Result};
use crate::arch::{SIGACTION_LEN, signal_action};
use crate::image::state::{SigAltStack, SignalAction, TimerTime};

/// A thread whose registers are on loan. While you hold one, the process is yours alone; [`give_back`](Self::give_back) ends the
/// loan, and so does dropping it.
#[derive(Debug)]
pub struct Remote<'a> {
    loan: Loan<'a>,
    mode: Mode,
    /// What the last call wrote.
    data: [u8; DATA_LEN],
}

/// How calls are answered.
#[derive(Debug)]
enum Mode {
    /// Each is run when it is made.
    Single,
    /// None is run: they are noted for a script.
    Rehearsal(Script),
    /// By a script that has run; the next call is expected to be that of this index.
    Answered(Script, usize),
}

/// sizeof(sigset_t) of the kernel.
const SIGSET_LEN: u64 = 8;
const SS_ONSTACK: u32 = 1;

impl<'a> Remote<'a> {
    /// Borrows the registers of `process.threads()[thread]`. A page for results is mapped for the time of the loan, so read
    /// /proc/PID/maps before or after it. Signals that wait for the thread are delivered first, which changes its registers.
    pub fn borrow(process: &'a mut StoppedProcess, thread: usize) -> Result<Self> {
        Ok(Remote {
            loan: Loan::begin(process, thread)?,
            mode: Mode::Single,
            data: [0; DATA_LEN],
        })
    }

    /// The thread has its own registers again, and the loan goes on with another thread of the process.
    pub fn pass_on(&mut self, thread: usize) -> Result<()> {
        self.loan.pass_on(thread)
    }

    /// Runs all calls that `ask` makes in one go, where that is possible. `ask` is called twice: once to learn which calls there are, all
    /// of which are answered by zeros then, and once with their answers.
    pub fn at_once<T>(&mut self, mut ask: impl FnMut(&mut Self) -> Result<T>) -> Result<T> {
        self.mode = Mode::Rehearsal(Script::default());
        let rehearsed = ask(self);
        if let Mode::Rehearsal(mut script) = std::mem::replace(&mut self.mode, Mode::Single)
            && rehearsed.is_ok()
            && self.loan.run(&mut script)?
        {
            self.mode = Mode::Answered(script, 0);
        }
        let answered = ask(self);
        self.mode = Mode::Single;
        answered
    }

    /// The thread has its own registers again and nothing of the loan stays.
    pub fn give_back(self) -> Result<()> {
        self.loan.end()
    }

    /// The end of the heap: brk(2) with an impossible address changes nothing and returns it.
    pub fn brk(&mut self) -> Result<u64> {
        self.call("brk", libc::SYS_brk, [0; 6])
    }

    /// rt_sigaction(2) of one signal, of the whole process.
    pub fn sigaction(&mut self, signal: i32) -> Result<SignalAction> {
        let to = self.results_at();
        self.call(
            "rt_sigaction",
            libc::SYS_rt_sigaction,
            [signal as u64, 0, to, SIGSET_LEN, 0, 0],
        )?;
        Ok(signal_action(signal, &self.results::<SIGACTION_LEN>()?))
    }

    /// sigaltstack(2), of the thread. SS_ONSTACK is left out: it says where the stack pointer is, and cannot be set.
    pub fn sigaltstack(&mut self) -> Result<SigAltStack> {
        let to = self.results_at();
        self.call("sigaltstack", libc::SYS_sigaltstack, [0, to, 0, 0, 0, 0])?;
        // stack_t: ss_sp, ss_flags and padding, ss_size.
        let [sp, flags, size] = self.words()?;
        Ok(SigAltStack {
            sp,
            flags: flags as u32 & !SS_ONSTACK,
            size,
        })
    }

    /// getitimer(2): ITIMER_REAL 0, ITIMER_VIRTUAL 1, ITIMER_PROF 2; of the process.
    pub fn getitimer(&mut self, which: i32) -> Result<TimerTime> {
        let to = self.results_at();
        self.call("getitimer", libc::SYS_getitimer, [which as u64, to, 0, 0, 0, 0])?;
        // struct itimerval: the period, then the time left, in seconds and microseconds.
        let [interval_s, interval_us, left_s, left_us] = self.words()?;
        Ok(TimerTime {
            left_ns: ns(left_s, left_us * 1000),
            interval_ns: ns(interval_s, interval_us * 1000),
        })
    }

    /// timer_gettime(2), by the kernel's id.
    pub fn timer_gettime(&mut self, id: i32) -> Result<TimerTime> {
        let to = self.results_at();
        self.call("timer_gettime", libc::SYS_timer_gettime, [id as u64, to, 0, 0, 0, 0])?;
        let [interval_s, interval_ns, left_s, left_ns] = self.words()?;
        Ok(TimerTime {
            left_ns: ns(left_s, left_ns),
            interval_ns: ns(interval_s, interval_ns),
        })
    }

    /// timer_getoverrun(2).
    pub fn timer_getoverrun(&mut self, id: i32) -> Result<i32> {
        Ok(self.call(
            "timer_getoverrun",
            libc::SYS_timer_getoverrun,
            [id as u64, 0, 0, 0, 0, 0],
        )? as i32)
    }

    /// PR_GET_PDEATHSIG(2const), of the thread.
    pub fn get_pdeath_signal(&mut self) -> Result<i32> {
        let to = self.results_at();
        self.prctl("PR_GET_PDEATHSIG", libc::PR_GET_PDEATHSIG, to)?;
        Ok(self.words::<1>()?[0] as i32)
    }

    /// PR_GET_TID_ADDRESS(2const), of the thread. EINVAL from a kernel without CONFIG_CHECKPOINT_RESTORE.
    pub fn get_tid_address(&mut self) -> Result<u64> {
        let to = self.results_at();
        self.prctl("PR_GET_TID_ADDRESS", libc::PR_GET_TID_ADDRESS, to)?;
        Ok(self.words::<1>()?[0])
    }

    /// PR_GET_CHILD_SUBREAPER(2const), of the process.
    pub fn get_child_subreaper(&mut self) -> Result<bool> {
        let to = self.results_at();
        self.prctl("PR_GET_CHILD_SUBREAPER", libc::PR_GET_CHILD_SUBREAPER, to)?;
        Ok(self.words::<1>()?[0] as i32 != 0)
    }

    /// PR_GET_DUMPABLE(2const), of the process.
    pub fn get_dumpable(&mut self) -> Result<u32> {
        Ok(self.prctl("PR_GET_DUMPABLE", libc::PR_GET_DUMPABLE, 0)? as u32)
    }

    /// PR_GET_SECUREBITS(2const), of the thread.
    pub fn get_securebits(&mut self) -> Result<u32> {
        Ok(self.prctl("PR_GET_SECUREBITS", libc::PR_GET_SECUREBITS, 0)? as u32)
    }

    /// PR_GET_TIMERSLACK(2const), of the thread, in nanoseconds.
    pub fn get_timer_slack(&mut self) -> Result<u64> {
        self.prctl("PR_GET_TIMERSLACK", libc::PR_GET_TIMERSLACK, 0)
    }

    /// Whether the process has children, or tasks that it traces: waitid(2) says ECHILD where there is nobody to wait for, and with WNOWAIT
    /// and WNOHANG it does nothing else.
    pub fn waits_for_somebody(&mut self) -> Result<bool> {
        const ALL: i32 = libc::WEXITED | libc::WSTOPPED | libc::WCONTINUED | libc::__WALL;
        let options = (ALL | libc::WNOHANG | libc::WNOWAIT) as u64;
        match self.call("waitid", libc::SYS_waitid, [libc::P_ALL as u64, 0, 0, options, 0, 0]) {
            Ok(_) => Ok(true),
            Err(error) if error.errno() == Some(nix::Error::ECHILD) => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// semop(2) with operations (struct sembuf) of which one can never be done, and what it says. Nothing is changed.
    pub fn semop_that_fails(&mut self, id: i32, operations: &[u8]) -> Result<nix::Error> {
        let at = self.results_at() + DATA_LEN as u64;
        let lost = |error: std::io::Error| Error::memory(self.loan.tid(), "operations", &error);
        self.loan.memory().write_at(at, operations).map_err(lost)?;
        let count = operations.len() / size_of::<libc::sembuf>();
        match self.call("semop", libc::SYS_semop, [id as u64, at, count as u64, 0, 0, 0]) {
            Err(error) => error.errno().ok_or(error),
            Ok(_) => Err(Error::Unexpected {
                tid: self.loan.tid(),
                what: "did what no semaphore can do (semop)".into(),
            }),
        }
    }

    /// Commands of prctl(2) that get something are a family: unused arguments must be 0.
    pub(super) fn prctl(&mut self, name: &'static str, command: i32, to: u64) -> Result<u64> {
        self.call(name, libc::SYS_prctl, [command as u64, to, 0, 0, 0, 0])
    }

    /// Where the next call may write [`DATA_LEN`] bytes, which are zeros before.
    pub(super) fn results_at(&self) -> u64 {
        let index = match &self.mode {
            Mode::Single => 0,
            Mode::Rehearsal(script) => script.len(),
            Mode::Answered(_, next) => *next,
        };
        self.loan.results() + Script::data_at(index) as u64
    }

    /// What the last call wrote.
    pub(super) fn words<const N: usize>(&self) -> Result<[u64; N]> {
        let mut words = [0; N];
        for (word, bytes) in words.iter_mut().zip(self.data.chunks_exact(8)) {
            *word = u64::from_ne_bytes(bytes.try_into().expect("eight bytes"));
        }
        Ok(words)
    }

    pub(super) fn results<const N: usize>(&self) -> Result<[u8; N]> {
        Ok(*self.data.first_chunk().expect("no call writes more"))
    }

    /// Of the thread.
    pub(super) fn thread_pointer(&self) -> Result<u64> {
        self.loan.thread_pointer()
    }

    pub(super) fn read(&self, at: u64, buffer: &mut [u8]) -> std::io::Result<()> {
        self.loan.memory().read_at(at, buffer)
    }

    pub(super) fn read_word(&self, at: u64) -> Result<u64> {
        let lost = |error: std::io::Error| Error::memory(self.loan.tid(), "a word", &error);
        self.loan.memory().read_u64(at).map_err(lost)
    }

    /// The one untyped door.
    pub(super) fn call(&mut self, name: &'static str, number: i64, args: [u64; 6]) -> Result<u64> {
        let result = self.answer(number, args).map_err(|error| match error {
            Error::Forbidden { tid, .. } => Error::Forbidden { tid, call: name },
            other => other,
        });
        match result? {
            error @ -4095..=-1 => {
                let errno = nix::Error::from_raw(-error as i32);
                Err(Error::Call {
                    tid: self.loan.tid(),
                    name,
                    errno,
                })
            }
            result => Ok(result as u64),
        }
    }

    fn answer(&mut self, number: i64, args: [u64; 6]) -> Result<i64> {
        let [a, b, c, d, e, f] = args;
        let call: Call = [number as u64, a, b, c, d, e];
        match &mut self.mode {
            Mode::Rehearsal(script) => {
                if script.len() < CALLS_MAX && f == 0 {
                    script.push(call);
                }
                self.data = [0; DATA_LEN];
                return Ok(0);
            }
            Mode::Answered(script, next) if script.call(*next) == Some(&call) => {
                let (result, data) = script.answer(*next);
                self.data.copy_from_slice(data);
                *next += 1;
                return Ok(result);
            }
            // Not what was rehearsed, since an answer made a difference.
            Mode::Single | Mode::Answered(..) => {}
        }
        self.answer_now(number, args)
    }

    fn answer_now(&mut self, number: i64, args: [u64; 6]) -> Result<i64> {
        let (tid, at) = (self.loan.tid(), self.results_at());
        let lost = |error: std::io::Error| Error::memory(tid, "the results", &error);
        self.loan.memory().write_at(at, &[0; DATA_LEN]).map_err(lost)?;
        let result = self.loan.call(number as u64, args)?;
        self.loan.memory().read_at(at, &mut self.data).map_err(lost)?;
        Ok(result)
    }
}

fn ns(seconds: u64, nanoseconds: u64) -> u64 {
    seconds * 1_000_000_000 + nanoseconds
}
