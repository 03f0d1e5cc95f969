//! The credential that requests are signed with, kept fresh.
//!
//! A cache in front of whatever gives credentials: requests take what is held and never wait for a service while it is valid.
//! One task renews a temporary key of a service ahead of its end; failing that, the old one stays in use to its end. OSS'
//! refusal of a key makes one renewal, however many requests met it: the first looks, the others wait for what it finds. A key
//! of `cai.env` is renewed by reading the file again.
//!
//! Locks: `held` for a look or a swap; `turn` (asynchronous) by whoever renews. The one task ends with the client.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

use super::access::AccessCell;
use super::clock::Clock;
use super::credential::Credential;
use super::credential_error::CredentialError;
use super::error::OssError;
use super::metadata::MetadataService;
use super::sts::Sts;
use super::transport;
use crate::config::{self, Oss, OssCredentials};
use crate::error::chain;
use crate::task::Tasks;

/// First pause after a renewal that brought nothing, doubled with each further one.
const FIRST_PAUSE: Duration = Duration::from_secs(5);
/// Longest such pause: a service that comes back is noticed well before a credential ends.
const LONGEST_PAUSE: Duration = Duration::from_secs(60);
/// Shortest such pause, near the end of a credential.
const SHORTEST_PAUSE: Duration = Duration::from_millis(250);
/// Longest sleep of the renewing task: the machine may have been asleep too.
const LOOK: Duration = Duration::from_secs(60);

/// Where credentials come from.
enum Provider {
    Nobody,
    /// The key of the configuration, and the file that may have a newer one.
    Key(Option<PathBuf>),
    Role(MetadataService),
    Oidc(Sts),
}

/// See the module.
pub struct Credentials {
    shared: Arc<Shared>,
    tasks: Mutex<Option<Tasks>>,
}

struct Shared {
    provider: Provider,
    clock: Arc<Clock>,
    access: Arc<AccessCell>,
    held: Mutex<Held>,
    turn: tokio::sync::Mutex<Turn>,
}

#[derive(Default)]
struct Held {
    credential: Option<Arc<Credential>>,
    /// OSS refused it, and whether there is a better one is being found out.
    in_doubt: bool,
}

#[derive(Default)]
struct Turn {
    /// When the end of the last renewal was.
    looked: Option<Instant>,
    /// Renewals in a row that brought nothing, and why the last did not.
    failures: u32,
    failed: Option<(Instant, Arc<CredentialError>)>,
}

impl Credentials {
    /// As `config` says; nothing is asked yet.
    ///
    /// # Errors
    /// `CredentialMemory`, `Credentials` and those of the TLS set-up.
    pub fn new(config: &Oss, clock: Arc<Clock>, access: Arc<AccessCell>) -> Result<Self, OssError> {
        let (provider, credential) = match &config.credentials {
            config::Credentials::Anonymous => (Provider::Nobody, None),
            config::Credentials::Static(key) => {
                (Provider::Key(config.env_file.clone()), Some(Arc::new(Credential::copy_of(key)?)))
            }
            config::Credentials::EcsRamRole(role) => {
                (Provider::Role(MetadataService::new(role, transport::tls(config)?)?), None)
            }
            config::Credentials::Oidc(oidc) => {
                (Provider::Oidc(Sts::new(oidc, transport::tls(config)?)?), None)
            }
        };
        access.credential(kind(&provider, credential.as_deref()), None);
        let held = Mutex::new(Held { credential, in_doubt: false });
        let shared = Shared { provider, clock, access, held, turn: tokio::sync::Mutex::default() };
        Ok(Credentials { shared: Arc::new(shared), tasks: Mutex::new(None) })
    }

    /// The credential to sign with; `None` for anonymous access. Waits for a service only where there is no valid one.
    ///
    /// # Errors
    /// `Credentials`: there is none, and none can be had now.
    pub async fn current(&self) -> Result<Option<Arc<Credential>>, OssError> {
        let shared = &self.shared;
        if matches!(shared.provider, Provider::Nobody) {
            return Ok(None);
        }
        if let Some(credential) = shared.usable() {
            return Ok(Some(credential));
        }
        let mut turn = shared.turn.lock().await;
        if let Some(credential) = shared.usable() {
            return Ok(Some(credential));
        }
        if let Some((since, error)) = &turn.failed
            && since.elapsed() < turn.pause()
        {
            return Err(OssError::Credentials(error.clone()));
        }
        let renewed = shared.renew(&mut turn).await;
        drop(turn);
        self.keep_fresh();
        // In doubt is not invalid: without anything newer the old one is tried.
        match (renewed, shared.usable()) {
            (Ok(credential), _) | (Err(_), Some(credential)) => Ok(Some(credential)),
            (Err(error), None) => Err(OssError::Credentials(error)),
        }
    }

    /// OSS refused `used` in a request that was signed at `sent`. A better one, where there is one.
    pub async fn refused(&self, used: &Arc<Credential>, sent: Instant) -> Option<Arc<Credential>> {
        let shared = &self.shared;
        if matches!(shared.provider, Provider::Nobody | Provider::Key(None)) {
            return None;
        }
        let mut turn = shared.turn.lock().await;
        let another = |credential: &Arc<Credential>| !Arc::ptr_eq(credential, used);
        if let Some(credential) = shared.held().credential.clone().filter(another) {
            return Some(credential);
        }
        if turn.looked.is_some_and(|looked| looked > sent) {
            return None;
        }
        // From here to the end of the renewal nobody begins a request with the old one.
        shared.held().in_doubt = true;
        let renewed = shared.renew(&mut turn).await;
        match renewed {
            Ok(credential) if another(&credential) => Some(credential),
            Ok(_) => {
                tracing::warn!(
                    event = "oss.credentials-unchanged",
                    "OSS refuses the credential, and there is no newer one"
                );
                None
            }
            Err(_) => None,
        }
    }

    /// Read the key again, where it comes from a file: somebody says that there is another one.
    pub async fn read_again(&self) {
        if matches!(self.shared.provider, Provider::Key(Some(_))) {
            // Logged where it fails; what is held stays in use.
            let _ = self.shared.renew(&mut *self.shared.turn.lock().await).await;
        }
    }

    /// Renew ahead of the end from now on.
    fn keep_fresh(&self) {
        let mut tasks = self.tasks.lock().unwrap_or_else(PoisonError::into_inner);
        if tasks.is_none() && !matches!(self.shared.provider, Provider::Key(_)) {
            tasks.insert(Tasks::new()).supervise("oss-credentials", keep_fresh(self.shared.clone()));
        }
    }
}

/// Renew what is held ahead of its end, for ever.
async fn keep_fresh(shared: Arc<Shared>) {
    loop {
        let due = shared.until_renewal();
        let wait = due.min(LOOK);
        if !wait.is_zero() {
            tokio::time::sleep(wait).await;
            continue;
        }
        let mut turn = shared.turn.lock().await;
        if !shared.until_renewal().is_zero() {
            continue;
        }
        let before = shared.held().credential.clone();
        // Logged where it fails; what is held stays in use.
        let renewed = shared.renew(&mut turn).await;
        let is_new = |new: &Arc<Credential>| before.is_none_or(|before| !Arc::ptr_eq(&before, new));
        let pause = match &renewed {
            Ok(new) if is_new(new) => continue,
            // The service has nothing newer yet.
            Ok(_) => LONGEST_PAUSE,
            Err(_) => turn.pause(),
        };
        drop(turn);
        tokio::time::sleep(pause.min(shared.half_of_the_rest())).await;
    }
}

impl Turn {
    /// How long to leave the service alone.
    fn pause(&self) -> Duration {
        let doublings = self.failures.saturating_sub(1);
        FIRST_PAUSE.saturating_mul(2u32.saturating_pow(doublings)).min(LONGEST_PAUSE)
    }
}

impl Shared {
    fn held(&self) -> MutexGuard<'_, Held> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What is held, where nothing speaks against it.
    fn usable(&self) -> Option<Arc<Credential>> {
        let held = self.held();
        let valid = |credential: &&Arc<Credential>| {
            credential.life.is_none_or(|life| life.is_usable(self.clock.now()))
        };
        held.credential.as_ref().filter(|_| !held.in_doubt).filter(valid).cloned()
    }

    /// Half of the time for which what is held is usable: the longest pause that leaves another chance. No limit without.
    fn half_of_the_rest(&self) -> Duration {
        let life = self.held().credential.as_ref().and_then(|credential| credential.life);
        let rest = life.map(|life| life.usable_for(self.clock.now())).filter(|rest| !rest.is_zero());
        rest.map_or(LONGEST_PAUSE, |rest| (rest / 2).max(SHORTEST_PAUSE))
    }

    fn until_renewal(&self) -> Duration {
        let life = self.held().credential.as_ref().and_then(|credential| credential.life);
        life.map_or(LOOK, |life| life.until_renewal(self.clock.now()))
    }

    /// Get a credential and hold it; the one that is held where it is the same. Whoever calls has the turn.
    async fn renew(&self, turn: &mut Turn) -> Result<Arc<Credential>, Arc<CredentialError>> {
        let got = self.fetch().await;
        turn.looked = Some(Instant::now());
        let mut held = self.held();
        held.in_doubt = false;
        match got {
            Ok(new) => {
                (turn.failures, turn.failed) = (0, None);
                let credential = match &held.credential {
                    Some(old) if old.is_same(&new) => old.clone(),
                    Some(_) | None => Arc::new(new),
                };
                held.credential = Some(credential.clone());
                drop(held);
                let end = credential.life.map(|life| life.end);
                self.access.credential(kind(&self.provider, Some(&credential)), end);
                tracing::info!(
                    event = "oss.credentials",
                    "credentials for OSS: {}",
                    kind(&self.provider, Some(&credential))
                );
                Ok(credential)
            }
            Err(error) => {
                drop(held);
                let error = Arc::new(error);
                turn.failures = turn.failures.saturating_add(1);
                turn.failed = Some((Instant::now(), error.clone()));
                tracing::warn!(event = "oss.credentials", "no new credential: {}", chain(error.as_ref()));
                Err(error)
            }
        }
    }

    async fn fetch(&self) -> Result<Credential, CredentialError> {
        let now = self.clock.now();
        match &self.provider {
            Provider::Role(service) => service.fetch(now).await,
            Provider::Oidc(sts) => sts.fetch(now).await,
            Provider::Key(Some(path)) => reread(path).await,
            // Neither is ever renewed.
            Provider::Key(None) | Provider::Nobody => Err(CredentialError::KeyGone { path: PathBuf::new() }),
        }
    }
}

/// The key that `path` holds now.
async fn reread(path: &Path) -> Result<Credential, CredentialError> {
    let file = path.to_owned();
    let read = tokio::task::spawn_blocking(move || config::reread_access_key(&file)).await;
    let read = read.map_err(|panicked| CredentialError::Memory(Box::new(panicked)))?;
    let (key, notices) = read.map_err(CredentialError::Reread)?;
    for notice in notices {
        tracing::warn!(event = notice.code, hint = notice.hint, "{notice}");
    }
    let gone = || CredentialError::KeyGone { path: path.to_owned() };
    let key: OssCredentials = key.ok_or_else(gone)?;
    Credential::copy_of(&key).map_err(|error| CredentialError::Memory(Box::new(error)))
}

/// What the credential is, for people.
fn kind(provider: &Provider, credential: Option<&Credential>) -> &'static str {
    match (provider, credential.is_some_and(|credential| credential.token.is_some())) {
        (Provider::Nobody, _) => "anonymous",
        (Provider::Key(_), false) => "AccessKey",
        (Provider::Key(_), true) => "STS",
        (Provider::Role(_), _) => "RAM role of this machine",
        (Provider::Oidc(_), _) => "RAM role by OIDC",
    }
}
