//! Programs that people use, from Debian's packages (`tests/setup` installs them), in the middle of their work.

mod common;

/// A Java program's /tmp/hsperfdata_USER/PID is removed by any other Java program that starts while its process is frozen; the file
/// is mapped, and a thaw needs it. So Java programs run one at a time.
macro_rules! java_program {
    ($name:ident, $source:literal) => {
        mod $name {
            use crate::common::{RoundTrip, build};

            #[test]
            fn once() {
                let _alone = build::alone("java");
                RoundTrip::of($source).inspect(|trip| trip.cycles(1));
            }
            #[test]
            fn twice() {
                let _alone = build::alone("java");
                RoundTrip::of($source).inspect(|trip| trip.cycles(2));
            }
            #[test]
            fn left_running() {
                let _alone = build::alone("java");
                RoundTrip::of($source).inspect(|trip| trip.left_running());
            }
        }
    };
}

common::roundtrip!(python_threads, "real/python_threads.py");
common::roundtrip!(python_pool, "real/python_pool.py");
common::roundtrip!(python_objects, "real/python_objects.py");
common::roundtrip!(python_sqlite, "real/python_sqlite.py");
common::roundtrip!(node_workers, "real/node_workers.js");
common::roundtrip!(go_routines, "real/work.go");
common::roundtrip!(perl, "real/perl.pl");
common::roundtrip!(rust_hundred_threads, "rust/hundred.rs");
java_program!(java_jit_and_gc, "real/Work.java");
java_program!(java_clock, "clock/Clock.java");

/// xz in the middle of a file: what it writes in the end is what an undisturbed xz writes, to the bit.
mod xz {
    use crate::common::{PATIENCE, Program, can_thaw, scratch};
    use std::fs;
    use std::io::Write;
    use std::path::Path;
    use std::process::Command;
    use std::time::{Duration, Instant};

    #[test]
    fn once() {
        disturbed(|xz, dir| cycle(xz, &dir.join("1.img")));
    }

    #[test]
    fn twice() {
        disturbed(|xz, dir| cycle(cycle(xz, &dir.join("1.img")), &dir.join("2.img")));
    }

    #[test]
    fn left_running() {
        disturbed(|mut xz, dir| {
            xz.freeze_with(&dir.join("1.img"), &["--leave-running"]);
            xz
        });
    }

    fn cycle(xz: Program, image: &Path) -> Program {
        let pid = xz.pid;
        xz.freeze(image);
        Program::thaw(image, pid)
    }

    /// Compresses the same data twice, once with `disturb` when half of it is read, and compares.
    fn disturbed(disturb: impl FnOnce(Program, &Path) -> Program) {
        if !can_thaw() {
            return;
        }
        let dir = scratch();
        let (calm, half) = (dir.path().join("calm"), dir.path().join("half"));
        fs::write(&calm, prose(6 << 20)).expect("the directory takes a file");
        fs::copy(&calm, &half).expect("the directory takes a copy");
        let mut undisturbed = Program::start(&mut xz(&calm));
        let mut program = Program::start(&mut xz(&half));
        wait_until_half_is_read(&mut program, &half);
        program = disturb(program, dir.path());
        assert!(program.wait().success(), "xz failed: {}", program.output);
        assert!(undisturbed.wait().success());
        let (calm, half) = (fs::read(calm.with_extension("xz")), fs::read(half.with_extension("xz")));
        assert!(
            calm.expect("xz made it") == half.expect("xz made it"),
            "the files differ"
        );
    }

    fn xz(file: &Path) -> Command {
        let mut command = Command::new("xz");
        command.args(["-6", "--keep", "--threads=1"]).arg(file);
        command
    }

    fn wait_until_half_is_read(program: &mut Program, file: &Path) {
        let half = fs::metadata(file).expect("the file is there").len() / 2;
        let deadline = Instant::now() + PATIENCE;
        while position_in(program.pid, file).is_none_or(|position| position < half) {
            assert!(Instant::now() < deadline, "xz does not read on: {}", program.output);
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// Where the descriptor of the process that has `file` open stands.
    fn position_in(pid: i32, file: &Path) -> Option<u64> {
        let fds = fs::read_dir(format!("/proc/{pid}/fd")).ok()?;
        let fd = fds
            .flatten()
            .find(|fd| fs::read_link(fd.path()).is_ok_and(|target| target == file))?;
        let info = fs::read_to_string(format!("/proc/{pid}/fdinfo/{}", fd.file_name().display())).ok()?;
        info.lines()
            .find_map(|line| line.strip_prefix("pos:"))?
            .trim()
            .parse()
            .ok()
    }

    /// Text that can be compressed, but not at once.
    fn prose(len: usize) -> Vec<u8> {
        let mut text = Vec::with_capacity(len + 64);
        let mut state = 88172645463325252_u64;
        while text.len() < len {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            let word = ["ice", "pod", "thaw", "freeze", "kernel", "page"][state as usize % 6];
            write!(text, "{word} {:x} ", state % 4096).expect("memory takes it");
        }
        text
    }
}
