//! The host's Quote Generation Service: a TDREPORT goes out, a quote comes back.
//!
//! Unprivileged, in the daemon: a socket and two messages. Each message is preceded by its length (big-endian); its fields
//! are little-endian. Source: kbs.md section 7.1.5 path 2, Intel's `qgs_msg_lib.h`.

use std::io::{self, Read, Write};
use std::os::fd::OwnedFd;
use std::path::Path;
use std::time::{Duration, Instant};

use nix::sys::socket::{setsockopt, sockopt::ReceiveTimeout, sockopt::SendTimeout};
use nix::sys::time::{TimeVal, TimeValLike};

use super::cursor::Cursor;
use super::quote::TD_REPORT_LEN;

#[cfg(not(feature = "sandbox"))]
#[path = "qgs/vsock.rs"]
mod line;
#[cfg(feature = "sandbox")]
#[path = "qgs/unix.rs"]
mod line;

/// Where the service's port stands, below the root.
pub const CONFIG: &str = "etc/tdx-attest.conf";

/// How long connecting, asking and answering may take together: the quoting enclave may have to be started, and the first
/// quote after a boot fetches certificates.
const PATIENCE: Duration = Duration::from_secs(30);

/// Longest message that is taken from the service, in bytes. Intel's own buffer is 16 KiB.
pub const MESSAGE_LIMIT: usize = 64 << 10;

/// Version of the messages that is spoken; the service looks at the first alone.
const VERSION: (u16, u16) = (1, 1);

/// Message types: "get quote", asked and answered.
const ASK: u32 = 0;
const ANSWER: u32 = 1;

/// The service gave no quote.
#[derive(Debug, thiserror::Error)]
pub enum QgsError {
    /// Nothing says where the service is.
    #[error("{} gives no port", path.display())]
    NoPort {
        /// The file that should.
        path: std::path::PathBuf,
        /// Why it cannot be read, where it cannot.
        #[source]
        source: Option<io::Error>,
    },
    /// It cannot be reached.
    #[error("connecting to port {port} of the host over vsock")]
    Connect {
        /// The port.
        port: u32,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// The line broke, or nothing came in time.
    #[error("talking to the host's quote generation service")]
    Line(#[source] io::Error),
    /// An answer that is none.
    #[error("the host's quote generation service answered with no quote message: {what}")]
    Answer {
        /// What is wrong with it.
        what: &'static str,
    },
    /// The service said no.
    #[error("the host's quote generation service refused with error {code:#x}")]
    Refused {
        /// Its code.
        code: u32,
    },
}

/// Reach the service that `<root>/etc/tdx-attest.conf` names, and ask it nothing: its port.
///
/// # Errors
/// [`QgsError::NoPort`], [`QgsError::Connect`].
pub fn reach(root: &Path) -> Result<u32, QgsError> {
    connect(root).map(|(port, _)| port)
}

fn connect(root: &Path) -> Result<(u32, OwnedFd), QgsError> {
    let path = root.join(CONFIG);
    let port = match std::fs::read_to_string(&path) {
        Ok(text) => port(&text).ok_or(QgsError::NoPort { path, source: None })?,
        Err(source) => return Err(QgsError::NoPort { path, source: Some(source) }),
    };
    let socket = line::connect(root, port).map_err(|source| QgsError::Connect { port, source })?;
    Ok((port, socket))
}

/// A quote over `report` from the service that `<root>/etc/tdx-attest.conf` names.
///
/// # Errors
/// [`QgsError`] with the step that failed, after half a minute at the latest.
pub fn quote(root: &Path, report: &[u8; TD_REPORT_LEN]) -> Result<Vec<u8>, QgsError> {
    let deadline = Instant::now() + PATIENCE;
    let (_, socket) = connect(root)?;
    exchange(&mut Line { socket, deadline }, report)
}

/// The port in the text of `tdx-attest.conf`: a line `port = <n>`, spaces optional, `#` starts a comment.
pub fn port(text: &str) -> Option<u32> {
    text.lines().find_map(|line| {
        let line = line.split('#').next().unwrap_or_default();
        let (key, value) = line.split_once('=')?;
        (key.trim() == "port").then(|| value.trim().parse().ok())?
    })
}

/// Ask over `line`, and wait for the quote.
///
/// # Errors
/// [`QgsError`], but for reaching the service.
pub fn exchange(line: &mut (impl Read + Write), report: &[u8; TD_REPORT_LEN]) -> Result<Vec<u8>, QgsError> {
    line.write_all(&request(report)).and_then(|()| line.flush()).map_err(QgsError::Line)?;
    let mut len = [0; 4];
    line.read_exact(&mut len).map_err(QgsError::Line)?;
    let len = u32::from_be_bytes(len) as usize;
    if len > MESSAGE_LIMIT {
        return Err(QgsError::Answer { what: "it is too long" });
    }
    let mut message = vec![0; len];
    line.read_exact(&mut message).map_err(QgsError::Line)?;
    response(&message).map(<[u8]>::to_vec)
}

/// The request for a quote over `report`, with the length before it.
pub fn request(report: &[u8; TD_REPORT_LEN]) -> Vec<u8> {
    const REPORT: u32 = 1024;
    /// Header, lengths of report and id list, report.
    const LEN: u32 = 16 + 8 + REPORT;
    let mut message = LEN.to_be_bytes().to_vec();
    message.extend(VERSION.0.to_le_bytes());
    message.extend(VERSION.1.to_le_bytes());
    let no_error = 0;
    let no_ids = 0;
    for field in [ASK, LEN, no_error, REPORT, no_ids] {
        message.extend(u32::to_le_bytes(field));
    }
    message.extend(report);
    message
}

/// The quote in a response, without the length before it.
///
/// # Errors
/// [`QgsError::Refused`], [`QgsError::Answer`].
pub fn response(message: &[u8]) -> Result<&[u8], QgsError> {
    let bad = |what| QgsError::Answer { what };
    let mut rest = Cursor(message);
    let cut = || bad("it is cut");
    let (major, _minor) = rest.u16().zip(rest.u16()).ok_or_else(cut)?;
    let (kind, len) = rest.u32().zip(rest.u32()).ok_or_else(cut)?;
    let code = rest.u32().ok_or_else(cut)?;
    if major != VERSION.0 {
        return Err(bad("it has another version"));
    }
    if kind != ANSWER {
        return Err(bad("it answers something else"));
    }
    if usize::try_from(len) != Ok(message.len()) {
        return Err(bad("its length is not what it says"));
    }
    if code != 0 {
        return Err(QgsError::Refused { code });
    }
    let lengths = rest.u32().zip(rest.u32()).ok_or_else(cut)?;
    let (Ok(id_len), Ok(quote_len)) = (usize::try_from(lengths.0), usize::try_from(lengths.1)) else {
        return Err(cut());
    };
    let (_id, quote) = rest.take(id_len).zip(rest.take(quote_len)).ok_or_else(cut)?;
    match (quote, rest.0) {
        ([], _) => Err(bad("its quote is empty")),
        (_, [_, ..]) => Err(bad("it goes on after its quote")),
        (quote, []) => Ok(quote),
    }
}

/// A socket whose every read and write ends by one deadline.
struct Line {
    socket: OwnedFd,
    deadline: Instant,
}

impl Line {
    fn left(&self) -> io::Result<TimeVal> {
        let left = self.deadline.saturating_duration_since(Instant::now());
        match i64::try_from(left.as_micros()) {
            // A timeout of zero would mean none.
            Ok(0) | Err(_) => Err(io::ErrorKind::TimedOut.into()),
            Ok(micros) => Ok(TimeVal::microseconds(micros)),
        }
    }
}

/// A socket's timeout looks like a non-blocking socket's refusal.
fn in_time(result: nix::Result<usize>) -> io::Result<usize> {
    result.map_err(|error| match error {
        nix::Error::EAGAIN => io::ErrorKind::TimedOut.into(),
        other => other.into(),
    })
}

impl Read for Line {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        setsockopt(&self.socket, ReceiveTimeout, &self.left()?)?;
        in_time(nix::unistd::read(&self.socket, buffer))
    }
}

impl Write for Line {
    fn write(&mut self, data: &[u8]) -> io::Result<usize> {
        setsockopt(&self.socket, SendTimeout, &self.left()?)?;
        in_time(nix::unistd::write(&self.socket, data))
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests;
