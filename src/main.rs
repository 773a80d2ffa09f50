//! The `cryopod` command: parse, run, print the error chain once, choose the exit code.
#![deny(unsafe_code)]

use cryopod::{cli::Cli, sys};
use std::process::ExitCode;

fn main() -> ExitCode {
    // A set-user-ID or file-capability cryopod would hand its rights to whoever calls it (AT_SECURE, getauxval(3)).
    if sys::at_secure() {
        eprintln!("cryopod: does nothing with rights gained by its own executable (set-user-ID or file capabilities)");
        return ExitCode::FAILURE;
    }
    let cli = Cli::from_command_line(std::env::args_os());
    match cli.run() {
        Ok(code) => code,
        Err(error) if cli.reader_left(&error) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("cryopod: {error:#}");
            cli.failure_code(&error)
        }
    }
}
