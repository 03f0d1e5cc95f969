//! Claim: the policies in `packaging/trustee/` give the key to the machine they describe and to no other, with the very
//! reference values that `cai attest --reference-values` prints.
//!
//! Evaluated by regorus, the engine inside Trustee. What goes in has the shape of the tokens that running Trustees issued
//! (`vectors/kbs-exchange-0.4.0.json`); the appraisal in a token is the attestation policy's own.

use std::path::{Path, PathBuf};

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use cai::attest::{Claims, TdxClaims, reference_values};
use regorus::{Engine, Value as Rego};
use serde_json::{Value, json};

const KEY: &str = "default/aliyun/model-decryption-key";
const MRTD: &str = "a0a1";
const RTMR1: &str = "b1b1";
const RTMR2: &str = "b2b2";
const XFAM: &str = "e702060000000000";

fn directory() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("packaging/trustee")
}

/// A policy file, its placeholders filled in as its comments say.
fn policy(name: &str) -> String {
    std::fs::read_to_string(directory().join(name))
        .unwrap()
        .replace("REPLACE-WITH-MRTD", MRTD)
        .replace("REPLACE-WITH-RTMR1", RTMR1)
        .replace("REPLACE-WITH-RTMR2", RTMR2)
        .replace("gpus_expected := 8", "gpus_expected := 2")
}

fn rego(value: &Value) -> Rego {
    Rego::from_json_str(&value.to_string()).unwrap()
}

fn engine(policy: &str, input: &Value, data: &Value) -> Engine {
    let mut engine = Engine::new();
    engine.add_policy("policy.rego".into(), policy.into()).unwrap();
    engine.add_data(rego(data)).unwrap();
    engine.set_input(rego(input));
    engine
}

fn allows(policy: &str, input: &Value, data: &Value) -> bool {
    *engine(policy, input, data).eval_rule("data.policy.allow".into()).unwrap().as_bool().unwrap()
}

// ---- The machine ---------------------------------------------------------------------------------------------------

/// What the verifier reads out of a good TD's evidence, as one tree (`quote.body.mr_td`, ...).
fn evidence() -> Value {
    json!({
        "quote": {
            "header": {"tee_type": "81000000", "vendor_id": "939a7233f79c4ca9940a0db3957f0607"},
            "body": {
                "mr_td": MRTD, "rtmr_0": "b0b0", "rtmr_1": RTMR1, "rtmr_2": RTMR2, "rtmr_3": "b3b3",
                "td_attributes": "0000001000000000", "xfam": XFAM,
            },
        },
        "td_attributes": {"debug": false},
        "tcb_status": "UpToDate",
        "collateral_expiration_status": "0",
    })
}

/// The reference values of that machine, as cai prints them.
fn reference() -> Value {
    let tdx = TdxClaims {
        mrtd: MRTD.into(),
        rtmrs: ["b0b0", RTMR1, RTMR2, "b3b3"].map(str::to_owned),
        xfam: XFAM.into(),
        ..TdxClaims::default()
    };
    json!(reference_values(&Claims { tdx: Some(tdx), ..Claims::default() }))
}

/// Ways in which a machine is not the one that was registered: what it is called, where, what stands there instead.
const WRONG: [(&str, &str, &str); 6] = [
    ("another firmware", "/quote/body/mr_td", "ffff"),
    ("another kernel", "/quote/body/rtmr_1", "ffff"),
    ("another command line", "/quote/body/rtmr_2", "ffff"),
    ("other features", "/quote/body/xfam", "ffff"),
    ("not a TD's quote", "/quote/header/tee_type", "00000000"),
    ("another quoting enclave", "/quote/header/vendor_id", "00"),
];

fn with(mut value: Value, pointer: &str, new: impl Into<Value>) -> Value {
    *value.pointer_mut(pointer).unwrap() = new.into();
    value
}

fn debug(evidence: Value) -> Value {
    let evidence = with(evidence, "/quote/body/td_attributes", "0100001000000000");
    with(evidence, "/td_attributes/debug", true)
}

/// `{"quote":{"body":{"mr_td":..}}}` as `{"tdx.quote.body.mr_td":..}`.
fn flattened(prefix: &str, value: &Value, flat: &mut serde_json::Map<String, Value>) {
    match value {
        Value::Object(members) => {
            members.iter().for_each(|(name, value)| flattened(&format!("{prefix}.{name}"), value, flat));
        }
        leaf => drop(flat.insert(prefix.to_owned(), leaf.clone())),
    }
}

fn flat(evidence: &Value) -> Value {
    let mut flat = serde_json::Map::new();
    flattened("tdx", evidence, &mut flat);
    Value::Object(flat)
}

// ---- First generation: Simple tokens -------------------------------------------------------------------------------

fn simple_token(tee: &str, evidence: &Value) -> Value {
    json!({
        "iss": "CoCo-Attestation-Service", "jwk": {"kty": "RSA"}, "tee": tee, "tcb-status": flat(evidence),
        "evaluation-reports": [{"policy-id": "default", "policy-hash": "00"}],
        "customized_claims": {"init_data": null, "runtime_data": {"nonce": "n"}},
    })
}

#[test]
fn simple_resource_policy_allows_the_measured_image_and_nothing_else() {
    let policy = policy("resource-policy/alibaba-simple.rego");
    let decide = |token: &Value, path: &str| allows(&policy, token, &json!({ "resource-path": path }));
    assert!(decide(&simple_token("tdx", &evidence()), KEY));
    assert!(!decide(&simple_token("sample", &evidence()), KEY), "sample");
    assert!(!decide(&simple_token("sample", &json!({"svn": "1"})), KEY), "sample");
    assert!(!decide(&simple_token("tdx", &debug(evidence())), KEY), "DEBUG");
    for (what, pointer, value) in WRONG.into_iter().take(3) {
        assert!(!decide(&simple_token("tdx", &with(evidence(), pointer, value)), KEY), "{what}");
    }
    for path in ["default/aliyun/another", "resource/default/aliyun/model-decryption-key", ""] {
        assert!(!decide(&simple_token("tdx", &evidence()), path), "{path}");
    }
    assert!(!decide(&json!({}), KEY), "empty token");
}

#[test]
fn simple_resource_policy_with_placeholders_denies_everybody() {
    let raw = std::fs::read_to_string(directory().join("resource-policy/alibaba-simple.rego")).unwrap();
    assert!(!allows(&raw, &simple_token("tdx", &evidence()), &json!({ "resource-path": KEY })));
}

#[test]
fn simple_attestation_policy_wants_every_decisive_value_registered() {
    let policy = policy("attestation-policy/alibaba-simple.rego");
    let decide = |evidence: &Value, reference: Value| {
        allows(&policy, &flat(evidence), &json!({ "reference": reference }))
    };
    assert!(decide(&evidence(), reference()));
    assert!(!decide(&evidence(), json!({})), "nothing is registered");
    assert!(!decide(&debug(evidence()), reference()), "DEBUG");
    for (what, pointer, value) in WRONG {
        assert!(!decide(&with(evidence(), pointer, value), reference()), "{what}");
    }
}

// ---- EAR tokens ----------------------------------------------------------------------------------------------------

/// The trustworthiness vector that an attestation policy gives.
fn appraise(policy_name: &str, evidence: &Value, reference: &Value) -> Value {
    let mut engine = Engine::new();
    engine.add_policy("policy.rego".into(), policy(policy_name)).unwrap();
    if policy_name.contains("upstream") {
        let reference = reference.clone();
        let lookup = move |arguments: Vec<Rego>| {
            let name = arguments[0].as_string()?.to_string();
            Ok(reference.get(&name).map_or(Rego::new_array(), rego))
        };
        engine.add_extension("query_reference_value".into(), 1, Box::new(lookup)).unwrap();
    }
    engine.add_data(rego(&json!({ "reference": reference }))).unwrap();
    engine.set_input(rego(evidence));
    let mut vector = serde_json::Map::new();
    for rule in ["hardware", "executables", "configuration", "file_system"] {
        // Upstream's says nothing of the file system.
        if rule != "file_system" || !policy_name.contains("upstream") {
            let value = engine.eval_rule(format!("data.policy.{rule}")).unwrap();
            vector.insert(rule.replace('_', "-"), value.as_u64().unwrap().into());
        }
    }
    Value::Object(vector)
}

/// The worst of the vector, in AR4SI's words.
fn status(vector: &Value) -> &'static str {
    match vector.as_object().unwrap().values().filter_map(Value::as_u64).max().unwrap() {
        0..=1 => "none",
        2..=31 => "affirming",
        32..=95 => "warning",
        _ => "contraindicated",
    }
}

/// A submodule of an EAR token about `evidence`, as the attestation policy appraises it.
fn submod(policy_name: &str, evidence: Value, reference: &Value) -> Value {
    let vector = appraise(policy_name, &evidence, reference);
    let mut annotated = evidence;
    annotated["runtime_data_claims"] = json!({"nonce": "n"});
    json!({
        "ear.status": status(&vector), "ear.trustworthiness-vector": vector,
        "ear.appraisal-policy-id": "default", "ear.veraison.annotated-evidence": annotated,
    })
}

const ALIBABA: &str = "attestation-policy/alibaba-ear.rego";
const UPSTREAM: &str = "attestation-policy/upstream.rego";

fn alibaba_token(submod_name: &str, tdx: Value) -> Value {
    json!({
        "eat_profile": "tag:github.com,2024:confidential-containers/Trustee",
        "submods": {submod_name: submod(ALIBABA, json!({ "tdx": tdx }), &reference())},
    })
}

/// The token that a running Trustee issued for the sample TEE.
fn recorded_sample_token() -> Value {
    let recorded: Value = serde_json::from_str(include_str!("vectors/kbs-exchange-0.4.0.json")).unwrap();
    let answer: Value = serde_json::from_str(recorded[2]["resp_body"].as_str().unwrap()).unwrap();
    let claims = answer["token"].as_str().unwrap().split('.').nth(1).unwrap();
    serde_json::from_slice(&URL_SAFE_NO_PAD.decode(claims).unwrap()).unwrap()
}

#[test]
fn appraisal_of_the_registered_machine_is_affirming_and_of_any_other_is_not() {
    for name in [ALIBABA, UPSTREAM] {
        let judge =
            |tdx: Value, reference: &Value| status(&appraise(name, &json!({ "tdx": tdx }), reference));
        assert_eq!(judge(evidence(), &reference()), "affirming", "{name}");
        assert_eq!(judge(evidence(), &json!({})), "contraindicated", "{name}: nothing is registered");
        assert_eq!(judge(debug(evidence()), &reference()), "warning", "{name}: DEBUG");
        for (what, pointer, value) in WRONG {
            assert_ne!(judge(with(evidence(), pointer, value), &reference()), "affirming", "{name}: {what}");
        }
        assert_eq!(
            status(&appraise(name, &json!({"sample": {"svn": "1"}}), &reference())),
            "contraindicated"
        );
    }
}

#[test]
fn upstream_appraisal_of_a_platform_out_of_date_is_not_affirming() {
    for (pointer, value) in [("/tcb_status", "OutOfDate"), ("/collateral_expiration_status", "1")] {
        let tdx = with(evidence(), pointer, value);
        assert_eq!(status(&appraise(UPSTREAM, &json!({ "tdx": tdx }), &reference())), "contraindicated");
    }
}

#[test]
fn alibaba_resource_policy_allows_an_affirmed_td_and_nothing_else() {
    let policy = policy("resource-policy/alibaba-ear.rego");
    let path = format!("resource/{KEY}");
    let decide = |token: &Value, path: &str| allows(&policy, token, &json!({ "resource-path": path }));
    for name in ["cpu", "cpu0"] {
        assert!(decide(&alibaba_token(name, evidence()), &path), "{name}");
        assert!(!decide(&alibaba_token(name, debug(evidence())), &path), "{name}: DEBUG");
        for (what, pointer, value) in WRONG {
            assert!(!decide(&alibaba_token(name, with(evidence(), pointer, value)), &path), "{name}: {what}");
        }
    }
    for other in [KEY, "resource/default/aliyun/another", ""] {
        assert!(!decide(&alibaba_token("cpu0", evidence()), other), "{other}");
    }
    let sample = recorded_sample_token();
    assert_eq!(sample["submods"]["cpu0"]["ear.status"], "contraindicated");
    assert!(!decide(&sample, &path), "sample");
    let flattered = with(sample, "/submods/cpu0/ear.status", "affirming");
    assert!(!decide(&flattered, &path), "sample that some appraisal affirms");
    // A bad cpu0 is not excused by a good cpu beside it.
    let mut both = alibaba_token("cpu", evidence());
    both["submods"]["cpu0"] = alibaba_token("cpu0", debug(evidence()))["submods"]["cpu0"].take();
    assert!(!decide(&both, &path));
    assert!(!decide(&json!({}), &path), "empty token");
}

#[test]
fn alibaba_gpu_policy_wants_every_gpu_once_confidential_and_measured() {
    let policy = policy("resource-policy/alibaba-ear-gpu.rego");
    let gpu =
        |uuid: &str| json!({"uuid": uuid, "name": "NVIDIA H20", "cc_enabled": true, "measurement": "00ff"});
    let decide = |gpus: &[Value]| {
        let mut tdx = evidence();
        for (index, gpu) in gpus.iter().enumerate() {
            tdx[format!("nvidia_gpu.{index}")] = gpu.clone();
        }
        let data = json!({ "resource-path": format!("resource/{KEY}") });
        allows(&policy, &alibaba_token("cpu0", tdx), &data)
    };
    let (one, two) = (gpu("GPU-1"), gpu("GPU-2"));
    assert!(decide(&[one.clone(), two.clone()]));
    assert!(!decide(&[]), "no GPU");
    assert!(!decide(std::slice::from_ref(&one)), "a GPU is missing");
    assert!(!decide(&[one.clone(), two.clone(), gpu("GPU-3")]), "more GPUs than the machine has");
    assert!(!decide(&[one.clone(), one.clone()]), "one GPU twice");
    assert!(!decide(&[one.clone(), with(two.clone(), "/cc_enabled", false)]), "not confidential");
    let mut unmeasured = two.clone();
    unmeasured.as_object_mut().unwrap().remove("measurement");
    assert!(!decide(&[one, unmeasured]), "not compared with reference measurements");
}

/// How releases name the resource that is asked for.
fn upstream_requests(path: &str) -> [Value; 4] {
    let segments: Vec<&str> = path.split('/').collect();
    [
        json!({"plugin": "resource", "resource-path": segments, "query": {}}),
        json!({"plugin": "resource", "resource-path": path, "query": {}}),
        json!({"plugin": "resource", "resource-path": format!("/{path}"), "query": {}}),
        json!({"resource-path": format!("resource/{path}")}),
    ]
}

fn upstream_token(tdx: Value, gpus: &[(&str, Value)]) -> Value {
    let mut submods = json!({"cpu0": submod(UPSTREAM, json!({ "tdx": tdx }), &reference())});
    for (index, (status, evidence)) in gpus.iter().enumerate() {
        submods[format!("gpu{index}")] =
            json!({"ear.status": status, "ear.veraison.annotated-evidence": evidence});
    }
    json!({ "submods": submods })
}

#[test]
fn upstream_resource_policy_allows_an_affirmed_td_however_the_path_is_given() {
    let policy = policy("resource-policy/upstream.rego");
    let token = upstream_token(evidence(), &[]);
    for data in upstream_requests(KEY) {
        assert!(allows(&policy, &token, &data), "{data}");
        assert!(!allows(&policy, &upstream_token(debug(evidence()), &[]), &data), "DEBUG");
        for (what, pointer, value) in WRONG {
            let wrong = upstream_token(with(evidence(), pointer, value), &[]);
            assert!(!allows(&policy, &wrong, &data), "{what}");
        }
        let sample = with(recorded_sample_token(), "/submods/cpu0/ear.status", "affirming");
        assert!(!allows(&policy, &sample, &data), "sample");
        let bad_gpu = upstream_token(evidence(), &[("contraindicated", json!({"nvidia": {}}))]);
        assert!(!allows(&policy, &bad_gpu, &data), "bad GPU");
        assert!(!allows(&policy, &json!({"submods": {}}), &data), "empty token");
    }
    for data in upstream_requests("default/aliyun/another") {
        assert!(!allows(&policy, &token, &data), "{data}");
    }
    assert!(
        !allows(&policy, &token, &json!({"plugin": "nebula-ca", "resource-path": KEY})),
        "another plugin"
    );
}

#[test]
fn upstream_gpu_policy_wants_every_gpu_affirmed() {
    let policy = policy("resource-policy/upstream-gpu.rego");
    let good = ("affirming", json!({"nvidia": {"measres": true}}));
    let decide = |gpus: &[(&str, Value)]| {
        let token = upstream_token(evidence(), gpus);
        upstream_requests(KEY).map(|data| allows(&policy, &token, &data))
    };
    assert_eq!(decide(&[good.clone(), good.clone()]), [true; 4]);
    assert_eq!(decide(&[]), [false; 4], "no GPU");
    assert_eq!(decide(std::slice::from_ref(&good)), [false; 4], "a GPU is missing");
    assert_eq!(decide(&[good.clone(), ("warning", json!({"nvidia": {}}))]), [false; 4], "not affirming");
    assert_eq!(
        decide(&[good, ("affirming", json!({"sampledevice": {"svn": "2"}}))]),
        [false; 4],
        "sample device"
    );
}

#[test]
fn every_policy_is_tested_and_described() {
    let tested = include_str!("trustee_policies.rs");
    let readme = std::fs::read_to_string(directory().join("README.md")).unwrap();
    let mut count = 0;
    for kind in ["resource-policy", "attestation-policy"] {
        for entry in std::fs::read_dir(directory().join(kind)).unwrap() {
            let name = format!("{kind}/{}", entry.unwrap().file_name().to_str().unwrap());
            assert!(tested.contains(&name), "{name} is not tested");
            assert!(readme.contains(&name), "{name} is not in the README");
            count += 1;
        }
    }
    assert_eq!(count, 8);
}
