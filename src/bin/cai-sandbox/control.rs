//! The control port, for tests and the demo.
//!
//! | request | does |
//! |---|---|
//! | `PUT /faults` | replaces the set of faults (`faults.rs`) |
//! | `GET /faults` | the set, with `times` left and `fired` |
//! | `GET /log` | counts by `server.operation`, and the last requests |
//! | `DELETE /log` | forgets them |
//! | `PUT /resource/default/aliyun/NAME` | stores the body as a resource of the Trustee |
//! | `DELETE /resource/default/aliyun/NAME` | removes it |
//! | `PUT /cloud` | replaces the rules of the metadata service and STS (`cloud.rs`) |
//! | `POST /cloud/expire` | ends every key issued so far |
//! | `POST /cloud/issue` | issues one |
//!
//! No locks of its own; its own requests are not logged. Tested in `tests/sandbox_kbs.rs`.

use std::sync::Arc;

use http::StatusCode;

use crate::cloud::Issuer;
use crate::faults::{Faults, Op};
use crate::journal::Journal;
use crate::kbs::Resources;
use crate::wire::{Call, Outcome, Reply, Site, collect, reply};

/// A fault set or a secret; anything longer is a mistake.
const BODY_LIMIT: usize = 1 << 20;

pub(crate) struct Control {
    pub(crate) faults: Arc<Faults>,
    pub(crate) journal: Arc<Journal>,
    pub(crate) resources: Arc<Resources>,
    pub(crate) issuer: Arc<Issuer>,
}

fn json(value: &impl serde::Serialize) -> Reply {
    match serde_json::to_vec(value) {
        Ok(text) => reply(StatusCode::OK, Some("application/json"), text),
        Err(error) => reply(StatusCode::INTERNAL_SERVER_ERROR, Some("text/plain"), error.to_string()),
    }
}

fn done(done: bool, otherwise: StatusCode) -> Reply {
    reply(if done { StatusCode::NO_CONTENT } else { otherwise }, None, "")
}

impl Site for Control {
    const NAME: &'static str = "control";

    async fn answer(&self, call: Call) -> Outcome {
        let Call { parts, body, .. } = call;
        let reply = match (parts.method.as_str(), parts.uri.path(), collect(body, BODY_LIMIT).await) {
            (_, _, None) => done(false, StatusCode::PAYLOAD_TOO_LARGE),
            ("GET", "/faults", _) => json(&self.faults.snapshot()),
            ("PUT", "/faults", Some(text)) => match self.faults.replace(&text) {
                Ok(()) => done(true, StatusCode::OK),
                Err(why) => reply(StatusCode::BAD_REQUEST, Some("text/plain"), why),
            },
            ("PUT", "/cloud", Some(text)) => match self.issuer.set_rules(&text) {
                Ok(()) => done(true, StatusCode::OK),
                Err(why) => reply(StatusCode::BAD_REQUEST, Some("text/plain"), why),
            },
            ("POST", "/cloud/expire", _) => {
                self.issuer.expire();
                done(true, StatusCode::OK)
            }
            ("POST", "/cloud/issue", _) => match self.issuer.issue() {
                Ok(key) => json(&key),
                Err(error) => reply(StatusCode::INTERNAL_SERVER_ERROR, Some("text/plain"), error.to_string()),
            },
            ("GET", "/log", _) => json(&self.journal.snapshot()),
            ("DELETE", "/log", _) => {
                self.journal.clear();
                done(true, StatusCode::OK)
            }
            (method, path, Some(bytes)) => match (method, path.strip_prefix("/resource/")) {
                ("PUT", Some(path)) => done(self.resources.put(path, bytes.into()), StatusCode::BAD_REQUEST),
                ("DELETE", Some(path)) => done(self.resources.remove(path), StatusCode::NOT_FOUND),
                _ => done(false, StatusCode::NOT_FOUND),
            },
        };
        Outcome { op: Op::Other, subject: String::new(), reply: Some(reply) }
    }
}
