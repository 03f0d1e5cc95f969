//! The handshake: challenge, evidence, verdict, secret.
//!
//! Source: kbs.md sections 1, 2 and 9.1.

use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use super::error::{KbsError, Refusal, Step};
use super::jwe::Jwe;
use super::key::TeeKey;
use super::session::Jar;
use super::token;
use super::transport::Transport;
use super::uri::ResourceUri;
use super::verdict::{Verdict, expected_version, judge};
use super::wire::{self, Challenge, Dialect};
use crate::attest::{Attester, Claims, Evidence, Tee};
use crate::config::{Protocol, Trustee};
use crate::keyring::Secret;

/// Handshakes that [`Client::release`] makes in all before it gives up on a lost session or refused evidence.
const HANDSHAKES: u32 = 3;

/// Pause before the second handshake; the third waits twice as long. Jittered by half either way.
const BACKOFF: Duration = Duration::from_millis(500);

/// Largest request the brokers accept, in bytes (kbs.md section 1).
const REQUEST_LIMIT: usize = 2 << 20;

/// A client of one key broker.
pub struct Client {
    transport: Transport,
    protocol: Protocol,
    /// The dialect the broker has been found to speak, for the life of the client.
    found: Mutex<Option<Dialect>>,
}

/// Proof of a completed attestation: the session and private key that a secret can be asked with.
///
/// Made by [`Client::attest`] only. Its key pair and cookies belong to this one handshake.
pub struct Attested {
    jar: Jar,
    key: Arc<TeeKey>,
    facts: Facts,
}

/// What the status says about an attestation. Nothing in it is secret.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Facts {
    /// Protocol version spoken.
    pub dialect: Dialect,
    /// TEE attested.
    pub tee: Tee,
    /// What the evidence says.
    pub claims: Claims,
    /// When the broker accepted the evidence.
    pub attested_at: SystemTime,
    /// When the token expires, and with it the session in practice.
    pub expires: Option<SystemTime>,
    /// Whether the broker proved who it is (https).
    pub server_authenticated: bool,
    /// `jti` of the token, where it has one.
    pub token_id: Option<String>,
}

impl Attested {
    /// What the status says about it.
    pub fn facts(&self) -> &Facts {
        &self.facts
    }
}

impl fmt::Debug for Attested {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Attested").field("facts", &self.facts).finish_non_exhaustive()
    }
}

impl fmt::Debug for Client {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Client").field("base", &self.transport.base().as_str()).finish_non_exhaustive()
    }
}

impl Client {
    /// A client for the broker in `config`. Reads the CA bundle; makes no connection.
    ///
    /// # Errors
    /// [`KbsError`] when the URL, the CA bundle or the requirement of https does not hold.
    pub fn new(config: &Trustee) -> Result<Self, KbsError> {
        let transport = Transport::new(config)?;
        if !transport.server_authenticated() {
            tracing::warn!(
                event = "kbs.unauthenticated",
                base = transport.base().as_str(),
                "plain http: secrets stay confidential, but anybody on the way can answer in the key broker's place"
            );
        }
        Ok(Client { transport, protocol: config.protocol, found: Mutex::default() })
    }

    /// Whether the broker proves who it is. The JWE of a secret does not: anybody who saw the public key can make one.
    pub fn server_authenticated(&self) -> bool {
        self.transport.server_authenticated()
    }

    /// One handshake with a fresh key pair and fresh cookies.
    ///
    /// # Errors
    /// [`KbsError`]; a refusal of the evidence is not retried here but in [`Client::release`].
    pub async fn attest(&self, attester: Arc<dyn Attester>) -> Result<Attested, KbsError> {
        let tee = attester.tee();
        let jar = Jar::new(self.transport.base());
        let (dialect, challenge) = self.challenge(tee, &jar).await?;
        let nonce = challenge.nonce.clone();
        let proof =
            tokio::task::spawn_blocking(move || prove(dialect, &challenge, attester.as_ref())).await??;
        let answer = self.transport.post(Step::Attest, &jar, proof.body).await?;
        let answer = answer.map_err(|refusal| meaning(refusal, dialect, ""))?;
        let at = SystemTime::now();
        let token = wire::parse_token(&answer).map_err(|source| KbsError::Malformed {
            step: Step::Attest,
            at,
            source,
        })?;
        let token = token::check(&token, &nonce, proof.key.jwk(), at)
            .map_err(|source| KbsError::Token { at, source })?;
        tracing::info!(
            event = "kbs.attested",
            dialect = dialect.version(),
            tee = tee.name(),
            provider = proof.claims.provider,
            "attested"
        );
        let facts = Facts {
            dialect,
            tee,
            claims: proof.claims,
            attested_at: at,
            expires: token.expires,
            server_authenticated: self.server_authenticated(),
            token_id: token.id,
        };
        Ok(Attested { jar, key: Arc::new(proof.key), facts })
    }

    /// Ask for a resource with an attested session, and open it into locked memory. The bytes are the resource's,
    /// verbatim: a trailing newline stays.
    ///
    /// # Errors
    /// [`KbsError`]; [`KbsError::SessionLost`] when a new handshake is needed.
    pub async fn secret(&self, attested: &Attested, uri: &ResourceUri) -> Result<Secret, KbsError> {
        let dialect = attested.facts.dialect;
        let answer = self.transport.get_resource(&attested.jar, &uri.path_and_query()).await?;
        let answer = answer.map_err(|refusal| meaning(refusal, dialect, &uri.to_string()))?;
        let at = SystemTime::now();
        let key = Arc::clone(&attested.key);
        let opened = tokio::task::spawn_blocking(move || Jwe::parse(&answer)?.open(&key, dialect)).await?;
        opened.map_err(|source| KbsError::Jwe { resource: uri.to_string(), at, source })
    }

    /// Attest and ask for a resource, with up to three handshakes when the session is lost on the way or the evidence is
    /// refused (the verifier's certificate cache has hiccups), seconds in all. Waiting longer is the caller's decision.
    /// `attested` hears of every attestation before its resource is asked for.
    ///
    /// # Errors
    /// The last handshake's [`KbsError`].
    pub async fn release(
        &self,
        attester: Arc<dyn Attester>,
        uri: &ResourceUri,
        mut attested: impl FnMut(&Facts),
    ) -> Result<(Attested, Secret), KbsError> {
        let mut attempt = 1;
        loop {
            match self.release_once(Arc::clone(&attester), uri, &mut attested).await {
                Err(error) if attempt < HANDSHAKES && error.wants_new_handshake() => {
                    let backoff = jittered(BACKOFF.saturating_mul(attempt));
                    let backoff_ms = u64::try_from(backoff.as_millis()).unwrap_or(u64::MAX);
                    tracing::warn!(event = "kbs.handshake-again", attempt, backoff_ms, error = ?error, "new handshake");
                    tokio::time::sleep(backoff).await;
                }
                outcome => return outcome,
            }
            attempt += 1;
        }
    }

    async fn release_once(
        &self,
        attester: Arc<dyn Attester>,
        uri: &ResourceUri,
        heard: &mut impl FnMut(&Facts),
    ) -> Result<(Attested, Secret), KbsError> {
        let attested = self.attest(attester).await?;
        heard(attested.facts());
        let secret = self.secret(&attested, uri).await?;
        Ok((attested, secret))
    }

    /// A challenge, in the best dialect both sides speak: no broker negotiates, each only says what it expects.
    async fn challenge(&self, tee: Tee, jar: &Jar) -> Result<(Dialect, Challenge), KbsError> {
        let first = self.first_offer();
        let refused = match self.offer(first, tee, jar).await {
            Ok(challenge) => return Ok((self.remember(first), challenge)),
            Err(error) => error,
        };
        let Some(second) = self.second_offer(first, &refused) else {
            return Err(refused);
        };
        match self.offer(second, tee, jar).await {
            Ok(challenge) => Ok((self.remember(second), challenge)),
            // The blind second offer was wrong, so the first refusal is the one that says something.
            Err(KbsError::VersionMismatch { .. }) if matches!(refused, KbsError::AuthRefused { .. }) => {
                Err(refused)
            }
            Err(error) => Err(error),
        }
    }

    async fn offer(&self, dialect: Dialect, tee: Tee, jar: &Jar) -> Result<Challenge, KbsError> {
        let answer = self.transport.post(Step::Auth, jar, wire::auth_body(dialect, tee)?).await?;
        let answer = answer.map_err(|refusal| meaning(refusal, dialect, ""))?;
        let malformed = |source| KbsError::Malformed { step: Step::Auth, at: SystemTime::now(), source };
        Challenge::parse(&answer).map_err(malformed)
    }

    fn first_offer(&self) -> Dialect {
        match self.protocol {
            Protocol::V0_1_0 => Dialect::V0_1_0,
            Protocol::V0_1_1 => Dialect::V0_1_1,
            Protocol::V0_2_0 => Dialect::V0_2_0,
            Protocol::V0_4_0 => Dialect::V0_4_0,
            // The better one first: its envelope authenticates its header.
            Protocol::Auto => {
                self.found.lock().unwrap_or_else(PoisonError::into_inner).unwrap_or(Dialect::V0_4_0)
            }
        }
    }

    /// The other dialect, when the refusal asks for it or may be about it without saying so (some releases hide the
    /// cause), and the operator has not pinned one.
    fn second_offer(&self, first: Dialect, refused: &KbsError) -> Option<Dialect> {
        if self.protocol != Protocol::Auto {
            return None;
        }
        match refused {
            KbsError::VersionMismatch { expected, .. } => {
                expected.as_deref().and_then(Dialect::of_version).filter(|second| *second != first)
            }
            KbsError::AuthRefused { .. } if first == Dialect::V0_4_0 => Some(Dialect::V0_1_0),
            _ => None,
        }
    }

    fn remember(&self, dialect: Dialect) -> Dialect {
        let known = self.found.lock().unwrap_or_else(PoisonError::into_inner).replace(dialect);
        if known != Some(dialect) && dialect != Dialect::V0_4_0 && self.protocol == Protocol::Auto {
            tracing::warn!(
                event = "kbs.old-protocol",
                dialect = dialect.version(),
                "the key broker speaks only an old protocol; pin trustee.protocol once it has been upgraded"
            );
        }
        dialect
    }
}

/// What one handshake sends as proof, and the key pair it is bound to.
struct Proof {
    key: TeeKey,
    claims: Claims,
    body: Vec<u8>,
}

/// A fresh key pair, and evidence bound to it and to the challenge. Blocking.
fn prove(dialect: Dialect, challenge: &Challenge, attester: &dyn Attester) -> Result<Proof, KbsError> {
    let key = TeeKey::generate(dialect)?;
    let failed = |source| KbsError::Evidence { at: SystemTime::now(), source };
    let additional = if dialect.has_devices() {
        let digest = wire::runtime_digest(None, &challenge.nonce, key.jwk())?;
        attester.device_evidence(&digest).map_err(failed)?
    } else {
        String::new()
    };
    let digest = wire::primary_digest(dialect, &additional, &challenge.nonce, key.jwk())?;
    let Evidence { object, claims } = attester.evidence(&digest, dialect.verifier()).map_err(failed)?;
    let body = wire::attest_body(dialect, &challenge.nonce, key.jwk(), &object, &additional)?;
    if body.len() > REQUEST_LIMIT {
        return Err(KbsError::EvidenceTooLarge { len: body.len(), limit: REQUEST_LIMIT });
    }
    Ok(Proof { key, claims, body })
}

/// The error that a refusal means. `resource` is what was asked for, where something was.
fn meaning(refusal: Box<Refusal>, offered: Dialect, resource: &str) -> KbsError {
    let resource = resource.to_owned();
    match judge(&refusal) {
        Verdict::VersionMismatch => {
            let expected = expected_version(&refusal.detail).map(str::to_owned);
            KbsError::VersionMismatch { offered: offered.version(), expected, refusal }
        }
        Verdict::SessionLost => KbsError::SessionLost { refusal },
        Verdict::Denied => KbsError::Denied { resource, refusal },
        Verdict::NotFound => KbsError::NotFound { resource, refusal },
        Verdict::AttestationRefused => KbsError::AttestationRefused { refusal },
        Verdict::AuthRefused => KbsError::AuthRefused { refusal },
        Verdict::BadRequest => KbsError::BadRequest { refusal },
        Verdict::ServerFault => KbsError::ServerFault { refusal },
        Verdict::NotKbs => KbsError::NotKbs { refusal },
    }
}

/// `pause`, half to one and a half times; the middle where the system has no random numbers.
fn jittered(pause: Duration) -> Duration {
    let share = getrandom::u32().map_or(0.5, |random| f64::from(random) / f64::from(u32::MAX));
    pause.mul_f64(0.5 + share)
}
