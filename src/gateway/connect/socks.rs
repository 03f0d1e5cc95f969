//! SOCKS5 (RFC 1928) for applications: no authentication, CONNECT only, addresses of all three kinds.

use std::io;
use std::net::{Ipv4Addr, Ipv6Addr};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::time::timeout;

use super::destination::Destination;
use super::dial::Dialer;
use super::error::ConnectError;
use super::{open, relay};

/// How long an application may take for its request.
pub(super) const REQUEST_LIMIT: Duration = Duration::from_secs(10);

const VERSION: u8 = 5;
/// Method: no authentication; and what says that none is acceptable.
const NO_AUTHENTICATION: u8 = 0;
const NO_METHOD: u8 = 0xff;

const CONNECT: u8 = 1;

/// Reply codes (RFC 1928 section 6).
const SUCCEEDED: u8 = 0;
const GENERAL_FAILURE: u8 = 1;
const NOT_ALLOWED: u8 = 2;
const HOST_UNREACHABLE: u8 = 4;
const REFUSED: u8 = 5;
const NO_COMMAND: u8 = 7;
const NO_ADDRESS_TYPE: u8 = 8;

/// What an application asks for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Request {
    /// A connection to that server.
    Connect(Destination),
    /// Something to be answered with that code.
    Refused(u8),
}

/// Serve one connection of an application.
pub(super) async fn serve(mut application: TcpStream, dialer: &Dialer) {
    let asked = timeout(REQUEST_LIMIT, read_request(&mut application)).await;
    let asked = asked.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()));
    let (code, tunnel) = match &asked {
        Ok(Request::Connect(to)) => match open(dialer, to).await {
            Ok(tunnel) => (SUCCEEDED, Some(tunnel)),
            Err(error) => (code(&error), None),
        },
        Ok(Request::Refused(code)) => (*code, None),
        // Not SOCKS5, too slow, or gone.
        Err(_) => return,
    };
    // The address we are bound to on the way to the server is nobody's business: zeros.
    let reply = [VERSION, code, 0, 1, 0, 0, 0, 0, 0, 0];
    let sent = application.write_all(&reply).await;
    if let (Ok(()), Some(tunnel)) = (sent, tunnel) {
        relay(application, &[], tunnel).await;
    }
}

/// Agree on a method and read the request. Whoever does not accept that there is no authentication, is told so.
///
/// # Errors
/// The stream ends, or does not speak SOCKS5.
pub async fn read_request(stream: &mut (impl AsyncRead + AsyncWrite + Unpin)) -> io::Result<Request> {
    let other = || io::Error::new(io::ErrorKind::InvalidData, "not SOCKS5");
    let [version, methods] = read(stream).await?;
    if version != VERSION {
        return Err(other());
    }
    let mut offered = vec![0; usize::from(methods)];
    stream.read_exact(&mut offered).await?;
    if !offered.contains(&NO_AUTHENTICATION) {
        stream.write_all(&[VERSION, NO_METHOD]).await?;
        return Err(other());
    }
    stream.write_all(&[VERSION, NO_AUTHENTICATION]).await?;
    let [version, command, _, kind] = read(stream).await?;
    if version != VERSION {
        return Err(other());
    }
    let host = match kind {
        1 => Some(Ipv4Addr::from(read::<4>(stream).await?).to_string()),
        3 => {
            let [len] = read(stream).await?;
            let mut name = vec![0; usize::from(len)];
            stream.read_exact(&mut name).await?;
            String::from_utf8(name).ok()
        }
        4 => Some(Ipv6Addr::from(read::<16>(stream).await?).to_string()),
        _ => return Ok(Request::Refused(NO_ADDRESS_TYPE)),
    };
    let port = u16::from_be_bytes(read(stream).await?);
    if command != CONNECT {
        return Ok(Request::Refused(NO_COMMAND));
    }
    let to = host.and_then(|host| Destination::new(host, port));
    Ok(to.map_or(Request::Refused(GENERAL_FAILURE), Request::Connect))
}

async fn read<const N: usize>(stream: &mut (impl AsyncRead + Unpin)) -> io::Result<[u8; N]> {
    let mut bytes = [0; N];
    stream.read_exact(&mut bytes).await?;
    Ok(bytes)
}

/// How a failure is said: 2 ("not allowed by ruleset") is that the server is there, and not trusted.
fn code(error: &ConnectError) -> u8 {
    match error {
        error if error.is_distrust() => NOT_ALLOWED,
        ConnectError::Dial { source, .. } if source.kind() == io::ErrorKind::ConnectionRefused => REFUSED,
        ConnectError::Dial { .. } => HOST_UNREACHABLE,
        _ => GENERAL_FAILURE,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What is read of `input`, and what was answered before.
    async fn read_of(input: &[u8]) -> (Result<Request, io::ErrorKind>, Vec<u8>) {
        let (mut ours, mut theirs) = tokio::io::duplex(1024);
        theirs.write_all(input).await.unwrap();
        theirs.shutdown().await.unwrap();
        let request = read_request(&mut ours).await.map_err(|error| error.kind());
        drop(ours);
        let mut answer = Vec::new();
        theirs.read_to_end(&mut answer).await.unwrap();
        (request, answer)
    }

    fn connect(text: &str) -> Result<Request, io::ErrorKind> {
        Ok(Request::Connect(Destination::parse(text, None).unwrap()))
    }

    #[tokio::test]
    async fn every_kind_of_address_is_read() {
        let v4 = b"\x05\x01\x00\x05\x01\x00\x01\x7f\x00\x00\x01\x1f\x90";
        assert_eq!(read_of(v4).await, (connect("127.0.0.1:8080"), vec![5, 0]));
        let name = b"\x05\x02\x02\x00\x05\x01\x00\x03\x05model\x00\x50";
        assert_eq!(read_of(name).await, (connect("model:80"), vec![5, 0]));
        let v6 = [&b"\x05\x01\x00\x05\x01\x00\x04"[..], &[0; 15], &[1], b"\x00\x50"].concat();
        assert_eq!(read_of(&v6).await, (connect("[::1]:80"), vec![5, 0]));
    }

    #[tokio::test]
    async fn what_is_not_asked_as_it_must_be_is_refused() {
        let eof = Err(io::ErrorKind::UnexpectedEof);
        let invalid = Err(io::ErrorKind::InvalidData);
        for (input, request, answer) in [
            (&b""[..], eof.clone(), &[][..]),
            (b"\x04\x01", invalid.clone(), &[]),
            (b"GET / HTTP/1.1\r\n", invalid.clone(), &[]),
            (b"\x05\x01\x02", invalid.clone(), &[5, 0xff]),
            (b"\x05\x00", invalid.clone(), &[5, 0xff]),
            (b"\x05\x02\x00", eof.clone(), &[]),
            (b"\x05\x01\x00\x04\x01\x00\x01", invalid, &[5, 0]),
            (b"\x05\x01\x00\x05\x01\x00\x01\x7f", eof, &[5, 0]),
            (b"\x05\x01\x00\x05\x02\x00\x01\x7f\x00\x00\x01\x00\x50", Ok(Request::Refused(7)), &[5, 0]),
            (b"\x05\x01\x00\x05\x01\x00\x02", Ok(Request::Refused(8)), &[5, 0]),
            (b"\x05\x01\x00\x05\x01\x00\x03\x02a\n\x00\x50", Ok(Request::Refused(1)), &[5, 0]),
            (b"\x05\x01\x00\x05\x01\x00\x03\x00\x00\x50", Ok(Request::Refused(1)), &[5, 0]),
            (b"\x05\x01\x00\x05\x01\x00\x01\x7f\x00\x00\x01\x00\x00", Ok(Request::Refused(1)), &[5, 0]),
        ] {
            assert_eq!(read_of(input).await, (request, answer.to_vec()), "{input:?}");
        }
    }
}
