//! The stages of a start, one function each: each needs what only the one before can give.

use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use sha2::{Digest, Sha256};
use tokio::runtime::Handle;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::audit;
use super::origin;
use super::patience::Patience;
use super::state::{Event, State};
use super::status::{Failure, Progress};
use super::voice::Voice;
use crate::ciphertext::Ciphertext;
use crate::config::{CacheMode, Settings};
use crate::error::{ErrorClass, Fault, chain};
use crate::gocryptfs::{self, CONF_NAME, Conf, Keys, Passphrase, Tree};
use crate::helper::protocol::Request;
use crate::helper::{Helper, HelperError};
use crate::keyring::Secret;
use crate::manifest;
use crate::oss::{self, Access, OssSource};
use crate::store;
use crate::store::{Filled, Keeping, Retry, Store, StoreOptions};

/// Pause before what the fill could not fetch is tried again: reads do not wait for it, they have their own retries.
const FILL_PAUSE: Duration = Duration::from_secs(30);

/// How often progress is shown at most: smooth for people, cheap for the bus.
const SHOW_EVERY: Duration = Duration::from_millis(250);

/// What a stage found wrong that is nobody else's error.
#[derive(Debug, thiserror::Error)]
pub(super) enum StageError {
    #[error("{model} holds no {CONF_NAME}")]
    NoConf { model: String, inside: Option<String> },
    #[error("the mount at {} cannot be reached by the daemon's user", point.display())]
    Unreachable {
        point: PathBuf,
        #[source]
        source: nix::Error,
    },
    #[error("the helper gave no descriptor")]
    NoDevice,
    #[error("the private memory does not say its size")]
    Memory(#[source] std::io::Error),
    #[error("a blocking stage panicked")]
    Panicked,
}

impl Fault for StageError {
    fn class(&self) -> ErrorClass {
        match self {
            StageError::NoConf { .. } | StageError::Unreachable { .. } => ErrorClass::Config,
            StageError::NoDevice | StageError::Memory(_) | StageError::Panicked => ErrorClass::Internal,
        }
    }

    fn code(&self) -> &'static str {
        match self {
            StageError::NoConf { .. } => "model.no-conf",
            StageError::Unreachable { .. } => "mount.unreachable",
            StageError::NoDevice => "helper.no-device",
            StageError::Memory(_) => "memory.size",
            StageError::Panicked => "agent.panicked",
        }
    }

    fn hint(&self) -> String {
        match self {
            StageError::NoConf { inside: Some(directory), .. } => {
                format!("{directory}/{CONF_NAME} exists: is MODEL_OSS_BUCKET_PATH one directory too high?")
            }
            StageError::NoConf { inside: None, .. } => {
                "point MODEL_OSS_BUCKET_PATH at the directory that holds gocryptfs.conf; upload it with: cai upload".into()
            }
            StageError::Unreachable { .. } => {
                "every directory above MODEL_MOUNT_POINT must let user cai pass (chmod o+x), as its readers need it too; below /home \
                 cai.service also needs ProtectHome=read-only (systemctl edit cai)"
                    .into()
            }
            StageError::NoDevice | StageError::Memory(_) | StageError::Panicked => "this is a defect: please report it with the journal".into(),
        }
    }
}

/// Run what blocks, off the runtime's workers.
pub(super) async fn blocking<T: Send + 'static>(
    stage: State,
    work: impl FnOnce() -> Result<T, Failure> + Send + 'static,
) -> Result<T, Failure> {
    match tokio::task::spawn_blocking(work).await {
        Ok(result) => result,
        Err(_) => Err(Failure::new(stage, &StageError::Panicked)),
    }
}

/// The local store of a listed model.
pub(super) struct Opened {
    pub(super) store: Arc<Store>,
    pub(super) watched: Watched,
    /// Who the model is, where it is signed.
    pub(super) identity: Option<manifest::Identity>,
    /// SHA-256 over the list of objects, as [`revision`] has it: who has the same list means the same by the number of an object.
    pub(super) listing: [u8; 32],
}

/// List the model and open its local store.
pub(super) async fn open_store(
    settings: &Settings,
    voice: &Voice,
    time: Option<SystemTime>,
) -> Result<Opened, Failure> {
    let fail = |fault: &dyn Fault| Failure::new(State::Fetching, fault);
    let client = oss::Client::new(&settings.oss).map_err(|error| fail(&error))?;
    let access = client.access();
    let source = OssSource::new(Arc::new(client), settings.oss.prefix.clone());
    let objects = list(settings, voice, &source).await?;
    if !objects.iter().any(|object| object.path == Path::new(CONF_NAME)) {
        let inside = objects
            .iter()
            .find(|object| object.path.ends_with(CONF_NAME))
            .and_then(|object| object.path.parent());
        let inside = inside.map(|directory| directory.display().to_string());
        return Err(fail(&StageError::NoConf { model: settings.oss.location(), inside }));
    }
    let listed = revision(&objects);
    let (mut objects, manifest) = origin::judge(settings, voice, &source, objects, time)
        .await
        .inspect_err(|failure| audit::model_refused(settings, failure))?;
    objects.sort_by(|a, b| a.path.cmp(&b.path));
    let identity = manifest.as_ref().map(|manifest| manifest.identity());
    let revision = identity.map_or_else(|| hex::encode(listed), |identity| identity.to_string());
    voice.update(|status| status.model_revision = revision);
    let options = StoreOptions {
        dir: settings.cache.dir.clone(),
        chunk_len: StoreOptions::CHUNK_LEN,
        concurrency: settings.oss.concurrency,
        read_timeout: settings.mount.read_timeout,
        reserve_bytes: settings.cache.reserve_bytes,
        cache: kept(settings),
        cache_bytes: Some(settings.cache.size_bytes).filter(|bytes| *bytes > 0),
        retry: Retry::default(),
    };
    let handle = Handle::current();
    let store = blocking(State::Fetching, move || {
        Store::open_checked(options, objects, manifest, Arc::new(source), handle)
            .map_err(|error| Failure::new(State::Fetching, &error))
    })
    .await?;
    match store.keeping() {
        Keeping::Full => {}
        Keeping::Bounded(bytes) => voice.notice(&format!(
            "the disk keeps {bytes} bytes of the encrypted model, not all of it: what was read longest ago is fetched again"
        )),
        Keeping::Nothing => voice.notice("the disk keeps nothing of the encrypted model: every read fetches"),
    }
    let watched = Watched { progress: store.progress(), access };
    watched.show(voice);
    Ok(Opened { store, watched, identity, listing: listed })
}

/// What the store keeps: all of the model where all of it is waited for.
fn kept(settings: &Settings) -> store::CacheMode {
    match settings.cache.mode {
        CacheMode::Auto if settings.waits_for_all() => store::CacheMode::Full,
        CacheMode::Auto => store::CacheMode::Auto,
        CacheMode::Full => store::CacheMode::Full,
        CacheMode::Bounded => store::CacheMode::Bounded,
        CacheMode::None => store::CacheMode::Nothing,
    }
}

/// What changes by itself while a model is fetched.
pub(super) struct Watched {
    progress: watch::Receiver<store::Progress>,
    access: watch::Receiver<Access>,
}

impl Watched {
    /// Put it into the status; gives the store's part.
    fn show(&self, voice: &Voice) -> store::Progress {
        let (progress, access) = (self.progress.borrow().clone(), self.access.borrow().clone());
        if access.clock_offset != 0 {
            voice.notice(
                "this machine's clock disagrees with OSS by minutes or more: set up time synchronisation",
            );
        }
        voice.update(|status| {
            status.progress = Progress::from(&progress);
            status.object_store = access;
        });
        progress
    }

    /// Wait for news.
    async fn changed(&mut self) -> Result<(), StageError> {
        tokio::select! {
            changed = self.progress.changed() => changed.map_err(|_| StageError::Panicked),
            // Without the client there is no store either, and that is told above.
            Ok(()) = self.access.changed() => Ok(()),
        }
    }
}

/// SHA-256 over path, length and entity tag of every object, sorted by path: changes when any object does.
fn revision(objects: &[store::Object]) -> [u8; 32] {
    let mut objects: Vec<&store::Object> = objects.iter().collect();
    objects.sort_by(|a, b| a.path.cmp(&b.path));
    let mut hash = Sha256::new();
    for object in objects {
        // Lengths first, so that no two lists read the same.
        for field in [object.path.as_os_str().as_bytes(), &object.len.to_le_bytes(), object.etag.as_bytes()] {
            hash.update(u64::try_from(field.len()).unwrap_or(u64::MAX).to_le_bytes());
            hash.update(field);
        }
    }
    hash.finalize().into()
}

/// Fetch the whole model in the background. What fails is tried again later; the store reports it meanwhile.
pub(super) async fn fill(store: Arc<Store>, token: CancellationToken) {
    loop {
        match store.fill(token.clone()).await {
            Ok(filled) => {
                if filled == Filled::Complete {
                    tracing::info!(event = "fill.complete", "every byte of the model is local");
                }
                // Supervised tasks do not end by themselves: this one has nothing left to do.
                return std::future::pending().await;
            }
            Err(error) => {
                tracing::warn!(event = "fill.incomplete", error = ?error, "the background fill: {}", chain(&error))
            }
        }
        tokio::time::sleep(FILL_PAUSE).await;
    }
}

/// The list of objects, retrying what may pass.
async fn list(settings: &Settings, voice: &Voice, source: &OssSource) -> Result<Vec<store::Object>, Failure> {
    let mut patience = Patience::new("the object store", settings.trustee.retry_limit);
    loop {
        match source.list().await {
            Ok(objects) => return Ok(objects),
            Err(error) => patience.after(voice, Failure::new(State::Fetching, &error)).await?,
        }
    }
}

/// A model that can be read: its tree and the keys that open it.
pub(super) struct OpenModel {
    pub(super) store: Arc<Store>,
    pub(super) keys: Arc<Keys>,
    pub(super) tree: Arc<Tree>,
}

/// Fetch the metadata, derive the keys, decrypt the tree.
pub(super) async fn open_model(
    voice: &Voice,
    store: &Arc<Store>,
    secret: Secret,
) -> Result<OpenModel, Failure> {
    let metadata = gocryptfs::metadata_entries(store.entries());
    voice.stage(format!("fetching {} metadata objects", metadata.len()));
    store.fetch_entries(&metadata).await.map_err(|error| Failure::new(State::Fetching, &error))?;
    voice.stage("deriving the keys and decrypting the names");
    let store = store.clone();
    let model = blocking(State::Fetching, move || unlock(store, secret)).await?;
    // Only the plaintext names tell it, and the store must not see those.
    model.store.set_load_order(&gocryptfs::load_order(&model.tree));
    for skipped in model.tree.skipped() {
        tracing::warn!(event = "model.skipped", object = %skipped.path.display(), "{}: {}", skipped.path.display(), skipped.reason);
    }
    Ok(model)
}

fn unlock(store: Arc<Store>, secret: Secret) -> Result<OpenModel, Failure> {
    let fail = |fault: &dyn Fault| Failure::new(State::Fetching, fault);
    let conf = Conf::read_from(store.as_ref()).map_err(|error| fail(&error))?;
    let passphrase = Passphrase::from_secret(&secret).map_err(|error| fail(&error))?;
    for warning in passphrase.warnings() {
        tracing::warn!(event = "key.passphrase", "{warning}");
    }
    let keys = gocryptfs::unlock(&conf, &passphrase).map_err(|error| fail(&error))?;
    let tree = Tree::build(store.as_ref(), &keys).map_err(|error| fail(&error))?;
    Ok(OpenModel { store, keys: Arc::new(keys), tree: Arc::new(tree) })
}

/// `MODEL_WAIT=full`: wait until every byte is here.
pub(super) async fn wait_until_complete(voice: &Voice, watched: &mut Watched) -> Result<(), Failure> {
    voice.stage("fetching the whole model (MODEL_WAIT=full)");
    loop {
        let now = watched.show(voice);
        // What may pass is tried again by the store and by the fill; what is final ends the wait.
        if let Some(problem) = now.problems.iter().find(|problem| problem.class != ErrorClass::Transient) {
            return Err(Failure::new(State::Fetching, &Incomplete::from(problem)));
        }
        if now.bytes_done >= now.bytes_total {
            return Ok(());
        }
        watched.changed().await.map_err(|error| Failure::new(State::Fetching, &error))?;
    }
}

/// Part of the model cannot be had.
#[derive(Debug, thiserror::Error)]
#[error("{detail}")]
struct Incomplete {
    detail: String,
    code: &'static str,
    class: ErrorClass,
}

impl From<&store::Problem> for Incomplete {
    fn from(problem: &store::Problem) -> Self {
        Incomplete { detail: problem.detail.clone(), code: problem.code, class: problem.class }
    }
}

impl Fault for Incomplete {
    fn class(&self) -> ErrorClass {
        self.class
    }

    fn code(&self) -> &'static str {
        self.code
    }

    fn hint(&self) -> String {
        match self.class {
            ErrorClass::Corrupt => "once the upload of the model is complete: systemctl restart cai".into(),
            ErrorClass::Denied => {
                "the grant needs oss:GetObject on the model's objects; it is tried again by itself".into()
            }
            ErrorClass::Transient => {
                "it is tried again by itself; see the journal for the object store's answers".into()
            }
            ErrorClass::Config => "see the detail; after the change: systemctl restart cai".into(),
            ErrorClass::Internal => "this is a defect: please report it with the journal".into(),
        }
    }
}

/// Ask the helper, which blocks.
pub(super) async fn ask(
    helper: &Arc<Helper>,
    request: Request,
) -> Result<(String, Option<OwnedFd>), HelperError> {
    let helper = helper.clone();
    match tokio::task::spawn_blocking(move || helper.ask(request)).await {
        Ok(answer) => answer,
        Err(error) => Err(HelperError::Line { verb: request, source: std::io::Error::other(error) }),
    }
}

/// Follow the store while serving: progress into the status, problems into `Degraded` and back.
pub(super) async fn watch_progress(voice: &Voice, watched: &mut Watched) -> Failure {
    loop {
        let now = watched.show(voice);
        if let Err(failure) = follow_problems(voice, &now) {
            return failure;
        }
        tokio::time::sleep(SHOW_EVERY).await;
        if let Err(error) = watched.changed().await {
            return Failure::new(voice.state(), &error);
        }
    }
}

fn follow_problems(voice: &Voice, progress: &store::Progress) -> Result<(), Failure> {
    let state = voice.state();
    let failure = progress.problems.first().map(|problem| Failure::new(state, &Incomplete::from(problem)));
    match (state, failure) {
        (State::Serving, Some(failure)) => {
            voice.warn(&failure);
            voice.apply(Event::SourceLost, failure.to_string())
        }
        (State::Degraded, Some(failure)) => {
            voice.warn_if_new(&failure);
            Ok(())
        }
        (State::Degraded, None) => voice.apply(Event::SourceBack, "all sources are back"),
        _ => Ok(()),
    }
}
