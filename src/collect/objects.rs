//! What lies behind each mapping: nothing, a file, memory with an inode of its own, the kernel, or something else.

use std::collections::HashMap;
use std::ffi::OsStr;
use std::fs::File as Opened;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use anyhow::Result;
use nix::fcntl::{OFlag, open};
use nix::sys::stat::Mode;

use super::common;
use super::files::{self, Found};
use super::memory::Area;
use super::proc::ProcDir;
use crate::fd::{SYSTEM_V_PREFIX, SharedObjects};
use crate::image::state::{File, Name};

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Object {
    /// Private anonymous memory.
    Anonymous,
    /// `[vdso]`, `[vvar]` and their like: the kernel's own, which every process has.
    Kernel,
    File(Found),
    /// Index of a shared object, or the reason why it has none.
    Shared(Result<u32, String>),
    /// What has no path: io_uring, perf events, drivers.
    Other,
}

/// What the name in maps says; the object itself is still to be looked up.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Class {
    Anonymous,
    Kernel,
    File,
    Shared,
    Other,
}

/// Names are those of show_map_vma() and arch_vma_name(); shared anonymous memory is a deleted `/dev/zero` (shmem_zero_setup()).
fn class(area: &Area) -> Class {
    let name = area.name.as_slice();
    match name {
        b"" | b"[heap]" | b"[stack]" if area.inode == 0 && !area.shared => Class::Anonymous,
        // mmap_zero(): a private mapping of /dev/zero is anonymous memory in all but name.
        b"/dev/zero" if !area.shared => Class::Anonymous,
        b"/dev/zero (deleted)" => Class::Shared,
        b"[vdso]" => Class::Kernel,
        _ if name.starts_with(b"[vvar") => Class::Kernel,
        _ if name.starts_with(b"[anon:") => Class::Anonymous,
        _ if name.starts_with(b"[anon_shmem:") || name.starts_with(b"/memfd:") => Class::Shared,
        _ if name.starts_with(SYSTEM_V_PREFIX) => Class::Shared,
        _ if name.starts_with(b"/") => Class::File,
        _ => Class::Other,
    }
}

/// A mapping of the kernel's own, as every process has them.
pub fn is_kernel(area: &Area) -> bool {
    class(area) == Class::Kernel
}

/// The name that PR_SET_VMA_ANON_NAME gave a mapping (prctl(2)).
pub fn given_name(area: &Area) -> Name {
    let inner = [&b"[anon:"[..], b"[anon_shmem:"]
        .iter()
        .find_map(|prefix| area.name.strip_prefix(*prefix));
    inner
        .and_then(|name| name.strip_suffix(b"]"))
        .unwrap_or_default()
        .to_vec()
}

/// Whose content goes into the image, of the files that are mapped so that nobody can write to them, and of the executable.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Embed {
    /// Of those that were deleted: nothing else has them.
    Deleted,
    All,
}

/// Looks objects up, each file once.
pub struct Finder<'a> {
    process: &'a ProcDir,
    shared: &'a mut SharedObjects,
    embed: Embed,
    known: &'a mut KnownFiles,
}

/// Files that were found for a process, and are the same for its relatives.
#[derive(Default)]
pub struct KnownFiles {
    /// By device, inode, name, and whether a copy would do.
    mapped: HashMap<((u32, u32), u64, Name, bool), Found>,
    /// By st_dev, st_ino and name.
    executables: HashMap<(u64, u64, Name), Found>,
}

impl<'a> Finder<'a> {
    pub fn new(process: &'a ProcDir, shared: &'a mut SharedObjects, embed: Embed, known: &'a mut KnownFiles) -> Self {
        Finder {
            process,
            shared,
            embed,
            known,
        }
    }

    pub fn find(&mut self, area: &Area) -> Object {
        match class(area) {
            Class::Anonymous => Object::Anonymous,
            Class::Kernel => Object::Kernel,
            Class::Other => Object::Other,
            Class::Shared => Object::Shared(self.shared_object(area)),
            // Private mappings of it, too, so that their pages follow what is written to it.
            Class::File if self.is_deleted_and_shared(area) => Object::Shared(self.shared_object(area)),
            Class::File => Object::File(self.file(area)),
        }
    }

    fn is_deleted_and_shared(&self, area: &Area) -> bool {
        let (device, inode) = common::inode(area);
        self.shared.is_deleted(device, inode)
    }

    /// Path and file of the executable.
    pub fn executable(&mut self) -> Result<(Name, Found)> {
        let path = self.process.link("exe")?;
        let key = self
            .process
            .stat("exe")
            .ok()
            .map(|stat| (stat.st_dev, stat.st_ino, path.clone()));
        if let Some(found) = key.as_ref().and_then(|key| self.known.executables.get(key)) {
            return Ok((path, found.clone()));
        }
        let found = files::behind_link(self.process, "exe", &path);
        let found = self.with_content(found, "exe", &path);
        self.known.executables.extend(key.map(|key| (key, found.clone())));
        Ok((path, found))
    }

    fn file(&mut self, area: &Area) -> Found {
        let copy_will_do = !(area.shared && area.flags.has(b"mw"));
        let key = (area.device, area.inode, area.name.clone(), copy_will_do);
        if let Some(found) = self.known.mapped.get(&key) {
            return found.clone();
        }
        let mut found = files::behind_mapping(self.process, area);
        if copy_will_do {
            found = self.with_content(found, &map_file(area), &area.name);
        }
        self.known.mapped.insert(key, found.clone());
        found
    }

    /// The file with its content where that is to go into the image. `link` is one of /proc/PID that leads to the very file.
    fn with_content(&mut self, found: Found, link: &str, path: &[u8]) -> Found {
        match found {
            Found::Same(file) if self.embed == Embed::All && is_regular(file.mode) => {
                // Without the privilege to follow the link, the path must do, which leads to the same file.
                let opened = self.process.open(link).or_else(|_| open_path(&file.path));
                match opened.map_err(Into::into).and_then(|opened| self.copy(opened, path)) {
                    Ok(content) => Found::Same(File {
                        content: Some(content),
                        ..file
                    }),
                    Err(error) => Found::Unknown(format!("its content cannot be read: {error:#}")),
                }
            }
            // Nothing else is opened: to open a device may do something.
            Found::Gone | Found::Replaced if self.process.stat(link).is_ok_and(|stat| is_regular(stat.st_mode)) => {
                match self.process.open(link).map(|opened| self.deleted(opened, path)) {
                    Ok(Ok(file)) => Found::Same(file),
                    Ok(Err(error)) => {
                        Found::Unknown(format!("it was deleted, and its content cannot be read: {error:#}"))
                    }
                    // Without the privilege it is as if nobody had it.
                    Err(_) => found,
                }
            }
            found => found,
        }
    }

    fn deleted(&mut self, opened: Opened, shown: &[u8]) -> Result<File> {
        let path = files::path_of_deleted(shown);
        let content = self.copy(opened.try_clone()?, path)?;
        Ok(files::describe_deleted(path, &opened, content)?)
    }

    fn copy(&mut self, opened: Opened, path: &[u8]) -> Result<u32> {
        self.shared.intern_copy(opened.into(), path)
    }

    /// Opened through map_files; without the privilege for that, a descriptor of the process that refers to it must do.
    fn shared_object(&mut self, area: &Area) -> Result<u32, String> {
        let (device, inode) = common::inode(area);
        if let Some(index) = self.shared.find(device, inode) {
            return Ok(index);
        }
        match self.process.open(&map_file(area)) {
            Ok(file) => self
                .shared
                .intern(OwnedFd::from(file))
                .map_err(|error| format!("{error:#}")),
            Err(nix::Error::EPERM) => Err("can only be opened with the capability CAP_CHECKPOINT_RESTORE".into()),
            Err(errno) => Err(format!("cannot be opened: {}", errno.desc())),
        }
    }
}

/// The link that leads to what is mapped, for those who may follow it: CAP_CHECKPOINT_RESTORE (proc_pid_map_files(5)).
pub fn map_file(area: &Area) -> String {
    format!("map_files/{:x}-{:x}", area.start, area.end)
}

fn is_regular(mode: u32) -> bool {
    mode & libc::S_IFMT == libc::S_IFREG
}

fn open_path(path: &[u8]) -> nix::Result<Opened> {
    let flags = OFlag::O_RDONLY | OFlag::O_CLOEXEC | OFlag::O_NOCTTY;
    Ok(open(Path::new(OsStr::from_bytes(path)), flags, Mode::empty())?.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn classified(name: &str, inode: u64, shared: bool) -> Class {
        class(&Area {
            name: name.into(),
            inode,
            shared,
            ..Area::default()
        })
    }

    #[test]
    fn mappings_are_told_apart_by_name() {
        assert_eq!(classified("", 0, false), Class::Anonymous);
        assert_eq!(classified("[heap]", 0, false), Class::Anonymous);
        assert_eq!(classified("/dev/zero", 5, false), Class::Anonymous);
        assert_eq!(classified("/dev/zero (deleted)", 1026, true), Class::Shared);
        assert_eq!(classified("/memfd:x (deleted)", 7, false), Class::Shared);
        assert_eq!(classified("/SYSV00000000 (deleted)", 7, true), Class::Shared);
        assert_eq!(classified("/usr/bin/cat", 7, false), Class::File);
        assert_eq!(classified("[vvar_vclock]", 0, false), Class::Kernel);
        assert_eq!(classified("anon_inode:[io_uring]", 7, true), Class::Other);
        assert_eq!(classified("[uprobes]", 0, false), Class::Other);
    }

    #[test]
    fn a_given_name_is_taken_out_of_its_brackets() {
        let named = |name: &str| {
            given_name(&Area {
                name: name.into(),
                ..Area::default()
            })
        };
        assert_eq!(named("[anon:glibc: malloc]"), b"glibc: malloc");
        assert_eq!(named("[anon_shmem:x]"), b"x");
        assert_eq!(named("[heap]"), b"");
    }
}
