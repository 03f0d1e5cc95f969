//! Stand-ins for a TDX guest's hardware, below a root directory: configfs-tsm and `/dev/tdx_guest` as FUSE mounts, the host's
//! quote generation service on a Unix socket, the vendor's library compiled from C, and the event logs.
//!
//! They are strict: what the real thing refuses, they refuse. Quotes, reports and logs are made and read here by code that
//! shares nothing with the agent's. [`Tee::start`] sets everything up; dropping it takes everything away again.
#![allow(dead_code)]

#[path = "tee/bytes.rs"]
pub mod bytes;
#[path = "tee/device.rs"]
mod device;
#[path = "tee/library.rs"]
pub mod library;
#[path = "tee/qgs.rs"]
mod qgs;
#[path = "tee/tsm.rs"]
mod tsm;

use std::collections::VecDeque;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard};

use nix::mount::{MntFlags, umount2};

use crate::common::wait_until;
use fuser::{BackgroundSession, Config, Errno, MountOption, SessionACL};

pub use bytes::Measured;

/// What goes wrong with one report directory of configfs-tsm.
#[derive(Debug, Clone)]
pub enum TsmFault {
    /// Reading the quote fails.
    Errno(i32),
    /// The quote is empty, without an error: an old QGS.
    Empty,
    /// Somebody else wrote to the directory as well.
    ForeignWriter,
    /// The quote is over other report data.
    OtherReportData,
    /// The provider is another confidential VM's.
    Provider(&'static str),
    /// The quote has no end.
    Endless,
}

/// How the host's service answers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum QgsFault {
    /// With an error code.
    Refuse(u32),
    /// With a length of four GiB.
    Oversize,
    /// With half a message.
    Cut,
    /// In small pieces, which is no fault.
    Dribble,
    /// With a quote over other report data.
    OtherReportData,
}

/// The machine, as the stand-ins see it.
#[derive(Debug, Default)]
pub struct Machine {
    /// Registers and attributes of the TD.
    pub measured: Measured,
    /// One per report directory, in order; none means that all is well.
    pub tsm_faults: VecDeque<TsmFault>,
    /// What the service does wrong, every time.
    pub qgs_fault: Option<QgsFault>,
    /// What the device answers instead of a report.
    pub device_error: Option<Errno>,
    /// The device may not be opened.
    pub device_closed: bool,
    /// The device's report is over other report data.
    pub device_lies: bool,
    /// Names of every report directory that was made, in order.
    pub made: Vec<String>,
    /// What was written to `inblob`, in order.
    pub asked: Vec<Vec<u8>>,
    /// Requests the service has had.
    pub qgs_requests: usize,
}

/// A machine shared with its stand-ins.
pub type Shared = Arc<Mutex<Machine>>;

/// Which stand-ins to start.
#[derive(Debug, Clone, Copy)]
pub struct Parts {
    /// configfs-tsm.
    pub tsm: bool,
    /// `/dev/tdx_guest`.
    pub device: bool,
    /// The service, and its port in `/etc/tdx-attest.conf`.
    pub qgs: bool,
}

impl Parts {
    pub const NONE: Parts = Parts { tsm: false, device: false, qgs: false };
    pub const TSM: Parts = Parts { tsm: true, ..Parts::NONE };
    pub const QGS: Parts = Parts { device: true, qgs: true, ..Parts::NONE };
    pub const ALL: Parts = Parts { tsm: true, device: true, qgs: true };
}

/// A TDX guest below a root directory, until it is dropped.
pub struct Tee {
    root: PathBuf,
    machine: Shared,
    mounts: Vec<(PathBuf, BackgroundSession)>,
    _qgs: Option<qgs::Service>,
}

impl Tee {
    /// Everything a TDX guest has, with a boot log that replays to its registers.
    pub fn start(root: &Path) -> Self {
        let tee = Self::with(root, Parts::ALL);
        let log = bytes::grub_log();
        tee.machine().measured.rtmrs = bytes::replay(&log);
        tee.ccel(&log);
        tee
    }

    /// Only `parts`, without logs.
    pub fn with(root: &Path, parts: Parts) -> Self {
        let machine = Shared::default();
        let mut mounts = Vec::new();
        if parts.tsm {
            let at = root.join("sys/kernel/config/tsm/report");
            mounts.push(mount(tsm::Tsm::new(Arc::clone(&machine)), at));
        }
        if parts.device {
            mounts.push(mount(device::Dev::new(Arc::clone(&machine)), root.join("dev")));
        }
        let qgs = parts.qgs.then(|| {
            write(&root.join("etc/tdx-attest.conf"), b"# the host's service\nport = 4050\n");
            qgs::Service::start(&root.join("run/tdx-qgs.sock"), Arc::clone(&machine))
        });
        Tee { root: root.to_path_buf(), machine, mounts, _qgs: qgs }
    }

    pub fn machine(&self) -> MutexGuard<'_, Machine> {
        self.machine.lock().unwrap()
    }

    /// The boot event log, as the ACPI table gives it: with unused space behind it.
    pub fn ccel(&self, log: &[u8]) {
        write(&self.root.join("sys/firmware/acpi/tables/data/CCEL"), &[log, &[0xff; 4096]].concat());
    }

    /// The agents' event log.
    pub fn aael(&self, log: &[u8]) {
        write(&self.root.join("run/attestation-agent/eventlog"), log);
    }

    /// Report directories that exist now.
    pub fn reports(&self) -> Vec<String> {
        let entries = fs::read_dir(self.root.join("sys/kernel/config/tsm/report")).unwrap();
        entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect()
    }
}

impl Drop for Tee {
    fn drop(&mut self) {
        for (at, session) in self.mounts.drain(..) {
            // Between fork and exec a program that another test starts has everything open that is open here.
            let gone = || umount2(&at, MntFlags::empty()) != Err(nix::Error::EBUSY);
            if std::thread::panicking() {
                let _ = umount2(&at, MntFlags::MNT_DETACH);
            } else {
                wait_until("a stand-in to be unmounted", gone);
            }
            // What is no longer mounted it cannot unmount; its thread ends all the same.
            let _ = session.umount_and_join();
        }
    }
}

fn mount(fs: impl fuser::Filesystem + 'static, at: PathBuf) -> (PathBuf, BackgroundSession) {
    fs::create_dir_all(&at).unwrap();
    let mut config = Config::default();
    config.mount_options = vec![MountOption::FSName("cai-test-tee".into())];
    config.acl = SessionACL::All;
    let session = fuser::spawn_mount(fs, &at, &config).unwrap();
    (at, session)
}

fn write(path: &Path, bytes: &[u8]) {
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    fs::write(path, bytes).unwrap();
}
