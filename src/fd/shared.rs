//! Memory that lives in an inode of its own and that mappings and descriptors may share: memfds, anonymous shared memory.

use std::collections::{HashMap, HashSet};
use std::ffi::CString;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStringExt;

use anyhow::{Context, Result, bail, ensure};
use nix::fcntl::{FcntlArg, OFlag, SealFlag, fcntl, open, readlink};
use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::sys::stat::{FileStat, Mode, fchmod, fstat};
use nix::unistd::ftruncate;

use super::probe::own_path;
use crate::image::state::{SharedKind, SharedObject};
use crate::sysv::segments;

/// In place of a device for System V shared memory, whose inodes have the numbers of their ids, as others of that device may have.
pub const SYSTEM_V: u64 = u64::MAX;
/// What /proc shows of it begins with this (newseg(), ipc/shm.c).
pub const SYSTEM_V_PREFIX: &[u8] = b"/SYSV";

/// The shared objects of an image, each once, however many descriptors and mappings refer to it.
pub struct SharedObjects {
    /// The device of the kernel's own tmpfs mount, where memfds and anonymous shared memory have their inodes.
    device: u64,
    /// Deleted files of other file systems that are mapped shared.
    deleted: HashSet<(u64, u64)>,
    by_inode: HashMap<(u64, u64), u32>,
    /// Copies of files, which may be carried as memory as well.
    copies: HashMap<(u64, u64), u32>,
    objects: Vec<SharedObject>,
    files: Vec<OwnedFd>,
}

impl SharedObjects {
    pub fn new() -> Result<Self> {
        let mine = memfd_create(c"cryopod", MFdFlags::MFD_CLOEXEC).context("memfd_create")?;
        let device = fstat(&mine).context("fstat of a memfd")?.st_dev;
        Ok(SharedObjects {
            device,
            deleted: HashSet::new(),
            by_inode: HashMap::new(),
            copies: HashMap::new(),
            objects: Vec::new(),
            files: Vec::new(),
        })
    }

    /// Whether an inode on `device` (st_dev) is a memfd, anonymous shared memory or System V shared memory.
    pub fn lives_on(&self, device: u64) -> bool {
        self.device == device
    }

    /// Deleted files that are mapped shared, by st_dev and st_ino: they are carried as memfds, also where descriptors refer to them.
    pub fn expect_deleted(&mut self, files: impl IntoIterator<Item = (u64, u64)>) {
        self.deleted.extend(files);
    }

    /// Whether it is such a file.
    pub fn is_deleted(&self, device: u64, inode: u64) -> bool {
        self.deleted.contains(&(device, inode))
    }

    /// Of all but copies of files, st_dev and st_ino, with their indices.
    pub fn inodes(&self) -> impl Iterator<Item = ((u64, u64), u32)> {
        self.by_inode.iter().map(|(inode, index)| (*inode, *index))
    }

    /// Whether it is carried as memory, and not as a file.
    pub fn holds(&self, stat: &FileStat) -> bool {
        self.lives_on(stat.st_dev) || self.is_deleted(stat.st_dev, stat.st_ino)
    }

    /// The index in Snapshot::shared_objects of what `file` refers to: a duplicate, or an opened entry of map_files.
    pub fn intern(&mut self, file: OwnedFd) -> Result<u32> {
        let stat = fstat(&file).context("fstat")?;
        let link = link_of(&file)?;
        if link.starts_with(SYSTEM_V_PREFIX) {
            return self.intern_segment(file, &stat);
        }
        if let Some(index) = self.find(stat.st_dev, stat.st_ino) {
            return Ok(index);
        }
        ensure!(self.holds(&stat), "is not memory of a memfd");
        let kind = match self.lives_on(stat.st_dev) {
            true => kind_of(&file, &stat, &link)?,
            false => kind_of_deleted(&stat, &link),
        };
        self.add(kind, (stat.st_dev, stat.st_ino), size_of(&stat)?, readable(file))
    }

    /// System V shared memory; its inode has the number of its id.
    fn intern_segment(&mut self, file: OwnedFd, stat: &FileStat) -> Result<u32> {
        ensure!(
            self.lives_on(stat.st_dev),
            "is System V shared memory of huge pages, which cryopod does not carry yet"
        );
        if let Some(index) = self.find(SYSTEM_V, stat.st_ino) {
            return Ok(index);
        }
        let id = i32::try_from(stat.st_ino).context("the id of a segment")?;
        let (segment, size) = segments::find(id)?.context("is System V shared memory of another IPC namespace")?;
        self.add(
            SharedKind::SystemV(segment),
            (SYSTEM_V, stat.st_ino),
            size,
            readable(file),
        )
    }

    /// The index of a copy of `file`, which has this path.
    pub fn intern_copy(&mut self, file: OwnedFd, path: &[u8]) -> Result<u32> {
        let stat = fstat(&file).context("fstat")?;
        let inode = (stat.st_dev, stat.st_ino);
        if let Some(index) = self.copies.get(&inode) {
            return Ok(*index);
        }
        let kind = SharedKind::Copy {
            name: path.to_vec(),
            mode: stat.st_mode,
        };
        let index = self.push(kind, size_of(&stat)?, file)?;
        self.copies.insert(inode, index);
        Ok(index)
    }

    fn add(&mut self, kind: SharedKind, inode: (u64, u64), size: u64, file: OwnedFd) -> Result<u32> {
        let index = self.push(kind, size, file)?;
        self.by_inode.insert(inode, index);
        Ok(index)
    }

    fn push(&mut self, kind: SharedKind, size: u64, file: OwnedFd) -> Result<u32> {
        let index = u32::try_from(self.objects.len()).context("too many shared objects")?;
        self.objects.push(SharedObject { kind, size });
        self.files.push(file);
        Ok(index)
    }

    /// The index of an object that is known already, by st_dev and st_ino.
    pub fn find(&self, device: u64, inode: u64) -> Option<u32> {
        self.by_inode.get(&(device, inode)).copied()
    }

    /// The objects, and for each a descriptor to read its content.
    pub fn into_parts(self) -> (Vec<SharedObject>, Vec<OwnedFd>) {
        (self.objects, self.files)
    }
}

fn size_of(stat: &FileStat) -> Result<u64> {
    u64::try_from(stat.st_size).context("st_size")
}

fn link_of(file: &OwnedFd) -> Result<Vec<u8>> {
    let link = readlink(own_path(file.as_fd()).as_str()).context("readlink /proc/self/fd/N")?;
    Ok(link.into_vec())
}

fn kind_of(file: &OwnedFd, stat: &FileStat, link: &[u8]) -> Result<SharedKind> {
    let name = link.strip_suffix(b" (deleted)").unwrap_or(link);
    if let Some(name) = name.strip_prefix(b"/memfd:") {
        let seals = fcntl(file, FcntlArg::F_GET_SEALS).context("fcntl F_GET_SEALS")?;
        return Ok(SharedKind::Memfd {
            name: name.to_vec(),
            seals: seals.cast_unsigned(),
            mode: stat.st_mode,
        });
    }
    if name == b"/dev/zero" {
        return Ok(SharedKind::Anonymous); // shmem_zero_setup(), mm/shmem.c
    }
    bail!(
        "is shared memory of a driver ({}), which cryopod does not carry",
        String::from_utf8_lossy(name)
    );
}

/// As a file of tmpfs it cannot be sealed any more (F_GET_SEALS).
fn kind_of_deleted(stat: &FileStat, link: &[u8]) -> SharedKind {
    const NAME_MAX: usize = 249; // memfd_create(2)
    let path = link.strip_suffix(b" (deleted)").unwrap_or(link);
    let name = path.rsplit(|&byte| byte == b'/').next().unwrap_or_default();
    SharedKind::Memfd {
        name: name[..name.len().min(NAME_MAX)].to_vec(),
        seals: SealFlag::F_SEAL_SEAL.bits().cast_unsigned(),
        mode: stat.st_mode,
    }
}

/// A description of our own that can be read, whatever the access mode of the process's. Where the mode of the memfd forbids
/// that, the duplicate must do.
fn readable(file: OwnedFd) -> OwnedFd {
    open(
        own_path(file.as_fd()).as_str(),
        OFlag::O_RDONLY | OFlag::O_CLOEXEC,
        Mode::empty(),
    )
    .unwrap_or(file)
}

/// Thaw side: a memfd as recorded, of the recorded size and still empty. Its seals come last, by [`super::finish`].
pub fn make_memfd(object: &SharedObject) -> Result<OwnedFd> {
    match &object.kind {
        // Without MFD_ALLOW_SEALING a memfd is born with F_SEAL_SEAL, and then the others could not be added.
        SharedKind::Memfd { name, mode, .. } => sized_memfd(name, MFdFlags::MFD_ALLOW_SEALING, *mode, object.size),
        SharedKind::Copy { name, mode } => {
            const NAME_MAX: usize = 249;
            // It may be executed, also where vm.memfd_noexec is 1; the flag is new in Linux 6.3, as that is.
            const MFD_EXEC: MFdFlags = MFdFlags::from_bits_retain(0x10);
            // Its name says the file's path, as far as it fits (memfd_create(2)).
            let (name, mode) = (&name[name.len().saturating_sub(NAME_MAX)..], mode & 0o777);
            sized_memfd(name, MFD_EXEC, mode, object.size)
                .or_else(|_| sized_memfd(name, MFdFlags::empty(), mode, object.size))
        }
        SharedKind::Anonymous | SharedKind::SystemV(_) => bail!("is not a memfd"),
    }
}

fn sized_memfd(name: &[u8], flags: MFdFlags, mode: u32, size: u64) -> Result<OwnedFd> {
    let name = CString::new(name).context("the name of a memfd")?;
    let file = memfd_create(name.as_c_str(), MFdFlags::MFD_CLOEXEC | flags).context("memfd_create")?;
    fchmod(&file, Mode::from_bits_truncate(mode)).context("fchmod of a memfd")?;
    let size = i64::try_from(size).context("the size of a memfd")?;
    ftruncate(&file, size).with_context(|| format!("ftruncate of a memfd to {size} bytes"))?;
    Ok(file)
}

/// Thaw side, once the content is there: the recorded size, beyond which the last page was filled with zeros, and the
/// recorded seals (fcntl(2), "File Sealing").
pub fn finish(file: &OwnedFd, object: &SharedObject) -> Result<()> {
    if let SharedKind::Copy { .. } = object.kind {
        return Ok(()); // nobody may write to it any more
    }
    let size = i64::try_from(object.size).context("the size of shared memory")?;
    if fstat(file).context("fstat")?.st_size != size {
        ftruncate(file, size).with_context(|| format!("ftruncate of shared memory to {size} bytes"))?;
    }
    let SharedKind::Memfd { name, seals, .. } = &object.kind else {
        return Ok(());
    };
    let name = String::from_utf8_lossy(name);
    let has = fcntl(file, FcntlArg::F_GET_SEALS).context("fcntl F_GET_SEALS")?;
    let missing = seals.cast_signed() & !has;
    if missing != 0 {
        let seals = SealFlag::from_bits_retain(missing);
        fcntl(file, FcntlArg::F_ADD_SEALS(seals)).with_context(|| format!("seal the memfd {name} ({missing:#x})"))?;
    }
    Ok(())
}
