//! An image of another kernel build: its `[vdso]` is not ours, and its functions lead to ours. None of its own code can be run here, so that
//! who calls it dies.

mod common;

use common::rewrite::rewrite;
use common::{Program, build, can_thaw, cryopod, scratch, stderr};
use cryopod::image::state::Snapshot;
use nix::sys::signal::Signal;
use std::fs;
use std::path::Path;

#[cfg(target_arch = "x86_64")]
const TRAP: &[u8] = &[0xcc];
#[cfg(target_arch = "aarch64")]
const TRAP: &[u8] = &[0, 0, 0x20, 0xd4];

/// As it might be elsewhere: what works on the kernel's data has other code.
fn from_elsewhere(snapshot: &mut Snapshot) {
    snapshot.host.kernel_release = "4.4.0-elsewhere".to_owned();
    let vdso = snapshot.host.vdso.clone();
    let elf = goblin::elf::Elf::parse(&vdso).expect("an ELF file");
    let mut functions = 0;
    for symbol in elf.dynsyms.iter().filter(|symbol| symbol.is_function()) {
        let name = elf.dynstrtab.get_at(symbol.st_name).expect("a name");
        if ["time", "getres", "getcpu", "getrandom"]
            .iter()
            .any(|word| name.contains(word))
        {
            let code = &mut snapshot.host.vdso[symbol.st_value as usize..][..symbol.st_size as usize];
            code.chunks_exact_mut(TRAP.len())
                .for_each(|code| code.copy_from_slice(TRAP));
            functions += 1;
        }
    }
    assert!(functions > 2);
}

fn go(source: &str, program: &Program, dir: &Path) {
    match source.ends_with(".java") || source.ends_with(".py") {
        true => fs::write(dir.join("go"), "").expect("the directory takes a file"),
        false => program.signal(Signal::SIGUSR1),
    }
}

/// Each time it comes from elsewhere, or only the first time.
fn goes_on(source: &str, from: [bool; 2]) {
    if !can_thaw() {
        return;
    }
    let dir = scratch();
    let mut program = Program::start(build::fixture(source).current_dir(dir.path()).env("FREEZES", "2"));
    program.wait_for(|line| line == "READY");
    let pid = program.pid;
    for (n, from_elsewhere_now) in from.into_iter().enumerate() {
        let image = dir.path().join(format!("{n}.img"));
        program.freeze(&image);
        if from_elsewhere_now {
            rewrite(&image, from_elsewhere);
        }
        program = Program::thaw(&image, pid);
    }
    go(source, &program, dir.path());
    program.expect_pass();
}

macro_rules! goes_on {
    ($($name:ident: $source:literal;)*) => {$(
        mod $name {
            #[test]
            fn and_is_frozen_again() {
                super::goes_on($source, [true, false]);
            }
            #[test]
            fn twice_elsewhere() {
                super::goes_on($source, [true, true]);
            }
        }
    )*};
}

goes_on! {
    threads_that_read_clocks: "threads/in_vdso.c";
    a_go_program: "clock/clock.go";
    a_static_program: "memory/static.c";
    a_tree: "tree/wide_and_deep.c";
    a_tree_that_shares_memory: "tree/inherited.c";
    timers: "clock/monotonic.c";
}

#[test]
fn a_java_program_goes_on() {
    let _alone = build::alone("java");
    goes_on("clock/Clock.java", [true, true]);
}

/// What is half done in the old one cannot go on.
#[test]
fn a_handler_of_a_signal_that_came_in_the_vdso_is_refused() {
    if !can_thaw() {
        return;
    }
    let dir = scratch();
    let mut program = Program::start(build::fixture("threads/in_vdso_handler.c").current_dir(dir.path()));
    program.wait_for(|line| line == "READY");
    let (pid, image) = (program.pid, dir.path().join("app.img"));
    let freeze = cryopod(&[&"freeze", &pid.to_string(), &"-o", &image]);
    assert!(
        freeze.status.success() && stderr(&freeze).contains("thaws under the same kernel only"),
        "{}",
        stderr(&freeze)
    );
    assert!(!program.wait().success());
    let here = dir.path().join("here.img");
    fs::copy(&image, &here).expect("the directory takes a file");
    rewrite(&image, from_elsewhere);
    let thaw = cryopod(&[&"thaw", &"-d", &image]);
    assert_eq!(thaw.status.code(), Some(3), "{}", stderr(&thaw));
    for words in [
        &format!("thread {pid}"),
        "in the middle of a function of [vdso]",
        "4.4.0-elsewhere",
    ] {
        assert!(stderr(&thaw).contains(words), "{words:?} is not in: {}", stderr(&thaw));
    }
    let program = Program::thaw(&here, pid);
    program.signal(Signal::SIGUSR1);
    program.expect_pass();
}

#[test]
fn a_vdso_that_cannot_be_led_elsewhere_is_refused() {
    if !can_thaw() {
        return;
    }
    let dir = scratch();
    let program = Program::perl("print \"READY\\n\"; sleep 1000", dir.path());
    let image = dir.path().join("app.img");
    program.freeze(&image);
    type Change = (&'static str, fn(&mut Snapshot));
    let changes: [Change; 3] = [
        ("it is of another size", |snapshot| snapshot.host.vdso.extend([0; 4096])),
        ("is unknown", |snapshot| {
            let vdso = &mut snapshot.host.vdso;
            let found = vdso
                .windows(8)
                .position(|name| name == b"_getcpu\0")
                .expect("all have it");
            vdso[found..][..7].copy_from_slice(b"_future");
        }),
        ("it is no ELF file", |snapshot| snapshot.host.vdso.fill(b'#')),
    ];
    for (words, change) in changes {
        let changed = dir.path().join("changed.img");
        fs::copy(&image, &changed).expect("the directory takes a file");
        rewrite(&changed, change);
        let thaw = cryopod(&[&"thaw", &"-d", &changed]);
        assert_eq!(thaw.status.code(), Some(3), "{}", stderr(&thaw));
        assert!(stderr(&thaw).contains(words), "{words:?} is not in: {}", stderr(&thaw));
    }
}
