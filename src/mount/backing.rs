//! Answering an `open` with a file that the helper has registered. One call, and the `unsafe` it needs.

#![allow(unsafe_code)]

use fuser::{FileHandle, FopenFlags, ReplyOpen};

/// Answer that the kernel reads the registered file `id` itself (FUSE passthrough).
pub(super) fn open_through(reply: ReplyOpen, handle: FileHandle, id: u32) {
    // JUSTIFICATION: fuser can only register files in a process that has the privilege, and has no safe way to name one that
    // was registered elsewhere. SAFETY: `id` was registered by the helper for this session's connection and is given back
    // only after every `open` answered with it is closed, which the ledger counts. The value is taken apart again at once,
    // so that dropping it does not give the number back.
    let backing = unsafe { reply.wrap_backing(id) };
    reply.opened_passthrough(handle, FopenFlags::empty(), &backing);
    let _ = backing.into_raw();
}
