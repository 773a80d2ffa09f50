//! What a process may have that freeze does not carry: each is refused by name, with exit code 3, and the program is unharmed.

mod common;

use common::{Program, build, cryopod, scratch, skipped, state, stderr};
use nix::sys::signal::Signal;
use std::path::PathBuf;
use std::process::Output;

/// A program that has one thing that cannot be carried.
struct Holder {
    program: Program,
    dir: tempfile::TempDir,
}

impl Holder {
    /// None where this machine cannot have the thing.
    fn of(thing: &str) -> Option<Self> {
        let dir = scratch();
        let mut program = Program::start(build::fixture("refused/one_of.c").arg(thing).current_dir(dir.path()));
        let line = program.wait_for(|line| line == "READY" || line.starts_with("SKIP "));
        if let Some(why) = line.strip_prefix("SKIP ") {
            skipped(why);
            return None;
        }
        Some(Holder { program, dir })
    }

    fn image(&self) -> PathBuf {
        self.dir.path().join("app.img")
    }

    fn freeze(&self) -> Output {
        cryopod(&[&"freeze", &self.program.pid.to_string(), &"-o", &self.image()])
    }
}

/// Refused with all these words, and nothing else is different afterwards.
fn refused(thing: &str, words: &[&str]) {
    let Some(holder) = Holder::of(thing) else { return };
    let freeze = holder.freeze();
    let said = stderr(&freeze);
    assert_eq!(freeze.status.code(), Some(3), "{said}");
    assert!(said.contains(&format!("pid {}: ", holder.program.pid)), "{said}");
    for word in words {
        assert!(said.contains(word), "{word:?} is not in: {said}");
    }
    assert!(!holder.image().exists());
    assert_ne!(state(holder.program.pid), Some('T'), "the program was left stopped");
    holder.program.signal(Signal::SIGUSR1);
    holder.program.expect_pass();
}

macro_rules! refused {
    ($($name:ident: $thing:literal, $($word:literal),+;)+) => {
        $(#[test]
        fn $name() {
            refused($thing, &[$($word),+]);
        })+
    };
}

refused! {
    huge_pages: "hugetlb", "huge pages";
    memory_served_by_userfaultfd: "userfault", "mapping ", "userfaultfd";
    an_io_uring: "uring", "io_uring";
    an_asynchronous_queue: "aio", "asynchronous";
    memory_of_performance_events: "perf", "mapping ", "cannot be carried";
    secret_memory: "secret", "secret memory";
    segments_of_its_own: "ldt", "modify_ldt";
    a_seccomp_filter_that_forbids_to_ask: "seccomp_asking", "thread ", "seccomp filter that forbids sigaltstack", "allow that call";
    a_seccomp_filter_that_forbids_loans: "seccomp_loans", "thread ", "seccomp filter that forbids munmap", "allow that call";
    a_supervised_seccomp_filter: "seccomp_supervised", "seccomp", "supervisor", "start the program without";
    strict_seccomp: "seccomp_strict", "strict mode of seccomp", "start the program without";
    a_deleted_working_directory: "directory", "working directory", "was deleted";
    a_thread_with_its_own_descriptors: "own_table", "thread ", "its table of descriptors";
    a_tracer: "tracer", "the process", "is traced by pid", "detach that tracer";
    another_namespace: "namespaces", "namespace", "nsenter";
    half_a_vdso: "no_vdso", "[vdso]", "not mapped as the kernel maps it";
    a_socket: "socket", "fd ", "socket";
    a_posix_lock: "posix_lock", "fd ", "lock";
    a_lock_of_a_file: "flock", "fd ", "lock";
    a_thread_with_its_own_adjustments_of_semaphores: "undo_list", "thread ", "its System V semaphore adjustments";
    a_message_queue_that_tells_of_messages: "queue_notified", "fd ", "mq_notify";
    a_message_queue_of_somebody_else_too: "queue_outsider", "fd ", "used by several processes";
    a_pseudo_terminal_that_nobody_has_opened: "pty_unopened", "fd ", "nobody has opened yet", "freeze again";
    a_pseudo_terminal_of_somebody_else_too: "pty_outsider", "fd ", "has open, too", "freeze it along";
    a_process_with_the_same_memory: "memory_sharer", "process ", "shares its memory";
    a_time_namespace_for_its_children: "time_of_children", "time_for_children namespace", "nsenter";
}

/// It pauses in int 0x80, and goes on in its handler.
#[test]
#[cfg(target_arch = "x86_64")]
fn a_program_of_32_bits() {
    let dir = scratch();
    let mut program = Program::start(build::fixture("refused/bits32.c").current_dir(dir.path()));
    program.wait_for(|line| line == "READY");
    let image = dir.path().join("app.img");
    for _ in 0..3 {
        let freeze = cryopod(&[&"freeze", &program.pid.to_string(), &"-o", &image]);
        assert_eq!(freeze.status.code(), Some(3), "{}", stderr(&freeze));
        assert!(stderr(&freeze).contains("32-bit"), "{}", stderr(&freeze));
        assert!(!image.exists());
    }
    program.signal(Signal::SIGUSR1);
    program.expect_pass();
}

#[test]
fn a_dry_run_tells_all_refusals_at_once() {
    let Some(holder) = Holder::of("socket") else { return };
    let dry = cryopod(&[&"freeze", &holder.program.pid.to_string(), &"--dry-run"]);
    assert_eq!(dry.status.code(), Some(3), "{}", stderr(&dry));
    assert!(stderr(&dry).contains("is a socket"), "{}", stderr(&dry));
    holder.program.signal(Signal::SIGUSR1);
    holder.program.expect_pass();
}

/// The first of two is gone: nothing happens to the other.
#[test]
fn several_pids_of_which_one_does_not_exist() {
    let mut ended = std::process::Command::new("true").spawn().expect("true(1) is there");
    ended.wait().expect("it is our child");
    let dir = scratch();
    let program = Program::start(build::fixture("memory/heap.c").current_dir(dir.path()));
    let image = dir.path().join("app.img");
    let freeze = cryopod(&[
        &"freeze",
        &program.pid.to_string(),
        &ended.id().to_string(),
        &"-o",
        &image,
    ]);
    assert_eq!(freeze.status.code(), Some(3), "{}", stderr(&freeze));
    assert!(stderr(&freeze).contains("does not exist"), "{}", stderr(&freeze));
    assert!(!image.exists());
}

/// Two children that share it; it is one of them that the refusal names.
#[test]
fn siblings_with_one_table_of_descriptors() {
    let Some(holder) = Holder::of("sharing_siblings") else {
        return;
    };
    let freeze = holder.freeze();
    let said = stderr(&freeze);
    assert_eq!(freeze.status.code(), Some(3), "{said}");
    assert!(
        said.contains("shares its table of descriptors with it, and neither of them"),
        "{said}"
    );
    assert!(!holder.image().exists());
    holder.program.signal(Signal::SIGUSR1);
    holder.program.expect_pass();
}
