//! Claim: a token of the attestation service counts only if it is signed by whom it should, is in its time, was appraised
//! under every policy asked for, affirms everything, and is about the certificate's key; a refusal names the claim.
//!
//! Signatures in every algorithm are held by `tests/kbs_token.rs`, which checks them with the same code.

use std::collections::BTreeMap;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use cai::error::{Fault as _, chain};
use cai::jwt::Signers;
use cai::ratls::verdict::{Bound, Verdict, judge};
use cai::ratls::{Demands, Format, VerifyError};
use proptest::prelude::*;
use rcgen::{CertificateParams, KeyPair};
use serde_json::{Value, json};

const NOW: u64 = 1_795_341_100;
const HASH: &str = "ggFYIKY1ik65N2mHVihkWwUz2PAYyaFsKBTtE7ml1fMis82h";

fn at(secs: u64) -> SystemTime {
    UNIX_EPOCH + Duration::from_secs(secs)
}

fn current() -> Bound {
    let runtime_data = json!({"pubkey-hash": HASH, "model-identity": "aa"}).as_object().unwrap().clone();
    Bound { format: Format::Current, runtime_data, devices: 1 }
}

fn legacy() -> Bound {
    let runtime_data = json!({"rats-rs.raw_runtime_data": "G31E"}).as_object().unwrap().clone();
    Bound { format: Format::Legacy, runtime_data, devices: 0 }
}

fn demands(policies: &[&str], members: &[(&str, &str)]) -> Demands {
    Demands {
        policies: policies.iter().map(|id| (*id).to_owned()).collect(),
        members: members
            .iter()
            .map(|(name, value)| ((*name).to_owned(), (*value).to_owned()))
            .collect::<BTreeMap<_, _>>(),
    }
}

fn ear() -> Value {
    json!({
        "exp": NOW + 300,
        "iat": NOW,
        "submods": {
            "cpu0": {
                "ear.status": "affirming",
                "ear.appraisal-policy-id": "default",
                "ear.veraison.annotated-evidence": {
                    "runtime_data_claims": {"pubkey-hash": HASH, "model-identity": "aa", "more": 1},
                },
            },
            "gpu0": {"ear.status": "affirming", "ear.appraisal-policy-id": "default_gpu"},
        },
    })
}

fn simple() -> Value {
    json!({
        "exp": NOW + 300,
        "evaluation-reports": [{"policy-id": "default", "policy-hash": "00"}, {"policy-id": "gpu"}],
        "customized_claims": {"init_data": "", "runtime_data": {"rats-rs.raw_runtime_data": "G31E"}},
    })
}

fn changed(mut claims: Value, pointer: &str, value: Value) -> Value {
    let (parent, name) = pointer.rsplit_once('/').unwrap();
    claims.pointer_mut(parent).unwrap()[name] = value;
    claims
}

/// Signed by nobody who matters.
fn token(claims: &Value) -> String {
    let segment = |value: &Value| URL_SAFE_NO_PAD.encode(value.to_string());
    format!("{}.{}.c2ln", segment(&json!({"alg": "ES256"})), segment(claims))
}

fn judged(claims: &Value, bound: &Bound, demands: &Demands) -> Result<Verdict, String> {
    judge(&token(claims), bound, demands, None, at(NOW)).map_err(|refused| chain(&refused))
}

#[test]
fn tokens_of_every_kind_are_accepted_for_the_certificate_they_are_about() {
    let accepted = Ok(Verdict { expires: at(NOW + 300) });
    let model = [("model-identity", "aa")];
    assert_eq!(judged(&ear(), &current(), &demands(&["default"], &model)), accepted);
    assert_eq!(judged(&simple(), &legacy(), &demands(&["gpu", "default"], &[])), accepted);
    // An EAR token for a legacy certificate, a simple one for a current: what is asked, and in which form, are two things.
    let data = json!({"rats-rs.raw_runtime_data": "G31E"});
    let pointer = "/submods/cpu0/ear.veraison.annotated-evidence/runtime_data_claims";
    assert_eq!(judged(&changed(ear(), pointer, data), &legacy(), &demands(&[], &[])), accepted);
    let data = json!({"pubkey-hash": HASH});
    let claims = changed(simple(), "/customized_claims/runtime_data", data);
    assert_eq!(judged(&claims, &current(), &demands(&[], &[])), accepted);
    // Alibaba's v1.1.3 to v1.5.x call the CPU so; upstream adds a suffix to policies.
    let mut older = ear();
    let cpu = older["submods"].as_object_mut().unwrap().remove("cpu0").unwrap();
    older["submods"]["cpu"] = changed(cpu, "/ear.appraisal-policy-id", json!("default_cpu"));
    assert_eq!(judged(&older, &current(), &demands(&["default"], &[])), accepted);
}

#[test]
fn each_claim_that_is_not_as_it_must_be_is_named() {
    let evidence = "/submods/cpu0/ear.veraison.annotated-evidence";
    let data = format!("{evidence}/runtime_data_claims");
    let model = demands(&["default"], &[("model-identity", "aa")]);
    for (claims, expected) in [
        (
            changed(ear(), "/submods/cpu0/ear.status", json!("contraindicated")),
            "claim submods.cpu0.ear.status: expected affirming, the token says \"contraindicated\"",
        ),
        (
            changed(ear(), "/submods/gpu0/ear.status", json!("warning")),
            "claim submods.gpu0.ear.status: expected affirming, the token says \"warning\"",
        ),
        (
            changed(ear(), "/submods/cpu0", json!({})),
            "claim submods.cpu0.ear.status: expected affirming, the token says nothing",
        ),
        (
            changed(ear(), "/submods", json!({"gpu0": {"ear.status": "affirming"}})),
            "claim submods.cpu0: expected an appraisal of the CPU, the token says nothing",
        ),
        (
            changed(ear(), "/submods", json!({"cpu0": ear()["submods"]["cpu0"]})),
            "claim submods: expected as many appraisals beside the CPU's as the peer showed devices (1), the token says \
             [\"cpu0\"]",
        ),
        (changed(ear(), "/submods", json!([])), "claim submods: expected an object, the token says []"),
        (
            changed(ear(), "/submods/cpu0/ear.appraisal-policy-id", json!("another")),
            "claim submods.cpu0.ear.appraisal-policy-id: expected \"default\", the token says \"another\"",
        ),
        (
            changed(ear(), evidence, json!({})),
            "claim runtime_data_claims: expected what the evidence is bound to, the token says nothing",
        ),
        (
            changed(ear(), &data, json!({"pubkey-hash": "x"})),
            "claim runtime_data: expected \"pubkey-hash\":\"ggFYIKY1ik65N2mHVihkWwUz2PAYyaFsKBTtE7ml1fMis82h\", the token \
             says {\"pubkey-hash\":\"x\"}",
        ),
        (
            changed(ear(), &format!("{data}/model-identity"), json!("bb")),
            "claim model-identity: expected \"aa\", the token says \"bb\"",
        ),
        (
            changed(ear(), &data, json!({"pubkey-hash": HASH})),
            "claim model-identity: expected \"aa\", the token says nothing",
        ),
        (changed(ear(), "/exp", json!("soon")), "claim exp: expected a date, the token says nothing"),
        (
            changed(ear(), "/exp", json!(NOW)),
            "the attestation service's token is not accepted: it expired 0 s ago",
        ),
        (
            changed(ear(), "/exp", json!(NOW - 7)),
            "the attestation service's token is not accepted: it expired 7 s ago",
        ),
        (
            changed(ear(), "/nbf", json!(NOW + 61)),
            "the attestation service's token is not accepted: it is not valid for another 61 s",
        ),
        (
            json!({"exp": NOW + 1}),
            "claim evaluation-reports: expected policy-id \"default\", the token says nothing",
        ),
    ] {
        assert_eq!(judged(&claims, &current(), &model), Err(expected.to_owned()));
    }
}

#[test]
fn each_claim_of_a_simple_token_is_named() {
    let default = demands(&["default"], &[]);
    for (claims, expected) in [
        (
            changed(simple(), "/evaluation-reports", json!([{"policy-id": "gpu"}])),
            "claim evaluation-reports: expected policy-id \"default\", the token says [{\"policy-id\":\"gpu\"}]",
        ),
        (
            changed(simple(), "/customized_claims", json!({})),
            "claim customized_claims.runtime_data: expected what the evidence is bound to, the token says nothing",
        ),
        (
            // More than the same is not the same.
            changed(simple(), "/customized_claims/runtime_data/more", json!(1)),
            "claim runtime_data: expected {\"rats-rs.raw_runtime_data\":\"G31E\"}, the token says \
             {\"more\":1,\"rats-rs.raw_runtime_data\":\"G31E\"}",
        ),
    ] {
        assert_eq!(judged(&claims, &legacy(), &default), Err(expected.to_owned()));
    }
    assert_eq!(
        judged(&simple(), &legacy(), &demands(&[], &[("model-identity", "aa")])),
        Err("claim model-identity: expected \"aa\", the token says nothing: a certificate in the legacy format (TNG up to \
             2.2.6) cannot carry it"
            .to_owned())
    );
}

#[test]
fn a_token_for_one_format_does_not_do_for_the_other() {
    let none = demands(&[], &[]);
    assert!(judged(&ear(), &legacy(), &none).unwrap_err().starts_with("claim runtime_data: "));
    assert!(judged(&simple(), &current(), &none).unwrap_err().starts_with("claim runtime_data: "));
}

#[test]
fn signature_counts_where_signers_are_named() {
    let pair = KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256).unwrap();
    let certificate = CertificateParams::new(vec!["as".to_owned()]).unwrap().self_signed(&pair).unwrap();
    let signers = Signers::from_pem(certificate.pem().as_bytes()).unwrap();
    let key = EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, &pair.serialize_der()).unwrap();
    let unsigned = token(&changed(ear(), "/exp", json!(4_000_000_000_u64)));
    let (message, _) = unsigned.rsplit_once('.').unwrap();
    let signature = key.sign(&SystemRandom::new(), message.as_bytes()).unwrap();
    let signed = format!("{message}.{}", URL_SAFE_NO_PAD.encode(signature.as_ref()));
    let check = |token: &str| {
        let none = demands(&[], &[]);
        judge(token, &current(), &none, Some(&signers), SystemTime::now()).map_err(|refused| chain(&refused))
    };
    assert_eq!(check(&signed), Ok(Verdict { expires: at(4_000_000_000) }));
    let refused = "the attestation service's token is not accepted: none of the named certificates signed it";
    assert_eq!(check(&unsigned), Err(refused.to_owned()));
    for algorithm in ["none", "HS256"] {
        let header = URL_SAFE_NO_PAD.encode(json!({"alg": algorithm}).to_string());
        let (_, rest) = signed.split_once('.').unwrap();
        let refused = format!(
            "the attestation service's token is not accepted: it claims the signature algorithm {algorithm}"
        );
        assert_eq!(check(&format!("{header}.{rest}")), Err(refused));
    }
}

proptest! {
    #[test]
    fn any_text_is_refused_without_panic(text in ".{0,200}", claims in "\\PC{0,100}") {
        let none = demands(&[], &[]);
        prop_assert!(judge(&text, &current(), &none, None, at(NOW)).is_err());
        let segment = |text: &str| URL_SAFE_NO_PAD.encode(text);
        let token = format!("{}.{}.", segment(r#"{"alg":"ES256"}"#), segment(&claims));
        prop_assert!(judge(&token, &current(), &none, None, at(NOW)).is_err());
    }
}

#[test]
fn refusal_says_what_to_do_about_it() {
    let hint = |claims: &Value, bound: &Bound, demands: &Demands| {
        VerifyError::Verdict(judge(&token(claims), bound, demands, None, at(NOW)).unwrap_err()).hint()
    };
    let other = changed(ear(), "/submods/cpu0/ear.appraisal-policy-id", json!("another"));
    assert_eq!(
        hint(&other, &current(), &demands(&["default"], &[])),
        "do not use this peer, unless the policy asked for is the wrong one"
    );
    assert_eq!(
        hint(&ear(), &current(), &demands(&["default", "strict"], &[])),
        "a service that issues EAR tokens appraises under the first policy alone: ask for one (cai connect: --policy once)"
    );
    assert_eq!(
        hint(&ear(), &Bound { devices: 2, ..current() }, &demands(&[], &[])),
        "the service did not judge all that the peer showed: does it know these devices, and has it a policy for them?"
    );
    assert_eq!(
        hint(&simple(), &legacy(), &demands(&[], &[("model-identity", "aa")])),
        "servers show newer certificates to newer clients: offer what those do (cai connect --mode auto), or have the server \
         show them to all (its cai.toml: gateway.certificate = \"current\")"
    );
}
