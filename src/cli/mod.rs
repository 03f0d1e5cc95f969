//! The command line: one file per subcommand, each a thin layer over the library.

mod act;
mod attest;
mod check_config;
mod check_key;
mod connect;
mod doctor;
mod download;
mod encrypt;
mod gate;
mod manifest;
mod mount;
mod page;
mod passwd;
mod place;
mod report;
mod run;
mod status;
mod upload;
mod verify;
mod watch;

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Parser, Subcommand};

use crate::error::{ErrorClass, Fault, chain};
use crate::text::printable_lines;

/// Host agent for confidential LLM inference.
#[derive(Debug, Parser)]
#[command(name = "cai", version = VERSION, propagate_version = true)]
pub struct Cli {
    /// Prefix of every path cai uses (configuration, cache, mount point); for tests.
    #[arg(long, global = true, value_name = "DIR", default_value = "/", value_parser = real_directory)]
    root: PathBuf,
    #[command(subcommand)]
    command: Command,
}

/// A directory without symbolic links or relative steps: the helper and the daemon must mean the same place.
fn real_directory(path: &str) -> Result<PathBuf, String> {
    std::fs::canonicalize(path).map_err(|error| error.to_string())
}

/// Version with the features built in: a package proves by it that `sandbox` is not.
const VERSION: &str = if cfg!(feature = "sandbox") {
    concat!(env!("CARGO_PKG_VERSION"), " (features: sandbox)")
} else {
    concat!(env!("CARGO_PKG_VERSION"), " (features: none)")
};

#[derive(Debug, Subcommand)]
enum Command {
    /// The daemon: attest, receive the key, mount the model, keep it served.
    Run,
    /// What the running daemon is doing.
    Status(status::Args),
    /// Go to the present key and revision of the model, without interrupting a reader.
    Rotate(act::RotateArgs),
    /// Attest anew, and ask whether the key would still be released; a denial ends the daemon.
    Reattest,
    /// Have the daemon read its configuration again.
    Reload,
    /// Collect evidence of this machine and show what it says; no network, no key.
    Attest(attest::Args),
    /// Keep plaintext from outside off the service port, whether the agent runs or not.
    Gate(gate::Args),
    /// Validate the configuration and report every problem at once.
    CheckConfig(check_config::Args),
    /// Look at everything that cai depends on, and say what mends what is wrong.
    Doctor(doctor::Args),
    /// Collect everything that support needs, without secrets, in one archive.
    Report(report::Args),
    /// Does this secret open this encrypted directory?
    CheckKey(check_key::Args),
    /// Encrypt a directory into a new gocryptfs directory.
    Encrypt(encrypt::Args),
    /// Look at every block and every name of an encrypted directory.
    Verify(verify::Args),
    /// Change the password of an encrypted directory.
    Passwd(passwd::Args),
    /// Make a publisher's key pair.
    Keygen(manifest::KeygenArgs),
    /// Sign an encrypted directory.
    Manifest(manifest::Args),
    /// Mount an encrypted local directory, read-only, until SIGTERM or Ctrl-C.
    Mount(mount::Args),
    /// Upload an encrypted directory to OSS.
    Upload(upload::Args),
    /// Download an encrypted directory from OSS.
    Download(download::Args),
    /// Connect applications to attested servers.
    Connect(connect::Args),
}

/// Standard output cannot be written.
#[derive(Debug, thiserror::Error)]
#[error("writing to standard output")]
struct OutputError(#[source] std::io::Error);

impl Fault for OutputError {
    fn class(&self) -> ErrorClass {
        ErrorClass::Transient
    }

    fn code(&self) -> &'static str {
        "cli.output"
    }

    fn hint(&self) -> String {
        "where does the output go? A full disk or a closed pipe cannot take it".into()
    }
}

/// Say on the terminal why a command failed; the exit status for it. The text may quote what somebody else chose: a name in a
/// bucket, the answer of a server.
pub fn failed(fault: &dyn Fault) -> ExitCode {
    eprintln!("cai: {} [{}]", printable_lines(&chain(fault)), fault.code());
    eprintln!("  hint: {}", printable_lines(&fault.hint()));
    ExitCode::from(fault.class().exit_code())
}

/// Run the chosen subcommand.
///
/// # Errors
/// Whatever ended it; `main` prints the chain and the hint, and turns the class into the exit status.
pub fn run(cli: &Cli) -> Result<ExitCode, Box<dyn Fault>> {
    match &cli.command {
        Command::Run => run::run(&cli.root)?,
        Command::Status(args) => status::run(args)?,
        Command::Rotate(args) => act::rotate(args)?,
        Command::Reattest => act::reattest()?,
        Command::Reload => act::reload()?,
        Command::Gate(args) => gate::run(&cli.root, args)?,
        Command::Attest(args) => attest::run(&cli.root, args)?,
        Command::CheckConfig(args) => return Ok(check_config::run(&cli.root, args).map_err(OutputError)?),
        Command::Doctor(args) => return doctor::run(&cli.root, args),
        Command::Report(args) => report::run(&cli.root, args)?,
        Command::CheckKey(args) => check_key::run(args)?,
        Command::Encrypt(args) => encrypt::run(args)?,
        Command::Verify(args) => verify::run(args)?,
        Command::Passwd(args) => passwd::run(args)?,
        Command::Keygen(args) => manifest::keygen(args)?,
        Command::Manifest(args) => manifest::run(args)?,
        Command::Mount(args) => mount::run(args)?,
        Command::Upload(args) => upload::run(&cli.root, args)?,
        Command::Download(args) => download::run(&cli.root, args)?,
        Command::Connect(args) => connect::run(args)?,
    }
    Ok(ExitCode::SUCCESS)
}
