//! Where a bucket lies and how its URLs are written. Pure.
//!
//! Virtual-hosted is the rule (`https://<bucket>.<endpoint>/<key>`); an address instead of a name has no room for a bucket
//! and gets path style (`http://<ip>:<port>/<bucket>/<key>`), as the SDKs do (oss.md 1.1). Keys are percent-encoded once,
//! slashes kept, which is also the form that is signed (oss.md 1.7).

use http::Uri;
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use url::{Host, Url};

use super::error::OssError;

/// Everything but the unreserved characters `A-Za-z0-9-_.~`.
const VALUE: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'_').remove(b'.').remove(b'~');
/// The same, with the slash between path segments.
const KEY: &AsciiSet = &VALUE.remove(b'/');

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
    pub fn new(endpoint: &Url, bucket: &str) -> Result<Self, OssError> {
        let fail = |why| OssError::Endpoint { endpoint: plain(endpoint), why };
        let scheme = endpoint.scheme().to_owned();
        if !["http", "https"].contains(&scheme.as_str()) {
            return Err(fail("is neither http nor https"));
        }
        if !endpoint.username().is_empty() || endpoint.password().is_some() || endpoint.query().is_some() {
            return Err(fail("must be scheme, host and port only"));
        }
        let port = endpoint.port().map(|port| format!(":{port}")).unwrap_or_default();
        match endpoint.host() {
            None => Err(fail("has no host")),
            // The signer takes `<bucket>.` in front of the authority for a virtual host.
            Some(host @ (Host::Ipv4(_) | Host::Ipv6(_)))
                if host.to_string().starts_with(&format!("{bucket}.")) =>
            {
                Err(fail("is an address that begins like the bucket's name"))
            }
            Some(host @ (Host::Ipv4(_) | Host::Ipv6(_))) => {
                Ok(Address { scheme, authority: format!("{host}{port}"), base: format!("/{bucket}/") })
            }
            // Some users give the bucket's own domain: it is what we would have made of the endpoint.
            Some(Host::Domain(host)) if host.starts_with(&format!("{bucket}.")) => {
                Ok(Address { scheme, authority: format!("{host}{port}"), base: "/".into() })
            }
            Some(Host::Domain(host)) => {
                Ok(Address { scheme, authority: format!("{bucket}.{host}{port}"), base: "/".into() })
            }
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

    fn uri(endpoint: &str, key: &str, query: &[(&str, &str)]) -> String {
        Address::new(&endpoint.parse().unwrap(), "conf-ai").unwrap().uri(key, query).unwrap().to_string()
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
            let error = Address::new(&endpoint.parse().unwrap(), "conf-ai").unwrap_err();
            assert!(matches!(error, OssError::Endpoint { .. }), "{endpoint}: {error}");
        }
        assert!(Address::new(&"http://127.0.0.1".parse().unwrap(), "127").is_err());
    }
}
