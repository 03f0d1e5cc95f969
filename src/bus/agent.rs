//! The interface `com.alibaba.cai1.Agent`. Doc comments here appear in introspection: they are written for operators.

use std::collections::HashMap;

use tokio::sync::watch;
use zbus::message::Header;
use zbus::object_server::{InterfaceRef, SignalEmitter};
use zbus::{Connection, interface};

use super::permission::{self, Action};
use super::values::{self, Dict};
use crate::agent::command::{Desk, Refusal};
use crate::agent::status::{Phase, Status, unix_seconds};

/// Why a method did nothing, by name.
#[derive(Debug, zbus::DBusError)]
#[zbus(prefix = "com.alibaba.cai1.Error")]
pub(super) enum MethodError {
    #[zbus(error)]
    ZBus(zbus::Error),
    NotAuthorized(String),
    NotServing(String),
    NoSuchPath(String),
    NothingKept(String),
    Busy(String),
    NotAttested(String),
    Denied(String),
    InvalidConfiguration(String),
}

impl From<Refusal> for MethodError {
    fn from(refusal: Refusal) -> Self {
        let text = refusal.to_string();
        match refusal {
            Refusal::NotServing => MethodError::NotServing(text),
            Refusal::NoSuchPath { .. } => MethodError::NoSuchPath(text),
            Refusal::NothingKept => MethodError::NothingKept(text),
            Refusal::Busy => MethodError::Busy(text),
            Refusal::NotAttested { .. } => MethodError::NotAttested(text),
            Refusal::Denied { .. } => MethodError::Denied(text),
            Refusal::Configuration { .. } => MethodError::InvalidConfiguration(text),
        }
    }
}

/// Holds the status and no logic.
pub(super) struct AgentInterface {
    status: watch::Receiver<Status>,
    desk: Desk,
}

impl AgentInterface {
    pub(super) fn new(status: watch::Receiver<Status>, desk: Desk) -> Self {
        AgentInterface { status, desk }
    }

    /// Whether the caller may do `action`, and there is a model to do it with.
    async fn admit(
        &self,
        connection: &Connection,
        header: &Header<'_>,
        action: Action,
    ) -> Result<(), MethodError> {
        permission::check(connection, header, action).await.map_err(MethodError::NotAuthorized)?;
        match self.read(|status| status.state.is_serving()) {
            true => Ok(()),
            false => Err(Refusal::NotServing.into()),
        }
    }

    fn read<T>(&self, pick: impl FnOnce(&Status) -> T) -> T {
        pick(&self.status.borrow())
    }
}

#[interface(name = "com.alibaba.cai1.Agent")]
impl AgentInterface {
    /// Starting, Attesting, ReleasingKey, Fetching, Mounting, Serving, Degraded, Failed or Stopping.
    #[zbus(property)]
    fn state(&self) -> String {
        self.read(|status| status.state.name().to_owned())
    }

    /// When it came into this state, seconds since 1970.
    #[zbus(property)]
    fn state_since(&self) -> u64 {
        self.read(|status| unix_seconds(status.since))
    }

    /// How long it was in each state that it has left, since start: seconds by state.
    #[zbus(property)]
    fn state_seconds(&self) -> HashMap<String, u64> {
        self.read(|status| by_name(status.spent.iter().map(|(name, spent)| (*name, spent.as_secs()))))
    }

    /// What exactly is being done, in words.
    #[zbus(property)]
    fn stage(&self) -> String {
        self.read(|status| status.stage.clone())
    }

    /// State, stage and progress in one line.
    #[zbus(property)]
    fn status_text(&self) -> String {
        self.read(Status::text)
    }

    /// Ciphertext that is local: BytesDone and BytesTotal (t, bytes), BytesPerSecond (t, over the last seconds), EtaSeconds (t, absent
    /// when unknown), BySource (a{st}, bytes: cache is what was found at start, the others were fetched since), Retries (t, requests
    /// repeated since start), Caching (b, false once fetched bytes are no longer kept on the disk), ObjectsDone and ObjectsTotal (t),
    /// Fetching (aa{sv}, files of which something is fetched now: Path (s, of the object), BytesDone and BytesTotal (t, bytes)).
    #[zbus(property)]
    fn progress(&self) -> Dict {
        self.read(|status| values::progress(&status.progress))
    }

    /// How the object store is used: Credentials (s, who cai is for OSS), CredentialsExpire (t, seconds since 1970, absent when
    /// unknown), Proxy (s, absent without one), Throttled (t, answers that asked for less, since start), Concurrency (t, requests
    /// that may be in flight now).
    #[zbus(property)]
    fn object_store(&self) -> Dict {
        self.read(|status| values::object_store(&status.object_store))
    }

    /// Bucket and path of the model.
    #[zbus(property)]
    fn model(&self) -> String {
        self.read(|status| status.model.clone())
    }

    /// Where the plaintext can be read.
    #[zbus(property)]
    fn mount_point(&self) -> String {
        self.read(|status| status.mount_point.display().to_string())
    }

    /// How many keys have been released since start.
    #[zbus(property)]
    fn key_generation(&self) -> u32 {
        self.read(|status| status.key_generation)
    }

    /// Identity of a signed model (SHA-256 of its manifest); of another one, SHA-256 of the list of objects.
    #[zbus(property)]
    fn model_revision(&self) -> String {
        self.read(|status| status.model_revision.clone())
    }

    /// When the verifier accepted our evidence, seconds since 1970; 0 before.
    #[zbus(property)]
    fn attested_at(&self) -> u64 {
        self.read(|status| status.attested_at.map_or(0, unix_seconds))
    }

    /// When the attestation token expires, seconds since 1970; 0 when unknown.
    #[zbus(property)]
    fn attestation_expires(&self) -> u64 {
        self.read(|status| status.attestation_expires.map_or(0, unix_seconds))
    }

    /// Facts about the last attestation, all of type s; empty before: tee, provider (where the quote came from), gpus (how many of
    /// which product), protocol (of the key broker), key-algorithm (that the key was encrypted with), server (whether it proved who
    /// it is), token (whether its signature was checked), policy (that the token names).
    #[zbus(property)]
    fn attestation(&self) -> Dict {
        self.read(|status| values::facts(status.attestation.iter()))
    }

    /// The encrypted service port; empty while it is shut. Mode (s: capture or mapping), Listen (as), Backend (s), Certificate (s:
    /// gateway.certificate), RefreshSeconds (t), EvidenceAt (a{st}, by certificate format, seconds since 1970), RefreshError (s, empty
    /// when the last refresh worked), Connections and Streams (t, open now), StreamsTotal, Handshakes, Refused, PlaintextChecks,
    /// BytesReceived from clients and BytesSent to them (t, since start).
    #[zbus(property)]
    fn gateway(&self) -> Dict {
        self.read(|status| values::service_port(status.service_port.as_ref()))
    }

    /// The machines that share the model with this one; empty without any. For each: Address (s), State (s: connected, dialling,
    /// failed, itself), Code and Detail (s, of a failure), Distrusted (b: it sent wrong bytes, and is not asked for a while), Chunks
    /// (t, that it has), BytesReceived, BytesSent, WrongChunks and FailedChunks (t, since start).
    #[zbus(property)]
    fn peers(&self) -> Vec<Dict> {
        self.read(|status| status.peers.iter().map(values::peer).collect())
    }

    /// The rotation that is under way, or the last one; empty before the first. Number (u), Phase (s: attesting, comparing, fetching;
    /// unchanged, rewrapped, replaced, failed at its end), Over (b), Revision (s, that it goes to), Progress (a{sv}, of that), Error
    /// (a{sv}, as LastError, of a failure), LeftOpen (t, open files and directories of revisions that were replaced).
    #[zbus(property)]
    fn rotation(&self) -> Dict {
        self.read(|status| values::rotation(status.rotation.as_ref(), status.left_open))
    }

    /// Rotations that are over, since start: how many by outcome (unchanged, rewrapped, replaced, failed).
    #[zbus(property)]
    fn rotations(&self) -> HashMap<String, u64> {
        self.read(|status| by_name(status.rotations.iter().map(|(name, count)| (*name, *count))))
    }

    /// Failures since start: how many by code.
    #[zbus(property)]
    fn failures(&self) -> HashMap<String, u64> {
        self.read(|status| by_name(status.failures.iter().map(|(code, count)| (*code, *count))))
    }

    /// The newest failure; it stays after a recovery, and is empty when nothing has failed. Code (s, stable), Stage (s, the state it
    /// happened in), Detail (s), Hint (s, what to do), ExitStatus (u, that it would end cai with), At (t, seconds since 1970).
    #[zbus(property)]
    fn last_error(&self) -> Dict {
        self.read(|status| values::last_error(status.last_error.as_ref()))
    }

    /// What the configuration weakens by the operator's choice.
    #[zbus(property)]
    fn notices(&self) -> Vec<String> {
        self.read(|status| status.notices.clone())
    }

    /// Version of cai.
    #[zbus(property(emits_changed_signal = "const"))]
    fn version(&self) -> &'static str {
        env!("CARGO_PKG_VERSION")
    }

    /// Fetch a file of the model, or all files below a directory, before everything that nobody waits for. The path is absolute and at
    /// or below the mount point, or relative to it. Gives the number of files and the bytes that are still to come. For root, and
    /// for whom polkit allows com.alibaba.cai1.prefetch. Errors: NotAuthorized, NotServing, NoSuchPath, NothingKept.
    #[zbus(out_args("files", "missing_bytes"))]
    async fn prefetch(
        &self,
        path: String,
        #[zbus(header)] header: Header<'_>,
        #[zbus(connection)] connection: &Connection,
    ) -> Result<(u64, u64), MethodError> {
        self.admit(connection, &header, Action::Prefetch).await?;
        let prefetched = self.desk.prefetch(path.into()).await?;
        Ok((prefetched.files, prefetched.missing))
    }

    /// Go to the key and the revision of the model that the broker and the bucket have now, without interrupting a reader. Gives the
    /// number of the rotation at once; Rotation shows how far it is and how it ends, Rotated tells of its end. Any failure leaves
    /// everything as it was. For root, and for whom polkit allows com.alibaba.cai1.rotate. Errors: NotAuthorized, NotServing, Busy.
    #[zbus(out_args("number"))]
    async fn rotate(
        &self,
        #[zbus(header)] header: Header<'_>,
        #[zbus(connection)] connection: &Connection,
    ) -> Result<u32, MethodError> {
        self.admit(connection, &header, Action::Rotate).await?;
        Ok(self.desk.rotate().await?)
    }

    /// Attest anew, and ask whether the key would still be released. A denial ends cai: the port is shut, the model is withdrawn.
    /// For root, and for whom polkit allows com.alibaba.cai1.reattest. Errors: NotAuthorized, NotServing, Busy, NotAttested, Denied.
    async fn reattest(
        &self,
        #[zbus(header)] header: Header<'_>,
        #[zbus(connection)] connection: &Connection,
    ) -> Result<(), MethodError> {
        self.admit(connection, &header, Action::Reattest).await?;
        Ok(self.desk.reattest().await?)
    }

    /// Read the configuration again. Gives the keys that are in effect from now on (the lease of the attestation, the key of the
    /// bucket), and those that need a restart. A configuration with a mistake changes nothing. For root, and for whom polkit allows
    /// com.alibaba.cai1.reload. Errors: NotAuthorized, NotServing, InvalidConfiguration.
    #[zbus(out_args("applied", "needs_restart"))]
    async fn reload(
        &self,
        #[zbus(header)] header: Header<'_>,
        #[zbus(connection)] connection: &Connection,
    ) -> Result<(Vec<String>, Vec<String>), MethodError> {
        self.admit(connection, &header, Action::Reload).await?;
        let reloaded = self.desk.reload().await?;
        let names = |keys: Vec<&str>| keys.into_iter().map(str::to_owned).collect();
        Ok((names(reloaded.applied), names(reloaded.later)))
    }

    /// A rotation ended: unchanged, rewrapped, replaced or failed; and the revision that is served now.
    #[zbus(signal, name = "Rotated")]
    async fn rotation_has_ended(
        emitter: &SignalEmitter<'_>,
        number: u32,
        outcome: &str,
        revision: &str,
    ) -> zbus::Result<()>;

    /// The state has changed. Every changed property is also told by PropertiesChanged of org.freedesktop.DBus.Properties.
    #[zbus(signal, name = "StateChanged")]
    async fn state_has_changed(emitter: &SignalEmitter<'_>, from: &str, to: &str) -> zbus::Result<()>;
}

fn by_name(entries: impl Iterator<Item = (&'static str, u64)>) -> HashMap<String, u64> {
    entries.map(|(name, value)| (name.to_owned(), value)).collect()
}

/// Number and outcome of the last rotation, if it is over.
fn ended(status: &Status) -> Option<(u32, &'static str)> {
    let rotation = status.rotation.as_ref()?;
    matches!(rotation.phase, Phase::Over(_)).then(|| (rotation.number, rotation.phase.name()))
}

/// One `PropertiesChanged` for each property that differs between two snapshots, and `StateChanged`.
pub(super) async fn emit_changes(
    interface: &InterfaceRef<AgentInterface>,
    before: &Status,
    now: &Status,
) -> zbus::Result<()> {
    let emitter = interface.signal_emitter();
    let shown = interface.get().await;
    if before.state != now.state {
        shown.state_changed(emitter).await?;
        shown.state_since_changed(emitter).await?;
        shown.state_seconds_changed(emitter).await?;
        AgentInterface::state_has_changed(emitter, before.state.name(), now.state.name()).await?;
    }
    if before.stage != now.stage {
        shown.stage_changed(emitter).await?;
    }
    if before.text() != now.text() {
        shown.status_text_changed(emitter).await?;
    }
    if before.progress != now.progress {
        shown.progress_changed(emitter).await?;
    }
    if before.object_store != now.object_store {
        shown.object_store_changed(emitter).await?;
    }
    if before.key_generation != now.key_generation {
        shown.key_generation_changed(emitter).await?;
    }
    if before.model_revision != now.model_revision {
        shown.model_revision_changed(emitter).await?;
    }
    if before.attested_at != now.attested_at {
        shown.attested_at_changed(emitter).await?;
    }
    if before.attestation_expires != now.attestation_expires {
        shown.attestation_expires_changed(emitter).await?;
    }
    if before.attestation != now.attestation {
        shown.attestation_changed(emitter).await?;
    }
    if before.service_port != now.service_port {
        shown.gateway_changed(emitter).await?;
    }
    if before.peers != now.peers {
        shown.peers_changed(emitter).await?;
    }
    if (&before.rotation, before.left_open) != (&now.rotation, now.left_open) {
        shown.rotation_changed(emitter).await?;
    }
    if let Some((number, outcome)) = ended(now).filter(|end| ended(before).as_ref() != Some(end)) {
        AgentInterface::rotation_has_ended(emitter, number, outcome, &now.model_revision).await?;
    }
    if before.last_error != now.last_error {
        shown.last_error_changed(emitter).await?;
    }
    if before.rotations != now.rotations {
        shown.rotations_changed(emitter).await?;
    }
    if before.failures != now.failures {
        shown.failures_changed(emitter).await?;
    }
    if before.notices != now.notices {
        shown.notices_changed(emitter).await?;
    }
    Ok(())
}
