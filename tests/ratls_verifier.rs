//! Claim: a verifier attests a peer exactly when the attestation service says so in a token that counts; whatever else
//! happens at the service is a refusal that says what; a verdict is kept as long as its token lives, and no longer.
#![cfg(feature = "sandbox")]

#[path = "common/egress.rs"]
mod egress;
#[path = "common/raw_http.rs"]
mod raw_http;
#[path = "common/sandbox.rs"]
mod sandbox;

use std::collections::BTreeMap;
use std::path::Path;
use std::time::SystemTime;

use cai::error::{Fault as _, chain};
use cai::ratls::{Demands, Format, MODEL_IDENTITY, Verifier, VerifierOptions, VerifyError};
use egress::{Evidence, certified};
use raw_http::{Script, answer};
use sandbox::{Builder, Sandbox};
use serde_json::json;

fn service(builder: Builder, dir: &Path) -> (Sandbox, Vec<u8>) {
    let ca = dir.join("ca.pem");
    let sandbox = Sandbox::start(builder.with(&["--token-cert-out", ca.to_str().unwrap()]));
    (sandbox, std::fs::read(ca).unwrap())
}

fn verifier(base: &str, signers: Option<&[u8]>, demands: Demands) -> Verifier {
    let url = format!("{base}/as/").parse().unwrap();
    let unauthenticated = signers.is_none();
    Verifier::new(VerifierOptions { url: &url, ca: None, signers, unauthenticated, demands }).unwrap()
}

fn default_policy() -> Demands {
    Demands { policies: vec!["default".to_owned()], members: BTreeMap::new() }
}

fn of_format(format: Format) -> Vec<u8> {
    Evidence { format, ..Evidence::default() }.identity().certificate
}

async fn refusal(verifier: &Verifier, certificate: &[u8]) -> (String, &'static str) {
    let error = verifier.verify(certificate).await.unwrap_err();
    (chain(&error), error.code())
}

#[tokio::test]
async fn peers_are_attested_by_services_of_both_generations_in_both_formats() {
    let dir = tempfile::tempdir().unwrap();
    for (builder, formats) in [
        (Builder::default(), vec![Format::Current, Format::Legacy]),
        (Builder::default().protocol("0.1.0"), vec![Format::Current, Format::Legacy]),
        (Builder::default().protocol("0.1.0").with(&["--kbs-oldest"]), vec![Format::Legacy, Format::Current]),
    ] {
        let (sandbox, ca) = service(builder, dir.path());
        let verifier = verifier(&sandbox.kbs, Some(&ca), default_policy());
        for format in formats {
            let peer = verifier.verify(&of_format(format)).await.unwrap();
            assert_eq!((peer.tee.as_str(), peer.format, peer.authenticated), ("sample", format, true));
            let left = peer.term.expires().duration_since(SystemTime::now()).unwrap().as_secs();
            assert!((290..=300).contains(&left), "{left}");
        }
    }
}

#[tokio::test]
async fn verdict_is_asked_for_once_while_the_token_lives() {
    let dir = tempfile::tempdir().unwrap();
    let (sandbox, ca) = service(Builder::default(), dir.path());
    let verifier = verifier(&sandbox.kbs, Some(&ca), default_policy());
    let (first, second) = (of_format(Format::Current), of_format(Format::Current));
    for certificate in [&first, &first, &second, &first] {
        verifier.verify(certificate).await.unwrap();
    }
    assert_eq!(sandbox.count("kbs.evaluate").await, 2);
    // A token that ends at once is of use to nobody.
    sandbox.faults(json!([{"do": {"as_token_life": {"secs": 0}}}])).await;
    let (text, code) = refusal(&verifier, &of_format(Format::Current)).await;
    assert!(text.contains("it expired"), "{text}");
    assert_eq!(code, "verify.token");
}

#[tokio::test]
async fn each_fault_of_the_service_is_a_refusal_that_says_what() {
    let dir = tempfile::tempdir().unwrap();
    let (sandbox, ca) = service(Builder::default(), dir.path());
    let verifier = verifier(&sandbox.kbs, Some(&ca), default_policy());
    let certificate = of_format(Format::Current);
    let url = format!("{}/as/attestation", sandbox.kbs);
    let token = "the verdict on the peer is not accepted: the attestation service's token is not accepted: ";
    for (fault, code, text) in [
        (json!("kbs_refuse_evidence"), "verify.denied", format!("the attestation service {url} refuses the evidence: HTTP 500 `refused by a fault`")),
        (json!("kbs_token_signature"), "verify.token", format!("{token}its signature does not verify")),
        (json!("kbs_token_expired"), "verify.token", format!("{token}it expired 3600 s ago")),
        (json!("as_garbage"), "verify.token", format!("{token}it is not a JSON Web Token")),
        (
            json!("as_contraindicate"),
            "verify.claim",
            "the verdict on the peer is not accepted: claim submods.cpu0.ear.status: expected affirming, the token says \
             \"contraindicated\""
                .to_owned(),
        ),
        (
            json!("as_other_policy"),
            "verify.claim",
            "the verdict on the peer is not accepted: claim submods.cpu0.ear.appraisal-policy-id: expected \"default\", the \
             token says \"another\""
                .to_owned(),
        ),
        (
            json!({"kbs_oversize": {"bytes": 9 << 20}}),
            "verify.answer-too-long",
            format!("the attestation service {url} answers with more than 8388608 bytes"),
        ),
        (
            json!({"kbs_status": {"status": 503}}),
            "verify.denied",
            format!("the attestation service {url} refuses the evidence: HTTP 503 `<html><body><h1>503 Service Unavailable</h1></body></html>`"),
        ),
        (
            json!({"kbs_redirect": {"location": "http://127.0.0.1:9/"}}),
            "verify.denied",
            format!("the attestation service {url} refuses the evidence: HTTP 302 ``"),
        ),
    ] {
        sandbox.faults(json!([{"do": fault, "on": ["evaluate"]}])).await;
        let (found, found_code) = refusal(&verifier, &certificate).await;
        assert_eq!((found_code, found.replace("3601", "3600")), (code, text));
    }
    sandbox.faults(json!([{"do": "as_other_data"}])).await;
    let (text, code) = refusal(&verifier, &certificate).await;
    assert_eq!(code, "verify.claim");
    assert!(text.ends_with("the token says {\"pubkey-hash\":\"of another key\"}"), "{text}");
    sandbox.faults(json!([{"do": "kbs_drop"}])).await;
    let (text, code) = refusal(&verifier, &certificate).await;
    assert_eq!(code, "verify.unreachable");
    assert!(text.starts_with(&format!("asking the attestation service {url}: ")), "{text}");
    // None of that was kept.
    sandbox.faults(json!([])).await;
    verifier.verify(&certificate).await.unwrap();
}

#[tokio::test]
async fn token_of_another_signer_is_refused_where_one_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let (sandbox, _) = service(Builder::default(), dir.path());
    let (_other, ca) = service(Builder::default(), dir.path());
    let (text, code) =
        refusal(&verifier(&sandbox.kbs, Some(&ca), default_policy()), &of_format(Format::Current)).await;
    assert_eq!(code, "verify.token");
    assert!(
        text.contains("its certificates do not lead up to the named ones: certificate 0 of the chain"),
        "{text}"
    );
    let nobody = verifier(&sandbox.kbs, None, default_policy());
    assert!(!nobody.is_authenticated());
    assert!(!nobody.verify(&of_format(Format::Current)).await.unwrap().authenticated);
}

#[tokio::test]
async fn verifier_that_anybody_could_answer_for_is_refused_unless_it_is_wanted() {
    let refused = |url: &str| {
        let url = url.parse().unwrap();
        let options = VerifierOptions {
            url: &url,
            ca: None,
            signers: None,
            unauthenticated: false,
            demands: default_policy(),
        };
        Verifier::new(options).map(|verifier| verifier.is_authenticated()).map_err(|error| chain(&error))
    };
    assert_eq!(refused("https://trustee.example/as"), Ok(true));
    assert_eq!(
        refused("http://trustee.example/as/"),
        Err("http://trustee.example/as/attestation is plain http and no certificate of its token signer is given: anybody \
             could answer in its place"
            .to_owned())
    );
    for url in ["ftp://host/as", "http://user:word@host/as", "http://host/as?x=1", "http://host/as#x"] {
        let text = refused(url).unwrap_err();
        assert!(text.contains("is not the base of an attestation service"), "{text}");
        assert!(!text.contains("word"), "{text}");
    }
    let url = "https://trustee.example/as".parse().unwrap();
    let junk = Some(&b"junk"[..]);
    let with = |ca, signers| {
        let options =
            VerifierOptions { url: &url, ca, signers, unauthenticated: false, demands: default_policy() };
        Verifier::new(options).unwrap_err().code()
    };
    assert_eq!([with(junk, None), with(None, junk)], ["verify.ca-file", "verify.signer"]);
}

#[tokio::test]
async fn model_identity_is_found_where_it_is_bound() {
    let dir = tempfile::tempdir().unwrap();
    let (sandbox, ca) = service(Builder::default(), dir.path());
    let members = BTreeMap::from([(MODEL_IDENTITY.to_owned(), "aa".repeat(32))]);
    let demands = Demands { members: members.clone(), ..default_policy() };
    let verifier = verifier(&sandbox.kbs, Some(&ca), demands);
    let with = |members| Evidence { members, ..Evidence::default() }.identity().certificate;
    verifier.verify(&with(members)).await.unwrap();
    let (text, code) =
        refusal(&verifier, &with(BTreeMap::from([(MODEL_IDENTITY.to_owned(), "bb".into())]))).await;
    let expected = "aa".repeat(32);
    assert_eq!(code, "verify.claim");
    assert!(
        text.ends_with(&format!("claim model-identity: expected \"{expected}\", the token says \"bb\"")),
        "{text}"
    );
    let (text, _) = refusal(&verifier, &of_format(Format::Legacy)).await;
    assert!(text.ends_with("a certificate in the legacy format (TNG up to 2.2.6) cannot carry it"), "{text}");
}

#[tokio::test]
async fn certificate_that_says_nothing_is_refused_before_anybody_is_asked() {
    let dir = tempfile::tempdir().unwrap();
    let (sandbox, ca) = service(Builder::default(), dir.path());
    let verifier = verifier(&sandbox.kbs, Some(&ca), default_policy());
    let other = certified(|_| None).key.public_key_to_der().unwrap();
    let of_another_key = Evidence { bound_to: Some(other.clone()), ..Evidence::default() };
    let of_another_key_too =
        Evidence { bound_to: Some(other), format: Format::Legacy, ..Evidence::default() };
    for (certificate, code) in [
        (b"junk".to_vec(), "certificate.read"),
        (certified(|_| None).certificate, "certificate.shape"),
        (certified(|_| Some(b"junk".to_vec())).certificate, "evidence.form"),
        (of_another_key.identity().certificate, "evidence.unbound"),
        (of_another_key_too.identity().certificate, "evidence.unbound"),
    ] {
        assert_eq!(refusal(&verifier, &certificate).await.1, code);
    }
    assert_eq!(sandbox.count("kbs.evaluate").await, 0);
}

#[tokio::test]
async fn old_service_is_asked_in_its_own_words_but_not_about_devices() {
    let script = Script::start(|request| match request.body.starts_with(b"{\"verification_requests\"") {
        true => {
            answer("400 Bad Request", &[], b"Json deserialize error: missing field `tee` at line 1 column 9")
        }
        false => answer("200 OK", &[], b"x.y.z"),
    });
    let verifier = verifier(script.endpoint().as_str().trim_end_matches('/'), None, default_policy());
    let (_, code) = refusal(&verifier, &of_format(Format::Current)).await;
    assert_eq!(code, "verify.token");
    let requests = script.requests();
    assert_eq!(requests.len(), 2);
    let body: serde_json::Value = serde_json::from_slice(&requests[1].body).unwrap();
    let names: Vec<&String> = body.as_object().unwrap().keys().collect();
    assert_eq!(
        names,
        [
            "evidence",
            "init_data",
            "init_data_hash_algorithm",
            "policy_ids",
            "runtime_data",
            "runtime_data_hash_algorithm",
            "tee"
        ]
    );
    assert_eq!((requests[1].target.as_str(), &body["policy_ids"]), ("/as/attestation", &json!(["default"])));

    // Devices have no place in the old body: the service's refusal stands.
    let with_devices = certified(|spki| {
        let mut evidence =
            cai::ratls::evidence::TaggedEvidence::decode(&Evidence::default().blob(spki)).unwrap();
        evidence.additional = Some(br#"{"nvidia": {"x": 1}}"#.to_vec());
        Some(evidence.encode())
    });
    let error = verifier.verify(&with_devices.certificate).await.unwrap_err();
    assert!(matches!(error, VerifyError::Denied { status: 400, .. }), "{error:?}");
    let last: serde_json::Value = serde_json::from_slice(&script.requests()[2].body).unwrap();
    let second = &last["verification_requests"][1];
    assert_eq!((&second["tee"], &second["runtime_data"]), (&json!("nvidia"), &json!(null)));
    assert_eq!(script.requests().len(), 3);
}

/// A TLS front, with a certificate of its own (PEM), before the sandbox's Trustee: where it listens.
async fn https_front(sandbox: &Sandbox) -> (String, String) {
    use openssl::ssl::{Ssl, SslContext, SslMethod};
    let key = rcgen::KeyPair::generate().unwrap();
    let certificate =
        rcgen::CertificateParams::new(vec!["127.0.0.1".to_owned()]).unwrap().self_signed(&key).unwrap();
    let mut builder = SslContext::builder(SslMethod::tls_server()).unwrap();
    builder.set_certificate(&openssl::x509::X509::from_der(certificate.der()).unwrap()).unwrap();
    builder
        .set_private_key(&openssl::pkey::PKey::private_key_from_der(&key.serialize_der()).unwrap())
        .unwrap();
    let context = builder.build();
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let behind = sandbox.kbs.trim_start_matches("http://").to_owned();
    #[expect(clippy::disallowed_methods, reason = "ends with the test's runtime")]
    tokio::spawn(async move {
        loop {
            let (stream, _) = listener.accept().await.unwrap();
            let mut stream = tokio_openssl::SslStream::new(Ssl::new(&context).unwrap(), stream).unwrap();
            if std::pin::Pin::new(&mut stream).accept().await.is_ok() {
                let mut behind = tokio::net::TcpStream::connect(&behind).await.unwrap();
                // The client keeps its connection for the next question; nobody else waits.
                let _ = tokio::io::copy_bidirectional(&mut stream, &mut behind).await;
            }
        }
    });
    (format!("https://{address}"), certificate.pem())
}

#[tokio::test]
async fn https_service_is_believed_under_its_own_ca_and_no_other() {
    let dir = tempfile::tempdir().unwrap();
    let (sandbox, signer) = service(Builder::default(), dir.path());
    let (base, ca) = https_front(&sandbox).await;
    let url = format!("{base}/as").parse().unwrap();
    let with = |ca, signers| {
        let demands = default_policy();
        Verifier::new(VerifierOptions { url: &url, ca, signers, unauthenticated: false, demands }).unwrap()
    };
    let peer = with(Some(ca.as_bytes()), None).verify(&of_format(Format::Current)).await.unwrap();
    assert!(peer.authenticated);
    for other in [with(None, None), with(Some(&signer), None), with(None, Some(&signer))] {
        let (text, code) = refusal(&other, &of_format(Format::Current)).await;
        assert_eq!(code, "verify.untrusted");
        let told =
            format!("the attestation service {url}/attestation shows a certificate that is not trusted: ");
        assert!(text.starts_with(&told), "{text}");
    }
    assert_eq!(sandbox.count("kbs.evaluate").await, 1);
}
