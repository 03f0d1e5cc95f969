//! The cookies of one handshake.
//!
//! Every cookie is kept and sent back, not only the broker's own: a load balancer in front of several replicas finds the
//! right one by a cookie of its own (kbs.md section 0.3). Attributes are not interpreted, because a jar lives for one
//! handshake with one origin and is never asked for another. One lock, held for a copy at most.

use std::sync::{Mutex, PoisonError};

use reqwest::header::{COOKIE, HeaderMap, HeaderValue, SET_COOKIE};
use url::{Origin, Url};

/// More cookies than any deployment sets; bounds what a server can make us keep.
const MAX_COOKIES: usize = 16;

/// Longest cookie kept, in bytes: what browsers keep.
const MAX_COOKIE_LEN: usize = 4096;

/// Cookies of one handshake, bound to the origin it is with. No `Debug`: the session cookie is a credential.
pub struct Jar {
    origin: Origin,
    cookies: Mutex<Vec<(String, String)>>,
}

impl Jar {
    /// No cookies yet.
    pub fn new(base: &Url) -> Self {
        Jar { origin: base.origin(), cookies: Mutex::default() }
    }

    /// Whether `url` is of the origin the handshake was with.
    pub fn is_of(&self, url: &Url) -> bool {
        url.origin() == self.origin
    }

    /// Keep what the answer from `url` sets.
    pub fn store(&self, url: &Url, headers: &HeaderMap) {
        if !self.is_of(url) {
            return;
        }
        let mut cookies = self.cookies.lock().unwrap_or_else(PoisonError::into_inner);
        for value in headers.get_all(SET_COOKIE) {
            let Some((name, value)) = value.to_str().ok().and_then(pair) else { continue };
            if let Some(known) = cookies.iter_mut().find(|(known, _)| known == name) {
                value.clone_into(&mut known.1);
            } else if cookies.len() < MAX_COOKIES {
                cookies.push((name.to_owned(), value.to_owned()));
            }
        }
    }

    /// `Cookie` header for a request to `url`: none for another origin.
    pub fn apply(&self, url: &Url, headers: &mut HeaderMap) {
        if !self.is_of(url) {
            return;
        }
        let cookies = self.cookies.lock().unwrap_or_else(PoisonError::into_inner);
        let line: Vec<String> = cookies.iter().map(|(name, value)| format!("{name}={value}")).collect();
        if let Ok(mut value) = HeaderValue::from_str(&line.join("; "))
            && !line.is_empty()
        {
            value.set_sensitive(true);
            headers.insert(COOKIE, value);
        }
    }
}

/// Name and value of a `Set-Cookie` line.
fn pair(line: &str) -> Option<(&str, &str)> {
    let (pair, _attributes) = line.split_once(';').unwrap_or((line, ""));
    let (name, value) = pair.split_once('=')?;
    let (name, value) = (name.trim(), value.trim());
    (!name.is_empty() && name.len() + value.len() < MAX_COOKIE_LEN).then_some((name, value))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn url(text: &str) -> Url {
        Url::parse(text).unwrap()
    }

    fn set(lines: &[&str]) -> HeaderMap {
        lines.iter().map(|line| (SET_COOKIE, HeaderValue::from_str(line).unwrap())).collect()
    }

    fn sent(jar: &Jar, to: &str) -> Option<String> {
        let mut headers = HeaderMap::new();
        jar.apply(&url(to), &mut headers);
        headers.get(COOKIE).map(|value| value.to_str().unwrap().to_owned())
    }

    #[test]
    fn jar_echoes_every_cookie_in_its_latest_value() {
        let jar = Jar::new(&url("http://kbs:8080/release"));
        assert_eq!(sent(&jar, "http://kbs:8080/x"), None);
        jar.store(
            &url("http://kbs:8080/a"),
            &set(&["kbs-session-id=1; Expires=Sun, 22 Nov 2026 09:56:24 GMT", "lb=a; Path=/"]),
        );
        jar.store(&url("http://kbs:8080/b"), &set(&["lb=b", "nonsense", "=x"]));
        assert_eq!(sent(&jar, "http://kbs:8080/x").unwrap(), "kbs-session-id=1; lb=b");
    }

    #[test]
    fn jar_keeps_and_sends_nothing_across_origins() {
        let jar = Jar::new(&url("http://kbs:8080"));
        jar.store(&url("http://kbs:8080/a"), &set(&["s=1"]));
        for other in ["https://kbs:8080/", "http://kbs:8081/", "http://evil:8080/"] {
            jar.store(&url(other), &set(&["s=2"]));
            assert_eq!(sent(&jar, other), None, "{other}");
        }
        assert_eq!(sent(&jar, "http://kbs:8080/").unwrap(), "s=1");
    }

    #[test]
    fn jar_is_bounded_in_number_and_length() {
        let jar = Jar::new(&url("http://kbs"));
        for i in 0..100 {
            jar.store(&url("http://kbs/"), &set(&[&format!("c{i}=v")]));
        }
        jar.store(&url("http://kbs/"), &set(&[&format!("c0={}", "v".repeat(MAX_COOKIE_LEN))]));
        let line = sent(&jar, "http://kbs/").unwrap();
        assert_eq!(line.split("; ").count(), MAX_COOKIES);
        assert!(line.starts_with("c0=v; "));
    }
}
