//! The line to the host in a sandbox: a socket below the root stands in for vsock, and nothing ever reaches a real host.

use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::path::Path;

/// Where the stand-in listens, below the root.
const SOCKET: &str = "run/tdx-qgs.sock";

/// A connection to the stand-in, whatever the port.
pub(super) fn connect(root: &Path, _port: u32) -> io::Result<OwnedFd> {
    UnixStream::connect(root.join(SOCKET)).map(OwnedFd::from)
}
