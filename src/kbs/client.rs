//! The handshake: challenge, evidence, verdict, secret.
//!
//! Source: kbs.md sections 1, 2 and 9.1.

use std::fmt;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use sha2::{Digest as _, Sha256};
use zeroize::Zeroizing;

use super::attested::{Attested, Facts};
use super::error::{KbsError, Step};
use super::jwe::Jwe;
use super::key::TeeKey;
use super::meaning::Asked;
use super::negotiate::{Negotiation, Offer};
use super::session::Jar;
use super::token::{self, Signers};
use super::transport::{Credential, Transport};
use super::uri::ResourceUri;
use super::wire::{self, Challenge, Dialect};
use crate::attest::{Attester, Claims, Evidence, Tee};
use crate::config::Trustee;
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
    negotiation: Negotiation,
    /// Who may sign tokens; `None` leaves them opaque.
    signers: Option<Signers>,
}

/// What a broker tells everybody.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Probe {
    /// Version of the protocol that it speaks.
    pub dialect: Dialect,
    /// As [`Facts::downgraded`].
    pub downgraded: bool,
    /// Seconds that this machine's clock is behind the broker's, where it told the time.
    pub clock_behind: Option<i64>,
}

impl fmt::Debug for Client {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Client").field("base", &self.transport.base().as_str()).finish_non_exhaustive()
    }
}

impl Client {
    /// A client for the broker in `config`. Reads the CA bundle and the token signers; makes no connection.
    ///
    /// # Errors
    /// [`KbsError`] when the URL, the certificates, the requirement of https or the choice of the key algorithm does not
    /// hold.
    pub fn new(config: &Trustee) -> Result<Self, KbsError> {
        let transport = Transport::new(config)?;
        let negotiation = Negotiation::new(config)?;
        let signers = config.token_cert.as_deref().map(Signers::load).transpose()?;
        if !transport.server_authenticated() {
            tracing::warn!(
                event = "kbs.unauthenticated",
                base = transport.base().as_str(),
                "plain http: secrets stay confidential, but anybody on the way can answer in the key broker's place"
            );
        }
        Ok(Client { transport, negotiation, signers })
    }

    /// Whether the broker proves who it is. The JWE of a secret does not: anybody who saw the public key can make one.
    pub fn server_authenticated(&self) -> bool {
        self.transport.server_authenticated()
    }

    /// Ask for a challenge and leave it at that: whether a broker is there, and what it speaks. Proves nothing to anybody.
    ///
    /// # Errors
    /// [`KbsError`] of the first step.
    pub async fn probe(&self, tee: Tee) -> Result<Probe, KbsError> {
        let (offer, _) = self.challenge(tee, &Jar::new(self.transport.base())).await?;
        Ok(Probe {
            dialect: offer.dialect,
            downgraded: self.negotiation.is_downgrade(offer.dialect),
            clock_behind: self.transport.clock_behind(),
        })
    }

    /// One handshake with a fresh key pair and fresh cookies.
    ///
    /// # Errors
    /// [`KbsError`]; a refusal of the evidence is not retried here but in [`Client::release`].
    pub async fn attest(&self, attester: Arc<dyn Attester>) -> Result<Attested, KbsError> {
        let tee = attester.tee();
        let jar = Jar::new(self.transport.base());
        let (offer, challenge) = self.challenge(tee, &jar).await?;
        let nonce = challenge.nonce.clone();
        let proof =
            tokio::task::spawn_blocking(move || prove(offer, &challenge, attester.as_ref())).await??;
        let answer = self.transport.post(Step::Attest, &jar, proof.body).await?;
        let asked = Asked { offer, resource: "", claims: &proof.claims };
        let answer = answer.map_err(|refusal| asked.meaning(refusal))?;
        let at = SystemTime::now();
        let malformed = |source| KbsError::Malformed { step: Step::Attest, at, source };
        let text = Zeroizing::new(wire::parse_token(&answer).map_err(malformed)?);
        let token = token::check(&text, &nonce, proof.key.jwk(), self.signers.as_ref(), at)
            .map_err(|source| KbsError::Token { at, source })?;
        tracing::info!(
            event = "kbs.attested",
            dialect = offer.dialect.version(),
            algorithm = offer.algorithm.name(),
            tee = tee.name(),
            provider = proof.claims.provider,
            token_verified = token.verified,
            "attested"
        );
        let facts = Facts {
            dialect: offer.dialect,
            downgraded: self.negotiation.is_downgrade(offer.dialect),
            algorithm: offer.algorithm.name(),
            tee,
            claims: proof.claims,
            attested_at: at,
            expires: token.expires,
            server_authenticated: self.server_authenticated(),
            token_verified: token.verified,
            token_id: token.id.unwrap_or_else(|| format!("sha256:{}", hex::encode(Sha256::digest(&*text)))),
            policy: token.policy,
        };
        let token = Secret::copy_of(text.as_bytes())?;
        Ok(Attested { jar, key: Arc::new(proof.key), token, facts })
    }

    /// Ask for a resource with an attested session, and open it into locked memory. The bytes are the resource's,
    /// verbatim: a trailing newline stays.
    ///
    /// A session the broker does not know may live in another of its replicas, all of which take the token: it is asked
    /// once more with that.
    ///
    /// # Errors
    /// [`KbsError`]; [`KbsError::SessionLost`] when a new handshake is needed.
    pub async fn secret(&self, attested: &Attested, uri: &ResourceUri) -> Result<Secret, KbsError> {
        let lost = match self.secret_with(attested, Credential::Cookies(&attested.jar), uri).await {
            Err(error @ KbsError::SessionLost { .. }) => error,
            outcome => return outcome,
        };
        let Some(bearer) = attested.bearer(self.transport.base()) else {
            return Err(lost);
        };
        tracing::warn!(event = "kbs.bearer", error = ?lost, "session lost, asking with the token");
        match self.secret_with(attested, Credential::Bearer(&bearer), uri).await {
            // What the broker says about its own session tells the operator more.
            Err(KbsError::SessionLost { .. }) => Err(lost),
            outcome => outcome,
        }
    }

    async fn secret_with(
        &self,
        attested: &Attested,
        credential: Credential<'_>,
        uri: &ResourceUri,
    ) -> Result<Secret, KbsError> {
        let Facts { dialect, claims, .. } = &attested.facts;
        let (dialect, resource) = (*dialect, uri.to_string());
        let answer = self.transport.get_resource(credential, &uri.path_and_query()).await?;
        let offer = Offer { dialect, algorithm: attested.key.algorithm() };
        let answer =
            answer.map_err(|refusal| Asked { offer, resource: &resource, claims }.meaning(refusal))?;
        let at = SystemTime::now();
        let key = Arc::clone(&attested.key);
        let opened = tokio::task::spawn_blocking(move || Jwe::parse(&answer)?.open(&key, dialect)).await?;
        opened.map_err(|source| KbsError::Jwe { resource, at, source })
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

    /// A challenge, in the best version both sides speak.
    async fn challenge(&self, tee: Tee, jar: &Jar) -> Result<(Offer, Challenge), KbsError> {
        let first = self.negotiation.first()?;
        let refused = match self.offer(first, tee, jar).await {
            Ok(challenge) => return Ok((first, challenge)),
            Err(error) => error,
        };
        let Some(second) = self.negotiation.second(first, &refused)? else {
            return Err(refused);
        };
        match self.offer(second, tee, jar).await {
            Ok(challenge) => Ok((second, challenge)),
            // The blind second offer was wrong, so the first refusal is the one that says something.
            Err(KbsError::VersionMismatch { .. }) if matches!(refused, KbsError::AuthRefused { .. }) => {
                Err(refused)
            }
            Err(error) => Err(error),
        }
    }

    async fn offer(&self, offer: Offer, tee: Tee, jar: &Jar) -> Result<Challenge, KbsError> {
        let answer = self.transport.post(Step::Auth, jar, wire::auth_body(offer.dialect, tee)?).await?;
        let asked = Asked { offer, resource: "", claims: &Claims::default() };
        let answer = answer.map_err(|refusal| asked.meaning(refusal))?;
        let malformed = |source| KbsError::Malformed { step: Step::Auth, at: SystemTime::now(), source };
        let challenge = Challenge::parse(&answer).map_err(malformed)?;
        self.negotiation.remember(offer.dialect);
        Ok(challenge)
    }
}

/// What one handshake sends as proof, and the key pair it is bound to.
struct Proof {
    key: TeeKey,
    claims: Claims,
    body: Vec<u8>,
}

/// A fresh key pair, and evidence bound to it and to the challenge. Blocking.
fn prove(offer: Offer, challenge: &Challenge, attester: &dyn Attester) -> Result<Proof, KbsError> {
    let Offer { dialect, algorithm } = offer;
    let key = TeeKey::generate(algorithm)?;
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

/// `pause`, half to one and a half times; the middle where the system has no random numbers.
fn jittered(pause: Duration) -> Duration {
    let share = getrandom::u32().map_or(0.5, |random| f64::from(random) / f64::from(u32::MAX));
    pause.mul_f64(0.5 + share)
}
