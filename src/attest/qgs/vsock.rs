//! The line to the host: vsock.

use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::Path;

use nix::sys::socket::{AddressFamily, SockFlag, SockType, VsockAddr, connect as connect_to, socket};

/// The host's context identifier (vsock(7), `VMADDR_CID_HOST`).
const HOST: u32 = 2;

/// A connection to `port` of the host. The kernel gives up after two seconds.
pub(super) fn connect(_root: &Path, port: u32) -> io::Result<OwnedFd> {
    dial(HOST, port)
}

fn dial(context: u32, port: u32) -> io::Result<OwnedFd> {
    let line = socket(AddressFamily::Vsock, SockType::Stream, SockFlag::SOCK_CLOEXEC, None)?;
    connect_to(line.as_raw_fd(), &VsockAddr::new(context, port))?;
    Ok(line)
}

#[cfg(test)]
mod tests {
    use nix::sys::socket::{Backlog, accept, bind, getsockname, listen};

    use super::*;

    /// This machine itself (vsock(7), `VMADDR_CID_LOCAL`); never the host in a test.
    const LOCAL: u32 = 1;
    /// `VMADDR_PORT_ANY`.
    const ANY: u32 = u32::MAX;

    #[test]
    fn dialled_port_is_the_one_that_listens() {
        if !Path::new("/sys/module/vsock_loopback").exists() {
            println!("skip: this kernel has no vsock loopback");
            return;
        }
        let door = socket(AddressFamily::Vsock, SockType::Stream, SockFlag::SOCK_CLOEXEC, None).unwrap();
        bind(door.as_raw_fd(), &VsockAddr::new(LOCAL, ANY)).unwrap();
        listen(&door, Backlog::new(1).unwrap()).unwrap();
        let port = getsockname::<VsockAddr>(door.as_raw_fd()).unwrap().port();
        let line = dial(LOCAL, port).unwrap();
        nix::unistd::write(&line, b"x").unwrap();
        drop(line);
        // The connection waits to be accepted with its byte, which only the right port can have.
        assert!(accept(door.as_raw_fd()).is_ok());
    }
}
