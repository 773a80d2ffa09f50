//! Real programs that lead a session on a terminal of their own, as in a window: each is frozen and thawed twice, on another terminal each time,
//! and asked for its state (tests/on_terminal.py).

mod common;

use common::{CRYOPOD, can_thaw, scratch};
use std::process::Command;

fn play(scenario: &str) {
    if !can_thaw() {
        return;
    }
    let dir = scratch();
    let result = Command::new("/usr/bin/python3")
        .arg(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/on_terminal.py"))
        .args([CRYOPOD, scenario])
        .current_dir(dir.path())
        .output()
        .expect("python3 can be run");
    let said = String::from_utf8_lossy(&result.stdout);
    assert!(
        said.contains("PASS"),
        "{said}{}",
        String::from_utf8_lossy(&result.stderr)
    );
}

macro_rules! on_terminal {
    ($($name:ident)*) => {
        $(
            #[test]
            fn $name() {
                play(stringify!($name));
            }
        )*
    };
}

on_terminal!(bash dash python perl sqlite bc less top vim emacs script gdb named new);
