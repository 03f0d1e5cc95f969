//! What several tests need. Every test binary includes all of it and uses some.
#![allow(dead_code)]

use std::fs;
use std::net::{SocketAddr, TcpListener};
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

/// Whether to run a test that needs `what`. A missing one prints why and skips, but fails when `CAI_TEST_REQUIRE` (a comma
/// list, set in CI) names it: green must mean run.
pub fn available(what: &str, present: bool, why: &str) -> bool {
    let required = std::env::var("CAI_TEST_REQUIRE").unwrap_or_default();
    assert!(present || !required.split(',').any(|name| name == what), "{what} is required here: {why}");
    if !present {
        println!("skip: {why}");
    }
    present
}

/// Whether an agent can run here: it drops from root to user `cai`, mounts, and shows its status on a bus.
pub fn agents_run() -> bool {
    let dbus = Command::new("dbus-daemon").arg("--version").output().is_ok();
    available("root", nix::unistd::Uid::effective().is_root(), "needs root")
        && available("fuse", Path::new("/dev/fuse").exists(), "no /dev/fuse")
        && available("dbus", dbus, "no dbus-daemon")
}

/// Whether an adapter can run here, with the gocryptfs that the example needs.
pub fn adapters_run() -> bool {
    let gocryptfs = Command::new("gocryptfs").arg("--version").output().is_ok();
    let user = nix::unistd::User::from_name("cai-decryptor").unwrap().is_some();
    available("gocryptfs", gocryptfs, "no gocryptfs")
        && available("cai-decryptor", user, "no user cai-decryptor")
}

/// A program at `path`, written by another process: one that this process has open for writing cannot be run.
pub fn install_program(path: &Path, script: &str) {
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    let write = "printf '%s' \"$1\" >\"$0\" && chmod 755 \"$0\"";
    let status = Command::new("sh").args(["-c", write]).arg(path).arg(script).status().unwrap();
    assert!(status.success());
}

/// An address of loopback that was free a moment ago.
pub fn free() -> SocketAddr {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap()
}

/// How many times as long as usual to wait for anything: `CAI_TEST_PATIENCE`, for an emulated machine; otherwise once.
pub fn patience() -> u32 {
    std::env::var("CAI_TEST_PATIENCE").map_or(1, |times| times.parse().unwrap())
}

/// Wait for `condition`, at most half a minute.
pub fn wait_until(what: &str, mut condition: impl FnMut() -> bool) {
    let limit = Duration::from_secs(30) * patience();
    let deadline = Instant::now() + limit;
    while !condition() {
        assert!(Instant::now() < deadline, "waited {limit:?} for {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// Number of mounts at or below `directory`.
pub fn mounts_below(directory: &Path) -> usize {
    let table = fs::read_to_string("/proc/self/mountinfo").unwrap();
    let at = |line: &str| line.split(' ').nth(4).map(str::to_owned);
    table.lines().filter_map(at).filter(|point| Path::new(point).starts_with(directory)).count()
}

/// The smallest valid configuration below `root`; nothing it names is reachable.
pub fn minimal_config(root: &Path) {
    write_config(root, "http://127.0.0.1:9/", "http://127.0.0.1:9", "", "");
}

/// A configuration below `root` for the given Trustee and OSS; `env` and `toml` are appended.
pub fn write_config(root: &Path, trustee: &str, oss: &str, env: &str, toml: &str) {
    let directory = root.join("etc/cai");
    fs::create_dir_all(&directory).unwrap();
    let text = format!(
        "TRUSTEE_URL=\"{trustee}\"\n\
         MODEL_KEY_ID=\"kbs:///default/aliyun/model-decryption-key\"\n\
         MODEL_OSS_BUCKET_PATH=\"conf-ai:/model/\"\n\
         MODEL_OSS_ENDPOINT=\"{oss}\"\n\
         MODEL_OSS_REGION=cn-beijing\n\
         MODEL_MOUNT_POINT=/tmp/model\n{env}"
    );
    fs::write(directory.join("cai.env"), text).unwrap();
    fs::write(directory.join("cai.toml"), format!("[attest]\ntee = \"sample\"\n{toml}")).unwrap();
}
