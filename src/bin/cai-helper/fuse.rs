//! The FUSE mount itself: read-only, nothing in it is a device or a program, over a directory that is open.
//!
//! Nothing here may ask the new mount for anything: who serves it is the daemon, which has no device yet.

use std::os::fd::{AsRawFd, OwnedFd};

use cai::host::mounts::{FS_SOURCE, FUSE_TYPE};
use nix::mount::{MntFlags, MsFlags, mount as mount_by_path, umount2};
use rustix::fs::{Mode, OFlags, open};
use rustix::io::Errno;
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, MoveMountFlags, fsconfig_create, fsconfig_set_flag,
    fsconfig_set_string, fsmount, fsopen, move_mount,
};

use crate::mount_point::link;
use crate::session::Refusal;
use crate::terms::Terms;

/// Mount `device` over `directory`, which is open at the point of `terms`: the mount, open (`O_PATH`).
pub(crate) fn mount(terms: &Terms, device: &OwnedFd, directory: &OwnedFd) -> Result<OwnedFd, Refusal> {
    let (base, subtype) = FUSE_TYPE.split_once('.').unwrap_or((FUSE_TYPE, ""));
    let made = match fsopen(base, FsOpenFlags::FSOPEN_CLOEXEC) {
        Ok(context) => by_descriptor(terms, device, &context, subtype, directory),
        // Before Linux 5.2.
        Err(Errno::NOSYS) => classic(terms, device, directory),
        Err(error) => Err(error),
    };
    made.map_err(|error| {
        let text = format!("mounting at {}: {error}", terms.point.display());
        Refusal::new("fuse.mount", text, "see the kernel log: dmesg | tail")
    })
}

/// Options of the file system; those without a value are flags.
fn options(terms: &Terms, device: &OwnedFd) -> Vec<(&'static str, Option<String>)> {
    let mut options = vec![
        ("fd", Some(device.as_raw_fd().to_string())),
        ("rootmode", Some("40000".to_owned())),
        ("user_id", Some(terms.daemon.uid.to_string())),
        ("group_id", Some(terms.daemon.gid.to_string())),
        ("default_permissions", None),
    ];
    if terms.allow_other {
        options.push(("allow_other", None));
    }
    options
}

fn by_descriptor(
    terms: &Terms,
    device: &OwnedFd,
    context: &OwnedFd,
    subtype: &str,
    directory: &OwnedFd,
) -> Result<OwnedFd, Errno> {
    fsconfig_set_string(context, "source", FS_SOURCE)?;
    fsconfig_set_string(context, "subtype", subtype)?;
    fsconfig_set_flag(context, "ro")?;
    for (option, value) in options(terms, device) {
        match value {
            Some(value) => fsconfig_set_string(context, option, value.as_str())?,
            None => fsconfig_set_flag(context, option)?,
        }
    }
    fsconfig_create(context)?;
    let attributes = MountAttrFlags::MOUNT_ATTR_RDONLY
        | MountAttrFlags::MOUNT_ATTR_NOSUID
        | MountAttrFlags::MOUNT_ATTR_NODEV
        | MountAttrFlags::MOUNT_ATTR_NOEXEC;
    let mount = fsmount(context, FsMountFlags::FSMOUNT_CLOEXEC, attributes)?;
    let empty = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH | MoveMountFlags::MOVE_MOUNT_T_EMPTY_PATH;
    move_mount(&mount, "", directory, "", empty)?;
    Ok(mount)
}

/// The mount is opened by its path: nobody but root can exchange what is there (`mount_point.rs`).
fn classic(terms: &Terms, device: &OwnedFd, directory: &OwnedFd) -> Result<OwnedFd, Errno> {
    let from_nix = |error: nix::Error| Errno::from_raw_os_error(error as i32);
    let spelt: Vec<String> = options(terms, device)
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
