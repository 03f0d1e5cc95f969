//! What an OSS request asks for: bucket, key, query, action.
//!
//! Owns addressing (virtual-hosted for names, path style for IP addresses only) and the choice of the action.
//! Stateless. Tested below.
//!
//! Source: `oss.md` 1.1.

use std::net::{IpAddr, Ipv6Addr};

use http::Method;
use http::request::Parts;
use percent_encoding::percent_decode_str;

use crate::faults::Op;
use crate::oss_error::OssError;
use crate::oss_sign::SUBRESOURCES;
use crate::wire::header;

/// Longest key, in bytes.
const MAX_KEY_LEN: usize = 1023;

/// Decoded query parameters in the order sent.
pub(crate) struct Query(pub(crate) Vec<(String, String)>);

impl Query {
    fn parse(raw: &str) -> Result<Query, OssError> {
        let pairs = raw.split('&').filter(|pair| !pair.is_empty());
        let decoded = pairs.map(|pair| {
            let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
            Ok((decode(name)?, decode(value)?))
        });
        Ok(Query(decoded.collect::<Result<_, OssError>>()?))
    }

    pub(crate) fn get(&self, name: &str) -> Option<&str> {
        self.0.iter().find(|(known, _)| known == name).map(|(_, value)| value.as_str())
    }
}

fn decode(text: &str) -> Result<String, OssError> {
    let decoded = percent_decode_str(text).decode_utf8();
    decoded.map(String::from).map_err(|_| OssError::invalid_argument("", "The request URI is not UTF-8."))
}

/// The operations the sandbox has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Action {
    ListObjects,
    ListUploads,
    Get,
    Head,
    Meta,
    Put,
    Delete,
    Initiate,
    PutPart,
    ListParts,
    Complete,
    Abort,
}

impl Action {
    pub(crate) fn op(self) -> Op {
        match self {
            Action::ListObjects => Op::List,
            Action::Get => Op::Get,
            Action::Head | Action::Meta => Op::Head,
            Action::Put => Op::Put,
            Action::Delete => Op::Delete,
            Action::ListUploads
            | Action::Initiate
            | Action::PutPart
            | Action::ListParts
            | Action::Complete
            | Action::Abort => Op::Multipart,
        }
    }

    /// Whether a bucket that is open for reading allows it without a signature.
    pub(crate) fn is_read(self) -> bool {
        matches!(self, Action::ListObjects | Action::Get | Action::Head | Action::Meta)
    }

    fn choose(method: &Method, key: &str, query: &Query) -> Result<Action, OssError> {
        let mut named: Vec<&str> = query.0.iter().map(|(name, _)| name.as_str()).collect();
        // These go with any action; the first only continues a listing.
        named.retain(|name| {
            SUBRESOURCES.contains(name) && *name != "continuation-token" && !name.starts_with("response-")
        });
        named.sort_unstable();
        match (method.as_str(), key.is_empty(), named.as_slice()) {
            ("GET", true, []) => Ok(Action::ListObjects),
            ("GET", true, ["uploads"]) => Ok(Action::ListUploads),
            ("GET", false, []) => Ok(Action::Get),
            ("GET", false, ["uploadId"]) => Ok(Action::ListParts),
            ("HEAD", false, []) => Ok(Action::Head),
            ("HEAD", false, ["objectMeta"]) => Ok(Action::Meta),
            ("PUT", false, []) => Ok(Action::Put),
            ("PUT", false, ["partNumber", "uploadId"]) => Ok(Action::PutPart),
            ("POST", false, ["uploads"]) => Ok(Action::Initiate),
            ("POST", false, ["uploadId"]) => Ok(Action::Complete),
            ("DELETE", false, []) => Ok(Action::Delete),
            ("DELETE", false, ["uploadId"]) => Ok(Action::Abort),
            (method, _, named) => Err(OssError::not_implemented(&format!("{method} {named:?}"))),
        }
    }
}

/// Names that do not address as names do.
#[derive(Default)]
pub(crate) struct Names {
    /// A domain of the bucket's own.
    pub(crate) cname: Option<String>,
    /// An endpoint that takes the bucket in the path.
    pub(crate) path_host: Option<String>,
}

/// A request's meaning.
pub(crate) struct Asked {
    pub(crate) action: Action,
    /// Decoded; empty for an operation on the bucket.
    pub(crate) key: String,
    pub(crate) query: Query,
}

impl Asked {
    /// What `parts` asks of `bucket`.
    pub(crate) fn parse(parts: &Parts, bucket: &str, names: &Names) -> Result<Asked, OssError> {
        let host = host(parts).ok_or_else(|| OssError::new(400, "InvalidArgument", "", "No Host header."))?;
        let path = parts.uri.path().strip_prefix('/').unwrap_or_default();
        let (named, raw_key) = locate(host_name(host), path, bucket, names)?;
        if named.is_empty() {
            return Err(OssError::not_implemented("operations on the service"));
        }
        if named != bucket {
            let error =
                OssError::new(404, "NoSuchBucket", "0015-00000101", "The specified bucket does not exist.");
            return Err(error.with("BucketName", named));
        }
        let key = decode(raw_key)?;
        if key.len() > MAX_KEY_LEN || key.starts_with(['/', '\\']) {
            return Err(OssError::new(400, "InvalidObjectName", "", "The specified object is not valid."));
        }
        let query = Query::parse(parts.uri.query().unwrap_or_default())?;
        if query.get("x-oss-signature").or_else(|| query.get("Signature")).is_some() {
            return Err(OssError::not_implemented("signatures in the query"));
        }
        let action = Action::choose(&parts.method, &key, &query)?;
        Ok(Asked { action, key, query })
    }
}

/// The request's host, with its port if it has one.
pub(crate) fn host(parts: &Parts) -> Option<&str> {
    header(&parts.headers, "host").or_else(|| parts.uri.authority().map(http::uri::Authority::as_str))
}

fn host_name(host: &str) -> &str {
    match host.strip_prefix('[').and_then(|rest| rest.split_once(']')) {
        Some((v6, _)) => v6,
        None => host.split_once(':').map_or(host, |(name, _)| name),
    }
}

/// Bucket and raw key.
fn locate<'a>(name: &str, path: &'a str, bucket: &str, names: &Names) -> Result<(String, &'a str), OssError> {
    if names.cname.as_deref() == Some(name) {
        return Ok((bucket.to_owned(), path));
    }
    let is_address = name.parse::<IpAddr>().is_ok() || name.parse::<Ipv6Addr>().is_ok();
    if is_address || names.path_host.as_deref() == Some(name) {
        let (first, key) = path.split_once('/').unwrap_or((path, ""));
        return Ok((decode(first)?, key));
    }
    match name.split_once('.') {
        Some((first, _)) if first == bucket || !first.starts_with("oss-") => Ok((first.to_owned(), path)),
        _ if path.is_empty() => Ok((String::new(), path)),
        _ => {
            let message =
                "The bucket you are attempting to access must be addressed using OSS third level domain.";
            Err(OssError::new(403, "SecondLevelDomainForbidden", "0016-00000806", message))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ask(method: &str, host: &str, uri: &str) -> Result<(Action, String), String> {
        let request = http::Request::builder().method(method).uri(uri).header("host", host).body(()).unwrap();
        let asked = Asked::parse(&request.into_parts().0, "conf-ai", &Names::default());
        asked.map(|asked| (asked.action, asked.key)).map_err(|error| error.code)
    }

    #[test]
    fn parse_of_each_addressing_style_finds_the_key() {
        for (host, uri) in [
            ("127.0.0.1:9000", "/conf-ai/a%2Fb%20c"),
            ("[::1]:9000", "/conf-ai/a/b%20c"),
            ("conf-ai.oss-cn-beijing.aliyuncs.com", "/a/b%20c"),
            ("conf-ai.localhost:9000", "/a%2Fb%20c"),
        ] {
            assert_eq!(ask("GET", host, uri), Ok((Action::Get, "a/b c".to_owned())), "{host}");
        }
    }

    #[test]
    fn parse_of_a_wrong_address_is_refused() {
        for (host, uri, code) in [
            ("oss-cn-beijing.aliyuncs.com", "/conf-ai/a", "SecondLevelDomainForbidden"),
            ("localhost:9000", "/conf-ai/a", "SecondLevelDomainForbidden"),
            ("other.oss-cn-beijing.aliyuncs.com", "/a", "NoSuchBucket"),
            ("127.0.0.1", "/other/a", "NoSuchBucket"),
            ("127.0.0.1", "/", "NotImplemented"),
            ("127.0.0.1", "/conf-ai/%2Fa", "InvalidObjectName"),
            ("127.0.0.1", "/conf-ai/a?acl", "NotImplemented"),
            ("127.0.0.1", "/conf-ai/a?x-oss-signature=1", "NotImplemented"),
            ("127.0.0.1", "/conf-ai/%ff", "InvalidArgument"),
        ] {
            assert_eq!(ask("GET", host, uri).unwrap_err(), code, "{host} {uri}");
        }
    }

    #[test]
    fn parse_of_every_action_chooses_it() {
        for (method, uri, action) in [
            ("GET", "/conf-ai/?list-type=2&continuation-token=", Action::ListObjects),
            ("GET", "/conf-ai?uploads", Action::ListUploads),
            ("HEAD", "/conf-ai/k", Action::Head),
            ("HEAD", "/conf-ai/k?objectMeta", Action::Meta),
            ("PUT", "/conf-ai/k", Action::Put),
            ("PUT", "/conf-ai/k?uploadId=1&partNumber=2", Action::PutPart),
            ("POST", "/conf-ai/k?uploads", Action::Initiate),
            ("POST", "/conf-ai/k?uploadId=1", Action::Complete),
            ("GET", "/conf-ai/k?uploadId=1", Action::ListParts),
            ("DELETE", "/conf-ai/k?uploadId=1", Action::Abort),
            ("DELETE", "/conf-ai/k", Action::Delete),
        ] {
            assert_eq!(ask(method, "127.0.0.1", uri).unwrap().0, action, "{method} {uri}");
        }
    }
}
