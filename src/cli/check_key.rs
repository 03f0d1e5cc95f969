//! `cai check-key`: does this secret, as a key broker would deliver it, open this directory.

use std::path::PathBuf;

use crate::error::Fault;
use crate::gocryptfs::{Conf, Passphrase, read_passfile, unlock};

/// Check that a password file opens a gocryptfs directory
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The encrypted directory, with its gocryptfs.conf
    pub dir: PathBuf,
    /// File whose bytes are the secret, exactly as uploaded to Trustee
    #[arg(long, value_name = "FILE")]
    pub passfile: PathBuf,
}

/// Say how the secret is read, then whether it opens the directory.
///
/// # Errors
/// [`PassphraseError`](crate::gocryptfs::PassphraseError) for a secret that is no password,
/// [`FormatError`](crate::gocryptfs::FormatError) for a conf that cannot be used or that it does not open.
pub fn run(args: &Args) -> Result<(), Box<dyn Fault>> {
    let secret = read_passfile(&args.passfile).map_err(boxed)?;
    let passphrase = Passphrase::from_secret(&secret).map_err(boxed)?;
    if secret.with(|bytes| bytes.ends_with(b"\n")) {
        println!("the secret ends in a newline, which is not part of the password");
    }
    for warning in passphrase.warnings() {
        eprintln!("warning: {warning}");
    }
    let conf = Conf::read_file(&args.dir).map_err(boxed)?;
    unlock(&conf, &passphrase).map_err(boxed)?;
    println!("the secret opens {} (written by {:?})", args.dir.display(), conf.creator);
    Ok(())
}

fn boxed(error: impl Fault) -> Box<dyn Fault> {
    Box::new(error)
}
