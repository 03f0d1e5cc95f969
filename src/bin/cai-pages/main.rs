//! cai-pages DIRECTORY: manual pages and shell completions for the package, each fact from where it is decided: commands from the
//! command line's own definition, configuration from the table of keys, D-Bus from the interface's introspection.
//!
//! What is only told, not decided in code, is in the templates of packaging/man. Only with feature `pages`, and never packaged:
//! the agent carries no generator. Tested in `tests/pages.rs`.
#![deny(unsafe_code, clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

mod interface;
mod keys;

use std::fs::{self, File};
use std::io::Write as _;
use std::path::{Path, PathBuf};

use anyhow::Context;
use cai::cli::Cli;
use cai::config::keys::{ENV, TOML};
use clap::{CommandFactory, Parser};
use clap_complete::Shell;

/// A template, with the version in it.
macro_rules! template {
    ($name:literal) => {
        include_str!(concat!("../../../packaging/man/", $name))
            .replace("@VERSION@", env!("CARGO_PKG_VERSION"))
    };
}

/// Write manual pages and shell completions of cai.
#[derive(Parser)]
struct Arguments {
    /// Where to; created when missing.
    directory: PathBuf,
}

fn main() -> anyhow::Result<()> {
    let Arguments { directory } = Arguments::parse();
    write(&directory).with_context(|| format!("writing to {}", directory.display()))
}

fn write(directory: &Path) -> anyhow::Result<()> {
    fs::create_dir_all(directory)?;
    // Else every command would have a page about its `help`.
    let mut command = Cli::command().disable_help_subcommand(true);
    for shell in [Shell::Bash, Shell::Zsh, Shell::Fish] {
        clap_complete::generate_to(shell, &mut command, "cai", directory)?;
    }
    clap_mangen::generate_to(command, directory)?;
    // What clap does not know about the program as a whole.
    let mut first = File::options().append(true).open(directory.join("cai.1"))?;
    first.write_all(template!("cai.1.in").as_bytes())?;

    let page = |name: &str, text: String| fs::write(directory.join(name), text);
    page("cai-decryptor.7", template!("cai-decryptor.7.in"))?;
    page("cai.service.8", template!("cai.service.8.in"))?;
    let (env, toml) = (keys::variables(ENV), keys::tuning(TOML));
    page("cai.env.5", template!("cai.env.5.in").replace("@KEYS@\n", &env))?;
    page("cai.toml.5", template!("cai.toml.5.in").replace("@KEYS@\n", &toml))?;
    let shown = interface::roff(&cai::bus::introspection())?;
    page("com.alibaba.cai1.5", template!("com.alibaba.cai1.5.in").replace("@INTERFACE@\n", &shown))?;
    Ok(())
}
