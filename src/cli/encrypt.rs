//! `cai encrypt`: make a gocryptfs directory of a model, for its owner.

use std::io::IsTerminal;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use super::manifest::{self, About, Signer};
use indicatif::{ProgressBar, ProgressStyle};

use crate::error::Fault;
use crate::gocryptfs::{
    EncryptOptions, Encrypted, Exclude, Passphrase, Progress, encrypt_tree, lone_directory, read_passfile,
};

/// Encrypt a model directory into a new gocryptfs directory (AES-256-GCM, default options of gocryptfs v2)
///
/// Until it is complete it is called DST.partial; an interrupted run goes on from there when it is started again.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Directory with the plaintext model; its content becomes the content of the mount
    pub src: PathBuf,
    /// Directory to write, which must be missing or empty
    pub dst: PathBuf,
    /// File with the password: one line, as it will be uploaded to Trustee
    #[arg(long, value_name = "FILE")]
    pub passfile: PathBuf,
    /// Store what a symlink points to instead of the symlink
    #[arg(long)]
    pub dereference: bool,
    /// Leave out files and directories whose name (or, with a slash in GLOB, path below SRC) matches; can be repeated
    #[arg(long, value_name = "GLOB")]
    pub exclude: Vec<String>,
    /// Sign what was encrypted with this private key of cai keygen
    #[arg(long, value_name = "KEYFILE")]
    pub sign: Option<PathBuf>,
    #[command(flatten)]
    pub about: About,
}

/// Encrypt, show progress where somebody watches, and say what to look at.
///
/// # Errors
/// [`PassphraseError`](crate::gocryptfs::PassphraseError) or [`EncryptError`](crate::gocryptfs::EncryptError).
pub fn run(args: &Args) -> Result<(), Box<dyn Fault>> {
    let passphrase = read_passfile(&args.passfile).and_then(|secret| Passphrase::from_secret(&secret))?;
    for warning in passphrase.warnings() {
        eprintln!("warning: {warning}");
    }
    warn_of_a_lone_directory(args);

    let bar = progress_bar();
    let progress = |progress: Progress| {
        bar.set_length(progress.total);
        bar.set_position(progress.done);
    };
    let signer = args.sign.as_deref().map(|key| Signer::new(key, &args.about)).transpose()?;
    let signed = OnceLock::new();
    let sign = |complete: &Path| -> Result<(), Box<dyn Fault>> {
        if let Some(signer) = &signer {
            bar.finish_and_clear();
            let _ = signed.set(signer.sign(complete)?);
        }
        Ok(())
    };
    let options = EncryptOptions {
        finish: Some(&sign),
        progress: Some(&progress),
        dereference: args.dereference,
        exclude: Exclude::new(&args.exclude)?,
        ..EncryptOptions::default()
    };
    let result = encrypt_tree(&args.src, &args.dst, &passphrase, &options);
    bar.finish_and_clear();
    let encrypted = result?;
    report(args, &encrypted);
    if let Some(signed) = signed.get() {
        manifest::say(signed);
    }
    Ok(())
}

/// The trap of `cp -r model mount/`: the model one directory further down than the inference service looks for it.
fn warn_of_a_lone_directory(args: &Args) {
    // A source that cannot be listed is reported by the encryption itself.
    let Ok(Some(name)) = lone_directory(&args.src) else { return };
    let (src, inside, name) = (args.src.display(), args.src.join(&name), Path::new(&name).display());
    eprintln!(
        "warning: {src} holds nothing but the directory {name}, and its content becomes the content of the mount: the \
         model will be at MODEL_MOUNT_POINT/{name}, such as /tmp/model/{name}/config.json. To have it at the top, \
         as --model=/tmp/model expects it, encrypt {} instead.",
        inside.display()
    );
}

/// A bar of bytes on a terminal; hidden elsewhere.
pub(super) fn progress_bar() -> ProgressBar {
    if !std::io::stderr().is_terminal() {
        return ProgressBar::hidden();
    }
    let style = "{bar:40} {bytes}/{total_bytes} {bytes_per_sec} {eta}";
    // The template is a constant that indicatif parses; should it not, its own default bar will do.
    ProgressBar::new(0)
        .with_style(ProgressStyle::with_template(style).unwrap_or_else(|_| ProgressStyle::default_bar()))
}

fn report(args: &Args, encrypted: &Encrypted) {
    for path in &encrypted.skipped {
        eprintln!("warning: {} is no file, directory or symlink and was left out", path.display());
    }
    for path in &encrypted.escaping {
        eprintln!(
            "warning: the symlink {} points out of {} and will lead nowhere in the mount; --dereference stores what \
             it points to",
            path.display(),
            args.src.display()
        );
    }
    println!(
        "{}: {} files, {} directories, {} symlinks, {} bytes encrypted",
        args.dst.display(),
        encrypted.files,
        encrypted.directories,
        encrypted.symlinks,
        encrypted.bytes
    );
    if encrypted.kept > 0 {
        println!("{} bytes of them were there from an interrupted run, opened and compared", encrypted.kept);
    }
}
