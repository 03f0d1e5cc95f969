//! The TEE's public key, and the JWE that only its owner can open.
//!
//! Owns JWK parsing (the members Trustee knows, others dropped), their canonical form for hashing, and both
//! response forms: RFC 7516 flattened JSON from protocol 0.2.0 on, and the older form of 0.1.x (raw JSON
//! header, no associated data, tag at the end of the ciphertext). Stateless. Tested in `tests/sandbox_kbs.rs`
//! with other crates' ciphers.
//!
//! Source: RFC 7516, RFC 7518 4.3, 4.6, 5.3; `kbs-observed.md`.

use std::collections::BTreeMap;

use aws_lc_rs::aead::{AES_256_GCM, Aad, LessSafeKey, Nonce, UnboundKey};
use aws_lc_rs::agreement::{self, ECDH_P256, EphemeralPrivateKey, UnparsedPublicKey};
use aws_lc_rs::digest::{SHA256, digest};
use aws_lc_rs::key_wrap::{AES_256, AesKek, KeyWrap};
use aws_lc_rs::rand::{SystemRandom, fill};
use aws_lc_rs::rsa::{
    OAEP_SHA256_MGF1SHA256, OaepPublicEncryptingKey, Pkcs1PublicEncryptingKey, PublicEncryptingKey,
    PublicKeyComponents,
};
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde::{Deserialize, Serialize};

const CEK_LEN: usize = 32;
const IV_LEN: usize = 12;
/// An AES-256 key wrapped by RFC 3394 is one 8-byte block longer.
const WRAPPED_LEN: usize = CEK_LEN + 8;
const COORDINATE_LEN: usize = 32;
const ECDH_ALG: &str = "ECDH-ES+A256KW";

/// The key a client wants its resources encrypted to.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(tag = "kty")]
pub(crate) enum TeeKey {
    #[serde(rename = "EC")]
    Ec { alg: String, crv: String, x: String, y: String },
    #[serde(rename = "RSA")]
    Rsa { alg: String, e: String, n: String },
}

/// Which JSON form a response takes.
#[derive(Clone, Copy)]
pub(crate) enum Form {
    /// Protocols 0.1.x.
    Legacy,
    /// RFC 7516.
    Flattened,
}

/// The response's members.
#[derive(Serialize)]
pub(crate) struct Envelope {
    protected: String,
    encrypted_key: String,
    iv: String,
    ciphertext: String,
    tag: String,
}

/// The key or its `alg` is not one that the server encrypts to.
#[derive(Debug)]
pub(crate) struct Unusable;

impl From<aws_lc_rs::error::Unspecified> for Unusable {
    fn from(_: aws_lc_rs::error::Unspecified) -> Self {
        Unusable
    }
}

impl TeeKey {
    /// The members in the order of RFC 8785 (by code point), for hashing.
    pub(crate) fn canonical(&self) -> BTreeMap<&'static str, &str> {
        match self {
            TeeKey::Ec { alg, crv, x, y } => {
                BTreeMap::from([("alg", alg.as_str()), ("crv", crv), ("kty", "EC"), ("x", x), ("y", y)])
            }
            TeeKey::Rsa { alg, e, n } => {
                BTreeMap::from([("alg", alg.as_str()), ("e", e), ("kty", "RSA"), ("n", n)])
            }
        }
    }

    /// Whether it is the one kind of key that protocols 0.1.x know.
    pub(crate) fn is_pkcs1(&self) -> bool {
        matches!(self, TeeKey::Rsa { alg, .. } if alg == "RSA1_5")
    }

    /// A P-256 key that nobody has the private half of any more.
    ///
    /// # Errors
    /// [`Unusable`].
    pub(crate) fn nobodys() -> Result<TeeKey, Unusable> {
        let private = EphemeralPrivateKey::generate(&ECDH_P256, &SystemRandom::new())?;
        let (x, y) = coordinates(private.compute_public_key()?.as_ref()).ok_or(Unusable)?;
        Ok(TeeKey::Ec { alg: ECDH_ALG.to_owned(), crv: "P-256".to_owned(), x, y })
    }

    /// Encrypts `plaintext` to this key. With `spoil_tag` the authentication tag is wrong.
    ///
    /// # Errors
    /// [`Unusable`].
    pub(crate) fn seal(&self, form: Form, plaintext: &[u8], spoil_tag: bool) -> Result<Envelope, Unusable> {
        let mut cek = [0; CEK_LEN];
        fill(&mut cek)?;
        let (header, encrypted_key) = match (self, form) {
            (TeeKey::Rsa { alg, e, n }, _) if alg == "RSA1_5" => (rsa_header(alg), pkcs1(n, e, &cek)?),
            (TeeKey::Rsa { alg, e, n }, Form::Flattened) if alg == "RSA-OAEP-256" => {
                (rsa_header(alg), oaep(n, e, &cek)?)
            }
            (TeeKey::Ec { alg, crv, x, y }, Form::Flattened) if alg == ECDH_ALG && crv == "P-256" => {
                agree_and_wrap(x, y, &cek)?
            }
            _ => return Err(Unusable),
        };
        let protected = match form {
            Form::Legacy => header,
            Form::Flattened => URL_SAFE_NO_PAD.encode(header),
        };
        let aad: &[u8] = match form {
            Form::Legacy => b"",
            Form::Flattened => protected.as_bytes(),
        };
        let mut iv = [0; IV_LEN];
        fill(&mut iv)?;
        let mut ciphertext = plaintext.to_vec();
        let key = LessSafeKey::new(UnboundKey::new(&AES_256_GCM, &cek)?);
        let nonce = Nonce::assume_unique_for_key(iv);
        let tag = key.seal_in_place_separate_tag(nonce, Aad::from(aad), &mut ciphertext)?;
        let mut tag = tag.as_ref().to_vec();
        if let Some(first) = tag.first_mut().filter(|_| spoil_tag) {
            *first = !*first;
        }
        if let Form::Legacy = form {
            ciphertext.append(&mut tag);
        }
        Ok(Envelope {
            protected,
            encrypted_key: URL_SAFE_NO_PAD.encode(encrypted_key),
            iv: URL_SAFE_NO_PAD.encode(iv),
            ciphertext: URL_SAFE_NO_PAD.encode(ciphertext),
            tag: URL_SAFE_NO_PAD.encode(tag),
        })
    }
}

fn rsa_header(alg: &str) -> String {
    format!(r#"{{"alg":"{alg}","enc":"A256GCM"}}"#)
}

fn rsa_key(n: &str, e: &str) -> Result<PublicEncryptingKey, Unusable> {
    let n = URL_SAFE_NO_PAD.decode(n).map_err(|_| Unusable)?;
    let e = URL_SAFE_NO_PAD.decode(e).map_err(|_| Unusable)?;
    PublicKeyComponents { n, e }.try_into().map_err(|_| Unusable)
}

fn pkcs1(n: &str, e: &str, cek: &[u8]) -> Result<Vec<u8>, Unusable> {
    let key = Pkcs1PublicEncryptingKey::new(rsa_key(n, e)?)?;
    let mut out = vec![0; key.ciphertext_size()];
    Ok(key.encrypt(cek, &mut out)?.to_vec())
}

fn oaep(n: &str, e: &str, cek: &[u8]) -> Result<Vec<u8>, Unusable> {
    let key = OaepPublicEncryptingKey::new(rsa_key(n, e)?)?;
    let mut out = vec![0; key.ciphertext_size()];
    Ok(key.encrypt(&OAEP_SHA256_MGF1SHA256, cek, &mut out, None)?.to_vec())
}

/// ECDH-ES+A256KW: the header with the ephemeral key, and the wrapped content key.
fn agree_and_wrap(x: &str, y: &str, cek: &[u8]) -> Result<(String, Vec<u8>), Unusable> {
    let mut peer = vec![4]; // SEC 1: uncompressed point
    for coordinate in [x, y] {
        let bytes = URL_SAFE_NO_PAD.decode(coordinate).map_err(|_| Unusable)?;
        if bytes.len() != COORDINATE_LEN {
            return Err(Unusable);
        }
        peer.extend(bytes);
    }
    let ephemeral = EphemeralPrivateKey::generate(&ECDH_P256, &SystemRandom::new())?;
    let public = ephemeral.compute_public_key()?;
    let (x, y) = coordinates(public.as_ref()).ok_or(Unusable)?;
    let header = format!(
        r#"{{"alg":"{ECDH_ALG}","enc":"A256GCM","epk":{{"crv":"P-256","kty":"EC","x":"{x}","y":"{y}"}}}}"#
    );
    let peer = UnparsedPublicKey::new(&ECDH_P256, peer);
    let kek = agreement::agree_ephemeral(ephemeral, peer, Unusable, |z| Ok(concat_kdf(z)))?;
    let mut wrapped = [0; WRAPPED_LEN];
    let wrapped = AesKek::new(&AES_256, &kek)?.wrap(cek, &mut wrapped)?;
    Ok((header, wrapped.to_vec()))
}

/// One round of the Concat KDF for a 256-bit key, with empty party information.
fn concat_kdf(z: &[u8]) -> Vec<u8> {
    let mut input = 1u32.to_be_bytes().to_vec();
    input.extend_from_slice(z);
    input.extend_from_slice(&14u32.to_be_bytes()); // length of ECDH_ALG
    input.extend_from_slice(ECDH_ALG.as_bytes());
    for length in [0u32, 0, 256] {
        input.extend_from_slice(&length.to_be_bytes());
    }
    digest(&SHA256, &input).as_ref().to_vec()
}

/// The base64url coordinates of an uncompressed P-256 point.
pub(crate) fn coordinates(point: &[u8]) -> Option<(String, String)> {
    let (x, y) = point.strip_prefix(&[4])?.split_at_checked(COORDINATE_LEN)?;
    (y.len() == COORDINATE_LEN).then(|| (URL_SAFE_NO_PAD.encode(x), URL_SAFE_NO_PAD.encode(y)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn concat_kdf_of_the_vector_gives_its_key() {
        // Vector: `z_hex` and `kek_hex` of kbs-vectors.json.
        let z: Vec<u8> = hex("c0f03b688d81b92bcf2d97f8df4e76c8f0a974e8792eed831aeb54afc2cd0509");
        assert_eq!(concat_kdf(&z), hex("55dcb9a985a716dc177173c95ec17c4f941eda52c64cac3e5544929f08c3a8d1"));
    }

    fn hex(text: &str) -> Vec<u8> {
        (0..text.len()).step_by(2).map(|at| u8::from_str_radix(&text[at..at + 2], 16).unwrap()).collect()
    }

    #[test]
    fn seal_to_a_key_the_server_does_not_take_is_refused() {
        let ec = |alg: &str, crv: &str, x: &str| TeeKey::Ec {
            alg: alg.into(),
            crv: crv.into(),
            x: x.into(),
            y: "8scWYacmAabohwdbuQYsssKmvUkrTk6WulgGT-fNpk4".into(),
        };
        let x = "mraseOWP-yX3cMDeAzcrmV659yGhwBJKvt1e8CYVTw0";
        assert!(ec(ECDH_ALG, "P-256", x).seal(Form::Flattened, b"k", false).is_ok());
        for key in [
            ec(ECDH_ALG, "P-256", "AAAA"),
            ec(ECDH_ALG, "P-256", "nraseOWP-yX3cMDeAzcrmV659yGhwBJKvt1e8CYVTw0"), // not on the curve
            ec(ECDH_ALG, "P-521", x),
            ec("ECDH-ES", "P-256", x),
            TeeKey::Rsa { alg: "RSA-OAEP".into(), e: "AQAB".into(), n: "AQAB".into() },
        ] {
            assert!(key.seal(Form::Flattened, b"k", false).is_err(), "{key:?}");
        }
        assert!(ec(ECDH_ALG, "P-256", x).seal(Form::Legacy, b"k", false).is_err(), "0.1.0 knows RSA1_5 only");
    }
}
