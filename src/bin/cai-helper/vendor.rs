//! Vendors' libraries, opened as root only in a short-lived child of the helper: what they do to their process (threads,
//! signal handlers, leaks, crashes) ends with it.
//!
//! The child is this program itself with `vendor ACT HEX SECONDS`; it prints its result to standard output and exits. Its
//! environment is empty, its output bounded, its time limited.

use std::io::Write as _;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{ChildStdout, Command, Stdio};
use std::time::{Duration, Instant};

use cai::helper::protocol::Reply;
use cai::host::tool;
use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;

use crate::session::Refusal;
use crate::{gpu, libtdx};

/// How long a child lives at most, in seconds: eight GPUs sign a report each, one after the other, in about a second
/// apiece; a slow quoting service takes some thirty.
const LIFE_SECS: u32 = 120;

/// Longest result, in bytes: sixteen GPUs with report and chains of 8 and 9 KiB each, in base64, take half of it.
const RESULT_LIMIT: usize = 1 << 20;

/// How much longer than a child lives its output is waited for: what it started may hold on to it.
const GRACE: Duration = Duration::from_secs(2);

/// Everything from `stdout`, within its limit and before `deadline`.
fn read(mut stdout: ChildStdout, deadline: Instant) -> std::io::Result<Vec<u8>> {
    match tool::read_until(&mut stdout, deadline, RESULT_LIMIT)? {
        (output, false) => Ok(output),
        (_, true) => Err(std::io::ErrorKind::FileTooLarge.into()),
    }
}

/// Where distributions put libraries, for a root that is not `/`.
const DIRECTORIES: [&str; 2] = ["usr/lib64", "usr/lib/x86_64-linux-gnu"];

/// The library's file below `root`, if that has one; otherwise its name, for the dynamic linker's own search.
pub(crate) fn library(root: &Path, name: &str) -> PathBuf {
    if root == Path::new("/") {
        return name.into();
    }
    let places = DIRECTORIES.map(|directory| root.join(directory).join(name));
    places.into_iter().find(|path| path.exists()).unwrap_or_else(|| name.into())
}

/// What a child can do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Act {
    /// `libtdx_attest.so.1`: a quote over 64 bytes of report data.
    TdxQuote,
    /// `libnvidia-ml.so.1`: report and certificates of every GPU over a nonce of 32 bytes.
    GpuEvidence,
    /// `libnvidia-ml.so.1`: let the GPUs accept work.
    GpuReady,
    /// `libnvidia-ml.so.1`: let them refuse it.
    GpuNotReady,
}

impl Act {
    const ALL: [Act; 4] = [Act::TdxQuote, Act::GpuEvidence, Act::GpuReady, Act::GpuNotReady];

    const fn name(self) -> &'static str {
        match self {
            Act::TdxQuote => "tdx-quote",
            Act::GpuEvidence => "gpu-evidence",
            Act::GpuReady => "gpu-ready",
            Act::GpuNotReady => "gpu-not-ready",
        }
    }

    pub(crate) fn named(name: &str) -> Option<Self> {
        Act::ALL.into_iter().find(|act| act.name() == name)
    }
}

/// The child process: does `act` within `life_secs` and prints the [`Reply`] to standard output, a result as the reply's
/// text.
pub(crate) fn child(root: &Path, act: Act, data: &[u8], life_secs: u32) -> anyhow::Result<()> {
    // Unhandled, the alarm ends the process, whatever the library is waiting for.
    nix::unistd::alarm::set(life_secs.max(1));
    let reply = match perform(root, act, data) {
        Ok(text) => Reply::Done { text },
        Err(Refusal { code, text, hint }) => Reply::Refused { code: code.into_owned(), text, hint },
    };
    std::io::stdout().write_all(&serde_json::to_vec(&reply)?)?;
    Ok(())
}

fn perform(root: &Path, act: Act, data: &[u8]) -> Result<String, Refusal> {
    match act {
        Act::TdxQuote => {
            let report_data = data.try_into().map_err(|_| failed(act, "expected 64 bytes of report data"))?;
            libtdx::quote(root, report_data).map(hex::encode)
        }
        Act::GpuEvidence => gpu::evidence(root, data),
        Act::GpuReady => gpu::set_ready(root, true),
        Act::GpuNotReady => gpu::set_ready(root, false),
    }
}

/// The child did not do what it is for.
pub(crate) fn failed(act: Act, what: impl std::fmt::Display) -> Refusal {
    let text = format!("cai-helper vendor {}: {what}", act.name());
    Refusal::new("vendor.child", text, "the vendor's library misbehaved: see the journal for cai-helper")
}

/// Run a child for `act`: the text it answers with.
///
/// # Errors
/// The child's own refusal; `vendor.child` when it died, was too slow or said too much.
pub(crate) fn run(root: &Path, act: Act, data: &[u8]) -> Result<String, Refusal> {
    let io = |error: std::io::Error| failed(act, error);
    let mut child = Command::new("/proc/self/exe")
        .arg("--root")
        .arg(root)
        .args(["vendor", act.name(), &hex::encode(data), &LIFE_SECS.to_string()])
        .env_clear()
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        // With whatever it starts: NVML runs programs of its own.
        .process_group(0)
        .spawn()
        .map_err(io)?;
    let deadline = Instant::now() + Duration::from_secs(u64::from(LIFE_SECS)) + GRACE;
    let output = child.stdout.take().map_or(Ok(Vec::new()), |stdout| read(stdout, deadline));
    if output.is_err() {
        let group = Pid::from_raw(child.id().try_into().unwrap_or_default());
        let _ = killpg(group, Signal::SIGKILL);
    }
    // One that a driver holds in the kernel is left to the end of this process.
    let output = output.map_err(io)?;
    let status = child.wait().map_err(io)?;
    if !status.success() {
        return Err(failed(act, format_args!("ended with {status}")));
    }
    match serde_json::from_slice(&output).map_err(|error| failed(act, error))? {
        Reply::Done { text } => Ok(text),
        Reply::Refused { code, text, hint } => Err(Refusal { code: code.into(), text, hint }),
        Reply::Registered { .. } => Err(failed(act, "gave another verb's answer")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NAME: &str = "libvendor.so.1";

    #[test]
    fn library_below_a_root_comes_before_the_systems() {
        let root = tempfile::tempdir().unwrap();
        assert_eq!(library(root.path(), NAME), Path::new(NAME));
        assert_eq!(library(Path::new("/"), NAME), Path::new(NAME));
        let below = root.path().join("usr/lib64");
        std::fs::create_dir_all(&below).unwrap();
        std::fs::write(below.join(NAME), "").unwrap();
        assert_eq!(library(root.path(), NAME), below.join(NAME));
    }
}
