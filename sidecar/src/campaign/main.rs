//! The command `orbhook`, for the crash campaign: built with the feature `campaign`, under a name of its own.

use std::process::ExitCode;

#[path = "../main.rs"]
mod program;

fn main() -> ExitCode {
    program::main()
}
