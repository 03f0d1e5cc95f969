//! Who we are for those who connect: a key, evidence that binds it, and the certificate around both, renewed while we run.
//!
//! There is no nonce in a certificate: that the evidence is new, a client knows only from how often this is renewed
//! (tng.md 4.5). Each renewal has a new key, which exists in the memory of the cryptographic library alone.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use rustls::pki_types::CertificateDer;
use rustls::sign::{CertifiedKey, Signer, SigningKey};
use rustls::{SignatureAlgorithm, SignatureScheme};
use tokio::sync::{OwnedMutexGuard, watch};

use super::Format;
use super::certificate::{self, CertificateError, Key, VALIDITY};
use super::evidence::{
    self, HashAlgorithm, TaggedEvidence, claims_buffer, current_runtime_data, legacy_runtime_data,
};
use crate::attest::{AttestError, Attester, Verifier};
use crate::error::{ErrorClass, Fault, chain};

/// How long after a failed renewal it is tried again at the latest: long enough for a quoting service to restart, short
/// beside the 6 hours for which the old certificate lasts.
const TRY_AGAIN: Duration = Duration::from_secs(60);

/// A certificate could not be made.
#[derive(Debug, thiserror::Error)]
pub enum IdentityError {
    /// No evidence.
    #[error("collecting evidence for the {} certificate", format.name())]
    Evidence {
        /// For which certificate.
        format: Format,
        /// Why not.
        #[source]
        source: AttestError,
    },
    /// No certificate around it.
    #[error("making the {} certificate", format.name())]
    Certificate {
        /// Which.
        format: Format,
        /// Why not.
        #[source]
        source: CertificateError,
    },
    /// The collection did not come back.
    #[error("the collection of evidence panicked")]
    Panicked,
}

impl Fault for IdentityError {
    fn class(&self) -> ErrorClass {
        match self {
            IdentityError::Evidence { source, .. } => source.class(),
            IdentityError::Certificate { source, .. } => source.class(),
            IdentityError::Panicked => ErrorClass::Internal,
        }
    }

    fn code(&self) -> &'static str {
        match self {
            IdentityError::Evidence { source, .. } => source.code(),
            IdentityError::Certificate { source, .. } => source.code(),
            IdentityError::Panicked => "identity.panicked",
        }
    }

    fn hint(&self) -> String {
        match self {
            IdentityError::Evidence { source, .. } => source.hint(),
            IdentityError::Certificate { source, .. } => source.hint(),
            IdentityError::Panicked => "this is a defect: please report it with the journal".into(),
        }
    }
}

/// A certificate with its key, as TLS shows it.
#[derive(Debug)]
pub struct Shown {
    certified: Arc<CertifiedKey>,
    key: Key,
    made_at: SystemTime,
    made: Instant,
}

impl Shown {
    /// For rustls.
    pub fn certified(&self) -> &Arc<CertifiedKey> {
        &self.certified
    }

    /// For OpenSSL: the certificate in DER, and its key.
    pub(super) fn parts(&self) -> (&[u8], &Key) {
        (self.certified.cert.first().map_or(&[], |der| der.as_ref()), &self.key)
    }

    /// When its evidence was asked for.
    pub fn made_at(&self) -> SystemTime {
        self.made_at
    }
}

/// What is shown now: the newest certificate of each format that was asked for.
#[derive(Debug, Clone, Default)]
pub struct Fresh {
    legacy: Option<Arc<Shown>>,
    current: Option<Arc<Shown>>,
    /// Why the last renewal failed; `None` after one that did not.
    pub last_error: Option<String>,
}

impl Fresh {
    /// The certificate of that format, unless it is older `now` than it says it is valid.
    pub fn shown(&self, format: Format, now: Instant) -> Option<&Arc<Shown>> {
        let shown = match format {
            Format::Legacy => self.legacy.as_ref(),
            Format::Current => self.current.as_ref(),
        };
        shown.filter(|shown| now.saturating_duration_since(shown.made) < VALIDITY)
    }

    fn put(&mut self, format: Format, shown: Shown) {
        let place = match format {
            Format::Legacy => &mut self.legacy,
            Format::Current => &mut self.current,
        };
        *place = Some(Arc::new(shown));
    }
}

/// What certificates are made of.
#[derive(Clone)]
pub struct Recipe {
    /// Who gives the evidence.
    pub attester: Arc<dyn Attester>,
    /// Which formats.
    pub formats: Vec<Format>,
    /// What the runtime data of the current format says beside the key's hash: `model-identity` and `policy-hash`, in
    /// hexadecimal digits.
    pub members: BTreeMap<String, String>,
}

impl Recipe {
    /// One certificate. Blocks, as [`Attester`] does.
    ///
    /// # Errors
    /// [`IdentityError`].
    pub fn make(&self, format: Format) -> Result<Shown, IdentityError> {
        let (made_at, made) = (SystemTime::now(), Instant::now());
        let no_certificate = |source| IdentityError::Certificate { format, source };
        let no_evidence = |source| IdentityError::Evidence { format, source };
        let key = Key::generate().map_err(no_certificate)?;
        let spki = key.spki().map_err(no_certificate)?;
        let (runtime_data, claims, verifier) = match format {
            Format::Legacy => {
                let claims = claims_buffer(&spki);
                (legacy_runtime_data(&claims), claims, Verifier::Legacy)
            }
            Format::Current => (current_runtime_data(&spki, &self.members), Vec::new(), Verifier::Current),
        };
        let digest = evidence::digest(&runtime_data);
        let additional = match format {
            Format::Legacy => String::new(),
            Format::Current => self.attester.device_evidence(&digest).map_err(no_evidence)?,
        };
        let evidence = self.attester.evidence(&digest, verifier).map_err(no_evidence)?;
        let tagged = TaggedEvidence {
            tee: self.attester.tee().name().to_owned(),
            evidence: evidence.object.get().as_bytes().to_vec(),
            additional: Some(additional.into_bytes()).filter(|additional| !additional.is_empty()),
            runtime_data,
            hash: HashAlgorithm::Sha384,
            claims,
        };
        let der = certificate::issue(&key, &tagged.encode(), made_at).map_err(no_certificate)?;
        // Not `from_der`: it holds the certificate against the key with webpki, which reads no certificate over 64 KiB
        // (tng.md 12.5).
        let certified = Arc::new(CertifiedKey::new(vec![CertificateDer::from(der)], Arc::new(key.clone())));
        Ok(Shown { certified, key, made_at, made })
    }

    /// One certificate of each format.
    async fn make_all(self: &Arc<Self>) -> Result<Vec<(Format, Shown)>, IdentityError> {
        let mut shown = Vec::new();
        for format in &self.formats {
            shown.push((*format, self.make_apart(*format).await?));
        }
        Ok(shown)
    }

    async fn make_apart(self: &Arc<Self>, format: Format) -> Result<Shown, IdentityError> {
        let recipe = self.clone();
        let made = tokio::task::spawn_blocking(move || recipe.make(format)).await;
        made.map_err(|_| IdentityError::Panicked)?
    }
}

/// Keeps certificates fresh.
pub struct Identity {
    /// Held while certificates are made for showing: none of an older recipe is shown after one of a newer.
    recipe: Arc<tokio::sync::Mutex<Arc<Recipe>>>,
    every: Duration,
    fresh: watch::Sender<Fresh>,
}

/// Certificates that could be shown. While they exist no others are made.
pub struct Prepared {
    turn: OwnedMutexGuard<Arc<Recipe>>,
    recipe: Arc<Recipe>,
    shown: Vec<(Format, Shown)>,
}

impl Identity {
    /// Make the first certificate of each format; [`Identity::keep_fresh`] makes the next ones, one per `every`.
    ///
    /// # Errors
    /// [`IdentityError`]: who cannot show anything does not start.
    pub async fn start(recipe: Recipe, every: Duration) -> Result<Self, IdentityError> {
        let recipe = Arc::new(recipe);
        let shown = recipe.make_all().await?;
        let recipe = Arc::new(tokio::sync::Mutex::new(recipe));
        let identity = Identity { recipe, every, fresh: watch::Sender::default() };
        identity.put(shown);
        Ok(identity)
    }

    /// Certificates that bind other `members`, to be shown once what they say is true. New keys and evidence in any case.
    ///
    /// # Errors
    /// [`IdentityError`]: what is shown stays.
    pub async fn prepare(&self, members: BTreeMap<String, String>) -> Result<Prepared, IdentityError> {
        let turn = self.recipe.clone().lock_owned().await;
        let recipe = Arc::new(Recipe { members, ..Recipe::clone(&turn) });
        let shown = recipe.make_all().await?;
        Ok(Prepared { turn, recipe, shown })
    }

    /// Show them, and from now on others of their kind.
    pub fn show(&self, prepared: Prepared) {
        let Prepared { mut turn, recipe, shown } = prepared;
        *turn = recipe;
        self.put(shown);
    }

    /// What is shown, now and later.
    pub fn fresh(&self) -> watch::Receiver<Fresh> {
        self.fresh.subscribe()
    }

    /// Renew for ever. A renewal that fails leaves the old certificate in place and is tried again within a minute.
    pub async fn keep_fresh(&self) -> Infallible {
        let mut pause = self.every;
        loop {
            tokio::time::sleep(pause).await;
            pause = match self.renew().await {
                Ok(()) => {
                    tracing::debug!(event = "identity.renewed", "new keys and evidence");
                    self.every
                }
                Err(error) => {
                    let text = chain(&error);
                    tracing::warn!(event = error.code(), error = ?error, hint = error.hint(), "renewing the evidence, the old one stays for now: {text}");
                    self.fresh.send_modify(|fresh| fresh.last_error = Some(text));
                    self.every.min(TRY_AGAIN)
                }
            };
        }
    }

    async fn renew(&self) -> Result<(), IdentityError> {
        let recipe = self.recipe.lock().await;
        self.put(recipe.make_all().await?);
        Ok(())
    }

    fn put(&self, shown: Vec<(Format, Shown)>) {
        self.fresh.send_modify(|fresh| {
            shown.into_iter().for_each(|(format, shown)| fresh.put(format, shown));
            fresh.last_error = None;
        });
    }
}

impl SigningKey for Key {
    fn choose_scheme(&self, offered: &[SignatureScheme]) -> Option<Box<dyn Signer>> {
        offered
            .contains(&SignatureScheme::ECDSA_NISTP256_SHA256)
            .then(|| Box::new(self.clone()) as Box<dyn Signer>)
    }

    fn algorithm(&self) -> SignatureAlgorithm {
        SignatureAlgorithm::ECDSA
    }
}

impl Signer for Key {
    fn sign(&self, message: &[u8]) -> Result<Vec<u8>, rustls::Error> {
        Key::sign(self, message).map_err(|error| rustls::Error::General(error.to_string()))
    }

    fn scheme(&self) -> SignatureScheme {
        SignatureScheme::ECDSA_NISTP256_SHA256
    }
}

#[cfg(test)]
mod tests;
