//! This node's part in the group that shares the model, while there is a model to share.

use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use tokio::runtime::Handle;
use tokio::sync::watch;
use url::Url;

use super::model::{Opened, Revision};
use super::stages::blocking;
use super::state::State;
use super::status::Failure;
use super::voice::Voice;
use crate::ciphertext::{Ciphertext, Entry, EntryId, EntryKind, Judge};
use crate::config::{PeerAttestation, Settings};
use crate::error::{ErrorClass, Fault};
use crate::gocryptfs::layout::HEADER;
use crate::gocryptfs::{BlockJudge, CONF_NAME, Kind, Tree};
use crate::peer::{Options, Security, Swarm};
use crate::ratls::identity::Fresh;
use crate::ratls::{self, Demands, TlsError, Verifier, VerifierOptions};
use crate::store::{Patience, Sharing};
use crate::task::Ended;

/// How long connections get to end after they were asked to.
const TASK_GRACE: Duration = Duration::from_secs(5);

/// How often what is shown of the peers is looked at.
const SHOW_EVERY: Duration = Duration::from_secs(1);

/// Shortest file of a vendor's format that peers may send, in bytes: what is shorter may be what its key is guessed by, as gocryptfs's
/// conf is at any length.
const DATA: u64 = 1 << 20;

/// A file that the verifier of peers needs cannot be read.
#[derive(Debug, thiserror::Error)]
#[error("reading {}", path.display())]
struct FileError {
    path: std::path::PathBuf,
    #[source]
    source: std::io::Error,
}

impl Fault for FileError {
    fn class(&self) -> ErrorClass {
        ErrorClass::Config
    }

    fn code(&self) -> &'static str {
        "peer.file"
    }

    fn hint(&self) -> String {
        "it is named in cai.toml, section [trustee], and user cai must be able to read it".into()
    }
}

/// This node's place in the group: at most one, of one revision.
#[derive(Default)]
pub(super) struct Group(tokio::sync::Mutex<Option<Swarm>>);

impl Group {
    /// Take part, if there are peers: listen, dial, and let the revision's store ask them. Any other revision is left first: there
    /// is one port, and who shares an older one moves on as well.
    pub(super) async fn join(
        &self,
        settings: &Settings,
        voice: &Voice,
        revision: &Revision,
        fresh: Option<watch::Receiver<Fresh>>,
    ) -> Result<(), Failure> {
        let mut swarm = self.0.lock().await;
        if let Some(swarm) = swarm.take() {
            swarm.stop(TASK_GRACE).await;
        }
        *swarm = join(settings, voice, revision, fresh).await?;
        Ok(())
    }

    /// Show the peers, until a task among them ends, which none does by itself.
    pub(super) async fn watch(&self, voice: &Voice) -> Ended {
        loop {
            let mut swarm = self.0.lock().await;
            match swarm.as_mut() {
                Some(swarm) => {
                    voice.peers(swarm.shown());
                    if let Ok(ended) = tokio::time::timeout(SHOW_EVERY, swarm.any_ended()).await {
                        return ended;
                    }
                }
                None => {
                    // Somebody may want to join meanwhile.
                    drop(swarm);
                    voice.peers(Vec::new());
                    tokio::time::sleep(SHOW_EVERY).await;
                }
            }
        }
    }

    /// Serve and ask nobody any more.
    pub(super) async fn leave(&self, voice: &Voice) {
        if let Some(swarm) = self.0.lock().await.take() {
            voice.peers(Vec::new());
            swarm.stop(TASK_GRACE).await;
        }
    }
}

async fn join(
    settings: &Settings,
    voice: &Voice,
    model: &Revision,
    fresh: Option<watch::Receiver<Fresh>>,
) -> Result<Option<Swarm>, Failure> {
    let fail = |fault: &dyn Fault| Failure::new(State::Fetching, fault);
    let peer = &settings.peer;
    if peer.addresses.is_empty() {
        return Ok(None);
    }
    let (judge, shared): (Option<Arc<dyn Judge>>, _) = match &model.opened {
        Opened::Tree { keys, tree } => (Some(Arc::new(BlockJudge::new(keys.clone()))), with_content(tree)),
        Opened::Adapter { .. } if model.listed.manifest.is_some() => (None, large(model.store.entries())),
        Opened::Adapter { .. } => {
            voice.notice(
                "MODEL_SHARING_PEER has no effect with MODEL_ENCRYPTION_METHOD=sam and no signed manifest: nobody could judge what \
                 peers send",
            );
            return Ok(None);
        }
    };
    let security = match (peer.attestation, fresh) {
        (PeerAttestation::Required, Some(fresh)) => attested(settings, voice, fresh).await?,
        (PeerAttestation::Network, _) => {
            voice.notice(
                "peer.attestation is network: whoever has the address of a peer gets the encrypted model, in the open",
            );
            Security::Network
        }
        // Evidence is collected wherever it is required.
        (PeerAttestation::Required, None) => return Err(fail(&TlsError::Stale)),
    };
    let everywhere = match peer.addresses.iter().all(SocketAddr::is_ipv4) {
        true => Ipv4Addr::UNSPECIFIED.into(),
        false => Ipv6Addr::UNSPECIFIED.into(),
    };
    let options = Options {
        shared: shared.clone(),
        listen: SocketAddr::new(everywhere, peer.port),
        peers: peer.addresses.clone(),
        security,
        upload_limit: peer.upload_limit,
        model: model.listed.data,
    };
    let swarm = Swarm::start(options, model.store.clone()).await.map_err(|error| fail(&error))?;
    tracing::info!(event = "peer.listening", at = %swarm.listening(), peers = peer.addresses.len());
    let sharing = Sharing { peers: swarm.peers(), judge, shared, patience: Patience::default() };
    model.store.share(sharing, &Handle::current());
    Ok(Some(swarm))
}

/// Files that peers may send: without content there is nothing to send, and nothing that could be judged.
fn with_content(tree: &Tree) -> Vec<EntryId> {
    let files = tree.nodes().iter().filter(|node| {
        matches!(node.kind, Kind::File { cipher_len, .. } if usize::try_from(cipher_len).is_ok_and(|len| len > HEADER))
    });
    files.filter_map(|node| node.entry).collect()
}

/// The same of a format that only the adapter knows.
fn large(entries: &[Entry]) -> Vec<EntryId> {
    let is_large = |entry: &Entry| {
        matches!(entry.kind, EntryKind::File { len } if len >= DATA) && !entry.path.ends_with(CONF_NAME)
    };
    let large = (0..).zip(entries).filter(|(_, entry)| is_large(entry));
    large.map(|(id, _)| EntryId(id)).collect()
}

/// Peers whose evidence the Trustee's attestation service affirms under `TRUSTEE_POLICY`.
async fn attested(
    settings: &Settings,
    voice: &Voice,
    fresh: watch::Receiver<Fresh>,
) -> Result<Security, Failure> {
    let fail = |fault: &dyn Fault| Failure::new(State::Fetching, fault);
    let trustee = &settings.trustee;
    let (ca, signers) = (read(trustee.ca_file.as_deref()).await?, read(trustee.token_cert.as_deref()).await?);
    let plain = trustee.url.scheme() == "http";
    if plain && signers.is_none() {
        voice.notice(
            "peers are attested by whoever answers at TRUSTEE_URL, which is plain http: name the signer of its tokens with \
             trustee.token_cert",
        );
    }
    let options = VerifierOptions {
        url: &attestation_service(&trustee.url),
        ca: ca.as_deref(),
        signers: signers.as_deref(),
        // The operator wrote the URL, and the key itself is released through it.
        unauthenticated: plain,
        demands: Demands { policies: vec![trustee.policy.clone()], members: Default::default() },
    };
    let verifier = Arc::new(Verifier::new(options).map_err(|error| fail(&error))?);
    let server = ratls::Server::new(Swarm::PROTOCOLS, fresh.clone()).map_err(|error| fail(&error))?;
    let client = ratls::Client::new(Swarm::PROTOCOLS).map_err(|error| fail(&error))?.showing(fresh);
    Ok(Security::Attested { client, server, verifier })
}

/// `{TRUSTEE_URL}/as`, where the Trustee of the solution has it.
fn attestation_service(trustee: &Url) -> Url {
    let mut url = trustee.clone();
    url.set_path(&format!("{}/as", trustee.path().trim_end_matches('/')));
    url
}

async fn read(path: Option<&Path>) -> Result<Option<Vec<u8>>, Failure> {
    let Some(path) = path.map(Path::to_owned) else { return Ok(None) };
    blocking(State::Fetching, move || {
        let read = std::fs::read(&path).map(Some);
        read.map_err(|source| Failure::new(State::Fetching, &FileError { path, source }))
    })
    .await
}

#[cfg(test)]
mod tests {
    use std::time::SystemTime;

    use super::*;
    use crate::ciphertext::Attributes;

    #[test]
    fn only_large_files_of_an_unknown_format_are_shared_and_never_a_conf() {
        let attributes = Attributes::unknown(SystemTime::UNIX_EPOCH);
        let entry = |path: &str, kind| Entry { path: path.into(), kind, attributes };
        let file = |path, len| entry(path, EntryKind::File { len });
        let entries = [
            file("a", DATA),
            file("b", DATA - 1),
            entry("c", EntryKind::Directory),
            file("c/gocryptfs.conf", DATA),
            file("d", DATA + 1),
            file("gocryptfs.conf", DATA),
        ];
        assert_eq!(large(&entries), [EntryId(0), EntryId(4)]);
    }

    #[test]
    fn attestation_service_is_beside_the_key_broker() {
        for (trustee, service) in [
            ("http://alb.example/trustee", "http://alb.example/trustee/as"),
            ("https://alb.example/", "https://alb.example/as"),
        ] {
            assert_eq!(attestation_service(&Url::parse(trustee).unwrap()).as_str(), service);
        }
    }
}
