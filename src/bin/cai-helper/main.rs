//! `cai-helper`: the few acts that need root, for a daemon that has no privilege.
//!
//! Its line to the daemon is standard input, a `SOCK_SEQPACKET` socket: `cai run` started as root passes one end of a
//! socketpair, `cai-helper.socket` (`Accept=yes`, `StandardInput=socket`) passes the connection. Nothing in a request
//! decides where or how: that comes from the root-owned configuration, read here; the only bytes taken from the daemon are
//! what a quote or a report is to be bound to, and a file of the daemon's own memory. `cai mount` run by root passes the
//! decisions as arguments instead: then there is no configuration, and root is the daemon. When the line closes, for whatever reason, what was done through it is
//! undone (`session.rs`, `hangup.rs`). Of root's capabilities it keeps what its unit gives it (`privilege.rs`).
//!
//! With the argument `keeper` it is no helper, but what an adapter is kept by, without any privilege (`keeper.rs`).
//!
//! Vendors' libraries are opened only in a short-lived child, this program with other arguments (`vendor.rs`).
#![deny(unsafe_code, clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

mod backing;
mod decryptor;
mod fuse;
mod gpu;
mod hangup;
mod ioctl;
mod keeper;
mod launch;
mod libtdx;
mod memory;
mod mount_point;
mod privilege;
mod seal;
mod session;
mod tdx;
mod terms;
mod tsm;
mod vendor;

use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::Context;
use cai::config;
use cai::helper::printable;
use cai::host;
use nix::sys::signal::{SigSet, Signal};
use nix::sys::socket::{getsockopt, sockopt::PeerCredentials};
use nix::unistd::Uid;
use rustix::thread::CapabilitySet;

use decryptor::Launch;
use session::Session;
use terms::Terms;

/// Longest line in the journal, in characters: two paths fit.
const JOURNAL_CHARS: usize = 8192;

fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            // What the daemon sent may be quoted in it.
            eprintln!("cai-helper: {}", printable(&format!("{error:#}"), JOURNAL_CHARS));
            ExitCode::from(78)
        }
    }
}

fn run() -> anyhow::Result<()> {
    let arguments = Arguments::parse(std::env::args_os().skip(1).collect())?;
    anyhow::ensure!(Uid::effective().is_root() || arguments == Arguments::Keeper, "must run as root");
    // A keeper that systemd started has none, and may not even ask.
    if Uid::effective().is_root() {
        privilege::keep(arguments.privilege())?;
    }
    match arguments {
        Arguments::Serve { root, launch } => serve(&root, launch),
        Arguments::Keeper => keeper::run(),
        Arguments::ServeOwner { point, memory_bytes, readahead_kib } => {
            serve_owner(Terms::for_owner(point, memory_bytes, readahead_kib))
        }
        Arguments::Vendor { root, act, data, life_secs } => vendor::child(&root, act, &data, life_secs),
    }
}

/// Answer the daemon until its line closes.
fn serve(root: &Path, launch: Launch) -> anyhow::Result<()> {
    block_stops()?;
    let stdin = std::io::stdin();
    let line = stdin.as_fd();
    let daemon = check_peer(line)?;
    check_configuration_is_roots(root)?;
    let terms = config::load(root).map(|(settings, _)| Terms::configured(&settings, daemon));
    if terms.as_ref().map_or(true, |terms| terms.adapter.is_none()) {
        privilege::keep(privilege::HELPER)?;
    }
    // Undone when dropped, also behind a panic.
    Session::new(Some(root.to_owned()), terms, launch).serve(line)
}

/// Answer root, which started this process for a mount of its own, until its line closes.
fn serve_owner(terms: Terms) -> anyhow::Result<()> {
    block_stops()?;
    let stdin = std::io::stdin();
    let line = stdin.as_fd();
    let peer = getsockopt(&line, PeerCredentials).context("standard input is not a socket")?;
    anyhow::ensure!(peer.uid() == 0, "peer has uid {}, expected root", peer.uid());
    Session::new(None, Ok(terms), Launch::Child).serve(line)
}

fn block_stops() -> anyhow::Result<()> {
    // The end of the line is the only stop signal: the daemon's terminal, cgroup and watchdog send us theirs too, and a
    // helper that died first could not detach the mount.
    let stops = [Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP, Signal::SIGQUIT, Signal::SIGABRT];
    SigSet::from_iter(stops).thread_block()?;
    Ok(())
}

/// How the program was called.
#[derive(Debug, PartialEq, Eq)]
enum Arguments {
    /// With its socket as standard input.
    Serve { root: PathBuf, launch: Launch },
    /// With its socket as standard input, by root for itself alone.
    ServeOwner { point: PathBuf, memory_bytes: u64, readahead_kib: u32 },
    /// With its socket as standard input, to keep an adapter.
    Keeper,
    /// By itself, to open a vendor's library.
    Vendor { root: PathBuf, act: vendor::Act, data: Vec<u8>, life_secs: u32 },
}

impl Arguments {
    /// Most that it may do.
    fn privilege(&self) -> CapabilitySet {
        match self {
            // Where systemd starts no keeper, this process's child becomes the adapter's user.
            Arguments::Serve { launch: Launch::Child, .. } | Arguments::Keeper => {
                privilege::HELPER | privilege::BECOME
            }
            Arguments::Serve { launch: Launch::Unit, .. }
            | Arguments::ServeOwner { .. }
            | Arguments::Vendor { .. } => privilege::HELPER,
        }
    }

    fn parse(arguments: Vec<std::ffi::OsString>) -> anyhow::Result<Self> {
        let absolute = |directory: &std::ffi::OsString| Path::new(directory).is_absolute();
        let text = |argument: &std::ffi::OsString| {
            argument.clone().into_string().map_err(|_| anyhow::anyhow!("arguments are not text"))
        };
        match arguments.as_slice() {
            [] => Ok(Arguments::Serve { root: PathBuf::from("/"), launch: Launch::Unit }),
            [keeper] if keeper == "keeper" => Ok(Arguments::Keeper),
            [flag, root] if flag == "--root" && absolute(root) => {
                Ok(Arguments::Serve { root: PathBuf::from(root), launch: Launch::Child })
            }
            [a, point, b, bytes, c, kib]
                if a == "--mount-point"
                    && b == "--memory-bytes"
                    && c == "--readahead-kib"
                    && absolute(point) =>
            {
                let memory_bytes = text(bytes)?.parse().context("--memory-bytes is not a number of bytes")?;
                let readahead_kib = text(kib)?.parse().context("--readahead-kib is not a number of KiB")?;
                Ok(Arguments::ServeOwner { point: PathBuf::from(point), memory_bytes, readahead_kib })
            }
            [flag, root, vendor, act, data, life]
                if flag == "--root" && absolute(root) && vendor == "vendor" =>
            {
                let act = vendor::Act::named(&text(act)?).context("no such act")?;
                let data = hex::decode(text(data)?).context("data is not hexadecimal")?;
                let life_secs = text(life)?.parse().context("life is not a number of seconds")?;
                Ok(Arguments::Vendor { root: PathBuf::from(root), act, data, life_secs })
            }
            _ => anyhow::bail!(
                "usage: cai-helper [--root ABSOLUTE-DIR], or cai-helper --mount-point ABSOLUTE-DIR --memory-bytes N \
                 --readahead-kib N, with its socket as standard input"
            ),
        }
    }
}

/// The daemon's user, who must be the one at the other end (root is `cai run` before it drops its privileges).
fn check_peer(line: BorrowedFd<'_>) -> anyhow::Result<host::User> {
    let peer = getsockopt(&line, PeerCredentials).context("standard input is not a socket")?;
    let daemon = host::User::find(host::DAEMON_USER)?
        .with_context(|| format!("user {} does not exist", host::DAEMON_USER))?;
    let allowed = peer.uid() == 0 || peer.uid() == daemon.uid.as_raw();
    anyhow::ensure!(allowed, "peer has uid {}, expected {} or root", peer.uid(), daemon.uid);
    Ok(daemon)
}

/// What decides where root mounts must be root's alone to write.
fn check_configuration_is_roots(root: &Path) -> anyhow::Result<()> {
    let mut paths: Vec<PathBuf> =
        ["", "etc", "etc/cai", "etc/cai/cai.env", "etc/cai/cai.toml", "etc/cai/cai.toml.d"]
            .iter()
            .map(|path| root.join(path))
            .collect();
    if let Ok(entries) = std::fs::read_dir(root.join("etc/cai/cai.toml.d")) {
        paths.extend(entries.filter_map(|entry| Some(entry.ok()?.path())));
    }
    for path in paths {
        let metadata = match std::fs::metadata(&path) {
            Ok(metadata) => metadata,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => continue,
            Err(error) => return Err(error).with_context(|| format!("looking at {}", path.display())),
        };
        let (uid, mode) = (metadata.uid(), metadata.mode() & 0o7777);
        anyhow::ensure!(
            uid == 0 && mode & 0o022 == 0,
            "{} has uid {uid} and mode {mode:04o}; the configuration must belong to root and be writable by root alone",
            path.display()
        );
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use nix::unistd::Gid;

    #[test]
    fn arguments_other_than_the_known_ones_are_refused() {
        let serve = |root: &str, launch| Arguments::Serve { root: root.into(), launch };
        assert_eq!(Arguments::parse(vec![]).unwrap(), serve("/", Launch::Unit));
        let child = Arguments::parse(vec!["--root".into(), "/x".into()]).unwrap();
        assert_eq!(child, serve("/x", Launch::Child));
        assert_eq!(Arguments::parse(vec!["keeper".into()]).unwrap(), Arguments::Keeper);
        let child = ["--root", "/x", "vendor", "gpu-evidence", "00ff", "9"].map(Into::into).to_vec();
        let (act, data) = (vendor::Act::GpuEvidence, vec![0, 0xff]);
        let expected = Arguments::Vendor { root: "/x".into(), act, data, life_secs: 9 };
        assert_eq!(Arguments::parse(child).unwrap(), expected);
        let owner = ["--mount-point", "/x", "--memory-bytes", "4096", "--readahead-kib", "0"].map(Into::into);
        let expected = Arguments::ServeOwner { point: "/x".into(), memory_bytes: 4096, readahead_kib: 0 };
        assert_eq!(Arguments::parse(owner.to_vec()).unwrap(), expected);
        for refused in [
            &["--point", "/x"][..],
            &["--mount-point", "/x"],
            &["--mount-point", "x", "--memory-bytes", "4096", "--readahead-kib", "0"],
            &["--mount-point", "/x", "--memory-bytes", "-1", "--readahead-kib", "0"],
            &["--mount-point", "/x", "--memory-bytes", "1", "--readahead-kib", "4294967296"],
            &["--memory-bytes", "1", "--mount-point", "/x", "--readahead-kib", "0"],
            &["--root", "x"],
            &["--root", "/x", "vendor", "rm", "", "9"],
            &["--root", "/x", "vendor", "gpu-evidence", "0", "9"],
            &["--root", "/x", "vendor", "gpu-evidence", "00", "-1"],
            &["--root", "/x", "vendor", "gpu-evidence", "00"],
            &["--root", "/x", "vendor", "gpu-evidence"],
        ] {
            let arguments = refused.iter().map(Into::into).collect();
            assert!(Arguments::parse(arguments).is_err(), "{refused:?}");
        }
    }

    #[test]
    fn a_group_id_is_part_of_the_user() {
        let root = host::User::find("root").unwrap().unwrap();
        assert_eq!((root.uid, root.gid), (Uid::from_raw(0), Gid::from_raw(0)));
    }
}
