//! Files that a process maps or executes: found again by path, and proved to be the same.

use std::fs::File as Opened;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::FileExt;
use std::path::Path;

use goblin::elf::{Elf, ProgramHeader, note, program_header::PT_NOTE};
use nix::fcntl::{AT_FDCWD, AtFlags, OFlag, open};
use nix::sys::stat::{FileStat, Mode, SFlag, fstatat};
use nix::sys::statfs::{BTRFS_SUPER_MAGIC, FsType, OVERLAYFS_SUPER_MAGIC, statfs};

use super::memory::Area;
use super::proc::ProcDir;
use crate::image::state::File;

/// Where the path of a file leads that a process has mapped or runs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Found {
    /// To that file, or it does not matter, since the content goes into the image.
    Same(File),
    /// Nowhere: the file was deleted, or never had a name.
    Gone,
    /// To another file: it was replaced, as packages do when they are upgraded.
    Replaced,
    /// To something that is no regular file.
    NotRegular,
    /// Looking failed, for this reason.
    Unknown(String),
}

/// The file behind `link`, a link of /proc such as `exe`.
pub fn behind_link(dir: &ProcDir, link: &str, path: &[u8]) -> Found {
    match dir.stat(link) {
        Ok(actual) => find(path, |named| {
            (named.st_dev, named.st_ino) == (actual.st_dev, actual.st_ino)
        }),
        Err(errno) => Found::Unknown(format!("stat: {errno}")),
    }
}

/// The file behind a mapping. Its link in map_files leads to the very file; without the privilege to follow that
/// (CAP_CHECKPOINT_RESTORE, proc_pid_map_files(5)), device and inode numbers of maps are compared.
pub fn behind_mapping(dir: &ProcDir, area: &Area) -> Found {
    match dir.stat(&super::objects::map_file(area)) {
        Ok(actual) => find(&area.name, |named| {
            (named.st_dev, named.st_ino) == (actual.st_dev, actual.st_ino)
        }),
        Err(_) => find(&area.name, |named| has_numbers(named, area)),
    }
}

/// Some file systems show another device in stat(2) than in maps, which shows that of the superblock.
fn has_numbers(named: &FileStat, area: &Area) -> bool {
    let (major, minor) = area.device;
    let same_device = named.st_dev == libc::makedev(major, minor);
    named.st_ino == area.inode && (same_device || has_own_devices(Path::new(std::ffi::OsStr::from_bytes(&area.name))))
}

fn has_own_devices(path: &Path) -> bool {
    const BCACHEFS_SUPER_MAGIC: FsType = FsType(0xca45_1a4e);
    statfs(path).is_ok_and(|fs| {
        [BTRFS_SUPER_MAGIC, OVERLAYFS_SUPER_MAGIC, BCACHEFS_SUPER_MAGIC].contains(&fs.filesystem_type())
    })
}

fn find(path: &[u8], is_it: impl Fn(&FileStat) -> bool) -> Found {
    let name = Path::new(std::ffi::OsStr::from_bytes(path));
    match fstatat(AT_FDCWD, name, AtFlags::empty()) {
        Ok(named) if !is_it(&named) => Found::Replaced,
        Ok(named) if named.st_mode & SFlag::S_IFMT.bits() != SFlag::S_IFREG.bits() => Found::NotRegular,
        Ok(named) => Found::Same(describe(path, &named, build_id(name), None)),
        Err(nix::Error::ENOENT | nix::Error::ENOTDIR) if has_successor(path) => Found::Replaced,
        Err(nix::Error::ENOENT | nix::Error::ENOTDIR) => Found::Gone,
        Err(errno) => Found::Unknown(format!("stat: {}", errno.desc())),
    }
}

/// Whether another file has the name of one that was deleted, which maps shows as `NAME (deleted)` (d_path(), fs/d_path.c).
fn has_successor(path: &[u8]) -> bool {
    let name = path.strip_suffix(b" (deleted)").map(std::ffi::OsStr::from_bytes);
    name.is_some_and(|name| Path::new(name).exists())
}

fn describe(path: &[u8], stat: &FileStat, build_id: Option<Vec<u8>>, content: Option<u32>) -> File {
    File {
        path: path.to_vec(),
        mode: stat.st_mode,
        size: stat.st_size as u64,
        mtime_ns: stat.st_mtime * 1_000_000_000 + stat.st_mtime_nsec,
        build_id,
        content,
    }
}

/// A file that its path does not lead to any more, by what `opened` shows; its content is the shared object `content`.
pub fn describe_deleted(path: &[u8], opened: &Opened, content: u32) -> io::Result<File> {
    let stat = nix::sys::stat::fstat(opened)?;
    let build_id = Start::of(opened.try_clone()?).and_then(|start| build_id_in(&start));
    Ok(describe(path, &stat, build_id, Some(content)))
}

/// The path that a file had which was deleted, as the kernel shows it (d_path(), fs/d_path.c), or the name of a memfd.
pub fn path_of_deleted(shown: &[u8]) -> &[u8] {
    let path = shown.strip_suffix(b" (deleted)").unwrap_or(shown);
    path.strip_prefix(b"/memfd:").unwrap_or(path)
}

/// NT_GNU_BUILD_ID of an ELF file. A file that we may not read, or that is no ELF, has none: size and time must do then.
pub fn build_id(path: &Path) -> Option<Vec<u8>> {
    let flags = OFlag::O_RDONLY | OFlag::O_NONBLOCK | OFlag::O_CLOEXEC | OFlag::O_NOCTTY;
    build_id_in(&Start::of(open(path, flags, Mode::empty()).ok()?.into())?)
}

fn build_id_in(file: &Start) -> Option<Vec<u8>> {
    let header = Elf::parse_header(&file.at(0, 64)?).ok()?;
    let context = goblin::container::Ctx::new(header.container().ok()?, header.endianness().ok()?);
    let table_len = usize::from(header.e_phnum) * usize::from(header.e_phentsize);
    let table = file.at(header.e_phoff, table_len)?;
    let segments = ProgramHeader::parse(&table, 0, usize::from(header.e_phnum), context).ok()?;
    segments
        .iter()
        .filter(|segment| segment.p_type == PT_NOTE)
        .find_map(|segment| build_id_note(file, segment, context))
}

fn build_id_note(file: &Start, segment: &ProgramHeader, context: goblin::container::Ctx) -> Option<Vec<u8>> {
    let data = file.at(segment.p_offset, usize::try_from(segment.p_filesz).ok()?)?;
    let alignment = usize::try_from(segment.p_align).ok()?.max(4);
    let notes = note::NoteDataIterator {
        data: &data,
        size: data.len(),
        offset: 0,
        ctx: (alignment, context),
    };
    notes
        .filter_map(Result::ok)
        .find(|note| note.n_type == note::NT_GNU_BUILD_ID && note.name == "GNU")
        .map(|note| note.desc.to_vec())
}

/// What an ELF header may ask us to read: notes and program headers are small.
const MOST: usize = 1 << 16;

/// A file with its first page, which usually holds all that is asked for.
struct Start {
    file: Opened,
    bytes: Vec<u8>,
}

impl Start {
    fn of(file: Opened) -> Option<Self> {
        let mut bytes = vec![0; 4096];
        let len = file.read_at(&mut bytes, 0).ok()?;
        bytes.truncate(len);
        Some(Start { file, bytes })
    }

    fn at(&self, offset: u64, len: usize) -> Option<Vec<u8>> {
        let len = len.min(MOST);
        let known = usize::try_from(offset)
            .ok()
            .and_then(|at| self.bytes.get(at..)?.get(..len));
        if let Some(known) = known {
            return Some(known.to_vec());
        }
        let mut bytes = vec![0; len];
        self.file.read_exact_at(&mut bytes, offset).ok()?;
        Some(bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::collect::memory;

    fn own() -> ProcDir {
        ProcDir::by_pid(std::process::id() as i32).unwrap()
    }

    #[test]
    fn our_own_executable_and_its_libraries_are_found() {
        let path = own().link("exe").unwrap();
        let Found::Same(file) = behind_link(&own(), "exe", &path) else {
            panic!("our own executable is not found")
        };
        assert!(file.size > 0);
        let areas = memory::areas(&own()).unwrap();
        let libc = areas
            .iter()
            .find(|area| area.name.ends_with(b"/libc.so.6"))
            .expect("tests are linked with libc");
        let Found::Same(file) = behind_mapping(&own(), libc) else {
            panic!("libc is not found")
        };
        assert_eq!(file.build_id.map(|id| id.len()), Some(20));
        let by_numbers = find(&libc.name, |named| has_numbers(named, libc));
        assert!(matches!(by_numbers, Found::Same(_)));
    }

    #[test]
    fn a_replaced_file_is_noticed() {
        let area = Area {
            name: b"/etc/passwd".to_vec(),
            inode: 1,
            ..Area::default()
        };
        assert_eq!(find(&area.name, |named| has_numbers(named, &area)), Found::Replaced);
        assert_eq!(find(b"/etc/passwd (deleted)", |_| true), Found::Replaced);
        assert_eq!(find(b"/no/such/file (deleted)", |_| true), Found::Gone);
        assert_eq!(find(b"/dev/null", |_| true), Found::NotRegular);
    }
}
