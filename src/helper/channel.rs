//! Packets with a descriptor on a `SOCK_SEQPACKET` socket.

#![allow(unsafe_code)]

use std::io::{self, IoSlice, IoSliceMut, Seek as _, Write as _};
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::sys::socket::{
    AddressFamily, ControlMessage, ControlMessageOwned, MsgFlags, SockFlag, SockType, recvmsg, sendmsg,
    socketpair,
};

use super::protocol::MESSAGE_LIMIT;

/// Two connected ends.
///
/// # Errors
/// What the system says.
pub fn pair() -> io::Result<(OwnedFd, OwnedFd)> {
    Ok(socketpair(AddressFamily::Unix, SockType::SeqPacket, None, SockFlag::SOCK_CLOEXEC)?)
}

/// Send one packet, with `descriptor` beside it if there is one.
///
/// # Errors
/// What the system says; `InvalidInput` for a message over the limit.
pub fn send(socket: BorrowedFd<'_>, message: &[u8], descriptor: Option<BorrowedFd<'_>>) -> io::Result<()> {
    if message.len() > MESSAGE_LIMIT {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "helper message over its limit"));
    }
    let raw = descriptor.map(|fd| [fd.as_raw_fd()]);
    let rights = raw.as_ref().map(|fds| ControlMessage::ScmRights(fds));
    let sent = sendmsg::<()>(
        socket.as_raw_fd(),
        &[IoSlice::new(message)],
        rights.as_slice(),
        MsgFlags::MSG_NOSIGNAL,
        None,
    )?;
    if sent == message.len() { Ok(()) } else { Err(io::ErrorKind::WriteZero.into()) }
}

/// Receive one packet; `None` at the end of the connection. At most one descriptor is kept, others are closed.
///
/// # Errors
/// What the system says; `InvalidData` for a packet over the limit.
pub fn receive(socket: BorrowedFd<'_>) -> io::Result<Option<(Vec<u8>, Option<OwnedFd>)>> {
    let mut buffer = vec![0; MESSAGE_LIMIT];
    let mut control = nix::cmsg_space!([std::os::fd::RawFd; 4]);
    let (len, truncated, descriptors) = {
        let mut slices = [IoSliceMut::new(&mut buffer)];
        let flags = MsgFlags::MSG_CMSG_CLOEXEC;
        let message = recvmsg::<()>(socket.as_raw_fd(), &mut slices, Some(&mut control), flags)?;
        let mut descriptors = Vec::new();
        for control in message.cmsgs()? {
            if let ControlMessageOwned::ScmRights(raw) = control {
                // JUSTIFICATION: SCM_RIGHTS delivers plain numbers. SAFETY: the kernel has just installed these
                // descriptors for this process, and this is the only place that sees the numbers.
                descriptors.extend(raw.into_iter().map(|fd| unsafe { OwnedFd::from_raw_fd(fd) }));
            }
        }
        (message.bytes, message.flags.contains(MsgFlags::MSG_TRUNC), descriptors)
    };
    if truncated {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "helper message over its limit"));
    }
    if len == 0 {
        return Ok(None);
    }
    buffer.truncate(len);
    Ok(Some((buffer, descriptors.into_iter().next())))
}

/// A memory file that holds `data`, to be sent beside a reply that is too long for a packet.
///
/// # Errors
/// What the system says.
pub fn memory_file(data: &[u8]) -> io::Result<OwnedFd> {
    let mut file = std::fs::File::from(memfd_create(c"cai", MFdFlags::MFD_CLOEXEC)?);
    file.write_all(data)?;
    file.rewind()?;
    Ok(file.into())
}

#[cfg(test)]
mod tests {
    use std::io::Read as _;
    use std::os::fd::AsFd;

    use super::*;

    #[test]
    fn descriptor_sent_beside_a_packet_is_usable_on_the_other_side() {
        let (left, right) = pair().unwrap();
        let (mut reader, writer) = std::io::pipe().unwrap();
        send(left.as_fd(), b"here", Some(writer.as_fd())).unwrap();
        drop(writer);
        let (message, descriptor) = receive(right.as_fd()).unwrap().unwrap();
        assert_eq!(message, b"here");
        std::fs::File::from(descriptor.unwrap()).write_all(b"through").unwrap();
        let mut text = String::new();
        reader.read_to_string(&mut text).unwrap();
        assert_eq!(text, "through");
    }

    #[test]
    fn memory_file_sent_beside_a_packet_is_read_whole() {
        let (left, right) = pair().unwrap();
        let data: Vec<u8> = (0..=250).cycle().take(MESSAGE_LIMIT * 5).collect();
        send(left.as_fd(), b"data", Some(memory_file(&data).unwrap().as_fd())).unwrap();
        let (_, descriptor) = receive(right.as_fd()).unwrap().unwrap();
        let mut read = Vec::new();
        std::fs::File::from(descriptor.unwrap()).read_to_end(&mut read).unwrap();
        assert_eq!(read, data);
    }

    #[test]
    fn closed_peer_is_the_end_of_the_connection() {
        let (left, right) = pair().unwrap();
        drop(left);
        assert!(receive(right.as_fd()).unwrap().is_none());
    }

    #[test]
    fn oversize_packet_is_refused_by_both_sides() {
        let (left, right) = pair().unwrap();
        let big = vec![b'x'; MESSAGE_LIMIT + 1];
        assert_eq!(send(left.as_fd(), &big, None).unwrap_err().kind(), io::ErrorKind::InvalidInput);
        nix::unistd::write(&left, &big).unwrap();
        assert_eq!(receive(right.as_fd()).unwrap_err().kind(), io::ErrorKind::InvalidData);
    }
}
