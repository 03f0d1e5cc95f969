//! The stand-in attestation service, below `/as/`: what a relying party asks about the evidence it was shown.
//!
//! Owns the bodies of `attestation` in both generations, and the refusals' wire form; evidence is verified and tokens are
//! signed by what the key broker has. Trustee 0.1.0 takes the old body, later ones the new; the oldest answers with simple
//! RS384 tokens, the others with EAR. Its policies, whatever their names, affirm all evidence that verifies: a fault makes
//! them say something else. Stateless but for the key of challenges, made when first asked for. Tested in
//! `tests/sandbox_attestation.rs`, and with the real `tng` in `tests/connect_tng.rs`.
//!
//! Source: `kbs.md` 10, `kbs-observed.md` (restful-as), `tng.md` 5.

use std::sync::Arc;

use aws_lc_rs::digest::{Algorithm, SHA256, SHA384, SHA512, digest};
use base64::Engine;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use http::{Method, StatusCode};
use serde::Deserialize;
use serde_json::{Value, json};

use crate::faults::{Act, Faults, Op, Place};
use crate::kbs_evidence::verify_bare;
use crate::kbs_server::{Character, Protocol};
use crate::kbs_token::{Appraisal, Challenger, Signer, Spoiled};
use crate::wire::{Reply, reply};

/// The service; the key broker's listener routes to it.
pub(crate) struct Service {
    pub(crate) server: Character,
    pub(crate) faults: Arc<Faults>,
    pub(crate) signer: Arc<Signer>,
    pub(crate) challenger: Challenger,
}

/// One piece of evidence; the whole body in the old generation, beside `policy_ids`.
#[derive(Deserialize)]
struct Item {
    tee: String,
    evidence: String,
    runtime_data: Option<Data>,
    init_data: Option<Value>,
    runtime_data_hash_algorithm: Option<String>,
}

#[derive(Deserialize)]
#[serde(rename_all = "lowercase")]
enum Data {
    Structured(Value),
    /// base64url, the expected report data itself.
    Raw(String),
}

#[derive(Deserialize)]
struct OldBody {
    #[serde(flatten)]
    item: Item,
    policy_ids: Vec<String>,
}

#[derive(Deserialize)]
struct NewBody {
    verification_requests: Vec<Item>,
    policy_ids: Vec<String>,
}

/// What the service says no to.
enum No {
    /// The body is not one.
    Body(String),
    /// The verifier's words.
    Evidence(String),
}

impl Service {
    /// What `path`, below the service's own, asks for.
    pub(crate) fn op(path: &str) -> Op {
        if path == "attestation" { Op::Evaluate } else { Op::Other }
    }

    /// Answer a request that no fault answered.
    pub(crate) fn route(&self, path: &str, method: &Method, body: &[u8]) -> Reply {
        match (path, method) {
            ("attestation", &Method::POST) => match self.evaluate(body) {
                Ok(token) => reply(StatusCode::OK, Some("text/plain; charset=utf-8"), token),
                Err(no) => self.refuse(no),
            },
            ("challenge", &Method::POST) => match self.challenger.challenge() {
                // The old generation needs a TEE for it.
                Ok(_) if self.server.protocol == Protocol::V010 => {
                    self.refuse(No::Evidence("Failed to get inner tee".to_owned()))
                }
                Ok(challenge) => reply(StatusCode::OK, Some("application/json"), challenge.to_string()),
                Err(error) => self.refuse(No::Evidence(error.to_string())),
            },
            ("certificate", &Method::GET) => match self.signer.certificates() {
                Some(pem) => reply(StatusCode::OK, Some("application/x-pem-file"), pem.to_owned()),
                None => reply(StatusCode::NOT_FOUND, None, ""),
            },
            _ => reply(StatusCode::NOT_FOUND, None, ""),
        }
    }

    fn refuse(&self, no: No) -> Reply {
        let text = Some("text/plain; charset=utf-8");
        match no {
            No::Body(why) => reply(StatusCode::BAD_REQUEST, text, format!("Json deserialize error: {why}")),
            No::Evidence(why) if self.server.protocol == Protocol::V010 => {
                let why = format!("An internal error occured: attestation service: {why}");
                reply(StatusCode::INTERNAL_SERVER_ERROR, text, why)
            }
            No::Evidence(why) => {
                let kind =
                    "https://github.com/confidential-containers/attestation-service/errors/Attestation";
                let body = json!({"type": kind, "detail": why}).to_string();
                reply(StatusCode::INTERNAL_SERVER_ERROR, Some("application/json"), body)
            }
        }
    }

    fn evaluate(&self, body: &[u8]) -> Result<String, No> {
        let unreadable = |error: serde_json::Error| No::Body(error.to_string());
        let (item, policies) = if self.server.protocol == Protocol::V010 {
            let OldBody { item, policy_ids } = serde_json::from_slice(body).map_err(unreadable)?;
            (item, policy_ids)
        } else {
            let NewBody { verification_requests, policy_ids } =
                serde_json::from_slice(body).map_err(unreadable)?;
            (only(verification_requests).map_err(No::Evidence)?, policy_ids)
        };
        let mut appraisal = self.appraise(item, policies).map_err(No::Evidence)?;
        let mut spoiled = Spoiled::default();
        match self.faults.take(Place::Verdict, Op::Evaluate, "") {
            Some(Act::KbsRefuseEvidence) => return Err(No::Evidence("refused by a fault".to_owned())),
            // A verdict of no is no token at all where there is no place for it in one.
            Some(Act::AsContraindicate) if self.server.oldest => {
                return Err(No::Evidence("denied by policy".to_owned()));
            }
            Some(Act::AsContraindicate) => appraisal.status = "contraindicated",
            Some(Act::AsOtherData) => appraisal.runtime_data = json!({"pubkey-hash": "of another key"}),
            Some(Act::AsOtherPolicy) => appraisal.policies = vec!["another".to_owned()],
            Some(Act::AsTokenLife { secs }) => spoiled.life = Some(secs),
            Some(Act::KbsTokenSignature) => spoiled.signature = true,
            Some(Act::KbsTokenExpired) => spoiled.expired = true,
            Some(Act::AsGarbage) => return Ok("not a token".to_owned()),
            _ => {}
        }
        self.signer.issue(&appraisal, spoiled).map_err(|error| No::Evidence(error.to_string()))
    }

    fn appraise(&self, item: Item, policies: Vec<String>) -> Result<Appraisal, String> {
        let Item { tee, evidence, runtime_data, init_data, runtime_data_hash_algorithm: algorithm } = item;
        if init_data.is_some_and(|data| !data.is_null()) {
            return Err("init data: the stand-ins have nothing to compare it with".to_owned());
        }
        let evidence =
            URL_SAFE_NO_PAD.decode(evidence).map_err(|e| format!("base64 decode evidence: {e}"))?;
        let evidence = serde_json::from_slice(&evidence).map_err(|e| format!("parse evidence: {e}"))?;
        // Without runtime data the real ones check no binding at all: nobody should rely on that.
        let (expected, runtime_data) = match runtime_data.ok_or("no runtime data")? {
            // serde_json keeps members sorted, so this is the canonical form.
            Data::Structured(data) => {
                let algorithm = hash(algorithm.as_deref().unwrap_or("sha384"))?;
                (digest(algorithm, data.to_string().as_bytes()).as_ref().to_vec(), data)
            }
            Data::Raw(raw) => {
                let raw = URL_SAFE_NO_PAD.decode(raw).map_err(|e| format!("base64 decode raw: {e}"))?;
                let shown = STANDARD.encode(&raw);
                (raw, shown.into())
            }
        };
        let verified = verify_bare(self.server.protocol, &tee, evidence, &expected)?;
        let submod = self.server.protocol.submod();
        Ok(Appraisal { submod, verified, gpus: 0, runtime_data, status: "affirming", policies })
    }
}

fn hash(name: &str) -> Result<&'static Algorithm, String> {
    match name {
        "sha256" => Ok(&SHA256),
        "sha384" => Ok(&SHA384),
        "sha512" => Ok(&SHA512),
        _ => Err(format!("unknown hash algorithm {name}")),
    }
}

/// The one piece of evidence there must be: devices beside the CPU have no verifier here.
fn only(items: Vec<Item>) -> Result<Item, String> {
    let count = items.len();
    let mut items = items.into_iter();
    match (items.next(), items.next()) {
        (Some(item), None) => Ok(item),
        (_, Some(second)) => Err(format!("TEE `{}` verifier is not implemented.", second.tee)),
        (None, None) => Err(format!("{count} verification requests")),
    }
}
