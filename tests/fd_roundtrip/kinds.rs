//! Descriptors of what the kernel keeps in memory, and what no kind claims.

use std::fs::File;
use std::io::{Read, Seek, Write};
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};
use std::path::Path;

use cryopod::fd::{self, OwnerCall, ReopenContext, Stdio};
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::unistd::pipe2;

use super::waiting::*;

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
    assert_eq!(fd::relink(&thawed.snapshot).unwrap()[0], [add]);
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
                let mut context = ReopenContext::new(vec![], vec![], Stdio::own(None, vec![]).unwrap());
                let refusals = fd::check(&damaged, &context.stdio).refusals;
                let _error_or_another_file = fd::reopen(&damaged, &mut context);
                let unchanged = damaged == whole;
                assert!(!unchanged || refusals.is_empty());
            }
        }
    }
}
