//! TDX evidence, with the real `cai-helper` on strict stand-ins for the hardware: where quotes come from, what is refused,
//! which logs go out, what is left behind (nothing). Needs root and /dev/fuse; the library's stand-in needs a C compiler.
#![cfg(feature = "sandbox")]

mod common;
#[path = "common/tee.rs"]
mod tee;

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use cai::attest::{
    self, AttestError, Attester, DeviceClaims, Devices, Digest, Evidence, GpuClaims, Tee as Kind, Verifier,
};
use cai::config;
use cai::error::{ErrorClass, Fault};
use cai::helper::Helper;
use serde_json::value::RawValue;

use common::{available, minimal_config, mounts_below};
use tee::bytes::{MRTD, agents_event, grub_log, replay, report_data_of};
use tee::{Parts, QgsFault, Tee, TsmFault, library};

const DIGEST: Digest = Digest([0xa5; 48]);

/// A root with a configuration, and perhaps a TDX guest below it. Fields are dropped in this order.
struct Fixture {
    tee: Option<Tee>,
    root: tempfile::TempDir,
}

impl Fixture {
    /// `None` (with the reason printed) where the machine lacks what the test needs. `attest` is the table of that name.
    fn new(attest: &str) -> Option<Self> {
        let ready = Path::new("/dev/fuse").exists() && nix::unistd::Uid::effective().is_root();
        if !available("fuse", ready, "needs /dev/fuse and root") {
            return None;
        }
        let root = tempfile::tempdir().unwrap();
        minimal_config(root.path());
        fs::write(root.path().join("etc/cai/cai.toml"), format!("[attest]\n{attest}\n")).unwrap();
        Some(Fixture { tee: None, root })
    }

    fn with(attest: &str, parts: Parts) -> Option<Self> {
        let mut fixture = Self::new(attest)?;
        fixture.tee = Some(Tee::with(fixture.root(), parts));
        Some(fixture)
    }

    fn root(&self) -> &Path {
        self.root.path()
    }

    fn tee(&self) -> &Tee {
        self.tee.as_ref().unwrap()
    }

    fn helper(&self) -> Arc<Helper> {
        let program = Path::new(env!("CARGO_BIN_EXE_cai-helper"));
        Arc::new(Helper::start_program(program, self.root()).unwrap())
    }

    fn attester(&self) -> Result<Arc<dyn Attester>, AttestError> {
        let (settings, _) = config::load(self.root()).unwrap();
        attest::detect(&settings.attesting(), &self.helper())
    }

    fn evidence(&self, verifier: Verifier) -> Result<Evidence, AttestError> {
        self.attester().unwrap().evidence(&DIGEST, verifier)
    }

    /// Code and class of each source that failed.
    fn attempts(&self) -> Vec<(&'static str, &'static str, ErrorClass)> {
        match self.evidence(Verifier::Current) {
            Err(AttestError::NoQuote { attempts }) => attempts
                .iter()
                .map(|attempt| (attempt.provider, attempt.error.code(), attempt.error.class()))
                .collect(),
            other => panic!("expected no quote, got {other:?}"),
        }
    }
}

/// What Trustee reads: everything in the object, decoded.
#[derive(Debug, serde::Deserialize)]
#[serde(deny_unknown_fields)]
struct Object {
    quote: String,
    cc_eventlog: Option<String>,
    aa_eventlog: Option<String>,
    gpu_evidence: Option<serde_json::Value>,
}

fn object(evidence: &Evidence) -> Object {
    serde_json::from_str(evidence.object.get()).unwrap()
}

/// The digest as a TD binds it.
fn bound() -> [u8; 64] {
    [&[0xa5; 48][..], &[0; 16]].concat().try_into().unwrap()
}

fn check_bound(evidence: &Evidence, provider: &str) {
    let quote = STANDARD.decode(object(evidence).quote).unwrap();
    assert_eq!(report_data_of(&quote), bound());
    assert_eq!(evidence.claims.provider, provider);
    assert_eq!(evidence.claims.report_data, hex::encode(bound()));
    assert_eq!(evidence.claims.tdx.as_ref().unwrap().mrtd, hex::encode(MRTD));
}

// ---- Sources -------------------------------------------------------------------------------------------------------

#[test]
fn quote_from_configfs_is_asked_for_in_one_write_and_its_directory_is_removed() {
    let Some(mut fixture) = Fixture::new("tee = \"auto\"") else { return };
    fixture.tee = Some(Tee::start(fixture.root()));
    let attester = fixture.attester().unwrap();
    assert_eq!(attester.tee(), Kind::Tdx);
    let evidence = attester.evidence(&DIGEST, Verifier::Current).unwrap();
    check_bound(&evidence, "configfs-tsm");
    assert_eq!(fixture.tee().machine().asked, [bound()]);
    assert_eq!((fixture.tee().machine().made.len(), fixture.tee().reports().len()), (1, 0));
    assert_eq!(fixture.tee().machine().qgs_requests, 0);

    let log = [grub_log(), vec![0xff; 8]].concat();
    assert_eq!(object(&evidence).cc_eventlog, Some(STANDARD.encode(log)));
    let claims = evidence.claims.tdx.unwrap();
    assert_eq!(claims.rtmrs, replay(&grub_log()).map(hex::encode));
    let names = ["grub", "initrd", "kernel", "kernel_cmdline", "shim"];
    let names = names.map(|name| format!("measurement.{name}.SHA-384"));
    assert_eq!(claims.boot.into_keys().collect::<Vec<_>>(), names);
    assert_eq!(evidence.claims.notices, [""; 0]);
}

#[test]
fn sources_are_tried_in_order_and_the_first_that_works_is_named() {
    let Some(fixture) = Fixture::with("tee = \"auto\"", Parts::QGS) else { return };
    check_bound(&fixture.evidence(Verifier::Current).unwrap(), "qgs");
    drop(fixture);
    let Some(fixture) = Fixture::with("tee = \"auto\"", Parts::ALL) else { return };
    fixture.tee().machine().tsm_faults = [TsmFault::Empty].into();
    fixture.tee().machine().qgs_fault = Some(QgsFault::Dribble);
    check_bound(&fixture.evidence(Verifier::Current).unwrap(), "qgs");
    assert_eq!(fixture.tee().reports(), [""; 0]);
    drop(fixture);
    if !available("cc", library::compiler(), "no C compiler") {
        return;
    }
    let Some(fixture) = Fixture::new("tee = \"auto\"") else { return };
    library::giving(fixture.root(), &tee::bytes::quote_v4(&[0; 64], &Default::default()));
    check_bound(&fixture.evidence(Verifier::Current).unwrap(), "libtdx-attest");
}

#[test]
fn source_that_the_operator_chose_is_the_only_one_asked() {
    let Some(fixture) = Fixture::with("tee = \"tdx\"\nquote = \"qgs\"", Parts::ALL) else { return };
    check_bound(&fixture.evidence(Verifier::Current).unwrap(), "qgs");
    assert_eq!(fixture.tee().machine().made, [""; 0]);
    fixture.tee().machine().qgs_fault = Some(QgsFault::Refuse(0x12001));
    let refused = ("qgs", "tdx.qgs-refused", ErrorClass::Transient);
    assert_eq!(fixture.attempts(), [refused]);
}

#[test]
fn machine_without_tdx_is_told_what_was_looked_for_and_what_each_source_lacks() {
    let Some(fixture) = Fixture::new("tee = \"auto\"") else { return };
    let error = fixture.attester().err().unwrap();
    assert_eq!((error.code(), error.class()), ("attest.no-tee", ErrorClass::Config));
    assert!(error.to_string().contains("/dev/tdx_guest"), "{error}");

    let Some(fixture) = Fixture::new("tee = \"tdx\"") else { return };
    let absent = [
        ("configfs-tsm", "tdx.no-tsm", ErrorClass::Config),
        ("qgs", "tdx.no-device", ErrorClass::Config),
        ("libtdx-attest", "tdx.no-library", ErrorClass::Config),
    ];
    assert_eq!(fixture.attempts(), absent);
    let error = fixture.evidence(Verifier::Current).unwrap_err();
    assert_eq!((error.code(), error.class()), ("attest.no-quote", ErrorClass::Config));
    for provider in ["configfs-tsm: ", "; qgs: ", "; libtdx-attest: "] {
        assert!(error.to_string().contains(provider), "{error}");
        assert!(error.hint().contains(provider), "{}", error.hint());
    }
}

#[test]
fn debug_td_is_denied_whatever_else_is_well() {
    let Some(fixture) = Fixture::with("tee = \"tdx\"", Parts::ALL) else { return };
    fixture.tee().machine().measured.td_attributes[0] = 1;
    let error = fixture.evidence(Verifier::Current).unwrap_err();
    assert_eq!((error.code(), error.class()), ("attest.debug-td", ErrorClass::Denied));
    assert!(error.to_string().contains("0100001000000000"), "{error}");
    assert_eq!(fixture.tee().machine().qgs_requests, 0, "no other source makes a TD less of a debug TD");
}

// ---- configfs-tsm --------------------------------------------------------------------------------------------------

/// A quote, or the failure's code and class.
type TsmOutcome = Result<(), (&'static str, ErrorClass)>;

/// What `quote = "configfs-tsm"` answers when the directories have these faults: the failure, and how many were made.
fn tsm(faults: &[TsmFault]) -> Option<(TsmOutcome, usize)> {
    let fixture = Fixture::with("tee = \"tdx\"\nquote = \"configfs-tsm\"", Parts::TSM)?;
    fixture.tee().machine().tsm_faults = faults.to_vec().into();
    let outcome = match fixture.evidence(Verifier::Current) {
        Ok(evidence) => {
            check_bound(&evidence, "configfs-tsm");
            Ok(())
        }
        Err(AttestError::NoQuote { attempts }) => Err((attempts[0].error.code(), attempts[0].error.class())),
        Err(other) => panic!("{other:?}"),
    };
    assert_eq!(fixture.tee().reports(), [""; 0], "{faults:?} left a directory");
    let made = fixture.tee().machine().made.len();
    Some((outcome, made))
}

#[test]
fn passing_trouble_of_configfs_is_tried_again_with_a_new_directory() {
    let busy = TsmFault::Errno(nix::libc::EBUSY);
    let late = TsmFault::Errno(nix::libc::ETIMEDOUT);
    for faults in [[busy.clone(), late.clone()], [TsmFault::ForeignWriter, TsmFault::ForeignWriter]] {
        let Some(outcome) = tsm(&faults) else { return };
        assert_eq!(outcome, (Ok(()), 3), "{faults:?}");
    }
    for (fault, code) in
        [(busy, "tdx.tsm-busy"), (late, "tdx.host-timeout"), (TsmFault::ForeignWriter, "tdx.tsm-shared")]
    {
        let Some(outcome) = tsm(&vec![fault; 3]) else { return };
        assert_eq!(outcome, (Err((code, ErrorClass::Transient)), 3));
    }
}

#[test]
fn lasting_trouble_of_configfs_is_told_at_once() {
    for (fault, code, class) in [
        (TsmFault::Empty, "tdx.empty-quote", ErrorClass::Transient),
        (TsmFault::Errno(nix::libc::EIO), "tdx.host-timeout", ErrorClass::Transient),
        (TsmFault::Errno(nix::libc::ENXIO), "tdx.tsm-provider", ErrorClass::Config),
        (TsmFault::Errno(nix::libc::EACCES), "tdx.tsm", ErrorClass::Config),
        (TsmFault::Provider("sev_guest"), "tdx.tsm-provider", ErrorClass::Config),
        (TsmFault::OtherReportData, "tdx.report-data", ErrorClass::Transient),
        (TsmFault::Endless, "tdx.tsm", ErrorClass::Config),
    ] {
        let Some(outcome) = tsm(std::slice::from_ref(&fault)) else { return };
        assert_eq!(outcome, (Err((code, class)), 1), "{fault:?}");
    }
}

#[test]
fn directories_a_killed_helper_left_are_removed_and_no_others() {
    let Some(fixture) = Fixture::with("tee = \"tdx\"", Parts::TSM) else { return };
    let reports = fixture.root().join("sys/kernel/config/tsm/report");
    for name in ["cai-helper-old-1", "cai-helper-77-0", "theirs-old-1"] {
        fs::create_dir(reports.join(name)).unwrap();
    }
    fixture.evidence(Verifier::Current).unwrap();
    assert_eq!(fixture.tee().reports(), ["cai-helper-77-0", "theirs-old-1"]);
}

#[test]
fn two_helpers_at_once_each_get_their_own_quote() {
    let Some(fixture) = Fixture::with("tee = \"tdx\"", Parts::TSM) else { return };
    std::thread::scope(|scope| {
        for byte in [1, 2] {
            let attester = fixture.attester().unwrap();
            scope.spawn(move || {
                for _ in 0..20 {
                    let evidence = attester.evidence(&Digest([byte; 48]), Verifier::Current).unwrap();
                    assert!(evidence.claims.report_data.starts_with(&hex::encode([byte; 48])));
                }
            });
        }
    });
    assert_eq!((fixture.tee().machine().made.len(), fixture.tee().reports().len()), (40, 0));
}

// ---- Device, host's service, library -------------------------------------------------------------------------------

#[test]
fn trouble_of_the_hosts_service_is_told_by_what_it_did() {
    let Some(fixture) = Fixture::with("tee = \"tdx\"\nquote = \"qgs\"", Parts::QGS) else { return };
    for (fault, code) in [
        (QgsFault::Refuse(0x1_2001), "tdx.qgs-refused"),
        (QgsFault::Oversize, "tdx.qgs-answer"),
        (QgsFault::Cut, "tdx.qgs-line"),
        (QgsFault::OtherReportData, "tdx.report-data"),
    ] {
        fixture.tee().machine().qgs_fault = Some(fault.clone());
        assert_eq!(fixture.attempts(), [("qgs", code, ErrorClass::Transient)], "{fault:?}");
    }
    fixture.tee().machine().qgs_fault = Some(QgsFault::Dribble);
    check_bound(&fixture.evidence(Verifier::Current).unwrap(), "qgs");
}

#[test]
fn service_without_a_port_is_not_there_and_one_that_does_not_listen_is_vsocks_fault() {
    let parts = Parts { device: true, ..Parts::NONE };
    let Some(fixture) = Fixture::with("tee = \"tdx\"\nquote = \"qgs\"", parts) else { return };
    let absent = [("qgs", "tdx.no-port", ErrorClass::Config)];
    assert_eq!(fixture.attempts(), absent);
    fs::create_dir_all(fixture.root().join("etc")).unwrap();
    fs::write(fixture.root().join("etc/tdx-attest.conf"), "#port=4050\n").unwrap();
    assert_eq!(fixture.attempts(), absent);
    fs::write(fixture.root().join("etc/tdx-attest.conf"), "port=4051\n").unwrap();
    assert_eq!(fixture.attempts(), [("qgs", "tdx.vsock", ErrorClass::Transient)]);
    let hint = fixture.evidence(Verifier::Current).unwrap_err().hint();
    assert!(hint.contains("port 4051") && hint.contains("CID 2"), "{hint}");
}

#[test]
fn trouble_of_the_device_is_told_by_what_it_did() {
    let Some(fixture) = Fixture::with("tee = \"tdx\"\nquote = \"qgs\"", Parts::QGS) else { return };
    fixture.tee().machine().device_lies = true;
    assert_eq!(fixture.attempts(), [("qgs", "tdx.bad-report", ErrorClass::Transient)]);
    for (error, code, class) in [
        (fuser::Errno::EBUSY, "tdx.tsm-busy", ErrorClass::Transient),
        (fuser::Errno::ENOTTY, "tdx.device", ErrorClass::Config),
    ] {
        fixture.tee().machine().device_error = Some(error);
        assert_eq!(fixture.attempts(), [("qgs", code, class)], "{error:?}");
    }
    fixture.tee().machine().device_closed = true;
    let error = fixture.evidence(Verifier::Current).unwrap_err();
    assert!(error.to_string().contains("opening") && error.to_string().contains("denied"), "{error}");
    assert_eq!(fixture.tee().machine().qgs_requests, 0);
}

#[test]
fn codes_and_crashes_of_the_vendors_library_are_told_apart() {
    let Some(fixture) = Fixture::new("tee = \"tdx\"\nquote = \"libtdx-attest\"") else { return };
    if !available("cc", library::compiler(), "no C compiler") {
        return;
    }
    for (code, expected, class) in [
        (0x4, "tdx.library-vsock", ErrorClass::Transient),
        (0x8, "tdx.library-quote", ErrorClass::Transient),
        (0xa, "tdx.library-device", ErrorClass::Config),
        (0x1, "tdx.library", ErrorClass::Config),
    ] {
        library::failing(fixture.root(), code);
        assert_eq!(fixture.attempts(), [("libtdx-attest", expected, class)], "{code:#x}");
    }
    for (behaviour, expected, class) in [
        ("abort();", "vendor.child", ErrorClass::Transient),
        ("exit(0);", "vendor.child", ErrorClass::Transient),
        ("*quote = malloc(1); *size = 0;", "tdx.empty-quote", ErrorClass::Transient),
        ("*quote = malloc(1); *size = 0x7fffffff;", "tdx.empty-quote", ErrorClass::Transient),
        ("*quote = calloc(1, 700); *size = 700;", "tdx.bad-quote", ErrorClass::Transient),
    ] {
        library::build(fixture.root(), behaviour);
        assert_eq!(fixture.attempts(), [("libtdx-attest", expected, class)], "{behaviour}");
    }
    let path: PathBuf = fixture.root().join("usr/lib/x86_64-linux-gnu/libtdx_attest.so.1");
    fs::write(path, "not a library").unwrap();
    assert_eq!(fixture.attempts(), [("libtdx-attest", "tdx.no-library", ErrorClass::Config)]);
}

// ---- Event logs ----------------------------------------------------------------------------------------------------

#[test]
fn agents_log_goes_out_in_the_form_each_generation_reads() {
    let Some(mut fixture) = Fixture::new("tee = \"tdx\"") else { return };
    fixture.tee = Some(Tee::start(fixture.root()));
    let agents = agents_event("cryptpilot.alibabacloud.com load_config {}");
    let both = [grub_log(), agents.clone()].concat();
    fixture.tee().aael(&agents);
    fixture.tee().machine().measured.rtmrs = replay(&both);
    let evidence = fixture.evidence(Verifier::Current).unwrap();
    let marked = STANDARD.encode([both.as_slice(), &[0xff; 8]].concat());
    assert_eq!((object(&evidence).cc_eventlog, object(&evidence).aa_eventlog), (Some(marked), None));
    assert_eq!(evidence.claims.notices, [""; 0]);

    // SHA-384 of 48 zeros and of the SHA-384 of "a b c", computed elsewhere (Python's hashlib).
    let text = format!("INIT sha384/{}\na b c\n", "0".repeat(96));
    let state =
        "d8107d77f56de055506c8852cce20eded07f08491f17a0fae03877cf763adfb3b5cd74037981986ad4e0cc7a26ca1a08";
    fixture.tee().aael(text.as_bytes());
    fixture.tee().machine().measured.rtmrs[3] = hex::decode(state).unwrap().try_into().unwrap();
    let evidence = fixture.evidence(Verifier::Legacy).unwrap();
    assert_eq!(object(&evidence).aa_eventlog, Some(text));
    assert!(object(&evidence).cc_eventlog.is_some());
    assert_eq!(evidence.claims.notices, [""; 0]);
}

#[test]
fn log_that_does_not_replay_is_left_out_with_a_notice_and_sent_where_it_is_demanded() {
    for (choice, sent) in [("auto", false), ("always", true), ("never", false)] {
        let Some(mut fixture) = Fixture::new(&format!("tee = \"tdx\"\nevent_log = \"{choice}\"")) else {
            return;
        };
        fixture.tee = Some(Tee::start(fixture.root()));
        fixture.tee().machine().measured.rtmrs[3] = [7; 48];
        let evidence = fixture.evidence(Verifier::Current).unwrap();
        assert_eq!(object(&evidence).cc_eventlog.is_some(), sent, "{choice}");
        let [notice] = &evidence.claims.notices[..] else { panic!("{:?}", evidence.claims.notices) };
        assert!(notice.contains("RTMR3") || choice == "never", "{notice}");
    }
}

#[test]
fn log_that_is_no_plain_file_is_not_read() {
    for choice in ["auto", "always"] {
        let Some(mut fixture) = Fixture::new(&format!("tee = \"tdx\"\nevent_log = \"{choice}\"")) else {
            return;
        };
        fixture.tee = Some(Tee::start(fixture.root()));
        let secret = fixture.root().join("secret");
        fs::write(&secret, "root's alone").unwrap();
        let path = fixture.root().join("run/attestation-agent/eventlog");
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::os::unix::fs::symlink(secret, path).unwrap();
        match fixture.evidence(Verifier::Current) {
            Ok(evidence) => {
                assert_eq!((choice, object(&evidence).cc_eventlog), ("auto", None));
                assert!(evidence.claims.notices[0].contains("eventlog"), "{:?}", evidence.claims.notices);
            }
            Err(error) => assert_eq!((choice, error.code()), ("always", "tdx.event-log")),
        }
    }
}

// ---- Devices -------------------------------------------------------------------------------------------------------

/// Devices that are attested in one of the two forms.
struct Gpus {
    embedded: bool,
}

/// The GPU, named after the call in which it was read.
fn gpu(read_in: &str) -> GpuClaims {
    GpuClaims { uuid: read_in.into(), ..GpuClaims::default() }
}

fn said(read_in: &str) -> DeviceClaims {
    DeviceClaims { gpus: vec![gpu(read_in)], notices: vec!["a notice".into()] }
}

impl Devices for Gpus {
    fn additional(&self, digest: &Digest) -> Result<Option<(String, DeviceClaims)>, AttestError> {
        assert_eq!(digest, &Digest([1; 48]));
        Ok((!self.embedded).then(|| ("text".into(), said("additional"))))
    }

    fn embedded(&self, digest: &Digest) -> Result<(Option<Box<RawValue>>, DeviceClaims), AttestError> {
        assert_eq!(digest, &DIGEST);
        let value = RawValue::from_string("{\"evidence_list\":[]}".into()).unwrap();
        Ok((self.embedded.then_some(value), said("embedded")))
    }
}

#[test]
fn devices_evidence_goes_where_its_form_belongs_and_its_claims_are_kept_once() {
    let Some(fixture) = Fixture::with("tee = \"tdx\"", Parts::TSM) else { return };
    let (settings, _) = config::load(fixture.root()).unwrap();
    for embedded in [false, true] {
        let tdx =
            attest::Tdx::new(&settings.attesting(), fixture.helper(), Some(Arc::new(Gpus { embedded })));
        let text = tdx.device_evidence(&Digest([1; 48])).unwrap();
        assert_eq!(text, if embedded { "" } else { "text" });
        let evidence = tdx.evidence(&DIGEST, Verifier::Current).unwrap();
        assert_eq!(evidence.claims.gpus, [gpu(if embedded { "embedded" } else { "additional" })]);
        assert_eq!(evidence.claims.notices.iter().filter(|notice| *notice == "a notice").count(), 1);
        assert_eq!(object(&evidence).gpu_evidence.is_some(), embedded);
        // An older protocol does not ask for additional evidence: the devices are read all the same.
        let next = tdx.evidence(&DIGEST, Verifier::Legacy).unwrap();
        assert_eq!(next.claims.gpus, [gpu("embedded")]);
    }
}

#[test]
fn devices_said_for_a_handshake_that_failed_are_not_said_for_the_next() {
    let Some(fixture) = Fixture::with("tee = \"tdx\"", Parts::TSM) else { return };
    let (settings, _) = config::load(fixture.root()).unwrap();
    let gpus = Arc::new(Gpus { embedded: false });
    let tdx = attest::Tdx::new(&settings.attesting(), fixture.helper(), Some(gpus));
    tdx.device_evidence(&Digest([1; 48])).unwrap();
    fixture.tee().machine().tsm_faults.push_back(TsmFault::Empty);
    tdx.evidence(&DIGEST, Verifier::Current).unwrap_err();
    // Read afresh: what was said before was said about another challenge.
    assert_eq!(tdx.evidence(&DIGEST, Verifier::Legacy).unwrap().claims.gpus, [gpu("embedded")]);
}

#[test]
fn stand_ins_leave_no_mount_behind() {
    let Some(mut fixture) = Fixture::new("tee = \"tdx\"") else { return };
    fixture.tee = Some(Tee::start(fixture.root()));
    assert_eq!(mounts_below(fixture.root()), 2);
    fixture.tee = None;
    assert_eq!(mounts_below(fixture.root()), 0);
}
