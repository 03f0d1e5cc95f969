//! The stand-in OSS: one bucket.
//!
//! Owns the order of work on a request: address, faults, signature, action, common headers. Knows nothing of
//! Trustee. No locks of its own. Tested in `tests/sandbox_oss_sdk.rs` with the official Python SDKs.

use std::sync::Arc;
use std::time::{Duration, Instant};

use http::HeaderMap;

use crate::clock::unix_secs;
use crate::cloud::Issuer;
use crate::faults::{Act, Faults, Op, Place};
use crate::oss_error::OssError;
use crate::oss_list::objects;
use crate::oss_read::{Reading, put};
use crate::oss_request::{Action, Asked, Names, host};
use crate::oss_sign::{Credentials, Presented, access_key_id, verify};
use crate::oss_store::{Change, Store, random_id};
use crate::oss_write::{self, blocking};
use crate::wire::{Call, Ending, Outcome, Reply, Site, drain, reply};

/// What the bucket is and who may use it.
pub(crate) struct Bucket {
    pub(crate) name: String,
    pub(crate) region: String,
    pub(crate) credentials: Credentials,
    /// Listing and reading need no signature.
    pub(crate) anonymous_read: bool,
    pub(crate) names: Names,
}

pub(crate) struct Oss {
    bucket: Bucket,
    store: Arc<Store>,
    faults: Arc<Faults>,
    issuer: Arc<Issuer>,
}

impl Oss {
    pub(crate) fn new(bucket: Bucket, store: Store, faults: Arc<Faults>, issuer: Arc<Issuer>) -> Oss {
        Oss { bucket, store: Arc::new(store), faults, issuer }
    }

    fn authorize(&self, asked: &Asked, method: &str, headers: &HeaderMap) -> Result<(), OssError> {
        let Some(authorization) = headers.get("authorization") else {
            if self.bucket.anonymous_read && asked.action.is_read() {
                return Ok(());
            }
            let message = "Anonymous access is forbidden for this operation.";
            return Err(OssError::new(403, "AccessDenied", "0003-00000001", message));
        };
        let request =
            Presented { method, bucket: &self.bucket.name, key: &asked.key, query: &asked.query.0, headers };
        let authorization = authorization.to_str().unwrap_or_default();
        let issued = access_key_id(authorization).and_then(|id| self.issuer.find(id)).transpose()?;
        let who = issued.as_ref().unwrap_or(&self.bucket.credentials);
        verify(who, &self.bucket.region, unix_secs(), &request, authorization)
    }

    /// `None`: the connection is to be dropped.
    async fn faulted(&self, op: Op, subject: &str, ending: &Ending) -> Option<Result<(), OssError>> {
        if let Some(Act::OssDelay { millis }) = self.faults.take(Place::Delay, op, subject) {
            tokio::time::sleep(Duration::from_millis(millis)).await;
        }
        match self.faults.take(Place::Instead, op, subject) {
            None => Some(Ok(())),
            Some(Act::OssError { status, code, ec }) => {
                Some(Err(OssError::new(status, &code, &ec, "A fault of the sandbox.")))
            }
            Some(Act::OssReset) => {
                ending.reset();
                None
            }
            Some(_) => None,
        }
    }

    /// The fault of a wrong checksum of what was stored, where the answer has one.
    fn spoil(&self, op: Op, subject: &str, headers: &mut HeaderMap) {
        let crc =
            headers.get("x-oss-hash-crc64ecma").and_then(|value| value.to_str().ok()?.parse::<u64>().ok());
        let Some(crc) = crc else { return };
        if self.faults.take_if(Place::Header, op, subject, |act| *act == Act::OssWrongCrc).is_some() {
            put(headers, "x-oss-hash-crc64ecma", &(!crc).to_string());
        }
    }

    async fn act(&self, asked: Asked, call: Call) -> Result<Reply, OssError> {
        let Call { parts, body, ending } = call;
        self.authorize(&asked, parts.method.as_str(), &parts.headers)?;
        let (store, bucket) = (self.store.clone(), self.bucket.name.clone());
        match asked.action {
            Action::ListObjects => {
                let xml = blocking(move || objects(&store, &bucket, &asked.query)).await?;
                Ok(reply(http::StatusCode::OK, Some("application/xml"), xml))
            }
            Action::Get | Action::Head | Action::Meta => {
                let change = self.faults.take(Place::State, asked.action.op(), &asked.key);
                let (key, missing) = (asked.key.clone(), OssError::no_such_key(&asked.key));
                let found = blocking(move || open(&store, &key, change)).await?;
                let (object, file) = found.ok_or(missing)?;
                let reading = Reading {
                    action: asked.action,
                    key: &asked.key,
                    headers: &parts.headers,
                    faults: &self.faults,
                };
                reading.answer(&object, file, &ending)
            }
            _ => oss_write::answer(store, asked, bucket, &parts.headers, body).await,
        }
    }
}

type Open = Option<(Arc<crate::oss_store::Object>, std::fs::File)>;

fn open(store: &Store, key: &str, change: Option<Act>) -> Result<Open, OssError> {
    let changed = match change {
        Some(Act::OssRemove) => store.remove(key),
        Some(Act::OssReplace) => store.change(key, Change::Invert),
        Some(Act::OssTruncate { len }) => store.change(key, Change::Truncate(len)),
        _ => Ok(()),
    };
    changed.and_then(|()| store.read(key)).map_err(|error| OssError::internal(&error))
}

impl Site for Oss {
    const NAME: &'static str = "oss";

    async fn answer(&self, call: Call) -> Outcome {
        let started = Instant::now();
        let host = host(&call.parts).unwrap_or_default().to_owned();
        let is_head = call.parts.method == http::Method::HEAD;
        let request_id = random_id().map(|id| id.to_ascii_uppercase().split_off(8)).unwrap_or_default();
        let asked = Asked::parse(&call.parts, &self.bucket.name, &self.bucket.names);
        let (op, subject) = match &asked {
            Ok(Asked { action: Action::ListObjects, query, .. }) => {
                (Op::List, query.get("prefix").unwrap_or_default().to_owned())
            }
            Ok(asked) => (asked.action.op(), asked.key.clone()),
            Err(_) => (Op::Other, String::new()),
        };
        let result = match (asked, self.faulted(op, &subject, &call.ending).await) {
            (_, None) => return Outcome { op, subject, reply: None },
            (Err(error), _) => Err(error),
            (_, Some(Err(error))) => {
                // The request is taken whole first: an answer in the middle of a body may reach the client as a broken
                // connection, and then it is another fault than the one that was asked for.
                drain(call.body).await;
                Err(error)
            }
            (Ok(asked), Some(Ok(()))) => self.act(asked, call).await,
        };
        let succeeded = result.is_ok();
        let mut reply = result.unwrap_or_else(|error| error.reply(&request_id, &host, is_head));
        let headers = reply.headers_mut();
        put(headers, "server", "AliyunOSS");
        put(headers, "x-oss-request-id", &request_id);
        put(headers, "x-oss-server-time", &started.elapsed().as_millis().to_string());
        let qos = |act: &Act| matches!(act, Act::OssQosDelay { .. });
        if succeeded
            && let Some(Act::OssQosDelay { millis }) = self.faults.take_if(Place::Header, op, &subject, qos)
        {
            put(headers, "x-oss-qos-delay-time", &millis.to_string());
        }
        if succeeded && matches!(op, Op::Put | Op::Multipart) {
            self.spoil(op, &subject, headers);
        }
        Outcome { op, subject, reply: Some(reply) }
    }
}

/// Whether `credential` can stand in a header, so that a mistake shows at start and not at the first request.
pub(crate) fn is_token(credential: &str) -> bool {
    !credential.is_empty() && credential.bytes().all(|b| b.is_ascii_graphic())
}
