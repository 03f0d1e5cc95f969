//! `cai passwd`: another password for an encrypted directory.

use std::path::PathBuf;

use crate::error::Fault;
use crate::gocryptfs::{Passphrase, change_password, read_passfile};
use crate::manifest;

/// Change the password of an encrypted directory; no file of the model is encrypted anew
///
/// The old gocryptfs.conf stays (as gocryptfs.conf.bak) until the new one is proven to open the directory. Whoever has a copy
/// of the old one can still open the model with the old password: where that is a danger, encrypt the model again.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Directory with gocryptfs.conf
    dir: PathBuf,
    /// File with the password it has
    #[arg(long, value_name = "FILE")]
    passfile: PathBuf,
    /// File with the password it gets: one line, as it will be uploaded to Trustee
    #[arg(long, value_name = "FILE")]
    new_passfile: PathBuf,
}

pub(super) fn run(args: &Args) -> Result<(), Box<dyn Fault>> {
    let old = Passphrase::from_secret(&read_passfile(&args.passfile)?)?;
    let new = Passphrase::from_secret(&read_passfile(&args.new_passfile)?)?;
    for warning in new.warnings() {
        eprintln!("warning: {warning}");
    }
    change_password(&args.dir, &old, &new)?;
    println!("{}: the new password opens it, and the old one does not any more", args.dir.display());
    if args.dir.join(manifest::NAME).exists() {
        eprintln!(
            "warning: the manifest names the gocryptfs.conf of before: sign the directory again with cai manifest {} --sign \
             KEYFILE",
            args.dir.display()
        );
    }
    Ok(())
}
