//! Certificates: read a PEM bundle, verify a chain up to anchors, verify a signature with a certificate's key.
//!
//! Owns: the way cai checks a certificate path, which is rustls-webpki's (RFC 5280 without revocation: GPUs and brokers
//! give no revocation lists). Must not know: whose certificates they are, files, clocks (time is an argument), the
//! network. Pure, no threads, no locks. Tested below, and on NVIDIA's real chains in `tests/attest_gpu.rs`.

use std::time::{SystemTime, UNIX_EPOCH};

use aws_lc_rs::signature as alg;
use rustls::pki_types::pem::{self, PemObject as _};
use rustls::pki_types::{CertificateDer, TrustAnchor, UnixTime};
use x509_cert::der::Decode as _;
use x509_cert::der::asn1::ObjectIdentifier;

use crate::error::{ErrorClass, Fault};

/// Most certificates a chain may have; webpki itself goes no deeper than six intermediates.
const CHAIN_LIMIT: usize = 8;

/// A certificate, a chain or a signature was not accepted.
#[derive(Debug, thiserror::Error)]
pub enum PkiError {
    /// Not PEM.
    #[error("reading certificates in PEM")]
    Pem(#[source] pem::Error),
    /// PEM, but no certificate in it, or an empty chain.
    #[error("there is no certificate")]
    Empty,
    /// More certificates than any real chain has.
    #[error("the chain has {count} certificates, at most {CHAIN_LIMIT} are accepted")]
    TooLong {
        /// Certificates in the chain.
        count: usize,
    },
    /// Not an X.509 certificate.
    #[error("certificate {index} is not X.509")]
    Unreadable {
        /// Position, from 0.
        index: usize,
        /// What the parser said.
        #[source]
        source: x509_cert::der::Error,
    },
    /// An anchor that cannot be one.
    #[error("trust anchor {index} is not a certificate that can be one")]
    Anchor {
        /// Position, from 0.
        index: usize,
        /// What the verifier said.
        #[source]
        source: webpki::Error,
    },
    /// A certificate of the chain is not sound, or not issued by the next one or by an anchor.
    #[error("certificate {index} of the chain ({subject}) is not accepted")]
    Certificate {
        /// Position, from 0, the leaf.
        index: usize,
        /// Its subject.
        subject: String,
        /// What the verifier said.
        #[source]
        source: webpki::Error,
    },
    /// A signature that the key did not make over these bytes.
    #[error("the {algorithm:?} signature does not verify")]
    Signature {
        /// How it was checked.
        algorithm: Algorithm,
    },
}

impl Fault for PkiError {
    fn class(&self) -> ErrorClass {
        match self {
            PkiError::Pem(_) | PkiError::Empty | PkiError::Anchor { .. } => ErrorClass::Config,
            PkiError::TooLong { .. }
            | PkiError::Unreadable { .. }
            | PkiError::Certificate { .. }
            | PkiError::Signature { .. } => ErrorClass::Corrupt,
        }
    }

    fn code(&self) -> &'static str {
        match self {
            PkiError::Pem(_) => "pki.pem",
            PkiError::Empty => "pki.empty",
            PkiError::TooLong { .. } => "pki.too-long",
            PkiError::Unreadable { .. } => "pki.unreadable",
            PkiError::Anchor { .. } => "pki.anchor",
            PkiError::Certificate { .. } => "pki.certificate",
            PkiError::Signature { .. } => "pki.signature",
        }
    }

    fn hint(&self) -> String {
        match self {
            PkiError::Pem(_) | PkiError::Empty | PkiError::Anchor { .. } => {
                "give a PEM file with at least one certificate".into()
            }
            PkiError::TooLong { .. } | PkiError::Unreadable { .. } => {
                "whoever sent the chain is not who it should be, or it was damaged on the way".into()
            }
            PkiError::Certificate { .. } => {
                "check the clock of this machine and that the right anchor is configured; otherwise do not trust the sender"
                    .into()
            }
            PkiError::Signature { .. } => "do not trust what was signed: it was changed, or signed by another".into(),
        }
    }
}

/// Signature algorithms, by their names in JOSE (RFC 7518 section 3.1).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Algorithm {
    /// ECDSA, P-256, SHA-256; `r` and `s` of 32 bytes each, one after the other.
    Es256,
    /// ECDSA, P-384, SHA-384; `r` and `s` of 48 bytes each, one after the other. Also what a GPU signs with.
    Es384,
    /// ECDSA, P-384, SHA-384, in ASN.1 as X.509 has it.
    Es384Asn1,
    /// ECDSA, P-256, SHA-256, in ASN.1 as X.509 has it.
    Es256Asn1,
    /// ECDSA, P-521, SHA-512; `r` and `s` of 66 bytes each, one after the other.
    Es512,
    /// RSASSA-PKCS1-v1_5, SHA-256, from 2048 bits.
    Rs256,
    /// RSASSA-PKCS1-v1_5, SHA-384.
    Rs384,
    /// RSASSA-PKCS1-v1_5, SHA-512.
    Rs512,
    /// RSASSA-PSS, SHA-256.
    Ps256,
    /// RSASSA-PSS, SHA-384.
    Ps384,
    /// RSASSA-PSS, SHA-512.
    Ps512,
}

impl Algorithm {
    /// The algorithm a JOSE header names; ECDSA there is never in ASN.1. `None` for `none`, for everything symmetric and
    /// for what is not known.
    pub fn of_jose(name: &str) -> Option<Self> {
        Some(match name {
            "ES256" => Algorithm::Es256,
            "ES384" => Algorithm::Es384,
            "ES512" => Algorithm::Es512,
            "RS256" => Algorithm::Rs256,
            "RS384" => Algorithm::Rs384,
            "RS512" => Algorithm::Rs512,
            "PS256" => Algorithm::Ps256,
            "PS384" => Algorithm::Ps384,
            "PS512" => Algorithm::Ps512,
            _ => return None,
        })
    }

    fn verification(self) -> &'static dyn alg::VerificationAlgorithm {
        match self {
            Algorithm::Es256 => &alg::ECDSA_P256_SHA256_FIXED,
            Algorithm::Es384 => &alg::ECDSA_P384_SHA384_FIXED,
            Algorithm::Es512 => &alg::ECDSA_P521_SHA512_FIXED,
            Algorithm::Es256Asn1 => &alg::ECDSA_P256_SHA256_ASN1,
            Algorithm::Es384Asn1 => &alg::ECDSA_P384_SHA384_ASN1,
            Algorithm::Rs256 => &alg::RSA_PKCS1_2048_8192_SHA256,
            Algorithm::Rs384 => &alg::RSA_PKCS1_2048_8192_SHA384,
            Algorithm::Rs512 => &alg::RSA_PKCS1_2048_8192_SHA512,
            Algorithm::Ps256 => &alg::RSA_PSS_2048_8192_SHA256,
            Algorithm::Ps384 => &alg::RSA_PSS_2048_8192_SHA384,
            Algorithm::Ps512 => &alg::RSA_PSS_2048_8192_SHA512,
        }
    }
}

/// A public key: SubjectPublicKeyInfo (RFC 5280 section 4.1.2.7) in DER.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PublicKey(Vec<u8>);

impl PublicKey {
    /// A key in DER. Nothing is checked: a key that is none verifies nothing.
    pub fn from_spki(spki: Vec<u8>) -> Self {
        PublicKey(spki)
    }

    /// SubjectPublicKeyInfo, DER.
    pub fn spki(&self) -> &[u8] {
        &self.0
    }

    /// Whether `signature` is this key's over `message`.
    ///
    /// # Errors
    /// [`PkiError::Signature`], also for a key of another kind than the algorithm's.
    pub fn verify(&self, algorithm: Algorithm, message: &[u8], signature: &[u8]) -> Result<(), PkiError> {
        alg::UnparsedPublicKey::new(algorithm.verification(), &self.0)
            .verify(message, signature)
            .map_err(|_| PkiError::Signature { algorithm })
    }
}

/// Every certificate of a PEM bundle, in its order; other PEM sections are passed over.
///
/// # Errors
/// [`PkiError::Pem`] for damaged PEM, [`PkiError::Empty`] without a certificate.
pub fn certificates(pem: &[u8]) -> Result<Vec<CertificateDer<'static>>, PkiError> {
    let certificates: Vec<_> =
        CertificateDer::pem_slice_iter(pem).collect::<Result<_, _>>().map_err(PkiError::Pem)?;
    if certificates.is_empty() { Err(PkiError::Empty) } else { Ok(certificates) }
}

/// The leaf's key, if `chain` (leaf first) leads up to one of `anchors` and every certificate of the path is valid `at`
/// that time. An anchor that is itself the leaf is accepted as it stands, within its validity: a token signer is often
/// pinned that way.
///
/// Purposes (extended key usage) are not looked at: neither GPUs' nor brokers' certificates carry any.
///
/// # Errors
/// [`PkiError::Certificate`] with the first certificate that is not accepted; [`PkiError::Empty`], `TooLong`,
/// `Unreadable`, `Anchor`.
pub fn verify_chain(
    chain: &[CertificateDer<'_>],
    anchors: &[CertificateDer<'_>],
    at: SystemTime,
) -> Result<PublicKey, PkiError> {
    let leaf = chain.first().ok_or(PkiError::Empty)?;
    if chain.len() > CHAIN_LIMIT {
        return Err(PkiError::TooLong { count: chain.len() });
    }
    let at = UnixTime::since_unix_epoch(at.duration_since(UNIX_EPOCH).unwrap_or_default());
    let trusted = anchors.iter().enumerate().map(|(index, anchor)| {
        webpki::anchor_from_trusted_cert(anchor).map_err(|source| PkiError::Anchor { index, source })
    });
    let trusted = trusted.collect::<Result<Vec<_>, _>>()?;
    let checked = if anchors.contains(leaf) { within_validity(leaf, at)? } else { path(chain, &trusted, at) };
    match checked {
        Ok(()) => public_key(leaf),
        Err(source) => Err(blame(chain, at, source)),
    }
}

/// The key of a certificate, unverified.
///
/// # Errors
/// [`PkiError::Unreadable`].
pub fn public_key(certificate: &CertificateDer<'_>) -> Result<PublicKey, PkiError> {
    use x509_cert::der::Encode as _;
    let spki = parse(certificate, 0)?.tbs_certificate().subject_public_key_info().to_der();
    spki.map(PublicKey).map_err(|source| PkiError::Unreadable { index: 0, source })
}

/// Value of the extension with that object identifier; `None` where the certificate has none.
///
/// # Errors
/// [`PkiError::Unreadable`].
pub fn extension(
    certificate: &CertificateDer<'_>,
    identifier: ObjectIdentifier,
) -> Result<Option<Vec<u8>>, PkiError> {
    let parsed = parse(certificate, 0)?;
    let extensions = parsed.tbs_certificate().extensions().into_iter().flatten();
    let mut values = extensions.filter(|extension| extension.extn_id == identifier);
    Ok(values.next().map(|extension| extension.extn_value.as_bytes().to_vec()))
}

fn parse(der: &[u8], index: usize) -> Result<x509_cert::Certificate, PkiError> {
    x509_cert::Certificate::from_der(der).map_err(|source| PkiError::Unreadable { index, source })
}

/// Whether `at` lies within the validity of a certificate that needs no path.
fn within_validity(der: &[u8], at: UnixTime) -> Result<Result<(), webpki::Error>, PkiError> {
    let parsed = parse(der, 0)?;
    let validity = parsed.tbs_certificate().validity();
    let moment = |time: x509_cert::time::Time| UnixTime::since_unix_epoch(time.to_unix_duration());
    let (not_before, not_after) = (moment(validity.not_before), moment(validity.not_after));
    Ok(if at < not_before {
        Err(webpki::Error::CertNotValidYet { time: at, not_before })
    } else if at > not_after {
        Err(webpki::Error::CertExpired { time: at, not_after })
    } else {
        Ok(())
    })
}

/// Accepts every purpose, and none.
struct AnyPurpose;

impl webpki::ExtendedKeyUsageValidator for AnyPurpose {
    fn validate(&self, _purposes: webpki::KeyPurposeIdIter<'_, '_>) -> Result<(), webpki::Error> {
        Ok(())
    }
}

/// webpki's path building from the first certificate, over the others, to one of the anchors.
fn path(
    chain: &[CertificateDer<'_>],
    anchors: &[TrustAnchor<'_>],
    at: UnixTime,
) -> Result<(), webpki::Error> {
    let [leaf, intermediates @ ..] = chain else { return Err(webpki::Error::UnknownIssuer) };
    let leaf = webpki::EndEntityCert::try_from(leaf)?;
    let algorithms = webpki::ALL_VERIFICATION_ALGS;
    leaf.verify_for_usage(algorithms, anchors, intermediates, at, AnyPurpose, None, None).map(drop)
}

/// Which certificate of a chain that failed with `whole` is at fault: each is taken as the anchor of those before it, so
/// the first step that fails is the certificate just below.
fn blame(chain: &[CertificateDer<'_>], at: UnixTime, whole: webpki::Error) -> PkiError {
    let mut step = Ok(());
    let mut index = chain.len().saturating_sub(1);
    for upper in 1..chain.len() {
        let (Some(below), Some(anchor)) = (chain.get(..upper), chain.get(upper)) else { break };
        step = webpki::anchor_from_trusted_cert(anchor).and_then(|anchor| path(below, &[anchor], at));
        if step.is_err() {
            index = upper - 1;
            break;
        }
    }
    let source = step.err().unwrap_or(whole);
    match chain.get(index).map(|certificate| parse(certificate, index)) {
        Some(Err(unreadable)) => unreadable,
        Some(Ok(parsed)) => {
            let subject = parsed.tbs_certificate().subject().to_string();
            PkiError::Certificate { index, subject, source }
        }
        None => PkiError::Empty,
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use aws_lc_rs::rand::SystemRandom;
    use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair};

    use super::*;

    /// One certificate of a test chain.
    struct Link {
        params: CertificateParams,
        key: KeyPair,
        der: CertificateDer<'static>,
    }

    fn params(name: &str, ca: bool) -> CertificateParams {
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::CommonName, name);
        params.is_ca = if ca { IsCa::Ca(BasicConstraints::Unconstrained) } else { IsCa::NoCa };
        (params.not_before, params.not_after) =
            (rcgen::date_time_ymd(2024, 1, 1), rcgen::date_time_ymd(2034, 1, 1));
        params
    }

    fn root(name: &str) -> Link {
        let key = KeyPair::generate_for(&rcgen::PKCS_ECDSA_P384_SHA384).unwrap();
        let params = params(name, true);
        let der = params.self_signed(&key).unwrap().der().clone();
        Link { params, key, der }
    }

    fn issued(params: CertificateParams, by: &Link) -> Link {
        let key = KeyPair::generate_for(&rcgen::PKCS_ECDSA_P384_SHA384).unwrap();
        let issuer = Issuer::from_params(&by.params, &by.key);
        let der = params.signed_by(&key, &issuer).unwrap().der().clone();
        Link { params, key, der }
    }

    /// Leaf, intermediate, root.
    fn chain() -> [Link; 3] {
        let root = root("root");
        let middle = issued(params("middle", true), &root);
        let leaf = issued(params("leaf", false), &middle);
        [leaf, middle, root]
    }

    fn ders(links: &[Link]) -> Vec<CertificateDer<'static>> {
        links.iter().map(|link| link.der.clone()).collect()
    }

    /// The middle of the certificates' validity.
    fn now() -> SystemTime {
        UNIX_EPOCH + Duration::from_secs(1_860_000_000)
    }

    fn refused(
        chain: &[CertificateDer<'_>],
        anchors: &[CertificateDer<'_>],
    ) -> (usize, String, webpki::Error) {
        match verify_chain(chain, anchors, now()) {
            Err(PkiError::Certificate { index, subject, source }) => (index, subject, source),
            other => panic!("expected a refused certificate, got {other:?}"),
        }
    }

    #[test]
    fn chain_to_an_anchor_gives_the_leafs_key_which_verifies_what_the_leaf_signed() {
        let links = chain();
        let ders = ders(&links);
        for (chain, anchor) in [(&ders[..], &ders[2]), (&ders[..2], &ders[2]), (&ders[..1], &ders[1])] {
            let key = verify_chain(chain, std::slice::from_ref(anchor), now()).unwrap();
            assert_eq!(key, public_key(&ders[0]).unwrap());
        }
        let scheme = &alg::ECDSA_P384_SHA384_FIXED_SIGNING;
        let signer = alg::EcdsaKeyPair::from_pkcs8(scheme, &links[0].key.serialize_der()).unwrap();
        let signature = signer.sign(&SystemRandom::new(), b"message").unwrap();
        let key = public_key(&ders[0]).unwrap();
        key.verify(Algorithm::Es384, b"message", signature.as_ref()).unwrap();
        for (algorithm, message) in [
            (Algorithm::Es384, &b"massage"[..]),
            (Algorithm::Es384Asn1, b"message"),
            (Algorithm::Es256, b"message"),
            (Algorithm::Rs384, b"message"),
        ] {
            let error = key.verify(algorithm, message, signature.as_ref()).unwrap_err();
            assert_eq!(error.code(), "pki.signature", "{algorithm:?}");
        }
    }

    #[test]
    fn signatures_of_every_kind_verify_and_are_refused_by_every_other_algorithm() {
        let random = SystemRandom::new();
        let rsa = aws_lc_rs::rsa::KeyPair::generate(aws_lc_rs::rsa::KeySize::Rsa2048).unwrap();
        let rsa_key = PublicKey::from_spki({
            use aws_lc_rs::encoding::AsDer as _;
            use aws_lc_rs::signature::KeyPair as _;
            let der: aws_lc_rs::encoding::PublicKeyX509Der<'_> = rsa.public_key().as_der().unwrap();
            der.as_ref().to_vec()
        });
        let sign_rsa = |scheme: &'static dyn alg::RsaEncoding| {
            let mut signature = vec![0; rsa.public_modulus_len()];
            rsa.sign(scheme, &random, b"message", &mut signature).unwrap();
            signature
        };
        let ecdsa = |curve: &'static rcgen::SignatureAlgorithm,
                     scheme: &'static alg::EcdsaSigningAlgorithm| {
            let key = KeyPair::generate_for(curve).unwrap();
            let signer = alg::EcdsaKeyPair::from_pkcs8(scheme, &key.serialize_der()).unwrap();
            let signature = signer.sign(&random, b"message").unwrap().as_ref().to_vec();
            (PublicKey::from_spki(rcgen::PublicKeyData::subject_public_key_info(&key)), signature)
        };
        let (p256, p384) = (&rcgen::PKCS_ECDSA_P256_SHA256, &rcgen::PKCS_ECDSA_P384_SHA384);
        let p521 = &rcgen::PKCS_ECDSA_P521_SHA512;
        let ec = |algorithm, (key, signature)| (algorithm, key, signature);
        let rs = |algorithm, scheme| (algorithm, rsa_key.clone(), sign_rsa(scheme));
        let cases = [
            ec(Algorithm::Es256, ecdsa(p256, &alg::ECDSA_P256_SHA256_FIXED_SIGNING)),
            ec(Algorithm::Es256Asn1, ecdsa(p256, &alg::ECDSA_P256_SHA256_ASN1_SIGNING)),
            ec(Algorithm::Es384, ecdsa(p384, &alg::ECDSA_P384_SHA384_FIXED_SIGNING)),
            ec(Algorithm::Es384Asn1, ecdsa(p384, &alg::ECDSA_P384_SHA384_ASN1_SIGNING)),
            ec(Algorithm::Es512, ecdsa(p521, &alg::ECDSA_P521_SHA512_FIXED_SIGNING)),
            rs(Algorithm::Rs256, &alg::RSA_PKCS1_SHA256),
            rs(Algorithm::Rs384, &alg::RSA_PKCS1_SHA384),
            rs(Algorithm::Rs512, &alg::RSA_PKCS1_SHA512),
            rs(Algorithm::Ps256, &alg::RSA_PSS_SHA256),
            rs(Algorithm::Ps384, &alg::RSA_PSS_SHA384),
            rs(Algorithm::Ps512, &alg::RSA_PSS_SHA512),
        ];
        for (made_with, key, signature) in &cases {
            for (algorithm, ..) in &cases {
                let verified = key.verify(*algorithm, b"message", signature).is_ok();
                assert_eq!(verified, algorithm == made_with, "{made_with:?} checked as {algorithm:?}");
            }
        }
    }

    #[test]
    fn algorithm_of_a_jose_header_is_never_symmetric_or_none() {
        for name in ["none", "HS256", "HS384", "ES256K", "es384", "", "Es384Asn1"] {
            assert_eq!(Algorithm::of_jose(name), None, "{name}");
        }
        assert_eq!(Algorithm::of_jose("ES256"), Some(Algorithm::Es256));
        assert_eq!(Algorithm::of_jose("PS512"), Some(Algorithm::Ps512));
    }

    #[test]
    fn chain_to_a_foreign_anchor_names_its_last_certificate() {
        let (ours, theirs) = (ders(&chain()), ders(&chain()));
        let (index, subject, source) = refused(&ours[..2], &theirs[2..]);
        assert_eq!((index, subject.as_str()), (1, "CN=middle"));
        assert!(matches!(source, webpki::Error::InvalidSignatureForPublicKey), "{source:?}");
        let (index, subject, source) = refused(&ours, &[root("another").der]);
        assert_eq!((index, subject.as_str(), source), (2, "CN=root", webpki::Error::UnknownIssuer));
        assert_eq!(refused(&ours, &[]).0, 2);
    }

    #[test]
    fn certificate_with_a_flipped_bit_is_the_one_that_is_named() {
        let sound = ders(&chain());
        for flipped in 0..2 {
            let mut bytes = sound[flipped].to_vec();
            let last = bytes.len() - 1;
            bytes[last] ^= 1;
            let mut chain = sound.clone();
            chain[flipped] = bytes.into();
            let (index, _, source) = refused(&chain, &sound[2..]);
            assert_eq!((index, source), (flipped, webpki::Error::InvalidSignatureForPublicKey));
        }
    }

    #[test]
    fn certificate_outside_its_validity_is_named() {
        let root = root("root");
        let mut expired = params("middle", true);
        expired.not_after = rcgen::date_time_ymd(2025, 1, 1);
        let middle = issued(expired, &root);
        let leaf = issued(params("leaf", false), &middle);
        let chain = [leaf.der, middle.der];
        let (index, subject, source) = refused(&chain, std::slice::from_ref(&root.der));
        assert_eq!((index, subject.as_str()), (1, "CN=middle"));
        assert!(matches!(source, webpki::Error::CertExpired { .. }), "{source:?}");
        let early = verify_chain(&chain, &[root.der], UNIX_EPOCH).unwrap_err();
        assert!(
            matches!(
                &early,
                PkiError::Certificate { index: 0, source: webpki::Error::CertNotValidYet { .. }, .. }
            ),
            "{early:?}"
        );
    }

    #[test]
    fn certificate_that_may_not_issue_is_named() {
        let root = root("root");
        let middle = issued(params("middle", false), &root);
        let leaf = issued(params("leaf", false), &middle);
        let (index, _, source) = refused(&[leaf.der, middle.der], &[root.der]);
        assert_eq!((index, source), (1, webpki::Error::EndEntityUsedAsCa));
    }

    #[test]
    fn leaf_pinned_as_the_anchor_is_accepted_within_its_validity_only() {
        let own = root("token signer").der;
        let anchors = [own.clone()];
        assert_eq!(verify_chain(&anchors, &anchors, now()).unwrap(), public_key(&own).unwrap());
        let late = now() + Duration::from_secs(10 * 365 * 86400);
        for (at, early) in [(UNIX_EPOCH, true), (late, false)] {
            let error = verify_chain(&anchors, &anchors, at).unwrap_err();
            let PkiError::Certificate { index: 0, source, .. } = &error else { panic!("{error:?}") };
            assert_eq!(matches!(source, webpki::Error::CertNotValidYet { .. }), early);
            assert_eq!(matches!(source, webpki::Error::CertExpired { .. }), !early);
        }
    }

    #[test]
    fn bundle_gives_every_certificate_and_damage_is_an_error() {
        let links = chain();
        let pem = |der: &CertificateDer<'_>| {
            use base64::Engine as _;
            let text = base64::engine::general_purpose::STANDARD.encode(der);
            format!("-----BEGIN CERTIFICATE-----\n{text}\n-----END CERTIFICATE-----\n")
        };
        let ders = ders(&links);
        let bundle: String =
            ders.iter().map(pem).chain([links[0].key.serialize_pem(), "after".into()]).collect();
        assert_eq!(certificates(bundle.as_bytes()).unwrap(), ders);
        assert!(matches!(certificates(b"no certificate"), Err(PkiError::Empty)));
        assert!(matches!(certificates(&bundle.as_bytes()[..100]), Err(PkiError::Pem(_))));
        assert!(matches!(verify_chain(&[], &ders, now()), Err(PkiError::Empty)));
        let long = vec![ders[0].clone(); CHAIN_LIMIT + 1];
        assert!(matches!(verify_chain(&long, &ders[2..], now()), Err(PkiError::TooLong { count: 9 })));
        let garbage = CertificateDer::from(vec![0x30, 0x82, 0xff, 0xff, 0]);
        let chain = [ders[0].clone(), garbage.clone()];
        assert!(matches!(
            verify_chain(&chain, &ders[2..], now()),
            Err(PkiError::Unreadable { index: 1, .. } | PkiError::Certificate { index: 0, .. })
        ));
        assert!(matches!(verify_chain(&ders, &[garbage], now()), Err(PkiError::Anchor { index: 0, .. })));
    }

    #[test]
    fn extension_is_found_by_its_identifier() {
        let mut params = params("leaf", false);
        params
            .custom_extensions
            .push(rcgen::CustomExtension::from_oid_content(&[2, 23, 133, 5, 4, 1], vec![4, 1, 7]));
        let leaf = issued(params, &root("root")).der;
        let identifier = ObjectIdentifier::new_unwrap("2.23.133.5.4.1");
        assert_eq!(extension(&leaf, identifier).unwrap(), Some(vec![4, 1, 7]));
        assert_eq!(extension(&leaf, ObjectIdentifier::new_unwrap("2.23.133.5.4.9")).unwrap(), None);
    }

    proptest::proptest! {
        #[test]
        fn any_bytes_are_a_certificate_or_refused(bytes in proptest::collection::vec(proptest::prelude::any::<u8>(), 0..256)) {
            let der = CertificateDer::from(bytes);
            proptest::prop_assert!(public_key(&der).is_err());
            proptest::prop_assert!(verify_chain(&[der.clone(), der.clone()], &[], now()).is_err());
            let _ = certificates(&der);
        }
    }
}
