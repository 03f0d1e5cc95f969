//! The model: listed, judged, opened. Each step needs what only the one before can give.

use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::sync::Arc;
use std::time::SystemTime;

use sha2::{Digest, Sha256};
use tokio::runtime::Handle;

use super::audit;
use super::origin;
use super::patience::Patience;
use super::stages::{StageError, blocking};
use super::state::State;
use super::status::Failure;
use super::voice::Voice;
use crate::ciphertext::Ciphertext;
use crate::config::{CacheMode, Encryption, Settings};
use crate::error::Fault;
use crate::gocryptfs::{self, CONF_NAME, Conf, Keys, Passphrase, Tree};
use crate::keyring::Secret;
use crate::manifest::{self, Manifest};
use crate::oss::OssSource;
use crate::store::{self, Keeping, Retry, Store, StoreOptions};

/// The model as the object store lists it, judged.
#[derive(Clone)]
pub(super) struct Listed {
    /// What is shown of it: who it is where it is signed, else SHA-256 over the list of objects.
    pub(super) name: String,
    /// SHA-256 over all that peers exchange, and that the cache keeps from one revision to the next: the names of all objects, and
    /// what says which bytes those with data have. Who has the same means the same by the number of an object.
    pub(super) data: [u8; 32],
    /// What signs for it.
    pub(super) manifest: Option<Arc<Manifest>>,
    /// The objects of it, sorted by path.
    pub(super) objects: Vec<store::Object>,
    /// Where it comes from, to be accepted before it is served.
    pub(super) origin: manifest::Origin,
}

impl Listed {
    /// Who the model is, where it is signed.
    pub(super) fn identity(&self) -> Option<manifest::Identity> {
        self.manifest.as_ref().map(|manifest| manifest.identity())
    }

    /// The object that holds the conf.
    pub(super) fn conf(&self) -> Option<&store::Object> {
        self.objects.iter().find(|object| object.path == Path::new(CONF_NAME))
    }
}

/// List the model and judge where it comes from, at a `time` that nobody here can have set.
pub(super) async fn list(
    settings: &Settings,
    voice: &Voice,
    source: &OssSource,
    time: Option<SystemTime>,
) -> Result<Listed, Failure> {
    let objects = list_objects(settings, voice, source).await?;
    let is_ours = settings.model.encryption == Encryption::Gocryptfs;
    if !is_ours && objects.is_empty() {
        let model = settings.oss.location();
        return Err(Failure::new(State::Fetching, &StageError::Empty { model }));
    }
    if is_ours && !objects.iter().any(|object| object.path == Path::new(CONF_NAME)) {
        let inside = objects
            .iter()
            .find(|object| object.path.ends_with(CONF_NAME))
            .and_then(|object| object.path.parent());
        let inside = inside.map(|directory| directory.display().to_string());
        let model = settings.oss.location();
        return Err(Failure::new(State::Fetching, &StageError::NoConf { model, inside }));
    }
    let all = hash(objects.iter().collect(), |object| (object.len, object.etag.as_bytes().to_vec()));
    let judged = origin::judge(settings, voice, source, objects, time).await;
    let judged = judged.inspect_err(|failure| audit::model_refused(settings, failure))?;
    let origin::Judged { mut objects, manifest, origin } = judged;
    objects.sort_by(|a, b| a.path.cmp(&b.path));
    let data = hash(objects.iter().collect(), |object| {
        // What wraps the key and what signs may change around the same data.
        if [CONF_NAME, manifest::NAME].iter().any(|name| object.path == Path::new(name)) {
            return (0, Vec::new());
        }
        let signed = manifest.as_ref().and_then(|manifest| manifest.object(&object.path));
        let content = signed.map_or_else(Vec::new, |signed| signed.root().to_vec());
        (object.len, [object.etag.as_bytes(), &content].concat())
    });
    let identity = manifest.as_ref().map(|manifest| manifest.identity());
    let name = identity.map_or_else(|| hex::encode(all), |identity| identity.to_string());
    Ok(Listed { name, data, manifest, objects, origin })
}

/// SHA-256 over path, length and what else tells of every object, sorted by path: changes when any of it does.
fn hash(mut objects: Vec<&store::Object>, tell: impl Fn(&store::Object) -> (u64, Vec<u8>)) -> [u8; 32] {
    objects.sort_by(|a, b| a.path.cmp(&b.path));
    let mut hash = Sha256::new();
    for object in objects {
        let (len, content) = tell(object);
        // Lengths first, so that no two lists read the same.
        for field in [object.path.as_os_str().as_bytes(), &len.to_le_bytes(), &content] {
            hash.update(u64::try_from(field.len()).unwrap_or(u64::MAX).to_le_bytes());
            hash.update(field);
        }
    }
    hash.finalize().into()
}

/// The list of objects, retrying what may pass.
async fn list_objects(
    settings: &Settings,
    voice: &Voice,
    source: &OssSource,
) -> Result<Vec<store::Object>, Failure> {
    let mut patience = Patience::new("the object store", settings.trustee.retry_limit);
    loop {
        match source.list().await {
            Ok(objects) => return Ok(objects),
            Err(error) => patience.after(voice, Failure::new(State::Fetching, &error)).await?,
        }
    }
}

/// Open the local store of a listed model: in place of what an earlier run left, or beside an `old` one that lives on.
pub(super) async fn open_store(
    settings: &Settings,
    listed: &Listed,
    source: Arc<OssSource>,
    old: Option<Arc<Store>>,
) -> Result<Arc<Store>, Failure> {
    let (cache, data) = (settings.cache.dir.clone(), listed.data);
    let options = StoreOptions {
        dir: cache.clone(),
        chunk_len: StoreOptions::CHUNK_LEN,
        concurrency: settings.oss.concurrency,
        read_timeout: settings.mount.read_timeout,
        reserve_bytes: settings.cache.reserve_bytes,
        cache: kept(settings),
        cache_bytes: Some(settings.cache.size_bytes).filter(|bytes| *bytes > 0),
        retry: Retry::default(),
    };
    let (objects, manifest, handle) = (listed.objects.clone(), listed.manifest.clone(), Handle::current());
    blocking(State::Fetching, move || {
        let open = || match &old {
            None => {
                let dir = store::revisions::take_over(&cache, &data)?;
                Store::open_checked(StoreOptions { dir, ..options }, objects, manifest, source, handle)
            }
            Some(old) => {
                let dir = store::revisions::beside(&cache, &data, old.directory())?;
                Store::open_beside(old, StoreOptions { dir, ..options }, objects, manifest, source, handle)
            }
        };
        open().map_err(|error| Failure::new(State::Fetching, &error))
    })
    .await
}

/// Say what of the model the disk does not keep.
pub(super) fn say_what_is_kept(voice: &Voice, store: &Store) {
    match store.keeping() {
        Keeping::Full => {}
        Keeping::Bounded(bytes) => voice.notice(&format!(
            "the disk keeps {bytes} bytes of the encrypted model, not all of it: what was read longest ago is fetched again"
        )),
        Keeping::Nothing => voice.notice("the disk keeps nothing of the encrypted model: every read fetches"),
    }
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

/// What a revision is read with.
#[derive(Clone)]
pub(super) enum Opened {
    /// The keys, and the tree that they opened.
    Tree { keys: Arc<Keys>, tree: Arc<Tree> },
    /// What the adapter is given.
    Adapter { key: Arc<Secret> },
}

/// A revision of the model that can be read.
#[derive(Clone)]
pub(super) struct Revision {
    pub(super) listed: Listed,
    pub(super) store: Arc<Store>,
    pub(super) opened: Opened,
}

impl Revision {
    /// One that an adapter opens, with this key.
    pub(super) fn adapted(listed: Listed, store: Arc<Store>, key: Secret) -> Self {
        Revision { listed, store, opened: Opened::Adapter { key: Arc::new(key) } }
    }
}

/// What a model is opened with.
pub(super) enum Opener {
    /// The secret, which opens its conf.
    Secret(Secret),
    /// The keys, once that was done.
    Keys(Keys),
}

/// Fetch the metadata, derive the keys, decrypt the tree.
pub(super) async fn open(
    voice: &Voice,
    listed: Listed,
    store: &Arc<Store>,
    opener: Opener,
) -> Result<Revision, Failure> {
    let metadata = gocryptfs::metadata_entries(store.entries());
    voice.stage(format!("fetching {} metadata objects", metadata.len()));
    store.fetch_entries(&metadata).await.map_err(|error| Failure::new(State::Fetching, &error))?;
    voice.stage("deriving the keys and decrypting the names");
    let store = store.clone();
    let (revision, tree) = blocking(State::Fetching, move || {
        let fail = |fault: &dyn Fault| Failure::new(State::Fetching, fault);
        let keys = match opener {
            Opener::Keys(keys) => keys,
            Opener::Secret(secret) => {
                let conf = Conf::read_from(store.as_ref()).map_err(|error| fail(&error))?;
                unlock(&conf, &secret)?
            }
        };
        let tree = Tree::build(store.as_ref(), &keys).map_err(|error| fail(&error))?;
        let (keys, tree) = (Arc::new(keys), Arc::new(tree));
        Ok((Revision { listed, store, opened: Opened::Tree { keys, tree: tree.clone() } }, tree))
    })
    .await?;
    // Only the plaintext names tell it, and the store must not see those.
    revision.store.set_load_order(&gocryptfs::load_order(&tree));
    for skipped in tree.skipped() {
        tracing::warn!(event = "model.skipped", object = %skipped.path.display(), "{}: {}", skipped.path.display(), skipped.reason);
    }
    Ok(revision)
}

/// The keys that the secret opens in `conf`. Blocks: scrypt.
pub(super) fn unlock(conf: &Conf, secret: &Secret) -> Result<Keys, Failure> {
    let fail = |fault: &dyn Fault| Failure::new(State::Fetching, fault);
    let passphrase = Passphrase::from_secret(secret).map_err(|error| fail(&error))?;
    for warning in passphrase.warnings() {
        tracing::warn!(event = "key.passphrase", "{warning}");
    }
    gocryptfs::unlock(conf, &passphrase).map_err(|error| fail(&error))
}
