//! `cai run`: the daemon.

use std::path::Path;
use std::time::Duration;

use nix::unistd::Uid;
use tokio::sync::watch;

use crate::agent::{self, status::Status};
use crate::bus::Bus;
use crate::config::{self, Settings};
use crate::error::{ErrorClass, Fault};
use crate::helper::Helper;
use crate::host;
use crate::metrics::Metrics;
use crate::task::Tasks;

/// The runtime could not be started.
#[derive(Debug, thiserror::Error)]
#[error("starting the asynchronous runtime")]
pub(super) struct RuntimeError(#[source] pub(super) std::io::Error);

impl Fault for RuntimeError {
    fn class(&self) -> ErrorClass {
        ErrorClass::Transient
    }

    fn code(&self) -> &'static str {
        "host.runtime"
    }

    fn hint(&self) -> String {
        "the machine is out of threads or file descriptors: see ulimit -a".into()
    }
}

/// How long blocking work that nobody waits for any more may take to end.
const LEFTOVER_GRACE: Duration = Duration::from_secs(1);

/// Read the configuration, get a line to the helper, become an ordinary user, serve.
pub(super) fn run(root: &Path) -> Result<(), Box<dyn Fault>> {
    host::log_to_journal_or_stderr();
    let (settings, notices) = config::load(root)?;
    let notices: Vec<String> = notices.iter().map(ToString::to_string).collect();
    for notice in &notices {
        tracing::warn!(event = "config.notice", "{notice}");
    }
    tracing::info!(
        event = "config.loaded",
        fingerprint = settings.fingerprint,
        "configuration {}",
        settings.fingerprint
    );
    // Before any thread starts: user ids belong to threads, and a child must not inherit a half-dropped state.
    let helper = if Uid::effective().is_root() { as_root(root, &settings)? } else { Helper::connect(root)? };
    host::harden::forbid_dumps()?;
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .thread_name("cai-rt")
        .enable_all()
        .build()
        .map_err(RuntimeError)?;
    let outcome = runtime.block_on(serve(settings, notices, helper));
    // Everything is taken down; what still blocks (a quote that the host does not give) must not keep the process.
    runtime.shutdown_timeout(LEFTOVER_GRACE);
    outcome
}

/// Offer the status on the bus, and run the agent behind it.
async fn serve(settings: Settings, notices: Vec<String>, helper: Helper) -> Result<(), Box<dyn Fault>> {
    let status = Status::new(settings.oss.location(), settings.mount.point.clone(), notices);
    let (sender, receiver) = watch::channel(status);
    let (desk, commands) = agent::command::desk();
    let metrics = match &settings.metrics {
        Some(place) => Some(Metrics::listen(place, receiver.clone()).await?),
        None => None,
    };
    let bus = Bus::serve(receiver, desk).await?;
    let mut tasks = Tasks::new();
    if let Some(metrics) = metrics {
        tasks.supervise("metrics", metrics.serve());
    }
    tasks.supervise("bus", bus.announce());
    Ok(agent::run(settings, sender, helper, commands, tasks).await?)
}

/// Without systemd: start the helper while we may, then drop to the daemon's user.
fn as_root(root: &Path, settings: &Settings) -> Result<Helper, Box<dyn Fault>> {
    let helper = Helper::start(root)?;
    host::harden::become_user(host::DAEMON_USER, &[&settings.cache.dir, &settings.state_dir])?;
    Ok(helper)
}
