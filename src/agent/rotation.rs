//! Rotation: from the key and the model that are served to those that the broker and the bucket have now, under the readers.
//!
//! Three ends. Nothing has changed; or the same key is wrapped (or signed for) anew around the same data, and only what is
//! known of it changes; or there is another revision of the model, which is fetched beside the old one and takes its
//! place for new opens once it is here. Certificates are made anew in each. Whatever fails leaves everything as it was; what
//! of a new revision has come in stays on the disk for the next attempt.

use std::sync::Arc;

use subtle::ConstantTimeEq;
use tokio::sync::watch;

use super::audit::{self, Purpose};
use super::evidence;
use super::following::{Stores, Watched, wait_until_complete};
use super::lease::Lease;
use super::model::{self, Listed, Opened, Opener, Revision};
use super::mounting::{self, Mount};
use super::origin::{self, Small};
use super::release::{Broker, Verdict};
use super::sharing::Group;
use super::stages::blocking;
use super::state::State;
use super::status::{Failure, Outcome, Phase, Progress, Rotation};
use super::voice::Voice;
use crate::config::Settings;
use crate::error::{ErrorClass, Fault};
use crate::gocryptfs::{Conf, FormatError, Keys};
use crate::keyring::Secret;
use crate::mount::Mounted;
use crate::oss::{self, OssSource};
use crate::ratls::identity::Identity;
use crate::store::{self, Keeping, Store};

/// What stands in the way of a rotation that is nobody else's error.
#[derive(Debug, thiserror::Error)]
enum RotationError {
    #[error(
        "the data of the model is the one that is served, and its conf holds another master key, which cannot open it"
    )]
    KeyOfOther,
    #[error("the conf is not the one that the manifest names")]
    ConfForged,
    #[error("the disk cannot keep another revision beside the one that is served")]
    NoRoom,
    #[error("that revision was replaced, and {open} files or directories of it are still open")]
    StillRead { open: u64 },
    #[error(
        "there is another revision of the model, and mount.mode = \"ram\" holds a sealed copy of this one"
    )]
    Sealed,
    #[error("there is another revision of the model, or another key, and its adapter serves this one")]
    Adapted,
}

impl Fault for RotationError {
    fn class(&self) -> ErrorClass {
        match self {
            RotationError::KeyOfOther | RotationError::ConfForged => ErrorClass::Corrupt,
            RotationError::NoRoom | RotationError::Sealed | RotationError::Adapted => ErrorClass::Config,
            RotationError::StillRead { .. } => ErrorClass::Transient,
        }
    }

    fn code(&self) -> &'static str {
        match self {
            RotationError::KeyOfOther => "rotation.other-key",
            RotationError::ConfForged => "rotation.conf-forged",
            RotationError::NoRoom => "rotation.no-room",
            RotationError::StillRead { .. } => "rotation.still-read",
            RotationError::Sealed => "rotation.sealed",
            RotationError::Adapted => "rotation.adapter",
        }
    }

    fn hint(&self) -> String {
        match self {
            RotationError::KeyOfOther => {
                "upload the files that were encrypted with this key, gocryptfs.conf last; or put the conf back that belongs to these"
                    .into()
            }
            RotationError::ConfForged => {
                "upload gocryptfs.conf and the manifest of the same directory again: cai upload".into()
            }
            RotationError::NoRoom => {
                "make room for all of it below cache.dir, or serve it by a restart: systemctl restart cai; its readers stop with it"
                    .into()
            }
            RotationError::StillRead { .. } => {
                "restart who reads it (lsof on the mount point), and rotate again once LeftOpen is 0".into()
            }
            RotationError::Sealed | RotationError::Adapted => {
                "systemctl restart cai serves the new one; its readers stop with it".into()
            }
        }
    }
}

/// What a rotation works on.
pub(super) struct Rotor<'a> {
    pub(super) settings: &'a Settings,
    pub(super) voice: &'a Voice,
    pub(super) broker: &'a Broker,
    pub(super) lease: &'a Lease,
    pub(super) client: Arc<oss::Client>,
    pub(super) source: Arc<OssSource>,
    pub(super) identity: Option<Arc<Identity>>,
    pub(super) group: &'a Group,
    pub(super) mounted: &'a Mount,
    pub(super) stores: &'a Stores,
    pub(super) served: &'a watch::Sender<Arc<Revision>>,
}

/// A revision that was replaced, with its number in the mount.
pub(super) type Replaced = (Arc<Revision>, u32);

impl Rotor<'_> {
    /// Show that a rotation begins.
    pub(super) fn begin(&self, number: u32) {
        let (phase, revision) = (Phase::Attesting, String::new());
        self.voice.rotation(Rotation { number, phase, revision, progress: Progress::default(), error: None });
    }

    /// Rotate once, after [`Rotor::begin`]; what was replaced, for [`Rotor::leave`]. How it went is in the status.
    pub(super) async fn rotate(&self, number: u32) -> Option<Replaced> {
        let ended = self.run().await;
        let outcome = match &ended {
            Ok((outcome, _)) => {
                let (facts, listed) = (self.lease.facts(), &self.served.borrow().listed);
                let generation = self.voice.key_generation();
                audit::rotated(self.settings, number, *outcome, generation, &facts, listed);
                *outcome
            }
            Err(failure) => {
                audit::rotation_failed(self.settings, number, failure);
                self.voice.warn(failure);
                Outcome::Failed
            }
        };
        self.voice.stage_over();
        self.voice.rotated(outcome, ended.as_ref().err().map(|failure| failure.shown().clone()));
        ended.ok().and_then(|(_, replaced)| replaced)
    }

    async fn run(&self) -> Result<(Outcome, Option<Replaced>), Failure> {
        let old = self.served.borrow().clone();
        self.voice.stage("rotating: attesting");
        let (secret, verdict) = self.broker.again(self.settings, self.voice, Purpose::Rotation).await?;
        self.lease.renewed(self.voice, verdict.clone())?;
        self.voice.rotation_phase(Phase::Comparing, "");
        let listed = model::list(self.settings, self.voice, &self.source, verdict.time).await?;
        self.voice.rotation_phase(Phase::Comparing, &listed.name);
        let is_same_data = listed.data == old.listed.data;
        let old_keys = match &old.opened {
            Opened::Tree { keys, .. } => keys,
            Opened::Adapter { key } => {
                let is_same_key = key.with(|old| secret.with(|new| bool::from(old.ct_eq(new))));
                if !(is_same_data && is_same_key) {
                    return Err(self.fail(&RotationError::Adapted));
                }
                return self.same_data(&old, listed, verdict).await;
            }
        };
        let keys = self.unlock_conf(&listed, secret).await?;
        match (is_same_data, keys.are_those_of(old_keys)) {
            (true, false) => Err(self.fail(&RotationError::KeyOfOther)),
            (true, true) => self.same_data(&old, listed, verdict).await,
            (false, _) => {
                let number = self.replace(&old, listed, keys, verdict).await?;
                Ok((Outcome::Replaced, Some((old, number))))
            }
        }
    }

    /// The same data under the same key: at most what is known of it has changed.
    async fn same_data(
        &self,
        old: &Arc<Revision>,
        listed: Listed,
        verdict: Verdict,
    ) -> Result<(Outcome, Option<Replaced>), Failure> {
        let outcome = if listed.name == old.listed.name { Outcome::Unchanged } else { Outcome::Rewrapped };
        self.take_over(Revision { listed, ..Revision::clone(old) }, verdict, || ()).await?;
        Ok((outcome, None))
    }

    /// The keys in the conf that is listed now: the secret must open it, whatever comes next.
    async fn unlock_conf(&self, listed: &Listed, secret: Secret) -> Result<Keys, Failure> {
        let Some(object) = listed.conf().cloned() else {
            return Err(self.fail(&RotationError::ConfForged));
        };
        if object.len > Conf::largest() {
            return Err(self.fail(&FormatError::TooLarge { len: object.len }));
        }
        let json = origin::fetch_whole(self.settings, self.voice, &self.source, &object, Small::Conf).await?;
        if let Some(manifest) = &listed.manifest {
            let signed = manifest.object(&object.path);
            if !signed.is_some_and(|signed| signed.is_chunk(0, std::iter::once(json.as_slice()))) {
                return Err(self.fail(&RotationError::ConfForged));
            }
        }
        blocking(State::Fetching, move || {
            let conf = Conf::parse(&json).map_err(|error| Failure::new(State::Fetching, &error))?;
            model::unlock(&conf, &secret)
        })
        .await
    }

    /// Fetch `listed` beside `old`, and show it in its place; gives the old one's number in the mount.
    async fn replace(
        &self,
        old: &Arc<Revision>,
        listed: Listed,
        keys: Keys,
        verdict: Verdict,
    ) -> Result<u32, Failure> {
        let Mount::Fuse(mounted) = self.mounted else { return Err(self.fail(&RotationError::Sealed)) };
        self.voice.rotation_phase(Phase::Fetching, &listed.name);
        let directory = store::revisions::directory(&self.settings.cache.dir, &listed.data);
        if self.stores.borrow().iter().any(|store| store.directory() == directory) {
            return Err(self.fail(&RotationError::StillRead { open: mounted.left_open() }));
        }
        let beside = Some(old.store.clone());
        let store = model::open_store(self.settings, &listed, self.source.clone(), beside).await?;
        let arrived = match self.fits(&old.store, &store) {
            Ok(()) => match model::open(self.voice, listed, &store, Opener::Keys(keys)).await {
                Ok(revision) => self.arrive(old, revision, verdict, mounted).await,
                Err(failure) => Err(failure),
            },
            Err(failure) => Err(failure),
        };
        if arrived.is_err() {
            // The old one is served on, and its missing bytes are fetched on.
            self.stores.send_modify(|stores| stores.retain(|other| !Arc::ptr_eq(other, &store)));
            close(&store).await;
        }
        arrived
    }

    /// A revision that the disk does not keep, in place of one that it keeps, would be a loss until the next start.
    fn fits(&self, old: &Store, new: &Store) -> Result<(), Failure> {
        match (old.keeping(), new.keeping()) {
            (Keeping::Full, Keeping::Bounded(_) | Keeping::Nothing) => Err(self.fail(&RotationError::NoRoom)),
            _ => Ok(()),
        }
    }

    /// Bring a revision that opens here, with the peers who go there too, and show it.
    async fn arrive(
        &self,
        old: &Revision,
        revision: Revision,
        verdict: Verdict,
        mounted: &Mounted,
    ) -> Result<u32, Failure> {
        let store = revision.store.clone();
        let fresh = || self.identity.as_ref().map(|identity| identity.fresh());
        let fetched = async {
            self.group.join(self.settings, self.voice, &revision, fresh()).await?;
            self.stores.send_modify(|stores| stores.push(store.clone()));
            if store.keeping() == Keeping::Full {
                self.voice.stage("rotating: fetching the new revision");
                let mut watched = Watched::new(&store, self.client.access());
                let show = |watched: &Watched| {
                    self.voice.rotation_progress(Progress::from(&watched.progress()));
                };
                wait_until_complete(&mut watched, show).await?;
            }
            let fs = mounting::model_fs(self.settings, &revision)?;
            self.take_over(revision, verdict, || mounted.switch(fs)).await
        };
        match fetched.await {
            Ok(number) => {
                model::say_what_is_kept(self.voice, &store);
                Ok(number)
            }
            Err(failure) => {
                // Back to those who share the old one.
                if let Err(failure) = self.group.join(self.settings, self.voice, old, fresh()).await {
                    self.voice.warn(&failure);
                }
                Err(failure)
            }
        }
    }

    /// Serve `revision` from now on: `switch` shows it, and certificates say so.
    async fn take_over<T>(
        &self,
        revision: Revision,
        verdict: Verdict,
        switch: impl FnOnce() -> T,
    ) -> Result<T, Failure> {
        let members = evidence::members(revision.listed.identity(), verdict.policy);
        let prepared = match &self.identity {
            Some(identity) => {
                let prepared = identity.prepare(members).await;
                Some((identity, prepared.map_err(|error| self.fail(&error))?))
            }
            None => None,
        };
        // What was seen never goes back: no sooner than it is served, and the last that can fail.
        origin::accept(self.settings, self.voice, &revision.listed.origin)?;
        let switched = switch();
        self.broker.note_release(self.voice);
        self.voice.update(|status| status.model_revision.clone_from(&revision.listed.name));
        self.served.send_replace(Arc::new(revision));
        if let Some((identity, prepared)) = prepared {
            identity.show(prepared);
        }
        Ok(switched)
    }

    /// Wait until nobody reads what was replaced any more, and free what it takes.
    pub(super) async fn leave(&self, replaced: Replaced) {
        let (revision, number) = replaced;
        if let Mount::Fuse(mounted) = self.mounted {
            mounted.leave(number).await;
        }
        self.stores.send_modify(|stores| stores.retain(|store| !Arc::ptr_eq(store, &revision.store)));
        close(&revision.store).await;
        let name = revision.listed.name.clone();
        let removed = blocking(self.voice.state(), move || {
            // Under the lock of the store, which goes with its last owner; the keys do, too.
            store::revisions::remove(revision.store.directory())
                .map_err(|error| Failure::new(State::Serving, &error))
        });
        match removed.await {
            Ok(()) => tracing::info!(
                event = "rotation.freed",
                revision = name,
                "nobody reads {name} any more; it is freed"
            ),
            Err(failure) => self.voice.warn(&failure),
        }
    }

    /// Show how much of what was replaced is still open.
    pub(super) fn show_left_open(&self) {
        let Mount::Fuse(mounted) = self.mounted else { return };
        self.voice.left_open(mounted.left_open());
    }

    fn fail(&self, fault: &dyn Fault) -> Failure {
        Failure::new(self.voice.state(), fault)
    }
}

/// Close a store that nobody reads any more.
async fn close(store: &Store) {
    if let Err(error) = store.close().await {
        tracing::warn!(event = "store.close", error = ?error, "closing a revision's store");
    }
}
