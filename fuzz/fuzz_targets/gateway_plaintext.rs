//! What anybody may send to the service port in plaintext.
//!
//! Holds: no input panics; what passes is a GET or HEAD of the one listed path with nothing behind its head, and what the
//! backend is sent is written anew: three lines, no byte of the client's but method, version and Host.
#![no_main]

use cai::gateway::plaintext::check;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let Ok(check) = check(bytes, &["/health".to_owned()]) else { return };
    assert!(bytes.ends_with(b"\r\n\r\n"));
    assert_eq!(bytes.windows(4).filter(|window| window == b"\r\n\r\n").count(), 1);
    let text = std::str::from_utf8(&check.forwarded).unwrap();
    let lines: Vec<&str> = text.split("\r\n").collect();
    let [request, host, "Connection: close", "", ""] = lines[..] else { panic!("{text:?}") };
    let (method, rest) = request.split_once(' ').unwrap();
    assert!(["GET", "HEAD"].contains(&method));
    assert!(["/health HTTP/1.0", "/health HTTP/1.1"].contains(&rest));
    let host = host.strip_prefix("Host: ").unwrap();
    assert!(host.bytes().all(|byte| byte.is_ascii_graphic()));
    assert!(bytes.starts_with(request.as_bytes()));
});
