//! Look at everything that cai depends on, before a start and after it, and say of each thing what was found, what it means, and
//! what mends it.
//!
//! Owns: the list of checks ([`CHECKS`]) and what each looks at. Must not know: how findings are shown, and how the agent works; it
//! asks through the rooms that the agent asks through, and the running agent over D-Bus as anybody does. It changes nothing: a key
//! that is released to it is wiped at once, and what it writes to measure a disk has no name.
//!
//! | file | looks at |
//! |---|---|
//! | `settings` | the configuration and the daemon's user |
//! | `daemon` | the running agent, and its units |
//! | `tee` | TDX: device, quoting service |
//! | `gpu` | GPUs: driver, confidential mode, ready state |
//! | `evidence` | what this machine can prove |
//! | `trustee` | the key broker: protocol, and whether it would release the key |
//! | `store` | OSS: list, one range, credential |
//! | `clock` | this machine's clock against theirs |
//! | `memory` | swap, room for decrypted files, bounce buffers |
//! | `disk` | the cache's directory: space, speed |
//! | `mount` | the mount point, propagation, FUSE |
//! | `port` | the gate, and who listens where |
//! | `network` | peers, and by which address others see this machine |
//! | `containers` | what cai replaces, still running |
//! | `versions` | cai, kernel, systemd |
//!
//! Each check has its own time limit, and all run at once, on one thread and its blocking helpers. No locks. What several need is
//! had once (`Context`). A check knows no other. Tested beside the code and in `tests/doctor.rs`.

mod clock;
mod containers;
mod context;
mod daemon;
mod disk;
mod evidence;
mod finding;
mod gpu;
mod memory;
mod mount;
mod network;
mod port;
mod sam;
mod settings;
mod store;
mod tee;
mod trustee;
mod versions;

use std::future::Future;
use std::path::Path;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use futures_util::{Stream, StreamExt as _, stream};

use crate::error::ErrorClass;
use context::{AS_ROOT, Configuration, Context};
pub use finding::{Finding, Level, exit_status};

type Findings = Pin<Box<dyn Future<Output = Vec<Finding>> + Send>>;

/// One row of [`CHECKS`].
pub struct Check {
    /// First part of the id of everything that it finds.
    pub name: &'static str,
    /// Second parts: what it looks at. The first stands for the whole.
    pub parts: &'static [&'static str],
    /// Whether there is anything to look at without a valid configuration.
    needs_settings: bool,
    /// How long it may take.
    limit: Duration,
    run: fn(Arc<Context>) -> Findings,
}

/// For what only looks at this machine.
const HERE: Duration = Duration::from_secs(20);
/// For what asks others: longer than the time in which a connection is given up (10 s), shorter than a person's patience.
const FAR: Duration = Duration::from_secs(30);
/// For what makes a quote: the host's service may take half a minute for one (`attest::qgs`), and several are tried.
const QUOTE: Duration = Duration::from_secs(100);

/// Shorthand for a row.
macro_rules! check {
    ($name:literal, $parts:expr, $needs:expr, $limit:expr, $run:path) => {
        Check {
            name: $name,
            parts: &$parts,
            needs_settings: $needs,
            limit: $limit,
            run: |context| Box::pin($run(context)),
        }
    };
}

/// Every check, in the order in which findings are shown: what others depend on comes first.
#[rustfmt::skip]
pub static CHECKS: &[Check] = &[
    check!("config", ["valid", "problem", "notice", "readable", "user"], false, HERE, settings::check),
    check!("versions", ["cai", "kernel", "systemd"], false, HERE, versions::check),
    check!("daemon", ["state", "failure", "notice", "units"], false, HERE, daemon::check),
    check!("tdx", ["guest", "qgs", "pccs"], false, HERE, tee::check),
    check!("gpu", ["present", "driver", "mode", "ready"], false, HERE, gpu::check),
    check!("evidence", ["quote", "gpus", "notice"], false, QUOTE, evidence::check),
    check!("trustee", ["protocol"], true, FAR, trustee::protocol),
    check!("key", ["release", "protocol", "notice"], true, QUOTE, trustee::release),
    check!("oss", ["list", "model", "read", "credentials"], true, FAR, store::check),
    check!("clock", ["trustee", "oss"], true, FAR, clock::check),
    check!("memory", ["swap", "room", "swiotlb"], true, FAR, memory::check),
    check!("disk", ["space", "speed"], true, FAR, disk::check),
    check!("mount", ["point", "propagation", "fuse"], true, HERE, mount::check),
    check!("sam", ["adapter", "user"], true, HERE, sam::check),
    check!("port", ["gate", "service", "listen", "peer"], true, HERE, port::check),
    check!("peers", ["reach"], true, HERE, network::peers),
    check!("egress", ["address"], true, HERE, network::egress),
    check!("containers", ["old"], false, HERE, containers::check),
];

/// Run every check below `root`: their findings in the order of [`CHECKS`], each as soon as it and those before it are there.
pub fn run(root: &Path) -> impl Stream<Item = Vec<Finding>> + use<> {
    let context = Arc::new(Context::new(root));
    let started = CHECKS.iter().map(move |check| {
        let context = context.clone();
        async move { check.findings(context).await }
    });
    stream::iter(started).buffered(CHECKS.len())
}

impl Check {
    /// Every id that it may give.
    pub fn ids(&self) -> impl Iterator<Item = String> {
        self.parts.iter().map(|part| format!("{}.{part}", self.name))
    }

    async fn findings(&self, context: Arc<Context>) -> Vec<Finding> {
        if self.needs_settings && context.settings().is_none() {
            let (what, fix) = match &context.config {
                Configuration::Unreadable(_) => ("the configuration is not for this user to read", AS_ROOT),
                Configuration::Invalid(_) | Configuration::Valid(..) => {
                    ("needs a valid configuration", "cai check-config")
                }
            };
            return vec![Finding::unseen(self.name, what, fix)];
        }
        match tokio::time::timeout(self.limit, (self.run)(context)).await {
            Ok(findings) => findings,
            Err(_) => {
                let found = format!("did not end within {} s", self.limit.as_secs());
                let meaning = "what it asks does not answer, and the agent would wait for it, too";
                vec![Finding::error(self.name, ErrorClass::Transient, found, meaning)]
            }
        }
    }
}

/// What blocks, off the thread that all checks share.
async fn blocking(id: &'static str, work: impl FnOnce() -> Vec<Finding> + Send + 'static) -> Vec<Finding> {
    match tokio::task::spawn_blocking(work).await {
        Ok(findings) => findings,
        Err(_) => {
            let defect = Finding::error(id, ErrorClass::Internal, "the check panicked", "a defect of cai");
            vec![defect.fixed_by("please report it: cai report")]
        }
    }
}

/// A small text file of the kernel or the vendor; `None` where it cannot be read.
fn read(path: &Path) -> Option<String> {
    std::fs::read_to_string(path).ok()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn check_that_does_not_end_is_an_error_and_one_that_panics_a_defect() {
        let root = tempfile::tempdir().unwrap();
        let context = Arc::new(Context::new(root.path()));
        let check = |run| Check { name: "x", parts: &["y"], needs_settings: false, limit: HERE, run };
        let findings = check(|_| Box::pin(std::future::pending())).findings(context.clone()).await;
        assert_eq!(findings.len(), 1);
        assert_eq!((findings[0].id, findings[0].class), ("x", ErrorClass::Transient));
        assert_eq!(findings[0].found, "did not end within 20 s");
        let panics = check(|_| Box::pin(blocking("x.y", || panic!("on purpose"))));
        let findings = panics.findings(context.clone()).await;
        assert_eq!((findings[0].id, findings[0].class), ("x.y", ErrorClass::Internal));
        let needy = Check { needs_settings: true, ..panics };
        assert_eq!(
            needy.findings(context).await,
            [Finding::unseen("x", "needs a valid configuration", "cai check-config")]
        );
    }

    /// The longest id fits its column, see `cli/doctor.rs`.
    #[test]
    fn ids_are_unique_lower_case_and_short() {
        let ids: Vec<String> = CHECKS.iter().flat_map(Check::ids).collect();
        let unique: BTreeSet<&String> = ids.iter().collect();
        assert_eq!(unique.len(), ids.len());
        for id in ids {
            assert!(id.len() <= 19 && id.chars().all(|c| c.is_ascii_lowercase() || c == '.'), "{id}");
        }
    }
}
