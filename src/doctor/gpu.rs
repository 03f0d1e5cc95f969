//! NVIDIA GPUs: there, driven, confidential, and ready or not. What they prove is `evidence`'s to find out.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use super::context::{Agent, Context};
use super::finding::{Finding, Level, count};
use crate::attest::gpu::on_pci;
use crate::error::ErrorClass;
use crate::host::tool;

/// Where a loaded driver says its version, below the root.
const VERSION: &str = "proc/driver/nvidia/version";

/// How long nvidia-smi may take: it wakes every GPU. What it says here is one line.
const SMI: (Duration, usize) = (Duration::from_secs(15), 16 << 10);

pub(super) async fn check(context: Arc<Context>) -> Vec<Finding> {
    let agent = context.agent().await;
    super::blocking("gpu.present", move || look(&context, agent)).await
}

fn look(context: &Context, agent: Agent) -> Vec<Finding> {
    let root = &context.root;
    let required = context.attesting().and_then(|settings| settings.attest.require_gpu);
    let number = match on_pci(root) {
        Ok(number) => number,
        Err(error) => return vec![Finding::fault("gpu.present", &error, "GPUs cannot be attested")],
    };
    match (number, required) {
        (0, Some(true)) => {
            let found = "there is no NVIDIA GPU on the PCI bus, and attest.require_gpu is true";
            return vec![
                Finding::error("gpu.present", ErrorClass::Config, found, "the key is not asked for")
                    .fixed_by("lspci -d 10de: ; choose an instance with a GPU, or clear attest.require_gpu"),
            ];
        }
        (0, _) => return vec![Finding::note("gpu.present", "there is no NVIDIA GPU on the PCI bus")],
        _ => {}
    }
    let mut findings = vec![Finding::ok("gpu.present", count(number, "NVIDIA GPU")), driver(root)];
    findings.extend(modes(root, agent));
    findings
}

fn driver(root: &Path) -> Finding {
    match super::read(&root.join(VERSION)) {
        Some(text) => Finding::ok("gpu.driver", text.lines().next().unwrap_or_default().trim()),
        None => Finding::error(
            "gpu.driver",
            ErrorClass::Config,
            "the NVIDIA driver is not loaded",
            "the GPUs cannot be attested, and nothing can use them",
        )
        .fixed_by("modprobe nvidia; see dmesg"),
    }
}

/// Confidential mode and ready state, as the vendor's tool tells them.
fn modes(root: &Path, agent: Agent) -> Vec<Finding> {
    let Some(smi) = tool::find(root, "nvidia-smi") else {
        let fix = "install the driver's tools, then: nvidia-smi conf-compute -f";
        return vec![Finding::unseen("gpu.mode", "there is no nvidia-smi to ask", fix)];
    };
    let ask = |option: &str| tool::run(&smi, &["conf-compute", option], SMI.0, SMI.1).map(|said| said.text);
    let (feature, tools, ready) = match (ask("-f"), ask("-d"), ask("-grs")) {
        (Ok(feature), Ok(tools), Ok(ready)) => (feature, tools, ready),
        (Err(error), _, _) | (_, Err(error), _) | (_, _, Err(error)) => {
            let fix = "nvidia-smi conf-compute -f";
            return vec![Finding::unseen("gpu.mode", format!("nvidia-smi: {error}"), fix)];
        }
    };
    let mode = mode(&feature, &tools);
    // Only confidential mode has a ready state; without it the tool says `ready`.
    let ready = (mode.level == Level::Ok).then(|| ready_state(&ready, agent));
    [mode].into_iter().chain(ready).collect()
}

/// What is after the last colon of the first line that has `label`: `CC status: ON`.
fn value<'a>(text: &'a str, label: &str) -> Option<&'a str> {
    let line = text.lines().find(|line| line.to_lowercase().contains(label))?;
    line.rsplit_once(':').map(|(_, value)| value.trim())
}

fn mode(feature: &str, tools: &str) -> Finding {
    let refused = |found: &str| {
        Finding::error("gpu.mode", ErrorClass::Config, found, "the GPUs are refused before anything is sent")
            .fixed_by("the host switches it: see `nvidia-smi conf-compute -f` and the instance type")
    };
    match (value(feature, "cc status"), value(tools, "devtools")) {
        (Some(on), _) if !on.eq_ignore_ascii_case("on") => refused(&format!("confidential mode is {on}")),
        (Some(_), Some(tools)) if tools.eq_ignore_ascii_case("on") => {
            refused("developer tools can look into the GPUs (DevTools mode)")
        }
        (Some(_), _) => Finding::ok("gpu.mode", "confidential mode is on"),
        (None, _) => Finding::unseen(
            "gpu.mode",
            "nvidia-smi does not tell the confidential mode",
            "nvidia-smi conf-compute -f",
        ),
    }
}

/// Ready is the agent's to set, once the key is there.
fn ready_state(text: &str, agent: Agent) -> Finding {
    let Some(state) = value(text, "ready state") else {
        let fix = "nvidia-smi conf-compute -grs";
        return Finding::unseen("gpu.ready", "nvidia-smi does not tell the ready state", fix);
    };
    let ready = state.eq_ignore_ascii_case("ready");
    let found = format!("the GPUs are {}", state.to_lowercase());
    match (ready, agent) {
        // Somewhere between the two the agent lets them work.
        (_, Agent::Starting) | (true, Agent::Serving) => Finding::ok("gpu.ready", found),
        (false, Agent::Absent) => {
            Finding::ok("gpu.ready", found).meaning("the agent lets them work once the key is released")
        }
        (true, Agent::Absent) => Finding::warning(
            "gpu.ready",
            format!("{found}, and the agent does not run"),
            "they take work from an environment that nobody has attested",
        )
        .fixed_by("find who set it; the agent takes it back at its next start"),
        (false, Agent::Serving) => Finding::warning(
            "gpu.ready",
            format!("{found}, although the agent serves"),
            "CUDA programs fail with `system not yet initialized`",
        )
        .fixed_by("journalctl -u cai -g gpu; systemctl restart cai"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mode_is_read_from_what_the_tool_prints() {
        let level = |feature: &str, tools: &str| mode(feature, tools).level;
        assert_eq!(level("CC status: ON\n", "DevTools Mode: OFF\n"), Level::Ok);
        assert_eq!(level("CC status: OFF\n", ""), Level::Error);
        assert_eq!(level("CC status: ON\n", "DevTools Mode: ON\n"), Level::Error);
        assert_eq!(level("No devices were found\n", ""), Level::Unseen);
    }

    #[test]
    fn ready_state_is_right_when_it_goes_with_the_agents() {
        let (ready, not) = (
            "Confidential Compute GPUs Ready state: ready\n",
            "Confidential Compute GPUs Ready state: not-ready\n",
        );
        let level = |text: &str, agent| ready_state(text, agent).level;
        assert_eq!((level(ready, Agent::Serving), level(not, Agent::Absent)), (Level::Ok, Level::Ok));
        assert_eq!((level(ready, Agent::Starting), level(not, Agent::Starting)), (Level::Ok, Level::Ok));
        assert_eq!(
            (level(ready, Agent::Absent), level(not, Agent::Serving)),
            (Level::Warning, Level::Warning)
        );
        assert_eq!(level("?", Agent::Absent), Level::Unseen);
    }
}
