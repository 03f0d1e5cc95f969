//! Versions of what cai runs on.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use super::context::Context;
use super::finding::Finding;
use crate::config::MountMode;
use crate::host::tool;

/// Oldest systemd that the units are written for: Alibaba Cloud Linux 3.
const SYSTEMD: u32 = 239;
/// First kernel whose mounts give memory away for others to read (FUSE passthrough), which load mode needs.
const PASSTHROUGH: (u32, u32) = (6, 9);
/// First kernel that makes a file system which is mounted nowhere (fsopen), which load and ram mode need.
const FSOPEN: (u32, u32) = (5, 2);

pub(super) async fn check(context: Arc<Context>) -> Vec<Finding> {
    super::blocking("versions.cai", move || look(&context)).await
}

fn look(context: &Context) -> Vec<Finding> {
    let cai = format!("cai {}", env!("CARGO_PKG_VERSION"));
    let cai = match cfg!(feature = "sandbox") {
        false => Finding::ok("versions.cai", cai),
        true => Finding::warning(
            "versions.cai",
            format!("{cai} with feature sandbox"),
            "a build for tests: it knows a TEE that proves nothing",
        )
        .fixed_by("install the package"),
    };
    let mode = context.settings().map(|settings| settings.mount.mode);
    let release = super::read(Path::new("/proc/sys/kernel/osrelease")).unwrap_or_default();
    vec![cai, kernel(release.trim(), mode), systemd()]
}

fn kernel(release: &str, mode: Option<MountMode>) -> Finding {
    let found = format!("Linux {release}");
    let Some(version) = version(release) else {
        return Finding::unseen("versions.kernel", "the kernel's version cannot be read", "uname -r");
    };
    let less = |why: &str| {
        Finding::warning("versions.kernel", found.clone(), why).fixed_by("set mount.mode = \"auto\"")
    };
    match mode {
        Some(MountMode::Load) if version < PASSTHROUGH => {
            less("mount.mode = \"load\" needs Linux 6.9; files are read on demand instead")
        }
        Some(MountMode::Load | MountMode::Ram) if version < FSOPEN => {
            less("mount.mode needs Linux 5.2 for its memory")
        }
        Some(_) | None => Finding::ok("versions.kernel", found),
    }
}

/// Major and minor number.
pub(super) fn version(release: &str) -> Option<(u32, u32)> {
    let mut numbers = release.split(|c: char| !c.is_ascii_digit());
    Some((numbers.next()?.parse().ok()?, numbers.next()?.parse().ok()?))
}

fn systemd() -> Finding {
    let unseen = |why: String| Finding::unseen("versions.systemd", why, "systemctl --version");
    let Some(systemctl) = tool::find(Path::new("/"), "systemctl") else {
        return unseen("there is no systemctl".to_owned());
    };
    match tool::run(&systemctl, &["--version"], Duration::from_secs(10), 1 << 10) {
        Ok(said) => systemd_of(said.text.lines().next().unwrap_or_default()),
        Err(error) => unseen(format!("systemctl: {error}")),
    }
}

/// From the first line that `systemctl --version` prints: `systemd 252 (252.39-1)`.
fn systemd_of(line: &str) -> Finding {
    let number =
        line.split_whitespace().nth(1).and_then(|word| word.split(['.', '~']).next()?.parse::<u32>().ok());
    match number {
        Some(number) if number < SYSTEMD => Finding::warning(
            "versions.systemd",
            line,
            format!("the units are written for systemd {SYSTEMD} and newer"),
        ),
        Some(_) => Finding::ok("versions.systemd", line),
        None => Finding::unseen("versions.systemd", "its version is not understood", "systemctl --version"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::doctor::Level;

    #[test]
    fn kernel_is_judged_by_what_the_mode_needs() {
        let level = |release: &str, mode| kernel(release, mode).level;
        let alinux = "5.10.134-17.al8.x86_64";
        assert_eq!(level(alinux, None), Level::Ok);
        assert_eq!(level(alinux, Some(MountMode::Auto)), Level::Ok);
        assert_eq!(level(alinux, Some(MountMode::Ram)), Level::Ok);
        assert_eq!(level(alinux, Some(MountMode::Load)), Level::Warning);
        assert_eq!(level("6.12.1", Some(MountMode::Load)), Level::Ok);
        assert_eq!(level("4.18.0", Some(MountMode::Ram)), Level::Warning);
        assert_eq!(level("", None), Level::Unseen);
    }

    #[test]
    fn systemd_is_judged_by_its_number() {
        assert_eq!(systemd_of("systemd 239 (239-82.0.3.al8.5)").level, Level::Ok);
        assert_eq!(systemd_of("systemd 257~rc1 (257)").level, Level::Ok);
        assert_eq!(systemd_of("systemd 219").level, Level::Warning);
        assert_eq!(systemd_of("no").level, Level::Unseen);
    }
}
