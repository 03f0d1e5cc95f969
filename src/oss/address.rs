//! Where a bucket lies and how its URLs are written. Pure.
//!
//! Virtual-hosted is the rule (`https://<bucket>.<endpoint>/<key>`); an address instead of a name has no room for a bucket
//! and gets path style (`http://<ip>:<port>/<bucket>/<key>`), as the SDKs do (oss.md 1.1). The operator can ask for path style
//! (PrivateLink names have no wildcard), or say that the endpoint is the bucket's own domain (CNAME). Keys are percent-encoded once,
//! slashes kept, which is also the form that is signed (oss.md 1.7).

use http::Uri;
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use url::{Host, Url};

use super::error::OssError;
use crate::config::Addressing;

/// Everything but the unreserved characters `A-Za-z0-9-_.~`.
pub(super) const VALUE: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'_').remove(b'.').remove(b'~');
/// The same, with the slash between path segments.
pub(super) const KEY: &AsciiSet = &VALUE.remove(b'/');

/// Address of one bucket.
#[derive(Debug, Clone)]
pub struct Address {
    scheme: String,
    authority: String,
    /// `/`, or `/<bucket>/` in path style.
    base: String,
}

impl Address {
    /// Address of `bucket` at `endpoint`.
    ///
    /// # Errors
    /// `Endpoint` when they cannot be combined.
    pub fn new(endpoint: &Url, bucket: &str, addressing: Addressing) -> Result<Self, OssError> {
        let fail = |why| OssError::Endpoint { endpoint: plain(endpoint), why };
        let scheme = endpoint.scheme().to_owned();
        if !["http", "https"].contains(&scheme.as_str()) {
            return Err(fail("is neither http nor https"));
        }
        if !endpoint.username().is_empty() || endpoint.password().is_some() || endpoint.query().is_some() {
            return Err(fail("must be scheme, host and port only"));
        }
        let port = endpoint.port().map(|port| format!(":{port}")).unwrap_or_default();
        let Some(host) = endpoint.host() else { return Err(fail("has no host")) };
        let at = |authority: String, base: String| Ok(Address { scheme, authority: authority + &port, base });
        match (addressing, host) {
            (Addressing::Cname, Host::Domain(host)) => at(host.to_owned(), "/".into()),
            (Addressing::Cname, Host::Ipv4(_) | Host::Ipv6(_)) => {
                Err(fail("is an address, and oss.addressing says that it is the bucket's own domain"))
            }
            (Addressing::Path, host) | (Addressing::Auto, host @ (Host::Ipv4(_) | Host::Ipv6(_))) => {
                at(host.to_string(), format!("/{bucket}/"))
            }
            // Some users give the bucket's own domain: it is what we would have made of the endpoint.
            (Addressing::Auto, Host::Domain(host)) if host.starts_with(&format!("{bucket}.")) => {
                at(host.to_owned(), "/".into())
            }
            (Addressing::Auto, Host::Domain(host)) => at(format!("{bucket}.{host}"), "/".into()),
        }
    }

    /// Host and port, as sent in `Host`.
    pub fn authority(&self) -> &str {
        &self.authority
    }

    /// URL of `key` (empty for the bucket itself) for people: without query.
    pub fn url(&self, key: &str) -> String {
        format!("{}://{}{}{}", self.scheme, self.authority, self.base, utf8_percent_encode(key, KEY))
    }

    /// URL of `key` (empty for the bucket itself) with `query`; a parameter without a value is a bare name.
    ///
    /// # Errors
    /// `Request` for a key that makes the URL too long.
    pub fn uri(&self, key: &str, query: &[(&str, &str)]) -> Result<Uri, OssError> {
        let mut text = self.url(key);
        for (at, (name, value)) in query.iter().enumerate() {
            text.push(if at == 0 { '?' } else { '&' });
            text.extend(utf8_percent_encode(name, VALUE));
            if !value.is_empty() {
                text.push('=');
                text.extend(utf8_percent_encode(value, VALUE));
            }
        }
        Uri::try_from(text).map_err(|error| OssError::Request { url: self.url(key), source: error.into() })
    }
}

/// Scheme, host and port of `endpoint`.
pub fn plain(endpoint: &Url) -> String {
    let port = endpoint.port().map(|port| format!(":{port}")).unwrap_or_default();
    format!("{}://{}{port}", endpoint.scheme(), endpoint.host_str().unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn address(endpoint: &str, addressing: Addressing) -> Result<Address, OssError> {
        Address::new(&endpoint.parse().unwrap(), "conf-ai", addressing)
    }

    fn uri(endpoint: &str, key: &str, query: &[(&str, &str)]) -> String {
        address(endpoint, Addressing::Auto).unwrap().uri(key, query).unwrap().to_string()
    }

    #[test]
    fn addressing_by_the_operators_choice() {
        let name = "https://oss.vpce.example:8443";
        assert_eq!(
            address(name, Addressing::Path).unwrap().url("m/a"),
            "https://oss.vpce.example:8443/conf-ai/m/a"
        );
        assert_eq!(address(name, Addressing::Cname).unwrap().url("m/a"), "https://oss.vpce.example:8443/m/a");
        assert_eq!(
            address("http://127.0.0.1", Addressing::Path).unwrap().url(""),
            "http://127.0.0.1/conf-ai/"
        );
        let error = address("http://127.0.0.1", Addressing::Cname).unwrap_err();
        assert_eq!(
            error.to_string(),
            "endpoint http://127.0.0.1 is an address, and oss.addressing says that it is the bucket's own domain"
        );
    }

    #[test]
    fn address_of_a_name_is_virtual_hosted() {
        let endpoint = "https://oss-cn-beijing-internal.aliyuncs.com";
        assert_eq!(uri(endpoint, "m/a", &[]), "https://conf-ai.oss-cn-beijing-internal.aliyuncs.com/m/a");
        let query = [("list-type", "2"), ("prefix", "m/"), ("uploads", "")];
        assert_eq!(
            uri(endpoint, "", &query),
            "https://conf-ai.oss-cn-beijing-internal.aliyuncs.com/?list-type=2&prefix=m%2F&uploads"
        );
        assert_eq!(uri("http://conf-ai.oss.example:81", "a", &[]), "http://conf-ai.oss.example:81/a");
    }

    #[test]
    fn address_of_an_ip_is_path_style_with_a_slash_behind_the_bucket() {
        assert_eq!(
            uri("http://127.0.0.1:9900", "", &[("list-type", "2")]),
            "http://127.0.0.1:9900/conf-ai/?list-type=2"
        );
        assert_eq!(uri("http://[::1]:9900", "m/a", &[]), "http://[::1]:9900/conf-ai/m/a");
    }

    #[test]
    fn key_is_encoded_once() {
        let expected = "http://127.0.0.1/conf-ai/m/a%20b%2Bc%26d%3D%C3%A9%E4%B8%AD%252F.bin";
        assert_eq!(uri("http://127.0.0.1", "m/a b+c&d=é中%2F.bin", &[]), expected);
    }

    #[test]
    fn unusable_endpoint_is_refused() {
        for endpoint in
            ["ftp://oss.example", "https://user@oss.example", "https://oss.example/?x=1", "data:x"]
        {
            let error = address(endpoint, Addressing::Auto).unwrap_err();
            assert!(matches!(error, OssError::Endpoint { .. }), "{endpoint}: {error}");
        }
    }
}
