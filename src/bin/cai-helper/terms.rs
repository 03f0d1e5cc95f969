//! What root decided before the first request: where and how a session mounts, and how much memory it may take.

use std::path::PathBuf;

use cai::config::{Encryption, Mount, MountMode, Settings};
use cai::gateway::Gate;
use cai::host;
use nix::sys::stat::Mode;
use nix::unistd::{Gid, Uid};

/// What the acts around the mount need to know.
#[derive(Clone)]
pub(crate) struct Terms {
    /// Where to mount; absolute.
    pub(crate) point: PathBuf,
    /// How the operator spells the setting that says where.
    pub(crate) point_setting: &'static str,
    /// Who asks, serves the FUSE mount and fills the memory file system.
    pub(crate) daemon: host::User,
    /// The FUSE mount is for others than the daemon, too.
    pub(crate) allow_other: bool,
    /// The kernel holds readers of the FUSE mount against owner and permissions of what they read.
    pub(crate) kernel_checks: bool,
    /// Who decrypts in the daemon's place, where somebody does.
    pub(crate) adapter: Option<AdapterTerms>,
    /// Owner of everything that is published.
    pub(crate) uid: Uid,
    /// Group of everything that is published.
    pub(crate) gid: Gid,
    /// Read permission bits of what is published.
    pub(crate) permissions: u32,
    /// The memory is for a whole model, not for some files of it.
    pub(crate) whole_model: bool,
    /// Size of the memory file system in bytes; 0 = derived from the machine's.
    pub(crate) memory_bytes: u64,
    /// Read-ahead of the FUSE mount in KiB.
    pub(crate) readahead_kib: u32,
    /// In front of the service port, where there is one.
    pub(crate) gate: Option<Gate>,
}

/// What the acts around an adapter need to know.
#[derive(Clone)]
pub(crate) struct AdapterTerms {
    /// Below which everything lies.
    pub(crate) root: PathBuf,
    /// SHA-256 that the program must have.
    pub(crate) sha256: Option<[u8; 32]>,
    /// Name of the key.
    pub(crate) key_id: String,
}

impl AdapterTerms {
    fn of(settings: &Settings) -> Self {
        let (root, sam) = (settings.root.clone(), &settings.sam);
        AdapterTerms { root, sha256: sam.adapter_sha256, key_id: sam.key_id.clone() }
    }
}

impl Terms {
    /// The same for a mount of the ciphertext at `point`, which nobody passes but who may: there is nothing for the kernel to check,
    /// and what is shown there are the owner and permissions that the plaintext is to have.
    pub(crate) fn for_ciphertext(&self, point: PathBuf) -> Self {
        Terms { point, point_setting: "the ciphertext's", kernel_checks: false, ..self.clone() }
    }

    /// As the configuration says, for the daemon of a service.
    pub(crate) fn configured(settings: &Settings, daemon: host::User) -> Self {
        let mount: &Mount = &settings.mount;
        Terms {
            point: mount.point.clone(),
            point_setting: "MODEL_MOUNT_POINT",
            daemon,
            allow_other: true,
            kernel_checks: true,
            adapter: (settings.model.encryption == Encryption::Sam).then(|| AdapterTerms::of(settings)),
            uid: Uid::from_raw(mount.uid),
            gid: Gid::from_raw(mount.gid),
            permissions: mount.permissions,
            whole_model: matches!(mount.mode, MountMode::Ram),
            memory_bytes: mount.memory_bytes,
            readahead_kib: mount.readahead_kib,
            gate: Gate::of(&settings.gateway),
        }
    }

    /// As root says on the command line, for itself alone.
    pub(crate) fn for_owner(point: PathBuf, memory_bytes: u64, readahead_kib: u32) -> Self {
        let (uid, gid) = (Uid::from_raw(0), Gid::from_raw(0));
        Terms {
            point,
            point_setting: "mount point",
            daemon: host::User { uid, gid },
            allow_other: false,
            kernel_checks: true,
            adapter: None,
            uid,
            gid,
            permissions: 0o400,
            whole_model: false,
            memory_bytes,
            readahead_kib,
            gate: None,
        }
    }

    /// Mode of a published file: read bits only, whatever else was configured.
    pub(crate) fn file_mode(&self) -> Mode {
        Mode::from_bits_truncate(self.permissions & 0o444)
    }

    /// Mode of a published directory: who may read it may also enter it.
    pub(crate) fn directory_mode(&self) -> Mode {
        let read = self.permissions & 0o444;
        Mode::from_bits_truncate(read | read >> 2)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn modes_have_read_bits_and_directories_may_be_entered_by_who_reads() {
        for (permissions, file, directory) in
            [(0o440, 0o440, 0o550), (0o444, 0o444, 0o555), (0o400, 0o400, 0o500), (0o6751, 0o440, 0o550)]
        {
            let terms = Terms { permissions, ..Terms::for_owner("/m".into(), 0, 0) };
            assert_eq!((terms.file_mode().bits(), terms.directory_mode().bits()), (file, directory));
        }
    }
}
