//! Which bucket `cai upload` and `cai download` talk to, and what both do while they do it.

use std::future::Future;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::Duration;

use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;

use super::run::RuntimeError;
use crate::config::{self, Oss, OssOverrides};
use crate::error::Fault;
use crate::store::Retry;
use crate::text::printable;

/// How long one request is tried again: a restart of the network, but not a night.
const RETRY_LIMIT: Duration = Duration::from_secs(60);

/// The place in the object store.
#[derive(Debug, clap::Args)]
pub(super) struct Place {
    /// Bucket and prefix, such as conf-ai:/model/ [default: MODEL_OSS_BUCKET_PATH of the file]
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
}

impl Place {
    /// Read the configuration, and say what there is to say about it.
    pub(super) fn load(&self, root: &Path) -> Result<Oss, Box<dyn Fault>> {
        let overrides = OssOverrides {
            bucket_path: self.bucket_path.clone(),
            endpoint: self.endpoint.clone(),
            region: self.region.clone(),
        };
        let (oss, notices) = config::load_oss(root, self.config.as_deref(), overrides)?;
        for notice in notices {
            eprintln!("notice: {notice}");
        }
        Ok(oss)
    }
}

/// How a request is tried again where a person waits.
pub(super) fn retry() -> Retry {
    Retry { limit: RETRY_LIMIT, ..Retry::default() }
}

/// Run `work` to its end, and cancel its token when somebody interrupts: it still says what it has done.
pub(super) fn until_interrupted<T, F>(work: impl FnOnce(CancellationToken) -> F) -> Result<T, Box<dyn Fault>>
where
    F: Future<Output = Result<T, Box<dyn Fault>>>,
{
    // Many threads: TLS and checksums of several connections side by side.
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().map_err(RuntimeError)?;
    runtime.block_on(async {
        let mut terminate = signal(SignalKind::terminate()).map_err(RuntimeError)?;
        let mut interrupt = signal(SignalKind::interrupt()).map_err(RuntimeError)?;
        let stop = CancellationToken::new();
        let mut working = std::pin::pin!(work(stop.clone()));
        tokio::select! {
            done = &mut working => return done,
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
        stop.cancel();
        working.await
    })
}

/// A line for whoever reads.
pub(super) fn print(line: &str) {
    // A closed pipe (`cai upload | head`) must not end the work.
    let _ = writeln!(std::io::stdout(), "{}", printable(line, usize::MAX));
}

/// The same to the standard error.
pub(super) fn complain(line: &str) {
    eprintln!("{}", printable(line, usize::MAX));
}
