//! Quotes from the kernel's configfs-tsm: one directory, one write, one read, and the directory is gone again.
//!
//! Source: Linux `Documentation/ABI/testing/configfs-tsm`; kbs.md section 7.1.5 path 1.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read as _, Write as _};
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use nix::errno::Errno;

use crate::session::Refusal;

/// Where report directories are made, below the root.
const REPORTS: &str = "sys/kernel/config/tsm/report";

/// How our directories' names begin; the process and a count follow.
const PREFIX: &str = "cai-helper-";

/// Directories of ours this old were left by a helper that was killed: no request lives that long.
const LEFT_BEHIND: Duration = Duration::from_secs(600);

/// Name of the kernel's provider on TDX.
const PROVIDER: &str = "tdx_guest";

/// How often a quote is asked for, and the pause after a host that was busy or slow. The daemon asks again later, with its
/// own growing pauses, so the two only bridge a neighbour's request.
const TRIES: u32 = 3;
const PAUSE: Duration = Duration::from_secs(2);

/// Longest quote, in bytes: the kernel's own buffer is 8 KiB.
const QUOTE_LIMIT: u64 = 64 << 10;

/// A TDX quote over `report_data`.
pub(crate) fn quote(root: &Path, report_data: &[u8; 64]) -> Result<Vec<u8>, Refusal> {
    let reports = root.join(REPORTS);
    remove_left_behind(&reports);
    let mut tries = 1;
    loop {
        match attempt(&reports, report_data) {
            Ok(quote) => return Ok(quote),
            Err(failure) if tries == TRIES || !failure.may_pass() => return Err(failure.refusal(&reports)),
            Err(failure) => std::thread::sleep(failure.pause()),
        }
        tries += 1;
    }
}

/// One directory's life.
fn attempt(reports: &Path, report_data: &[u8; 64]) -> Result<Vec<u8>, Failure> {
    let report = Report::create(reports)?;
    let provider = report.read("provider", 64)?;
    let provider = String::from_utf8_lossy(&provider).trim().to_owned();
    if provider != PROVIDER {
        return Err(Failure::Provider(provider));
    }
    report.write("inblob", report_data)?;
    let quote = report.read("outblob", QUOTE_LIMIT)?;
    // One write so far: another number means that somebody else wrote, and whose quote this is nobody knows.
    let generation = report.read("generation", 64)?;
    if String::from_utf8_lossy(&generation).trim() != "1" {
        return Err(Failure::Shared);
    }
    if quote.is_empty() { Err(Failure::Empty) } else { Ok(quote) }
}

/// A report directory, removed on drop. Its files are the kernel's and go with it.
struct Report {
    path: PathBuf,
}

impl Report {
    fn create(reports: &Path) -> Result<Self, Failure> {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let count = COUNT.fetch_add(1, Ordering::Relaxed);
        let path = reports.join(format!("{PREFIX}{}-{count}", std::process::id()));
        match fs::DirBuilder::new().mode(0o700).create(&path) {
            Ok(()) => Ok(Report { path }),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Err(Failure::NoTsm),
            Err(error) => Err(Failure::Io { doing: "making a report directory", error }),
        }
    }

    fn read(&self, attribute: &'static str, limit: u64) -> Result<Vec<u8>, Failure> {
        let read = || {
            let mut bytes = Vec::new();
            File::open(self.path.join(attribute))?.take(limit + 1).read_to_end(&mut bytes)?;
            if bytes.len() as u64 > limit { Err(io::ErrorKind::FileTooLarge.into()) } else { Ok(bytes) }
        };
        read().map_err(|error| Failure::Io { doing: attribute, error })
    }

    /// All in one write: each write would be a request of its own.
    fn write(&self, attribute: &'static str, bytes: &[u8]) -> Result<(), Failure> {
        let write = || {
            let written = OpenOptions::new().write(true).open(self.path.join(attribute))?.write(bytes)?;
            if written == bytes.len() { Ok(()) } else { Err(io::ErrorKind::WriteZero.into()) }
        };
        write().map_err(|error| Failure::Io { doing: attribute, error })
    }
}

impl Drop for Report {
    fn drop(&mut self) {
        if let Err(error) = fs::remove_dir(&self.path) {
            eprintln!("cai-helper: removing {}: {error}", self.path.display());
        }
    }
}

/// Remove what a killed helper left. Others' directories, and those of a helper beside us, stay.
fn remove_left_behind(reports: &Path) {
    for entry in fs::read_dir(reports).into_iter().flatten().flatten() {
        let ours = entry.file_name().to_string_lossy().starts_with(PREFIX);
        let made = entry.metadata().and_then(|metadata| metadata.modified()).ok();
        let age = made.and_then(|made| made.elapsed().ok());
        if ours && age.is_some_and(|age| age > LEFT_BEHIND) {
            let _ = fs::remove_dir(entry.path());
        }
    }
}

/// Why a directory gave no quote.
enum Failure {
    NoTsm,
    Provider(String),
    Shared,
    Empty,
    Io { doing: &'static str, error: io::Error },
}

impl Failure {
    fn errno(&self) -> Option<Errno> {
        match self {
            Failure::Io { error, .. } => error.raw_os_error().map(Errno::from_raw),
            _ => None,
        }
    }

    /// Whether the same request may succeed at once or in a moment.
    fn may_pass(&self) -> bool {
        matches!(self, Failure::Shared)
            || matches!(self.errno(), Some(Errno::EBUSY | Errno::EINTR | Errno::ETIMEDOUT))
    }

    fn pause(&self) -> Duration {
        match self.errno() {
            Some(Errno::EBUSY | Errno::ETIMEDOUT) => PAUSE,
            _ => Duration::ZERO,
        }
    }

    fn refusal(self, reports: &Path) -> Refusal {
        let at = reports.display();
        let errno = self.errno();
        match (self, errno) {
            (Failure::NoTsm, _) => Refusal::new(
                "tdx.no-tsm",
                format!("{at} does not exist"),
                "this kernel has no configfs-tsm: it needs Linux 6.7 or a back-port, module tdx_guest, and configfs mounted",
            ),
            (Failure::Provider(provider), _) => Refusal::new(
                "tdx.tsm-provider",
                format!("{at} is of {provider:?}, expected {PROVIDER:?}"),
                "this is a confidential VM of another kind; cai attests TDX guests",
            ),
            (Failure::Shared, _) => Refusal::new(
                "tdx.tsm-shared",
                format!("somebody else writes to our directories below {at}"),
                "find who: only one program should ask for a quote in one directory",
            ),
            (Failure::Empty, _) => Refusal::new("tdx.empty-quote", "the kernel gave an empty quote", HOST),
            (Failure::Io { doing, error }, Some(Errno::EBUSY)) => Refusal::new(
                "tdx.tsm-busy",
                format!("{doing} below {at}: {error}, {TRIES} times"),
                "another program is asking for quotes all the time: find it",
            ),
            (Failure::Io { doing, error }, Some(Errno::ETIMEDOUT | Errno::EINTR | Errno::EIO)) => {
                Refusal::new("tdx.host-timeout", format!("{doing} below {at}: {error}"), HOST)
            }
            (Failure::Io { doing, error }, Some(Errno::ENXIO)) => Refusal::new(
                "tdx.tsm-provider",
                format!("{doing} below {at}: {error}"),
                "configfs-tsm has no provider: load module tdx_guest in a TDX guest",
            ),
            (Failure::Io { doing, error }, _) => Refusal::new(
                "tdx.tsm",
                format!("{doing} below {at}: {error}"),
                "cai-helper must run as root, with /sys/kernel/config writable for it",
            ),
        }
    }
}

/// What to do about a host that gives no quote.
const HOST: &str = "the host's quote generation service (QGS) did not answer: this cannot be cured in the guest; see its log \
    on the host, whether the platform is registered (PCK certificates), and whether QGS and QEMU fit each other";
