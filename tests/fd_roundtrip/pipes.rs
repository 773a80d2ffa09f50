//! Pipes, FIFOs, terminals, and what leads outside.

use std::fs::{File, OpenOptions};
use std::io::{Read, Write};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::path::PathBuf;

use cryopod::fd::Stdio;
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::poll::{PollFd, PollFlags, PollTimeout};
use nix::unistd::pipe2;

use super::waiting::*;

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
    let stdio = Stdio::of([File::open(&path).unwrap().into(), clone(), clone()]);
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
fn more_pipes_to_the_outside_than_stdio_must_be_given() {
    let pipes: Vec<_> = (0..4).map(|_| pipe2(OFlag::O_CLOEXEC).unwrap()).collect();
    let waiting = Waiting::with(&[(&pipes[0].1, 3), (&pipes[1].1, 4), (&pipes[2].1, 5), (&pipes[3].0, 6)]);
    let (looked, _) = waiting.look();
    assert_eq!(looked.refusals, []);
    assert_eq!(looked.warnings.len(), 1);
    let told = &looked.warnings[0];
    assert!(
        told.contains("fd 5 (pipe:[") && told.contains("--inherit-fd 'pipe:["),
        "{told}"
    );
    let snapshot = snapshot(looked, vec![]);
    let stdio = Stdio::own(None, vec![]).unwrap();
    let refusals = cryopod::fd::check(&snapshot, &stdio).refusals;
    let of_fifth = refusals
        .iter()
        .filter(|refusal| refusal.to_string().contains("--inherit-fd 'pipe:["));
    assert_eq!(of_fifth.count(), 1, "{refusals:?}");
}

/// A FIFO, and a reader of it that does not wait.
fn fifo() -> (tempfile::TempDir, PathBuf, File) {
    let (directory, _) = temporary(b"");
    let path = directory.path().join("fifo");
    nix::unistd::mkfifo(&path, nix::sys::stat::Mode::S_IRWXU).unwrap();
    let mut options = OpenOptions::new();
    let reader = options.read(true).custom_flags(libc::O_NONBLOCK).open(&path).unwrap();
    (directory, path, reader)
}

#[test]
fn a_fifo_of_its_own_comes_back_and_one_with_company_is_refused() {
    let (_directory, path, reader) = fifo();
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
    let thawed = Thawed::from(looked, shared, Stdio::own(None, vec![]).unwrap());
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
    let (_directory, path, reader) = fifo();
    let hung_up = |file: BorrowedFd<'_>| {
        let mut polled = [PollFd::new(file, PollFlags::POLLIN)];
        nix::poll::poll(&mut polled, PollTimeout::ZERO).unwrap();
        polled[0].revents() == Some(PollFlags::POLLHUP)
    };
    for had_visitors in [false, true] {
        assert_eq!(hung_up(reader.as_fd()), had_visitors);
        let (looked, shared) = Waiting::with(&[(&reader, 5)]).look();
        let thawed = Thawed::from(looked, shared, Stdio::own(None, vec![]).unwrap());
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
    let stdio = Stdio::of([
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
        Stdio::of([File::open("/dev/null").unwrap().into(), clone(), clone()]),
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
    // We have it as well, and are no part of what is frozen.
    let refusals = Waiting::with(&[(&theirs.master, 3)]).refusals();
    assert!(refusals[0].contains("is the master of /dev/pts/"), "{refusals:?}");
    assert!(refusals[0].contains("has open, too"), "{refusals:?}");
}
