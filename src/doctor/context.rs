//! What several checks need, had once: settings, a line to the helper, the attester, the list of the model's objects.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use nix::unistd::Uid;
use tokio::sync::OnceCell;

use crate::attest::{self, Attester};
use crate::bus::{self, BusError};
use crate::config::{self, AttestSettings, Notice, Problems, Settings};
use crate::error::Fault;
use crate::helper::Helper;
use crate::host::{self, User};
use crate::kbs::{self, KbsError, Probe};
use crate::oss::{self, OssError};
use crate::store::Object;

/// How to see more.
pub(super) const AS_ROOT: &str = "sudo cai doctor";

/// Everything that is the same for all checks.
pub struct Context {
    /// `--root`.
    pub(super) root: PathBuf,
    /// The configuration, and what it notices.
    pub(super) config: Configuration,
    /// What attesting alone needs of it.
    attest: Result<AttestSettings, Problems>,
    /// Who runs this.
    pub(super) uid: Uid,
    /// The daemon's user, where there is one.
    pub(super) daemon: Option<User>,
    helper: OnceCell<Result<Arc<Helper>, Blocked>>,
    attester: OnceCell<Result<Arc<dyn Attester>, Blocked>>,
    probe: OnceCell<Result<Probe, Arc<KbsError>>>,
    listed: OnceCell<Result<Arc<Listed>, Arc<OssError>>>,
    status: OnceCell<Result<serde_json::Value, Arc<BusError>>>,
}

/// The configuration as far as it can be seen.
pub(super) enum Configuration {
    /// As `cai run` would use it.
    Valid(Arc<Settings>, Vec<Notice>),
    /// `cai run` would refuse it.
    Invalid(Problems),
    /// Its file is not for this user's eyes.
    Unreadable(PathBuf),
}

/// Why something that several checks need is not to be had.
#[derive(Clone)]
pub(super) enum Blocked {
    /// This user may not.
    NotAllowed,
    /// cai.toml does not say how.
    Unconfigured,
    /// It failed.
    Failed(Arc<dyn Fault>),
}

/// How far the daemon is, which decides what should be there and what should not.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Agent {
    /// Not running, or about to end.
    Absent,
    /// On its way.
    Starting,
    /// The model can be read.
    Serving,
}

/// The model's objects, and who can fetch them.
pub(super) struct Listed {
    pub(super) client: oss::Client,
    pub(super) objects: Vec<Object>,
    /// How long listing took, connecting included.
    pub(super) took: Duration,
}

impl Listed {
    /// Bytes of all of them.
    pub(super) fn bytes(&self) -> u64 {
        self.objects.iter().map(|object| object.len).fold(0, u64::saturating_add)
    }
}

impl Context {
    /// Read the configuration below `root`. Blocking; asks nobody.
    pub(super) fn new(root: &Path) -> Self {
        let env_file = root.join(config::ENV_FILE.trim_start_matches('/'));
        let config = match std::fs::File::open(&env_file) {
            Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {
                Configuration::Unreadable(env_file)
            }
            Ok(_) | Err(_) => match config::load(root) {
                Ok((settings, notices)) => Configuration::Valid(Arc::new(settings), notices),
                Err(problems) => Configuration::Invalid(problems),
            },
        };
        Context {
            root: root.to_owned(),
            config,
            attest: config::load_attest(root).map(|(settings, _)| settings),
            uid: Uid::effective(),
            daemon: User::find(host::DAEMON_USER).ok().flatten(),
            helper: OnceCell::new(),
            attester: OnceCell::new(),
            probe: OnceCell::new(),
            listed: OnceCell::new(),
            status: OnceCell::new(),
        }
    }

    /// The settings, where the configuration is valid.
    pub(super) fn settings(&self) -> Option<&Arc<Settings>> {
        match &self.config {
            Configuration::Valid(settings, _) => Some(settings),
            Configuration::Invalid(_) | Configuration::Unreadable(_) => None,
        }
    }

    /// What attesting takes of the configuration, where that much is valid: nothing of cai.env takes part.
    pub(super) fn attesting(&self) -> Option<&AttestSettings> {
        self.attest.as_ref().ok()
    }

    /// Whether this is the machine itself, and not a directory in its place: the service manager knows that one only.
    pub(super) fn is_machine(&self) -> bool {
        self.root == Path::new("/")
    }

    /// Whether this process may look everywhere.
    pub(super) fn is_root(&self) -> bool {
        self.uid.is_root()
    }

    /// A line to the helper: its own for root, the service manager's for the daemon's user.
    async fn helper(&self) -> Result<Arc<Helper>, Blocked> {
        let line = || async {
            let is_daemon = self.daemon.is_some_and(|user| user.uid == self.uid);
            if !self.is_root() && !is_daemon {
                return Err(Blocked::NotAllowed);
            }
            let helper = if self.is_root() { Helper::start(&self.root) } else { Helper::connect(&self.root) };
            helper.map(Arc::new).map_err(|error| Blocked::Failed(Arc::new(error)))
        };
        self.helper.get_or_init(line).await.clone()
    }

    /// Who gives evidence of this machine.
    pub(super) async fn attester(&self) -> Result<Arc<dyn Attester>, Blocked> {
        let detect = || async {
            let Some(settings) = self.attesting() else { return Err(Blocked::Unconfigured) };
            let helper = self.helper().await?;
            attest::detect(settings, &helper).map_err(|error| Blocked::Failed(Arc::new(error)))
        };
        self.attester.get_or_init(detect).await.clone()
    }

    /// What the key broker answers to somebody who asks for a challenge. `None` without settings.
    pub(super) async fn probe(&self) -> Option<&Result<Probe, Arc<KbsError>>> {
        let settings = self.settings()?;
        let ask = || async {
            let tee = match settings.attest.tee {
                config::TeeChoice::Sample => attest::Tee::Sample,
                config::TeeChoice::Auto | config::TeeChoice::Tdx => attest::Tee::Tdx,
            };
            let client = kbs::Client::new(&settings.trustee).map_err(Arc::new)?;
            client.probe(tee).await.map_err(Arc::new)
        };
        Some(self.probe.get_or_init(ask).await)
    }

    /// The list of the model's objects. `None` without settings.
    pub(super) async fn listed(&self) -> Option<&Result<Arc<Listed>, Arc<OssError>>> {
        let settings = self.settings()?;
        let list = || async {
            let client = oss::Client::new(&settings.oss).map_err(Arc::new)?;
            let begun = Instant::now();
            let objects = client.list(&settings.oss.prefix).await.map_err(Arc::new)?;
            Ok(Arc::new(Listed { client, objects, took: begun.elapsed() }))
        };
        Some(self.listed.get_or_init(list).await)
    }

    /// What the running daemon says of itself.
    pub(super) async fn status(&self) -> &Result<serde_json::Value, Arc<BusError>> {
        let ask = || async {
            let properties = async { bus::Daemon::on_the_bus().await?.properties().await };
            properties.await.map(|all| bus::to_legible_json(&all)).map_err(Arc::new)
        };
        self.status.get_or_init(ask).await
    }

    /// How far the daemon is.
    pub(super) async fn agent(&self) -> Agent {
        let status = self.status().await.as_ref().ok();
        match status.map(|status| status.get("State").and_then(serde_json::Value::as_str)) {
            None | Some(Some("Failed" | "Stopping")) => Agent::Absent,
            Some(Some("Serving" | "Degraded")) => Agent::Serving,
            Some(_) => Agent::Starting,
        }
    }
}
