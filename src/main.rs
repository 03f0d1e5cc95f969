//! `cai`: arguments in, exit status out. Everything else is in the library.
#![deny(unsafe_code, clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::process::ExitCode;

use cai::cli::{self, Cli};
use cai::error::chain;
use clap::Parser;

fn main() -> ExitCode {
    match cli::run(&Cli::parse()) {
        Ok(status) => status,
        Err(fault) => {
            eprintln!("cai: {} [{}]", chain(fault.as_ref()), fault.code());
            eprintln!("  hint: {}", fault.hint());
            ExitCode::from(fault.class().exit_code())
        }
    }
}
