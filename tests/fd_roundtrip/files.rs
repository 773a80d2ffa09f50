//! Files, directories and devices.

use std::fs::{File, OpenOptions};
use std::io::{Read, Seek, SeekFrom, Write};
use std::os::fd::AsRawFd;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::Path;

use cryopod::fd::{self, ReopenContext, Stdio};
use cryopod::image::state::FdTable;

use super::waiting::*;

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
    let mut context = ReopenContext::new(vec![], vec![], Stdio::own(None, vec![]).unwrap());
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
    let stdio = Stdio::own(None, vec![]).unwrap();
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
    let mut context = ReopenContext::new(vec![], vec![], Stdio::own(None, vec![]).unwrap());
    let refusal = fd::check(&snapshot, &context.stdio).refusals[0].to_string();
    assert!(refusal.contains("a symbolic link stands in its path"), "{refusal}");
    assert!(fd::reopen(&snapshot, &mut context).is_err());
}

#[test]
fn cloexec_belongs_to_the_number() {
    let null = File::open("/dev/null").unwrap();
    let waiting = Waiting::with(&[(&null, 3), (&null, CLOEXEC)]);
    let FdTable { entries } = waiting.look().0.tables.remove(0);
    let told: Vec<_> = entries
        .iter()
        .map(|entry| (entry.fd, entry.cloexec, entry.description))
        .collect();
    assert_eq!(told, [(3, false, 0), (CLOEXEC, true, 0)]);
}
