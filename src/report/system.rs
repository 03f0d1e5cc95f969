//! What the system says about itself and about cai: journal, units, mounts, gate, versions. Each as text, or why not.

use std::path::Path;
use std::time::Duration;

use crate::error::chain;
use crate::gateway::Gate;
use crate::host::{mounts, tool};

/// How long a program may take.
const PATIENCE: Duration = Duration::from_secs(30);
/// Most that is taken of one journal, bytes, newest lines first: days of an agent that serves, an hour of one that fails all the time.
const JOURNAL: usize = 2 << 20;
/// Most that is taken of anything else.
const TEXT: usize = 256 << 10;
/// How far back a journal is read.
const SINCE: &str = "--since=-14days";

/// A text by name, what it is, and how it is had.
pub type Source = (&'static str, &'static str, fn(&Path) -> Result<String, String>);

/// Everything that is asked of the system below a root.
pub static SOURCES: &[Source] = &[
    ("journal/cai.txt", "journal of cai.service, newest first", |root| journal(root, "cai.service")),
    ("journal/cai-helper.txt", "journal of cai-helper@, newest first", |root| journal(root, "cai-helper@*")),
    ("journal/cai-decryptor.txt", "journal of cai-decryptor@, newest first", |root| {
        journal(root, "cai-decryptor@*")
    }),
    ("journal/cai-gate.txt", "journal of cai-gate.service, newest first", |root| {
        journal(root, "cai-gate.service")
    }),
    ("units.txt", "state of the units", |root| {
        said(
            root,
            "systemctl",
            &["status", "--no-pager", "--full", "cai.service", "cai-gate.service", "cai-helper.socket"],
        )
    }),
    ("mounts.txt", "the mount table", |_| file(Path::new(mounts::PATH))),
    ("nft.txt", "rules of the service port", |_| match Gate::loaded() {
        Ok(Some(rules)) => Ok(rules),
        Ok(None) => Err("no rules are loaded, or this user may not see them".to_owned()),
        Err(error) => Err(chain(&error)),
    }),
    ("gpu.txt", "confidential mode of the GPUs", |root| said(root, "nvidia-smi", &["conf-compute", "-f"])),
    ("versions.txt", "versions of the system", versions),
    ("cmdline.txt", "the kernel's command line", |_| file(Path::new("/proc/cmdline"))),
    ("meminfo.txt", "memory", |_| file(Path::new("/proc/meminfo"))),
];

fn journal(root: &Path, unit: &str) -> Result<String, String> {
    let program = tool::find(root, "journalctl").ok_or("there is no journalctl")?;
    let arguments = ["--no-pager", "--reverse", "--output=short-iso", SINCE, "--unit", unit];
    let said =
        tool::run(&program, &arguments, PATIENCE, JOURNAL).map_err(|error| format!("journalctl: {error}"))?;
    // A line that was cut is no line.
    let whole =
        if said.cut { said.text.rsplit_once('\n').map_or("", |(whole, _)| whole) } else { &said.text };
    if said.success || said.cut {
        Ok(format!("{whole}\n"))
    } else {
        Err(format!("journalctl: {}", said.text.trim()))
    }
}

/// What a program says, whatever its status: systemctl's tells of units, not of itself.
fn said(root: &Path, name: &str, arguments: &[&str]) -> Result<String, String> {
    let program = tool::find(root, name).ok_or_else(|| format!("there is no {name}"))?;
    let said = tool::run(&program, arguments, PATIENCE, TEXT).map_err(|error| format!("{name}: {error}"))?;
    Ok(said.text)
}

fn file(path: &Path) -> Result<String, String> {
    let bytes = std::fs::read(path).map_err(|error| format!("{}: {error}", path.display()))?;
    Ok(String::from_utf8_lossy(bytes.get(..TEXT).unwrap_or(&bytes)).into_owned())
}

fn versions(root: &Path) -> Result<String, String> {
    let part = |name: &str, text: Result<String, String>| match text {
        Ok(text) => format!("{name}: {}\n", text.trim_end()),
        Err(why) => format!("{name}: ({})\n", why.trim_end()),
    };
    let os = file(&root.join("etc/os-release")).map(|text| {
        let name = text.lines().find_map(|line| line.strip_prefix("PRETTY_NAME="));
        name.unwrap_or_default().trim_matches('"').to_owned()
    });
    Ok([
        part("cai", Ok(env!("CARGO_PKG_VERSION").to_owned())),
        part("kernel", file(Path::new("/proc/version"))),
        part("system", os),
        part("systemd", said(root, "systemctl", &["--version"])),
        part("nvidia", file(&root.join("proc/driver/nvidia/version"))),
    ]
    .concat())
}
