//! `cai upload`: put an encrypted directory into the bucket, for the model's owner.

use std::cell::Cell;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use indicatif::ProgressBar;

use super::encrypt::progress_bar;
use super::place::{Place, complain, print, retry, until_interrupted};
use crate::config::Oss;
use crate::error::{ErrorClass, Fault, chain};
use crate::gocryptfs::CONF_NAME;
use crate::host;
use crate::manifest;
use crate::oss::{Client, Event, LocalFile, Plan, PublishOptions, Published, Publisher, Rules, UploadError};

/// Upload an encrypted directory to OSS; objects that are there already are not sent again
///
/// A run that was interrupted or killed goes on where it was when it is started again, also from another machine: objects and
/// parts that are there with the right CRC-64 are not sent again. The manifest and gocryptfs.conf come last, so that nobody
/// takes half a model for a whole one. Exit status 0 only if everything is there.
///
/// The access key is read from the file, never from the command line: MODEL_OSS_ACCESS_KEY_ID,
/// MODEL_OSS_SECRET_ACCESS_KEY and, for a temporary one, MODEL_OSS_SESSION_TOKEN.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Directory with gocryptfs.conf, as made by cai encrypt
    dir: PathBuf,
    #[command(flatten)]
    place: Place,
    /// Upload the directory even if it is not encrypted: whoever can read the bucket can then read the model
    #[arg(long)]
    allow_plaintext: bool,
    /// When everything is there, delete the objects below the prefix that are not in DIR
    #[arg(long)]
    delete: bool,
    /// Say what would be uploaded, and send nothing
    #[arg(long)]
    dry_run: bool,
}

/// The directory and its manifest say different things.
#[derive(Debug, thiserror::Error)]
#[error("the manifest in {} does not describe what would be uploaded: {what}", dir.display())]
struct StaleManifest {
    dir: PathBuf,
    what: String,
}

impl Fault for StaleManifest {
    fn class(&self) -> ErrorClass {
        ErrorClass::Config
    }

    fn code(&self) -> &'static str {
        "upload.manifest"
    }

    fn hint(&self) -> String {
        "remove what does not belong to the model, and sign the directory again with cai manifest: machines refuse a \
         model that is not the one of its manifest"
            .into()
    }
}

/// What other tools, and interrupted ones of ours, leave beside a model; no name that gocryptfs makes has this form.
pub(super) fn is_leftover(relative: &Path) -> bool {
    let name = relative.file_name().unwrap_or_default().as_encoded_bytes();
    let at_top = relative.parent() == Some(Path::new(""));
    name.ends_with(b".partial")
        || at_top && (name == b"gocryptfs.conf.bak" || name == b"gocryptfs.conf.new")
        || at_top && name == b"gocryptfs.longname.cai-manifest-draft.name"
}

/// Upload, show progress where somebody watches, and say what was done.
pub(super) fn run(root: &Path, args: &Args) -> Result<(), Box<dyn Fault>> {
    host::log_to_stderr();
    let oss = args.place.load(root)?;
    let plan = plan(args, &oss)?;
    let show = Show { dry_run: args.dry_run, bar: progress_bar(), kept: Cell::new(0) };
    show.bar.set_length(plan.bytes());
    let options = PublishOptions {
        concurrency: oss.concurrency,
        retry: retry(),
        dry_run: args.dry_run,
        delete: args.delete,
    };
    let published = until_interrupted(async |stop| {
        let client = Client::new(&oss)?;
        let report = |event: Event<'_>| show.event(&event);
        Ok(Publisher::new(&client, options, stop, &report).publish(&plan).await?)
    });
    show.bar.finish_and_clear();
    show.conclude(&oss, published?)
}

/// What is to be uploaded, with everything that can be said before anything is sent.
fn plan(args: &Args, oss: &Oss) -> Result<Plan, Box<dyn Fault>> {
    let required = (!args.allow_plaintext).then_some(CONF_NAME);
    let rules = Rules { last: &[manifest::NAME, CONF_NAME], required, is_leftover: &is_leftover };
    let plan = Plan::of(&args.dir, &oss.prefix, &rules)?;
    for path in &plan.left_out {
        eprintln!("notice: {} is a leftover and no part of the model: not uploaded", path.display());
    }
    if let Some(what) = manifest_difference(&args.dir, &plan)? {
        return Err(StaleManifest { dir: args.dir.clone(), what }.into());
    }
    Ok(plan)
}

/// The first way in which names and lengths are not the ones of the manifest, where there is one. Hashes are what
/// `cai verify` is for: they take as long as the upload.
fn manifest_difference(dir: &Path, plan: &Plan) -> Result<Option<String>, Box<dyn Fault>> {
    let Some(manifest) = manifest::read(dir)? else { return Ok(None) };
    let files = plan.all().filter_map(|file| Some((file.path.strip_prefix(dir).ok()?, file.len)));
    let files: BTreeMap<&Path, u64> = files.filter(|(path, _)| *path != Path::new(manifest::NAME)).collect();
    for object in &manifest.contents().objects {
        match files.get(object.path.as_path()) {
            None => return Ok(Some(format!("{} is missing", object.path.display()))),
            Some(len) if *len != object.len => {
                let (path, signed) = (object.path.display(), object.len);
                return Ok(Some(format!("{path} has {len} bytes, not {signed}")));
            }
            Some(_) => {}
        }
    }
    let extra = files.keys().find(|path| manifest.object(path).is_none());
    Ok(extra.map(|path| format!("it does not name {}", path.display())))
}

/// Objects of one kind that are named when there are many.
const SHOWN: usize = 10;

/// What is shown: a bar on a terminal, a line per object elsewhere.
struct Show {
    dry_run: bool,
    bar: ProgressBar,
    /// Uploads in parts that stay for the next run.
    kept: Cell<usize>,
}

impl Show {
    fn event(&self, event: &Event<'_>) {
        match event {
            Event::Moved(bytes) => self.bar.inc(*bytes),
            Event::Uploaded(LocalFile { key, len, .. }) => {
                let done = if self.dry_run { "would upload" } else { "uploaded" };
                self.line(&format!("{done} {key} ({len} bytes)"));
            }
            Event::Present(LocalFile { key, .. }) => self.line(&format!("already there {key}")),
            Event::Deleted(key) => {
                self.line(&format!("{} {key}", if self.dry_run { "would delete" } else { "deleted" }));
            }
            Event::Kept(_) => self.kept.set(self.kept.get().saturating_add(1)),
            Event::Replacing | Event::Repeated(_) | Event::Foreign(_) | Event::LeftOpen(..) => {
                self.warn(event)
            }
        }
    }

    fn warn(&self, event: &Event<'_>) {
        let text = match event {
            Event::Replacing => {
                "there is a model already, and it is replaced: until this is complete, what is there is a \
                                 mixture of both; a new prefix for each revision avoids that"
                    .to_owned()
            }
            Event::Repeated(LocalFile { key, len, .. }) => {
                self.bar.set_position(self.bar.position().saturating_sub(*len));
                format!("{key} arrived with a wrong checksum; it was deleted and is sent again")
            }
            Event::Foreign(LocalFile { key, .. }) => format!(
                "an unfinished upload to {key} that is not of this file stays as it is; its parts are billed until it is \
                 aborted: a lifecycle rule for parts does it"
            ),
            Event::LeftOpen(LocalFile { key, .. }, error) => {
                let why = error.as_ref().map_or_else(|| "no answer".to_owned(), |error| chain(error));
                format!(
                    "the unfinished upload of {key} could not be aborted ({why}); its parts are billed until it is: a \
                     lifecycle rule for parts removes them"
                )
            }
            _ => return,
        };
        self.bar.suspend(|| complain(&format!("warning: {text}")));
    }

    fn line(&self, line: &str) {
        if self.bar.is_hidden() {
            print(line);
        }
    }

    /// Say what was done, and fail if that is not all.
    fn conclude(&self, oss: &Oss, mut published: Published) -> Result<(), Box<dyn Fault>> {
        let complete = published.is_complete();
        let Published { uploaded, bytes, present, undone, kept, .. } = published;
        let done = if self.dry_run { "objects would be uploaded" } else { "objects uploaded" };
        let mut summary = format!(
            "{}:/{}: {uploaded} {done} ({bytes} bytes), {present} already there",
            oss.bucket, oss.prefix
        );
        if kept > 0 {
            summary.push_str(&format!("; {kept} bytes were there from an interrupted run"));
        }
        if !complete {
            let failed = published.failed.len();
            summary.push_str(&format!("; {failed} failed, {undone} not finished"));
        }
        let others = std::mem::take(&mut published.others);
        if !others.is_empty() {
            let shown = others.iter().take(SHOWN).map(String::as_str).collect::<Vec<_>>().join(", ");
            let more = others.len().saturating_sub(SHOWN);
            let more = if more > 0 { format!(", and {more} more") } else { String::new() };
            complain(&format!(
                "warning: {} objects below the prefix are not in the directory: {shown}{more}; --delete removes them",
                others.len()
            ));
        }
        if self.kept.get() > 0 {
            eprintln!(
                "notice: {} unfinished uploads stay for the next run, which goes on with them; their parts are billed \
                 until then",
                self.kept.get()
            );
        }
        print(&summary);
        if complete {
            return Ok(());
        }
        if published.failed.len() > 1 {
            for error in &published.failed {
                complain(&format!("failed: {} [{}]", chain(error), error.code()));
            }
        }
        // The first one is the cause; what follows may have been stopped by it.
        Err(published.failed.into_iter().next().unwrap_or(UploadError::Interrupted).into())
    }
}
