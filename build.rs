//! Compiles the resurrector's stub with plain rustc into OUT_DIR; `resurrect::stage` embeds it.

use std::env;
use std::ffi::OsString;
use std::path::PathBuf;
use std::process::Command;

const SOURCES: [&str; 5] = [
    "src/resurrect/stub/main.rs",
    "src/resurrect/stub/stub.ld",
    "src/resurrect/wire.rs",
    "src/arch/x86_64/stub.rs",
    "src/arch/aarch64/stub.rs",
];

fn main() {
    println!("cargo:rerun-if-changed=build.rs");
    for source in SOURCES {
        println!("cargo:rerun-if-changed={source}");
    }
    let out = PathBuf::from(env::var_os("OUT_DIR").expect("cargo sets OUT_DIR")).join("stub.elf");
    let mut rustc = rustc();
    // The one that is configured for the target, where it is not this machine.
    if let Some(linker) = env::var_os("RUSTC_LINKER") {
        let mut option = OsString::from("-Clinker=");
        option.push(linker);
        rustc.arg(option);
    }
    let status = rustc
        .args([
            "--edition",
            "2024",
            "--crate-name",
            "cryopod_stub",
            "--crate-type",
            "bin",
        ])
        .args(["--target", &env::var("TARGET").expect("cargo sets TARGET")])
        // Debug assertions and overflow checks would pull in panics, and with them data that needs relocation.
        .args([
            "-Cpanic=abort",
            "-Clto=fat",
            "-Copt-level=s",
            "-Crelocation-model=pic",
            "-Cstrip=symbols",
        ])
        .arg("-Clink-args=-nostdlib -nostartfiles -static -Wl,--build-id=none -Wl,-T,src/resurrect/stub/stub.ld")
        .arg("-o")
        .arg(&out)
        .arg(SOURCES[0])
        .status()
        .expect("rustc can be started");
    assert!(status.success(), "the stub does not compile");
}

/// $RUSTC through $RUSTC_WORKSPACE_WRAPPER, so that clippy sees the stub as well.
fn rustc() -> Command {
    let rustc = env::var_os("RUSTC").expect("cargo sets RUSTC");
    match env::var_os("RUSTC_WORKSPACE_WRAPPER").filter(|wrapper| !wrapper.is_empty()) {
        Some(wrapper) => {
            let mut command = Command::new(wrapper);
            command.arg(rustc);
            command
        }
        None => Command::new(rustc),
    }
}
