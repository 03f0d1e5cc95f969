//! The broker's messages, as bytes: what is sent, what is hashed, what is accepted.
//!
//! The hashed objects are structs with alphabetically declared fields, so their serialisation is canonical (RFC 8785)
//! whatever features other crates switch on in `serde_json`; a `json!` map would not be.
//!
//! Source: kbs.md sections 2 and 3.

use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use sha2::{Digest as _, Sha384};

use crate::attest::{Digest, Tee, Verifier};
pub(super) use crate::text::{decode_base64, decode_base64_into, encode_base64url};

/// Challenge nonces have at least this many bytes (kbs.md section 13, item 4).
const MIN_NONCE_BYTES: usize = 32;

/// Longest nonce text accepted: the known servers send 44 characters.
const MAX_NONCE_TEXT: usize = 1024;

/// Versions of the protocol that cai speaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Dialect {
    /// RSA1_5, JWE without associated data. Alibaba Trustee up to v1.5.2, upstream up to v0.9.
    V0_1_0,
    /// As 0.1.0, with evidence as an object. Upstream v0.10 and v0.11.
    V0_1_1,
    /// As 0.1.1, with an RFC 7516 JWE and its algorithms. Upstream v0.12 and v0.13.
    V0_2_0,
    /// As 0.2.0, with the nonce in the attest body and evidence of devices. Alibaba Trustee from v1.6.0, upstream from v0.14.
    V0_4_0,
}

impl Dialect {
    /// Every dialect, oldest first.
    pub const ALL: [Dialect; 4] = [Dialect::V0_1_0, Dialect::V0_1_1, Dialect::V0_2_0, Dialect::V0_4_0];

    /// The best: offered first where the operator has not pinned one.
    pub const NEWEST: Dialect = Dialect::V0_4_0;

    /// Version string on the wire.
    pub const fn version(self) -> &'static str {
        match self {
            Dialect::V0_1_0 => "0.1.0",
            Dialect::V0_1_1 => "0.1.1",
            Dialect::V0_2_0 => "0.2.0",
            Dialect::V0_4_0 => "0.4.0",
        }
    }

    /// The dialect of a version string, if it is one of ours.
    pub fn of_version(version: &str) -> Option<Self> {
        Dialect::ALL.into_iter().find(|dialect| dialect.version() == version)
    }

    /// Generation of the verifier behind a server of this dialect.
    pub const fn verifier(self) -> Verifier {
        match self {
            Dialect::V0_1_0 | Dialect::V0_1_1 => Verifier::Legacy,
            Dialect::V0_2_0 | Dialect::V0_4_0 => Verifier::Current,
        }
    }

    /// Whether evidence of devices travels beside the primary evidence.
    pub const fn has_devices(self) -> bool {
        matches!(self, Dialect::V0_4_0)
    }

    /// Whether a secret arrives in the legacy envelope, without associated data (kbs.md section 5.1).
    pub const fn has_legacy_envelope(self) -> bool {
        matches!(self, Dialect::V0_1_0 | Dialect::V0_1_1)
    }
}

/// Public half of a TEE key pair as JSON Web Key. Only the members the broker re-serialises: any other would change
/// its digest (kbs.md section 3.2).
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(untagged)]
pub enum Jwk {
    /// Elliptic curve.
    Ec {
        /// Key management algorithm.
        alg: &'static str,
        /// Curve.
        crv: &'static str,
        /// Key type.
        kty: &'static str,
        /// Coordinate, base64url of exactly 32 bytes.
        x: String,
        /// Coordinate, base64url of exactly 32 bytes.
        y: String,
    },
    /// RSA.
    Rsa {
        /// Key management algorithm.
        alg: &'static str,
        /// Public exponent, base64url, big endian without leading zeros.
        e: String,
        /// Key type.
        kty: &'static str,
        /// Modulus, base64url, big endian without leading zeros.
        n: String,
    },
}

#[derive(Serialize)]
struct AuthRequest<'a> {
    version: &'a str,
    tee: &'a str,
    // A string parses in both dialects, an object only in 0.4.0 (kbs.md section 2.1).
    #[serde(rename = "extra-params")]
    extra_params: &'a str,
}

/// Body of `POST auth`.
///
/// # Errors
/// Never with these types; `serde_json` cannot say so.
pub fn auth_body(dialect: Dialect, tee: Tee) -> Result<Vec<u8>, serde_json::Error> {
    serde_json::to_vec(&AuthRequest { version: dialect.version(), tee: tee.name(), extra_params: "" })
}

/// The broker's answer to `POST auth`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Challenge {
    /// Nonce text exactly as received: the text is what gets hashed.
    pub nonce: String,
}

impl Challenge {
    /// Read the answer.
    ///
    /// # Errors
    /// [`WireError`]: not the expected JSON, a nonce too short or long, or a hash algorithm other than SHA-384.
    pub fn parse(body: &[u8]) -> Result<Self, WireError> {
        #[derive(Deserialize)]
        struct Answer {
            nonce: String,
            #[serde(rename = "extra-params", default)]
            extra_params: serde_json::Value,
        }
        let answer: Answer = parse_json("challenge", body)?;
        let decoded = if answer.nonce.len() <= MAX_NONCE_TEXT { decode_base64(&answer.nonce) } else { None };
        if decoded.is_none_or(|nonce| nonce.len() < MIN_NONCE_BYTES) {
            return Err(WireError::Nonce { len: answer.nonce.len() });
        }
        match selected_hash(&answer.extra_params) {
            None => {}
            Some(algorithm) if algorithm.eq_ignore_ascii_case("sha384") => {}
            Some(algorithm) => {
                return Err(WireError::Hash { algorithm: crate::text::printable(&algorithm, 32) });
            }
        }
        Ok(Challenge { nonce: answer.nonce })
    }
}

/// `selected-hash-algorithm` of `extra-params`, which may be an object or the text of one.
fn selected_hash(extra_params: &serde_json::Value) -> Option<String> {
    let parsed = extra_params.as_str().and_then(|text| serde_json::from_str::<serde_json::Value>(text).ok());
    let algorithm = parsed.as_ref().unwrap_or(extra_params).get("selected-hash-algorithm")?;
    algorithm.as_str().map(str::to_owned)
}

#[derive(Serialize)]
struct RuntimeData<'a> {
    #[serde(rename = "additional-evidence", skip_serializing_if = "Option::is_none")]
    additional_evidence: Option<&'a str>,
    nonce: &'a str,
    #[serde(rename = "tee-pubkey")]
    tee_pubkey: &'a Jwk,
}

/// SHA-384 over the canonical form of nonce and key: what evidence is bound to.
///
/// `additional_evidence` is `None` for dialect 0.1.0 and for devices of 0.4.0, and the `additional_evidence` text of
/// the attest body (also when it is empty) for the primary evidence of 0.4.0.
///
/// # Errors
/// Never with these types; `serde_json` cannot say so.
pub fn runtime_digest(
    additional_evidence: Option<&str>,
    nonce: &str,
    tee_pubkey: &Jwk,
) -> Result<Digest, serde_json::Error> {
    let text = serde_json::to_vec(&RuntimeData { additional_evidence, nonce, tee_pubkey })?;
    Ok(Digest(Sha384::digest(text).into()))
}

/// What the primary evidence of a handshake must be bound to in `dialect`. `additional` is the text of
/// `additional_evidence`, empty without devices.
///
/// # Errors
/// As [`runtime_digest`].
pub fn primary_digest(
    dialect: Dialect,
    additional: &str,
    nonce: &str,
    tee_pubkey: &Jwk,
) -> Result<Digest, serde_json::Error> {
    runtime_digest(dialect.has_devices().then_some(additional), nonce, tee_pubkey)
}

#[derive(Serialize)]
struct AttestRequest<'a, E: Serialize> {
    #[serde(rename = "tee-pubkey")]
    tee_pubkey: &'a Jwk,
    #[serde(rename = "tee-evidence")]
    tee_evidence: E,
}

#[derive(Serialize)]
struct AttestRequest040<'a> {
    // Null: cai's guests are not launched with init-data, whose digest the verifier would look for in MRCONFIGID.
    #[serde(rename = "init-data")]
    init_data: (),
    #[serde(rename = "runtime-data")]
    runtime_data: RuntimeData<'a>,
    #[serde(rename = "tee-evidence")]
    tee_evidence: CompositeEvidence<'a>,
}

#[derive(Serialize)]
struct CompositeEvidence<'a> {
    primary_evidence: &'a RawValue,
    additional_evidence: &'a str,
}

/// Body of `POST attest`. `additional` is the text of `additional_evidence`, empty without devices.
///
/// # Errors
/// Never with these types; `serde_json` cannot say so.
pub fn attest_body(
    dialect: Dialect,
    nonce: &str,
    tee_pubkey: &Jwk,
    evidence: &RawValue,
    additional: &str,
) -> Result<Vec<u8>, serde_json::Error> {
    match dialect {
        Dialect::V0_1_0 => serde_json::to_vec(&AttestRequest { tee_pubkey, tee_evidence: evidence.get() }),
        Dialect::V0_1_1 | Dialect::V0_2_0 => {
            serde_json::to_vec(&AttestRequest { tee_pubkey, tee_evidence: evidence })
        }
        Dialect::V0_4_0 => serde_json::to_vec(&AttestRequest040 {
            init_data: (),
            runtime_data: RuntimeData { additional_evidence: None, nonce, tee_pubkey },
            tee_evidence: CompositeEvidence { primary_evidence: evidence, additional_evidence: additional },
        }),
    }
}

/// The token in the broker's answer to `POST attest`. Not to be logged.
///
/// # Errors
/// [`WireError::Json`].
pub fn parse_token(body: &[u8]) -> Result<String, WireError> {
    #[derive(Deserialize)]
    struct Answer {
        token: String,
    }
    parse_json("attestation result", body).map(|Answer { token }| token)
}

/// An answer that is not what the protocol says.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum WireError {
    /// Not the expected JSON. The parser's own message would quote the answer, which may hold a token.
    #[error("the {what} is not the expected JSON (line {line}, column {column})")]
    Json {
        /// Which answer.
        what: &'static str,
        /// Line of the first thing unexpected, from 1; 0 when the whole is.
        line: usize,
        /// Its column.
        column: usize,
    },
    /// The nonce is not base64 of 32 bytes or more, or is absurdly long.
    #[error("the challenge nonce is not base64 of at least {MIN_NONCE_BYTES} bytes ({len} characters)")]
    Nonce {
        /// Length of the text.
        len: usize,
    },
    /// The broker selected a hash algorithm cai does not do.
    #[error("the challenge selects the hash algorithm {algorithm}; cai binds evidence with sha384")]
    Hash {
        /// Its name.
        algorithm: String,
    },
}

/// JSON from outside, with an error that quotes nothing of it.
pub(super) fn parse_json<'a, T: Deserialize<'a>>(what: &'static str, body: &'a [u8]) -> Result<T, WireError> {
    serde_json::from_slice(body).map_err(|e| WireError::Json { what, line: e.line(), column: e.column() })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const NONCE: &str = "AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8=";

    fn challenge(extra_params: &str) -> Result<Challenge, WireError> {
        Challenge::parse(format!(r#"{{"nonce":"{NONCE}"{extra_params}}}"#).as_bytes())
    }

    #[test]
    fn challenge_keeps_the_nonce_text_whatever_the_extra_params_are() {
        let accepted = [
            "",
            r#","extra-params":"""#,
            r#","extra-params":null"#,
            r#","extra-params":"free text""#,
            r#","extra-params":{}"#,
            r#","extra-params":{"selected-hash-algorithm":"sha384"}"#,
            r#","extra-params":"{\"selected-hash-algorithm\":\"SHA384\"}""#,
        ];
        for extra_params in accepted {
            assert_eq!(challenge(extra_params).unwrap().nonce, NONCE, "{extra_params}");
        }
    }

    #[test]
    fn challenge_with_another_hash_algorithm_is_refused_by_name() {
        for extra_params in [
            r#","extra-params":{"selected-hash-algorithm":"sm3"}"#,
            r#","extra-params":"{\"selected-hash-algorithm\":\"sm3\"}""#,
        ] {
            assert_eq!(challenge(extra_params).unwrap_err(), WireError::Hash { algorithm: "sm3".into() });
        }
    }

    #[test]
    fn challenge_nonce_outside_its_bounds_is_refused() {
        let parse = |nonce: &str| Challenge::parse(format!(r#"{{"nonce":"{nonce}"}}"#).as_bytes());
        assert_eq!(
            parse("AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHg==").unwrap_err(),
            WireError::Nonce { len: 44 }
        );
        assert_eq!(parse("not base64 at all").unwrap_err(), WireError::Nonce { len: 17 });
        assert_eq!(parse(&"A".repeat(1028)).unwrap_err(), WireError::Nonce { len: 1028 });
        assert!(parse(&"A".repeat(1024)).is_ok());
    }

    #[test]
    fn malformed_answer_is_an_error_that_quotes_nothing_of_it() {
        let error = parse_token(br#""eyJhbGciOiJub25lIn0.planted.token""#).unwrap_err();
        assert!(!format!("{error} {error:?}").contains("planted"), "{error:?}");
        assert_eq!(
            parse_token(b"<html>").unwrap_err().to_string().split(" (").next(),
            Some("the attestation result is not the expected JSON")
        );
    }

    #[test]
    fn auth_body_is_the_one_both_generations_parse() {
        let body = auth_body(Dialect::V0_4_0, Tee::Tdx).unwrap();
        assert_eq!(body, br#"{"version":"0.4.0","tee":"tdx","extra-params":""}"#);
    }

    #[test]
    fn base64_of_either_alphabet_padded_or_not_decodes_to_the_same_bytes() {
        for text in ["-_8=", "-_8", "+/8=", "+/8"] {
            assert_eq!(decode_base64(text).unwrap(), [0xfb, 0xff], "{text}");
        }
        assert_eq!(decode_base64("-/8"), None);
    }

    proptest! {
        #[test]
        fn challenge_parse_of_any_bytes_never_gives_a_nonce_out_of_bounds(body in proptest::collection::vec(any::<u8>(), 0..200)) {
            if let Ok(challenge) = Challenge::parse(&body) {
                prop_assert!(decode_base64(&challenge.nonce).unwrap().len() >= MIN_NONCE_BYTES);
            }
        }
    }
}
