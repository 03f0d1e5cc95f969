//! The service port while the model is served: open after the mount, shut before it.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::watch;

use super::state::State;
use super::status::{Failure, ServicePort as Shown};
use super::voice::Voice;
use crate::attest::Attester;
use crate::config::{Entrance, Settings};
use crate::gateway::Gateway;
use crate::manifest;
use crate::ratls::Format;
use crate::ratls::identity::{Fresh, Identity, Recipe};
use crate::task::Tasks;

/// How often the numbers are shown at most.
const SHOW_EVERY: Duration = Duration::from_secs(2);

/// How often the service manager is told that connections are still being waited for.
const DRAIN_NEWS: Duration = Duration::from_secs(30);

/// Member of the runtime data that names the model, for clients that expect one.
const MODEL_IDENTITY: &str = "model-identity";

/// The gateway, and what is shown of it.
pub(super) struct ServicePort {
    gateway: Gateway,
    fresh: watch::Receiver<Fresh>,
    shown: Shown,
}

impl ServicePort {
    /// Collect evidence and open the port, if one is configured. `background` keeps the evidence fresh.
    pub(super) async fn open(
        settings: &Settings,
        voice: &Voice,
        attester: Arc<dyn Attester>,
        model: Option<manifest::Identity>,
        background: &mut Tasks,
    ) -> Result<Option<Self>, Failure> {
        let Some(entrance) = settings.gateway.entrance else { return Ok(None) };
        voice.stage("collecting evidence for the service port");
        let model = model.map(|model| (MODEL_IDENTITY.to_owned(), model.to_string()));
        let recipe = Recipe {
            attester,
            formats: Gateway::formats(settings.gateway.certificate),
            members: BTreeMap::from_iter(model),
        };
        let fail = |fault: &dyn crate::error::Fault| Failure::new(State::Mounting, fault);
        let identity =
            Identity::start(recipe, settings.gateway.refresh).await.map_err(|error| fail(&error))?;
        let fresh = identity.fresh();
        let gateway =
            Gateway::start(&settings.gateway, &entrance, fresh.clone()).map_err(|error| fail(&error))?;
        background.supervise("identity", async move { match identity.keep_fresh().await {} });
        let shown = describe(settings, &entrance, &gateway);
        let port = ServicePort { gateway, fresh, shown };
        port.show(voice);
        Ok(Some(port))
    }

    /// Follow it while serving. Returns only with its failure.
    pub(super) async fn watch(&mut self, voice: &Voice) -> Failure {
        loop {
            tokio::select! {
                error = self.gateway.broken() => return Failure::new(voice.state(), &error),
                () = tokio::time::sleep(SHOW_EVERY) => self.show(voice),
            }
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
        loop {
            tokio::select! {
                () = &mut stopping => break,
                () = tokio::time::sleep(DRAIN_NEWS) => voice.stage("waiting for the last connections to end"),
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
