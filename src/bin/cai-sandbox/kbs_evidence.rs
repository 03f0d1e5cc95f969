//! The bodies of `auth` and `attest` in every protocol, what evidence must be bound to, and the sample TEE's verifier.
//!
//! Owns what is parsed and what is hashed; TDX evidence is verified in `kbs_tdx.rs`, GPUs' in `kbs_gpu.rs`. Stateless.
//! Tested in `tests/sandbox_kbs.rs`, `tests/sandbox_tdx.rs`, and below against the vectors.
//!
//! Source: `kbs.md` 2 and 3, `kbs-observed.md`. Unknown members are ignored, as the real servers do; missing
//! ones are not.

use std::collections::BTreeMap;

use aws_lc_rs::digest::{SHA384, digest};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::kbs_gpu::{self, Nvidia};
use crate::kbs_jwe::TeeKey;
use crate::kbs_server::{Character, Maker, Protocol, Refusal};
use crate::kbs_tdx;
use crate::kbs_token::Appraisal;

/// Names of the primary TEEs that the servers' type knows; only `sample` and `tdx` have a verifier here.
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
/// [`Refusal`].
pub(crate) fn parse_auth(server: &Character, body: &[u8]) -> Result<String, Refusal> {
    let request: AuthRequest = serde_json::from_slice(body).map_err(|_| Refusal::MalformedAuth)?;
    if !TEES.contains(&request.tee.as_str())
        || (server.protocol == Protocol::V010 && !request.extra_params.is_string())
    {
        return Err(Refusal::MalformedAuth);
    }
    if !server.speaks(&request.version) {
        return Err(Refusal::Version(request.version));
    }
    Ok(request.tee)
}

#[derive(Deserialize)]
struct Attest010 {
    #[serde(rename = "tee-pubkey")]
    tee_pubkey: TeeKey,
    /// The text of an object in 0.1.0, the object itself after it.
    #[serde(rename = "tee-evidence")]
    tee_evidence: Value,
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

/// The devices that have a verifier here.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Devices {
    sampledevice: Option<Sample010>,
    nvidia: Option<Nvidia>,
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

impl Bound<'_> {
    fn digest(&self) -> Result<Vec<u8>, String> {
        // All strings are compact JSON already; the canonical form escapes nothing that serde_json does not.
        let text = serde_json::to_vec(self).map_err(|e| e.to_string())?;
        Ok(digest(&SHA384, &text).as_ref().to_vec())
    }
}

/// What a verifier found of the TEE.
pub(crate) struct Verified {
    pub(crate) tee: &'static str,
    /// The claims about it, without the report data.
    pub(crate) claims: Value,
    /// base64.
    pub(crate) report_data: String,
}

/// What an `attest` body submits.
struct Submitted {
    key: TeeKey,
    primary: Value,
    /// `None` where the protocol has no devices.
    additional: Option<String>,
}

fn submitted(server: &Character, nonce: &str, body: &[u8]) -> Result<Submitted, String> {
    let malformed = |e: serde_json::Error| format!("deserialize Attestation: {e}");
    if server.protocol == Protocol::V040 {
        let Attest040 { init_data, runtime_data, tee_evidence } =
            serde_json::from_slice(body).map_err(malformed)?;
        // Init data is measured by a real TEE; the stand-ins have nothing to compare it with.
        if init_data.is_some() || runtime_data.nonce != nonce {
            return Err("the nonce in the handshake session is different from the client side".to_owned());
        }
        let Composite { primary_evidence: primary, additional_evidence } = tee_evidence;
        return Ok(Submitted {
            key: runtime_data.tee_pubkey,
            primary,
            additional: Some(additional_evidence),
        });
    }
    let Attest010 { tee_pubkey: key, tee_evidence } = serde_json::from_slice(body).map_err(malformed)?;
    let primary = match (server.protocol, tee_evidence) {
        (Protocol::V010, Value::String(text)) => serde_json::from_str(&text).map_err(malformed)?,
        (Protocol::V011 | Protocol::V020, object @ Value::Object(_)) => object,
        _ => return Err("tee-evidence has the form of another protocol".to_owned()),
    };
    Ok(Submitted { key, primary, additional: None })
}

/// Verifies the evidence in an `attest` body against the session's TEE and `nonce`: the key it binds, and the claims.
///
/// # Errors
/// The verifier's words; only the first generation of servers puts them on the wire.
pub(crate) fn verify(
    server: &Character,
    tee: &str,
    nonce: &str,
    body: &[u8],
) -> Result<(TeeKey, Appraisal), String> {
    let Submitted { key, primary, additional } = submitted(server, nonce, body)?;
    if server.protocol.is_legacy() && !key.is_pkcs1() {
        return Err("tee-pubkey: algorithm is not RSA1_5".to_owned());
    }
    let tee_pubkey = key.canonical();
    let mut bound = Bound { additional_evidence: None, nonce, tee_pubkey };
    let gpus = match additional.as_deref() {
        None | Some("") => 0,
        Some(text) => devices(server, text, &bound.digest()?)?,
    };
    bound.additional_evidence = additional.as_deref();
    let expected = bound.digest()?;
    let verified = verify_bare(server.protocol, tee, primary, &expected)?;
    let runtime_data = serde_json::to_value(&bound).map_err(|e| e.to_string())?;
    let submod = server.protocol.submod();
    // The default policy knows no reference values here, so it warns of everything.
    let (status, policies) = ("contraindicated", vec!["default".to_owned()]);
    Ok((key, Appraisal { submod, verified, gpus, runtime_data, status, policies }))
}

/// Verifies one TEE's evidence, which must be bound to `expected`.
///
/// # Errors
/// The verifier's words.
pub(crate) fn verify_bare(
    protocol: Protocol,
    tee: &str,
    evidence: Value,
    expected: &[u8],
) -> Result<Verified, String> {
    match tee {
        "tdx" => kbs_tdx::verify(protocol, evidence, expected),
        "sample" => sample(protocol, evidence, expected),
        _ => Err(format!("TEE `{tee}` verifier is not implemented.")),
    }
}

/// Verifies additional evidence, bound to `digest`; the number of GPUs in it.
fn devices(server: &Character, text: &str, digest: &[u8]) -> Result<usize, String> {
    let Devices { sampledevice, nvidia } = serde_json::from_str(text).map_err(|e| e.to_string())?;
    if let Some(device) = sampledevice {
        check_report_data(&device.report_data, digest)?;
    }
    match (nvidia, server.maker) {
        (None, _) => Ok(0),
        (Some(_), Maker::Alibaba) => Err("TEE `nvidia` verifier is not implemented.".to_owned()),
        (Some(nvidia), Maker::Upstream) => kbs_gpu::check_additional(&nvidia, digest),
    }
}

/// Verifies the sample TEE's evidence, which proves nothing.
fn sample(protocol: Protocol, evidence: Value, expected: &[u8]) -> Result<Verified, String> {
    let malformed = |e: serde_json::Error| format!("Deserialize sample evidence failed: {e}");
    let (claims, report_data) = if protocol == Protocol::V040 {
        let sample: Sample040 = serde_json::from_value(evidence).map_err(malformed)?;
        if !is_register(&sample.measure_register) {
            return Err("measure_register is not one".to_owned());
        }
        let claims = json!({
            "cc_eventlog": sample.cc_eventlog,
            "measure_register": sample.measure_register,
            "svn": sample.svn,
        });
        (claims, sample.report_data)
    } else {
        let sample: Sample010 = serde_json::from_value(evidence).map_err(malformed)?;
        (json!({"svn": sample.svn}), sample.report_data)
    };
    check_report_data(&report_data, expected)?;
    Ok(Verified { tee: "sample", claims, report_data })
}

fn check_report_data(report_data: &str, expected: &[u8]) -> Result<(), String> {
    if STANDARD.decode(report_data).is_ok_and(|given| given == expected) {
        Ok(())
    } else {
        Err("REPORT_DATA is different from that in Sample Quote".to_owned())
    }
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

    fn server(protocol: Protocol) -> Character {
        Character { protocol, maker: Maker::Alibaba, oldest: false, mrtd: None }
    }

    #[test]
    fn verify_of_the_vector_body_accepts_it() {
        // Vector: kbs.md 15.4.
        let (key, appraisal) =
            verify(&server(Protocol::V040), "sample", NONCE, ATTEST_040.as_bytes()).unwrap();
        assert!(matches!(key, TeeKey::Ec { .. }));
        assert_eq!(appraisal.runtime_data["additional-evidence"], "");
        assert_eq!(appraisal.verified.claims["svn"], "1");
    }

    #[test]
    fn verify_with_another_session_nonce_refuses() {
        let refused = |protocol, nonce: &str| {
            verify(&server(protocol), "sample", nonce, ATTEST_040.as_bytes()).is_err()
        };
        assert!(refused(Protocol::V040, &NONCE.replace("AAEC", "AAED")));
        assert!(refused(Protocol::V010, NONCE));
    }

    #[test]
    fn parse_auth_with_another_version_names_both() {
        let body = br#"{"version":"0.1.0","tee":"sample","extra-params":""}"#;
        assert_eq!(parse_auth(&server(Protocol::V010), body).unwrap(), "sample");
        let refused = parse_auth(&server(Protocol::V040), body).unwrap_err();
        assert!(matches!(refused, Refusal::Version(version) if version == "0.1.0"));
    }
}
