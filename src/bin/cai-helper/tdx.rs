//! TDX: a TDREPORT from the device, and the logs that explain a TD's registers.

use std::fs::{File, OpenOptions};
use std::io::{self, Read as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use cai::helper::protocol::EventLogs;
use nix::errno::Errno;
use nix::libc::{O_NOFOLLOW, O_NONBLOCK};

use crate::ioctl;
use crate::session::Refusal;

/// The ACPI table `CCEL`'s data, below the root, and its longest size in bytes: td-shim reserves a MiB.
const CCEL: &str = "sys/firmware/acpi/tables/data/CCEL";
const CCEL_LIMIT: u64 = 2 << 20;

/// The agents' event log, below the root, and its longest size in bytes: an entry has about 200.
const AAEL: &str = "run/attestation-agent/eventlog";
const AAEL_LIMIT: u64 = 512 << 10;

/// The device, below the root.
const DEVICE: &str = "dev/tdx_guest";

/// Both event logs, as JSON.
pub(crate) fn event_logs(root: &Path) -> Result<Vec<u8>, Refusal> {
    let log = |path: &str, limit| {
        let path = root.join(path);
        read_log(&path, limit).map(|log| log.map(|log| STANDARD.encode(log))).map_err(|error| {
            Refusal::new(
                "tdx.event-log",
                format!("reading {}: {error}", path.display()),
                "cai-helper must run as root, and see the machine's own /sys and /run",
            )
        })
    };
    let logs = EventLogs { ccel: log(CCEL, CCEL_LIMIT)?, aael: log(AAEL, AAEL_LIMIT)? };
    serde_json::to_vec(&logs).map_err(|error| Refusal::new("tdx.event-log", error.to_string(), "report this"))
}

/// A log file, unless it does not exist. What is read here as root is handed on, so it must be a plain file of that name.
fn read_log(path: &Path, limit: u64) -> io::Result<Option<Vec<u8>>> {
    let file = match OpenOptions::new().read(true).custom_flags(O_NOFOLLOW | O_NONBLOCK).open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error),
    };
    if !file.metadata()?.is_file() {
        return Err(io::Error::other("not a plain file"));
    }
    let mut log = Vec::new();
    file.take(limit + 1).read_to_end(&mut log)?;
    if log.len() as u64 > limit { Err(io::ErrorKind::FileTooLarge.into()) } else { Ok(Some(log)) }
}

/// A TDREPORT over `report_data`.
pub(crate) fn report(root: &Path, report_data: &[u8; 64]) -> Result<Vec<u8>, Refusal> {
    let path = root.join(DEVICE);
    let device = File::open(&path).map_err(|error| match error.kind() {
        io::ErrorKind::NotFound => Refusal::new(
            "tdx.no-device",
            format!("{} does not exist", path.display()),
            "this is no TDX guest, or its device is not passed into this container: see dmesg, and the flag tdx_guest in lscpu",
        ),
        _ => Refusal::new(
            "tdx.device",
            format!("opening {}: {error}", path.display()),
            "cai-helper must run as root, with /dev/tdx_guest allowed (DeviceAllow= of its unit)",
        ),
    })?;
    match ioctl::td_report(&device, report_data) {
        Ok(report) => Ok(report.to_vec()),
        Err(Errno::EBUSY) => Err(Refusal::new(
            "tdx.tsm-busy",
            format!("{} is busy", path.display()),
            "another program is asking for reports all the time: find it",
        )),
        Err(error) => Err(Refusal::new(
            "tdx.device",
            format!("asking {} for a TDREPORT: {error}", path.display()),
            "this kernel's device speaks another version of its interface, or is none: see dmesg; a vendor's \
             libtdx_attest.so.1 knows its own kernel",
        )),
    }
}
