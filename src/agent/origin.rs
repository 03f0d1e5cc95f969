//! Where the model comes from: fetch its manifest before anything else, judge it, and keep what it names.
//!
//! The manifest comes from the object store alone, never from a peer. Objects it does not name are no part of the model: they
//! are left out of what is listed, fetched and shown.

use std::path::Path;
use std::sync::Arc;
use std::time::SystemTime;

use super::patience::Patience;
use super::state::State;
use super::status::Failure;
use super::voice::Voice;
use crate::config::Settings;
use crate::error::{ErrorClass, Fault};
use crate::manifest::{self, Manifest, ManifestError, Origin, Policy, PolicyError, StateDir};
use crate::oss::OssSource;
use crate::store::{AT_ONCE, ChunkSource, Object, SourceError, StoreOptions};

/// The store's chunk is the manifest's: a chunk that arrived can be checked by itself.
const _: () = assert!(StoreOptions::CHUNK_LEN == manifest::CHUNK_LEN);

/// A small object that is fetched by itself.
#[derive(Debug, Clone, Copy)]
pub(super) enum Small {
    /// `cai.manifest`.
    Manifest,
    /// `gocryptfs.conf`.
    Conf,
}

impl Small {
    fn name(self) -> &'static str {
        match self {
            Small::Manifest => "the manifest",
            Small::Conf => "gocryptfs.conf",
        }
    }
}

/// It is listed and cannot be fetched.
#[derive(Debug, thiserror::Error)]
#[error("fetching {}", what.name())]
struct FetchError {
    what: Small,
    #[source]
    source: SourceError,
}

impl Fault for FetchError {
    fn class(&self) -> ErrorClass {
        self.source.class()
    }

    fn code(&self) -> &'static str {
        match self.what {
            Small::Manifest => "model.manifest-fetch",
            Small::Conf => "model.conf-fetch",
        }
    }

    fn hint(&self) -> String {
        "the access key must be allowed to read it; while an upload is under way, wait for its end".into()
    }
}

/// A model that may be served.
pub(super) struct Judged {
    /// The objects that belong to it.
    pub(super) objects: Vec<Object>,
    pub(super) manifest: Option<Arc<Manifest>>,
    pub(super) origin: Origin,
}

/// Judge the model that `objects` list, at a `time` that nobody here can have set.
pub(super) async fn judge(
    settings: &Settings,
    voice: &Voice,
    source: &OssSource,
    objects: Vec<Object>,
    time: Option<SystemTime>,
) -> Result<Judged, Failure> {
    let fail = |fault: &dyn Fault| Failure::new(State::Fetching, fault);
    let manifest = match objects.iter().find(|object| object.path == Path::new(manifest::NAME)) {
        Some(object) => Some(fetch(settings, voice, source, object).await?),
        None => None,
    };
    let state = StateDir::new(&settings.state_dir);
    let key_id = &settings.trustee.key_id;
    let policy = Policy {
        pin: settings.model.pin,
        seen: state.load(key_id).map_err(|error| fail(&error))?,
        // The token's end: minutes after it was issued, so that a licence ends a little early and begins a little early.
        // The host's clock has no say, and neither has whoever answers in the place of a broker without https.
        now: time,
        attestation_policy: &settings.trustee.policy,
    };
    let origin = policy.judge(manifest.as_ref()).map_err(|error| fail(&error))?;
    let Some(manifest) = manifest else { return Ok(Judged { objects, manifest: None, origin }) };
    let listed = objects.iter().map(|object| (object.path.as_path(), object.len));
    manifest.check_list(listed).map_err(|error| fail(&error))?;
    Ok(Judged { objects: named(&manifest, objects), manifest: Some(Arc::new(manifest)), origin })
}

/// The model that was judged is served from now on: remember what must not go back behind it, and say where it comes from.
///
/// # Errors
/// The state directory's: nothing was said then.
pub(super) fn accept(settings: &Settings, voice: &Voice, origin: &Origin) -> Result<(), Failure> {
    let fail = |fault: &dyn Fault| Failure::new(State::Fetching, fault);
    if let Some(seen) = &origin.seen {
        let (state, key_id) = (StateDir::new(&settings.state_dir), &settings.trustee.key_id);
        if state.load(key_id).map_err(|error| fail(&error))?.as_ref() != Some(seen) {
            state.store(key_id, seen).map_err(|error| fail(&error))?;
        }
        tracing::info!(
            event = "model.signed", identity = %seen.identity, revision = seen.revision, publisher = %seen.publisher,
            "model {} is revision {}, signed by {}", seen.identity, seen.revision, seen.publisher
        );
    }
    voice.origin(origin.notice.clone());
    Ok(())
}

/// Whether the licence of a model that is served still allows it, at such a time.
pub(super) fn still_licensed(
    settings: &Settings,
    manifest: Option<&Manifest>,
    time: Option<SystemTime>,
) -> Result<(), PolicyError> {
    match manifest.and_then(|manifest| manifest.contents().licence.as_ref()) {
        Some(licence) => licence.allows(time, &settings.trustee.policy),
        None => Ok(()),
    }
}

/// The objects that the manifest names.
fn named(manifest: &Manifest, objects: Vec<Object>) -> Vec<Object> {
    let (named, others): (Vec<_>, Vec<_>) =
        objects.into_iter().partition(|object| manifest.object(&object.path).is_some());
    let mut others = others.iter().filter(|object| object.path != Path::new(manifest::NAME));
    if let Some(first) = others.next() {
        let count = others.count().saturating_add(1);
        // Escaped: whoever can write to the bucket chooses the name, and a log is read on terminals.
        tracing::warn!(
            event = "model.unnamed", count, first = ?first.path,
            "{count} objects are not in the manifest and left out, {:?} among them", first.path
        );
    }
    named
}

/// Fetch and verify the manifest.
async fn fetch(
    settings: &Settings,
    voice: &Voice,
    source: &OssSource,
    object: &Object,
) -> Result<Manifest, Failure> {
    let fail = |fault: &dyn Fault| Failure::new(State::Fetching, fault);
    if object.len > Manifest::largest() {
        return Err(fail(&ManifestError::TooLarge));
    }
    let bytes = fetch_whole(settings, voice, source, object, Small::Manifest).await?;
    Manifest::parse(&bytes).map_err(|error| fail(&error))
}

/// Fetch a small object, retrying what may pass.
pub(super) async fn fetch_whole(
    settings: &Settings,
    voice: &Voice,
    source: &OssSource,
    object: &Object,
    what: Small,
) -> Result<Vec<u8>, Failure> {
    let fail = |fault: &dyn Fault| Failure::new(State::Fetching, fault);
    voice.stage(format!("fetching {}", what.name()));
    let mut patience = Patience::new("the object store", settings.trustee.retry_limit);
    loop {
        let fetched = match source.fetch(object, 0..object.len, &AT_ONCE).await {
            Ok(fetched) => fetched.all().await,
            Err(error) => Err(error),
        };
        match fetched {
            Ok(bytes) => return Ok(bytes),
            Err(source) => patience.after(voice, fail(&FetchError { what, source })).await?,
        }
    }
}
