//! `cai rotate`, `cai reattest`, `cai reload`: what the running daemon is asked to do, over D-Bus.

use std::fmt::Write as _;
use std::io::Write as _;
use std::time::Duration;

use indicatif::HumanBytes;
use serde_json::Value as Json;

use super::run::RuntimeError;
use crate::bus::{self, BusError, Daemon};
use crate::error::{ErrorClass, Fault};

/// How often it is looked how far a rotation is.
const LOOK_EVERY: Duration = Duration::from_millis(300);

/// Arguments of `cai rotate`.
#[derive(Debug, clap::Args)]
pub struct RotateArgs {
    /// Wait for the end, show how far it is, and fail where it fails.
    #[arg(long)]
    wait: bool,
}

/// A rotation left everything as it was.
#[derive(Debug, thiserror::Error)]
#[error("the rotation failed, and everything is as it was: {detail} [{code}]")]
struct RotationFailed {
    code: String,
    detail: String,
    hint: String,
    class: ErrorClass,
}

impl Fault for RotationFailed {
    fn class(&self) -> ErrorClass {
        self.class
    }

    fn code(&self) -> &'static str {
        "rotation.failed"
    }

    fn hint(&self) -> String {
        self.hint.clone()
    }
}

pub(super) fn rotate(args: &RotateArgs) -> Result<(), Box<dyn Fault>> {
    on_the_bus(async |daemon| {
        let number = daemon.rotate().await?;
        if !args.wait {
            say(&format!("rotation {number} has begun; cai status shows how far it is"));
            return Ok(());
        }
        wait(daemon, number).await
    })
}

pub(super) fn reattest() -> Result<(), Box<dyn Fault>> {
    on_the_bus(async |daemon| {
        daemon.reattest().await?;
        say("attested; the key would still be released");
        Ok(())
    })
}

pub(super) fn reload() -> Result<(), Box<dyn Fault>> {
    on_the_bus(async |daemon| {
        let (applied, later) = daemon.reload().await?;
        let list = |keys: Vec<String>| if keys.is_empty() { "nothing".to_owned() } else { keys.join(", ") };
        say(&format!("in effect now: {}", list(applied)));
        say(&format!("after a restart: {}", list(later)));
        Ok(())
    })
}

fn on_the_bus(ask: impl AsyncFnOnce(&Daemon) -> Result<(), Box<dyn Fault>>) -> Result<(), Box<dyn Fault>> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(RuntimeError)?;
    runtime.block_on(async { ask(&Daemon::on_the_bus().await?).await })
}

/// Follow rotation `number` to its end.
async fn wait(daemon: &Daemon, number: u32) -> Result<(), Box<dyn Fault>> {
    let mut said = String::new();
    loop {
        let rotation =
            bus::to_legible_json(&daemon.properties().await?).get("Rotation").cloned().unwrap_or_default();
        if rotation.get("Number").and_then(Json::as_u64) != Some(u64::from(number)) {
            // The daemon began anew, or somebody rotated again: how this one ended nobody knows any more.
            let detail = format!("rotation {number} is not the last one any more");
            return Err(BusError::Refused { name: "NotServing".into(), detail }.into());
        }
        let line = progress(&rotation);
        if line != said {
            say(&line);
            said = line;
        }
        if rotation.get("Over").and_then(Json::as_bool) == Some(true) {
            return end(&rotation);
        }
        tokio::time::sleep(LOOK_EVERY).await;
    }
}

fn end(rotation: &Json) -> Result<(), Box<dyn Fault>> {
    let Some(error) = rotation.get("Error").filter(|error| error.get("Code").is_some()) else {
        return Ok(());
    };
    let text = |name: &str| error.get(name).and_then(Json::as_str).unwrap_or_default().to_owned();
    let class = match error.get("ExitStatus").and_then(Json::as_u64) {
        Some(77) => ErrorClass::Denied,
        Some(65) => ErrorClass::Corrupt,
        Some(78) => ErrorClass::Config,
        Some(70) => ErrorClass::Internal,
        _ => ErrorClass::Transient,
    };
    Err(RotationFailed { code: text("Code"), detail: text("Detail"), hint: text("Hint"), class }.into())
}

/// `fetching 5ce0..., 3.1 GiB of 61.0 GiB`.
pub(super) fn progress(rotation: &Json) -> String {
    let text = |name: &str| rotation.get(name).and_then(Json::as_str).unwrap_or_default();
    let mut line = text("Phase").to_owned();
    if let Some(short) = text("Revision").get(..12) {
        let _ = write!(line, " {short}");
    }
    let bytes =
        |name: &str| rotation.pointer(&format!("/Progress/{name}")).and_then(Json::as_u64).unwrap_or(0);
    if text("Phase") == "fetching" && bytes("BytesTotal") > 0 {
        let _ = write!(line, ", {} of {}", HumanBytes(bytes("BytesDone")), HumanBytes(bytes("BytesTotal")));
    }
    match rotation.get("LeftOpen").and_then(Json::as_u64) {
        Some(open) if open > 0 => format!("{line}; {open} files of the old revision are still open"),
        _ => line,
    }
}

fn say(line: &str) {
    // A closed pipe is not our failure.
    let _ = writeln!(std::io::stdout(), "{line}");
}
