//! `cai keygen` and `cai manifest`: the publisher's key, and what it signs.

use std::path::{Path, PathBuf};

use super::encrypt::progress_bar;
use crate::error::{ErrorClass, Fault};
use crate::gocryptfs::{Conf, Naming};
use crate::manifest::{self, Contents, Licence, Manifest, SigningKey};

/// Make a publisher's key pair (Ed25519): the private key in FILE, the public one in FILE.pub
///
/// Keep the private key where the model is encrypted, never on the machines that serve it. The public key goes into
/// model.publisher_key of their cai.toml.
#[derive(Debug, clap::Args)]
pub struct KeygenArgs {
    /// File to make, readable for its owner only
    file: PathBuf,
}

/// Sign an encrypted directory: names, lengths and hashes of all its files
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Directory with gocryptfs.conf
    dir: PathBuf,
    /// Private key of cai keygen
    #[arg(long, value_name = "KEYFILE")]
    sign: PathBuf,
    #[command(flatten)]
    about: About,
}

/// What the signer says beside the files.
#[derive(Debug, Default, clap::Args)]
pub struct About {
    /// Revision of the model; machines refuse a lower one than they have seen [default: one more than the manifest there is, else 1]
    #[arg(long, value_name = "N", requires = "sign", value_parser = clap::value_parser!(u64).range(1..))]
    revision: Option<u64>,
    /// TOML file with id, licensee and optionally policy, text, not_before, not_after
    #[arg(long, value_name = "FILE", requires = "sign")]
    license: Option<PathBuf>,
}

/// Why a directory is not signed.
#[derive(Debug, thiserror::Error)]
enum SignError {
    #[error("revision {revision} does not come after revision {there}, which {} has", dir.display())]
    Revision { dir: PathBuf, revision: u64, there: u64 },
    #[error("{} was made with -plaintextnames: its mount would show the manifest as a file of the model", dir.display())]
    PlainNames { dir: PathBuf },
}

impl Fault for SignError {
    fn class(&self) -> ErrorClass {
        match self {
            SignError::Revision { .. } | SignError::PlainNames { .. } => ErrorClass::Config,
        }
    }

    fn code(&self) -> &'static str {
        match self {
            SignError::Revision { .. } => "manifest.revision-order",
            SignError::PlainNames { .. } => "manifest.plain-names",
        }
    }

    fn hint(&self) -> String {
        match self {
            SignError::Revision { there, .. } => {
                format!("give --revision {} or higher, or leave it out", there.saturating_add(1))
            }
            SignError::PlainNames { .. } => {
                "encrypt the model with encrypted names: cai encrypt --sign".into()
            }
        }
    }
}

pub(super) fn keygen(args: &KeygenArgs) -> Result<(), Box<dyn Fault>> {
    println!("{}", manifest::generate(&args.file)?);
    Ok(())
}

pub(super) fn run(args: &Args) -> Result<(), Box<dyn Fault>> {
    let signer = Signer::new(&args.sign, &args.about)?;
    let signed = signer.sign(&args.dir)?;
    println!("{}: {} files signed", args.dir.display(), signed.contents().objects.len());
    say(&signed);
    Ok(())
}

/// What whoever configures the machines needs to know.
pub(super) fn say(signed: &Manifest) {
    println!("revision {}, model identity {}", signed.contents().revision, signed.identity());
    println!("publisher_key = \"{}\"", signed.publisher());
}

/// Everything about a signature that can be wrong before a file is hashed.
pub(super) struct Signer {
    key: SigningKey,
    revision: Option<u64>,
    licence: Option<Licence>,
}

impl Signer {
    pub(super) fn new(key: &Path, about: &About) -> Result<Self, Box<dyn Fault>> {
        let licence = about.license.as_deref().map(manifest::read_licence).transpose()?;
        Ok(Signer { key: SigningKey::read(key)?, revision: about.revision, licence })
    }

    /// Hash and sign `dir`.
    pub(super) fn sign(&self, dir: &Path) -> Result<Manifest, Box<dyn Fault>> {
        if Conf::read_file(dir)?.features().naming == Naming::Plain {
            return Err(SignError::PlainNames { dir: dir.to_owned() }.into());
        }
        let revision = self.next_revision(dir)?;
        let listing = manifest::list(dir)?;
        for path in &listing.others {
            eprintln!(
                "warning: {} is a symlink or a special file, which no object store holds and the manifest does not name",
                path.display()
            );
        }
        let bar = progress_bar();
        bar.set_length(listing.files.values().fold(0, |sum, len| sum.saturating_add(*len)));
        let objects = listing.objects(dir, &|bytes| bar.inc(bytes));
        bar.finish_and_clear();
        let contents = Contents { revision, licence: self.licence.clone(), objects: objects? };
        let file = contents.sign(&self.key)?;
        manifest::write(dir, &file)?;
        Ok(Manifest::parse(&file)?)
    }

    fn next_revision(&self, dir: &Path) -> Result<u64, Box<dyn Fault>> {
        let there = manifest::read(dir)?.map_or(0, |manifest| manifest.contents().revision);
        let revision = self.revision.unwrap_or(there.saturating_add(1));
        if revision <= there {
            return Err(SignError::Revision { dir: dir.to_owned(), revision, there }.into());
        }
        Ok(revision)
    }
}
