//! The bodies of `auth` and `attest` in both protocols, and the verification of the sample TEE.
//!
//! Owns what is parsed and what is hashed. Stateless. Tested in `tests/sandbox_kbs.rs` and below against the vectors.
//!
//! Source: `kbs.md` 2 and 3, `kbs-observed.md`. Unknown members are ignored, as the real servers do; missing ones are not.

use std::collections::BTreeMap;

use aws_lc_rs::digest::{SHA384, digest};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::kbs_jwe::TeeKey;
use crate::kbs_token::Appraisal;

/// Names of the primary TEEs that the servers' type knows; only `sample` has a verifier here.
const TEES: [&str; 15] = [
    "azsnpvtpm",
    "aztdxvtpm",
    "cca",
    "csv",
    "hygondcu",
    "hygontpm",
    "sample",
    "se",
    "sev",
    "sgx",
    "snp",
    "system",
    "tdx",
    "tpm",
    "az-tdx-vtpm",
];

/// The protocol a server speaks, compared exactly.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Protocol {
    /// As Trustee v1.5.2 speaks it.
    #[value(name = "0.1.0")]
    V010,
    /// As Trustee v1.8.7 speaks it.
    #[value(name = "0.4.0")]
    V040,
}

impl Protocol {
    pub(crate) fn version(self) -> &'static str {
        match self {
            Protocol::V010 => "0.1.0",
            Protocol::V040 => "0.4.0",
        }
    }
}

#[derive(Deserialize)]
struct AuthRequest {
    version: String,
    tee: String,
    #[serde(rename = "extra-params")]
    extra_params: Value,
}

/// The TEE that an `auth` body names.
///
/// # Errors
/// The cause that the servers put on the wire.
pub(crate) fn parse_auth(protocol: Protocol, body: &[u8]) -> Result<String, String> {
    let malformed = || "deserialize Request".to_owned();
    let request: AuthRequest = serde_json::from_slice(body).map_err(|_| malformed())?;
    if !TEES.contains(&request.tee.as_str())
        || (protocol == Protocol::V010 && !request.extra_params.is_string())
    {
        return Err(malformed());
    }
    let expected = protocol.version();
    if request.version != expected {
        return Err(format!(
            "KBS Client Protocol Version Mismatch: expect ={expected} while the request is {}",
            request.version
        ));
    }
    Ok(request.tee)
}

#[derive(Deserialize)]
struct Attest010 {
    #[serde(rename = "tee-pubkey")]
    tee_pubkey: TeeKey,
    #[serde(rename = "tee-evidence")]
    tee_evidence: String,
}

#[derive(Deserialize)]
struct Attest040 {
    #[serde(rename = "init-data", default)]
    init_data: Option<Value>,
    #[serde(rename = "runtime-data")]
    runtime_data: RuntimeData,
    #[serde(rename = "tee-evidence")]
    tee_evidence: Composite,
}

#[derive(Deserialize)]
struct RuntimeData {
    nonce: String,
    #[serde(rename = "tee-pubkey")]
    tee_pubkey: TeeKey,
}

#[derive(Deserialize)]
struct Composite {
    primary_evidence: Value,
    additional_evidence: String,
}

#[derive(Deserialize)]
struct Sample010 {
    svn: String,
    report_data: String,
}

#[derive(Deserialize)]
struct Sample040 {
    svn: String,
    report_data: String,
    measure_register: String,
    #[serde(default)]
    cc_eventlog: Option<String>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Devices {
    sampledevice: Sample010,
}

/// The object that is hashed into report data; the members are in the order of RFC 8785.
#[derive(Serialize)]
struct Bound<'a> {
    #[serde(rename = "additional-evidence", skip_serializing_if = "Option::is_none")]
    additional_evidence: Option<&'a str>,
    nonce: &'a str,
    #[serde(rename = "tee-pubkey")]
    tee_pubkey: BTreeMap<&'static str, &'a str>,
}

fn binds(report_data: &str, bound: &Bound<'_>) -> bool {
    // All strings are compact JSON already; the canonical form escapes nothing that serde_json does not.
    let Ok(text) = serde_json::to_vec(bound) else { return false };
    let expected = digest(&SHA384, &text);
    STANDARD.decode(report_data).is_ok_and(|given| given == expected.as_ref())
}

/// Verifies the sample TEE's evidence in an `attest` body against the session's `nonce`: the key it binds, and the claims.
///
/// `None` is a refusal; the servers say no more on the wire.
pub(crate) fn verify(protocol: Protocol, nonce: &str, body: &[u8]) -> Option<(TeeKey, Appraisal)> {
    match protocol {
        Protocol::V010 => verify_010(nonce, body),
        Protocol::V040 => verify_040(nonce, body),
    }
}

fn verify_010(nonce: &str, body: &[u8]) -> Option<(TeeKey, Appraisal)> {
    let Attest010 { tee_pubkey: key, tee_evidence } = serde_json::from_slice(body).ok()?;
    let TeeKey::Rsa { .. } = key else { return None };
    let sample: Sample010 = serde_json::from_str(&tee_evidence).ok()?;
    let bound = Bound { additional_evidence: None, nonce, tee_pubkey: key.canonical() };
    if !binds(&sample.report_data, &bound) {
        return None;
    }
    let runtime_data = serde_json::to_value(&bound).ok()?;
    let report_data = sample.report_data;
    let appraisal =
        Appraisal { submod: "cpu", sample: json!({"svn": sample.svn}), report_data, runtime_data };
    Some((key, appraisal))
}

fn verify_040(nonce: &str, body: &[u8]) -> Option<(TeeKey, Appraisal)> {
    let Attest040 { init_data, runtime_data, tee_evidence } = serde_json::from_slice(body).ok()?;
    let sample: Sample040 = serde_json::from_value(tee_evidence.primary_evidence).ok()?;
    // Init data is measured by a real TEE; the sample TEE has nothing to compare it with.
    if init_data.is_some() || runtime_data.nonce != nonce || !is_register(&sample.measure_register) {
        return None;
    }
    let key = runtime_data.tee_pubkey;
    let additional = tee_evidence.additional_evidence;
    if !additional.is_empty() {
        let Devices { sampledevice } = serde_json::from_str(&additional).ok()?;
        let bound = Bound { additional_evidence: None, nonce, tee_pubkey: key.canonical() };
        if !binds(&sampledevice.report_data, &bound) {
            return None;
        }
    }
    let bound = Bound { additional_evidence: Some(&additional), nonce, tee_pubkey: key.canonical() };
    if !binds(&sample.report_data, &bound) {
        return None;
    }
    let runtime_data = serde_json::to_value(&bound).ok()?;
    let claims = json!({
        "cc_eventlog": sample.cc_eventlog,
        "measure_register": sample.measure_register,
        "svn": sample.svn,
    });
    let appraisal =
        Appraisal { submod: "cpu0", sample: claims, report_data: sample.report_data, runtime_data };
    Some((key, appraisal))
}

/// 64 hexadecimal digits.
fn is_register(text: &str) -> bool {
    text.len() == 64 && text.bytes().all(|b| b.is_ascii_hexdigit())
}

#[cfg(test)]
mod tests {
    use super::*;

    const NONCE: &str = "AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8=";
    const ATTEST_040: &str = concat!(
        r#"{"init-data":null,"runtime-data":{"nonce":"AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8=","#,
        r#""tee-pubkey":{"alg":"ECDH-ES+A256KW","crv":"P-256","kty":"EC","#,
        r#""x":"mraseOWP-yX3cMDeAzcrmV659yGhwBJKvt1e8CYVTw0","y":"8scWYacmAabohwdbuQYsssKmvUkrTk6WulgGT-fNpk4"}},"#,
        r#""tee-evidence":{"primary_evidence":{"svn":"1","#,
        r#""report_data":"G1iBgJb75nzI4DLWiwtO6R5j1TRw6psYkGCx3/NDlqgIbUN7hNuUDlyG5f/eNE1B","#,
        r#""measure_register":"0000000000000000000000000000000000000000000000000000000000000000"},"#,
        r#""additional_evidence":""}}"#
    );

    #[test]
    fn verify_of_the_vector_body_accepts_it() {
        // Vector: kbs.md 15.4.
        let (key, appraisal) = verify(Protocol::V040, NONCE, ATTEST_040.as_bytes()).unwrap();
        assert!(matches!(key, TeeKey::Ec { .. }));
        assert_eq!(appraisal.runtime_data["additional-evidence"], "");
        assert_eq!(appraisal.sample["svn"], "1");
    }

    #[test]
    fn verify_with_another_session_nonce_refuses() {
        assert!(verify(Protocol::V040, &NONCE.replace("AAEC", "AAED"), ATTEST_040.as_bytes()).is_none());
        assert!(verify(Protocol::V010, NONCE, ATTEST_040.as_bytes()).is_none());
    }

    #[test]
    fn parse_auth_with_another_version_names_both() {
        let body = br#"{"version":"0.1.0","tee":"sample","extra-params":""}"#;
        assert_eq!(parse_auth(Protocol::V010, body).unwrap(), "sample");
        assert_eq!(
            parse_auth(Protocol::V040, body).unwrap_err(),
            "KBS Client Protocol Version Mismatch: expect =0.4.0 while the request is 0.1.0"
        );
    }
}
