//! `cai verify`: is all of an encrypted directory what was encrypted.

use std::io::Write;
use std::path::{Path, PathBuf};

use super::OutputError;
use super::encrypt::progress_bar;
use super::place::complain;
use crate::ciphertext::Ciphertext;
use crate::error::{ErrorClass, Fault, chain};
use crate::gocryptfs::{self, Conf, Damaged, Kind, LocalDir, Passphrase, Tree, read_passfile};
use crate::manifest::{self, Difference, Manifest, PublicKey};
use crate::text::printable;

/// Look at every block and every name of an encrypted directory, and at its manifest where it has one
///
/// Exit status 65, and a line on standard output for whatever is damaged. Without a manifest, a file that was cut at a block
/// border, swapped, removed or rolled back cannot be told from a sound one.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Directory with gocryptfs.conf
    dir: PathBuf,
    /// File with the password
    #[arg(long, value_name = "FILE")]
    passfile: PathBuf,
    /// Public key that must have signed the manifest, which must then be there
    #[arg(long, value_name = "KEY", value_parser = public_key)]
    publisher: Option<PublicKey>,
}

pub(super) fn public_key(text: &str) -> Result<PublicKey, String> {
    PublicKey::parse(text).ok_or_else(|| "not a public key as cai keygen prints it".into())
}

/// Something is not what was encrypted.
#[derive(Debug, thiserror::Error)]
#[error("{} is damaged in {count} places", dir.display())]
struct DamageFound {
    dir: PathBuf,
    count: usize,
}

impl Fault for DamageFound {
    fn class(&self) -> ErrorClass {
        ErrorClass::Corrupt
    }

    fn code(&self) -> &'static str {
        "verify.damaged"
    }

    fn hint(&self) -> String {
        "restore the listed files from where the model was encrypted, or encrypt it again".into()
    }
}

pub(super) fn run(args: &Args) -> Result<(), Box<dyn Fault>> {
    let passphrase = Passphrase::from_secret(&read_passfile(&args.passfile)?)?;
    let keys = gocryptfs::unlock(&Conf::read_file(&args.dir)?, &passphrase)?;
    let source = LocalDir::open(&args.dir)?;
    let tree = Tree::build(&source, &keys)?;
    let signed = Signed::read(&args.dir, args.publisher);

    let bar = progress_bar();
    bar.set_length(plain_bytes(&tree) + if signed.manifest.is_some() { stored_bytes(&source) } else { 0 });
    let advanced = |bytes| bar.inc(bytes);
    let verified = gocryptfs::verify(&source, &keys, &tree, &advanced)?;
    let differences = match &signed.manifest {
        Some(manifest) => manifest::compare(&args.dir, manifest, &advanced)?,
        None => Vec::new(),
    };
    bar.finish_and_clear();

    for (path, blocks) in &verified.holes {
        complain(&format!(
            "warning: {} has {blocks} blocks that are holes: they read as zeros, and nothing says that they were written so",
            path.display()
        ));
    }
    let mut lines = signed.problem;
    lines.extend(verified.damaged.iter().map(damage_line));
    lines.extend(differences.iter().map(difference_line));
    let mut out = std::io::stdout().lock();
    for line in &lines {
        writeln!(out, "{}", printable(line, usize::MAX)).map_err(OutputError)?;
    }
    if !lines.is_empty() {
        return Err(DamageFound { dir: args.dir.clone(), count: lines.len() }.into());
    }
    let (dir, files, bytes) = (args.dir.display(), verified.files, verified.bytes);
    writeln!(out, "{dir}: {files} files, {bytes} bytes, every block and every name is sound")
        .map_err(OutputError)?;
    writeln!(out, "{}", signed.says).map_err(OutputError)?;
    Ok(())
}

/// The directory's manifest, and what there is to say about it.
struct Signed {
    manifest: Option<Manifest>,
    problem: Vec<String>,
    says: String,
}

impl Signed {
    fn read(dir: &Path, publisher: Option<PublicKey>) -> Self {
        let problem = |what: String| {
            let problem = vec![format!("{}: {what}", manifest::NAME)];
            Signed { manifest: None, problem, says: String::new() }
        };
        match (manifest::read(dir), publisher) {
            (Err(error), _) => problem(chain(&error)),
            (Ok(None), Some(_)) => problem("there is no manifest".into()),
            (Ok(None), None) => Signed {
                manifest: None,
                problem: Vec::new(),
                says: "there is no manifest: cut, swapped, missing and rolled-back files cannot be seen"
                    .into(),
            },
            (Ok(Some(manifest)), Some(wanted)) if manifest.publisher() != wanted => {
                problem(format!("it is signed by {}, not by {wanted}", manifest.publisher()))
            }
            (Ok(Some(manifest)), _) => Signed {
                problem: Vec::new(),
                says: format!(
                    "revision {}, model identity {}, signed by {}",
                    manifest.contents().revision,
                    manifest.identity(),
                    manifest.publisher()
                ),
                manifest: Some(manifest),
            },
        }
    }
}

fn damage_line(damaged: &Damaged) -> String {
    match &damaged.plain {
        Some(plain) => format!("{} ({}): {}", plain.display(), damaged.stored.display(), damaged.flaw),
        None => format!("{}: {}", damaged.stored.display(), damaged.flaw),
    }
}

fn difference_line(difference: &Difference) -> String {
    format!("{}: {difference}", difference.path().display())
}

fn plain_bytes(tree: &Tree) -> u64 {
    let lengths = tree.nodes().iter().map(|node| match node.kind {
        Kind::File { plain_len, .. } => plain_len,
        _ => 0,
    });
    lengths.fold(0, u64::saturating_add)
}

fn stored_bytes(source: &LocalDir) -> u64 {
    let lengths = source.entries().iter().map(|entry| match entry.kind {
        crate::ciphertext::EntryKind::File { len } => len,
        _ => 0,
    });
    lengths.fold(0, u64::saturating_add)
}
