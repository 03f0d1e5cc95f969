//! The cookies of a handshake: one `Set-Cookie` a line.
//!
//! Holds: no input panics; what is kept is bounded in number and length, is sent back as it came, and only to the origin
//! that set it.
#![no_main]

use cai::kbs::session::Jar;
use http::header::{COOKIE, HeaderMap, HeaderValue, SET_COOKIE};
use libfuzzer_sys::fuzz_target;
use url::Url;

fuzz_target!(|lines: &[u8]| {
    let url = Url::parse("http://kbs:8080/kbs/v0/auth").unwrap();
    let jar = Jar::new(&url);
    let values = lines.split(|byte| *byte == b'\n').filter_map(|line| HeaderValue::from_bytes(line).ok());
    let headers: HeaderMap = values.take(1000).map(|value| (SET_COOKIE, value)).collect();
    jar.store(&url, &headers);

    let mut sent = HeaderMap::new();
    jar.apply(&url, &mut sent);
    if let Some(cookies) = sent.get(COOKIE) {
        let cookies = cookies.to_str().unwrap();
        assert!(cookies.len() <= 16 * (4096 + 2), "{} bytes", cookies.len());
        for cookie in cookies.split("; ") {
            let (name, _) = cookie.split_once('=').expect("a name");
            assert!(!name.is_empty());
        }
    }
    let mut elsewhere = HeaderMap::new();
    jar.apply(&Url::parse("http://kbs:8081/kbs/v0/attest").unwrap(), &mut elsewhere);
    assert!(elsewhere.is_empty());
});
