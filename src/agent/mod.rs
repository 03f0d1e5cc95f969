//! The only orchestrator: start-up order, background work, teardown.
//!
//! Owns: the order in which the other rooms are used and the one [`status::Status`]. Must not know: formats, wire protocols,
//! system calls. Threads: the agent is one task; what blocks (quote, key derivation, tree, helper) runs in
//! `spawn_blocking`. Order of work is held by types too: an [`Attested`](crate::kbs::Attested) comes only from a
//! handshake, a tree only from released keys, a mount only from a tree. Tested in `state.rs` and `tests/lifecycle.rs`.

mod adapter;
pub mod audit;
pub mod command;
mod evidence;
mod following;
mod lease;
mod model;
pub mod mounting;
mod origin;
mod patience;
mod release;
mod rotation;
mod service_port;
mod serving;
mod sharing;
mod stages;
pub mod state;
pub mod status;
mod voice;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;

use crate::config::{Encryption, Settings};
use crate::error::{ErrorClass, Fault};
use crate::helper::Helper;
use crate::host::Notifier;
use crate::keyring::Secret;
use crate::oss::{self, OssSource};
use crate::task::{Ended, Tasks};
use command::Commands;
use following::{Stores, Watched};
use lease::Lease;
use model::{Opener, Revision};
use mounting::Mount;
use release::{Broker, Released, Verdict};
use rotation::Rotor;
use service_port::ServicePort;
use sharing::Group;
use state::{Event, State};
use status::{Failure, Status};
use voice::Voice;

/// How long background tasks get to end after they were asked to.
const TASK_GRACE: Duration = Duration::from_secs(5);

/// Failures of the orchestration itself.
#[derive(Debug, thiserror::Error)]
enum AgentError {
    #[error("handling signal {name}")]
    Signal {
        name: &'static str,
        #[source]
        source: std::io::Error,
    },
    #[error("a background task failed")]
    Task(#[source] Ended),
    #[error("the mount at {} ended by itself", point.display())]
    MountLost { point: PathBuf },
}

impl Fault for AgentError {
    fn class(&self) -> ErrorClass {
        match self {
            AgentError::Signal { .. } | AgentError::Task(_) => ErrorClass::Internal,
            AgentError::MountLost { .. } => ErrorClass::Transient,
        }
    }

    fn code(&self) -> &'static str {
        match self {
            AgentError::Signal { .. } => "agent.signal",
            AgentError::Task(_) => "agent.task",
            AgentError::MountLost { .. } => "mount.lost",
        }
    }

    fn hint(&self) -> String {
        match self {
            AgentError::Signal { .. } | AgentError::Task(_) => {
                "this is a defect: please report it with the journal".into()
            }
            AgentError::MountLost { .. } => {
                "somebody unmounted it; to stop cai use: systemctl stop cai".into()
            }
        }
    }
}

/// What stays in place while the agent serves, and has to be taken down in order.
#[derive(Default)]
struct InPlace {
    gpus_ready: bool,
    stores: Stores,
    mounted: Option<Mount>,
    port: Option<ServicePort>,
    group: Group,
}

/// Run until SIGTERM or SIGINT, or until something final goes wrong. Every change is published through `status`; `tasks`
/// are those that show it, and the end of any of them ends the agent.
///
/// # Errors
/// The failure that ended it, after everything was taken down. Its class decides the exit status.
pub async fn run(
    settings: Settings,
    status: watch::Sender<Status>,
    helper: Helper,
    mut commands: Commands,
    mut tasks: Tasks,
) -> Result<(), Failure> {
    let fail = |error: AgentError| Failure::new(State::Starting, &error);
    let mut terminate = signal(SignalKind::terminate())
        .map_err(|source| fail(AgentError::Signal { name: "SIGTERM", source }))?;
    let mut interrupt = signal(SignalKind::interrupt())
        .map_err(|source| fail(AgentError::Signal { name: "SIGINT", source }))?;

    let voice = Voice::new(status);
    let helper = Arc::new(helper);
    let mut in_place = InPlace::default();

    let outcome = tokio::select! {
        _ = terminate.recv() => Ok(()),
        _ = interrupt.recv() => Ok(()),
        ended = tasks.any_ended() => Err(Failure::new(voice.state(), &AgentError::Task(ended))),
        outcome = start_and_serve(&settings, &voice, &helper, &mut commands, &mut in_place) => outcome.map(|never| match never {}),
    };
    let outcome = close(outcome, &settings, &voice, &helper, in_place).await;
    drop(voice);
    tasks.stop(TASK_GRACE).await;
    outcome
}

/// Start, then serve. Returns only with a failure.
async fn start_and_serve(
    settings: &Settings,
    voice: &Voice,
    helper: &Arc<Helper>,
    commands: &mut Commands,
    in_place: &mut InPlace,
) -> Result<std::convert::Infallible, Failure> {
    adapter::check(settings, helper).await?;
    let broker = Broker::new(settings, voice, helper).await?;
    voice.apply(Event::AttestationBegun, format!("attesting to {}", settings.trustee.url))?;
    let Released { secret, gpus_ready, verdict } = broker.release(settings, voice, helper).await?;
    in_place.gpus_ready = gpus_ready;
    let lease = Lease::new(voice, settings.trustee.lease, verdict.clone());

    let client = oss::Client::new(&settings.oss).map_err(|error| Failure::new(State::Fetching, &error))?;
    let client = Arc::new(client);
    let source = Arc::new(OssSource::new(client.clone(), settings.oss.prefix.clone()));
    let revision = open_model(settings, voice, &source, secret, &verdict, in_place).await?;
    let mut watched = Watched::new(&revision.store, client.access());
    watched.show(voice);

    let mut background = Tasks::new();
    let members = evidence::members(revision.listed.identity(), verdict.policy);
    let identity =
        evidence::collect(settings, voice, broker.attester.clone(), members, &mut background).await?;
    let fresh = identity.as_ref().map(|identity| identity.fresh());
    in_place.group.join(settings, voice, &revision, fresh.clone()).await?;
    background.supervise("fill", following::fill_newest(in_place.stores.subscribe()));
    if settings.waits_for_all() {
        voice.stage("fetching the whole model (MODEL_WAIT=full)");
        tokio::select! {
            complete = following::wait_until_complete(&mut watched, |watched| drop(watched.show(voice))) => complete?,
            ended = in_place.group.watch(voice) => return Err(Failure::new(voice.state(), &AgentError::Task(ended))),
        }
    }
    let (mounted, shown) = mounting::mount(settings, voice, helper, &revision).await?;
    let mounted: &Mount = in_place.mounted.insert(mounted);
    audit::model_mounted(settings, voice.key_generation(), &verdict.facts, &revision.listed);
    // Before anybody hears that the model is ready: clients may come as soon as its service does.
    in_place.port = ServicePort::open(settings, voice, helper, fresh).await?;
    voice.apply(Event::Mounted, shown)?;
    let point = settings.mount.point.clone();
    let served = watch::Sender::new(revision);
    let (broker, lease, group, stores) = (&broker, &lease, &in_place.group, &in_place.stores);
    let access = client.access();
    let rotor = Rotor {
        settings,
        voice,
        broker,
        lease,
        client,
        source,
        identity,
        group,
        mounted,
        stores,
        served: &served,
    };
    let failure = tokio::select! {
        error = helper.gone() => Failure::new(voice.state(), &error),
        error = mounted.adapter_failed() => Failure::new(voice.state(), &error),
        () = mounted.ended() => Failure::new(voice.state(), &AgentError::MountLost { point: point.clone() }),
        ended = background.any_ended() => Failure::new(voice.state(), &AgentError::Task(ended)),
        failure = following::follow(voice, served.subscribe(), access) => failure,
        failure = serving::serve(commands, &rotor) => failure,
        failure = watch_port(voice, in_place.port.as_mut()) => failure,
        ended = group.watch(voice) => Failure::new(voice.state(), &AgentError::Task(ended)),
        () = watchdog(voice, mounted, point.clone()) => Failure::new(voice.state(), &AgentError::MountLost { point }),
    };
    background.stop(TASK_GRACE).await;
    Err(failure)
}

/// List the model, judge it, and open it.
async fn open_model(
    settings: &Settings,
    voice: &Voice,
    source: &Arc<OssSource>,
    secret: Secret,
    verdict: &Verdict,
    in_place: &mut InPlace,
) -> Result<Arc<Revision>, Failure> {
    let encryption = settings.model.encryption;
    if encryption == Encryption::Sam {
        adapter::check_key(&secret)?;
    }
    let listed = model::list(settings, voice, source, verdict.time).await?;
    origin::accept(settings, voice, &listed.origin)?;
    voice.update(|status| status.model_revision.clone_from(&listed.name));
    let store = model::open_store(settings, &listed, source.clone(), None).await?;
    model::say_what_is_kept(voice, &store);
    in_place.stores.send_modify(|stores| stores.push(store.clone()));
    let revision = match encryption {
        Encryption::Gocryptfs => model::open(voice, listed, &store, Opener::Secret(secret)).await?,
        Encryption::Sam => Revision::adapted(listed, store, secret),
    };
    Ok(Arc::new(revision))
}

/// Follow the service port, where there is one. Returns only with its failure.
async fn watch_port(voice: &Voice, port: Option<&mut ServicePort>) -> Failure {
    match port {
        Some(port) => port.watch(voice).await,
        None => std::future::pending().await,
    }
}

/// Tell the service manager's watchdog that the agent turns *and* the mount answers: `statfs` is never cached by the kernel.
/// A mount that hangs keeps this waiting, and the service manager restarts us. Returns when the mount answers with an error.
async fn watchdog(voice: &Voice, mounted: &Mount, point: PathBuf) {
    let Some(interval) = Notifier::watchdog_interval() else { return std::future::pending().await };
    let mut ticks = tokio::time::interval(interval);
    loop {
        ticks.tick().await;
        let (point, kind) = (point.clone(), mounted.kind());
        match tokio::task::spawn_blocking(move || mounting::see_it_answer(&point, kind)).await {
            Ok(Ok(())) => voice.alive(),
            Ok(Err(_)) | Err(_) => return,
        }
    }
}

/// Take everything down, in the order in which nobody sees a half: service port, peers, mount, background work, store, keys.
async fn close(
    outcome: Result<(), Failure>,
    settings: &Settings,
    voice: &Voice,
    helper: &Arc<Helper>,
    in_place: InPlace,
) -> Result<(), Failure> {
    let said = match &outcome {
        Ok(()) => voice.apply(Event::StopRequested, "unmounting"),
        Err(failure) => {
            let shown = failure.shown().clone();
            tracing::error!(
                event = shown.code,
                stage = shown.stage.name(),
                hint = shown.hint,
                "{}",
                shown.detail
            );
            let stage = shown.detail.clone();
            voice.update(|status| status.failed(shown));
            voice.apply(Event::Failed, stage)
        }
    };
    if let Some(port) = in_place.port {
        // Who failed has nothing left to say: the port is shut and cut off at once.
        let drain = if outcome.is_ok() { settings.gateway.drain } else { Duration::ZERO };
        port.close(voice, drain).await;
    }
    in_place.group.leave(voice).await;
    let detached = match in_place.mounted {
        Some(mounted) => mounting::detach(mounted, voice, helper).await,
        None => Ok(()),
    };
    if in_place.gpus_ready {
        release::hold_gpus_back(helper).await;
    }
    let stores = in_place.stores.send_replace(Vec::new());
    for store in stores {
        if let Err(error) = store.close().await {
            tracing::warn!(event = "store.close", error = ?error, "the local ciphertext will be checked at the next start");
        }
    }
    outcome.and(said).and(detached)
}
