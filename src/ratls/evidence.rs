//! The evidence inside the certificate: a CBOR blob, and the runtime data that ties it to the certificate's key.
//!
//! Source: tng.md sections 4.2 to 4.4.

use std::collections::BTreeMap;

use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use serde_json::{Map, Value};
use sha2::{Digest as _, Sha256, Sha384};

use super::Format;
use super::cbor::{CborError, Reader, Writer};
use crate::attest::Digest;
use crate::error::{ErrorClass, Fault};

/// Tag of evidence that comes from an attestation agent.
const EVIDENCE_TAG: u64 = 0xC0_C000;
/// Tag of a token of the attestation service, which no TNG shows unless it is told to.
const TOKEN_TAG: u64 = 0xC0_C001;

/// Longest blob that is read, in bytes. A TDX quote with its event log is 100 KB, the evidence of eight GPUs 1 MB.
pub const BLOB_LIMIT: usize = 4 << 20;

/// Longest runtime data that is read, in bytes: a handful of hashes.
const RUNTIME_DATA_LIMIT: usize = 64 << 10;

/// SHA-256 among the hash algorithms of the key's hash (IANA named information).
const SHA_256: u64 = 1;

/// The one claim of a claims buffer that binds, and the member of the runtime data that took its place.
const PUBKEY_HASH: &str = "pubkey-hash";

/// The one member of the runtime data of the legacy format.
const RAW_RUNTIME_DATA: &str = "rats-rs.raw_runtime_data";

/// Evidence of another machine is not what it should be.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum EvidenceError {
    /// More than any evidence needs.
    #[error("the evidence is {len} bytes, at most {limit} are read")]
    TooLong {
        /// Length in bytes.
        len: usize,
        /// Most that is read.
        limit: usize,
    },
    /// A token of an attestation service in place of the evidence.
    #[error("the certificate carries a token of an attestation service, not evidence")]
    Token,
    /// Neither evidence nor token.
    #[error("the certificate carries CBOR tag {tag:#x}, expected {EVIDENCE_TAG:#x} (evidence)")]
    Tag {
        /// The tag.
        tag: u64,
    },
    /// Not the CBOR it should be.
    #[error("reading the {part}")]
    Form {
        /// `evidence` or `claims buffer`.
        part: &'static str,
        /// Where it is none.
        #[source]
        source: CborError,
    },
    /// A member that must be there.
    #[error("the {part} has no {name}")]
    Missing {
        /// `evidence`, `claims buffer` or `runtime data`.
        part: &'static str,
        /// The member.
        name: &'static str,
    },
    /// A member that is there twice.
    #[error("the {part} has {name} twice")]
    Twice {
        /// `evidence` or `claims buffer`.
        part: &'static str,
        /// The member.
        name: &'static str,
    },
    /// A hash algorithm that no TNG uses.
    #[error("hash algorithm {id} of the {part} is not known")]
    HashAlgorithm {
        /// `evidence` or `key`.
        part: &'static str,
        /// Its number in the IANA registry of named information.
        id: u64,
    },
    /// The runtime data is not a JSON object.
    #[error("the runtime data is not a JSON object")]
    RuntimeData,
    /// The evidence speaks of another key than the certificate's.
    #[error("the {part} does not bind the certificate's key")]
    Unbound {
        /// `claims buffer` or `runtime data`.
        part: &'static str,
    },
}

impl Fault for EvidenceError {
    fn class(&self) -> ErrorClass {
        match self {
            EvidenceError::TooLong { .. }
            | EvidenceError::Token
            | EvidenceError::Tag { .. }
            | EvidenceError::Form { .. }
            | EvidenceError::Missing { .. }
            | EvidenceError::Twice { .. }
            | EvidenceError::HashAlgorithm { .. }
            | EvidenceError::RuntimeData
            | EvidenceError::Unbound { .. } => ErrorClass::Corrupt,
        }
    }

    fn code(&self) -> &'static str {
        match self {
            EvidenceError::TooLong { .. } => "evidence.too-long",
            EvidenceError::Token => "evidence.token",
            EvidenceError::Tag { .. } => "evidence.tag",
            EvidenceError::Form { .. } => "evidence.form",
            EvidenceError::Missing { .. } => "evidence.missing",
            EvidenceError::Twice { .. } => "evidence.twice",
            EvidenceError::HashAlgorithm { .. } => "evidence.hash-algorithm",
            EvidenceError::RuntimeData => "evidence.runtime-data",
            EvidenceError::Unbound { .. } => "evidence.unbound",
        }
    }

    fn hint(&self) -> String {
        match self {
            EvidenceError::Token => {
                "the peer is set up for the passport model; let it send evidence (TNG: attest without as_addr)".into()
            }
            EvidenceError::TooLong { .. }
            | EvidenceError::Tag { .. }
            | EvidenceError::Form { .. }
            | EvidenceError::Missing { .. }
            | EvidenceError::Twice { .. }
            | EvidenceError::HashAlgorithm { .. }
            | EvidenceError::RuntimeData => "is the peer cai, or TNG 2.0 or newer? otherwise do not trust it".into(),
            EvidenceError::Unbound { .. } => {
                "do not trust the peer: the evidence was made for another key, perhaps of another machine".into()
            }
        }
    }
}

/// What the runtime data was hashed with before the TEE signed it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum HashAlgorithm {
    /// SHA-256.
    Sha256,
    /// SHA-384; what everybody uses.
    Sha384,
    /// SHA-512.
    Sha512,
}

impl HashAlgorithm {
    /// Number in the IANA registry of named information.
    const fn id(self) -> u64 {
        match self {
            HashAlgorithm::Sha256 => 1,
            HashAlgorithm::Sha384 => 7,
            HashAlgorithm::Sha512 => 8,
        }
    }

    const fn of_id(id: u64) -> Option<Self> {
        match id {
            1 => Some(HashAlgorithm::Sha256),
            7 => Some(HashAlgorithm::Sha384),
            8 => Some(HashAlgorithm::Sha512),
            _ => None,
        }
    }

    /// Name in a request to the attestation service: `sha384`.
    pub const fn name(self) -> &'static str {
        match self {
            HashAlgorithm::Sha256 => "sha256",
            HashAlgorithm::Sha384 => "sha384",
            HashAlgorithm::Sha512 => "sha512",
        }
    }
}

/// Evidence and what it is bound to, as the certificate carries it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TaggedEvidence {
    /// Name of the TEE: `tdx`, `sample`.
    pub tee: String,
    /// Primary evidence: the JSON object that Trustee's verifier reads.
    pub evidence: Vec<u8>,
    /// Evidence of the devices beside the TEE, a JSON object by device; the legacy format has none.
    pub additional: Option<Vec<u8>>,
    /// JSON whose hash is in the evidence.
    pub runtime_data: String,
    /// What it was hashed with.
    pub hash: HashAlgorithm,
    /// The legacy format's claims buffer; empty in the current one.
    pub claims: Vec<u8>,
}

impl TaggedEvidence {
    /// The legacy format is the one with a claims buffer.
    pub fn format(&self) -> Format {
        if self.claims.is_empty() { Format::Current } else { Format::Legacy }
    }

    /// The blob.
    pub fn encode(&self) -> Vec<u8> {
        let current = self.format() == Format::Current;
        let mut inner = Writer::default();
        inner.map(if current { 5 } else { 4 });
        inner.text("tee_type");
        inner.text(&self.tee);
        inner.text("aa_evidence");
        inner.bytes(&self.evidence);
        if current {
            inner.text("aa_additional_evidence");
            match &self.additional {
                Some(additional) => inner.bytes(additional),
                None => inner.null(),
            }
        }
        inner.text("aa_runtime_data");
        inner.text(&self.runtime_data);
        inner.text("aa_runtime_data_hash_algo");
        inner.uint(self.hash.id());
        let mut blob = Writer::default();
        blob.tag(EVIDENCE_TAG);
        blob.array(2);
        blob.bytes(&inner.0);
        blob.bytes(&self.claims);
        blob.0
    }

    /// Read a blob. Members that are not known are passed over, as TNG does.
    ///
    /// # Errors
    /// [`EvidenceError`] for everything that no TNG writes. Whether it binds a key is asked with
    /// [`TaggedEvidence::bound`].
    pub fn decode(blob: &[u8]) -> Result<Self, EvidenceError> {
        if blob.len() > BLOB_LIMIT {
            return Err(EvidenceError::TooLong { len: blob.len(), limit: BLOB_LIMIT });
        }
        let form = |source| EvidenceError::Form { part: "evidence", source };
        let mut outer = Reader::new(blob);
        match outer.tag().map_err(form)? {
            EVIDENCE_TAG => {}
            TOKEN_TAG => return Err(EvidenceError::Token),
            tag => return Err(EvidenceError::Tag { tag }),
        }
        let start = outer;
        if outer.array() != Ok(2) {
            return start.expected("an array of two").map_err(form);
        }
        let inner = outer.bytes().map_err(form)?;
        let claims = outer.bytes().map_err(form)?.to_vec();
        outer.end().map_err(form)?;
        Self::decode_inner(inner, claims)
    }

    fn decode_inner(inner: &[u8], claims: Vec<u8>) -> Result<Self, EvidenceError> {
        let form = |source| EvidenceError::Form { part: "evidence", source };
        let mut members = Members::of(inner).map_err(form)?;
        let (mut tee, mut evidence, mut additional, mut runtime_data, mut hash) =
            (None, None, None, None, None);
        while let Some(name) = members.next().map_err(form)? {
            let reader = &mut members.reader;
            let again = match name {
                "tee_type" => tee.replace(reader.text().map_err(form)?).map(|_| "tee_type"),
                "aa_evidence" => evidence.replace(reader.bytes().map_err(form)?).map(|_| "aa_evidence"),
                "aa_additional_evidence" => {
                    let value = if reader.null() { None } else { Some(reader.bytes().map_err(form)?) };
                    additional.replace(value).map(|_| "aa_additional_evidence")
                }
                "aa_runtime_data" => {
                    runtime_data.replace(reader.text().map_err(form)?).map(|_| "aa_runtime_data")
                }
                "aa_runtime_data_hash_algo" => {
                    hash.replace(reader.uint().map_err(form)?).map(|_| "aa_runtime_data_hash_algo")
                }
                _ => {
                    reader.skip().map_err(form)?;
                    None
                }
            };
            if let Some(name) = again {
                return Err(EvidenceError::Twice { part: "evidence", name });
            }
        }
        members.reader.end().map_err(form)?;
        let missing = |name| EvidenceError::Missing { part: "evidence", name };
        let id = hash.ok_or_else(|| missing("aa_runtime_data_hash_algo"))?;
        Ok(TaggedEvidence {
            tee: tee.ok_or_else(|| missing("tee_type"))?.to_owned(),
            evidence: evidence.ok_or_else(|| missing("aa_evidence"))?.to_vec(),
            additional: additional.flatten().map(<[u8]>::to_vec),
            runtime_data: runtime_data.ok_or_else(|| missing("aa_runtime_data"))?.to_owned(),
            hash: HashAlgorithm::of_id(id).ok_or(EvidenceError::HashAlgorithm { part: "evidence", id })?,
            claims,
        })
    }

    /// The runtime data as the JSON object it is, if it binds the key with that SubjectPublicKeyInfo (DER).
    ///
    /// What the evidence itself is bound to, only its verifier can tell: the same object must come back in its token.
    ///
    /// # Errors
    /// [`EvidenceError::Unbound`] for another key, other variants for what cannot be read.
    pub fn bound(&self, spki: &[u8]) -> Result<Map<String, Value>, EvidenceError> {
        let len = self.runtime_data.len();
        if len > RUNTIME_DATA_LIMIT {
            return Err(EvidenceError::TooLong { len, limit: RUNTIME_DATA_LIMIT });
        }
        let Ok(Value::Object(object)) = serde_json::from_str(&self.runtime_data) else {
            return Err(EvidenceError::RuntimeData);
        };
        let unbound = EvidenceError::Unbound { part: "runtime data" };
        match self.format() {
            Format::Legacy => {
                claims_bind(&self.claims, spki)?;
                if self.runtime_data != legacy_runtime_data(&self.claims) {
                    return Err(unbound);
                }
            }
            Format::Current => {
                let Some(value) = object.get(PUBKEY_HASH) else {
                    return Err(EvidenceError::Missing { part: "runtime data", name: PUBKEY_HASH });
                };
                if *value != Value::String(STANDARD.encode(pubkey_hash(spki))) {
                    return Err(unbound);
                }
            }
        }
        Ok(object)
    }
}

/// The members of a CBOR map, one after the other: a name, then the caller reads the value.
struct Members<'a> {
    reader: Reader<'a>,
    left: u64,
}

impl<'a> Members<'a> {
    fn of(bytes: &'a [u8]) -> Result<Self, CborError> {
        let mut reader = Reader::new(bytes);
        let left = reader.map()?;
        Ok(Members { reader, left })
    }

    fn next(&mut self) -> Result<Option<&'a str>, CborError> {
        match self.left.checked_sub(1) {
            Some(left) => {
                self.left = left;
                self.reader.text().map(Some)
            }
            None => Ok(None),
        }
    }
}

/// Hash of a public key, as it stands in claims and runtime data: CBOR of the algorithm and SHA-256 over the
/// SubjectPublicKeyInfo in DER.
fn pubkey_hash(spki: &[u8]) -> Vec<u8> {
    let mut writer = Writer::default();
    writer.array(2);
    writer.uint(SHA_256);
    writer.bytes(&Sha256::digest(spki));
    writer.0
}

/// The claims buffer of the legacy format, for the key with that SubjectPublicKeyInfo (DER).
pub fn claims_buffer(spki: &[u8]) -> Vec<u8> {
    let mut writer = Writer::default();
    writer.map(1);
    writer.text(PUBKEY_HASH);
    writer.bytes(&pubkey_hash(spki));
    writer.0
}

/// That a claims buffer binds a key. Other claims may stand beside it.
fn claims_bind(claims: &[u8], spki: &[u8]) -> Result<(), EvidenceError> {
    let form = |source| EvidenceError::Form { part: "claims buffer", source };
    let mut members = Members::of(claims).map_err(form)?;
    let mut found = None;
    while let Some(name) = members.next().map_err(form)? {
        let value = members.reader.bytes().map_err(form)?;
        if name == PUBKEY_HASH && found.replace(value).is_some() {
            return Err(EvidenceError::Twice { part: "claims buffer", name: PUBKEY_HASH });
        }
    }
    members.reader.end().map_err(form)?;
    let hash = found.ok_or(EvidenceError::Missing { part: "claims buffer", name: PUBKEY_HASH })?;
    let mut reader = Reader::new(hash);
    let id = reader.array().and_then(|_| reader.uint()).map_err(form)?;
    if id != SHA_256 {
        return Err(EvidenceError::HashAlgorithm { part: "key", id });
    }
    if hash == pubkey_hash(spki) { Ok(()) } else { Err(EvidenceError::Unbound { part: "claims buffer" }) }
}

/// The runtime data of the legacy format, for a claims buffer.
pub fn legacy_runtime_data(claims: &[u8]) -> String {
    // Base64 needs no escapes in JSON.
    format!(r#"{{"{RAW_RUNTIME_DATA}":"{}"}}"#, URL_SAFE_NO_PAD.encode(Sha256::digest(claims)))
}

/// The runtime data of the current format, for the key with that SubjectPublicKeyInfo (DER), with `more` beside it, in
/// canonical JSON (RFC 8785). Names and values of `more` are ASCII; one named `pubkey-hash` would be overruled.
pub fn current_runtime_data(spki: &[u8], more: &BTreeMap<String, String>) -> String {
    // The order of ASCII names is the same in bytes and in the UTF-16 of RFC 8785, and serde_json escapes as it says.
    let mut members: BTreeMap<&str, &str> = more.iter().map(|(name, value)| (&**name, &**value)).collect();
    let hash = STANDARD.encode(pubkey_hash(spki));
    members.insert(PUBKEY_HASH, &hash);
    Value::from_iter(members).to_string()
}

/// What the TEE is given to sign for that runtime data.
pub fn digest(runtime_data: &str) -> Digest {
    Digest(Sha384::digest(runtime_data).into())
}

#[cfg(test)]
mod tests;
