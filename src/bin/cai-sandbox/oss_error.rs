//! Refusals of the stand-in OSS and their wire form.
//!
//! Owns the `<Error>` document, and for HEAD its base64 in `x-oss-err`. `EC` values are those of Alibaba's error pages where one
//! is known, else left out. Stateless. Tested in `tests/sandbox_oss_sdk.rs`.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use http::{HeaderValue, StatusCode};
use quick_xml::escape::escape;

use crate::wire::{Reply, reply};

/// One refusal.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct OssError {
    pub(crate) status: u16,
    pub(crate) code: String,
    message: String,
    ec: String,
    details: Vec<(&'static str, String)>,
}

impl OssError {
    pub(crate) fn new(status: u16, code: &str, ec: &str, message: &str) -> OssError {
        OssError {
            status,
            code: code.to_owned(),
            message: message.to_owned(),
            ec: ec.to_owned(),
            details: Vec::new(),
        }
    }

    pub(crate) fn invalid_argument(ec: &str, message: &str) -> OssError {
        OssError::new(400, "InvalidArgument", ec, message)
    }

    pub(crate) fn not_implemented(what: &str) -> OssError {
        OssError::new(501, "NotImplemented", "", &format!("the sandbox does not implement {what}"))
    }

    pub(crate) fn no_such_key(key: &str) -> OssError {
        OssError::new(404, "NoSuchKey", "0026-00000001", "The specified key does not exist.")
            .with("Key", key.to_owned())
    }

    pub(crate) fn no_such_upload() -> OssError {
        OssError::new(404, "NoSuchUpload", "0042-00000002", "The specified upload does not exist.")
    }

    pub(crate) fn not_modified() -> OssError {
        OssError::new(304, "NotModified", "", "")
    }

    pub(crate) fn precondition(name: &str) -> OssError {
        let message = "At least one of the pre-conditions you specified did not hold.";
        OssError::new(412, "PreconditionFailed", "", message).with("Condition", name.to_owned())
    }

    /// The sandbox itself failed: its disk, most likely.
    pub(crate) fn internal(error: &std::io::Error) -> OssError {
        OssError::new(500, "InternalError", "", &error.to_string())
    }

    pub(crate) fn with(mut self, name: &'static str, value: String) -> OssError {
        self.details.push((name, value));
        self
    }

    fn document(&self, request_id: &str, host: &str) -> String {
        let mut xml = String::from("<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n<Error>\n");
        let fixed = [
            ("Code", self.code.as_str()),
            ("Message", &self.message),
            ("RequestId", request_id),
            ("HostId", host),
        ];
        let details = self.details.iter().map(|(name, value)| (*name, value.as_str()));
        let ec = Some(("EC", self.ec.as_str())).filter(|(_, ec)| !ec.is_empty());
        for (name, value) in fixed.into_iter().chain(details).chain(ec) {
            xml.push_str(&format!("  <{name}>{}</{name}>\n", escape(value)));
        }
        xml.push_str("</Error>\n");
        xml
    }

    /// The answer; without a body for HEAD and for 304.
    pub(crate) fn reply(&self, request_id: &str, host: &str, is_head: bool) -> Reply {
        let status = StatusCode::from_u16(self.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        if status == StatusCode::NOT_MODIFIED {
            return reply(status, None, "");
        }
        let document = self.document(request_id, host);
        let encoded = STANDARD.encode(&document);
        let mut answer =
            reply(status, Some("application/xml"), if is_head { String::new() } else { document });
        let mut put = |name: &'static str, value: &str| {
            if let Ok(value) = HeaderValue::from_str(value) {
                answer.headers_mut().insert(name, value);
            }
        };
        if !self.ec.is_empty() {
            put("x-oss-ec", &self.ec);
        }
        if is_head {
            put("x-oss-err", &encoded);
        }
        answer
    }
}
