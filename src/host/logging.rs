//! Where log records go: the journal when systemd started us, standard error otherwise.

use std::io::IsTerminal;

use tracing_subscriber::EnvFilter;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;

/// cai's own records from INFO up, everybody else's from WARN: zbus and hyper log each message below that. Not fuser's answers that
/// the kernel did not wait for any more: of a reader that is killed just as it gets its bytes there is nothing to say.
const FILTER: &str = "warn,fuser::reply=off,cai=info";

/// Log to the journal with fields (`journalctl F_EVENT=state.changed`) when systemd connected our standard error to it,
/// else to standard error as text.
pub fn log_to_journal_or_stderr() {
    let by_systemd = is_journal_stream();
    match by_systemd.then(tracing_journald::layer) {
        Some(Ok(journal)) => {
            tracing_subscriber::registry().with(EnvFilter::new(FILTER)).with(journal).init();
        }
        Some(Err(_)) | None => log_to_stderr(),
    }
}

/// Log to standard error as text.
pub fn log_to_stderr() {
    let text = tracing_subscriber::fmt::layer()
        .with_writer(std::io::stderr)
        .with_target(false)
        .with_ansi(std::io::stderr().is_terminal());
    tracing_subscriber::registry().with(EnvFilter::new(FILTER)).with(text).init();
}

/// Whether standard error is the stream that systemd announced in `JOURNAL_STREAM` (systemd.exec(5)): a program run from
/// such a service with its own standard error must not be mistaken for it.
fn is_journal_stream() -> bool {
    // Not a trust setting: it only says where text goes.
    #[expect(clippy::disallowed_methods, reason = "the service manager's own protocol, not configuration")]
    let announced = std::env::var("JOURNAL_STREAM").unwrap_or_default();
    let Ok(stat) = nix::sys::stat::fstat(std::io::stderr()) else { return false };
    announced == format!("{}:{}", stat.st_dev, stat.st_ino)
}
