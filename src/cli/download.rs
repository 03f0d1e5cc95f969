//! `cai download`: fetch an encrypted directory from the bucket, for the model's owner.

use std::path::{Path, PathBuf};

use indicatif::ProgressBar;

use super::encrypt::progress_bar;
use super::place::{Place, complain, print, retry, until_interrupted};
use super::verify::public_key;
use crate::error::{ErrorClass, Fault, chain};
use crate::gocryptfs::CONF_NAME;
use crate::host;
use crate::manifest::{self, PublicKey};
use crate::oss::{Client, DownloadError, DownloadEvent, DownloadOptions, Downloaded, Downloader};

/// Download an encrypted directory from OSS, as it is there: it stays encrypted
///
/// A run that was interrupted or killed goes on where it was when it is started again: files and parts that are there with the
/// right CRC-64 are not fetched again. Nothing is overwritten that is not recognised. gocryptfs.conf comes last. The
/// manifest, where there is one, is compared with every byte. Exit status 0 only if everything is there.
///
/// The access key is read from the file, never from the command line: MODEL_OSS_ACCESS_KEY_ID,
/// MODEL_OSS_SECRET_ACCESS_KEY and, for a temporary one, MODEL_OSS_SESSION_TOKEN.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Directory to make: missing, empty, or of an earlier download of the same
    dir: PathBuf,
    #[command(flatten)]
    place: Place,
    /// Public key that must have signed the manifest, which must then be there
    #[arg(long, value_name = "KEY", value_parser = public_key)]
    publisher: Option<PublicKey>,
    /// Say what would be downloaded, and fetch nothing
    #[arg(long)]
    dry_run: bool,
}

/// What was downloaded is not what was signed.
#[derive(Debug, thiserror::Error)]
enum OriginError {
    #[error("{dir} has no manifest")]
    None { dir: PathBuf },
    #[error("the manifest in {dir} is signed by {found}, not by {wanted}")]
    Publisher { dir: PathBuf, found: PublicKey, wanted: PublicKey },
    #[error("{dir} differs from its manifest in {count} files")]
    Differs { dir: PathBuf, count: usize },
}

impl Fault for OriginError {
    fn class(&self) -> ErrorClass {
        match self {
            OriginError::None { .. } | OriginError::Publisher { .. } | OriginError::Differs { .. } => {
                ErrorClass::Corrupt
            }
        }
    }

    fn code(&self) -> &'static str {
        match self {
            OriginError::None { .. } => "download.no-manifest",
            OriginError::Publisher { .. } => "download.publisher",
            OriginError::Differs { .. } => "download.manifest",
        }
    }

    fn hint(&self) -> String {
        match self {
            OriginError::None { .. } => {
                "ask the publisher for a signed model, or leave out --publisher".into()
            }
            OriginError::Publisher { .. } => "this is not that publisher's model: do not use it".into(),
            OriginError::Differs { .. } => {
                "the bucket does not hold what was signed: the publisher must upload the model again".into()
            }
        }
    }
}

/// Download, show progress where somebody watches, compare with the manifest, and say what was done.
pub(super) fn run(root: &Path, args: &Args) -> Result<(), Box<dyn Fault>> {
    host::log_to_stderr();
    let oss = args.place.load(root)?;
    let options = DownloadOptions {
        prefix: oss.prefix.clone(),
        last: vec![manifest::NAME.into(), CONF_NAME.into()],
        concurrency: oss.concurrency,
        retry: retry(),
        dry_run: args.dry_run,
    };
    let show = Show { dry_run: args.dry_run, bar: progress_bar() };
    let downloaded = until_interrupted(async |stop| {
        let client = Client::new(&oss)?;
        let report = |event: DownloadEvent<'_>| show.event(&event);
        Ok(Downloader::new(&client, options, stop, &report).download(&args.dir).await?)
    });
    show.bar.finish_and_clear();
    show.conclude(&oss.location(), downloaded?)?;
    if args.dry_run { Ok(()) } else { check_origin(args) }
}

/// Compare every byte with the manifest, where there is one.
fn check_origin(args: &Args) -> Result<(), Box<dyn Fault>> {
    let dir = args.dir.clone();
    let Some(manifest) = manifest::read(&dir)? else {
        if args.publisher.is_some() {
            return Err(OriginError::None { dir }.into());
        }
        print("there is no manifest: cut, swapped, missing and rolled-back files cannot be seen");
        return Ok(());
    };
    if let Some(wanted) = args.publisher.filter(|wanted| *wanted != manifest.publisher()) {
        return Err(OriginError::Publisher { dir, found: manifest.publisher(), wanted }.into());
    }
    let bar = progress_bar();
    bar.set_length(manifest.contents().objects.iter().fold(0, |sum, object| sum.saturating_add(object.len)));
    let differences = manifest::compare(&dir, &manifest, &|bytes| bar.inc(bytes))?;
    bar.finish_and_clear();
    for difference in &differences {
        print(&format!("{}: {difference}", difference.path().display()));
    }
    if !differences.is_empty() {
        return Err(OriginError::Differs { dir, count: differences.len() }.into());
    }
    let (revision, identity) = (manifest.contents().revision, manifest.identity());
    print(&format!("revision {revision}, model identity {identity}, signed by {}", manifest.publisher()));
    Ok(())
}

/// What is shown: a bar on a terminal, a line per object elsewhere.
struct Show {
    dry_run: bool,
    bar: ProgressBar,
}

impl Show {
    fn event(&self, event: &DownloadEvent<'_>) {
        match event {
            DownloadEvent::Total(bytes) => self.bar.set_length(*bytes),
            DownloadEvent::Moved(bytes) => self.bar.inc(*bytes),
            DownloadEvent::Downloaded(object) => {
                let done = if self.dry_run { "would download" } else { "downloaded" };
                self.line(&format!("{done} {} ({} bytes)", object.path.display(), object.len));
            }
            DownloadEvent::Present(object) => self.line(&format!("already there {}", object.path.display())),
            DownloadEvent::Repeated(object) => {
                self.bar.set_position(self.bar.position().saturating_sub(object.len));
                let path = object.path.display();
                self.bar.suspend(|| {
                    complain(&format!("warning: {path} arrived with a wrong checksum, and is fetched again"));
                });
            }
        }
    }

    fn line(&self, line: &str) {
        if self.bar.is_hidden() {
            print(line);
        }
    }

    /// Say what was done, and fail if that is not all.
    fn conclude(&self, place: &str, downloaded: Downloaded) -> Result<(), Box<dyn Fault>> {
        let complete = downloaded.is_complete();
        let Downloaded { downloaded: count, bytes, kept, present, unchecked, undone, failed } = downloaded;
        let done = if self.dry_run { "objects would be downloaded" } else { "objects downloaded" };
        let mut summary = format!("{place}: {count} {done} ({bytes} bytes), {present} already there");
        if kept > 0 {
            summary.push_str(&format!("; {kept} bytes were there from an interrupted run"));
        }
        if !complete {
            summary.push_str(&format!("; {} failed, {undone} not finished", failed.len()));
        }
        print(&summary);
        if unchecked > 0 {
            eprintln!(
                "warning: OSS told no checksum of {unchecked} objects: only the manifest or cai verify can say whether \
                 they are what they were"
            );
        }
        if complete {
            return Ok(());
        }
        if failed.len() > 1 {
            for error in &failed {
                complain(&format!("failed: {} [{}]", chain(error), error.code()));
            }
        }
        // The first one is the cause; what follows may have been stopped by it.
        Err(failed.into_iter().next().unwrap_or(DownloadError::Interrupted).into())
    }
}
