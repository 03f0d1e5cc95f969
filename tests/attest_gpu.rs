//! GPU evidence is verified before anything is sent, and nothing passes that is not a genuine, fresh report of every GPU.
//! The helper, its child and nvml-wrapper are the real ones; only the driver's library is a stand-in. Needs root. The
//! two real Hopper reports verify against NVIDIA's root.
#![cfg(feature = "sandbox")]

mod common;
#[path = "common/nvml.rs"]
mod nvml;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use cai::attest::gpu::{Expected, GpuError, Gpus, NVIDIA_ROOT, verify};
use cai::attest::{AttestError, DeviceClaims, Devices as _, Digest, GpuClaims};
use cai::error::{ErrorClass, Fault};
use cai::helper::protocol::{GpuReport, GpuReports, Request};
use cai::helper::{Helper, HelperError};
use common::{available, minimal_config, wait_until, write_config};
use nvml::{Authority, DRIVER, Driver, Gpu, VBIOS};

/// What the evidence of every test is bound to; the GPUs see its first 32 bytes.
const DIGEST: Digest = Digest([0xd1; 48]);
const NONCE: [u8; 32] = [0xd1; 32];

/// A machine below a directory: configuration, PCI bus, driver; and a line to a helper that runs there.
struct Machine {
    root: tempfile::TempDir,
    authority: Authority,
    driver: Driver,
}

impl Machine {
    /// `None` (with the reason printed) where the test cannot run.
    fn new(defines: &[&str]) -> Option<Self> {
        if !available("root", nix::unistd::Uid::effective().is_root(), "needs root") {
            return None;
        }
        let root = tempfile::tempdir().unwrap();
        minimal_config(root.path());
        let driver = Driver::install(root.path(), defines);
        Some(Machine { root, authority: Authority::new(), driver })
    }

    /// The same with `count` GPUs that are in order.
    fn with_gpus(count: usize) -> Option<(Self, Vec<Gpu>)> {
        let machine = Machine::new(&[])?;
        let gpus: Vec<Gpu> = (0..count).map(|index| machine.authority.gpu(index)).collect();
        machine.driver.plug(&gpus, &NONCE);
        Some((machine, gpus))
    }

    fn helper(&self) -> Arc<Helper> {
        Arc::new(Helper::start_program(program(), self.root.path()).unwrap())
    }

    /// The devices with these settings; `toml` goes below `[attest]`.
    fn gpus(&self, toml: &str) -> Gpus {
        write_config(self.root.path(), "http://127.0.0.1:9/", "http://127.0.0.1:9", "", toml);
        let (settings, _) = cai::config::load(self.root.path()).unwrap();
        Gpus::new(&settings.attesting(), &self.helper(), self.authority.anchor())
    }

    fn refusal(&self) -> AttestError {
        self.gpus("").embedded(&DIGEST).unwrap_err()
    }
}

fn program() -> &'static Path {
    Path::new(env!("CARGO_BIN_EXE_cai-helper"))
}

fn claims(gpus: &[Gpu]) -> DeviceClaims {
    let claims = |gpu: &Gpu| GpuClaims {
        uuid: gpu.uuid.clone(),
        name: "NVIDIA H20".into(),
        arch: "HOPPER".into(),
        driver_version: DRIVER.into(),
        vbios_version: VBIOS.into(),
        confidential: true,
    };
    DeviceClaims { gpus: gpus.iter().map(claims).collect(), notices: Vec::new() }
}

// ---- What is sent ---------------------------------------------------------------------------------------------------

/// Decoded base64 member of an object.
fn decoded(object: &serde_json::Value, member: &str) -> Vec<u8> {
    STANDARD.decode(object[member].as_str().unwrap()).unwrap()
}

#[test]
fn two_sound_gpus_are_sent_as_alibabas_verifier_reads_them() {
    let Some((machine, gpus)) = Machine::with_gpus(2) else { return };
    let devices = machine.gpus("");
    assert_eq!(devices.additional(&DIGEST).unwrap(), None);
    let (value, said) = devices.embedded(&DIGEST).unwrap();
    assert_eq!(said, claims(&gpus));
    let value: serde_json::Value = serde_json::from_str(value.unwrap().get()).unwrap();
    let members: Vec<&String> = value.as_object().unwrap().keys().collect();
    assert_eq!(members, ["collection_time", "evidence_list"]);
    let time = value["collection_time"].as_str().unwrap();
    let shape: String = time.chars().map(|c| if c.is_ascii_digit() { '0' } else { c }).collect();
    assert_eq!(shape, "0000-00-00T00:00:00Z");
    let list = value["evidence_list"].as_array().unwrap();
    assert_eq!(list.len(), 2);
    for (index, (sent, gpu)) in list.iter().zip(&gpus).enumerate() {
        let plain = serde_json::json!({
            "index": index, "uuid": gpu.uuid, "name": "NVIDIA H20", "driver_version": DRIVER,
            "vbios_version": VBIOS, "cc_enabled": true,
            "attestation_report": sent["attestation_report"], "certificate": sent["certificate"],
        });
        assert_eq!(*sent, plain);
        // ECDSA signatures differ from call to call; what is before them does not.
        let report = decoded(sent, "attestation_report");
        let expected = gpu.report(&NONCE);
        assert_eq!(report.len(), expected.len());
        assert_eq!(report[..report.len() - 96], expected[..expected.len() - 96]);
        assert_eq!(decoded(sent, "certificate"), gpu.device_chain().into_bytes());
    }
}

#[test]
fn sound_gpu_is_sent_as_upstreams_verifier_reads_it() {
    let Some((machine, gpus)) = Machine::with_gpus(1) else { return };
    // The driver counts a zero after the signature as part of the report, as a real one did.
    let padded = [gpus[0].report(&NONCE), vec![0]].concat();
    machine.driver.give_report(0, &NONCE, &padded);
    let devices = machine.gpus("[trustee]\ngpu_evidence = \"upstream\"\n");
    let (text, said) = devices.additional(&DIGEST).unwrap().unwrap();
    assert_eq!(said, claims(&gpus));
    let expected = format!(
        r#"{{"nvidia":{{"device_evidence_list":[{{"arch":"HOPPER","uuid":"{}","evidence":"{}","certificate":"{}"}}]}}}}"#,
        gpus[0].uuid,
        STANDARD.encode(&padded[..padded.len() - 1]),
        STANDARD.encode(&gpus[0].chain)
    );
    assert_eq!(text, expected);
}

#[test]
fn gpus_nobody_asks_to_be_sent_are_verified_all_the_same() {
    let Some((machine, gpus)) = Machine::with_gpus(1) else { return };
    // A protocol before 0.4.0 never asks for additional evidence.
    for form in ["upstream", "none"] {
        let devices = machine.gpus(&format!("[trustee]\ngpu_evidence = \"{form}\"\n"));
        let (value, said) = devices.embedded(&DIGEST).unwrap();
        assert!(value.is_none(), "{form}");
        assert_eq!(said.gpus, claims(&gpus).gpus, "{form}");
        // That the operator's form had no room is said; that nothing was to be sent is not news.
        let unsent = said.notices.iter().filter(|notice| notice.contains("their evidence not sent")).count();
        assert_eq!((unsent, said.notices.len()), (usize::from(form == "upstream"), unsent), "{form}");
    }
    machine.driver.say("dev-tools", 1);
    let devices = machine.gpus("[trustee]\ngpu_evidence = \"none\"\n");
    assert_eq!(devices.embedded(&DIGEST).unwrap_err().code(), "gpu.dev-tools");
}

#[test]
fn eight_gpus_pass_the_whole_way_though_they_do_not_fit_a_packet() {
    let Some((machine, gpus)) = Machine::with_gpus(8) else { return };
    let (value, said) = machine.gpus("").embedded(&DIGEST).unwrap();
    assert_eq!(said, claims(&gpus));
    let (value, through_helper) = (value.unwrap(), machine.helper().fetch(request()).unwrap().1);
    assert!(through_helper.len() > 64 * 1024, "{} bytes through the helper", through_helper.len());
    let value: serde_json::Value = serde_json::from_str(value.get()).unwrap();
    assert_eq!(value["evidence_list"].as_array().unwrap().len(), 8);
}

fn request() -> Request {
    Request::GpuEvidence { nonce: NONCE }
}

// ---- What is refused ------------------------------------------------------------------------------------------------

/// Something that is wrong with a machine of two GPUs, and the code it must be refused with.
type Wrong = (&'static str, ErrorClass, fn(&Machine, &[Gpu]));

const WRONG: [Wrong; 17] = [
    ("gpu.cc-off", ErrorClass::Config, |machine, _| machine.driver.say("feature", 0)),
    ("gpu.cc-off", ErrorClass::Config, |machine, _| machine.driver.say("incapable", 1)),
    ("gpu.dev-tools", ErrorClass::Config, |machine, _| machine.driver.say("dev-tools", 1)),
    ("gpu.not-production", ErrorClass::Config, |machine, _| machine.driver.say("environment", 1)),
    ("gpu.protected-pcie", ErrorClass::Config, |machine, _| machine.driver.say("multi-gpu", 1)),
    ("gpu.count", ErrorClass::Config, |machine, _| machine.driver.say("count", 1)),
    ("gpu.count", ErrorClass::Config, |machine, _| machine.driver.on_pci(2, "0x10de", "0x030000")),
    ("gpu.twice", ErrorClass::Corrupt, |machine, gpus| {
        // One GPU's evidence in the place of two, under another name.
        machine.driver.say("gpu1-attestation-chain", &gpus[0].chain);
        machine.driver.give_report(1, &NONCE, &gpus[0].report(&NONCE));
    }),
    ("gpu.twice", ErrorClass::Corrupt, |machine, gpus| machine.driver.say("gpu1-uuid", &gpus[0].uuid)),
    ("gpu.nonce", ErrorClass::Corrupt, |machine, gpus| {
        machine.driver.give_report(1, &NONCE, &gpus[1].report(&[0xd2; 32]));
    }),
    ("gpu.nonce-zero", ErrorClass::Corrupt, |machine, gpus| {
        machine.driver.give_report(1, &NONCE, &gpus[1].report(&[0; 32]));
    }),
    ("gpu.signature", ErrorClass::Corrupt, |machine, gpus| {
        machine.driver.give_report(1, &NONCE, &gpus[0].report(&NONCE));
    }),
    ("gpu.root", ErrorClass::Corrupt, |machine, _| {
        let foreign = Authority::new().gpu(1);
        machine.driver.say("gpu1-attestation-chain", &foreign.chain);
        machine.driver.give_report(1, &NONCE, &foreign.report(&NONCE));
    }),
    ("gpu.chain", ErrorClass::Corrupt, |machine, gpus| {
        // A leaf of a foreign authority below our root.
        let foreign = Authority::new().gpu(1);
        let below = |chain: &str| chain.split_once("-----END").unwrap().1.to_owned();
        let leaf = foreign.chain.split_once("-----END").unwrap().0;
        machine.driver.say("gpu1-attestation-chain", format!("{leaf}-----END{}", below(&gpus[1].chain)));
        machine.driver.give_report(1, &NONCE, &foreign.report(&NONCE));
    }),
    ("gpu.version", ErrorClass::Corrupt, |machine, _| machine.driver.say("driver", "570.133.21")),
    ("gpu.firmware", ErrorClass::Corrupt, |machine, gpus| {
        machine.driver.give_report(1, &NONCE, &gpus[1].report_that_says(&NONCE, DRIVER, &[1; 48]));
    }),
    ("gpu.report", ErrorClass::Corrupt, |machine, _| machine.driver.give_report(1, &NONCE, b"REPORT")),
];

#[test]
fn evidence_that_is_not_sound_is_refused_with_its_reason_and_never_sent() {
    for (code, class, spoil) in WRONG {
        let Some((machine, gpus)) = Machine::with_gpus(2) else { return };
        spoil(&machine, &gpus);
        let error = machine.refusal();
        assert_eq!((error.code(), error.class()), (code, class), "{error:?}");
        assert!(matches!(error, AttestError::Gpu(_)), "{error:?}");
        assert!(error.hint().len() > 20, "{code}: {}", error.hint());
        // Without the requirement it is a notice, and nothing is sent.
        let form = "require_gpu = false\n[trustee]\ngpu_evidence = \"upstream\"\n";
        let (text, said) = machine.gpus(form).additional(&DIGEST).unwrap().unwrap();
        assert_eq!((text.as_str(), said.gpus.len(), said.notices.len()), ("", 0, 1), "{code}");
        let start = "the GPUs are not attested (attest.require_gpu = false): ";
        assert!(said.notices[0].starts_with(start), "{}", said.notices[0]);
    }
}

#[test]
fn hint_for_a_gpu_without_confidential_mode_is_the_command_that_switches_it() {
    let Some((machine, _)) = Machine::with_gpus(1) else { return };
    machine.driver.say("feature", 0);
    let hint = machine.refusal().hint();
    assert!(
        hint.contains("nvidia_gpu_tools.py --devices gpus --set-cc-mode=on --reset-after-cc-mode-switch")
    );
    assert!(hint.contains("`nvidia-smi conf-compute -f`"));
}

#[test]
fn machine_without_a_gpu_says_nothing_unless_one_is_required() {
    let Some(machine) = Machine::new(&[]) else { return };
    machine.driver.on_pci(7, "0x8086", "0x030000");
    // The driver would end the test if it were asked.
    machine.driver.say("crash", 1);
    let (value, said) = machine.gpus("").embedded(&DIGEST).unwrap();
    assert!(value.is_none());
    assert_eq!(said, DeviceClaims::default());
    let error = machine.gpus("require_gpu = true\n").embedded(&DIGEST).unwrap_err();
    assert_eq!(error.code(), "gpu.none");
}

#[test]
fn pci_bus_that_cannot_be_read_is_an_error_not_a_machine_without_gpus() {
    let Some(machine) = Machine::new(&[]) else { return };
    fs::create_dir_all(machine.root.path().join("sys/bus/pci/devices/0000:01:00.0")).unwrap();
    assert_eq!(machine.refusal().code(), "gpu.pci");
}

// ---- The driver misbehaves ------------------------------------------------------------------------------------------

#[test]
fn driver_that_cannot_be_used_is_told_apart() {
    let Some((machine, _)) = Machine::with_gpus(1) else { return };
    for (question, answer, code, hint) in [
        ("init", 9, "gpu.driver", "modprobe nvidia"),
        ("init", 18, "gpu.driver", "modprobe nvidia"),
        ("init", 15, "gpu.device", "dmesg"),
        ("count", 0, "gpu.count", "nvidia-smi -L"),
    ] {
        machine.driver.say(question, answer);
        let error = machine.refusal();
        assert_eq!(error.code(), code, "{question} {answer}: {error:?}");
        assert!(error.hint().contains(hint), "{}", error.hint());
        machine.driver.say("init", 0);
    }
    fs::write(machine.root.path().join("usr/lib64/libnvidia-ml.so.1"), "not a library").unwrap();
    assert_eq!(machine.refusal().code(), "gpu.no-library");
}

#[test]
fn driver_without_the_functions_says_which_version_is_needed() {
    let Some(machine) = Machine::new(&["-DOLD"]) else { return };
    machine.driver.plug(&[machine.authority.gpu(0)], &NONCE);
    let error = machine.refusal();
    assert_eq!(error.code(), "gpu.driver-old");
    assert!(error.hint().contains("550 or later"), "{}", error.hint());
}

#[test]
fn child_that_dies_of_the_drivers_sizes_or_crash_is_an_ordinary_error() {
    let Some((machine, _)) = Machine::with_gpus(1) else { return };
    for (question, answer, end) in [
        ("report-len", u64::from(u32::MAX), "exit status: 101"),
        ("report-len", 8193, "exit status: 101"),
        ("chain-len", 5121, "exit status: 101"),
        ("crash", 1, "signal: 6"),
    ] {
        machine.driver.say(question, answer);
        let error = machine.refusal();
        let AttestError::Gpu(error) = &error else { panic!("{question} {answer}: {error:?}") };
        let GpuError::Helper(HelperError::Refused { code: "vendor.child", text, .. }) = error.as_ref() else {
            panic!("{question} {answer}: {error:?}")
        };
        assert!(text.contains(end), "{question} {answer}: {text}");
        fs::remove_file(machine.root.path().join("scenario").join(question)).unwrap();
    }
    // A short size cuts the report, which then is none; the helper still answers.
    machine.driver.say("report-len", 40);
    assert_eq!(machine.refusal().code(), "gpu.report");
}

#[test]
fn child_whose_driver_hangs_is_ended_by_its_alarm() {
    let Some((machine, _)) = Machine::with_gpus(1) else { return };
    machine.driver.say("hang", 1);
    let started = Instant::now();
    let output = Command::new(program())
        .arg("--root")
        .arg(machine.root.path())
        .args(["vendor", "gpu-evidence", &hex::encode(NONCE), "1"])
        .output()
        .unwrap();
    let signal = std::os::unix::process::ExitStatusExt::signal(&output.status);
    assert_eq!(signal, Some(nix::libc::SIGALRM));
    assert!(started.elapsed() < Duration::from_secs(30));
    assert_eq!(output.stdout, b"");
}

// ---- Ready state ----------------------------------------------------------------------------------------------------

#[test]
fn ready_state_is_set_and_cleared_on_demand() {
    let Some((machine, _)) = Machine::with_gpus(1) else { return };
    let helper = machine.helper();
    assert_eq!(helper.ask(Request::GpuReady).unwrap().0, "the GPUs are ready");
    assert_eq!(machine.driver.ready_states(), "1");
    assert_eq!(helper.ask(Request::GpuNotReady).unwrap().0, "the GPUs are not ready");
    assert_eq!(machine.driver.ready_states(), "10");
}

#[test]
fn ready_state_is_taken_back_when_the_line_closes_and_only_then() {
    let Some((machine, _)) = Machine::with_gpus(1) else { return };
    let helper = machine.helper();
    helper.ask(Request::GpuReady).unwrap();
    drop(helper);
    wait_until("the helper to take the ready state back", || machine.driver.ready_states() == "10");
    // A line that set nothing takes nothing back, nor does one that has done so already.
    for requests in [&[][..], &[Request::GpuReady, Request::GpuNotReady]] {
        let (ours, theirs) = cai::helper::channel::pair().unwrap();
        let mut child = Command::new(program())
            .arg("--root")
            .arg(machine.root.path())
            .stdin(Stdio::from(theirs))
            .spawn()
            .unwrap();
        for request in requests {
            use std::os::fd::AsFd as _;
            cai::helper::channel::send(ours.as_fd(), &request.to_packet().unwrap(), None).unwrap();
            cai::helper::channel::receive(ours.as_fd()).unwrap().unwrap();
        }
        drop(ours);
        assert!(child.wait().unwrap().success());
    }
    assert_eq!(machine.driver.ready_states(), "1010");
}

#[test]
fn ready_state_is_taken_back_at_the_second_try_of_a_driver_that_was_busy() {
    let Some((machine, _)) = Machine::with_gpus(1) else { return };
    let helper = machine.helper();
    helper.ask(Request::GpuReady).unwrap();
    machine.driver.say("busy", 1);
    drop(helper);
    wait_until("the helper to take the ready state back", || machine.driver.ready_states() == "10");
}

#[test]
fn ready_state_that_does_not_exist_is_refused_but_its_clearing_is_not() {
    let Some((machine, _)) = Machine::with_gpus(1) else { return };
    machine.driver.say("feature", 0);
    let helper = machine.helper();
    let error = helper.ask(Request::GpuReady).unwrap_err();
    assert_eq!(error.code(), "gpu.not-supported");
    let (text, _) = helper.ask(Request::GpuNotReady).unwrap();
    assert_eq!(text, "the GPUs are not in confidential mode, which alone has a ready state");
    assert_eq!(machine.driver.ready_states(), "");
}

#[test]
fn machine_without_a_gpu_has_none_to_hold_back_and_its_driver_is_not_asked() {
    let Some(machine) = Machine::new(&[]) else { return };
    machine.driver.say("crash", 1);
    let (text, _) = machine.helper().ask(Request::GpuNotReady).unwrap();
    assert_eq!(text, "there is no NVIDIA GPU to hold back");
}

// ---- Real reports ---------------------------------------------------------------------------------------------------

/// A real Hopper report, its chain in DER, and what it says.
struct Real {
    report: Vec<u8>,
    chain: Vec<Vec<u8>>,
    nonce: [u8; 32],
    driver: &'static str,
    vbios: &'static str,
}

impl Real {
    /// Both, or nothing where the project's shared vectors are not at hand.
    fn all() -> Vec<Real> {
        let default = || Path::new(env!("CARGO_MANIFEST_DIR")).join("../shared/vectors");
        let directory = std::env::var_os("CAI_VECTORS").map_or_else(default, PathBuf::from).join("nvidia");
        if !available("vectors", directory.exists(), &format!("no {}", directory.display())) {
            return Vec::new();
        }
        let read = |report: &str, chain: &str, nonce: &str, driver, vbios| {
            let text = fs::read_to_string(directory.join(report)).unwrap();
            let pem = fs::read(directory.join(chain)).unwrap();
            let chain = cai::pki::certificates(&pem).unwrap().iter().map(|der| der.to_vec()).collect();
            let mut bytes = [0; 32];
            hex::decode_to_slice(nonce, &mut bytes).unwrap();
            Real { report: hex::decode(text.trim()).unwrap(), chain, nonce: bytes, driver, vbios }
        };
        vec![
            read(
                "hopperAttestationReport.txt",
                "hopper_cert_chain_case1.txt",
                "931d8dd0add203ac3d8b4fbde75e115278eefcdceac5b87671a748f32364dfcb",
                "550.90.07",
                "96.00.9F.00.01",
            ),
            read(
                "hopper_coco_report1.txt",
                "hopper_coco_certs1.txt",
                "87d8e24ab336adafe228d49e83d745f6dba4ae505372b6a5704820856b343fec",
                "580.95.05",
                "96.00.74.00.1A",
            ),
        ]
    }

    /// The verdict on this report and chain.
    fn verdict(&self, report: &[u8], chain: &[Vec<u8>]) -> Result<(), GpuError> {
        let pem = |der: &Vec<u8>| {
            format!("-----BEGIN CERTIFICATE-----\n{}\n-----END CERTIFICATE-----\n", STANDARD.encode(der))
        };
        let gpu = GpuReport {
            uuid: "GPU-real".into(),
            name: "NVIDIA H100".into(),
            arch: "HOPPER".into(),
            vbios_version: self.vbios.into(),
            report: STANDARD.encode(report),
            attestation_chain: chain.iter().map(pem).collect(),
            device_chain: String::new(),
        };
        let reports = GpuReports {
            driver_version: self.driver.into(),
            cc_enabled: true,
            protected_pcie: false,
            dev_tools: false,
            production: true,
            gpus: vec![gpu],
        };
        let expected = Expected { nonce: self.nonce, gpus: 1, root: NVIDIA_ROOT, at: SystemTime::now() };
        verify(reports, &expected).map(drop)
    }
}

#[test]
fn real_reports_verify_up_to_nvidias_root() {
    for real in Real::all() {
        real.verdict(&real.report, &real.chain).unwrap();
        let report = cai::attest::spdm::Report::parse(&real.report).unwrap();
        assert_eq!(report.measurements.len(), 64);
        assert_eq!(report.driver_version().as_deref(), Some(real.driver));
        assert_eq!(report.vbios_version().unwrap().to_uppercase(), real.vbios);
    }
}

#[test]
fn real_report_with_one_bit_flipped_is_refused_with_what_it_broke() {
    for real in Real::all() {
        let signed = cai::attest::spdm::Report::parse(&real.report).unwrap().bytes().len();
        let regions = [
            ("request version", 0, "gpu.report"),
            ("request attributes", 2, "gpu.report"),
            ("request nonce, first byte", 4, "gpu.signature"),
            ("request nonce, last byte", 35, "gpu.signature"),
            ("request slot", 36, "gpu.signature"),
            ("response code", 38, "gpu.report"),
            ("response parameter", 39, "gpu.signature"),
            ("number of blocks", 41, "gpu.report"),
            ("length of the record", 42, "gpu.report"),
            ("a measurement", 52, "gpu.signature"),
            ("the last measurement", 37 + 8 + 3519, "gpu.signature"),
            ("response nonce", 37 + 8 + 3520, "gpu.signature"),
            ("length of the opaque data", 37 + 8 + 3520 + 32, "gpu.report"),
            ("VBIOS version", 37 + 8 + 3520 + 32 + 2 + 4, "gpu.signature"),
            ("signature, first byte", signed - 96, "gpu.signature"),
            ("signature, last byte", signed - 1, "gpu.signature"),
        ];
        for (region, at, code) in regions {
            let mut report = real.report.clone();
            report[at] ^= 1;
            let error = real.verdict(&report, &real.chain).unwrap_err();
            assert_eq!(error.code(), code, "{region}: {error:?}");
        }
        for at in (0..real.report.len()).step_by(37) {
            let mut report = real.report.clone();
            report[at] ^= 1 << (at % 8);
            assert!(real.verdict(&report, &real.chain).is_err(), "byte {at}");
        }
        let mut padded = [real.report.clone(), vec![0, 1]].concat();
        assert_eq!(real.verdict(&padded, &real.chain).unwrap_err().code(), "gpu.report");
        padded.truncate(signed - 1);
        assert_eq!(real.verdict(&padded, &real.chain).unwrap_err().code(), "gpu.report");
    }
}

#[test]
fn real_chain_with_one_bit_flipped_is_refused_naming_the_certificate() {
    for real in Real::all() {
        assert_eq!(real.chain.len(), 5);
        for (index, certificate) in real.chain.iter().enumerate() {
            // The last byte is the signature's; the others are spread over all of it.
            for at in (0..certificate.len()).step_by(61).chain([certificate.len() - 1]) {
                let mut chain = real.chain.clone();
                chain[index][at] ^= 1;
                let error = real.verdict(&real.report, &chain).unwrap_err();
                let expected: &[&str] = if index == 4 { &["gpu.root", "gpu.chain"] } else { &["gpu.chain"] };
                assert!(expected.contains(&error.code()), "certificate {index}, byte {at}: {error:?}");
            }
            let mut chain = real.chain.clone();
            *chain[index].last_mut().unwrap() ^= 1;
            match real.verdict(&real.report, &chain).unwrap_err() {
                GpuError::Chain { source: cai::pki::PkiError::Certificate { index: named, .. }, .. } => {
                    assert_eq!(named, index);
                }
                GpuError::Root { .. } => assert_eq!(index, 4),
                other => panic!("certificate {index}: {other:?}"),
            }
        }
    }
}

#[test]
fn real_report_with_another_ones_chain_or_without_its_root_is_refused() {
    let all = Real::all();
    let [one, other] = all.as_slice() else { return };
    assert_eq!(one.verdict(&one.report, &other.chain).unwrap_err().code(), "gpu.signature");
    assert_eq!(one.verdict(&one.report, &one.chain[..4]).unwrap_err().code(), "gpu.root");
    assert_eq!(one.verdict(&one.report, &one.chain[4..]).unwrap_err().code(), "gpu.chain");
    let without_middle = [&one.chain[..2], &one.chain[3..]].concat();
    assert_eq!(one.verdict(&one.report, &without_middle).unwrap_err().code(), "gpu.chain");
    assert_eq!(one.verdict(&other.report, &other.chain).unwrap_err().code(), "gpu.nonce");
}
