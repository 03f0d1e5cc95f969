//! What happens when the line hangs up, at once: the session may be waiting just then, for a vendor's library or for a mount that
//! nobody serves.
//!
//! The FUSE devices are given back, and the line is closed on this side, too, and with it whatever is queued: a descriptor that was
//! sent and not received would keep the mount's connection alive, and the session waiting for it.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::unistd::dup2_stdin;

use crate::backing::Slot;

/// Wait, in a thread of its own, until the other end of `line`, which is standard input, is closed.
pub(crate) fn watch(line: BorrowedFd<'_>, slots: [Slot; 2]) -> io::Result<()> {
    let line = line.try_clone_to_owned()?;
    // No socket, and always there. Now: later there may be no descriptor left.
    let nothing = File::open("/")?;
    let wait = move || {
        // No event is asked for: requests are the session's. A hang-up is always told.
        while let Ok(0) | Err(Errno::EINTR) =
            poll(&mut [PollFd::new(line.as_fd(), PollFlags::empty())], PollTimeout::NONE)
        {}
        slots.iter().for_each(Slot::close);
        drop(line);
        if let Err(error) = dup2_stdin(&nothing) {
            eprintln!("cai-helper: closing the line: {error}");
        }
    };
    std::thread::Builder::new().name("line".into()).spawn(wait).map(drop)
}

/// What came of talking to the other end; `None` where nobody is there any more.
pub(crate) fn unless_hung_up<T>(result: io::Result<T>) -> io::Result<Option<T>> {
    let errno = |error: &io::Error| error.raw_os_error().map(Errno::from_raw);
    match result {
        Ok(value) => Ok(Some(value)),
        // No socket: what `watch` has put in the line's place.
        Err(error) if matches!(errno(&error), Some(Errno::ENOTSOCK | Errno::EPIPE | Errno::ECONNRESET)) => {
            Ok(None)
        }
        Err(error) => Err(error),
    }
}
