//! A program that was frozen, and is gone.

use super::{CRYOPOD, Program, can_thaw, cryopod, scratch, stderr};
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

    /// A thaw is refused with all these words.
    pub fn is_refused(&self, words: &[&str]) {
        let thaw = cryopod(&[&"thaw", &"-d", &self.image]);
        assert_eq!(thaw.status.code(), Some(3), "{}", stderr(&thaw));
        for word in words {
            assert!(stderr(&thaw).contains(word), "{word:?} is not in: {}", stderr(&thaw));
        }
    }

    /// Thaws the image without its last frames and its index, through a pipe: they are missed only when all else has been made.
    pub fn thaw_fails_late(&self, options: &str) -> std::process::Output {
        let whole = fs::read(&self.image).expect("the image");
        let damaged = self.dir.path().join("damaged.img");
        fs::write(&damaged, &whole[..whole.len() - 2000]).expect("the directory takes a file");
        let script = format!("cat \"$1\" | \"$0\" thaw {options} -");
        let thaw = std::process::Command::new("sh")
            .args(["-c", &script, CRYOPOD])
            .arg(&damaged)
            .output()
            .expect("sh can be run");
        assert!(!thaw.status.success(), "{}", stderr(&thaw));
        thaw
    }

    /// Makes the file that the program waits for.
    pub fn go(&self) {
        fs::write(self.dir.path().join("go"), "").expect("the directory takes a file");
    }
}
