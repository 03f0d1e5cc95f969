//! TDX: whether this is a guest of it, and who makes its quotes.

use std::path::Path;
use std::sync::Arc;

use super::context::Context;
use super::finding::Finding;
use crate::attest::qgs::{self, QgsError};
use crate::config::TeeChoice;
use crate::error::{ErrorClass, chain};

/// Ways to a quote, below the root.
const DEVICES: [&str; 4] = [
    "sys/kernel/config/tsm/report",
    "dev/tdx_guest",
    "usr/lib64/libtdx_attest.so.1",
    "usr/lib/x86_64-linux-gnu/libtdx_attest.so.1",
];

/// Where Intel's quoting library is told its certificate cache, below the root.
const QCNL: &str = "etc/sgx_default_qcnl.conf";

pub(super) async fn check(context: Arc<Context>) -> Vec<Finding> {
    super::blocking("tdx.guest", move || look(&context)).await
}

fn look(context: &Context) -> Vec<Finding> {
    let root = &context.root;
    if context.attesting().is_some_and(|settings| settings.attest.tee == TeeChoice::Sample) {
        let found = "attest.tee = \"sample\": no TEE is asked";
        return vec![
            Finding::warning("tdx.guest", found, "this machine proves nothing; for the sandbox only")
                .fixed_by("remove attest.tee from cai.toml"),
        ];
    }
    let mut findings = vec![guest(root)];
    findings.extend(service(root));
    findings.extend(cache(root));
    findings
}

fn guest(root: &Path) -> Finding {
    let found: Vec<&str> = DEVICES.into_iter().filter(|path| root.join(path).exists()).collect();
    if !found.is_empty() {
        return Finding::ok("tdx.guest", format!("/{}", found.join(", /")));
    }
    let flags = super::read(&root.join("proc/cpuinfo")).unwrap_or_default();
    if flags.split_whitespace().any(|flag| flag == "tdx_guest") {
        return Finding::error(
            "tdx.guest",
            ErrorClass::Config,
            "this is a TDX guest, and its kernel offers no way to a quote",
            "nothing can be attested",
        )
        .fixed_by("modprobe tdx_guest; mount -t configfs none /sys/kernel/config");
    }
    Finding::error("tdx.guest", ErrorClass::Config, "this is no TDX guest", "nothing can be attested")
        .fixed_by(
            "run cai on a confidential instance (gn8v-tee); in a container, pass /dev/tdx_guest into it",
        )
}

/// The host's quoting service, where one is configured; the kernel's own way needs no line of ours to it.
fn service(root: &Path) -> Option<Finding> {
    Some(match qgs::reach(root) {
        Ok(port) => {
            Finding::ok("tdx.qgs", format!("the host's quoting service answers on vsock port {port}"))
        }
        Err(QgsError::NoPort { source: Some(_), .. }) => return None,
        Err(error) => {
            let meaning = "quotes come from it unless the kernel has configfs-tsm";
            Finding::warning("tdx.qgs", chain(&error), meaning)
                .fixed_by(format!("see the port in /{}, and QGS on the host", qgs::CONFIG))
        }
    })
}

/// The certificate cache that this machine knows. Who verifies asks it, and not this machine.
fn cache(root: &Path) -> Option<Finding> {
    let text = super::read(&root.join(QCNL))?;
    let url = pccs(&text)?;
    Some(
        Finding::note("tdx.pccs", format!("/{QCNL} names {url}"))
            .meaning("the attestation service of the Trustee asks its own; cai needs none"),
    )
}

/// The address in either form of the file: `"pccs_url": "https://..."`, `PCCS_URL=https://...`.
fn pccs(text: &str) -> Option<&str> {
    let bare = |c: char| "\",".contains(c) || c.is_whitespace();
    let lines = text.lines().map(str::trim).filter(|line| !line.starts_with(['#', '/']));
    let mut pairs = lines.filter_map(|line| line.split_once(['=', ':']));
    let (_, value) = pairs.find(|(name, _)| name.trim_matches(bare).eq_ignore_ascii_case("pccs_url"))?;
    Some(value.trim_matches(bare))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::doctor::Level;

    #[test]
    fn guest_is_known_by_its_devices_or_missed_with_a_reason() {
        let root = tempfile::tempdir().unwrap();
        assert_eq!(guest(root.path()).found, "this is no TDX guest");
        std::fs::create_dir_all(root.path().join("proc")).unwrap();
        std::fs::write(root.path().join("proc/cpuinfo"), "flags\t\t: fpu tdx_guest vme\n").unwrap();
        let finding = guest(root.path());
        assert!(
            finding.level == Level::Error && finding.fix.starts_with("modprobe tdx_guest"),
            "{finding:?}"
        );
        std::fs::create_dir_all(root.path().join("dev")).unwrap();
        std::fs::write(root.path().join("dev/tdx_guest"), "").unwrap();
        assert_eq!(guest(root.path()), Finding::ok("tdx.guest", "/dev/tdx_guest"));
        assert_eq!((service(root.path()), cache(root.path())), (None, None));
    }

    #[test]
    fn certificate_cache_is_read_from_both_forms_of_the_file() {
        let json =
            "{\n  // \"pccs_url\": \"https://no\"\n  \"pccs_url\": \"https://pccs.example:8081/v4/\",\n}";
        assert_eq!(pccs(json), Some("https://pccs.example:8081/v4/"));
        assert_eq!(
            pccs("# PCCS_URL=x\nPCCS_URL=https://pccs.example/v4/\n"),
            Some("https://pccs.example/v4/")
        );
        assert_eq!(pccs("USE_SECURE_CERT=TRUE\nnothing"), None);
    }
}
