//! A process that waits with given descriptors, what is looked at in it, and what is made of that here.

use std::fs::{File, OpenOptions};
use std::io::Read;
use std::os::fd::{AsFd, AsRawFd, OwnedFd, RawFd};
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command};
use std::sync::Mutex;

use cryopod::fd::{self, Looked, ReopenContext, SharedObjects, Stdio};
use cryopod::image::state::{Clocks, Host, Snapshot};
use nix::fcntl::{FcntlArg, fcntl};
use nix::unistd::Pid;

/// Numbers from this one on get FD_CLOEXEC in a [`Waiting`] child.
pub const CLOEXEC: RawFd = 500;

/// A child that has exactly the given descriptors, under the given numbers, and waits.
pub struct Waiting(pub Child);

impl Waiting {
    pub fn with(files: &[(&dyn AsFd, RawFd)]) -> Self {
        let numbers: Vec<(RawFd, RawFd)> = files
            .iter()
            .map(|(file, number)| (file.as_fd().as_raw_fd(), *number))
            .collect();
        let mut command = Command::new("never executed");
        // SAFETY: between fork and exec only system calls are made. exec never happens: closing the pipe that reports its
        // outcome lets spawn() return.
        unsafe {
            command.pre_exec(move || {
                libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL);
                for (index, &(ours, _)) in (0..).zip(&numbers) {
                    libc::dup2(ours, 1000 + index);
                }
                libc::syscall(libc::SYS_close_range, 0, 999, 0);
                for (index, &(_, number)) in (0..).zip(&numbers) {
                    libc::dup3(
                        1000 + index,
                        number,
                        if number >= CLOEXEC { libc::O_CLOEXEC } else { 0 },
                    );
                }
                libc::syscall(libc::SYS_close_range, 1000, u32::MAX, 0);
                loop {
                    libc::pause();
                }
            });
        }
        // Until it has closed them, a child has all that other tests have open, and their pipes look like pipes to outside.
        static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());
        let _guard = ONE_AT_A_TIME.lock().unwrap();
        let child = Waiting(command.spawn().unwrap());
        let call = format!("/proc/{}/syscall", child.0.id());
        while !std::fs::read_to_string(&call)
            .unwrap()
            .starts_with(&format!("{} ", libc::SYS_pause))
        {
            std::thread::yield_now();
        }
        child
    }

    pub fn look(&self) -> (Looked, SharedObjects) {
        let mut shared = SharedObjects::new().unwrap();
        let proc = File::open(format!("/proc/{}", self.0.id())).unwrap();
        let pid = Pid::from_raw(i32::try_from(self.0.id()).unwrap());
        (fd::look(&[(pid, proc.as_fd())], &[0], &mut shared).unwrap(), shared)
    }

    /// What the table looks like once the process is gone.
    pub fn thaw(self) -> Thawed {
        let (looked, shared) = self.look();
        assert_eq!(looked.refusals, []);
        drop(self);
        Thawed::from(looked, shared, Stdio::own(None, vec![]).unwrap())
    }

    pub fn refusals(&self) -> Vec<String> {
        self.look().0.refusals.iter().map(ToString::to_string).collect()
    }
}

impl Drop for Waiting {
    fn drop(&mut self) {
        self.0.kill().unwrap();
        self.0.wait().unwrap();
    }
}

pub struct Thawed {
    pub snapshot: Snapshot,
    files: Vec<OwnedFd>,
    pub context: ReopenContext,
}

impl Thawed {
    pub fn from(looked: Looked, shared: SharedObjects, stdio: Stdio) -> Self {
        let (shared_objects, sources) = shared.into_parts();
        let snapshot = snapshot(looked, shared_objects);
        let objects = snapshot.shared_objects.iter().zip(&sources).map(|(object, source)| {
            let made = fd::make_memfd(object).unwrap();
            std::io::copy(
                &mut File::from(source.try_clone().unwrap()),
                &mut File::from(made.try_clone().unwrap()),
            )
            .unwrap();
            made
        });
        let mut context = ReopenContext::new(objects.collect(), vec![], stdio);
        let check = fd::check(&snapshot, &context.stdio);
        assert_eq!((check.refusals, check.warnings), (vec![], vec![]));
        let files = fd::reopen(&snapshot, &mut context).unwrap();
        fd::finish(&snapshot, &files, &context.shared).unwrap();
        Thawed {
            snapshot,
            files,
            context,
        }
    }

    /// The descriptor that belongs under `number`.
    pub fn fd(&self, number: i32) -> &OwnedFd {
        let entry = self.snapshot.fd_tables[0]
            .entries
            .iter()
            .find(|entry| entry.fd == number)
            .unwrap();
        &self.files[entry.description as usize]
    }

    pub fn file(&self, number: i32) -> File {
        self.fd(number).try_clone().unwrap().into()
    }

    pub fn flags(&self, number: i32) -> i32 {
        fcntl(self.fd(number), FcntlArg::F_GETFL).unwrap()
    }
}

pub fn snapshot(looked: Looked, shared_objects: Vec<cryopod::image::state::SharedObject>) -> Snapshot {
    let host = Host {
        cryopod_version: String::new(),
        hostname: String::new(),
        kernel_release: String::new(),
        boot_id: String::new(),
        vdso: Vec::new(),
        cpu_features: Vec::new(),
    };
    Snapshot {
        host,
        clocks: Clocks::default(),
        processes: vec![],
        zombies: vec![],
        leaderless: vec![],
        fd_tables: looked.tables,
        descriptions: looked.descriptions,
        ptys: looked.ptys,
        shared_objects,
        semaphore_sets: vec![],
        message_queues: vec![],
        files: vec![],
    }
}

pub fn flags_of(file: &impl AsFd) -> i32 {
    fcntl(file, FcntlArg::F_GETFL).unwrap()
}

pub fn read_all(mut file: File) -> Vec<u8> {
    let mut bytes = Vec::new();
    file.read_to_end(&mut bytes).unwrap();
    bytes
}

pub fn temporary(content: &[u8]) -> (tempfile::TempDir, std::path::PathBuf) {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("file");
    std::fs::write(&path, content).unwrap();
    (directory, path)
}

pub fn open_with(path: &Path, flags: i32) -> File {
    OpenOptions::new()
        .read(true)
        .write(true)
        .custom_flags(flags)
        .open(path)
        .unwrap()
}
