//! The name of a resource at the key broker: `kbs:///repository/type/tag`.
//!
//! Source: kbs.md section 6.1.

use std::fmt;

use crate::error::{ErrorClass, Fault};

/// A valid example, shown with every refusal; the shape is the mission's.
const EXAMPLE: &str = "kbs:///default/aliyun/model-decryption-key";

/// Longest URI accepted, in bytes: no real name comes near, and it bounds the request line.
const MAX_LEN: usize = 1024;

/// Where a resource lives at the broker. The authority is legal and ignored: the configured base is asked, always.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ResourceUri {
    authority: String,
    segments: [String; 3],
    query: Option<String>,
}

impl ResourceUri {
    /// Read `kbs://[authority]/repository/type/tag[?query]`.
    ///
    /// # Errors
    /// [`UriError`], which says what is wrong and shows an example.
    pub fn parse(text: &str) -> Result<Self, UriError> {
        let uri = || text.chars().take(MAX_LEN).filter(|c| !c.is_control()).collect::<String>();
        if text.len() > MAX_LEN {
            return Err(UriError::TooLong { len: text.len() });
        }
        let rest = text.strip_prefix("kbs://").ok_or_else(|| UriError::Scheme { uri: uri() })?;
        let (rest, query) = match rest.split_once('?') {
            Some((rest, query)) => (rest, Some(query)),
            None => (rest, None),
        };
        let (authority, path) = rest.split_once('/').unwrap_or((rest, ""));
        let segments: Vec<&str> = if path.is_empty() { Vec::new() } else { path.split('/').collect() };
        let Ok([repository, kind, tag]) = <[&str; 3]>::try_from(segments.as_slice()) else {
            return Err(UriError::Segments { uri: uri(), found: segments.len() });
        };
        if let Some(bad) = [repository, kind, tag].into_iter().find(|segment| !is_segment(segment)) {
            return Err(UriError::Segment {
                uri: uri(),
                segment: bad.chars().filter(|c| !c.is_control()).collect(),
            });
        }
        if !authority.bytes().all(is_authority_byte) {
            return Err(UriError::Authority { uri: uri() });
        }
        if query.is_some_and(|query| !query.bytes().all(is_query_byte)) {
            return Err(UriError::Query { uri: uri() });
        }
        Ok(ResourceUri {
            authority: authority.to_owned(),
            segments: [repository, kind, tag].map(str::to_owned),
            query: query.map(str::to_owned),
        })
    }

    /// Last path segment. For a broker in front of Aliyun KMS this alone names the secret.
    pub fn tag(&self) -> &str {
        let [_, _, tag] = &self.segments;
        tag
    }

    /// `repository/type/tag[?query]`, as it follows `{base}/kbs/v0/resource/`. Needs no escaping: the grammar is safe.
    pub(super) fn path_and_query(&self) -> String {
        let mut text = self.segments.join("/");
        if let Some(query) = &self.query {
            text.push('?');
            text.push_str(query);
        }
        text
    }
}

impl fmt::Display for ResourceUri {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "kbs://{}/{}", self.authority, self.path_and_query())
    }
}

/// `[A-Za-z0-9_-]` first, then also `.`: the broker's own expression, which rules out `.` and `..` as a side effect.
fn is_segment(segment: &str) -> bool {
    let word = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'_' || byte == b'-';
    let mut bytes = segment.bytes();
    bytes.next().is_some_and(word) && bytes.all(|byte| word(byte) || byte == b'.')
}

fn is_authority_byte(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b".-_:[]".contains(&byte)
}

/// RFC 3986 query characters, which go into the request unchanged.
fn is_query_byte(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"-._~!$&'()*+,;=:@/?%".contains(&byte)
}

/// Not a resource URI.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum UriError {
    /// Does not start with `kbs://`.
    #[error("`{uri}` does not start with kbs:// (example: {EXAMPLE})")]
    Scheme {
        /// The text, without control characters.
        uri: String,
    },
    /// Not exactly three path segments.
    #[error(
        "`{uri}` has {found} path segments, not repository/type/tag (example: {EXAMPLE}, with three slashes)"
    )]
    Segments {
        /// The text, without control characters.
        uri: String,
        /// How many segments there are.
        found: usize,
    },
    /// A segment with characters the broker refuses.
    #[error(
        "`{segment}` in `{uri}` is not a name of letters, digits, `_`, `-` and (not first) `.` (example: {EXAMPLE})"
    )]
    Segment {
        /// The text, without control characters.
        uri: String,
        /// The segment.
        segment: String,
    },
    /// Something other than a host and port between `kbs://` and the path.
    #[error("`{uri}` has an authority that is not host:port (example: {EXAMPLE})")]
    Authority {
        /// The text, without control characters.
        uri: String,
    },
    /// A query with characters that would have to be escaped.
    #[error(
        "`{uri}` has a query with characters that must be percent-encoded (example: {EXAMPLE}?version=1)"
    )]
    Query {
        /// The text, without control characters.
        uri: String,
    },
    /// Longer than any name.
    #[error("the resource URI is {len} bytes long, more than {MAX_LEN} (example: {EXAMPLE})")]
    TooLong {
        /// Its length in bytes.
        len: usize,
    },
}

impl Fault for UriError {
    fn class(&self) -> ErrorClass {
        ErrorClass::Config
    }

    fn code(&self) -> &'static str {
        "kbs.resource-uri"
    }

    fn hint(&self) -> String {
        format!("set MODEL_KEY_ID to the resource's name at the key broker, like {EXAMPLE}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn parse_of_the_missions_name_gives_its_path_and_tag() {
        let uri = ResourceUri::parse(EXAMPLE).unwrap();
        assert_eq!(uri.path_and_query(), "default/aliyun/model-decryption-key");
        assert_eq!(uri.tag(), "model-decryption-key");
        assert_eq!(uri.to_string(), EXAMPLE);
    }

    #[test]
    fn parse_keeps_authority_and_query_as_written() {
        let uri = ResourceUri::parse("kbs://broker.example:8080/a/b/c.d?v=1&w=%20").unwrap();
        assert_eq!(uri.path_and_query(), "a/b/c.d?v=1&w=%20");
        assert_eq!(uri.to_string(), "kbs://broker.example:8080/a/b/c.d?v=1&w=%20");
    }

    #[test]
    fn parse_of_anything_else_says_what_is_wrong_and_shows_an_example() {
        let segments = |uri: &str, found| UriError::Segments { uri: uri.into(), found };
        let segment =
            |uri: &str, segment: &str| UriError::Segment { uri: uri.into(), segment: segment.into() };
        let cases = [
            ("", UriError::Scheme { uri: String::new() }),
            ("default/aliyun/key", UriError::Scheme { uri: "default/aliyun/key".into() }),
            ("kbs+vault:///a/b/c", UriError::Scheme { uri: "kbs+vault:///a/b/c".into() }),
            ("kbs://default/aliyun/key", segments("kbs://default/aliyun/key", 2)),
            ("kbs:///", segments("kbs:///", 0)),
            ("kbs://host", segments("kbs://host", 0)),
            ("kbs:///a/b/c/d", segments("kbs:///a/b/c/d", 4)),
            ("kbs:///a/b/c/", segments("kbs:///a/b/c/", 4)),
            ("kbs:///a//c", segment("kbs:///a//c", "")),
            ("kbs:///../b/c", segment("kbs:///../b/c", "..")),
            ("kbs:///a/.b/c", segment("kbs:///a/.b/c", ".b")),
            ("kbs:///a/b/c d", segment("kbs:///a/b/c d", "c d")),
            ("kbs:///a/b/c%2f", segment("kbs:///a/b/c%2f", "c%2f")),
            ("kbs:///a/b/c\r\n", segment("kbs:///a/b/c", "c")),
            ("kbs:///a/b/ключ", segment("kbs:///a/b/ключ", "ключ")),
            ("kbs://u:p@h/a/b/c", UriError::Authority { uri: "kbs://u:p@h/a/b/c".into() }),
            ("kbs:///a/b/c?x#y", UriError::Query { uri: "kbs:///a/b/c?x#y".into() }),
        ];
        for (text, expected) in cases {
            let error = ResourceUri::parse(text).unwrap_err();
            assert_eq!(error, expected, "{text:?}");
            assert!(error.to_string().contains(EXAMPLE), "{error}");
        }
        let long = format!("kbs:///a/b/{}", "c".repeat(MAX_LEN));
        assert_eq!(ResourceUri::parse(&long).unwrap_err(), UriError::TooLong { len: MAX_LEN + 11 });
    }

    proptest! {
        #[test]
        fn parse_of_displayed_uri_gives_the_same_uri(
            text in "kbs://[a-z0-9.:]{0,8}(/[A-Za-z0-9_-][A-Za-z0-9_.-]{0,8}){3}(\\?[a-z=&]{0,8})?"
        ) {
            let uri = ResourceUri::parse(&text).unwrap();
            prop_assert_eq!(uri.to_string(), text);
        }

        #[test]
        fn parse_of_any_text_never_gives_a_path_that_leaves_the_resource_tree(text in "kbs://.{0,40}") {
            if let Ok(uri) = ResourceUri::parse(&text) {
                let path = uri.path_and_query();
                let path = path.split('?').next().unwrap();
                prop_assert_eq!(path.split('/').count(), 3);
                prop_assert!(path.split('/').all(|segment| segment != "." && segment != ".." && !segment.is_empty()));
            }
        }
    }
}
