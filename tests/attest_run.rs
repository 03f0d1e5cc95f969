//! `cai run` on a machine that has a TD and GPUs, played by stand-ins at the hardware's edge: what is attested, what is
//! refused, and when the GPUs may work. Needs root, /dev/fuse, a C compiler and dbus-daemon.
#![cfg(feature = "sandbox")]

mod common;
#[path = "common/nvml.rs"]
mod nvml;
#[path = "common/sandbox.rs"]
mod sandbox;
#[path = "common/tee.rs"]
mod tee;
#[path = "common/world.rs"]
mod world;

use std::collections::BTreeMap;
use std::fs;

use common::{available, wait_until};
use nix::sys::signal::Signal;
use nvml::{Authority, Driver, Gpu, Signer};
use sandbox::Builder;
use serde_json::Value;
use tee::Tee;
use world::{World, small_model};

/// A world on a TDX guest with two GPUs, whose root is pinned unless `foreign`.
struct Machine {
    _signer: Signer,
    driver: Driver,
    tee: Tee,
    world: World,
}

impl Machine {
    async fn new(builder: Builder, toml: &str, foreign: bool) -> Option<Machine> {
        if !available("cc", tee::library::compiler(), "no C compiler") {
            return None;
        }
        let mut world = World::new(builder)?;
        world.upload(small_model()).await;
        let root = world.root();
        let more = root.join("etc/cai/cai.toml.d");
        fs::create_dir_all(&more).unwrap();
        fs::write(more.join("tdx.toml"), format!("[attest]\ntee = \"auto\"\n{toml}")).unwrap();
        let tee = Tee::start(&root);
        let driver = Driver::install(&root, &[]);
        let authority = Authority::new();
        let gpus: Vec<Gpu> = (0..2).map(|index| authority.gpu(index)).collect();
        driver.plug(&gpus, &[0; 32]);
        let signer = driver.sign(gpus);
        if !foreign {
            let pin = authority.anchor();
            let text = format!("{}\n{}\n", hex::encode(pin.certificate), hex::encode(pin.key));
            fs::write(root.join("etc/cai/sandbox-gpu-root"), text).unwrap();
        }
        Some(Machine { _signer: signer, driver, tee, world })
    }

    /// As pristine hardware and an operator without wishes have it.
    async fn usual() -> Option<Machine> {
        Machine::new(Builder::default(), "", false).await
    }
}

/// What `cai doctor` finds, by id.
fn doctor(world: &World) -> BTreeMap<String, Value> {
    let mut command = world.on_bus(env!("CARGO_BIN_EXE_cai"));
    let output = command.arg("--root").arg(world.root()).args(["doctor", "--json"]).output().unwrap();
    let report: Value = serde_json::from_slice(&output.stdout).unwrap();
    let findings = report["findings"].as_array().unwrap().iter();
    findings.map(|finding| (finding["id"].as_str().unwrap().to_owned(), finding.clone())).collect()
}

macro_rules! machine {
    ($machine:expr) => {
        match $machine {
            Some(machine) => machine,
            None => return,
        }
    };
}

#[tokio::test(flavor = "multi_thread")]
async fn gpus_work_only_between_the_release_of_the_key_and_the_stop() {
    let directory = tempfile::tempdir().unwrap();
    let signers = directory.path().join("signers.pem");
    let builder = Builder::default().with(&["--token-cert-out", signers.to_str().unwrap()]);
    let machine = machine!(Machine::new(builder, "", false).await);
    let world = &machine.world;
    fs::copy(&signers, world.root().join("etc/cai/signers.pem")).unwrap();
    let toml = "[trustee]\ntoken_cert = \"/etc/cai/signers.pem\"\n";
    fs::write(world.root().join("etc/cai/cai.toml.d/token.toml"), toml).unwrap();

    let mut agent = world.agent();
    let status = world.wait_state(&mut agent, "Serving");
    world.assert_model_is_readable();
    let facts = &status["Attestation"];
    assert_eq!(facts["tee"], "tdx");
    assert_eq!(facts["provider"], "configfs-tsm");
    assert_eq!(facts["gpus"], "2 x NVIDIA H20");
    assert_eq!(facts["protocol"], "0.4.0");
    assert_eq!(facts["key-algorithm"], "ECDH-ES+A256KW");
    assert_eq!(facts["token"], "signature verified");
    // Held back when the attestation begins, let go once the key is there.
    assert_eq!(machine.driver.ready_states(), "01");
    // Who looks at the machine meanwhile attests as the agent did, and moves nothing.
    let found = doctor(world);
    assert_eq!(found["evidence.quote"]["found"], "a TDX quote from configfs-tsm");
    assert_eq!(found["evidence.gpus"]["found"], "2 confidential GPUs verified, such as NVIDIA H20");
    assert_eq!(found["key.release"]["level"], "ok", "{found:?}");
    assert_eq!(machine.driver.ready_states(), "01");
    assert_eq!(machine.tee.reports(), [""; 0], "report directories are left behind");

    assert_eq!(agent.stop().code(), Some(0));
    assert_eq!(machine.driver.ready_states(), "010");
}

#[tokio::test(flavor = "multi_thread")]
async fn gpus_of_an_agent_that_was_killed_are_held_back_by_its_helper() {
    let machine = machine!(Machine::usual().await);
    let mut agent = machine.world.agent();
    machine.world.wait_state(&mut agent, "Serving");
    assert_eq!(machine.driver.ready_states(), "01");
    agent.signal(Signal::SIGKILL);
    agent.wait();
    wait_until("the GPUs to be held back", || machine.driver.ready_states() == "010");
}

#[tokio::test(flavor = "multi_thread")]
async fn gpus_of_an_agent_that_failed_are_held_back() {
    let machine = machine!(Machine::usual().await);
    let mut agent = machine.world.agent();
    machine.world.wait_state(&mut agent, "Serving");
    nix::mount::umount2(&machine.world.mount_point(), nix::mount::MntFlags::MNT_DETACH).unwrap();
    assert_eq!(agent.wait().code(), Some(69), "{}", agent.log());
    assert_eq!(machine.driver.ready_states(), "010");
}

#[tokio::test(flavor = "multi_thread")]
async fn denial_says_what_to_register_and_no_gpu_ever_works() {
    let other = "ee".repeat(48);
    let builder = Builder::default().with(&["--require-mrtd", &other]);
    let machine = machine!(Machine::new(builder, "", false).await);
    let mut agent = machine.world.agent();
    assert_eq!(agent.wait().code(), Some(77));
    let log = agent.log();
    assert!(log.contains("kbs.denied"), "{log}");
    let value = format!("tdx.quote.body.mr_td\":[\"{}\"]", hex::encode(tee::bytes::MRTD));
    assert!(log.replace('\\', "").contains(&value), "{log}");
    assert_eq!(machine.driver.ready_states(), "0");
    let denied = doctor(&machine.world).remove("key.release").unwrap();
    assert_eq!((&denied["level"], &denied["code"]), (&"error".into(), &"kbs.denied".into()));
    assert!(denied["fix"].as_str().unwrap().contains(&value), "{denied}");
}

#[tokio::test(flavor = "multi_thread")]
async fn gpus_that_are_not_nvidias_end_the_start_before_anything_is_sent() {
    let machine = machine!(Machine::new(Builder::default(), "", true).await);
    let mut agent = machine.world.agent();
    assert_eq!(agent.wait().code(), Some(65));
    assert!(agent.log().contains("gpu.root"), "{}", agent.log());
    assert_eq!(machine.world.sandbox.count("kbs.attest").await, 0);
    assert_eq!(machine.driver.ready_states(), "0");
}

#[tokio::test(flavor = "multi_thread")]
async fn gpus_that_are_not_required_and_not_sound_are_said_and_do_not_work() {
    let machine = machine!(Machine::new(Builder::default(), "require_gpu = false\n", true).await);
    let mut agent = machine.world.agent();
    let status = machine.world.wait_state(&mut agent, "Serving");
    assert_eq!(status["Attestation"]["gpus"], "none");
    let notices = status["Notices"].to_string();
    assert!(notices.contains("the GPUs are not attested (attest.require_gpu = false)"), "{notices}");
    assert_eq!(agent.stop().code(), Some(0));
    assert_eq!(machine.driver.ready_states(), "0");
}

#[tokio::test(flavor = "multi_thread")]
async fn old_and_upstream_brokers_release_the_key_to_the_same_machine() {
    for (arguments, protocol, toml) in [
        (&["--kbs-protocol", "0.1.0"][..], "0.1.0", ""),
        (&["--kbs-maker", "upstream"], "0.4.0", "[trustee]\ngpu_evidence = \"upstream\"\n"),
    ] {
        let machine = machine!(Machine::new(Builder::default().with(arguments), toml, false).await);
        let mut agent = machine.world.agent();
        let status = machine.world.wait_state(&mut agent, "Serving");
        assert_eq!(status["Attestation"]["protocol"], protocol);
        assert_eq!(status["Attestation"]["gpus"], "2 x NVIDIA H20");
        let downgraded =
            status["Notices"].to_string().contains("asked for protocol 0.1.0, which is not the newest");
        assert_eq!(downgraded, protocol == "0.1.0");
        assert_eq!(agent.stop().code(), Some(0));
        assert_eq!(machine.driver.ready_states(), "010");
    }
}
