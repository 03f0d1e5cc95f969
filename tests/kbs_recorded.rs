//! Claim: the client asks a broker, field by field, what the vendor's own client asked a running Trustee v1.8.7.
//!
//! `vectors/kbs-exchange-0.4.0.json` is that recording; its secret is encrypted to a key that was never kept.

#![cfg(feature = "sandbox")]

#[path = "common/kbs_scenes.rs"]
mod kbs_scenes;
#[path = "common/scripted.rs"]
mod scripted;

use cai::attest::sample_attester;
use cai::config::Protocol;
use cai::error::{ErrorClass, Fault};
use cai::kbs::{Client, KbsError, ResourceUri};
use kbs_scenes::*;
use scripted::{Answer, Request, Scene, Server, answer};
use serde_json::Value;

async fn failed_release(server: &Server) -> KbsError {
    let client = Client::new(&trustee_of(server, Protocol::V0_4_0, None)).unwrap();
    let uri = ResourceUri::parse(RESOURCE).unwrap();
    client.release(sample_attester().unwrap(), &uri, |_| {}).await.err().unwrap()
}

/// Names of all members, as paths.
fn member_paths(prefix: &str, value: &Value, paths: &mut Vec<String>) {
    for (name, value) in value.as_object().into_iter().flatten() {
        let path = format!("{prefix}/{name}");
        member_paths(&path, value, paths);
        paths.push(path);
    }
    paths.sort();
}

#[tokio::test]
async fn recorded_exchange_is_asked_for_field_by_field_as_the_official_client_does() {
    let recorded: Vec<Value> = serde_json::from_str(include_str!("vectors/kbs-exchange-0.4.0.json")).unwrap();
    let replay = |step: &Value, body: String| {
        let mut reply = Answer::new(step["status"].as_u64().unwrap().try_into().unwrap(), body);
        for header in step["resp_headers"].as_array().unwrap() {
            match header[0].as_str().unwrap() {
                "set-cookie" => reply = reply.header("set-cookie", header[1].as_str().unwrap()),
                "content-type" => reply = reply.header("content-type", header[1].as_str().unwrap()),
                _ => {}
            }
        }
        answer(reply)
    };
    let verbatim = |step: &Value| replay(step, step["resp_body"].as_str().unwrap().to_owned());

    // Word for word, up to the token: it is about the official client's key.
    let server = Server::start(vec![verbatim(&recorded[1]), verbatim(&recorded[2])]);
    let error = failed_release(&server).await;
    assert_eq!((error.code(), error.class()), ("kbs.token", ErrorClass::Corrupt));
    let requests = server.finish();
    compare_with_recorded(&requests[0], &recorded[1], &["/extra-params/supported-hash-algorithms"], &[]);
    compare_with_recorded(
        &requests[1],
        &recorded[2],
        &["/tee-evidence/primary_evidence/cc_eventlog"],
        &[
            "/runtime-data/tee-pubkey/x",
            "/runtime-data/tee-pubkey/y",
            "/tee-evidence/primary_evidence/report_data",
        ],
    );
    for body in [requests[1].json(), serde_json::from_str(recorded[2]["req_body"].as_str().unwrap()).unwrap()]
    {
        assert_eq!(
            body["tee-evidence"]["primary_evidence"]["report_data"],
            expected_report_data(&body, NONCE)
        );
    }

    // With a token about our key, on to the secret, which is encrypted to the official client's key.
    let nonce = NONCE;
    let about_us: Scene =
        Box::new(move |request| token_answer(&token(nonce, &request.json()["runtime-data"]["tee-pubkey"])));
    let server = Server::start(vec![verbatim(&recorded[1]), about_us, verbatim(&recorded[3])]);
    let error = failed_release(&server).await;
    assert_eq!((error.code(), error.class()), ("kbs.jwe", ErrorClass::Corrupt));
    compare_with_recorded(&server.finish()[2], &recorded[3], &[], &[]);
}

/// Our request has the line, headers and members of the recorded one, except those the official client alone sends and
/// those whose values depend on its key.
fn compare_with_recorded(ours: &Request, recorded: &Value, only_theirs: &[&str], of_the_key: &[&str]) {
    let text = |name: &str| recorded[name].as_str().unwrap();
    assert_eq!((ours.method.as_str(), ours.path.as_str()), (text("method"), text("path")));
    for name in ["content-type", "accept", "cookie"] {
        assert_eq!(ours.header(name), recorded["req_headers"][name].as_str(), "{name} of {}", ours.path);
    }
    if text("req_body").is_empty() {
        return assert_eq!(ours.body, b"");
    }
    let (ours, theirs) = (ours.json(), serde_json::from_str::<Value>(text("req_body")).unwrap());
    let (mut our_paths, mut their_paths) = (Vec::new(), Vec::new());
    member_paths("", &ours, &mut our_paths);
    member_paths("", &theirs, &mut their_paths);
    their_paths.retain(|path| !only_theirs.contains(&path.as_str()));
    assert_eq!(our_paths, their_paths);
    for path in &our_paths {
        let (ours, theirs) = (ours.pointer(path).unwrap(), theirs.pointer(path).unwrap());
        if of_the_key.contains(&path.as_str()) {
            assert_eq!(ours.as_str().unwrap().len(), theirs.as_str().unwrap().len(), "{path}");
        } else if !ours.is_object() && path != "/extra-params" {
            assert_eq!(ours, theirs, "{path}");
        }
    }
}
