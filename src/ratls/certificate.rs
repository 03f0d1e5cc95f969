//! The certificate around the evidence: made for our own key, read from another machine.
//!
//! Nobody checks its name, its validity and its issuer: what it proves is in the evidence. Source: tng.md sections 3.2, 4.1.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use aws_lc_rs::encoding::{AsDer as _, EcPrivateKeyRfc5915Der, PublicKeyX509Der};
use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::signature::{ECDSA_P256_SHA256_ASN1_SIGNING, EcdsaKeyPair, KeyPair as _};
use sha2::{Digest as _, Sha256};
use x509_cert::certificate::Version;
use x509_cert::der::asn1::{Any, BitString, ObjectIdentifier, OctetString, UtcTime};
use x509_cert::der::{Decode as _, Encode as _, Tag, TagNumber};
use x509_cert::ext::Extension;
use x509_cert::name::Name;
use x509_cert::time::{Time, Validity};

use crate::error::{ErrorClass, Fault};
use crate::pki::{Algorithm, PublicKey};

/// How long a certificate says it is valid; what TNG writes.
pub const VALIDITY: Duration = Duration::from_secs(6 * 60 * 60);

/// Longest certificate that is read, in bytes: the longest evidence and the little around it.
pub const CERTIFICATE_LIMIT: usize = super::evidence::BLOB_LIMIT + (64 << 10);

/// Subject and issuer, as TNG writes them.
const NAME: &str = "CN=TNG,O=Inclavare Containers";
/// Serial number, as TNG writes it. No issuer here issues two certificates for one key.
const SERIAL: u8 = 42;

/// TCG DICE tagged evidence.
const TAGGED_EVIDENCE: ObjectIdentifier = ObjectIdentifier::new_unwrap("2.23.133.5.4.9");
/// TCG DICE endorsement manifest: there and empty.
const ENDORSEMENTS: ObjectIdentifier = ObjectIdentifier::new_unwrap("2.23.133.5.4.2");
const SUBJECT_KEY_ID: ObjectIdentifier = ObjectIdentifier::new_unwrap("2.5.29.14");
const KEY_USAGE: ObjectIdentifier = ObjectIdentifier::new_unwrap("2.5.29.15");
const BASIC_CONSTRAINTS: ObjectIdentifier = ObjectIdentifier::new_unwrap("2.5.29.19");
const AUTHORITY_KEY_ID: ObjectIdentifier = ObjectIdentifier::new_unwrap("2.5.29.35");
const ECDSA_WITH_SHA256: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.2.840.10045.4.3.2");

/// KeyUsage of digitalSignature, nonRepudiation, keyEncipherment and keyAgreement (RFC 5280 section 4.2.1.3).
const KEY_USAGE_VALUE: [u8; 4] = [3, 2, 3, 0b1110_1000];
/// BasicConstraints of a certificate that issues none: an empty SEQUENCE.
const NO_AUTHORITY: [u8; 2] = [0x30, 0];
/// Most extensions of a certificate that is read. Peers write six; each is compared with all the others.
const EXTENSIONS_LIMIT: usize = 32;
/// Length of a key identifier in bytes (RFC 7093 section 2, method 1).
const KEY_ID_LEN: usize = 20;

/// An evidence certificate could not be made, or is none.
#[derive(Debug, thiserror::Error)]
pub enum CertificateError {
    /// The key could not be made or used.
    #[error("the cryptographic library could not {act}")]
    Library {
        /// `make a key`, `sign`.
        act: &'static str,
    },
    /// Our own certificate cannot be written.
    #[error("writing the certificate")]
    Write(#[source] x509_cert::der::Error),
    /// More than any evidence needs.
    #[error("the certificate is {len} bytes, at most {CERTIFICATE_LIMIT} are read")]
    TooLong {
        /// Length in bytes.
        len: usize,
    },
    /// Not X.509.
    #[error("the certificate is not X.509 in DER")]
    Read(#[source] x509_cert::der::Error),
    /// X.509, but not as an evidence certificate is.
    #[error("the certificate {flaw}")]
    Shape {
        /// What is wrong with it.
        flaw: &'static str,
    },
}

impl Fault for CertificateError {
    fn class(&self) -> ErrorClass {
        match self {
            CertificateError::Library { .. } | CertificateError::Write(_) => ErrorClass::Internal,
            CertificateError::TooLong { .. } | CertificateError::Read(_) | CertificateError::Shape { .. } => {
                ErrorClass::Corrupt
            }
        }
    }

    fn code(&self) -> &'static str {
        match self {
            CertificateError::Library { .. } => "certificate.library",
            CertificateError::Write(_) => "certificate.write",
            CertificateError::TooLong { .. } => "certificate.too-long",
            CertificateError::Read(_) => "certificate.read",
            CertificateError::Shape { .. } => "certificate.shape",
        }
    }

    fn hint(&self) -> String {
        match self {
            CertificateError::Library { .. } | CertificateError::Write(_) => {
                "this is a defect: please report it with the journal".into()
            }
            CertificateError::TooLong { .. } | CertificateError::Read(_) | CertificateError::Shape { .. } => {
                "the peer does not attest itself as cai and TNG do: is it the right host and port?".into()
            }
        }
    }
}

/// A P-256 key that lives in the memory of the cryptographic library, which wipes it, and nowhere else but in OpenSSL's where
/// that speaks TLS.
#[derive(Debug, Clone)]
pub struct Key(Arc<EcdsaKeyPair>);

impl Key {
    /// A new one.
    ///
    /// # Errors
    /// [`CertificateError::Library`].
    pub fn generate() -> Result<Self, CertificateError> {
        EcdsaKeyPair::generate(&ECDSA_P256_SHA256_ASN1_SIGNING)
            .map(|pair| Key(Arc::new(pair)))
            .map_err(|_| CertificateError::Library { act: "make a key" })
    }

    /// SubjectPublicKeyInfo in DER.
    ///
    /// # Errors
    /// [`CertificateError::Library`].
    pub fn spki(&self) -> Result<Vec<u8>, CertificateError> {
        let der: Result<PublicKeyX509Der<'_>, _> = self.0.public_key().as_der();
        der.map(|der| der.as_ref().to_vec()).map_err(|_| CertificateError::Library { act: "write a key" })
    }

    /// The private key (RFC 5915) for OpenSSL, in memory that is wiped.
    ///
    /// # Errors
    /// [`CertificateError::Library`].
    pub(super) fn private(&self) -> Result<EcPrivateKeyRfc5915Der<'static>, CertificateError> {
        let der = self.0.private_key().as_der();
        der.map_err(|_| CertificateError::Library { act: "hand a key over" })
    }

    /// ECDSA with SHA-256 over `message`, in ASN.1.
    ///
    /// # Errors
    /// [`CertificateError::Library`].
    pub fn sign(&self, message: &[u8]) -> Result<Vec<u8>, CertificateError> {
        self.0
            .sign(&SystemRandom::new(), message)
            .map(|signature| signature.as_ref().to_vec())
            .map_err(|_| CertificateError::Library { act: "sign" })
    }
}

/// The certificate for `key` that carries the evidence `blob`, in DER, valid from `now` on.
///
/// # Errors
/// [`CertificateError::Write`] for a time before 1970 and for a blob of more than 256 MiB, [`CertificateError::Library`].
pub fn issue(key: &Key, blob: &[u8], now: SystemTime) -> Result<Vec<u8>, CertificateError> {
    let spki = key.spki()?;
    let body = body(&spki, blob, now).map_err(CertificateError::Write)?;
    let signature = key.sign(&body)?;
    let whole = || {
        let signature = BitString::from_bytes(&signature)?.to_der()?;
        sequence(&[&body, &signature_algorithm()?, &signature])
    };
    whole().map_err(CertificateError::Write)
}

type Der = Result<Vec<u8>, x509_cert::der::Error>;

/// TBSCertificate (RFC 5280 section 4.1).
fn body(spki: &[u8], blob: &[u8], now: SystemTime) -> Der {
    let name: Name = NAME.parse()?;
    let name = name.to_der()?;
    let version = tagged(0, &2u8.to_der()?)?;
    let validity: Validity = Validity::new(time(now)?, time(now + VALIDITY)?);
    let extensions = tagged(3, &extensions(spki, blob)?.to_der()?)?;
    sequence(&[
        &version,
        &SERIAL.to_der()?,
        &signature_algorithm()?,
        &name,
        &validity.to_der()?,
        &name,
        spki,
        &extensions,
    ])
}

fn extensions(spki: &[u8], blob: &[u8]) -> Result<Vec<Extension>, x509_cert::der::Error> {
    let extension = |extn_id, critical, value: &[u8]| {
        OctetString::new(value).map(|extn_value| Extension { extn_id, critical, extn_value })
    };
    let digest = Sha256::digest(spki);
    let id = digest.get(..KEY_ID_LEN).unwrap_or_default();
    // [0] IMPLICIT keyIdentifier is the identifier without its own tag.
    let authority = sequence(&[&Any::new(context(0, false), id)?.to_der()?])?;
    Ok(vec![
        extension(SUBJECT_KEY_ID, false, &OctetString::new(id)?.to_der()?)?,
        extension(AUTHORITY_KEY_ID, false, &authority)?,
        extension(BASIC_CONSTRAINTS, true, &NO_AUTHORITY)?,
        extension(KEY_USAGE, true, &KEY_USAGE_VALUE)?,
        extension(TAGGED_EVIDENCE, false, blob)?,
        extension(ENDORSEMENTS, false, &[])?,
    ])
}

fn signature_algorithm() -> Der {
    sequence(&[&ECDSA_WITH_SHA256.to_der()?])
}

/// A time as RFC 5280 wants it: two digits of the year through 2049.
fn time(time: SystemTime) -> Result<Time, x509_cert::der::Error> {
    match UtcTime::from_system_time(time) {
        Ok(utc) => Ok(Time::UtcTime(utc)),
        Err(_) => Time::try_from(time),
    }
}

fn sequence(parts: &[&[u8]]) -> Der {
    Any::new(Tag::Sequence, parts.concat())?.to_der()
}

const fn context(number: u32, constructed: bool) -> Tag {
    Tag::ContextSpecific { constructed, number: TagNumber(number) }
}

/// `content` under an explicit tag.
fn tagged(number: u32, content: &[u8]) -> Der {
    Any::new(context(number, true), content)?.to_der()
}

/// What an evidence certificate says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EvidenceCertificate {
    /// Its key.
    pub key: PublicKey,
    /// The evidence, for [`TaggedEvidence::decode`](super::evidence::TaggedEvidence::decode).
    pub blob: Vec<u8>,
}

/// Read a certificate that is to carry evidence: strict DER, X.509 v3, signed by itself with ECDSA P-256, one evidence
/// extension. Whether the evidence is good and binds the key is not asked here.
///
/// # Errors
/// [`CertificateError::TooLong`], [`CertificateError::Read`], [`CertificateError::Shape`] with the first flaw.
pub fn parse(der: &[u8]) -> Result<EvidenceCertificate, CertificateError> {
    if der.len() > CERTIFICATE_LIMIT {
        return Err(CertificateError::TooLong { len: der.len() });
    }
    let certificate = x509_cert::Certificate::from_der(der).map_err(CertificateError::Read)?;
    let shape = |flaw| Err(CertificateError::Shape { flaw });
    // One encoding only: what is hashed and signed below is what was sent.
    if certificate.to_der().map_err(CertificateError::Read)? != der {
        return shape("is not strict DER");
    }
    let body = certificate.tbs_certificate();
    if body.version() != Version::V3 {
        return shape("is not X.509 version 3");
    }
    if body.subject() != body.issuer() {
        return shape("is not its own issuer");
    }
    let algorithms = [body.signature(), certificate.signature_algorithm()];
    if algorithms.iter().any(|algorithm| algorithm.oid != ECDSA_WITH_SHA256 || algorithm.parameters.is_some())
    {
        return shape("is not signed with ECDSA and SHA-256");
    }
    let blob = match evidence_of(body.extensions().map_or(&[], Vec::as_slice)) {
        Ok(blob) => blob.to_vec(),
        Err(flaw) => return shape(flaw),
    };
    let spki = body.subject_public_key_info().to_der().map_err(CertificateError::Read)?;
    let key = PublicKey::from_spki(spki);
    let signed = body.to_der().map_err(CertificateError::Read)?;
    let signature = certificate.signature().as_bytes().unwrap_or_default();
    if key.verify(Algorithm::Es256Asn1, &signed, signature).is_err() {
        return shape("is not signed with its own key");
    }
    Ok(EvidenceCertificate { key, blob })
}

/// The value of the one evidence extension; what is wrong with the extensions otherwise.
fn evidence_of(extensions: &[Extension]) -> Result<&[u8], &'static str> {
    if extensions.len() > EXTENSIONS_LIMIT {
        return Err("has more than 32 extensions");
    }
    let mut found = None;
    for (index, extension) in extensions.iter().enumerate() {
        let id = extension.extn_id;
        if extensions.iter().take(index).any(|other| other.extn_id == id) {
            return Err("has an extension twice");
        }
        if id == TAGGED_EVIDENCE {
            found = Some(extension.extn_value.as_bytes());
        } else if extension.critical && ![BASIC_CONSTRAINTS, KEY_USAGE].contains(&id) {
            return Err("has a critical extension that is not known");
        }
    }
    found.ok_or("carries no evidence (extension 2.23.133.5.4.9)")
}

#[cfg(test)]
mod tests;
