//! Health checks in plaintext: one request without a body, for a path that the operator listed, and nothing else.
//!
//! What reaches the backend is written here from what was understood, never passed through: a second request behind the
//! first, a body, or a header that two servers read differently stays outside.

use std::net::SocketAddr;
use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use super::refusal::Refusal;
use super::server::Peer;
use super::status::count;

/// Longest head of a request, in bytes. Load balancers send a few hundred.
pub const HEAD_LIMIT: usize = 4 << 10;

/// How long the head may take to arrive.
const HEAD_TIMEOUT: Duration = Duration::from_secs(10);

/// How long the whole check may take.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(30);

/// Not a health check that may pass.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Unfit {
    /// No path is listed.
    #[error("nothing may pass in plaintext")]
    NonePass,
    /// Not HTTP/1, or not as RFC 9112 writes it.
    #[error("it is no HTTP/1 request: {0}")]
    Form(&'static str),
    /// Neither GET nor HEAD.
    #[error("its method is neither GET nor HEAD")]
    Method,
    /// Another path.
    #[error("its path is not listed in gateway.plaintext_paths")]
    Path,
    /// More than a head.
    #[error("it has a body, or more behind it")]
    Body,
}

/// A health check that may pass.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Check {
    /// What the backend is sent.
    pub forwarded: Vec<u8>,
}

/// Read the head of a request, up to and with its empty line, and what more came with it.
///
/// # Errors
/// [`Unfit`] for everything but a GET or HEAD without a body for one of `paths`, byte for byte.
pub fn check(bytes: &[u8], paths: &[String]) -> Result<Check, Unfit> {
    let text = std::str::from_utf8(bytes).map_err(|_| Unfit::Form("it is not text"))?;
    let (head, rest) = text.split_once("\r\n\r\n").ok_or(Unfit::Form("it does not end"))?;
    let mut lines = head.split("\r\n");
    let request_line = lines.next().unwrap_or_default();
    if head.replace("\r\n", "").contains(|c: char| c.is_control() && c != '\t') {
        return Err(Unfit::Form("it has control characters"));
    }
    let mut words = request_line.split(' ');
    let (Some(method), Some(path), Some(version), None) =
        (words.next(), words.next(), words.next(), words.next())
    else {
        return Err(Unfit::Form("its first line has not three words"));
    };
    if !["HTTP/1.0", "HTTP/1.1"].contains(&version) {
        return Err(Unfit::Form("its version is neither 1.0 nor 1.1"));
    }
    if !["GET", "HEAD"].contains(&method) {
        return Err(Unfit::Method);
    }
    if !paths.iter().any(|listed| listed == path) {
        return Err(Unfit::Path);
    }
    let host = headers(lines)?;
    if host.is_none() && version == "HTTP/1.1" {
        return Err(Unfit::Form("it has no Host"));
    }
    if !rest.is_empty() {
        return Err(Unfit::Body);
    }
    let host = host.unwrap_or("localhost");
    let forwarded = format!("{method} {path} {version}\r\nHost: {host}\r\nConnection: close\r\n\r\n");
    Ok(Check { forwarded: forwarded.into_bytes() })
}

/// The one Host among the header lines.
fn headers<'a>(lines: impl Iterator<Item = &'a str>) -> Result<Option<&'a str>, Unfit> {
    let mut host = None;
    for line in lines {
        let (name, value) = line.split_once(':').ok_or(Unfit::Form("a header has no colon"))?;
        // Also a folded line, which begins with a space.
        let token = |c: char| c.is_ascii_alphanumeric() || "!#$%&'*+-.^_`|~".contains(c);
        if name.is_empty() || !name.chars().all(token) {
            return Err(Unfit::Form("a header has no proper name"));
        }
        let value = value.trim_matches([' ', '\t']);
        match name.to_ascii_lowercase().as_str() {
            "host" if host.replace(value).is_some() => return Err(Unfit::Form("it has two Hosts")),
            "host" if !value.chars().all(|c| c.is_ascii_alphanumeric() || ".-:[]_".contains(c)) => {
                return Err(Unfit::Form("its Host is none"));
            }
            "content-length" if value != "0" => return Err(Unfit::Body),
            "transfer-encoding" | "upgrade" | "expect" => return Err(Unfit::Body),
            _ => {}
        }
    }
    Ok(host)
}

/// Serve a connection that began in plaintext.
///
/// # Errors
/// [`Refusal::Plaintext`] for what may not pass: the backend saw nothing of it.
pub(super) async fn serve(mut stream: TcpStream, peer: &Peer) -> Result<(), Refusal> {
    let paths = &peer.shared.plaintext_paths;
    if paths.is_empty() {
        return Err(Refusal::Plaintext(Unfit::NonePass));
    }
    let slow = |step, limit: Duration| move |_| Refusal::Slow { step, secs: limit.as_secs() };
    let head = tokio::time::timeout(HEAD_TIMEOUT, read_head(&mut stream))
        .await
        .map_err(slow("send its health check", HEAD_TIMEOUT))?;
    let check = check(&head.map_err(Refusal::Line)?, paths).map_err(Refusal::Plaintext)?;
    count(&peer.shared.counters.plaintext_checks);
    let to = peer.backend;
    tokio::time::timeout(ANSWER_TIMEOUT, answer(&mut stream, peer, to, &check))
        .await
        .map_err(slow("take the answer to its health check", ANSWER_TIMEOUT))?
        .map_err(|source| Refusal::Backend { to, source })
}

/// Bytes up to the empty line, or as many as a head may have, or all there are.
async fn read_head(stream: &mut TcpStream) -> std::io::Result<Vec<u8>> {
    let mut head = Vec::new();
    let mut limited = stream.take(HEAD_LIMIT as u64);
    loop {
        let read = limited.read_buf(&mut head).await?;
        if read == 0 || head.windows(4).any(|window| window == b"\r\n\r\n") {
            return Ok(head);
        }
    }
}

/// The backend's answer, as it is.
async fn answer(stream: &mut TcpStream, peer: &Peer, to: SocketAddr, check: &Check) -> std::io::Result<()> {
    let mut backend = peer.shared.route.dial(to).await?;
    backend.write_all(&check.forwarded).await?;
    tokio::io::copy(&mut backend, stream).await?;
    stream.shutdown().await
}

#[cfg(test)]
mod tests {
    use super::*;

    fn checked(text: &str) -> Result<String, Unfit> {
        let paths = ["/health".to_owned(), "/v1/models?x=1".to_owned()];
        check(text.as_bytes(), &paths).map(|check| String::from_utf8(check.forwarded).unwrap())
    }

    #[test]
    fn listed_request_is_written_anew_with_nothing_but_its_host() {
        let sent = "GET /health HTTP/1.1\r\nhOST:  10.0.0.1:8080 \r\nUser-Agent: probe\r\nCookie: a=b\r\nConnection: keep-alive\r\n\
                    Content-Length: 0\r\n\r\n";
        let forwarded = "GET /health HTTP/1.1\r\nHost: 10.0.0.1:8080\r\nConnection: close\r\n\r\n";
        assert_eq!(checked(sent).unwrap(), forwarded);
        let old = "HEAD /v1/models?x=1 HTTP/1.0\r\n\r\n";
        let forwarded = "HEAD /v1/models?x=1 HTTP/1.0\r\nHost: localhost\r\nConnection: close\r\n\r\n";
        assert_eq!(checked(old).unwrap(), forwarded);
    }

    #[test]
    fn everything_else_is_unfit() {
        let with = |headers: &str| format!("GET /health HTTP/1.1\r\nHost: h\r\n{headers}\r\n");
        for (text, expected) in [
            (String::new(), Unfit::Form("it does not end")),
            ("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".into(), Unfit::Form("its version is neither 1.0 nor 1.1")),
            ("GET /health HTTP/1.1\r\n\r\n".into(), Unfit::Form("it has no Host")),
            (
                "GET  /health HTTP/1.1\r\nHost: h\r\n\r\n".into(),
                Unfit::Form("its first line has not three words"),
            ),
            ("GET /health\r\n\r\n".into(), Unfit::Form("its first line has not three words")),
            ("get /health HTTP/1.1\r\nHost: h\r\n\r\n".into(), Unfit::Method),
            ("POST /health HTTP/1.1\r\nHost: h\r\n\r\n".into(), Unfit::Method),
            ("GET /health/ HTTP/1.1\r\nHost: h\r\n\r\n".into(), Unfit::Path),
            ("GET /health?a HTTP/1.1\r\nHost: h\r\n\r\n".into(), Unfit::Path),
            ("GET /%68ealth HTTP/1.1\r\nHost: h\r\n\r\n".into(), Unfit::Path),
            ("GET http://h/health HTTP/1.1\r\nHost: h\r\n\r\n".into(), Unfit::Path),
            ("GET /health/../v1 HTTP/1.1\r\nHost: h\r\n\r\n".into(), Unfit::Path),
            ("GET /health HTTP/1.1\nHost: h\n\r\n\r\n".into(), Unfit::Form("it has control characters")),
            (with("a: b\r\n c: d\r\n"), Unfit::Form("a header has no proper name")),
            (with("a : b\r\n"), Unfit::Form("a header has no proper name")),
            (with("nothing\r\n"), Unfit::Form("a header has no colon")),
            (with("a: \u{0}\r\n"), Unfit::Form("it has control characters")),
            (with("a: b\nc: d\r\n"), Unfit::Form("it has control characters")),
            (with("Host: i\r\n"), Unfit::Form("it has two Hosts")),
            ("GET /health HTTP/1.1\r\nHost: a b\r\n\r\n".into(), Unfit::Form("its Host is none")),
            (with("Content-Length: 1\r\n"), Unfit::Body),
            (with("Content-Length: 0, 5\r\n"), Unfit::Body),
            (with("Transfer-Encoding: chunked\r\n"), Unfit::Body),
            (with("Upgrade: h2c\r\n"), Unfit::Body),
            (with("") + "GET /v1 HTTP/1.1\r\n\r\n", Unfit::Body),
            (with("") + "x", Unfit::Body),
        ] {
            assert_eq!(checked(&text), Err(expected), "{text:?}");
        }
        assert_eq!(check(b"GET /health \xff\r\n\r\n", &[]), Err(Unfit::Form("it is not text")));
    }
}
