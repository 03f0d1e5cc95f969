//! The mount point: what is there now, whether containers will see the mount, and whether the kernel can make it.

use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;
use std::sync::Arc;

use super::context::{Agent, Context};
use super::finding::Finding;
use crate::error::ErrorClass;
use crate::host;
use crate::host::mounts::{MountEntry, mount_of, mounts_at};

/// What the helper opens.
const DEVICE: &str = "/dev/fuse";

pub(super) async fn check(context: Arc<Context>) -> Vec<Finding> {
    let Some(settings) = context.settings().cloned() else { return Vec::new() };
    let agent = context.agent().await;
    let daemon = context.daemon.map(|user| user.uid.as_raw());
    super::blocking("mount.point", move || {
        let point = &settings.mount.point;
        let mut findings = vec![match mounts_at(point).pop() {
            Some(top) => mounted(point, &top, agent),
            None if agent == Agent::Serving => Finding::error(
                "mount.point",
                ErrorClass::Transient,
                format!("nothing is mounted at {}, and the agent serves", point.display()),
                "this process lives in another mount namespace, or somebody unmounted the model",
            )
            .fixed_by("systemctl restart cai"),
            None => free(point, daemon),
        }];
        findings.extend(mount_of(point.parent().unwrap_or(point)).map(|above| propagation(&above)));
        findings.push(fuse());
        findings
    })
    .await
}

/// `top`: what is mounted at `point`.
fn mounted(point: &Path, top: &MountEntry, agent: Agent) -> Finding {
    let found = format!("{} holds a {} mount of {}", point.display(), top.fs_type, top.source);
    let ours = top.is_our_fuse() || top.is_our_memory();
    match (ours, agent) {
        (true, Agent::Serving) => match std::fs::read_dir(point) {
            Ok(_) => Finding::ok("mount.point", format!("the model can be read at {}", point.display())),
            Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {
                Finding::ok("mount.point", found).meaning("it is not for this user to read (mount.gid)")
            }
            Err(error) => Finding::error(
                "mount.point",
                ErrorClass::Transient,
                format!("{}: {error}", point.display()),
                "the model cannot be read",
            )
            .fixed_by("journalctl -u cai; systemctl restart cai"),
        },
        (true, Agent::Starting) => Finding::ok("mount.point", found),
        (true, Agent::Absent) => {
            Finding::note("mount.point", found).meaning("left by a crash; the next start takes it away")
        }
        (false, _) => Finding::error(
            "mount.point",
            ErrorClass::Config,
            found,
            "the agent mounts over nobody else's file system",
        )
        .fixed_by(format!("findmnt {0}; then: umount {0}", point.display())),
    }
}

/// Nothing is mounted there: whether the helper would mount there.
fn free(point: &Path, daemon: Option<u32>) -> Finding {
    let refused = |found: String, fix: String| {
        Finding::error("mount.point", ErrorClass::Config, found, "the helper refuses to mount there")
            .fixed_by(fix)
    };
    let at = point.display();
    let metadata = match std::fs::symlink_metadata(point) {
        Ok(metadata) => metadata,
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            return Finding::ok("mount.point", format!("{at} does not exist yet, and will be made"));
        }
        Err(error) => return Finding::unseen("mount.point", format!("{at}: {error}"), super::AS_ROOT),
    };
    if metadata.is_symlink() {
        return refused(
            format!("{at} is a symbolic link"),
            "give MODEL_MOUNT_POINT without links".to_owned(),
        );
    }
    if !metadata.is_dir() {
        return refused(format!("{at} is no directory"), format!("rm {at}"));
    }
    if metadata.uid() != 0 && Some(metadata.uid()) != daemon {
        let found = format!("{at} belongs to uid {}, expected root or {}", metadata.uid(), host::DAEMON_USER);
        return refused(found, format!("chown root: {at}"));
    }
    match std::fs::read_dir(point).map(|mut entries| entries.next().is_some()) {
        Ok(false) => Finding::ok("mount.point", format!("{at} is there and empty")),
        Ok(true) => refused(
            format!("{at} is not empty"),
            format!("ls -A {at}; empty it, or choose another MODEL_MOUNT_POINT"),
        ),
        Err(error) => Finding::unseen("mount.point", format!("{at}: {error}"), super::AS_ROOT),
    }
}

/// `above`: what the mount point lies on.
fn propagation(above: &MountEntry) -> Finding {
    let at = above.point.display();
    if above.shared {
        return Finding::ok(
            "mount.propagation",
            format!("{at} is shared: containers can see what is mounted later"),
        );
    }
    Finding::warning(
        "mount.propagation",
        format!("{at} is a private mount"),
        "a container that was started before cai never sees the model",
    )
    .fixed_by(format!("mount --make-rshared {at}; or start containers after cai"))
}

fn fuse() -> Finding {
    let missing = |found: String| {
        Finding::error("mount.fuse", ErrorClass::Config, found, "the model cannot be mounted")
            .fixed_by("modprobe fuse; in a container: --device /dev/fuse")
    };
    match std::fs::OpenOptions::new().read(true).write(true).open(DEVICE) {
        Ok(_) => Finding::ok("mount.fuse", format!("{DEVICE} can be opened")),
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {
            Finding::unseen("mount.fuse", format!("{DEVICE} is not for this user to open"), super::AS_ROOT)
        }
        Err(error) => missing(format!("{DEVICE}: {error}")),
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;
    use crate::doctor::Level;

    #[test]
    fn point_that_the_helper_would_refuse_is_an_error_with_the_way_out() {
        let root = tempfile::tempdir().unwrap();
        let point = root.path().join("model");
        let me = Some(nix::unistd::geteuid().as_raw());
        let of = || free(&point, me);
        assert_eq!(of().level, Level::Ok);
        std::fs::create_dir(&point).unwrap();
        assert_eq!(of().found, format!("{} is there and empty", point.display()));
        std::fs::write(point.join("x"), "").unwrap();
        assert_eq!((of().level, of().found), (Level::Error, format!("{} is not empty", point.display())));
        std::fs::remove_dir_all(&point).unwrap();
        symlink("/tmp", &point).unwrap();
        assert_eq!(of().found, format!("{} is a symbolic link", point.display()));
        std::fs::remove_file(&point).unwrap();
        std::fs::write(&point, "").unwrap();
        assert_eq!(of().fix, format!("rm {}", point.display()));
    }

    #[test]
    fn mount_of_somebody_else_is_an_error_whether_the_agent_serves_or_not() {
        let entry = mount_of(Path::new("/proc")).unwrap();
        for agent in [Agent::Absent, Agent::Starting, Agent::Serving] {
            assert_eq!(mounted(Path::new("/proc"), &entry, agent).level, Level::Error);
        }
    }
}
