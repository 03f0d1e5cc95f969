//! The TEE key pair of one handshake: its public half goes into the evidence, its private half opens the secret.
//!
//! Made by the operating system's random numbers, never written anywhere, wiped when dropped (`p256` and AWS-LC both
//! clear private keys). RSA is done by AWS-LC because the `rsa` crate has an open timing advisory (RUSTSEC-2023-0071).
//!
//! Source: kbs.md sections 3.4 and 5.

use aes_kw::{KeyInit as _, KwAes256};
use aws_lc_rs::encoding::{AsDer as _, PublicKeyX509Der};
use aws_lc_rs::rsa::{
    KeySize, OAEP_SHA256_MGF1SHA256, OaepPrivateDecryptingKey, Pkcs1PrivateDecryptingKey,
    PrivateDecryptingKey, PublicKey,
};
use p256::elliptic_curve::Generate as _;
use p256::elliptic_curve::sec1::ToSec1Point as _;
use serde::Deserialize;
use sha2::{Digest as _, Sha256};
use zeroize::Zeroizing;

use super::jwe::JweError;
use super::wire::{Dialect, Jwk, decode_base64, encode_base64url};
use crate::config::KeyAlgorithm;

/// Length of the content key, in bytes: `A256GCM`.
pub(super) const CONTENT_KEY_LEN: usize = 32;

/// Length of a coordinate of P-256, in bytes.
const COORDINATE_LEN: usize = 32;

/// How an RSA key pair receives a content key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RsaAlg {
    /// RSAES-PKCS1-v1_5, the only algorithm of dialects 0.1.x.
    Pkcs1,
    /// RSAES-OAEP with SHA-256.
    Oaep256,
}

/// How a key pair receives a content key: the key management algorithms of RFC 7518 that brokers have.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum KeyAlg {
    /// P-256 key agreement, AES key wrap.
    EcdhEsA256Kw,
    /// RSA.
    Rsa(RsaAlg),
}

impl KeyAlg {
    /// Algorithms of the servers of `dialect`, best first.
    ///
    /// Source: kbs.md section 3.4; for 0.2.0, pull requests 597 of confidential-containers/trustee and 820 of
    /// guest-components, which brought all three with that version (ECDH-ES as the client's default).
    const fn of(dialect: Dialect) -> &'static [KeyAlg] {
        match dialect {
            Dialect::V0_1_0 | Dialect::V0_1_1 => &[KeyAlg::Rsa(RsaAlg::Pkcs1)],
            Dialect::V0_2_0 | Dialect::V0_4_0 => {
                &[KeyAlg::EcdhEsA256Kw, KeyAlg::Rsa(RsaAlg::Oaep256), KeyAlg::Rsa(RsaAlg::Pkcs1)]
            }
        }
    }

    /// The algorithm that `choice` means in `dialect`; `None` where its servers do not have it.
    pub fn chosen(choice: KeyAlgorithm, dialect: Dialect) -> Option<KeyAlg> {
        let wanted = match choice {
            KeyAlgorithm::Auto => None,
            KeyAlgorithm::EcdhEsA256Kw => Some(KeyAlg::EcdhEsA256Kw),
            KeyAlgorithm::RsaOaep256 => Some(KeyAlg::Rsa(RsaAlg::Oaep256)),
            KeyAlgorithm::Rsa1_5 => Some(KeyAlg::Rsa(RsaAlg::Pkcs1)),
        };
        KeyAlg::of(dialect).iter().copied().find(|algorithm| wanted.is_none_or(|wanted| wanted == *algorithm))
    }

    /// Its name in JWK and JWE.
    pub const fn name(self) -> &'static str {
        match self {
            KeyAlg::EcdhEsA256Kw => "ECDH-ES+A256KW",
            KeyAlg::Rsa(RsaAlg::Pkcs1) => "RSA1_5",
            KeyAlg::Rsa(RsaAlg::Oaep256) => "RSA-OAEP-256",
        }
    }
}

enum Private {
    P256(p256::SecretKey),
    Pkcs1(Pkcs1PrivateDecryptingKey),
    Oaep256(OaepPrivateDecryptingKey),
}

/// A key pair for one handshake. No `Clone`, no `Debug`.
pub struct TeeKey {
    private: Private,
    algorithm: KeyAlg,
    jwk: Jwk,
}

impl TeeKey {
    /// A fresh key pair: P-256, or RSA with 2048 bits (slow: call from a blocking thread).
    ///
    /// # Errors
    /// [`KeyError`] when the system gives no random numbers.
    pub fn generate(algorithm: KeyAlg) -> Result<Self, KeyError> {
        match algorithm {
            KeyAlg::EcdhEsA256Kw => {
                TeeKey::of_p256(p256::SecretKey::try_generate().map_err(|_| KeyError::Generate)?)
            }
            KeyAlg::Rsa(padding) => {
                let key = PrivateDecryptingKey::generate(KeySize::Rsa2048).map_err(|_| KeyError::Generate)?;
                TeeKey::of_rsa(key, padding)
            }
        }
    }

    /// The P-256 key pair with this private scalar (32 bytes, big endian).
    ///
    /// # Errors
    /// [`KeyError::Invalid`] when it is none.
    pub fn from_p256_scalar(scalar: &[u8]) -> Result<Self, KeyError> {
        TeeKey::of_p256(p256::SecretKey::from_slice(scalar).map_err(|_| KeyError::Invalid)?)
    }

    /// The RSA key pair in this PKCS#8 document (2048 to 8192 bits).
    ///
    /// # Errors
    /// [`KeyError::Invalid`] when it is none.
    pub fn from_rsa_pkcs8(der: &[u8], alg: RsaAlg) -> Result<Self, KeyError> {
        TeeKey::of_rsa(PrivateDecryptingKey::from_pkcs8(der).map_err(|_| KeyError::Invalid)?, alg)
    }

    fn of_p256(private: p256::SecretKey) -> Result<Self, KeyError> {
        let point = private.public_key().to_sec1_point(false);
        let (x, y) = point.x().zip(point.y()).ok_or(KeyError::Invalid)?;
        let algorithm = KeyAlg::EcdhEsA256Kw;
        let jwk = Jwk::Ec {
            alg: algorithm.name(),
            crv: "P-256",
            kty: "EC",
            x: encode_base64url(x),
            y: encode_base64url(y),
        };
        Ok(TeeKey { private: Private::P256(private), algorithm, jwk })
    }

    fn of_rsa(private: PrivateDecryptingKey, padding: RsaAlg) -> Result<Self, KeyError> {
        let algorithm = KeyAlg::Rsa(padding);
        let spki: PublicKeyX509Der<'_> = private.public_key().as_der().map_err(|_| KeyError::Invalid)?;
        let public = PublicKey::from_der(spki.as_ref()).map_err(|_| KeyError::Invalid)?;
        let jwk = Jwk::Rsa {
            alg: algorithm.name(),
            e: encode_base64url(public.exponent().big_endian_without_leading_zero()),
            kty: "RSA",
            n: encode_base64url(public.modulus().big_endian_without_leading_zero()),
        };
        let private = match padding {
            RsaAlg::Pkcs1 => Pkcs1PrivateDecryptingKey::new(private).map(Private::Pkcs1),
            RsaAlg::Oaep256 => OaepPrivateDecryptingKey::new(private).map(Private::Oaep256),
        };
        Ok(TeeKey { private: private.map_err(|_| KeyError::Invalid)?, algorithm, jwk })
    }

    /// The public half, as it is sent and hashed.
    pub fn jwk(&self) -> &Jwk {
        &self.jwk
    }

    /// The one algorithm that belongs to this key.
    pub(super) fn algorithm(&self) -> KeyAlg {
        self.algorithm
    }

    /// The content key that `encrypted_key` holds for this key pair.
    ///
    /// A wrong RSA1_5 padding gives a random key instead of an error: the caller then fails on the tag like for any other
    /// damage, and nobody learns what the padding was.
    pub(super) fn content_key(
        &self,
        epk: Option<&EphemeralKey>,
        encrypted_key: &[u8],
    ) -> Result<Zeroizing<[u8; CONTENT_KEY_LEN]>, JweError> {
        let mut content_key = Zeroizing::new([0; CONTENT_KEY_LEN]);
        match &self.private {
            Private::P256(private) => {
                let epk = epk.ok_or(JweError::Malformed { member: "epk" })?.public_key()?;
                let kek = key_encryption_key(private.diffie_hellman(&epk).raw_secret_bytes());
                let unwrapped = KwAes256::new((&*kek).into()).unwrap_key(encrypted_key, &mut *content_key);
                if unwrapped.map_err(|_| JweError::Open)?.len() != CONTENT_KEY_LEN {
                    return Err(JweError::Open);
                }
            }
            Private::Pkcs1(private) => {
                getrandom::fill(&mut *content_key).map_err(|_| JweError::Open)?;
                let mut padded = Zeroizing::new(vec![0; private.min_output_size()]);
                if let Ok(decrypted) = private.decrypt(encrypted_key, &mut padded)
                    && decrypted.len() == CONTENT_KEY_LEN
                {
                    content_key.copy_from_slice(decrypted);
                }
            }
            Private::Oaep256(private) => {
                let mut padded = Zeroizing::new(vec![0; private.min_output_size()]);
                let decrypted = private
                    .decrypt(&OAEP_SHA256_MGF1SHA256, encrypted_key, &mut padded, None)
                    .map_err(|_| JweError::Open)?;
                if decrypted.len() != CONTENT_KEY_LEN {
                    return Err(JweError::Open);
                }
                content_key.copy_from_slice(decrypted);
            }
        }
        Ok(content_key)
    }
}

/// `epk` of a JWE header: the sender's half of ECDH.
#[derive(Deserialize)]
pub(super) struct EphemeralKey {
    crv: String,
    kty: String,
    x: String,
    y: String,
}

impl EphemeralKey {
    /// The point, checked to be on the curve.
    fn public_key(&self) -> Result<p256::PublicKey, JweError> {
        let malformed = JweError::Malformed { member: "epk" };
        if (self.kty.as_str(), self.crv.as_str()) != ("EC", "P-256") {
            return Err(malformed);
        }
        let coordinate = |text: &str| {
            let bytes = decode_base64(text)?;
            <[u8; COORDINATE_LEN]>::try_from(bytes).ok()
        };
        let (Some(x), Some(y)) = (coordinate(&self.x), coordinate(&self.y)) else {
            return Err(malformed);
        };
        let point = [&[4][..], &x, &y].concat();
        p256::PublicKey::from_sec1_bytes(&point).map_err(|_| malformed)
    }
}

/// `OtherInfo` of the Concat KDF for `ECDH-ES+A256KW` with empty `apu` and `apv` (RFC 7518 section 4.6.2): algorithm id
/// with its length, two empty fields, key length in bits.
const OTHER_INFO: &[u8; 30] =
    b"\x00\x00\x00\x0eECDH-ES+A256KW\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x01\x00";

/// Key encryption key from the shared secret `z`: one round of Concat KDF with SHA-256.
fn key_encryption_key(z: &[u8]) -> Zeroizing<[u8; 32]> {
    let round = 1_u32.to_be_bytes();
    let hash = Sha256::new().chain_update(round).chain_update(z).chain_update(OTHER_INFO).finalize();
    Zeroizing::new(hash.into())
}

/// A key pair could not be made.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum KeyError {
    /// No random numbers, or the library failed.
    #[error("generating the TEE key pair")]
    Generate,
    /// The bytes given are not a usable private key.
    #[error("not a usable private key")]
    Invalid,
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Frozen values of this project; see `tests/kbs_vectors.rs` for the rest of them.
    const VECTORS: &str = include_str!("../../tests/vectors/kbs-vectors.json");

    fn vector(name: &str) -> String {
        let all: serde_json::Value = serde_json::from_str(VECTORS).unwrap();
        all[name].as_str().unwrap().to_owned()
    }

    fn unhex(text: &str) -> Vec<u8> {
        let digits: Vec<u8> =
            text.bytes().map(|b| (b as char).to_digit(16).unwrap().try_into().unwrap()).collect();
        digits.chunks(2).map(|pair| pair[0] << 4 | pair[1]).collect()
    }

    #[test]
    fn ecdh_intermediate_values_are_those_of_the_vectors() {
        assert_eq!(OTHER_INFO.as_slice(), unhex(&vector("otherinfo_hex")));
        let all: serde_json::Value = serde_json::from_str(VECTORS).unwrap();
        let header = decode_base64(all["ec_jwe"]["protected"].as_str().unwrap()).unwrap();
        let header: serde_json::Value = serde_json::from_slice(&header).unwrap();
        let epk: EphemeralKey = serde_json::from_value(header["epk"].clone()).unwrap();
        let private = p256::SecretKey::from_slice(&unhex(&vector("ec_d_hex"))).unwrap();
        let z = private.diffie_hellman(&epk.public_key().unwrap());
        assert_eq!(z.raw_secret_bytes().as_slice(), unhex(&vector("z_hex")));
        assert_eq!(key_encryption_key(z.raw_secret_bytes()).as_slice(), unhex(&vector("kek_hex")));
        let key = TeeKey::from_p256_scalar(&unhex(&vector("ec_d_hex"))).unwrap();
        let wrapped = decode_base64(all["ec_jwe"]["encrypted_key"].as_str().unwrap()).unwrap();
        let content_key = key.content_key(Some(&epk), &wrapped).unwrap();
        assert!((0..32).eq(content_key.iter().copied()));
    }

    #[test]
    fn rsa1_5_key_damage_gives_a_random_key_and_never_an_error() {
        let der = decode_base64(&vector("rsa_pkcs8_b64")).unwrap();
        let key = TeeKey::from_rsa_pkcs8(&der, RsaAlg::Pkcs1).unwrap();
        let damaged = vec![0x5a; 256];
        let first = key.content_key(None, &damaged).unwrap();
        let second = key.content_key(None, &damaged).unwrap();
        assert_ne!(first, second);
        assert!(key.content_key(None, &[]).is_ok());
    }

    #[test]
    fn generated_key_pairs_are_fresh_and_of_their_kind() {
        let ec = [(); 2].map(|()| TeeKey::generate(KeyAlg::EcdhEsA256Kw).unwrap());
        assert_ne!(ec[0].jwk(), ec[1].jwk());
        let Jwk::Ec { alg, crv, kty, x, y } = ec[0].jwk() else { panic!("{:?}", ec[0].jwk()) };
        assert_eq!((*alg, *crv, *kty), ("ECDH-ES+A256KW", "P-256", "EC"));
        assert_eq!((x.len(), y.len()), (43, 43));
        for (padding, name) in [(RsaAlg::Pkcs1, "RSA1_5"), (RsaAlg::Oaep256, "RSA-OAEP-256")] {
            let rsa = [(); 2].map(|()| TeeKey::generate(KeyAlg::Rsa(padding)).unwrap());
            assert_ne!(rsa[0].jwk(), rsa[1].jwk());
            let Jwk::Rsa { alg, e, kty, n } = rsa[0].jwk() else { panic!("{:?}", rsa[0].jwk()) };
            assert_eq!((*alg, e.as_str(), *kty, decode_base64(n).unwrap().len()), (name, "AQAB", "RSA", 256));
        }
    }

    #[test]
    fn chosen_algorithm_is_the_dialects_best_or_the_one_named_or_none() {
        use KeyAlgorithm::{Auto, EcdhEsA256Kw, Rsa1_5, RsaOaep256};
        let (ec, oaep, pkcs1) =
            (KeyAlg::EcdhEsA256Kw, KeyAlg::Rsa(RsaAlg::Oaep256), KeyAlg::Rsa(RsaAlg::Pkcs1));
        for dialect in Dialect::ALL {
            let old = dialect.has_legacy_envelope();
            let chosen =
                [Auto, EcdhEsA256Kw, RsaOaep256, Rsa1_5].map(|choice| KeyAlg::chosen(choice, dialect));
            let expected = if old {
                [Some(pkcs1), None, None, Some(pkcs1)]
            } else {
                [Some(ec), Some(ec), Some(oaep), Some(pkcs1)]
            };
            assert_eq!(chosen, expected, "{dialect:?}");
        }
    }

    #[test]
    fn epk_that_is_not_a_point_of_p256_is_refused() {
        let epk = |crv: &str, x: &[u8], y: &[u8]| EphemeralKey {
            crv: crv.into(),
            kty: "EC".into(),
            x: encode_base64url(x),
            y: encode_base64url(y),
        };
        let good = TeeKey::generate(KeyAlg::EcdhEsA256Kw).unwrap();
        let Jwk::Ec { x, y, .. } = good.jwk() else { panic!() };
        let (x, y) = (decode_base64(x).unwrap(), decode_base64(y).unwrap());
        assert!(epk("P-256", &x, &y).public_key().is_ok());
        for bad in [
            epk("P-384", &x, &y),
            epk("P-256", &y, &x),
            epk("P-256", &x[1..], &y),
            epk("P-256", &[0; 32], &[0; 32]),
        ] {
            assert_eq!(bad.public_key().unwrap_err().to_string(), "the member `epk` of the JWE is malformed");
        }
    }
}
