//! The service port while the model is served: open after the mount, shut before it.

use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::watch;

use super::stages::ask;
use super::state::State;
use super::status::{Failure, ServicePort as Shown};
use super::voice::Voice;
use crate::config::{Entrance, Settings};
use crate::gateway::{Gate, Gateway};
use crate::helper::Helper;
use crate::helper::protocol::{GATE_WAS_SHUT, Request};
use crate::ratls::Format;
use crate::ratls::identity::Fresh;

/// How often the numbers are shown at most.
const SHOW_EVERY: Duration = Duration::from_secs(2);

/// How often the service manager is told that connections are still being waited for.
const DRAIN_NEWS: Duration = Duration::from_secs(30);

/// How often it is seen to that the gate is shut: rules can be flushed by whoever manages the firewall.
const LOOK_EVERY: Duration = Duration::from_secs(10);

/// Times in a row that it may fail to be told: a machine short of memory for a moment has not opened anything.
const UNSURE_LIMIT: u32 = 3;

/// The gateway, and what is shown of it.
pub(super) struct ServicePort {
    gateway: Gateway,
    fresh: watch::Receiver<Fresh>,
    shown: Shown,
    /// Whom to ask for the gate, where there is one.
    gatekeeper: Option<Arc<Helper>>,
    /// Times in a row that nobody could say whether it is shut.
    unsure: u32,
}

impl ServicePort {
    /// Open the port, if one is configured, with this evidence.
    pub(super) async fn open(
        settings: &Settings,
        voice: &Voice,
        helper: &Arc<Helper>,
        fresh: Option<watch::Receiver<Fresh>>,
    ) -> Result<Option<Self>, Failure> {
        let (Some(entrance), Some(fresh)) = (settings.gateway.entrance, fresh) else { return Ok(None) };
        let fail = |fault: &dyn crate::error::Fault| Failure::new(State::Mounting, fault);
        let gatekeeper = Gate::of(&settings.gateway).map(|_| helper.clone());
        if let Some(helper) = &gatekeeper {
            // First: from here on nobody outside reaches the service in plaintext, whatever else fails.
            let (text, _) = ask(helper, Request::Gate).await.map_err(|error| fail(&error))?;
            tracing::info!(event = "gate.shut", "{text}");
        }
        let gateway =
            Gateway::start(&settings.gateway, &entrance, fresh.clone()).map_err(|error| fail(&error))?;
        let shown = describe(settings, &entrance, &gateway);
        let port = ServicePort { gateway, fresh, shown, gatekeeper, unsure: 0 };
        port.show(voice);
        Ok(Some(port))
    }

    /// Follow it while serving. Returns only with its failure.
    pub(super) async fn watch(&mut self, voice: &Voice) -> Failure {
        let mut looks = tokio::time::interval(LOOK_EVERY);
        loop {
            tokio::select! {
                error = self.gateway.broken() => return Failure::new(voice.state(), &error),
                () = tokio::time::sleep(SHOW_EVERY) => self.show(voice),
                _ = looks.tick() => {
                    if let Some(failure) = self.keep_shut(voice).await {
                        return failure;
                    }
                }
            }
        }
    }

    /// See to it that the gate is shut. A gate that cannot be shut ends the agent: nobody knows any more who reaches the service.
    async fn keep_shut(&mut self, voice: &Voice) -> Option<Failure> {
        let helper = self.gatekeeper.as_ref()?;
        let answer = ask(helper, Request::Gate).await;
        self.unsure = if answer.is_ok() { 0 } else { self.unsure.saturating_add(1) };
        match answer {
            Ok((text, _)) if text == GATE_WAS_SHUT => None,
            Ok(_) => {
                let text = "the rules of the service port were gone and have been loaded again: somebody flushed the firewall, \
                            and the port took plaintext until now";
                tracing::error!(event = "gate.was-open", "{text}");
                voice.notice(text);
                None
            }
            Err(error) if self.unsure < UNSURE_LIMIT => {
                tracing::warn!(event = "gate.unsure", error = ?error, "whether the gate is shut: {error}");
                None
            }
            Err(error) => Some(Failure::new(voice.state(), &error)),
        }
    }

    fn show(&self, voice: &Voice) {
        let fresh = self.fresh.borrow().clone();
        let now = Instant::now();
        let made_at = [Format::Legacy, Format::Current]
            .into_iter()
            .filter_map(|format| Some((format.name(), fresh.shown(format, now)?.made_at())));
        let shown = Shown {
            evidence_at: made_at.collect(),
            refresh_error: fresh.last_error.clone().unwrap_or_default(),
            counts: self.gateway.snapshot(),
            ..self.shown.clone()
        };
        voice.service_port(Some(shown));
    }

    /// Shut the port, and let open connections end by themselves for as long as `drain`.
    pub(super) async fn close(self, voice: &Voice, drain: Duration) {
        let stopping = self.gateway.stop(drain);
        tokio::pin!(stopping);
        let begun = Instant::now();
        loop {
            tokio::select! {
                () = &mut stopping => break,
                () = tokio::time::sleep(DRAIN_NEWS) => {
                    let left = drain.saturating_sub(begun.elapsed()).as_secs();
                    // Another text each time: the same one is no sign of progress.
                    voice.stage(format!("waiting for the last connections to end, {left} s at most"));
                }
            }
        }
        voice.service_port(None);
    }
}

fn describe(settings: &Settings, entrance: &Entrance, gateway: &Gateway) -> Shown {
    let (mode, backend) = match entrance {
        Entrance::Mapping { backend, .. } => ("mapping", backend.to_string()),
        Entrance::Capture { service_port, .. } => ("capture", format!("port {service_port} as dialled")),
    };
    Shown {
        mode,
        listen: gateway.listening().iter().map(ToString::to_string).collect(),
        backend,
        certificate: settings.gateway.certificate.name(),
        refresh_secs: settings.gateway.refresh.as_secs(),
        ..Shown::default()
    }
}
