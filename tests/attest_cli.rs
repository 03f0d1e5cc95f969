//! Claim: `cai attest` shows what this machine can prove on the first day: with the files as the package installs them,
//! without a network and without asking anybody for a key. The real binary, with the real helper.
#![cfg(feature = "sandbox")]

mod common;
#[path = "common/tee.rs"]
mod tee;

use std::collections::BTreeSet;
use std::fs;
use std::net::TcpListener;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, Output};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use common::{available, write_config};
use serde_json::{Value, json};
use tee::Tee;
use tee::bytes::quote_v4;
use tee::bytes::{MRTD, grub_log, replay, report_data_of};

const NONCE: &str = "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef";

/// A root directory as the package leaves it, with `toml` as cai.toml. `None` where the machine lacks what the test needs.
fn installed(toml: &str) -> Option<tempfile::TempDir> {
    let root = nix::unistd::Uid::effective().is_root();
    if !available("root", root, "needs root") {
        return None;
    }
    let root = tempfile::tempdir().unwrap();
    let etc = root.path().join("etc/cai");
    fs::create_dir_all(&etc).unwrap();
    fs::copy(Path::new(env!("CARGO_MANIFEST_DIR")).join("etc/cai/cai.env"), etc.join("cai.env")).unwrap();
    fs::write(etc.join("cai.toml"), toml).unwrap();
    Some(root)
}

const SAMPLE: &str = "[attest]\ntee = \"sample\"\n";

fn attest(root: &Path, arguments: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_cai"));
    command.arg("--root").arg(root).arg("attest").args(arguments).output().unwrap()
}

fn stdout(output: &Output) -> String {
    assert!(output.status.success(), "{}", stderr(output));
    String::from_utf8(output.stdout.clone()).unwrap()
}

fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// The exit status and the code of a failure that printed nothing on standard output.
fn failure(output: &Output) -> (Option<i32>, String) {
    assert_eq!(String::from_utf8_lossy(&output.stdout), "");
    let said = stderr(output);
    let code =
        said.lines().rev().find_map(|line| line.strip_suffix(']')?.rsplit_once('[')).map(|(_, code)| code);
    (output.status.code(), code.unwrap_or(&said).to_owned())
}

fn report(output: &Output) -> Value {
    serde_json::from_str(&stdout(output)).unwrap()
}

#[test]
fn attest_with_the_files_as_installed_shows_what_the_machine_proves() {
    let Some(root) = installed(SAMPLE) else { return };
    let text = stdout(&attest(root.path(), &["--nonce", NONCE]));
    let nonce = format!("{NONCE}{}", "00".repeat(16));
    let (first, second) = nonce.split_at(48);
    let expected = format!(
        "TEE           sample\n              \
         THIS MACHINE PROVES NOTHING: sample evidence is for the sandbox\n\
         quote from    sample\n\
         for verifier  current generation\n\
         nonce         {first}\n              {second}\n\
         report data   {first}\n              {second}\n\
         policy        can match tee sample, and by reference value:\n              \
         nothing: this TEE measures nothing\n"
    );
    assert_eq!(text, expected);
    fs::remove_file(root.path().join("etc/cai/cai.env")).unwrap();
    assert_eq!(stdout(&attest(root.path(), &["--nonce", NONCE])), expected, "without cai.env");
}

#[test]
fn attest_asks_nobody_on_the_network() {
    let Some(root) = installed(SAMPLE) else { return };
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    listener.set_nonblocking(true).unwrap();
    let server = format!("http://{}", listener.local_addr().unwrap());
    write_config(root.path(), &server, &server, "", "");
    stdout(&attest(root.path(), &[]));
    assert_eq!(listener.accept().unwrap_err().kind(), std::io::ErrorKind::WouldBlock);
}

#[test]
fn attest_json_is_bound_to_the_nonce_given_or_to_a_fresh_one() {
    let Some(root) = installed(SAMPLE) else { return };
    let shown = report(&attest(root.path(), &["--json", "--nonce", NONCE]));
    let nonce = format!("{NONCE}{}", "00".repeat(16));
    assert_eq!((&shown["tee"], &shown["nonce"]), (&"sample".into(), &nonce.as_str().into()));
    assert_eq!(shown["claims"]["report_data"], nonce.as_str());
    let fresh =
        || report(&attest(root.path(), &["--json"]))["claims"]["report_data"].as_str().unwrap().to_owned();
    let (one, other) = (fresh(), fresh());
    assert_eq!((one.len(), other.len()), (96, 96));
    assert_ne!(one, other);
}

#[test]
fn attest_for_a_pinned_protocol_makes_evidence_for_its_verifier() {
    let Some(root) = installed(&format!("{SAMPLE}[trustee]\nprotocol = \"0.1.0\"\n")) else { return };
    assert_eq!(report(&attest(root.path(), &["--json"]))["verifier"], "legacy");
}

#[test]
fn attest_reference_values_of_a_tee_that_measures_nothing_are_empty() {
    let Some(root) = installed(SAMPLE) else { return };
    assert_eq!(stdout(&attest(root.path(), &["--reference-values"])), "{}\n");
}

#[test]
fn attest_save_keeps_the_evidence_and_never_overwrites() {
    let Some(root) = installed(SAMPLE) else { return };
    let kept = root.path().join("case");
    let save = ["--json", "--nonce", NONCE, "--save", kept.to_str().unwrap()];
    let shown = stdout(&attest(root.path(), &save));
    let read = |name: &str| fs::read_to_string(kept.join(name)).unwrap();
    assert_eq!(read("claims.json"), shown);
    let evidence: Value = serde_json::from_str(&read("evidence.json")).unwrap();
    let nonce = hex::decode(format!("{NONCE}{}", "00".repeat(16))).unwrap();
    assert_eq!(evidence["report_data"], STANDARD.encode(nonce));
    let names: BTreeSet<String> =
        fs::read_dir(&kept).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    assert_eq!(
        names,
        ["README", "claims.json", "evidence.json", "reference-values.json"].map(str::to_owned).into()
    );
    for name in names.iter().filter(|name| *name != "README") {
        let line = read("README").lines().find(|line| line.starts_with(name)).map(str::len);
        assert!(line.is_some_and(|length| length > 26), "{name} is not explained");
    }

    let before = read("claims.json");
    let again = attest(root.path(), &["--save", kept.to_str().unwrap()]);
    assert_eq!(failure(&again), (Some(78), "attest.save".to_owned()));
    assert!(
        stderr(&again).contains(&format!("saving {}: File exists", kept.display())),
        "{}",
        stderr(&again)
    );
    assert_eq!(read("claims.json"), before);
}

#[test]
fn attest_without_a_tee_fails_and_never_falls_back_to_sample() {
    let Some(root) = installed("") else { return };
    let output = attest(root.path(), &["--json"]);
    assert_eq!(failure(&output), (Some(78), "attest.no-tee".to_owned()));
    assert!(stderr(&output).contains("\n  hint: "), "{}", stderr(&output));
}

#[test]
fn attest_with_a_wrong_cai_toml_says_what_is_wrong() {
    let Some(root) = installed("[attest]\ntee = \"sgx\"\n") else { return };
    let output = attest(root.path(), &[]);
    assert_eq!(failure(&output).0, Some(78));
    assert!(stderr(&output).contains("cai.toml:2: attest.tee"), "{}", stderr(&output));
}

#[test]
fn attest_of_an_ordinary_user_names_the_way_to_do_it() {
    let Some(root) = installed(SAMPLE) else { return };
    fs::set_permissions(root.path(), fs::Permissions::from_mode(0o755)).unwrap();
    let copy = root.path().join("cai");
    fs::copy(env!("CARGO_BIN_EXE_cai"), &copy).unwrap();
    let mut command = Command::new(copy);
    let output = command.uid(65534).arg("--root").arg(root.path()).arg("attest").output().unwrap();
    assert_eq!(failure(&output), (Some(78), "helper.none".to_owned()));
    assert!(stderr(&output).contains("hint: start cai through systemd (cai-helper.socket), or as root"));
}

/// A TDX guest below a root directory as the package leaves it. Fields are dropped in this order.
struct Guest {
    tee: Tee,
    root: tempfile::TempDir,
}

impl Guest {
    fn new(toml: &str) -> Option<Self> {
        if !available("fuse", Path::new("/dev/fuse").exists(), "no /dev/fuse") {
            return None;
        }
        let root = installed(toml)?;
        Some(Guest { tee: Tee::start(root.path()), root })
    }

    fn attest(&self, arguments: &[&str]) -> Output {
        attest(self.root.path(), arguments)
    }
}

#[test]
fn attest_of_a_td_shows_its_measurements_in_80_columns() {
    let Some(guest) = Guest::new("") else { return };
    let text = stdout(&guest.attest(&["--nonce", NONCE]));
    let rtmrs = replay(&grub_log());
    let halves = |label: &str, bytes: &[u8; 48]| {
        let (first, second) = bytes.split_at(24);
        format!("{label:<14}{}\n{:14}{}\n", hex::encode(first), "", hex::encode(second))
    };
    for expected in [
        "TEE           tdx\nquote from    configfs-tsm\nfor verifier  current generation\n".to_owned(),
        halves("MRTD", &MRTD),
        halves("RTMR0", &rtmrs[0]),
        halves("RTMR2", &rtmrs[2]),
        "attributes    0000001000000000 not DEBUG\n".to_owned(),
        format!("event log     sent, {} bytes\n", grub_log().len() + 8),
        "measurement.kernel.".to_owned(),
        "policy        can match tee tdx, and by reference value:\n".to_owned(),
        "tdx.quote.body.mr_td".to_owned(),
    ] {
        assert!(text.contains(&expected), "{expected}\n---\n{text}");
    }
    assert!(text.lines().all(|line| line.chars().count() <= 80), "{text}");
}

#[test]
fn attest_json_of_a_td_carries_quote_nonce_and_what_to_register() {
    let Some(guest) = Guest::new("") else { return };
    let shown = report(&guest.attest(&["--json", "--nonce", NONCE]));
    assert_eq!(shown["claims"]["report_data"], format!("{NONCE}{}", "00".repeat(32)).as_str());
    assert_eq!((&shown["tee"], &shown["debug"]), (&json!("tdx"), &json!(false)));
    assert_eq!(shown["claims"]["tdx"]["mrtd"], hex::encode(MRTD));
    assert_eq!(shown["claims"]["gpus"], json!([]));
    let values = report(&guest.attest(&["--reference-values"]));
    assert_eq!(values, shown["reference_values"]);
    assert_eq!(values["tdx.mr_td"], json!([hex::encode(MRTD)]));
    assert_eq!(values["rtmr_1"], json!([hex::encode(replay(&grub_log())[1])]));
    assert!(guest.tee.reports().is_empty(), "a report directory is left behind");
}

#[test]
fn attest_save_of_a_td_keeps_quote_and_logs_as_they_are() {
    let Some(guest) = Guest::new("") else { return };
    guest.tee.aael(b"INIT sha384/0\n");
    let kept = guest.root.path().join("case");
    stdout(&guest.attest(&["--nonce", NONCE, "--save", kept.to_str().unwrap()]));
    let read = |name: &str| fs::read(kept.join(name)).unwrap();
    let quote = read("quote.bin");
    assert_eq!(hex::encode(report_data_of(&quote)), format!("{NONCE}{}", "00".repeat(32)));
    assert_eq!(quote, quote_v4(&report_data_of(&quote), &guest.tee.machine().measured));
    let evidence: Value = serde_json::from_slice(&read("evidence.json")).unwrap();
    assert_eq!(evidence["quote"], STANDARD.encode(&quote));
    assert_eq!(read("ccel.bin"), [grub_log(), vec![0xff; 4096]].concat());
    assert_eq!(read("aael.bin"), b"INIT sha384/0\n");
    let readme = String::from_utf8(read("README")).unwrap();
    for name in ["quote.bin", "ccel.bin", "aael.bin"] {
        assert!(readme.lines().any(|line| line.starts_with(name)), "{readme}");
    }
}

#[test]
fn attest_of_a_td_whose_log_does_not_replay_says_so_and_keeps_the_log_for_support() {
    let Some(guest) = Guest::new("") else { return };
    guest.tee.machine().measured.rtmrs[1] = [0x5a; 48];
    let kept = guest.root.path().join("case");
    let shown = report(&guest.attest(&["--json", "--save", kept.to_str().unwrap()]));
    assert_eq!(shown["event_log_bytes"], Value::Null);
    let notices = shown["claims"]["notices"].to_string();
    assert!(notices.contains("left out") && notices.contains("RTMR1 replays to"), "{notices}");
    assert!(kept.join("ccel.bin").exists());
    let text = stdout(&guest.attest(&[]));
    assert!(
        text.contains("event log     not sent\n") && text.contains("notice        the boot event log"),
        "{text}"
    );
}

#[test]
fn attest_of_a_debug_td_is_refused() {
    let Some(guest) = Guest::new("") else { return };
    guest.tee.machine().measured.td_attributes[0] = 1;
    let (status, code) = failure(&guest.attest(&["--json"]));
    assert_eq!((status, code.as_str()), (Some(77), "attest.debug-td"));
}
