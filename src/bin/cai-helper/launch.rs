//! A child with descriptors at numbers of the caller's choice, which ends with its parent. What that takes between `fork` and
//! `exec`, and the `unsafe` it needs.

#![allow(unsafe_code)]

use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::os::unix::process::CommandExt;
use std::process::{Child, Command};

use nix::libc;
use nix::sys::signal::SigSet;

/// Start `command` with `placed[0]` at descriptor 3, and so on.
pub(crate) fn spawn<const COUNT: usize>(
    command: &mut Command,
    placed: [OwnedFd; COUNT],
) -> io::Result<Child> {
    let targets = 3..RawFd::try_from(3 + COUNT).map_err(io::Error::other)?;
    // What `spawn` opens for itself must not get one of these numbers: it would be overwritten below.
    let mut held = vec![File::open("/dev/null")?];
    while held.last().is_some_and(|file| file.as_raw_fd() < targets.end) {
        held.push(File::open("/dev/null")?);
    }
    // Above them, so that none is overwritten before it is placed.
    let mut high = Vec::new();
    for descriptor in &placed {
        high.push(rustix::io::fcntl_dupfd_cloexec(descriptor, targets.end)?);
    }
    let pairs: Vec<(RawFd, RawFd)> = high.iter().map(AsRawFd::as_raw_fd).zip(targets).collect();
    let place = move || {
        for (from, to) in &pairs {
            // JUSTIFICATION: a descriptor of a fixed number is the contract of adapters. SAFETY: dup2 and prctl are
            // async-signal-safe and touch no memory; the numbers are open descriptors or nobody's.
            if unsafe { libc::dup2(*from, *to) } < 0 {
                return Err(io::Error::last_os_error());
            }
        }
        // Ours are blocked, and `exec` keeps that: it would never hear that it is to end.
        SigSet::empty().thread_set_mask()?;
        // JUSTIFICATION and SAFETY: as above.
        if unsafe { libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL) } < 0 {
            return Err(io::Error::last_os_error());
        }
        Ok(())
    };
    // JUSTIFICATION: std has no other way to place descriptors. SAFETY: between fork and exec the closure only makes
    // async-signal-safe calls and does not allocate.
    unsafe { command.pre_exec(place) };
    command.spawn()
}
