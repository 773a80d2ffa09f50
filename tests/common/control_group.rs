//! A control group (cgroups(7)) for the time of a test.

use std::fs;
use std::path::{Path, PathBuf};

/// Its directory, removed with the value.
pub struct Group(PathBuf);

impl Group {
    /// None where that is no hierarchy, or we may make no group.
    pub fn make(root: &str, name: &str) -> Option<Self> {
        let path = Path::new(root).join(name);
        fs::create_dir(&path).ok()?;
        let group = Group(path);
        group.file("cgroup.procs").exists().then_some(group)
    }

    pub fn path(&self) -> &Path {
        &self.0
    }

    pub fn file(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }

    pub fn add(&self, pid: i32) {
        fs::write(self.file("cgroup.procs"), pid.to_string()).expect("the program can be moved");
    }
}

impl Drop for Group {
    /// It can go once the kernel is done with its last member.
    fn drop(&mut self) {
        for _ in 0..1000 {
            if fs::remove_dir(&self.0).is_ok() || !self.0.exists() {
                return;
            }
            std::thread::sleep(std::time::Duration::from_millis(5));
        }
    }
}

/// The name of a scratch directory, which no other group has.
pub fn name_of(dir: &Path) -> String {
    dir.file_name().expect("it has a name").to_string_lossy().into_owned()
}
