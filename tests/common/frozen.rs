//! A program that was frozen, and is gone.

use super::{Program, can_thaw, scratch};
use std::fs;
use std::path::PathBuf;

/// A frozen program that is gone, and its image.
pub struct Frozen {
    pub dir: tempfile::TempDir,
    pub image: PathBuf,
    pub pid: i32,
}

impl Frozen {
    /// A script that has written READY.
    pub fn perl(script: &str) -> Option<Self> {
        can_thaw().then(|| {
            let dir = scratch();
            let program = Program::perl(script, dir.path());
            Frozen::program(dir, program)
        })
    }

    pub fn program(dir: tempfile::TempDir, program: Program) -> Self {
        let (image, pid) = (dir.path().join("app.img"), program.pid);
        program.freeze(&image);
        Frozen { dir, image, pid }
    }

    pub fn thaw(&self) -> Program {
        Program::thaw(&self.image, self.pid)
    }

    /// Makes the file that the program waits for.
    pub fn go(&self) {
        fs::write(self.dir.path().join("go"), "").expect("the directory takes a file");
    }
}
