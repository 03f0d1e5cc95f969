//! The FUSE mount itself: read-only, nothing in it is a device or a program, over a directory that is open.
//!
//! Nothing here may ask the new mount for anything: who serves it is the daemon, which has no device yet.

use std::os::fd::{AsRawFd, OwnedFd};

use cai::host::User;
use cai::host::mounts::{FS_SOURCE, FUSE_TYPE};
use nix::mount::{MntFlags, MsFlags, mount as mount_by_path, umount2};
use rustix::fs::{Mode, OFlags, open};
use rustix::io::Errno;
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, fsconfig_create, fsconfig_set_flag, fsconfig_set_string,
    fsmount, fsopen,
};

use crate::mount_point::{hang, link};
use crate::session::Refusal;
use crate::terms::Terms;

/// Mount `device` over `directory`, which is open at the point of `terms`, for the daemon to serve: the mount, open (`O_PATH`).
pub(crate) fn mount(terms: &Terms, device: &OwnedFd, directory: &OwnedFd) -> Result<OwnedFd, Refusal> {
    let server =
        Server { user: terms.daemon, for_others: terms.allow_other, kernel_checks: terms.kernel_checks };
    let made = match make(device, &server) {
        Ok(mount) => hang(&mount, directory).map(|()| mount),
        // Before Linux 5.2.
        Err(Errno::NOSYS) => classic(terms, device, &server, directory),
        Err(error) => Err(error),
    };
    made.map_err(|error| failed(terms, error))
}

pub(crate) fn failed(terms: &Terms, error: Errno) -> Refusal {
    let text = format!("mounting at {}: {error}", terms.point.display());
    Refusal::new("fuse.mount", text, "see the kernel log: dmesg | tail")
}

/// Who serves a mount, and for whom.
pub(crate) struct Server {
    pub(crate) user: User,
    /// For others than the server, too.
    pub(crate) for_others: bool,
    /// The kernel holds readers against owner and permissions of what they read.
    pub(crate) kernel_checks: bool,
}

/// Options of the file system; those without a value are flags.
fn options(device: &OwnedFd, server: &Server) -> Vec<(&'static str, Option<String>)> {
    let mut options = vec![
        ("fd", Some(device.as_raw_fd().to_string())),
        ("rootmode", Some("40000".to_owned())),
        ("user_id", Some(server.user.uid.to_string())),
        ("group_id", Some(server.user.gid.to_string())),
    ];
    let flags = [("default_permissions", server.kernel_checks), ("allow_other", server.for_others)];
    options.extend(flags.into_iter().filter(|(_, set)| *set).map(|(flag, _)| (flag, None)));
    options
}

/// A mount of `device` that hangs nowhere yet. `NOSYS` before Linux 5.2.
pub(crate) fn make(device: &OwnedFd, server: &Server) -> Result<OwnedFd, Errno> {
    let (base, subtype) = FUSE_TYPE.split_once('.').unwrap_or((FUSE_TYPE, ""));
    let context = fsopen(base, FsOpenFlags::FSOPEN_CLOEXEC)?;
    fsconfig_set_string(&context, "source", FS_SOURCE)?;
    fsconfig_set_string(&context, "subtype", subtype)?;
    fsconfig_set_flag(&context, "ro")?;
    for (option, value) in options(device, server) {
        match value {
            Some(value) => fsconfig_set_string(&context, option, value.as_str())?,
            None => fsconfig_set_flag(&context, option)?,
        }
    }
    fsconfig_create(&context)?;
    let attributes = MountAttrFlags::MOUNT_ATTR_RDONLY
        | MountAttrFlags::MOUNT_ATTR_NOSUID
        | MountAttrFlags::MOUNT_ATTR_NODEV
        | MountAttrFlags::MOUNT_ATTR_NOEXEC;
    fsmount(&context, FsMountFlags::FSMOUNT_CLOEXEC, attributes)
}

/// The mount is opened by its path: nobody but root can exchange what is there (`mount_point.rs`).
fn classic(terms: &Terms, device: &OwnedFd, server: &Server, directory: &OwnedFd) -> Result<OwnedFd, Errno> {
    let from_nix = |error: nix::Error| Errno::from_raw_os_error(error as i32);
    let spelt: Vec<String> = options(device, server)
        .into_iter()
        .map(|(option, value)| value.map_or(option.to_owned(), |value| format!("{option}={value}")))
        .collect();
    let flags = MsFlags::MS_RDONLY | MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
    let target = link(directory);
    mount_by_path(Some(FS_SOURCE), target.as_str(), Some(FUSE_TYPE), flags, Some(spelt.join(",").as_str()))
        .map_err(from_nix)?;
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    open(&terms.point, flags, Mode::empty()).inspect_err(|_| {
        let _ = umount2(target.as_str(), MntFlags::MNT_DETACH);
    })
}
