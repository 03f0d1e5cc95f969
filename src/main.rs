//! `cai`: arguments in, exit status out. Everything else is in the library.
#![deny(unsafe_code, clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::process::ExitCode;

use cai::cli::{self, Cli};
use clap::Parser;

fn main() -> ExitCode {
    match cli::run(&Cli::parse()) {
        Ok(status) => status,
        Err(fault) => cli::failed(fault.as_ref()),
    }
}
