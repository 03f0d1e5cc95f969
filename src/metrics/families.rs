//! Every metric: its name and meaning, and the fact that it is read from. `docs/metrics.md` is held against this table.

use std::time::{Duration, SystemTime};

use super::text::Samples;
use crate::agent::state::State;
use crate::agent::status::{Phase, ServicePort, Shown, Standing, Status, unix_seconds};
use crate::mount::Counts;

/// What a value does over time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// It rises, and begins at 0 with the process.
    Counter,
    /// It is what it is now.
    Gauge,
    /// Counts of observations by upper bound, with their sum.
    Histogram,
}

impl Kind {
    /// As the text format writes it.
    pub const fn name(self) -> &'static str {
        match self {
            Kind::Counter => "counter",
            Kind::Gauge => "gauge",
            Kind::Histogram => "histogram",
        }
    }
}

/// What there is to tell.
pub(super) struct Facts<'a> {
    pub(super) status: &'a Status,
    pub(super) mount: Counts,
}

/// All samples of one name.
pub struct Family {
    /// By Prometheus' conventions: the base unit, and `_total` behind what only rises.
    pub name: &'static str,
    /// What it does over time.
    pub kind: Kind,
    /// Names of its labels.
    pub labels: &'static [&'static str],
    /// What it means.
    pub help: &'static str,
    pub(super) read: fn(&Facts<'_>, &mut Samples<'_>),
}

use Kind::{Counter, Gauge, Histogram};

const fn family(
    name: &'static str,
    kind: Kind,
    labels: &'static [&'static str],
    help: &'static str,
    read: fn(&Facts<'_>, &mut Samples<'_>),
) -> Family {
    Family { name, kind, labels, help, read }
}

/// Every metric, in the order in which they are told.
#[rustfmt::skip]
pub static FAMILIES: &[Family] = &[
    family("cai_build_info", Gauge, &["version"], "Always 1, with the version of cai.",
        |_, out| out.add(&[env!("CARGO_PKG_VERSION")], 1)),
    family("cai_model_info", Gauge, &["model", "revision"],
        "Always 1, with where the model lies and which revision of it is served; empty before that is known.",
        |facts, out| out.add(&[&facts.status.model, &facts.status.model_revision], 1)),
    family("cai_state", Gauge, &["state"], "1 for the state that cai is in, 0 for the others.",
        |facts, out| for state in State::ALL {
            out.add(&[state.name()], u8::from(state == facts.status.state));
        }),
    family("cai_state_seconds_total", Counter, &["state"],
        "How long cai was in each state since start, by the host's clock.", state_seconds),
    family("cai_failures_total", Counter, &["code"], "Failures that were told, by code.",
        |facts, out| facts.status.failures.iter().for_each(|(code, count)| out.add(&[code], count))),
    family("cai_notices", Gauge, &[], "Things the operator chose and should not forget, as cai status lists them.",
        |facts, out| out.add(&[], facts.status.notices.len())),

    family("cai_model_bytes", Gauge, &[], "Ciphertext bytes of the whole model; 0 before it is listed.",
        |facts, out| out.add(&[], facts.status.progress.bytes_total)),
    family("cai_model_local_bytes", Gauge, &[], "Ciphertext bytes of the model that are here and verified.",
        |facts, out| out.add(&[], facts.status.progress.bytes_done)),
    family("cai_ciphertext_bytes_total", Counter, &["source"],
        "Ciphertext bytes by where they came from: cache is what was found on the disk at start; oss and peer were fetched since.",
        |facts, out| facts.status.progress.by_source.iter().for_each(|(source, bytes)| out.add(&[source], bytes))),
    family("cai_fetch_retries_total", Counter, &[], "Fetches that were repeated.",
        |facts, out| out.add(&[], facts.status.progress.retries)),
    family("cai_cache_active", Gauge, &[], "1 while what is fetched is kept on the disk, 0 where it is not: by choice, or because the disk is full.",
        |facts, out| out.add(&[], u8::from(facts.status.progress.caching))),
    family("cai_object_store_throttled_total", Counter, &[], "Answers of the object store that asked for less.",
        |facts, out| out.add(&[], facts.status.object_store.throttled)),
    family("cai_object_store_concurrency", Gauge, &[], "Requests to the object store that may be in flight now.",
        |facts, out| out.add(&[], facts.status.object_store.concurrency)),
    family("cai_object_store_credentials_expire_timestamp_seconds", Gauge, &[],
        "When the credentials for the object store expire, seconds since 1970; absent where they do not, or nobody knows.",
        |facts, out| out.time(&[], facts.status.object_store.expires)),

    family("cai_mount_read_seconds", Histogram, &["data"],
        "How long the kernel waited for a read, by where the file was: local as a whole, or remote in part. What the kernel's own cache answers is not here.",
        |facts, out| {
            out.reads("local", &facts.mount.local);
            out.reads("remote", &facts.mount.remote);
        }),
    family("cai_mount_read_bytes_total", Counter, &[], "Plaintext bytes given to the kernel.",
        |facts, out| out.add(&[], facts.mount.bytes)),
    family("cai_mount_read_errors_total", Counter, &[], "Reads answered with an error: damaged, or not to be had in time.",
        |facts, out| out.add(&[], facts.mount.errors)),
    family("cai_decrypt_bytes_total", Counter, &[], "Plaintext bytes decrypted, for the kernel or into memory.",
        |facts, out| out.add(&[], facts.mount.decrypted)),
    family("cai_decrypt_seconds_total", Counter, &[], "How long decrypting took, of all threads together.",
        |facts, out| out.seconds(&[], facts.mount.decrypting)),
    family("cai_memory_files_bytes", Gauge, &[], "Plaintext bytes of whole files in memory (mount.mode load and ram).",
        |facts, out| out.add(&[], facts.mount.in_memory)),

    family("cai_keys_released_total", Counter, &[], "Keys that were released.",
        |facts, out| out.add(&[], facts.status.key_generation)),
    family("cai_attested_timestamp_seconds", Gauge, &[],
        "When the verifier accepted our evidence, seconds since 1970; absent before.",
        |facts, out| out.time(&[], facts.status.attested_at)),
    family("cai_attestation_expires_timestamp_seconds", Gauge, &[],
        "When the attestation token expires, seconds since 1970; absent where nobody knows.",
        |facts, out| out.time(&[], facts.status.attestation_expires)),
    family("cai_attestation_interval_seconds", Gauge, &[],
        "How often the attestation is renewed (trustee.reattest_interval_secs); 0: never.",
        |facts, out| out.seconds(&[], facts.status.lease.interval.unwrap_or_default())),
    family("cai_attestation_grace_seconds", Gauge, &[],
        "How long cai serves on while nobody answers about a new attestation (trustee.grace_secs).",
        |facts, out| out.seconds(&[], facts.status.lease.grace)),
    family("cai_rotations_total", Counter, &["outcome"], "Rotations that are over: unchanged, rewrapped, replaced, failed.",
        |facts, out| facts.status.rotations.iter().for_each(|(outcome, count)| out.add(&[outcome], count))),
    family("cai_rotation_active", Gauge, &[], "1 while a rotation is under way.",
        |facts, out| {
            let active = |rotation: &crate::agent::status::Rotation| !matches!(rotation.phase, Phase::Over(_));
            out.add(&[], u8::from(facts.status.rotation.as_ref().is_some_and(active)));
        }),
    family("cai_replaced_open_files", Gauge, &[], "Open files and directories of revisions that were replaced.",
        |facts, out| out.add(&[], facts.status.left_open)),

    family("cai_gateway_up", Gauge, &[], "1 while the encrypted service port is open.",
        |facts, out| out.add(&[], u8::from(facts.status.service_port.is_some()))),
    family("cai_gateway_evidence_timestamp_seconds", Gauge, &["format"],
        "When the evidence in the certificate was made, by format, seconds since 1970; absent where it is too old to be shown.",
        |facts, out| for (format, at) in facts.status.service_port.iter().flat_map(|port| &port.evidence_at) {
            out.add(&[format], unix_seconds(*at));
        }),
    family("cai_gateway_refresh_interval_seconds", Gauge, &[], "How often the certificate is made anew (gateway.refresh_secs).",
        |facts, out| port(facts, out, |port| port.refresh_secs)),
    family("cai_gateway_refresh_failing", Gauge, &[], "1 while the certificate could not be made anew.",
        |facts, out| port(facts, out, |port| u64::from(!port.refresh_error.is_empty()))),
    family("cai_gateway_open_connections", Gauge, &[], "Connections of clients that are open.",
        |facts, out| port(facts, out, |port| port.counts.connections)),
    family("cai_gateway_open_streams", Gauge, &[], "Tunnelled connections to the backend that are open.",
        |facts, out| port(facts, out, |port| port.counts.streams)),
    family("cai_gateway_streams_total", Counter, &[], "Tunnelled connections to the backend.",
        |facts, out| port(facts, out, |port| port.counts.streams_total)),
    family("cai_gateway_handshakes_total", Counter, &[], "TLS handshakes that succeeded.",
        |facts, out| port(facts, out, |port| port.counts.handshakes_done)),
    family("cai_gateway_refused_total", Counter, &[],
        "Connections and streams that were refused: handshakes that failed, plaintext, too many, a backend that was not there.",
        |facts, out| port(facts, out, |port| port.counts.refused)),
    family("cai_gateway_plaintext_checks_total", Counter, &[], "Health checks that were passed on in plaintext.",
        |facts, out| port(facts, out, |port| port.counts.plaintext_checks)),
    family("cai_gateway_received_bytes_total", Counter, &[], "Plaintext bytes from clients to the backend.",
        |facts, out| port(facts, out, |port| port.counts.received)),
    family("cai_gateway_sent_bytes_total", Counter, &[], "Plaintext bytes from the backend to clients.",
        |facts, out| port(facts, out, |port| port.counts.sent)),

    family("cai_peer_connected", Gauge, &["peer"], "1 while the machine at that address is connected.",
        |facts, out| peers(facts, out, |peer| u64::from(peer.standing == Standing::Connected))),
    family("cai_peer_distrusted", Gauge, &["peer"], "1 while it is not asked, because it sent wrong bytes.",
        |facts, out| peers(facts, out, |peer| peer.distrusted.into())),
    family("cai_peer_chunks", Gauge, &["peer"], "Chunks that it says it has.",
        |facts, out| peers(facts, out, |peer| peer.chunks)),
    family("cai_peer_received_bytes_total", Counter, &["peer"], "Ciphertext bytes that came from it and were right.",
        |facts, out| peers(facts, out, |peer| peer.counts.received)),
    family("cai_peer_sent_bytes_total", Counter, &["peer"], "Ciphertext bytes that went to it.",
        |facts, out| peers(facts, out, |peer| peer.counts.sent)),
    family("cai_peer_wrong_chunks_total", Counter, &["peer"], "Chunks from it that were wrong.",
        |facts, out| peers(facts, out, |peer| peer.counts.wrong)),
    family("cai_peer_failed_chunks_total", Counter, &["peer"], "Chunks that it was asked for and did not bring.",
        |facts, out| peers(facts, out, |peer| peer.counts.failed)),
];

/// States it has left, and the one it is in.
fn state_seconds(facts: &Facts<'_>, out: &mut Samples<'_>) {
    let Status { state: present, since, spent, .. } = facts.status;
    for state in State::ALL {
        let before = spent.get(state.name()).copied().unwrap_or_default();
        let lately = SystemTime::now().duration_since(*since).unwrap_or_default();
        out.seconds(&[state.name()], before + if state == *present { lately } else { Duration::ZERO });
    }
}

/// One value of the service port, while there is one.
fn port(facts: &Facts<'_>, out: &mut Samples<'_>, value: fn(&ServicePort) -> u64) {
    if let Some(port) = &facts.status.service_port {
        out.add(&[], value(port));
    }
}

/// One value of each peer.
fn peers(facts: &Facts<'_>, out: &mut Samples<'_>, value: fn(&Shown) -> u64) {
    for peer in &facts.status.peers {
        out.add(&[&peer.address.to_string()], value(peer));
    }
}
