//! The effective configuration as text, without secrets: for the fingerprint and for `cai check-config`.

use std::path::Path;

use sha2::{Digest, Sha256};

use super::gateway::Entrance;
use super::settings::{
    Addressing, CacheMode, Credentials, Encryption, EventLog, GpuForm, KeyAlgorithm, Metadata, MountMode,
    Protocol, QuoteChoice, Settings, Signature, TeeChoice, Wait,
};

/// What a running agent takes from a new reading of the files: the lease, and the key of the bucket.
const LIVE: &[&str] = &[
    "trustee.reattest_interval_secs",
    "trustee.grace_secs",
    "MODEL_OSS_ACCESS_KEY_ID",
    "MODEL_OSS_SECRET_ACCESS_KEY",
    "MODEL_OSS_SESSION_TOKEN",
];

impl Settings {
    /// Keys that have other values than in `old`: those that a running agent takes on, and those that need a restart.
    pub fn changed_since(&self, old: &Settings) -> (Vec<&'static str>, Vec<&'static str>) {
        let (now, before) = (self.effective(), old.effective());
        let changed = now.into_iter().zip(before).filter(|(now, before)| now.1 != before.1);
        // A key is replaced by a key: another kind of credential is another client.
        let key = |settings: &Settings| matches!(settings.oss.credentials, Credentials::Static(_));
        let same_kind = key(self) && key(old);
        changed
            .map(|((name, _), _)| name)
            .partition(|name| LIVE.contains(name) && (same_kind || !name.starts_with("MODEL_OSS_")))
    }

    /// Every key with the value that is in effect, defaults included, in the order of the shipped files. Secrets are
    /// `set` or empty; paths have `root` applied.
    pub fn effective(&self) -> Vec<(&'static str, String)> {
        let Settings {
            root: _,
            trustee,
            oss,
            model,
            sam,
            mount,
            cache,
            state_dir: _,
            attest,
            service_port,
            gateway,
            peer,
            metrics,
            fingerprint: _,
        } = self;
        let path = |path: &Path| path.display().to_string();
        let file = |file: &Option<std::path::PathBuf>| file.as_deref().map(path).unwrap_or_default();
        let (key, role, oidc) = match &oss.credentials {
            Credentials::Anonymous => (None, None, None),
            Credentials::Static(key) => (Some(key), None, None),
            Credentials::EcsRamRole(role) => (None, Some(role), None),
            Credentials::Oidc(oidc) => (None, None, Some(oidc)),
        };
        let (listen, backend) = match gateway.entrance {
            Some(Entrance::Mapping { listen, backend }) => (Some(listen), Some(backend)),
            Some(Entrance::Capture { .. }) | None => (None, None),
        };
        let set = |is_set: bool| if is_set { "set".to_owned() } else { String::new() };
        vec![
            ("TRUSTEE_URL", trustee.url.to_string()),
            ("MODEL_KEY_ID", trustee.key_id.clone()),
            ("MODEL_OSS_BUCKET_PATH", oss.location()),
            ("MODEL_OSS_ENDPOINT", oss.endpoint.to_string()),
            ("MODEL_OSS_REGION", oss.region.clone().unwrap_or_default()),
            ("MODEL_OSS_ACCESS_KEY_ID", key.map(|key| key.access_key_id.clone()).unwrap_or_default()),
            ("MODEL_OSS_SECRET_ACCESS_KEY", set(key.is_some())),
            ("MODEL_OSS_SESSION_TOKEN", set(key.is_some_and(|key| key.session_token.is_some()))),
            ("MODEL_ENCRYPTION_METHOD", encryption(model.encryption).to_owned()),
            ("MODEL_MOUNT_POINT", path(&mount.point)),
            ("MODEL_WAIT", wait(model.wait).to_owned()),
            ("MODEL_SERVICE_PORT", service_port.map(|port| port.to_string()).unwrap_or_default()),
            ("TRUSTEE_POLICY", trustee.policy.clone()),
            (
                "MODEL_SHARING_PEER",
                peer.addresses.iter().map(ToString::to_string).collect::<Vec<_>>().join(" "),
            ),
            ("trustee.require_https", trustee.require_https.to_string()),
            ("trustee.ca_file", file(&trustee.ca_file)),
            ("trustee.protocol", protocol(trustee.protocol).to_owned()),
            ("trustee.key_algorithm", key_algorithm(trustee.key_algorithm).to_owned()),
            ("trustee.token_cert", file(&trustee.token_cert)),
            ("trustee.gpu_evidence", gpu_form(trustee.gpu_evidence).to_owned()),
            ("trustee.timeout_secs", trustee.timeout.as_secs().to_string()),
            ("trustee.retry_limit_secs", trustee.retry_limit.as_secs().to_string()),
            (
                "trustee.reattest_interval_secs",
                trustee.lease.interval.map_or(0, |interval| interval.as_secs()).to_string(),
            ),
            ("trustee.grace_secs", trustee.lease.grace.as_secs().to_string()),
            ("attest.tee", tee(attest.tee).to_owned()),
            ("attest.quote", quote(attest.quote).to_owned()),
            ("attest.event_log", event_log(attest.event_log).to_owned()),
            ("attest.require_gpu", attest.require_gpu.map(|flag| flag.to_string()).unwrap_or_default()),
            ("model.publisher_key", model.pin.publisher.map(|key| key.to_string()).unwrap_or_default()),
            ("model.manifest_sha256", model.pin.identity.map(|id| id.to_string()).unwrap_or_default()),
            ("sam.adapter_sha256", sam.adapter_sha256.map(hex::encode).unwrap_or_default()),
            ("sam.key_id", sam.key_id.clone()),
            ("sam.ready_timeout_secs", sam.ready_timeout.as_secs().to_string()),
            ("oss.credentials", credentials(&oss.credentials).to_owned()),
            ("oss.ram_role", role.and_then(|role| role.name.clone()).unwrap_or_default()),
            ("oss.metadata", role.map(|role| metadata(role.metadata).to_owned()).unwrap_or_default()),
            ("oss.role_arn", oidc.map(|oidc| oidc.role_arn.clone()).unwrap_or_default()),
            ("oss.oidc_provider_arn", oidc.map(|oidc| oidc.provider_arn.clone()).unwrap_or_default()),
            ("oss.oidc_token_file", oidc.map(|oidc| path(&oidc.token_file)).unwrap_or_default()),
            ("oss.sts_endpoint", oidc.map(|oidc| oidc.sts_endpoint.to_string()).unwrap_or_default()),
            ("oss.signature", signature(oss.signature).to_owned()),
            ("oss.addressing", addressing(oss.addressing).to_owned()),
            ("oss.proxy", oss.proxy.as_ref().map(ToString::to_string).unwrap_or_default()),
            ("oss.ca_file", file(&oss.ca_file)),
            ("oss.concurrency", oss.concurrency.to_string()),
            ("oss.bandwidth_limit", oss.bandwidth_limit.to_string()),
            ("oss.timeout_secs", oss.timeout.as_secs().to_string()),
            ("mount.uid", mount.uid.to_string()),
            ("mount.gid", mount.gid.to_string()),
            ("mount.permissions", format!("{:04o}", mount.permissions)),
            ("mount.mode", mount_mode(mount.mode).to_owned()),
            ("mount.memory_bytes", mount.memory_bytes.to_string()),
            ("mount.idle_secs", mount.idle.as_secs().to_string()),
            ("mount.threads", mount.threads.to_string()),
            ("mount.readahead_kib", mount.readahead_kib.to_string()),
            ("mount.read_timeout_secs", mount.read_timeout.as_secs().to_string()),
            ("cache.dir", path(&cache.dir)),
            ("cache.mode", cache_mode(cache.mode).to_owned()),
            ("cache.size_bytes", cache.size_bytes.to_string()),
            ("cache.reserve_bytes", cache.reserve_bytes.to_string()),
            ("gateway.listen", listen.map(|address| address.to_string()).unwrap_or_default()),
            ("gateway.backend", backend.map(|address| address.to_string()).unwrap_or_default()),
            ("gateway.capture_port", gateway.capture_port.to_string()),
            ("gateway.certificate", gateway.certificate.name().to_owned()),
            ("gateway.refresh_secs", gateway.refresh.as_secs().to_string()),
            ("gateway.plaintext_paths", format!("{:?}", gateway.plaintext_paths)),
            ("gateway.drain_secs", gateway.drain.as_secs().to_string()),
            ("peer.attestation", peer.attestation.name().to_owned()),
            ("peer.port", peer.port.to_string()),
            ("peer.upload_limit", peer.upload_limit.to_string()),
            ("metrics.listen", metrics.as_ref().map(ToString::to_string).unwrap_or_default()),
        ]
    }
}

/// SHA-256 over the effective configuration, hex. Changes whenever a key other than a secret does.
pub(super) fn fingerprint(settings: &Settings) -> String {
    let mut hash = Sha256::new();
    for (name, value) in settings.effective() {
        // Lengths keep (`a`, `bc`) and (`ab`, `c`) apart.
        hash.update(format!("{} {} {name}={value}\n", name.len(), value.len()));
    }
    hex::encode(hash.finalize())
}

const fn credentials(credentials: &Credentials) -> &'static str {
    match credentials {
        Credentials::Anonymous => "anonymous",
        Credentials::Static(_) => "static",
        Credentials::EcsRamRole(_) => "ecs-ram-role",
        Credentials::Oidc(_) => "oidc",
    }
}

const fn metadata(metadata: Metadata) -> &'static str {
    match metadata {
        Metadata::Hardened => "hardened",
        Metadata::Normal => "normal",
    }
}

const fn signature(signature: Signature) -> &'static str {
    match signature {
        Signature::V4 => "v4",
        Signature::V1 => "v1",
    }
}

const fn addressing(addressing: Addressing) -> &'static str {
    match addressing {
        Addressing::Auto => "auto",
        Addressing::Path => "path",
        Addressing::Cname => "cname",
    }
}

const fn encryption(encryption: Encryption) -> &'static str {
    match encryption {
        Encryption::Gocryptfs => "gocryptfs",
        Encryption::Sam => "sam",
    }
}

const fn wait(wait: Wait) -> &'static str {
    match wait {
        Wait::Metadata => "metadata",
        Wait::Full => "full",
    }
}

const fn cache_mode(mode: CacheMode) -> &'static str {
    match mode {
        CacheMode::Auto => "auto",
        CacheMode::Full => "full",
        CacheMode::Bounded => "bounded",
        CacheMode::None => "none",
    }
}

const fn mount_mode(mode: MountMode) -> &'static str {
    match mode {
        MountMode::Auto => "auto",
        MountMode::OnDemand => "on-demand",
        MountMode::Load => "load",
        MountMode::Ram => "ram",
    }
}

const fn protocol(protocol: Protocol) -> &'static str {
    match protocol {
        Protocol::Auto => "auto",
        Protocol::V0_1_0 => "0.1.0",
        Protocol::V0_1_1 => "0.1.1",
        Protocol::V0_2_0 => "0.2.0",
        Protocol::V0_4_0 => "0.4.0",
    }
}

const fn key_algorithm(algorithm: KeyAlgorithm) -> &'static str {
    match algorithm {
        KeyAlgorithm::Auto => "auto",
        KeyAlgorithm::EcdhEsA256Kw => "ECDH-ES+A256KW",
        KeyAlgorithm::RsaOaep256 => "RSA-OAEP-256",
        KeyAlgorithm::Rsa1_5 => "RSA1_5",
    }
}

const fn gpu_form(form: GpuForm) -> &'static str {
    match form {
        GpuForm::Auto => "auto",
        GpuForm::Alibaba => "alibaba",
        GpuForm::Upstream => "upstream",
        GpuForm::None => "none",
    }
}

const fn quote(choice: QuoteChoice) -> &'static str {
    match choice {
        QuoteChoice::Auto => "auto",
        QuoteChoice::ConfigfsTsm => "configfs-tsm",
        QuoteChoice::Qgs => "qgs",
        QuoteChoice::LibtdxAttest => "libtdx-attest",
    }
}

const fn event_log(choice: EventLog) -> &'static str {
    match choice {
        EventLog::Auto => "auto",
        EventLog::Always => "always",
        EventLog::Never => "never",
    }
}

const fn tee(tee: TeeChoice) -> &'static str {
    match tee {
        TeeChoice::Auto => "auto",
        TeeChoice::Tdx => "tdx",
        TeeChoice::Sample => "sample",
    }
}
