//! Attestation tokens: EAR-shaped ES256 JWTs, and the first generation's simple RS384 ones.
//!
//! Owns the signing key, made at start, and, where one is asked for, the authority that certified it. Without one, tokens
//! carry the bare key, as a real service does whose signer is not configured. Tested in `tests/sandbox_kbs.rs`,
//! `tests/sandbox_trustees.rs` and, by the client's verification, in `tests/kbs_token.rs`.
//!
//! Source: `kbs.md` 9.1, the recorded exchange.

use std::path::Path;
use std::sync::OnceLock;

use anyhow::Context;
use aws_lc_rs::encoding::{AsDer, Pkcs8V1Der};
use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::rsa::{self, KeySize};
use aws_lc_rs::signature::{
    ECDSA_P256_SHA256_FIXED, ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, KeyPair,
    RSA_PKCS1_2048_8192_SHA384, RSA_PKCS1_SHA384, UnparsedPublicKey,
};
use base64::Engine;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, PKCS_ECDSA_P256_SHA256, PKCS_RSA_SHA256,
};
use serde_json::{Value, json};

use crate::clock::unix_secs;
use crate::kbs_evidence::Verified;
use crate::kbs_jwe::{TeeKey, coordinates};
use crate::kbs_server::{Character, Maker};

/// Life of a token, in seconds: Trustee's default.
const LIFETIME_SECS: u64 = 300;

/// What the verifier found, as it goes into the token.
pub(crate) struct Appraisal {
    /// `cpu0`, or `cpu` before protocol 0.4.0.
    pub(crate) submod: &'static str,
    pub(crate) verified: Verified,
    /// GPUs in the additional evidence.
    pub(crate) gpus: usize,
    /// Nonce, tee-pubkey and, in protocol 0.4.0, additional-evidence.
    pub(crate) runtime_data: Value,
    /// `ear.status`, of an EAR token.
    pub(crate) status: &'static str,
    /// The policies it was appraised under; EAR tokens name the first.
    pub(crate) policies: Vec<String>,
}

/// Who holds a token, for the resource policy.
#[derive(Clone)]
pub(crate) struct Holder {
    pub(crate) key: TeeKey,
    /// Hexadecimal, of a TD.
    pub(crate) mrtd: Option<String>,
}

enum Key {
    Ec(EcdsaKeyPair),
    Rsa(rsa::KeyPair),
}

pub(crate) struct Signer {
    key: Key,
    header: Value,
    /// In the payload, where the first generation has it.
    jwk: Option<Value>,
    /// PEM, the signer's own first.
    certificates: Option<String>,
}

/// What is wrong with a token that is issued.
#[derive(Clone, Copy, Default)]
pub(crate) struct Spoiled {
    pub(crate) signature: bool,
    pub(crate) expired: bool,
    /// Instead of the usual, in seconds.
    pub(crate) life: Option<u64>,
}

impl Signer {
    /// A signer with a new key; certified by a new authority whose certificate goes to `authority`, if that is given.
    pub(crate) fn generate(server: &Character, authority: Option<&Path>) -> anyhow::Result<Signer> {
        let (key, certifiable) = if server.oldest { new_rsa()? } else { new_ec()? };
        let mut jwk = key.jwk()?;
        let mut certificates = None;
        if let (Some(path), Some(members)) = (authority, jwk.as_object_mut()) {
            let (x5c, pem) = certify(server.maker, &certifiable, path)?;
            members.insert("x5c".to_owned(), x5c.into());
            certificates = Some(pem);
        }
        let header = json!({"typ": "JWT", "alg": key.alg()});
        Ok(if server.oldest {
            Signer { key, header, jwk: Some(jwk), certificates }
        } else {
            let header = json!({"typ": "JWT", "alg": key.alg(), "jwk": jwk});
            Signer { key, header, jwk: None, certificates }
        })
    }

    /// The signer's certificate and its authority's in PEM, if it is certified.
    pub(crate) fn certificates(&self) -> Option<&str> {
        self.certificates.as_deref()
    }

    /// A token for `appraisal`, valid from now.
    pub(crate) fn issue(&self, appraisal: &Appraisal, spoiled: Spoiled) -> anyhow::Result<String> {
        let issued = unix_secs() - if spoiled.expired { LIFETIME_SECS + 3600 } else { 0 };
        let mut id = [0; 8];
        getrandom::fill(&mut id)?;
        let mut claims = match &self.jwk {
            Some(jwk) => simple(appraisal, jwk),
            None => ear(appraisal),
        };
        if let Some(members) = claims.as_object_mut() {
            members.insert("iat".to_owned(), issued.into());
            members.insert("nbf".to_owned(), issued.into());
            members.insert("exp".to_owned(), (issued + spoiled.life.unwrap_or(LIFETIME_SECS)).into());
            members.insert("jti".to_owned(), hex::encode(id).into());
        }
        let signed = to_sign(&self.header, &claims);
        let mut signature = self.key.sign(signed.as_bytes())?;
        if let Some(first) = signature.first_mut().filter(|_| spoiled.signature) {
            *first = !*first;
        }
        Ok(format!("{signed}.{}", URL_SAFE_NO_PAD.encode(signature)))
    }

    /// Who holds `token`, if this signer made it and it has not expired.
    pub(crate) fn verify(&self, token: &str) -> Option<Holder> {
        let (signed, signature) = token.rsplit_once('.')?;
        let (header, claims) = signed.split_once('.')?;
        let parse = |segment: &str| -> Option<Value> {
            serde_json::from_slice(&URL_SAFE_NO_PAD.decode(segment).ok()?).ok()
        };
        let (header, claims) = (parse(header)?, parse(claims)?);
        let signature = URL_SAFE_NO_PAD.decode(signature).ok()?;
        if header != self.header || !self.key.verifies(signed.as_bytes(), &signature) {
            return None;
        }
        (claims.get("exp")?.as_u64()? > unix_secs()).then(|| holder(&claims)).flatten()
    }
}

/// What a token's signature is over.
fn to_sign(header: &Value, claims: &Value) -> String {
    let segment = |value: &Value| URL_SAFE_NO_PAD.encode(value.to_string());
    format!("{}.{}", segment(header), segment(claims))
}

/// Issues challenges for evidence that is to be fresh; nothing here verifies them.
#[derive(Default)]
pub(crate) struct Challenger(OnceLock<Key>);

impl Challenger {
    /// The answer's body: a nonce, and the same signed.
    pub(crate) fn challenge(&self) -> anyhow::Result<Value> {
        if self.0.get().is_none() {
            // A race makes a key too many.
            let _ = self.0.set(new_rsa()?.0);
        }
        let key = self.0.get().context("no key")?;
        let mut nonce = [0; 32];
        getrandom::fill(&mut nonce)?;
        let (nonce, issued) = (STANDARD.encode(nonce), unix_secs());
        let claims = json!({"iat": issued, "exp": issued + LIFETIME_SECS, "nonce": nonce});
        let signed = to_sign(&json!({"typ": "JWT", "alg": key.alg(), "jwk": key.jwk()?}), &claims);
        let token = format!("{signed}.{}", URL_SAFE_NO_PAD.encode(key.sign(signed.as_bytes())?));
        Ok(json!({"nonce": nonce, "extra-params": {"jwt": token}}))
    }
}

fn holder(claims: &Value) -> Option<Holder> {
    const EVIDENCE: &str = "ear.veraison.annotated-evidence";
    let submods = claims.get("submods").and_then(Value::as_object);
    let cpu = submods.and_then(|all| all.get("cpu0").or_else(|| all.get("cpu")));
    let (key, mrtd) = match cpu.and_then(|cpu| cpu.get(EVIDENCE)) {
        Some(evidence) => {
            (evidence.pointer("/runtime_data_claims/tee-pubkey")?, evidence.pointer("/tdx/quote/body/mr_td"))
        }
        None => (
            claims.pointer("/customized_claims/runtime_data/tee-pubkey")?,
            claims.pointer("/tcb-status/tdx.quote.body.mr_td"),
        ),
    };
    let key = serde_json::from_value(key.clone()).ok()?;
    Some(Holder { key, mrtd: mrtd.and_then(Value::as_str).map(str::to_owned) })
}

/// Claims of an EAR token.
fn ear(appraisal: &Appraisal) -> Value {
    let Appraisal { submod, verified, gpus, runtime_data, status, policies } = appraisal;
    let mut vector = json!({"configuration": 36, "executables": 33, "hardware": 97});
    if let ("cpu0", Some(vector)) = (*submod, vector.as_object_mut()) {
        vector.insert("file-system".to_owned(), json!(35));
    }
    let mut submods = serde_json::Map::new();
    let cpu = json!({
        "ear.status": status,
        "ear.trustworthiness-vector": vector,
        "ear.appraisal-policy-id": policies.first().map_or("default", String::as_str),
        "ear.veraison.annotated-evidence": {
            "report_data": verified.report_data,
            "runtime_data_claims": runtime_data,
            verified.tee: verified.claims,
        },
    });
    submods.insert((*submod).to_owned(), cpu);
    for gpu in 0..*gpus {
        submods.insert(
            format!("gpu{gpu}"),
            json!({"ear.status": "warning", "ear.appraisal-policy-id": "default_gpu"}),
        );
    }
    json!({
        "eat_profile": "tag:github.com,2024:confidential-containers/Trustee",
        "ear.verifier-id": {"developer": "https://confidentialcontainers.org", "build": "cai-sandbox"},
        "submods": submods,
    })
}

/// Claims of a simple token, with what the quote says under flattened names.
fn simple(appraisal: &Appraisal, jwk: &Value) -> Value {
    let Appraisal { verified, runtime_data, policies, .. } = appraisal;
    let reports: Vec<Value> = policies.iter().map(|id| json!({"policy-id": id})).collect();
    let mut status = serde_json::Map::new();
    flatten(verified.tee, &verified.claims, &mut status);
    json!({
        "iss": "CoCo-Attestation-Service",
        "jwk": jwk,
        "tee": verified.tee,
        "tcb-status": status,
        "evaluation-reports": reports,
        "customized_claims": {"init_data": "", "runtime_data": runtime_data},
    })
}

fn flatten(name: &str, value: &Value, flat: &mut serde_json::Map<String, Value>) {
    match value {
        Value::Object(members) => {
            members.iter().for_each(|(member, value)| flatten(&format!("{name}.{member}"), value, flat));
        }
        other => {
            flat.insert(name.to_owned(), other.clone());
        }
    }
}

impl Key {
    fn alg(&self) -> &'static str {
        match self {
            Key::Ec(_) => "ES256",
            Key::Rsa(_) => "RS384",
        }
    }

    fn jwk(&self) -> anyhow::Result<Value> {
        Ok(match self {
            Key::Ec(key) => {
                let (x, y) = coordinates(key.public_key().as_ref()).context("not a P-256 point")?;
                json!({"alg": "ES256", "kty": "EC", "crv": "P-256", "x": x, "y": y})
            }
            Key::Rsa(key) => {
                let public = key.public_key();
                let encode = |bytes: &[u8]| URL_SAFE_NO_PAD.encode(bytes);
                let n = encode(public.modulus().big_endian_without_leading_zero());
                let e = encode(public.exponent().big_endian_without_leading_zero());
                json!({"alg": "RS384", "kty": "RSA", "n": n, "e": e})
            }
        })
    }

    fn sign(&self, message: &[u8]) -> anyhow::Result<Vec<u8>> {
        let random = SystemRandom::new();
        match self {
            Key::Ec(key) => Ok(key.sign(&random, message)?.as_ref().to_vec()),
            Key::Rsa(key) => {
                let mut signature = vec![0; key.public_modulus_len()];
                key.sign(&RSA_PKCS1_SHA384, &random, message, &mut signature)?;
                Ok(signature)
            }
        }
    }

    fn verifies(&self, message: &[u8], signature: &[u8]) -> bool {
        let verified = match self {
            Key::Ec(key) => UnparsedPublicKey::new(&ECDSA_P256_SHA256_FIXED, key.public_key().as_ref())
                .verify(message, signature),
            Key::Rsa(key) => UnparsedPublicKey::new(&RSA_PKCS1_2048_8192_SHA384, key.public_key().as_ref())
                .verify(message, signature),
        };
        verified.is_ok()
    }
}

fn new_ec() -> anyhow::Result<(Key, rcgen::KeyPair)> {
    let pair = rcgen::KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)?;
    let key = EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, &pair.serialize_der())?;
    Ok((Key::Ec(key), pair))
}

fn new_rsa() -> anyhow::Result<(Key, rcgen::KeyPair)> {
    let key = rsa::KeyPair::generate(KeySize::Rsa2048)?;
    let der: Pkcs8V1Der<'_> = key.as_der()?;
    let der = rustls::pki_types::PrivatePkcs8KeyDer::from(der.as_ref().to_vec());
    let pair = rcgen::KeyPair::from_pkcs8_der_and_sign_algo(&der, &PKCS_RSA_SHA256)?;
    Ok((Key::Rsa(key), pair))
}

/// A certificate for `signer` by a new authority, as `x5c` without the authority itself, which goes to the
/// file; and both in PEM.
fn certify(maker: Maker, signer: &rcgen::KeyPair, authority: &Path) -> anyhow::Result<(Vec<String>, String)> {
    let mut params = CertificateParams::new(Vec::new())?;
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let issuer = CertifiedIssuer::self_signed(params, rcgen::KeyPair::generate()?)?;
    let params = CertificateParams::new(vec!["token-signer.sandbox".to_owned()])?;
    let certificate = params.signed_by(signer, &issuer)?;
    std::fs::write(authority, issuer.pem()).with_context(|| format!("writing {}", authority.display()))?;
    let entry = match maker {
        Maker::Alibaba => URL_SAFE_NO_PAD.encode(certificate.der()),
        Maker::Upstream => STANDARD.encode(certificate.der()),
    };
    Ok((vec![entry], certificate.pem() + &issuer.pem()))
}
