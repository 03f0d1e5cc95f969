//! Claim: `cai doctor` finds what stands between a machine and a served model, says it in words that an operator can act on, and
//! changes nothing. The real binary, with the real helper, against the stand-ins.
#![cfg(feature = "sandbox")]

mod common;
#[path = "common/sandbox.rs"]
mod sandbox;
#[path = "common/world.rs"]
mod world;

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, Output};

use cai::doctor::CHECKS;
use common::{install_program, minimal_config, mounts_below, wait_until};
use sandbox::Builder;
use serde_json::{Value, json};
use world::{SECRET, World, files_below};

/// What `cai doctor --json` says.
struct Diagnosis {
    json: Value,
    output: Output,
}

impl Diagnosis {
    fn of(world: &World) -> Self {
        Diagnosis::from(world.on_bus(env!("CARGO_BIN_EXE_cai")).arg("--root").arg(world.root()))
    }

    fn from(command: &mut Command) -> Self {
        let output = command.args(["doctor", "--json"]).output().unwrap();
        let text = String::from_utf8(output.stdout.clone()).unwrap();
        let json: Value = serde_json::from_str(&text)
            .unwrap_or_else(|error| panic!("{error}: {text}{}", String::from_utf8_lossy(&output.stderr)));
        assert_eq!(json["status"].as_i64(), output.status.code().map(i64::from));
        for finding in json["findings"].as_array().unwrap() {
            let id = finding["id"].as_str().unwrap();
            let known = CHECKS.iter().any(|check| check.name == id || check.ids().any(|known| known == id));
            assert!(known, "{id} is not in the table of checks");
        }
        Diagnosis { json, output }
    }

    fn findings(&self) -> &Vec<Value> {
        self.json["findings"].as_array().unwrap()
    }

    /// The first finding with this id.
    fn find(&self, id: &str) -> &Value {
        let found = self.findings().iter().find(|finding| finding["id"] == id);
        found.unwrap_or_else(|| panic!("no {id} in {:#}", self.json))
    }

    fn level(&self, id: &str) -> &str {
        self.find(id)["level"].as_str().unwrap()
    }

    fn found(&self, id: &str) -> &str {
        self.find(id)["found"].as_str().unwrap()
    }

    fn errors(&self) -> Vec<&str> {
        let errors = self.findings().iter().filter(|finding| finding["level"] == "error");
        errors.map(|finding| finding["id"].as_str().unwrap()).collect()
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn healthy_machine_has_no_error_before_the_start_nor_after_it_and_nothing_is_changed() {
    let Some(world) = World::with_small_model().await else { return };
    world.write_config();
    let before: BTreeSet<_> = files_below(&world.root()).into_iter().collect();
    let diagnosis = Diagnosis::of(&world);
    assert_eq!(diagnosis.errors(), [""; 0], "{:#}", diagnosis.json);
    assert_eq!(diagnosis.output.status.code(), Some(0));
    for (id, found) in [
        ("daemon.state", "the agent is not running"),
        ("config.readable", "every file is cai's to read"),
        ("evidence.quote", "sample evidence"),
        ("key.protocol", "protocol 0.4.0, ECDH-ES+A256KW, token not checked"),
        ("clock.trustee", "agrees with the Trustee"),
        ("clock.oss", "agrees with OSS"),
        ("oss.model", "an encrypted model without a manifest"),
        ("oss.credentials", "AccessKey"),
        ("mount.fuse", "/dev/fuse can be opened"),
        ("port.gate", "no service port is protected"),
        ("egress.address", "towards the Trustee (127.0.0.1) from 127.0.0.1"),
    ] {
        assert_eq!(diagnosis.found(id), found);
    }
    let released = format!("the key ({} bytes) is released to this machine; policy default", SECRET.len());
    assert_eq!((diagnosis.level("key.release"), diagnosis.found("key.release")), ("ok", released.as_str()));
    assert!(diagnosis.found("trustee.protocol").ends_with("/ speaks protocol 0.4.0"));
    assert!(diagnosis.found("oss.list").starts_with("conf-ai:/model/: "), "{}", diagnosis.found("oss.list"));
    assert!(diagnosis.found("oss.read").contains(" at ") && diagnosis.level("oss.read") == "ok");
    assert_eq!(diagnosis.level("disk.space"), "ok");
    assert_eq!(world.sandbox.count("kbs.resource").await, 1);
    assert_eq!(files_below(&world.root()).into_iter().collect::<BTreeSet<_>>(), before);
    assert_eq!(mounts_below(world.directory.path()), 0);

    let mut agent = world.agent();
    world.wait_state(&mut agent, "Serving");
    let diagnosis = Diagnosis::of(&world);
    assert_eq!(diagnosis.errors(), [""; 0], "{:#}", diagnosis.json);
    assert!(diagnosis.found("daemon.state").starts_with("Serving: "));
    let readable = format!("the model can be read at {}", world.mount_point().display());
    assert_eq!(diagnosis.found("mount.point"), readable);
    assert_eq!(agent.stop().code(), Some(0));

    let said = String::from_utf8(diagnosis.output.stdout).unwrap();
    let password = std::str::from_utf8(SECRET).unwrap().trim();
    assert!(!said.contains(password) && !said.contains(sandbox::ACCESS_KEY_SECRET), "{said}");
}

#[tokio::test(flavor = "multi_thread")]
async fn denials_are_told_with_code_and_remedy_and_the_exit_status_is_theirs() {
    let Some(world) = World::with_small_model().await else { return };
    world.write_config();
    let refuse = json!({"oss_error": {"status": 403, "code": "AccessDenied"}});
    world.sandbox.faults(json!([{"do": "kbs_deny"}, {"do": refuse, "on": ["get", "head"]}])).await;
    let diagnosis = Diagnosis::of(&world);
    assert_eq!(diagnosis.output.status.code(), Some(77));
    assert_eq!(diagnosis.errors(), ["key.release", "oss.read"]);
    let key = diagnosis.find("key.release");
    assert_eq!(key["code"], "kbs.denied");
    assert!(
        key["fix"].as_str().unwrap().starts_with("attestation succeeded, authorization did not: "),
        "{key}"
    );
    let read = diagnosis.find("oss.read");
    assert_eq!(read["code"], "oss.access-denied");
    assert!(read["fix"].as_str().unwrap().contains("oss:GetObject"), "{read}");
    assert_eq!(diagnosis.level("oss.list"), "ok");
}

#[tokio::test(flavor = "multi_thread")]
async fn machine_without_trustee_and_oss_is_told_what_does_not_answer() {
    let Some(world) = World::new(Builder::default()) else { return };
    minimal_config(&world.root());
    let diagnosis = Diagnosis::of(&world);
    assert_eq!(diagnosis.output.status.code(), Some(69), "{:#}", diagnosis.json);
    assert_eq!(diagnosis.errors(), ["trustee.protocol", "key.release", "oss.list"]);
    for id in ["clock.trustee", "clock.oss", "memory.room", "disk.space"] {
        assert_eq!(diagnosis.level(id), "unseen", "{id}");
    }
    assert_eq!(diagnosis.find("trustee.protocol")["code"], "kbs.unreachable");
    assert_eq!(diagnosis.find("oss.list")["code"], "oss.unreachable");
    // What needs no network is told all the same.
    assert_eq!(diagnosis.found("evidence.quote"), "sample evidence");
}

#[tokio::test(flavor = "multi_thread")]
async fn every_problem_of_the_configuration_is_a_finding_and_the_rest_is_not_looked_at() {
    let Some(mut world) = World::new(Builder::default()) else { return };
    world.env = "MODEL_KEYID=kbs:///a/b/c\nMODEL_SERVICE_PORT=many\n".to_owned();
    world.write_config();
    let diagnosis = Diagnosis::of(&world);
    assert_eq!(diagnosis.output.status.code(), Some(78));
    assert_eq!(diagnosis.errors(), ["config.problem", "config.problem"]);
    assert!(
        diagnosis
            .found("config.problem")
            .ends_with("cai.env:7: MODEL_KEYID is not a variable of cai; did you mean MODEL_KEY_ID?")
    );
    for check in ["trustee", "key", "oss", "disk", "mount"] {
        let finding = diagnosis.find(check);
        assert_eq!(
            (&finding["level"], &finding["fix"]),
            (&json!("unseen"), &json!("cai check-config")),
            "{check}"
        );
    }
    assert_eq!(world.sandbox.count("kbs.auth").await, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn ordinary_user_is_told_what_could_not_be_seen_and_how_it_can_be() {
    let Some(world) = World::with_small_model().await else { return };
    world.write_config();
    let env = world.root().join("etc/cai/cai.env");
    let copy = world.path("cai");
    fs::copy(env!("CARGO_BIN_EXE_cai"), &copy).unwrap();
    let nobody = || {
        let mut command = world.on_bus(copy.to_str().unwrap());
        command.uid(65534).arg("--root").arg(world.root());
        Diagnosis::from(&mut command)
    };
    let diagnosis = nobody();
    assert_eq!(diagnosis.level("oss.read"), "ok", "{:#}", diagnosis.json);
    for id in ["evidence.quote", "key.release"] {
        assert_eq!(diagnosis.found(id), "evidence is made for root and user cai alone");
        assert_eq!(diagnosis.find(id)["fix"], "sudo cai doctor");
    }
    assert_eq!(world.sandbox.count("kbs.attest").await, 0);
    fs::set_permissions(&env, fs::Permissions::from_mode(0o600)).unwrap();
    let diagnosis = nobody();
    assert_eq!(diagnosis.level("config.valid"), "unseen");
    assert_eq!(diagnosis.find("oss")["fix"], "sudo cai doctor");
    assert_eq!(diagnosis.errors(), ["config.readable"], "user cai cannot read it either");
}

#[tokio::test(flavor = "multi_thread")]
async fn gpus_and_what_else_is_in_the_way_are_told_from_what_the_machine_shows() {
    let Some(mut world) = World::with_small_model().await else { return };
    let root = world.root();
    world.toml = "[mount]\nmode = \"ram\"\nmemory_bytes = 4096\n[cache]\nmode = \"full\"\nreserve_bytes = \"8191TiB\"\n".to_owned();
    world.env.push_str("MODEL_SHARING_PEER=127.0.0.1:9\n");
    world.write_config();
    let device = root.join("sys/bus/pci/devices/0000:01:00.0");
    fs::create_dir_all(&device).unwrap();
    fs::write(device.join("vendor"), "0x10de\n").unwrap();
    fs::write(device.join("class"), "0x030200\n").unwrap();
    install_program(
        &root.join("usr/bin/nvidia-smi"),
        "#!/bin/sh\n[ \"$1\" = conf-compute ] || exit 1\ncase $2 in\n-f) echo 'CC status: ON' ;;\n-d) echo 'DevTools Mode: OFF' ;;\n\
         -grs) echo 'Confidential Compute GPUs Ready state: ready' ;;\nesac\n",
    );
    fs::write(world.mount_point(), "").unwrap();
    let diagnosis = Diagnosis::of(&world);
    assert_eq!(diagnosis.output.status.code(), Some(78));
    for (id, level, found) in [
        ("gpu.present", "ok", "1 NVIDIA GPU"),
        ("gpu.driver", "error", "the NVIDIA driver is not loaded"),
        ("gpu.mode", "ok", "confidential mode is on"),
        ("gpu.ready", "warning", "the GPUs are ready, and the agent does not run"),
        ("peers.reach", "warning", "127.0.0.1:9: Connection refused (os error 111)"),
    ] {
        assert_eq!((diagnosis.level(id), diagnosis.found(id)), (level, found));
    }
    assert_eq!(diagnosis.level("memory.room"), "error");
    assert_eq!(diagnosis.level("disk.space"), "error");
    assert_eq!(diagnosis.found("mount.point"), format!("{} is no directory", world.mount_point().display()));
}

#[tokio::test(flavor = "multi_thread")]
async fn text_has_80_columns_no_colours_and_a_summary() {
    let Some(world) = World::with_small_model().await else { return };
    world.write_config();
    let mut shown = world.on_bus(env!("CARGO_BIN_EXE_cai"));
    let output = shown.arg("--root").arg(world.root()).arg("doctor").output().unwrap();
    assert_eq!(output.status.code(), Some(0), "{}", String::from_utf8_lossy(&output.stderr));
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(!text.contains('\x1b'), "{text}");
    for line in text.lines() {
        let one_word = line.trim().split(' ').count() == 1;
        assert!(line.chars().count() <= 80 || one_word, "{line}");
    }
    let line = text.lines().find(|line| line.contains("clock.oss ")).unwrap();
    assert_eq!(line, "ok      clock.oss           agrees with OSS");
    assert!(text.contains("\n        do     systemctl start cai\n"), "{text}");
    let (_, summary) = text.trim_end().rsplit_once("\n\n").unwrap();
    assert!(summary.starts_with("0 errors, ") && summary.ends_with(" unseen; exit status 0"), "{summary}");
}

#[test]
fn documentation_lists_every_id_and_no_other() {
    let text = fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/doctor.md")).unwrap();
    let rows = text.lines().filter_map(|line| line.strip_prefix("| `")?.split('`').next());
    let documented: Vec<String> = rows.map(str::to_owned).collect();
    let known: Vec<String> = CHECKS.iter().flat_map(|check| check.ids()).collect();
    assert_eq!(documented, known);
}

#[test]
fn waiting_is_for_nothing_where_the_output_is_closed() {
    let root = tempfile::tempdir().unwrap();
    let mut child = Command::new("sh");
    child
        .args(["-c", "\"$0\" --root \"$1\" doctor --json >/dev/full"])
        .arg(env!("CARGO_BIN_EXE_cai"))
        .arg(root.path());
    let output = child.output().unwrap();
    assert_eq!(output.status.code(), Some(69));
    assert!(String::from_utf8_lossy(&output.stderr).contains("[cli.output]"));
    wait_until("nothing to be left", || fs::read_dir(root.path()).unwrap().count() == 0);
}
