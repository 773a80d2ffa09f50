//! Seizing whole processes and running system calls in them: the target does not notice, and the answers are true.

#[path = "common/build.rs"]
#[allow(dead_code)]
mod build;
#[path = "common/watched.rs"]
#[allow(dead_code)]
mod watched;

use std::io::{BufRead, BufReader};
use std::os::unix::process::ExitStatusExt;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use cryopod::image::state::{RegSet, SigAltStack, SignalAction, TimerTime};
use cryopod::refusal::Refused;
use cryopod::tracer::{Error, Remote, StoppedThread, seize};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use watched::{Watched, ask, freeze_and_ask};

/// A program that prints one line when it is ready. Killed when dropped.
struct Target {
    child: Child,
    line: String,
}

impl Target {
    fn start(mut command: Command) -> Self {
        let mut child = command.stdout(Stdio::piped()).spawn().expect("the program starts");
        let mut line = String::new();
        let stdout = child.stdout.as_mut().expect("its stdout is piped");
        BufReader::new(stdout).read_line(&mut line).expect("its first line");
        Target { child, line }
    }

    fn pid(&self) -> Pid {
        Pid::from_raw(self.child.id() as i32)
    }
}

impl Drop for Target {
    fn drop(&mut self) {
        let _ended_already = self.child.kill();
        let _waited_for_already = self.child.wait();
    }
}

fn refused(pid: Pid) -> String {
    let error = seize(pid).expect_err("it is refused");
    error
        .downcast_ref::<Refused>()
        .unwrap_or_else(|| panic!("{error:#}"))
        .to_string()
}

fn state_of(pid: Pid) -> char {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).expect("its stat");
    stat.rsplit_once(") ")
        .and_then(|(_, fields)| fields.chars().next())
        .expect("a state")
}

fn wait_for_state(pid: Pid, state: char) {
    let deadline = Instant::now() + Duration::from_secs(10);
    while state_of(pid) != state {
        assert!(
            Instant::now() < deadline,
            "pid {pid} is {} instead of {state}",
            state_of(pid)
        );
        std::thread::sleep(Duration::from_millis(1));
    }
}

fn goes_unnoticed(source: &str, freezes: u32) {
    let target = Watched::start(build::fixture(source));
    let maps = target.maps();
    for freeze in 0..freezes {
        freeze_and_ask(target.pid());
        if freeze % 10 == 0 {
            target.assert_unharmed(&format!("after freeze {freeze}"));
        }
    }
    target.assert_unharmed("at the end");
    assert_eq!(target.maps(), maps);
}

#[test]
fn a_sleep_takes_as_long_as_it_was_to() {
    let mut command = Command::new("sleep");
    command.arg("0.6");
    let mut child = command.spawn().expect("sleep starts");
    let begin = Instant::now();
    std::thread::sleep(Duration::from_millis(200));
    freeze_and_ask(Pid::from_raw(child.id() as i32));
    assert!(child.wait().expect("its end").success());
    let took = begin.elapsed();
    assert!(
        took > Duration::from_millis(590) && took < Duration::from_millis(780),
        "{took:?}"
    );
}

#[test]
fn threads_in_many_calls_notice_nothing() {
    goes_unnoticed("freezer/watched.c", 60);
}

#[test]
fn epoll_wait_gives_no_eintr() {
    goes_unnoticed("freezer/epoll.c", 200);
}

#[test]
fn fifty_computing_threads_notice_nothing() {
    goes_unnoticed("freezer/spinning.c", 10);
}

#[test]
fn a_storm_of_signals_is_let_in() {
    goes_unnoticed("freezer/signalled.c", 100);
}

#[test]
fn a_critical_section_of_rseq_is_still_aborted() {
    goes_unnoticed("freezer/rseq.c", 100);
}

#[test]
fn threads_and_children_that_come_and_go_are_let_go() {
    let target = Watched::start(build::fixture("freezer/forking.c"));
    for _ in 0..100 {
        let mut process = seize(target.pid()).expect("it can be seized");
        for thread in 0..process.threads().len() {
            ask(&mut process, thread).expect("a thread answers");
        }
        process.resume().expect("it goes on");
    }
    target.assert_goes_on("after 100 freezes");
}

#[test]
fn the_registers_are_the_same_after_a_loan() {
    let target = Watched::start(build::fixture("freezer/watched.c"));
    let mut process = seize(target.pid()).expect("it can be seized");
    for thread in 0..process.threads().len() {
        let before = registers(&process.threads()[thread]);
        ask(&mut process, thread).expect("a thread answers");
        assert!(registers(&process.threads()[thread]) == before);
    }
    drop(process);
    target.assert_unharmed("after it was dropped");
}

fn registers(thread: &StoppedThread) -> Vec<RegSet> {
    let mut regsets = thread.regsets().expect("registers");
    // XSTATE_BV: whether the processor calls a component in use that holds its initial value is its own affair.
    let extended = regsets
        .iter_mut()
        .find(|regset| regset.note == 0x202)
        .expect("the extended state");
    extended.data[512..520].fill(0);
    regsets
}

#[test]
fn nothing_of_a_loan_stays_in_the_vdso() {
    let target = Target::start(build::fixture("freezer/known.c"));
    let vdso = |when: &str| {
        let maps = std::fs::read_to_string(format!("/proc/{}/maps", target.pid())).expect("its maps");
        let line = maps
            .lines()
            .find(|line| line.ends_with("[vdso]"))
            .expect("a vdso")
            .to_owned();
        let (start, end) = line
            .split(' ')
            .next()
            .and_then(|range| range.split_once('-'))
            .expect("a range");
        let [start, end] = [start, end].map(|addr| u64::from_str_radix(addr, 16).expect("hexadecimal"));
        let process = seize(target.pid()).expect(when);
        let mut bytes = vec![0; (end - start) as usize];
        process.memory().read_at(start, &mut bytes).expect("the vdso");
        bytes
    };
    let before = vdso("before");
    freeze_and_ask(target.pid());
    assert!(vdso("after") == before);
}

#[test]
fn the_answers_are_true() {
    let target = Target::start(build::fixture("freezer/known.c"));
    let known: Vec<u64> = target
        .line
        .split_whitespace()
        .map(|word| word.parse().expect("a number"))
        .collect();
    let [brk, stack, handler, tid_address] = known[..] else {
        panic!("{}", target.line)
    };
    wait_for_state(target.pid(), 'S');
    let mut process = seize(target.pid()).expect("it can be seized");
    let mut remote = Remote::borrow(&mut process, 0).expect("a loan");
    assert_eq!(remote.brk().unwrap(), brk);
    assert_eq!(
        remote.sigaltstack().unwrap(),
        SigAltStack {
            sp: stack,
            flags: 0,
            size: 32768
        }
    );
    let SignalAction {
        signal,
        handler: at,
        flags,
        mask,
        ..
    } = remote.sigaction(libc::SIGUSR2).unwrap();
    let given = (libc::SA_RESTART | libc::SA_NODEFER) as u64;
    assert_eq!(
        (signal, at, flags & given, mask),
        (libc::SIGUSR2, handler, given, 1 << (libc::SIGHUP - 1))
    );
    let TimerTime { left_ns, interval_ns } = remote.getitimer(libc::ITIMER_REAL).unwrap();
    assert_eq!(interval_ns, 1_000_250_000_000);
    assert!(left_ns > 4_990_000_000_000 && left_ns <= 5_000_000_000_000);
    let TimerTime { left_ns, interval_ns } = remote.timer_gettime(0).unwrap();
    assert_eq!((interval_ns, remote.timer_getoverrun(0).unwrap()), (3_000_000_004, 0));
    assert!(left_ns > 8_990_000_000_000 && left_ns <= 9_000_000_000_000);
    assert_eq!(remote.get_pdeath_signal().unwrap(), libc::SIGTERM);
    assert_eq!(remote.get_tid_address().unwrap(), tid_address);
    assert_eq!(remote.get_timer_slack().unwrap(), 77_000);
    assert_eq!(
        (remote.get_child_subreaper().unwrap(), remote.get_dumpable().unwrap()),
        (true, 1)
    );
    assert_eq!(
        (remote.get_securebits().unwrap(), remote.get_thp_disable().unwrap()),
        (0, 0)
    );
    let missing = remote.timer_gettime(77).unwrap_err();
    assert_eq!(missing.errno(), Some(nix::Error::EINVAL));
    remote.give_back().expect("the loan ends");
    let thread = &process.threads()[0];
    assert_eq!(thread.regs().syscall_number(), Some(libc::SYS_pause as u64));
    assert_eq!(thread.regs().result(), -514);
    assert!(thread.robust_list().unwrap().is_some());
}

#[test]
fn only_a_thread_in_a_timed_call_is_looked_at_before_the_stop() {
    let target = Target::start(build::fixture("blocked/nanosleep.c"));
    // READY is said by the other thread, which then has its way to go.
    let tasks = format!("/proc/{}/task", target.pid());
    let waits = |task: std::fs::DirEntry| {
        let call = std::fs::read_to_string(task.path().join("syscall")).unwrap_or_default();
        call.starts_with(&format!("{} ", libc::SYS_rt_sigtimedwait))
    };
    while !std::fs::read_dir(&tasks).expect("its threads").flatten().any(waits) {
        std::thread::sleep(Duration::from_millis(5));
    }
    let process = seize(target.pid()).expect("it can be seized");
    let looked_at = |number: i64| {
        let mut threads = process.threads().iter();
        let thread = threads.find(|thread| thread.regs().syscall_number() == Some(number as u64));
        thread.map(|thread| (thread.before_stop.exec_start_ns.is_some(), thread.slept_ns.is_some()))
    };
    // nanosleep(3) is clock_nanosleep(2) by now; the other thread waits for a signal without an end.
    assert_eq!(looked_at(libc::SYS_clock_nanosleep), Some((true, true)));
    assert_eq!(looked_at(libc::SYS_rt_sigtimedwait), Some((false, false)));
}

/// Before Linux 6.3 registrations are told by the barriers that work.
#[test]
fn registrations_are_found_without_the_command_that_tells_them() {
    let target = Target::start(build::fixture("threads/membarrier.c"));
    if let Some(why) = target.line.strip_prefix("SKIP ") {
        eprintln!("skipped: {why}");
        return;
    }
    let mut process = seize(target.pid()).expect("it is ours");
    let mut remote = Remote::borrow(&mut process, 0).expect("a loan begins");
    let told = remote.membarrier_registrations().expect("it answers");
    assert_ne!(told & 1 << 4, 0, "{told:#x}");
    assert_eq!(remote.membarriers_that_work().expect("they answer"), told);
    remote.give_back().expect("the loan ends");
}

#[test]
fn pending_signals_are_seen_in_both_queues() {
    let target = Target::start(build::fixture("freezer/known.c"));
    kill(target.pid(), Signal::SIGUSR1).expect("a signal"); // blocked by every fixture
    // SAFETY: the call takes numbers only.
    let sent = unsafe {
        libc::syscall(
            libc::SYS_tgkill,
            target.pid().as_raw(),
            target.pid().as_raw(),
            libc::SIGUSR1,
        )
    };
    assert_eq!(sent, 0);
    let process = seize(target.pid()).expect("it can be seized");
    for queue in [
        process.threads()[0].pending().unwrap(),
        process.threads()[0].shared_pending().unwrap(),
    ] {
        assert_eq!(queue.len(), 1);
        assert_eq!((queue[0].0.len(), queue[0].0[0]), (128, libc::SIGUSR1 as u8));
    }
    assert_eq!(process.threads()[0].sigmask().unwrap(), 1 << (libc::SIGUSR1 - 1));
}

#[test]
fn a_stopped_process_stays_stopped() {
    let target = Watched::start(build::fixture("freezer/watched.c"));
    kill(target.pid(), Signal::SIGSTOP).expect("a signal");
    wait_for_state(target.pid(), 'T');
    let mut process = seize(target.pid()).expect("it can be seized");
    assert_eq!(process.group_stop(), Some(libc::SIGSTOP));
    for thread in 0..process.threads().len() {
        ask(&mut process, thread).expect("a thread answers");
    }
    assert_eq!(process.group_stop(), Some(libc::SIGSTOP));
    process.resume().expect("it is let go");
    wait_for_state(target.pid(), 'T');
    std::thread::sleep(Duration::from_millis(20));
    assert_eq!(state_of(target.pid()), 'T');
    kill(target.pid(), Signal::SIGCONT).expect("a signal");
    target.assert_unharmed("after SIGCONT");
}

#[test]
fn left_stopped_it_goes_on_at_sigcont() {
    let target = Watched::start(build::fixture("freezer/watched.c"));
    for _ in 0..10 {
        let process = seize(target.pid()).expect("it can be seized");
        process.leave_stopped().expect("it is let go");
        assert_eq!(state_of(target.pid()), 'T');
        kill(target.pid(), Signal::SIGCONT).expect("a signal");
        target.assert_unharmed("after SIGCONT");
    }
}

#[test]
fn ended_it_is_gone() {
    let mut target = Watched::start(build::fixture("freezer/watched.c"));
    let mut process = seize(target.pid()).expect("it can be seized");
    ask(&mut process, 0).expect("it answers");
    process.end().expect("it ends");
    assert_eq!(state_of(target.pid()), 'Z');
    assert_eq!(target.child.wait().expect("its end").signal(), Some(libc::SIGKILL));
}

#[test]
fn a_traced_process_is_refused_by_the_name_of_its_tracer() {
    let target = Target::start(build::fixture("freezer/known.c"));
    let process = seize(target.pid()).expect("it can be seized");
    let pid = target.pid();
    let refusal = std::thread::spawn(move || refused(pid)).join().expect("a refusal");
    assert!(refusal.contains("is traced by pid "), "{refusal}");
    drop(process);
    seize(pid).expect("it can be seized again");
}

/// As a thaw under load, which lets one thread after the other go. A tracer's tasks are let go at the end of its thread.
#[test]
fn threads_that_another_tracer_is_letting_go_are_waited_for() {
    let target = Watched::start(build::fixture("freezer/watched.c"));
    let pid = target.pid().as_raw();
    let tasks = std::fs::read_dir(format!("/proc/{pid}/task")).expect("its threads");
    let tids = tasks.map(|task| {
        task.expect("a thread")
            .file_name()
            .to_str()
            .and_then(|tid| tid.parse::<i32>().ok())
    });
    let other = tids.flatten().find(|tid| *tid != pid).expect("it has several threads");
    let (tell, told) = std::sync::mpsc::channel();
    let tracer = std::thread::spawn(move || {
        // SAFETY: PTRACE_SEIZE takes numbers only.
        let seized = unsafe { libc::ptrace(libc::PTRACE_SEIZE, other, 0, 0) };
        tell.send(seized).expect("somebody listens");
        std::thread::sleep(Duration::from_millis(300));
    });
    assert_eq!(told.recv().expect("it tells"), 0);
    seize(target.pid())
        .expect("it can be seized")
        .resume()
        .expect("it is let go");
    tracer.join().expect("it does not panic");
    target.assert_unharmed("after two tracers");
}

#[test]
fn an_ended_main_thread_is_refused() {
    let target = Target::start(build::fixture("freezer/leader_gone.c"));
    wait_for_state(target.pid(), 'Z');
    let refusal = refused(target.pid());
    assert!(
        refusal.contains("the main thread has ended while other threads go on"),
        "{refusal}"
    );
}

#[test]
fn a_worker_of_io_uring_is_refused() {
    let target = Target::start(build::fixture("freezer/io_uring.c"));
    if target.line == "SKIP\n" {
        return eprintln!("skipped: this machine has no io_uring");
    }
    let refusal = refused(target.pid());
    assert!(refusal.contains("uses io_uring"), "{refusal}");
    wait_for_state(target.pid(), 'S');
}

#[test]
fn without_a_vdso_the_way_home_lies_in_the_tail_of_a_file_mapping() {
    let target = Target::start(build::fixture("freezer/no_vdso.c"));
    wait_for_state(target.pid(), 'S');
    for _ in 0..3 {
        freeze_and_ask(target.pid());
        wait_for_state(target.pid(), 'S');
    }
}

#[test]
fn a_short_vfork_is_waited_for() {
    let mut command = build::fixture("freezer/long_vfork.c");
    command.arg("1");
    let target = Target::start(command);
    wait_for_state(target.pid(), 'D');
    let process = seize(target.pid()).expect("it can be seized in the end");
    assert_eq!(process.children().expect("children").len(), 1);
    process.resume().expect("it goes on");
}

#[test]
fn a_parent_in_a_long_vfork_is_left_alone() {
    let mut command = build::fixture("freezer/long_vfork.c");
    command.arg("9");
    let target = Target::start(command);
    wait_for_state(target.pid(), 'D');
    let pid = target.pid();
    // The kernel lets go of what cannot stop when its tracer, a thread, ends.
    let error = std::thread::spawn(move || seize(pid).expect_err("it cannot stop").to_string()).join();
    let error = error.expect("an error");
    assert!(error.contains("did not stop within 5 s: it waits in vfork"), "{error}");
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).expect("its status");
    assert!(status.contains("TracerPid:\t0\n"), "{status}");
    wait_for_state(pid, 'S');
}

#[test]
fn a_waiting_signal_is_delivered_before_a_loan() {
    let target = Target::start(build::fixture("freezer/known.c"));
    let handler: u64 = target
        .line
        .split_whitespace()
        .nth(2)
        .expect("its handler")
        .parse()
        .expect("a number");
    wait_for_state(target.pid(), 'S');
    let mut process = seize(target.pid()).expect("it can be seized");
    kill(target.pid(), Signal::SIGUSR2).expect("a signal");
    ask(&mut process, 0).expect("it answers");
    assert_eq!(process.threads()[0].regs().pc(), handler);
    process.resume().expect("it goes on");
    wait_for_state(target.pid(), 'S');
    freeze_and_ask(target.pid());
}

#[test]
fn a_signal_that_waits_for_sigcont_is_not_delivered_early() {
    let target = Target::start(build::fixture("freezer/known.c"));
    for signal in [Signal::SIGSTOP, Signal::SIGTERM] {
        kill(target.pid(), signal).expect("a signal");
        wait_for_state(target.pid(), 'T');
    }
    let mut process = seize(target.pid()).expect("it can be seized");
    let error = Remote::borrow(&mut process, 0).expect_err("no loan");
    assert!(matches!(error, Error::SignalWaits(_)), "{error}");
    drop(process);
    wait_for_state(target.pid(), 'T');
}

/// Its first thread is reported as ended after all others, which nobody waits for in a loan.
#[test]
fn a_process_that_a_signal_ends_in_a_loan_is_gone() {
    let target = Watched::start(build::fixture("freezer/watched.c"));
    let pid = target.pid();
    // What a thread traces is let go when it ends.
    let tracer = std::thread::spawn(move || {
        let mut process = seize(pid).expect("the target can be seized");
        kill(pid, Signal::SIGTERM).expect("a signal");
        Remote::borrow(&mut process, 0).expect_err("it ends").to_string()
    });
    assert!(tracer.join().expect("no panic").contains("gone"));
}
