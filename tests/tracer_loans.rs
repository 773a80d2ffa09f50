//! Seizing whole processes and running system calls in them: the target must not notice.

use std::process::{Child, Command, Stdio};
use std::time::Duration;

use cryopod::tracer::{Remote, StoppedProcess, seize};
use nix::unistd::Pid;

/// A child that is killed when the test ends, however it ends.
struct Target(Child);

impl Target {
    fn start(mut command: Command) -> Self {
        let child = command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("the target starts");
        std::thread::sleep(Duration::from_millis(100));
        Target(child)
    }

    fn pid(&self) -> Pid {
        Pid::from_raw(self.0.id() as i32)
    }
}

impl Drop for Target {
    fn drop(&mut self) {
        let _ended_already = self.0.kill();
        let _waited_for_already = self.0.wait();
    }
}

fn ask_all(process: &mut StoppedProcess) {
    for thread in 0..process.threads().len() {
        let before = *process.threads()[thread].regs();
        let mut remote = Remote::borrow(process, thread).unwrap();
        assert!(remote.get_tid_address().unwrap() != 0);
        remote.sigaltstack().unwrap();
        assert!(remote.brk().unwrap() > 0);
        remote.give_back().unwrap();
        assert_eq!(&before, process.threads()[thread].regs());
    }
}

#[test]
fn a_sleeping_process_is_asked_and_goes_on() {
    let mut command = Command::new("sleep");
    command.arg("0.5");
    let mut target = Target::start(command);
    let begin = std::time::Instant::now();
    let mut process = seize(target.pid()).unwrap();
    ask_all(&mut process);
    process.resume().unwrap();
    assert!(target.0.wait().unwrap().success());
    assert!(begin.elapsed() < Duration::from_millis(600), "{:?}", begin.elapsed());
}
