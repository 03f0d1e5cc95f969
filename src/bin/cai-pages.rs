//! cai-pages DIRECTORY: manual pages and shell completions, written from the command line's own definition for the package.
//!
//! Only with feature `pages`, and never packaged: the agent carries no generator.
#![deny(unsafe_code, clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

use std::path::PathBuf;

use anyhow::Context;
use cai::cli::Cli;
use clap::{CommandFactory, Parser};
use clap_complete::Shell;

/// Write manual pages and shell completions of cai.
#[derive(Parser)]
struct Arguments {
    /// Where to; created when missing.
    directory: PathBuf,
}

fn main() -> anyhow::Result<()> {
    let Arguments { directory } = Arguments::parse();
    let writing = || format!("writing to {}", directory.display());
    std::fs::create_dir_all(&directory).with_context(writing)?;
    // Else every command would have a page about its `help`.
    let mut command = Cli::command().disable_help_subcommand(true);
    for shell in [Shell::Bash, Shell::Zsh, Shell::Fish] {
        clap_complete::generate_to(shell, &mut command, "cai", &directory).with_context(writing)?;
    }
    clap_mangen::generate_to(command, &directory).with_context(writing)?;
    Ok(())
}
