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
    let secret = read_passfile(&args.passfile)?;
    let passphrase = Passphrase::from_secret(&secret)?;
    if secret.with(|bytes| bytes.ends_with(b"\n")) {
        println!("the secret ends in a newline, which is not part of the password");
    }
    for warning in passphrase.warnings() {
        eprintln!("warning: {warning}");
    }
    let conf = Conf::read_file(&args.dir)?;
    unlock(&conf, &passphrase)?;
    println!("the secret opens {} (written by {:?})", args.dir.display(), conf.creator);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::encrypt;
    use crate::error::ErrorClass;

    #[test]
    fn check_key_of_what_encrypt_wrote_tells_right_wrong_and_missing_apart() {
        let root = tempfile::tempdir().unwrap();
        let path = |name: &str| root.path().join(name);
        std::fs::create_dir(path("model")).unwrap();
        std::fs::write(path("model").join("config.json"), b"{}").unwrap();
        std::fs::write(path("password"), b"alibaba@1688\n").unwrap();
        encrypt::run(&encrypt::Args {
            src: path("model"),
            dst: path("cipher"),
            passfile: path("password"),
            dereference: false,
            exclude: Vec::new(),
            sign: None,
            about: Default::default(),
        })
        .unwrap();

        let check = |dir: &str, secret: &[u8]| {
            std::fs::write(path("secret"), secret).unwrap();
            run(&Args { dir: path(dir), passfile: path("secret") })
                .map_err(|error| (error.class(), error.code()))
        };
        assert_eq!(check("cipher", b"alibaba@1688"), Ok(()));
        assert_eq!(check("cipher", b"alibaba@1688\n"), Ok(()));
        let wrong = Err((ErrorClass::Config, "format.wrong-password"));
        assert_eq!(check("cipher", b"alibaba@1688\r\n"), wrong);
        assert_eq!(check("cipher", b"alibaba"), wrong);
        assert_eq!(check("model", b"alibaba@1688"), Err((ErrorClass::Config, "format.no-conf")));
        assert_eq!(check("cipher", b"\n"), Err((ErrorClass::Config, "passphrase.empty")));
        assert_eq!(check("cipher", b"a\nb"), Err((ErrorClass::Config, "passphrase.newline")));
    }
}
