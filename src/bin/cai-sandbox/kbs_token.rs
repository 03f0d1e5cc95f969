//! Attestation tokens: EAR-shaped ES256 JWTs signed with a key made at start.
//!
//! Owns the signing key. The shape follows the recorded exchange; a verifier finds the key in the header's `jwk`. Tested in
//! `tests/sandbox_kbs.rs`.

use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::signature::{
    ECDSA_P256_SHA256_FIXED, ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, KeyPair, UnparsedPublicKey,
};
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde::Deserialize;
use serde_json::{Value, json};

use crate::clock::unix_secs;
use crate::kbs_jwe::{TeeKey, coordinates};

/// Life of a token, in seconds: Trustee's default.
const LIFETIME_SECS: u64 = 300;

/// What the verifier found, as it goes into the token.
pub(crate) struct Appraisal {
    /// `cpu0`, or `cpu` in protocol 0.1.0.
    pub(crate) submod: &'static str,
    /// The sample TEE's evidence without its report data.
    pub(crate) sample: Value,
    pub(crate) report_data: String,
    /// Nonce, tee-pubkey and, in protocol 0.4.0, additional-evidence.
    pub(crate) runtime_data: Value,
}

pub(crate) struct Signer {
    key: EcdsaKeyPair,
    header: String,
}

#[derive(Deserialize)]
struct Header {
    alg: String,
}

#[derive(Deserialize)]
struct Claims {
    exp: u64,
    submods: serde_json::Map<String, Value>,
}

impl Signer {
    /// A signer with a new key.
    pub(crate) fn generate() -> anyhow::Result<Signer> {
        let key = EcdsaKeyPair::generate(&ECDSA_P256_SHA256_FIXED_SIGNING)?;
        let (x, y) =
            coordinates(key.public_key().as_ref()).ok_or_else(|| anyhow::anyhow!("not a P-256 point"))?;
        let jwk = json!({"alg": "ES256", "kty": "EC", "crv": "P-256", "x": x, "y": y});
        let header = json!({"typ": "JWT", "alg": "ES256", "jwk": jwk});
        Ok(Signer { key, header: URL_SAFE_NO_PAD.encode(header.to_string()) })
    }

    /// A token for `appraisal`, valid from now.
    pub(crate) fn issue(&self, appraisal: &Appraisal) -> anyhow::Result<String> {
        let issued = unix_secs();
        let mut vector = json!({"configuration": 36, "executables": 33, "hardware": 97});
        if let ("cpu0", Some(vector)) = (appraisal.submod, vector.as_object_mut()) {
            vector.insert("file-system".to_owned(), json!(35));
        }
        let claims = json!({
            "eat_profile": "tag:github.com,2024:confidential-containers/Trustee",
            "iat": issued,
            "exp": issued + LIFETIME_SECS,
            "ear.verifier-id": {"developer": "https://confidentialcontainers.org", "build": "cai-sandbox"},
            "submods": {appraisal.submod: {
                "ear.status": "contraindicated",
                "ear.trustworthiness-vector": vector,
                "ear.appraisal-policy-id": "default",
                "ear.veraison.annotated-evidence": {
                    "report_data": appraisal.report_data,
                    "runtime_data_claims": appraisal.runtime_data,
                    "sample": appraisal.sample,
                },
            }},
        });
        let signed = format!("{}.{}", self.header, URL_SAFE_NO_PAD.encode(claims.to_string()));
        let signature = self.key.sign(&SystemRandom::new(), signed.as_bytes())?;
        Ok(format!("{signed}.{}", URL_SAFE_NO_PAD.encode(signature)))
    }

    /// The TEE's key in `token`, if this signer made it and it has not expired.
    pub(crate) fn verify(&self, token: &str) -> Option<TeeKey> {
        let (signed, signature) = token.rsplit_once('.')?;
        let (header, claims) = signed.split_once('.')?;
        let header: Header = serde_json::from_slice(&URL_SAFE_NO_PAD.decode(header).ok()?).ok()?;
        let signature = URL_SAFE_NO_PAD.decode(signature).ok()?;
        let public = UnparsedPublicKey::new(&ECDSA_P256_SHA256_FIXED, self.key.public_key().as_ref());
        if header.alg != "ES256" || public.verify(signed.as_bytes(), &signature).is_err() {
            return None;
        }
        let claims: Claims = serde_json::from_slice(&URL_SAFE_NO_PAD.decode(claims).ok()?).ok()?;
        let submod = claims.submods.values().next()?;
        let key = submod.pointer("/ear.veraison.annotated-evidence/runtime_data_claims/tee-pubkey")?;
        (claims.exp > unix_secs()).then(|| serde_json::from_value(key.clone()).ok()).flatten()
    }
}
