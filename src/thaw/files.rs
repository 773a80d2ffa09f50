//! Files that mappings, the executable and the directories refer to: opened and compared with the freeze before anything is made.
#![deny(unsafe_code)]

use std::collections::{BTreeSet, HashMap, HashSet};
use std::ffi::OsStr;
use std::fs::{File, Metadata, OpenOptions};
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::Path;

use anyhow::Result;

use crate::image::state::{self, Backing, Process, Snapshot};
use crate::refusal::Refusal;
use crate::resurrect::{SharedMemory, needs_write};

/// What to do about something that is not as it was: a mapped file, the CPU.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Check {
    #[default]
    Strict,
    Warn,
    Off,
}

/// Open files, by what needs them.
pub struct MappedFiles {
    /// By index of `Snapshot::files` and whether a mapping may write the file; executables among them.
    files: HashMap<(u32, bool), Opened>,
    /// By path, each once.
    directories: HashMap<Vec<u8>, File>,
    pub warnings: Vec<String>,
}

enum Opened {
    File(File),
    /// Index of the shared object that is its copy in the image, until that is made.
    Copy(u32),
}

impl Opened {
    fn complete(&mut self, shared: &SharedMemory) -> Result<()> {
        if let Opened::Copy(object) = *self {
            *self = Opened::File(shared.reader(object)?);
        }
        Ok(())
    }

    fn copy(&self) -> Option<u32> {
        match self {
            Opened::File(_) => None,
            Opened::Copy(object) => Some(*object),
        }
    }
}

impl AsFd for Opened {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match self {
            Opened::File(file) => file.as_fd(),
            Opened::Copy(_) => unreachable!("copies are made before anybody asks"),
        }
    }
}

impl MappedFiles {
    pub fn open(snapshot: &Snapshot, check: Check) -> Result<Self, Vec<Refusal>> {
        let mut opener = Opener {
            snapshot,
            check,
            refusals: Vec::new(),
            warnings: Vec::new(),
            copied: BTreeSet::new(),
        };
        let (mut files, mut directories) = (HashMap::new(), HashMap::new());
        for process in &snapshot.processes {
            let mapped = process.memory.vmas.iter().filter_map(|vma| match vma.backing {
                Backing::File { file, .. } => Some((file, needs_write(vma))),
                _ => None,
            });
            for key in mapped.chain([(process.exe, false)]) {
                if !files.contains_key(&key)
                    && let Some(opened) = opener.file(process.pid, key.0, key.1)
                {
                    files.insert(key, opened);
                }
            }
            for (what, path) in [("working directory", &process.cwd), ("root directory", &process.root)] {
                if !directories.contains_key(path)
                    && let Some(opened) = opener.directory(process.pid, what, path)
                {
                    directories.insert(path.clone(), opened);
                }
            }
        }
        let told = opener.tell_of_copies();
        let Opener {
            mut refusals,
            mut warnings,
            ..
        } = opener;
        refusals.dedup();
        warnings.extend(told);
        if !refusals.is_empty() {
            return Err(refusals);
        }
        Ok(MappedFiles {
            files,
            directories,
            warnings,
        })
    }

    /// Copies of files that are needed, by index in `Snapshot::shared_objects`.
    pub fn copies(&self) -> HashSet<u32> {
        self.files.values().filter_map(Opened::copy).collect()
    }

    /// Takes the copies, once they are made.
    pub fn complete(&mut self, shared: &SharedMemory) -> Result<()> {
        self.files.values_mut().try_for_each(|opened| opened.complete(shared))
    }

    pub fn by_access(&self) -> HashMap<(u32, bool), BorrowedFd<'_>> {
        self.files.iter().map(|(key, file)| (*key, file.as_fd())).collect()
    }

    pub fn all(&self) -> impl Iterator<Item = BorrowedFd<'_>> {
        let directories = self.directories.values().map(AsFd::as_fd);
        self.files.values().map(AsFd::as_fd).chain(directories)
    }

    pub fn exe(&self, process: &Process) -> BorrowedFd<'_> {
        self.files[&(process.exe, false)].as_fd()
    }

    pub fn cwd(&self, process: &Process) -> BorrowedFd<'_> {
        self.directories[&process.cwd].as_fd()
    }

    /// None: it is ours.
    pub fn root(&self, process: &Process) -> Option<BorrowedFd<'_>> {
        (process.root != b"/").then(|| self.directories[&process.root].as_fd())
    }
}

struct Opener<'a> {
    snapshot: &'a Snapshot,
    check: Check,
    refusals: Vec<Refusal>,
    warnings: Vec<String>,
    /// Files that are not here as they were, but in the image.
    copied: BTreeSet<u32>,
}

impl Opener<'_> {
    fn file(&mut self, pid: i32, index: u32, write: bool) -> Option<Opened> {
        let recorded = &self.snapshot.files[index as usize];
        let path = Path::new(OsStr::from_bytes(&recorded.path));
        let object = format!("mapped file {}", path.display());
        let opened = open(path, write);
        let found = opened.and_then(|opened| {
            let difference = difference(recorded, &opened.metadata()?, path);
            Ok((opened, difference))
        });
        match (found, recorded.content.filter(|_| !write)) {
            (Ok((opened, None)), _) => Some(Opened::File(opened)),
            (_, Some(content)) => {
                self.copied.insert(index);
                Some(Opened::Copy(content))
            }
            (Ok((opened, Some(what))), None) => self.judge(pid, object, &what).then_some(Opened::File(opened)),
            (Err(error), None) => {
                let remedy = "put the file back where it was (freeze --embed-files takes such files into the image)";
                self.refusals
                    .push(Refusal::new(pid, object, format!("cannot be opened: {error}"), remedy));
                None
            }
        }
    }

    /// One line for all.
    fn tell_of_copies(&self) -> Option<String> {
        let names = self.copied.iter().map(|&index| {
            let path = &self.snapshot.files[index as usize].path;
            String::from_utf8_lossy(path).into_owned()
        });
        let names: Vec<String> = names.collect();
        let pid = self.snapshot.processes.first()?.pid;
        let list = names.join(", ");
        (!names.is_empty())
            .then(|| format!("pid {pid}: has copies from the image of what is not here as it was: {list}"))
    }

    /// True where the file may be used all the same.
    fn judge(&mut self, pid: i32, object: String, what: &Difference) -> bool {
        match (self.check, what) {
            (Check::Strict, _) | (_, Difference::Type) => {
                let remedy = match what {
                    Difference::Type => "put the file back that was there",
                    Difference::Content(_) => {
                        "put the file back that was there, or, if the difference cannot matter, thaw with --file-check=warn"
                    }
                };
                self.refusals.push(Refusal::new(
                    pid,
                    object,
                    format!("is not the file at the freeze: {what}"),
                    remedy,
                ));
                false
            }
            (Check::Warn, _) => {
                self.warnings
                    .push(format!("pid {pid}: {object} is not the file at the freeze: {what}"));
                true
            }
            (Check::Off, _) => true,
        }
    }

    fn directory(&mut self, pid: i32, what: &str, path: &[u8]) -> Option<File> {
        let path = Path::new(OsStr::from_bytes(path));
        let opened = OpenOptions::new()
            .read(true)
            .custom_flags(libc::O_PATH | libc::O_DIRECTORY)
            .open(path);
        match opened {
            Ok(opened) => Some(opened),
            Err(error) => {
                let object = format!("its {what} {}", path.display());
                self.refusals.push(Refusal::new(
                    pid,
                    object,
                    format!("cannot be opened: {error}"),
                    "make it again",
                ));
                None
            }
        }
    }
}

/// O_NONBLOCK: should a FIFO or a device stand there now, this does not wait for it.
fn open(path: &Path, write: bool) -> io::Result<File> {
    OpenOptions::new()
        .read(true)
        .write(write)
        .custom_flags(libc::O_NONBLOCK | libc::O_NOCTTY)
        .open(path)
}

enum Difference {
    Type,
    Content(String),
}

impl std::fmt::Display for Difference {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Difference::Type => write!(f, "it is of another type"),
            Difference::Content(what) => write!(f, "{what}"),
        }
    }
}

/// An ELF file with a build id is known by it; others by size and modification time.
fn difference(recorded: &state::File, now: &Metadata, path: &Path) -> Option<Difference> {
    if recorded.mode & libc::S_IFMT != now.mode() & libc::S_IFMT {
        return Some(Difference::Type);
    }
    if !now.is_file() {
        return None; // /dev/zero and its kin have no content of their own
    }
    let mtime_ns = now.mtime() * 1_000_000_000 + now.mtime_nsec();
    let differs = if let Some(build_id) = &recorded.build_id {
        let found: Option<Vec<u8>> = crate::collect::build_id(path);
        (found.as_ref() != Some(build_id)).then(|| match found {
            Some(found) => format!("its build id is {}, it was {}", hex(&found), hex(build_id)),
            None => format!("it has no build id, it had {}", hex(build_id)),
        })
    } else if recorded.size != now.len() {
        Some(format!("it has {} bytes, it had {}", now.len(), recorded.size))
    } else if recorded.mtime_ns != mtime_ns {
        Some("it has been modified since".to_owned())
    } else {
        None
    };
    differs.map(Difference::Content)
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
