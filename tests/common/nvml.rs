//! NVIDIA's side of GPU attestation, written for the tests: an authority that endorses GPUs, GPUs that sign reports, and
//! a driver library compiled from `tests/stubs/nvml.c` that gives them out.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::signature::{ECDSA_P384_SHA384_FIXED_SIGNING, EcdsaKeyPair};
use cai::attest::gpu::Root;
use rcgen::{BasicConstraints, CertificateParams, CustomExtension, DnType, IsCa, Issuer, KeyPair};
use sha2::{Digest as _, Sha256};

/// Versions every test GPU and driver have.
pub const DRIVER: &str = "570.133.20";
pub const VBIOS: &str = "96.00.9F.00.01";

/// A certificate authority in NVIDIA's place: root and one intermediate.
pub struct Authority {
    root: (CertificateParams, KeyPair, rcgen::Certificate),
    middle: (CertificateParams, KeyPair, rcgen::Certificate),
}

impl Authority {
    pub fn new() -> Self {
        let root_key = key();
        let root_params = params("Test Device Identity CA", true);
        let root = root_params.self_signed(&root_key).unwrap();
        let middle_key = key();
        let middle_params = params("Test GH100 Identity", true);
        let middle =
            middle_params.signed_by(&middle_key, &Issuer::from_params(&root_params, &root_key)).unwrap();
        Authority { root: (root_params, root_key, root), middle: (middle_params, middle_key, middle) }
    }

    /// Its root, as a verifier pins it.
    pub fn anchor(&self) -> Root {
        let (_, key, certificate) = &self.root;
        let spki = rcgen::PublicKeyData::subject_public_key_info(key);
        Root { certificate: Sha256::digest(certificate.der()).into(), key: Sha256::digest(spki).into() }
    }

    /// A GPU it endorses, number `index`.
    pub fn gpu(&self, index: usize) -> Gpu {
        let key = key();
        let firmware = [0xf0 | index as u8; 48];
        let mut params = params(&format!("GH100 A01 GSP FMC LF {index}"), false);
        // Only the end of the extension is read: the octets of the firmware's digest.
        let content = [&[0x04, 48][..], &firmware].concat();
        params.custom_extensions.push(CustomExtension::from_oid_content(&[2, 23, 133, 5, 4, 1], content));
        let (middle_params, middle_key, middle) = &self.middle;
        let leaf = params.signed_by(&key, &Issuer::from_params(middle_params, middle_key)).unwrap();
        let chain = [leaf.pem(), middle.pem(), self.root.2.pem()].concat();
        let uuid = format!("GPU-00000000-0000-0000-0000-{index:012}");
        let signer =
            EcdsaKeyPair::from_pkcs8(&ECDSA_P384_SHA384_FIXED_SIGNING, &key.serialize_der()).unwrap();
        Gpu { uuid, chain, signer, firmware }
    }
}

fn key() -> KeyPair {
    KeyPair::generate_for(&rcgen::PKCS_ECDSA_P384_SHA384).unwrap()
}

fn params(name: &str, ca: bool) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name.push(DnType::CommonName, name);
    params.is_ca = if ca { IsCa::Ca(BasicConstraints::Unconstrained) } else { IsCa::NoCa };
    params
}

/// A GPU that signs reports.
pub struct Gpu {
    pub uuid: String,
    /// Leaf, intermediate, root, PEM.
    pub chain: String,
    signer: EcdsaKeyPair,
    firmware: [u8; 48],
}

impl Gpu {
    /// What the driver gives as the device's chain, which nobody verifies: told apart by its first line.
    pub fn device_chain(&self) -> String {
        format!("device chain of {}\n{}", self.uuid, self.chain)
    }

    /// A signed report over `nonce`, as DSP0274 1.1.1 and NVIDIA's opaque data have it.
    pub fn report(&self, nonce: &[u8; 32]) -> Vec<u8> {
        self.report_that_says(nonce, DRIVER, &self.firmware)
    }

    /// The same with any driver version and firmware.
    pub fn report_that_says(&self, nonce: &[u8; 32], driver: &str, firmware: &[u8; 48]) -> Vec<u8> {
        let mut report = vec![0x11, 0xe0, 0x01, 0xff];
        report.extend(nonce);
        report.push(0);
        // 64 blocks of 4 + 3 + 48 bytes.
        report.extend([0x11, 0x60, 0, 0, 64, 0xc0, 0x0d, 0]);
        for block in 1..=64_u8 {
            report.extend([block, 1, 51, 0, 1, 48, 0]);
            report.extend([block; 48]);
        }
        report.extend([0x5a; 32]);
        let driver = [driver.as_bytes(), b"\0"].concat();
        let fields: [(u16, &[u8]); 4] =
            [(6, &[0, 0x9f, 0, 0x96, 1, 0, 0, 0]), (3, &driver), (20, firmware), (36, &[0, 0])];
        let opaque: Vec<u8> = fields
            .into_iter()
            .flat_map(|(kind, value)| {
                [&kind.to_le_bytes()[..], &(value.len() as u16).to_le_bytes(), value].concat()
            })
            .collect();
        report.extend((opaque.len() as u16).to_le_bytes());
        report.extend(opaque);
        let signature = self.signer.sign(&SystemRandom::new(), &report).unwrap();
        report.extend(signature.as_ref());
        report
    }
}

/// The driver: its library and what it answers, below a root directory.
pub struct Driver {
    scenario: PathBuf,
    root: PathBuf,
}

impl Driver {
    /// Compile the library to where the helper looks for it below `root`; `defines` are more arguments for the compiler.
    pub fn install(root: &Path, defines: &[&str]) -> Self {
        let (scenario, libraries) = (root.join("scenario"), root.join("usr/lib64"));
        fs::create_dir_all(&scenario).unwrap();
        fs::create_dir_all(&libraries).unwrap();
        let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/stubs/nvml.c");
        let status = Command::new("cc")
            .args(["-shared", "-fPIC", "-O1", "-Wall", "-Wextra", "-Werror", "-o"])
            .arg(libraries.join("libnvidia-ml.so.1"))
            .arg(source)
            .arg(format!("-DSCENARIO=\"{}\"", scenario.display()))
            .args(defines)
            .status()
            .unwrap();
        assert!(status.success(), "the stub does not compile");
        let driver = Driver { scenario, root: root.to_owned() };
        driver.say("driver", DRIVER);
        driver.say("count", 0);
        driver
    }

    /// Let it answer `with` to the question `name`.
    pub fn say(&self, name: &str, with: impl ToString) {
        self.give(name, with.to_string().as_bytes());
    }

    /// Let it answer these bytes to the question `name`.
    pub fn give(&self, name: &str, bytes: &[u8]) {
        fs::write(self.scenario.join(name), bytes).unwrap();
    }

    /// Plug in `gpus`, visible to PCI and to the driver, with reports over `nonce`; and a bridge, which is no GPU.
    pub fn plug(&self, gpus: &[Gpu], nonce: &[u8; 32]) {
        self.say("count", gpus.len());
        for (index, gpu) in gpus.iter().enumerate() {
            self.on_pci(index, "0x10de", "0x030200");
            self.say(&format!("gpu{index}-uuid"), &gpu.uuid);
            self.say(&format!("gpu{index}-name"), "NVIDIA H20");
            self.say(&format!("gpu{index}-vbios"), VBIOS);
            self.say(&format!("gpu{index}-arch"), 9);
            self.say(&format!("gpu{index}-attestation-chain"), &gpu.chain);
            self.say(&format!("gpu{index}-device-chain"), gpu.device_chain());
            self.give_report(index, nonce, &gpu.report(nonce));
        }
        self.on_pci(100, "0x10de", "0x068000");
        self.on_pci(101, "0x1af4", "0x030000");
    }

    /// Sign reports over whatever nonce is asked for, from now on and until the signer is dropped.
    pub fn sign(&self, gpus: Vec<Gpu>) -> Signer {
        let wanted = self.scenario.join("wanted");
        fs::create_dir(&wanted).unwrap();
        self.say("signer", 1);
        let (scenario, over) = (self.scenario.clone(), Arc::new(AtomicBool::new(false)));
        let stop = Arc::clone(&over);
        let thread = std::thread::spawn(move || {
            while !stop.load(Ordering::Relaxed) {
                for entry in fs::read_dir(&wanted).unwrap() {
                    answer(&gpus, &scenario, &entry.unwrap().path());
                }
                std::thread::sleep(Duration::from_millis(5));
            }
        });
        Signer { over, thread: Some(thread) }
    }

    /// The report the driver gives of GPU `index` when it is asked for `nonce`.
    pub fn give_report(&self, index: usize, nonce: &[u8; 32], report: &[u8]) {
        self.give(&format!("gpu{index}-report-{}", hex::encode(nonce)), report);
    }

    /// A device on the PCI bus.
    pub fn on_pci(&self, slot: usize, vendor: &str, class: &str) {
        let device = self.root.join(format!("sys/bus/pci/devices/0000:{slot:02x}:00.0"));
        fs::create_dir_all(&device).unwrap();
        fs::write(device.join("vendor"), format!("{vendor}\n")).unwrap();
        fs::write(device.join("class"), format!("{class}\n")).unwrap();
    }

    /// Every ready state that was set so far, one digit each.
    pub fn ready_states(&self) -> String {
        fs::read_to_string(self.scenario.join("ready")).unwrap_or_default()
    }
}

/// Signs what the driver asks for; ends when dropped.
pub struct Signer {
    over: Arc<AtomicBool>,
    thread: Option<std::thread::JoinHandle<()>>,
}

impl Drop for Signer {
    fn drop(&mut self) {
        self.over.store(true, Ordering::Relaxed);
        let ended = self.thread.take().unwrap().join();
        assert!(ended.is_ok() || std::thread::panicking(), "the signer panicked");
    }
}

/// The report that `wanted`, a file named `gpu<index>-report-<nonce>`, asks for.
fn answer(gpus: &[Gpu], scenario: &Path, wanted: &Path) {
    let name = wanted.file_name().unwrap().to_str().unwrap();
    let (gpu, nonce) = name.strip_prefix("gpu").unwrap().split_once("-report-").unwrap();
    let mut bytes = [0; 32];
    hex::decode_to_slice(nonce, &mut bytes).unwrap();
    let half = scenario.join("half-written");
    fs::write(&half, gpus[gpu.parse::<usize>().unwrap()].report(&bytes)).unwrap();
    fs::rename(half, scenario.join(name)).unwrap();
    fs::remove_file(wanted).unwrap();
}
