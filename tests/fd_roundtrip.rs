//! Descriptors of a process that only waits are looked at from outside and made again here. The process is a forked child
//! of the test; the whole way through an image and another process is proved by the fixtures in fixtures/fd.

use std::fs::{File, OpenOptions};
use std::io::{Read, Seek, SeekFrom, Write};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command};
use std::sync::Mutex;

use cryopod::fd::{self, Looked, OwnerCall, ReopenContext, SharedObjects, Stdio};
use cryopod::image::state::{Clocks, FdTable, Host, Snapshot};
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::poll::{PollFd, PollFlags, PollTimeout};
use nix::unistd::{Pid, pipe2};

/// Numbers from this one on get FD_CLOEXEC in a [`Waiting`] child.
const CLOEXEC: RawFd = 500;

/// A child that has exactly the given descriptors, under the given numbers, and waits.
struct Waiting(Child);

impl Waiting {
    fn with(files: &[(&dyn AsFd, RawFd)]) -> Self {
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

    fn look(&self) -> (Looked, SharedObjects) {
        let mut shared = SharedObjects::new().unwrap();
        let proc = File::open(format!("/proc/{}", self.0.id())).unwrap();
        let pid = Pid::from_raw(i32::try_from(self.0.id()).unwrap());
        (fd::look(pid, proc.as_fd(), &mut shared).unwrap(), shared)
    }

    /// What the table looks like once the process is gone.
    fn thaw(self) -> Thawed {
        let (looked, shared) = self.look();
        assert_eq!(looked.refusals, []);
        drop(self);
        Thawed::from(looked, shared, Stdio::own().unwrap())
    }

    fn refusals(&self) -> Vec<String> {
        self.look().0.refusals.iter().map(ToString::to_string).collect()
    }
}

impl Drop for Waiting {
    fn drop(&mut self) {
        self.0.kill().unwrap();
        self.0.wait().unwrap();
    }
}

struct Thawed {
    snapshot: Snapshot,
    files: Vec<OwnedFd>,
    context: ReopenContext,
}

impl Thawed {
    fn from(looked: Looked, shared: SharedObjects, stdio: Stdio) -> Self {
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
        let mut context = ReopenContext::new(objects.collect(), stdio);
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
    fn fd(&self, number: i32) -> &OwnedFd {
        let entry = self.snapshot.fd_tables[0]
            .entries
            .iter()
            .find(|entry| entry.fd == number)
            .unwrap();
        &self.files[entry.description as usize]
    }

    fn file(&self, number: i32) -> File {
        self.fd(number).try_clone().unwrap().into()
    }

    fn flags(&self, number: i32) -> i32 {
        fcntl(self.fd(number), FcntlArg::F_GETFL).unwrap()
    }
}

fn snapshot(looked: Looked, shared_objects: Vec<cryopod::image::state::SharedObject>) -> Snapshot {
    let host = Host {
        cryopod_version: String::new(),
        hostname: String::new(),
        kernel_release: String::new(),
        boot_id: String::new(),
        vdso_hash: 0,
    };
    Snapshot {
        host,
        clocks: Clocks::default(),
        processes: vec![],
        fd_tables: vec![looked.table],
        descriptions: looked.descriptions,
        shared_objects,
        files: vec![],
    }
}

fn flags_of(file: &impl AsFd) -> i32 {
    fcntl(file, FcntlArg::F_GETFL).unwrap()
}

fn read_all(mut file: File) -> Vec<u8> {
    let mut bytes = Vec::new();
    file.read_to_end(&mut bytes).unwrap();
    bytes
}

fn temporary(content: &[u8]) -> (tempfile::TempDir, std::path::PathBuf) {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("file");
    std::fs::write(&path, content).unwrap();
    (directory, path)
}

fn open_with(path: &Path, flags: i32) -> File {
    OpenOptions::new()
        .read(true)
        .write(true)
        .custom_flags(flags)
        .open(path)
        .unwrap()
}

#[test]
fn files_come_back_with_offset_flags_and_sharing() {
    let (_directory, path) = temporary(b"0123456789");
    let mut file = open_with(&path, libc::O_APPEND | libc::O_NONBLOCK | libc::O_DSYNC);
    file.seek(SeekFrom::Start(4)).unwrap();
    let other = File::open(&path).unwrap();
    let thawed = Waiting::with(&[(&file, 5), (&file, 7), (&other, 6)]).thaw();

    assert_eq!(thawed.file(5).stream_position().unwrap(), 4);
    assert_eq!(thawed.flags(5), flags_of(&file));
    assert_eq!(thawed.fd(5).as_raw_fd(), thawed.fd(7).as_raw_fd());
    assert_ne!(thawed.fd(5).as_raw_fd(), thawed.fd(6).as_raw_fd());
    assert_eq!(read_all(thawed.file(6)), b"0123456789");
}

#[test]
fn looking_moves_no_offset() {
    let (_directory, path) = temporary(b"0123456789");
    let mut file = open_with(&path, 0);
    file.seek(SeekFrom::Start(3)).unwrap();
    let flags = flags_of(&file);
    let _looked = Waiting::with(&[(&file, 5)]).look();
    assert_eq!((file.stream_position().unwrap(), flags_of(&file)), (3, flags));
}

#[test]
fn a_file_that_only_has_another_name_is_refused() {
    let (_directory, path) = temporary(b"old");
    let file = File::open(&path).unwrap();
    std::fs::hard_link(&path, path.with_extension("link")).unwrap();
    std::fs::remove_file(&path).unwrap();
    let refusals = Waiting::with(&[(&file, 5)]).refusals();
    assert_eq!(refusals.len(), 1);
    assert!(
        refusals[0].contains("fd 5 (") && refusals[0].contains("was deleted or renamed"),
        "{refusals:?}"
    );
}

#[test]
fn a_planted_fifo_is_refused_and_does_not_block() {
    let (_directory, path) = temporary(b"data");
    let file = File::open(&path).unwrap();
    let (looked, _shared) = Waiting::with(&[(&file, 5)]).look();
    std::fs::remove_file(&path).unwrap();
    nix::unistd::mkfifo(&path, nix::sys::stat::Mode::S_IRWXU).unwrap();
    let snapshot = snapshot(looked, vec![]);
    let mut context = ReopenContext::new(vec![], Stdio::own().unwrap());
    let check = fd::check(&snapshot, &context.stdio);
    assert!(
        check.refusals[0]
            .to_string()
            .contains("is now a FIFO, and was a regular file"),
        "{:?}",
        check.refusals
    );
    assert!(fd::reopen(&snapshot, &mut context).is_err());
}

#[test]
fn a_shorter_file_is_refused_and_a_longer_one_is_a_warning() {
    let (_directory, path) = temporary(b"data");
    let file = File::open(&path).unwrap();
    let (looked, _shared) = Waiting::with(&[(&file, 5)]).look();
    let snapshot = snapshot(looked, vec![]);
    let stdio = Stdio::own().unwrap();
    std::fs::write(&path, "dat").unwrap();
    assert!(fd::check(&snapshot, &stdio).refusals[0].to_string().contains("shorter"));
    std::fs::write(&path, "data and more").unwrap();
    let check = fd::check(&snapshot, &stdio);
    assert_eq!((check.refusals, check.warnings.len()), (vec![], 1));
    std::fs::remove_file(&path).unwrap();
    assert!(
        fd::check(&snapshot, &stdio).refusals[0]
            .to_string()
            .contains("is not there")
    );
}

#[test]
fn a_lock_is_refused_by_its_kind() {
    let (_directory, path) = temporary(b"data");
    let file = File::open(&path).unwrap();
    file.lock().unwrap();
    let refusals = Waiting::with(&[(&file, 5)]).refusals();
    assert!(refusals[0].contains("holds a FLOCK lock"), "{refusals:?}");
}

#[test]
fn what_no_kind_claims_is_refused_by_name() {
    let socket = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
    // SAFETY: makes a new descriptor.
    let inotify = unsafe { OwnedFd::from_raw_fd(libc::inotify_init1(libc::IN_CLOEXEC)) };
    let own = File::open("/proc/self/status").unwrap();
    let refusals = Waiting::with(&[(&socket, 3), (&own, 4), (&inotify, 5)]).refusals();
    assert!(
        refusals[0].contains("fd 3 (socket:[") && refusals[0].contains("is a socket"),
        "{refusals:?}"
    );
    assert!(
        refusals[1].contains("fd 4 (/proc/") && refusals[1].contains("belongs to a process"),
        "{refusals:?}"
    );
    assert!(refusals[2].contains("is of kind inotify"), "{refusals:?}");
}

#[test]
fn directories_and_devices_come_back() {
    let (directory, _path) = temporary(b"");
    let opened = File::open(directory.path()).unwrap();
    let null = open_with(Path::new("/dev/null"), 0);
    let random = File::open("/dev/urandom").unwrap();
    let place = OpenOptions::new()
        .read(true)
        .custom_flags(libc::O_PATH)
        .open(directory.path())
        .unwrap();
    let thawed = Waiting::with(&[(&opened, 3), (&null, 4), (&random, 5), (&place, 6)]).thaw();
    assert!(thawed.file(3).metadata().unwrap().is_dir());
    assert_eq!(thawed.flags(3), flags_of(&opened));
    thawed.file(4).write_all(b"gone").unwrap();
    thawed.file(5).read_exact(&mut [0; 8]).unwrap();
    assert_eq!(thawed.flags(6), flags_of(&place));
}

#[test]
fn a_pipe_comes_back_with_bytes_flags_and_all_its_ends() {
    let (reader, writer) = pipe2(OFlag::O_CLOEXEC).unwrap();
    fcntl(&writer, FcntlArg::F_SETFL(OFlag::O_NONBLOCK)).unwrap();
    File::from(writer.try_clone().unwrap()).write_all(b"unread").unwrap();
    let second = File::open(format!("/proc/self/fd/{}", reader.as_raw_fd())).unwrap();
    let thawed = Waiting::with(&[(&reader, 3), (&writer, 4), (&second, 5)]).thaw();

    for (number, file) in [(3, reader.as_fd()), (4, writer.as_fd()), (5, second.as_fd())] {
        assert_eq!(thawed.flags(number), flags_of(&file), "fd {number}");
    }
    thawed.file(4).write_all(b" and new").unwrap();
    let mut bytes = [0; 14];
    thawed.file(5).read_exact(&mut bytes).unwrap();
    assert_eq!(&bytes, b"unread and new");
}

#[test]
fn a_widowed_pipe_ends_after_its_bytes() {
    let (reader, writer) = pipe2(OFlag::O_CLOEXEC).unwrap();
    File::from(writer).write_all(b"the last").unwrap();
    let (other_reader, other_writer) = pipe2(OFlag::O_CLOEXEC).unwrap();
    drop(other_reader);
    let thawed = Waiting::with(&[(&reader, 3), (&other_writer, 4)]).thaw();
    assert_eq!(read_all(thawed.file(3)), b"the last");
    let error = thawed.file(4).write(b"nobody reads").unwrap_err();
    assert_eq!(error.kind(), std::io::ErrorKind::BrokenPipe);
}

#[test]
fn stdin_from_outside_brings_its_unread_bytes_first() {
    let (reader, writer) = pipe2(OFlag::O_CLOEXEC).unwrap();
    let (out_reader, out_writer) = pipe2(OFlag::O_CLOEXEC).unwrap();
    File::from(writer.try_clone().unwrap()).write_all(b"waited, ").unwrap();
    let waiting = Waiting::with(&[(&reader, 0), (&out_writer, 1), (&out_writer, 2), (&out_writer, 9)]);
    let (looked, shared) = waiting.look();
    assert_eq!(looked.refusals, []);
    drop((waiting, out_reader));

    let (_directory, path) = temporary(b"thaw's own");
    let output = File::create(path.with_extension("out")).unwrap();
    let clone = || OwnedFd::from(output.try_clone().unwrap());
    let stdio = Stdio([File::open(&path).unwrap().into(), clone(), clone()]);
    let mut thawed = Thawed::from(looked, shared, stdio);
    let pump = thawed.context.pumps.pop().unwrap();
    let pumping = std::thread::spawn(|| pump.run());
    assert_eq!(read_all(thawed.file(0)), b"waited, thaw's own");
    pumping.join().unwrap().unwrap();
    for number in [1, 2, 9] {
        thawed.file(number).write_all(b"x").unwrap();
    }
    assert_eq!(std::fs::read(path.with_extension("out")).unwrap(), b"xxx");
}

#[test]
fn more_pipes_to_the_outside_than_stdio_are_refused() {
    let pipes: Vec<_> = (0..4).map(|_| pipe2(OFlag::O_CLOEXEC).unwrap()).collect();
    let waiting = Waiting::with(&[(&pipes[0].1, 3), (&pipes[1].1, 4), (&pipes[2].1, 5), (&pipes[3].0, 6)]);
    let refusals = waiting.refusals();
    assert_eq!(refusals.len(), 1);
    assert!(refusals[0].contains("fd 5 (pipe:["), "{refusals:?}");
}

#[test]
fn eventfds_signalfds_and_epoll_sets_come_back() {
    use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags};
    use nix::sys::eventfd::{EfdFlags, EventFd};
    let event = EventFd::from_value_and_flags(3, EfdFlags::EFD_SEMAPHORE).unwrap();
    let full = EventFd::from_flags(EfdFlags::EFD_NONBLOCK).unwrap();
    full.write(u64::MAX - 1).unwrap();
    let signal = cryopod::sys::fds::signalfd(1 << 9 | 1 << 33, libc::SFD_NONBLOCK).unwrap();
    let epoll = Epoll::new(EpollCreateFlags::empty()).unwrap();
    let watch = EpollEvent::new(EpollFlags::EPOLLIN | EpollFlags::EPOLLET, 0xfedc_0000_1234);
    let event_as_3 = EventFd::from_value(1).unwrap();
    epoll.add(&event_as_3, watch).unwrap();
    let number = event_as_3.as_fd().as_raw_fd();
    let thawed = Waiting::with(&[
        (&event, 300),
        (&full, 301),
        (&signal, 302),
        (&epoll.0, 303),
        (&event_as_3, number),
    ])
    .thaw();

    let mut eight = [0; 8];
    thawed.file(300).read_exact(&mut eight).unwrap();
    assert_eq!(u64::from_ne_bytes(eight), 1, "a semaphore counts down");
    thawed.file(301).read_exact(&mut eight).unwrap();
    assert_eq!(u64::from_ne_bytes(eight), u64::MAX - 1);
    assert_eq!(thawed.flags(301), flags_of(&full));
    let fdinfo = format!("/proc/self/fdinfo/{}", thawed.fd(302).as_raw_fd());
    assert!(
        std::fs::read_to_string(fdinfo)
            .unwrap()
            .contains("sigmask:\t0000000200000200")
    );
    let add = OwnerCall::EpollAdd {
        epfd: 303,
        fd: number,
        events: 0x8000_0019,
        data: 0xfedc_0000_1234,
    };
    assert_eq!(fd::relink(&thawed.snapshot, 0).unwrap(), [add]);
}

#[test]
fn a_watched_number_that_is_another_file_by_now_is_refused() {
    use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags};
    use nix::sys::eventfd::EventFd;
    let epoll = Epoll::new(EpollCreateFlags::empty()).unwrap();
    let (watched, other) = (EventFd::new().unwrap(), EventFd::new().unwrap());
    epoll.add(&watched, EpollEvent::new(EpollFlags::EPOLLIN, 0)).unwrap();
    let number = watched.as_fd().as_raw_fd();
    let refusals = Waiting::with(&[(&epoll.0, 300), (&other, number)]).refusals();
    assert!(
        refusals[0].contains(&format!("watches a file by number {number}")),
        "{refusals:?}"
    );
    assert_eq!(Waiting::with(&[(&epoll.0, 300)]).refusals().len(), 1);
}

#[test]
fn a_periodic_timer_that_nobody_read_brings_all_its_ticks() {
    // SAFETY: makes a new descriptor.
    let timer = unsafe { OwnedFd::from_raw_fd(libc::timerfd_create(libc::CLOCK_MONOTONIC, libc::TFD_CLOEXEC)) };
    let ms = |ms: i64| libc::timespec {
        tv_sec: ms / 1000,
        tv_nsec: ms % 1000 * 1_000_000,
    };
    let time = libc::itimerspec {
        it_interval: ms(10),
        it_value: ms(10),
    };
    cryopod::sys::fds::timerfd_settime(timer.as_fd(), 0, &time).unwrap();
    std::thread::sleep(std::time::Duration::from_millis(200));
    let thawed = Waiting::with(&[(&timer, 3)]).thaw();
    let mut eight = [0; 8];
    thawed.file(3).read_exact(&mut eight).unwrap();
    assert!((19..100).contains(&u64::from_ne_bytes(eight)), "{eight:?}");
    thawed.file(3).read_exact(&mut eight).unwrap();
    assert_eq!(u64::from_ne_bytes(eight), 1, "it goes on");
}

#[test]
fn memfds_share_their_object_and_are_sealed_last() {
    use nix::fcntl::SealFlag;
    use nix::sys::memfd::{MFdFlags, memfd_create};
    let memfd = memfd_create(c"a name", MFdFlags::MFD_ALLOW_SEALING).unwrap();
    let mut file = File::from(memfd.try_clone().unwrap());
    file.write_all(b"content").unwrap();
    let second = File::open(format!("/proc/self/fd/{}", memfd.as_raw_fd())).unwrap();
    let seals = SealFlag::F_SEAL_WRITE | SealFlag::F_SEAL_SEAL;
    fcntl(&memfd, FcntlArg::F_ADD_SEALS(seals)).unwrap();
    let thawed = Waiting::with(&[(&memfd, 3), (&second, 4)]).thaw();
    assert_eq!(thawed.snapshot.shared_objects.len(), 1);
    assert_eq!(thawed.file(3).stream_position().unwrap(), 7);
    assert_eq!(read_all(thawed.file(4)), b"content");
    assert_eq!(
        (thawed.flags(3), thawed.flags(4)),
        (flags_of(&memfd), flags_of(&second))
    );
    assert_eq!(fcntl(thawed.fd(4), FcntlArg::F_GET_SEALS).unwrap(), seals.bits());
    let link = std::fs::read_link(format!("/proc/self/fd/{}", thawed.fd(3).as_raw_fd())).unwrap();
    assert_eq!(link, Path::new("/memfd:a name (deleted)"));
}

#[test]
fn cloexec_belongs_to_the_number() {
    let null = File::open("/dev/null").unwrap();
    let waiting = Waiting::with(&[(&null, 3), (&null, CLOEXEC)]);
    let FdTable { entries } = waiting.look().0.table;
    let told: Vec<_> = entries
        .iter()
        .map(|entry| (entry.fd, entry.cloexec, entry.description))
        .collect();
    assert_eq!(told, [(3, false, 0), (CLOEXEC, true, 0)]);
}

#[test]
fn a_small_deleted_file_comes_back_with_its_content() {
    let (_directory, path) = temporary(b"deleted");
    let mut file = open_with(&path, 0);
    file.seek(SeekFrom::Start(3)).unwrap();
    let second = File::open(&path).unwrap();
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o640)).unwrap();
    std::fs::remove_file(&path).unwrap();
    let before = file.metadata().unwrap();
    let thawed = Waiting::with(&[(&file, 5), (&second, 6)]).thaw();
    assert_eq!(read_all(thawed.file(5)), b"eted");
    thawed.file(5).write_all(b" and more").unwrap();
    assert_eq!(read_all(thawed.file(6)), b"deleted and more");
    let after = thawed.file(6).metadata().unwrap();
    assert_eq!(
        (after.mode(), after.uid(), after.nlink()),
        (before.mode(), before.uid(), 0)
    );

    file.set_len(5 << 20).unwrap();
    let refusals = Waiting::with(&[(&file, 5)]).refusals();
    assert!(
        refusals[0].contains("is a deleted file of 5242880 bytes"),
        "{refusals:?}"
    );
}

#[test]
fn a_fifo_of_its_own_comes_back_and_one_with_company_is_refused() {
    let (directory, _) = temporary(b"");
    let path = directory.path().join("fifo");
    nix::unistd::mkfifo(&path, nix::sys::stat::Mode::S_IRWXU).unwrap();
    let reader = OpenOptions::new()
        .read(true)
        .custom_flags(libc::O_NONBLOCK)
        .open(&path)
        .unwrap();
    let mut writer = OpenOptions::new().write(true).open(&path).unwrap();
    writer.write_all(b"in a fifo").unwrap();
    let waiting = Waiting::with(&[(&reader, 5), (&writer, 6)]);
    let company = Waiting::with(&[(&writer, 3)]);
    let refusals = waiting.refusals();
    assert!(
        refusals[0].contains(&format!("pid {} (", company.0.id())),
        "{refusals:?}"
    );
    drop(company);
    let (looked, shared) = waiting.look();
    let flags = [flags_of(&reader), flags_of(&writer)];
    drop((reader, writer, waiting));
    let thawed = Thawed::from(looked, shared, Stdio::own().unwrap());
    assert_eq!([thawed.flags(5), thawed.flags(6)], flags);
    thawed.file(6).write_all(b"!").unwrap();
    let mut bytes = [0; 20];
    assert_eq!(thawed.file(5).read(&mut bytes).unwrap(), 10);
    assert_eq!(&bytes[..10], b"in a fifo!");
    assert_eq!(
        thawed.file(5).read(&mut bytes).unwrap_err().kind(),
        std::io::ErrorKind::WouldBlock,
        "a writer is there"
    );
}

#[test]
fn a_server_that_waits_at_its_fifo_waits_again() {
    let (directory, _) = temporary(b"");
    let path = directory.path().join("fifo");
    nix::unistd::mkfifo(&path, nix::sys::stat::Mode::S_IRWXU).unwrap();
    let reader = OpenOptions::new()
        .read(true)
        .custom_flags(libc::O_NONBLOCK)
        .open(&path)
        .unwrap();
    let hung_up = |file: BorrowedFd<'_>| {
        let mut polled = [PollFd::new(file, PollFlags::POLLIN)];
        nix::poll::poll(&mut polled, PollTimeout::ZERO).unwrap();
        polled[0].revents() == Some(PollFlags::POLLHUP)
    };
    for had_visitors in [false, true] {
        assert_eq!(hung_up(reader.as_fd()), had_visitors);
        let (looked, shared) = Waiting::with(&[(&reader, 5)]).look();
        let thawed = Thawed::from(looked, shared, Stdio::own().unwrap());
        assert_eq!(hung_up(thawed.fd(5).as_fd()), had_visitors);
        drop(
            OpenOptions::new()
                .write(true)
                .custom_flags(libc::O_NONBLOCK)
                .open(&path)
                .unwrap(),
        );
    }
}

#[test]
fn a_watched_stdin_that_cannot_be_polled_is_pumped() {
    use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags};
    let epoll = Epoll::new(EpollCreateFlags::empty()).unwrap();
    let (in_reader, _in_writer) = pipe2(OFlag::O_CLOEXEC).unwrap();
    let (_out_reader, out_writer) = pipe2(OFlag::O_CLOEXEC).unwrap();
    // The set remembers our numbers; in the child they are 0 and 1.
    let waiting = Waiting::with(&[(&in_reader, 0), (&out_writer, 1), (&epoll.0, 5)]);
    let (mut looked, shared) = waiting.look();
    let watches = [0, 1].map(|fd| (fd, EpollFlags::EPOLLIN.bits().cast_unsigned(), 7u64));
    looked.descriptions[2].payload = postcard::to_stdvec(&watches.to_vec()).unwrap();
    let (_directory, path) = temporary(b"a file");
    let output = File::create(path.with_extension("out")).unwrap();
    let stdio = Stdio([
        File::open(&path).unwrap().into(),
        output.try_clone().unwrap().into(),
        output.into(),
    ]);
    let mut thawed = Thawed::from(looked, shared, stdio);
    for number in [0, 1] {
        epoll.add(thawed.fd(number), EpollEvent::empty()).unwrap();
    }
    thawed.file(1).write_all(b"some output").unwrap();
    let pumps: Vec<_> = thawed
        .context
        .pumps
        .drain(..)
        .map(|pump| std::thread::spawn(|| pump.run()))
        .collect();
    assert_eq!(read_all(thawed.file(0)), b"a file");
    drop(thawed);
    pumps.into_iter().for_each(|pump| pump.join().unwrap().unwrap());
    assert_eq!(std::fs::read(path.with_extension("out")).unwrap(), b"some output");
}

#[test]
fn terminals_become_thaws_own() {
    let ours = nix::pty::openpty(None, None).unwrap();
    let theirs = nix::pty::openpty(None, None).unwrap();
    let again = open_with(
        &nix::unistd::ttyname(&theirs.slave).unwrap(),
        libc::O_NONBLOCK | libc::O_NOCTTY,
    );
    let waiting = Waiting::with(&[(&theirs.slave, 0), (&theirs.slave, 1), (&again, 2), (&theirs.slave, 7)]);
    let (looked, shared) = waiting.look();
    assert_eq!((looked.refusals.len(), looked.descriptions.len()), (0, 4));
    let clone = || ours.slave.try_clone().unwrap();
    let thawed = Thawed::from(
        looked,
        shared,
        Stdio([File::open("/dev/null").unwrap().into(), clone(), clone()]),
    );
    assert!(
        !nix::unistd::isatty(thawed.fd(0)).unwrap(),
        "thaw's stdin is no terminal"
    );
    for number in [1, 2, 7] {
        assert!(nix::unistd::isatty(thawed.fd(number)).unwrap());
    }
    assert_eq!(
        flags_of(&ours.slave) & libc::O_NONBLOCK,
        0,
        "the shell's terminal is left alone"
    );
    assert_ne!(thawed.flags(2) & libc::O_NONBLOCK, 0);
    let refusals = Waiting::with(&[(&theirs.master, 3)]).refusals();
    assert!(refusals[0].contains("pseudo-terminal's master"), "{refusals:?}");
}

#[test]
fn hostile_images_give_errors() {
    let (reader, writer) = pipe2(OFlag::O_CLOEXEC).unwrap();
    let (_directory, path) = temporary(b"data");
    let file = File::open(&path).unwrap();
    let (looked, _shared) = Waiting::with(&[(&reader, 3), (&writer, 4), (&file, 5)]).look();
    let whole = snapshot(looked, vec![]);
    for (index, description) in whole.descriptions.iter().enumerate() {
        for byte in 0..description.payload.len() {
            for value in [0, 0x7f, 0xff, description.payload[byte] ^ 1] {
                let mut damaged = whole.clone();
                damaged.descriptions[index].payload[byte] = value;
                let mut context = ReopenContext::new(vec![], Stdio::own().unwrap());
                let refusals = fd::check(&damaged, &context.stdio).refusals;
                let _error_or_another_file = fd::reopen(&damaged, &mut context);
                let unchanged = damaged == whole;
                assert!(!unchanged || refusals.is_empty());
            }
        }
    }
}

#[test]
fn a_planted_symbolic_link_is_not_followed() {
    let (directory, _) = temporary(b"");
    let inner = directory.path().join("inner");
    std::fs::create_dir(&inner).unwrap();
    std::fs::write(inner.join("file"), "mine").unwrap();
    let file = File::open(inner.join("file")).unwrap();
    let (looked, _shared) = Waiting::with(&[(&file, 5)]).look();
    let snapshot = snapshot(looked, vec![]);
    std::fs::rename(&inner, directory.path().join("elsewhere")).unwrap();
    std::os::unix::fs::symlink("elsewhere", &inner).unwrap();
    let mut context = ReopenContext::new(vec![], Stdio::own().unwrap());
    let refusal = fd::check(&snapshot, &context.stdio).refusals[0].to_string();
    assert!(refusal.contains("a symbolic link stands in its path"), "{refusal}");
    assert!(fd::reopen(&snapshot, &mut context).is_err());
}
