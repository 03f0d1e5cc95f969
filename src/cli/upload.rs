//! `cai upload`: put an encrypted directory into the bucket, for the model's owner.

use std::io::Write;
use std::path::{Path, PathBuf};

use indicatif::ProgressBar;
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;

use super::encrypt::progress_bar;
use super::run::RuntimeError;
use crate::config::{self, Oss, OssOverrides};
use crate::error::{Fault, chain};
use crate::gocryptfs::CONF_NAME;
use crate::host;
use crate::oss::{Client, Event, LocalFile, Plan, PublishOptions, Published, Publisher};
use crate::store::Retry;

/// How long one request is tried again: a restart of the network, but not a night.
const RETRY_LIMIT: std::time::Duration = std::time::Duration::from_secs(60);

/// Upload an encrypted directory to OSS; objects that are there already are not sent again.
///
/// The access key is read from the file, never from the command line: MODEL_OSS_ACCESS_KEY_ID,
/// MODEL_OSS_SECRET_ACCESS_KEY and, for a temporary one, MODEL_OSS_SESSION_TOKEN.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Directory with gocryptfs.conf, as made by cai encrypt
    dir: PathBuf,
    /// Where to, such as conf-ai:/model/ [default: MODEL_OSS_BUCKET_PATH of the file]
    #[arg(long, value_name = "BUCKET:/PREFIX/")]
    bucket_path: Option<String>,
    /// Endpoint of the bucket's region [default: MODEL_OSS_ENDPOINT of the file]
    #[arg(long, value_name = "URL")]
    endpoint: Option<String>,
    /// Region, such as cn-beijing [default: MODEL_OSS_REGION of the file, else from the endpoint]
    #[arg(long, value_name = "REGION")]
    region: Option<String>,
    /// File in the syntax of cai.env [default: /etc/cai/cai.env, if it exists]
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Upload the directory even if it is not encrypted
    #[arg(long)]
    plaintext: bool,
    /// Say what would be uploaded, and send nothing
    #[arg(long)]
    dry_run: bool,
}

/// Upload, show progress where somebody watches, and say what was done.
pub(super) fn run(root: &Path, args: &Args) -> Result<(), Box<dyn Fault>> {
    host::log_to_stderr();
    let overrides = OssOverrides {
        bucket_path: args.bucket_path.clone(),
        endpoint: args.endpoint.clone(),
        region: args.region.clone(),
    };
    let (oss, notices) = config::load_oss(root, args.config.as_deref(), overrides)?;
    for notice in notices {
        eprintln!("notice: {notice}");
    }
    let plan = Plan::of(&args.dir, &oss.prefix, CONF_NAME, !args.plaintext)?;
    let show = Show::new(args.dry_run, plan.bytes());
    // Many threads: TLS and checksums of several connections side by side.
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().map_err(RuntimeError)?;
    let published = runtime.block_on(publish(&oss, &plan, &show));
    show.bar.finish_and_clear();
    show.summary(&oss, &published?);
    Ok(())
}

/// Publish until it is done or somebody interrupts.
async fn publish(oss: &Oss, plan: &Plan, show: &Show) -> Result<Published, Box<dyn Fault>> {
    let mut terminate = signal(SignalKind::terminate()).map_err(RuntimeError)?;
    let mut interrupt = signal(SignalKind::interrupt()).map_err(RuntimeError)?;
    let client = Client::new(oss)?;
    let options = PublishOptions {
        concurrency: oss.concurrency,
        retry: Retry { limit: RETRY_LIMIT, ..Retry::default() },
        dry_run: show.dry_run,
    };
    let (stop, report) = (CancellationToken::new(), |event: Event<'_>| show.event(&event));
    let publisher = Publisher::new(&client, options, stop.clone(), &report);
    let mut publishing = std::pin::pin!(publisher.publish(plan));
    tokio::select! {
        published = &mut publishing => return Ok(published?),
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
    }
    stop.cancel();
    // Aborts what is open.
    Ok(publishing.await?)
}

/// What is shown: a bar on a terminal, a line per object elsewhere.
struct Show {
    dry_run: bool,
    bar: ProgressBar,
}

impl Show {
    fn new(dry_run: bool, bytes: u64) -> Self {
        let bar = progress_bar();
        bar.set_length(bytes);
        Show { dry_run, bar }
    }

    fn event(&self, event: &Event<'_>) {
        match event {
            Event::Moved(bytes) => self.bar.inc(*bytes),
            Event::Uploaded(LocalFile { key, len, .. }) => {
                let done = if self.dry_run { "would upload" } else { "uploaded" };
                self.line(&format!("{done} {key} ({len} bytes)"));
            }
            Event::Present(LocalFile { key, .. }) => self.line(&format!("already there {key}")),
            Event::LeftOpen(LocalFile { key, .. }, error) => {
                let why = error.as_ref().map_or_else(|| "no answer".to_owned(), |error| chain(error));
                self.bar.suspend(|| {
                    eprintln!(
                        "warning: the unfinished upload of {key} could not be aborted ({why}); its parts are billed \
                         until it is: a lifecycle rule for parts removes them"
                    );
                });
            }
        }
    }

    fn line(&self, line: &str) {
        if self.bar.is_hidden() {
            print(line);
        }
    }

    fn summary(&self, oss: &Oss, published: &Published) {
        let Published { uploaded, bytes, present } = published;
        let done = if self.dry_run { "objects would be uploaded" } else { "objects uploaded" };
        print(&format!(
            "{}:/{}: {uploaded} {done} ({bytes} bytes), {present} already there",
            oss.bucket, oss.prefix
        ));
    }
}

fn print(line: &str) {
    // A closed pipe (`cai upload | head`) must not end the upload.
    let _ = writeln!(std::io::stdout(), "{line}");
}
