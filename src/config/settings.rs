//! The validated configuration: what the rest of cai works from. Built only by `config::load`.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use url::Url;

use super::gateway::Gateway;
use super::metrics::MetricsPlace;
use crate::keyring::Secret;
use crate::manifest::Pin;

/// Everything the operator decided, validated; fields say their unit in type or name.
pub struct Settings {
    /// Prefix of every path (`--root`), `/` normally. Paths below already have it.
    pub root: PathBuf,
    /// Key broker.
    pub trustee: Trustee,
    /// Where the ciphertext lies.
    pub oss: Oss,
    /// The model and how it is mounted.
    pub model: Model,
    /// Who decrypts a SAM model.
    pub sam: Sam,
    /// How the mount behaves and who may read it.
    pub mount: Mount,
    /// Local ciphertext.
    pub cache: Cache,
    /// What must outlive the cache: [`STATE_DIR`](super::STATE_DIR) with `root` applied. Belongs to the daemon's user.
    pub state_dir: PathBuf,
    /// Attestation of this machine.
    pub attest: Attest,
    /// Service port (`MODEL_SERVICE_PORT`).
    pub service_port: Option<u16>,
    /// How the service port is protected.
    pub gateway: Gateway,
    /// Who shares the model's ciphertext with this machine.
    pub peer: Peer,
    /// `metrics.listen`; `None`: no metrics.
    pub metrics: Option<MetricsPlace>,
    /// SHA-256 of the effective configuration without secrets, hex; logged at start.
    pub fingerprint: String,
}

/// Peer-to-peer.
#[derive(Debug, Clone)]
pub struct Peer {
    /// `MODEL_SHARING_PEER`; empty: nothing is shared.
    pub addresses: Vec<SocketAddr>,
    /// `peer.attestation`.
    pub attestation: PeerAttestation,
    /// `peer.port`.
    pub port: u16,
    /// `peer.upload_limit`: bytes sent per second, to all peers together; 0 = no limit.
    pub upload_limit: u64,
}

/// `peer.attestation`: who may take part.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum PeerAttestation {
    /// Whose evidence is affirmed.
    Required,
    /// Whoever has one of the addresses.
    Network,
}

impl PeerAttestation {
    /// As it is written.
    pub const fn name(self) -> &'static str {
        match self {
            PeerAttestation::Required => "required",
            PeerAttestation::Network => "network",
        }
    }
}

impl Settings {
    /// The part that attesting takes.
    pub fn attesting(&self) -> AttestSettings {
        AttestSettings {
            root: self.root.clone(),
            attest: self.attest.clone(),
            gpu_evidence: self.trustee.gpu_evidence,
            protocol: self.trustee.protocol,
        }
    }
}

/// What attesting takes from the configuration, all of it tuning.
#[derive(Debug, Clone)]
pub struct AttestSettings {
    /// As in [`Settings`].
    pub root: PathBuf,
    /// How this machine attests itself.
    pub attest: Attest,
    /// `trustee.gpu_evidence`.
    pub gpu_evidence: GpuForm,
    /// `trustee.protocol`: tells the generation of the verifier, where it is pinned.
    pub protocol: Protocol,
}

/// Key broker service.
#[derive(Debug, Clone)]
pub struct Trustee {
    /// Base URL (`TRUSTEE_URL`), its path without trailing slash (`Url` shows a bare host with one all the same);
    /// `{base}/kbs/v0/...` is called.
    pub url: Url,
    /// `MODEL_KEY_ID`, e.g. `kbs:///default/aliyun/model-decryption-key`; grammar checked by `kbs::ResourceUri`.
    pub key_id: String,
    /// `TRUSTEE_POLICY`.
    pub policy: String,
    /// `trustee.require_https`: refuse a plain http URL.
    pub require_https: bool,
    /// `trustee.ca_file`: PEM bundle that replaces the public roots.
    pub ca_file: Option<PathBuf>,
    /// `trustee.protocol`.
    pub protocol: Protocol,
    /// `trustee.key_algorithm`.
    pub key_algorithm: KeyAlgorithm,
    /// `trustee.token_cert`: PEM file with the signers of attestation tokens, or their issuers.
    pub token_cert: Option<PathBuf>,
    /// `trustee.gpu_evidence`.
    pub gpu_evidence: GpuForm,
    /// `trustee.timeout_secs`: one request, connect included.
    pub timeout: Duration,
    /// `trustee.retry_limit_secs`: how long transient failures are retried before the agent gives up (exit 69).
    pub retry_limit: Duration,
    /// How long one attestation is good for.
    pub lease: Lease,
}

/// How long the key may be used after one attestation.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Lease {
    /// `trustee.reattest_interval_secs`: how often it is renewed; `None`: it does not end.
    pub interval: Option<Duration>,
    /// `trustee.grace_secs`: how long the model is served on while nobody answers about the next one.
    pub grace: Duration,
}

/// Which KBS protocol dialect to speak.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Deserialize)]
pub enum Protocol {
    /// Start at 0.4.0 and follow the server's refusal.
    #[serde(rename = "auto")]
    Auto,
    /// Only 0.1.0.
    #[serde(rename = "0.1.0")]
    V0_1_0,
    /// Only 0.1.1.
    #[serde(rename = "0.1.1")]
    V0_1_1,
    /// Only 0.2.0.
    #[serde(rename = "0.2.0")]
    V0_2_0,
    /// Only 0.4.0.
    #[serde(rename = "0.4.0")]
    V0_4_0,
}

/// `trustee.key_algorithm`: how a secret is encrypted to the key pair of a handshake, by its JWE name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Deserialize)]
pub enum KeyAlgorithm {
    /// The best that the protocol version has.
    #[serde(rename = "auto")]
    Auto,
    /// P-256 key agreement with AES key wrap (RFC 7518 section 4.6).
    #[serde(rename = "ECDH-ES+A256KW")]
    EcdhEsA256Kw,
    /// RSAES-OAEP with SHA-256.
    #[serde(rename = "RSA-OAEP-256")]
    RsaOaep256,
    /// RSAES-PKCS1-v1_5; protocols 0.1.x have nothing else.
    #[serde(rename = "RSA1_5")]
    Rsa1_5,
}

/// `trustee.gpu_evidence`: the form in which GPU evidence is sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum GpuForm {
    /// As [`GpuForm::Alibaba`], which every known server takes or ignores.
    Auto,
    /// Inside the TDX evidence object.
    Alibaba,
    /// As additional evidence of its own.
    Upstream,
    /// Not sent; checked on this machine all the same.
    None,
}

/// Object store.
pub struct Oss {
    /// `MODEL_OSS_ENDPOINT`, scheme and host (and port).
    pub endpoint: Url,
    /// Bucket of `MODEL_OSS_BUCKET_PATH`.
    pub bucket: String,
    /// Key prefix of `MODEL_OSS_BUCKET_PATH`: empty, or without leading and with exactly one trailing slash.
    pub prefix: String,
    /// `MODEL_OSS_REGION`, or derived from the endpoint; needed by the V4 signature only.
    pub region: Option<String>,
    /// `oss.credentials` and what belongs to the choice.
    pub credentials: Credentials,
    /// The env file that static credentials came from, to be read again when OSS calls them invalid.
    pub env_file: Option<PathBuf>,
    /// `oss.signature`.
    pub signature: Signature,
    /// `oss.addressing`.
    pub addressing: Addressing,
    /// `oss.proxy`: scheme, host and port of an HTTP proxy that requests to the endpoint go to.
    pub proxy: Option<Url>,
    /// `oss.ca_file`: PEM bundle that replaces the public roots.
    pub ca_file: Option<PathBuf>,
    /// `oss.concurrency`: requests in flight, all objects together, 1..=256.
    pub concurrency: usize,
    /// `oss.bandwidth_limit`: bytes received per second, all requests together; 0 = no limit.
    pub bandwidth_limit: u64,
    /// `oss.timeout_secs`: one request without a byte of progress.
    pub timeout: Duration,
}

impl Oss {
    /// Anonymous access to a whole bucket, everything else as built in: what tests and tools start from.
    pub fn anonymous(endpoint: Url, bucket: &str) -> Self {
        Oss {
            endpoint,
            bucket: bucket.to_owned(),
            prefix: String::new(),
            region: None,
            credentials: Credentials::Anonymous,
            env_file: None,
            signature: Signature::V4,
            addressing: Addressing::Auto,
            proxy: None,
            ca_file: None,
            concurrency: 32,
            bandwidth_limit: 0,
            timeout: Duration::from_secs(60),
        }
    }

    /// Bucket and prefix in the form of `MODEL_OSS_BUCKET_PATH`: `conf-ai:/qwen3-32b/`.
    pub fn location(&self) -> String {
        format!("{}:/{}", self.bucket, self.prefix)
    }
}

/// Who cai is for the object store. Chosen by the operator; nothing is looked for in the environment.
pub enum Credentials {
    /// Nobody.
    Anonymous,
    /// A lasting or temporary access key of `cai.env`.
    Static(OssCredentials),
    /// The RAM role of this ECS instance, through the instance metadata service.
    EcsRamRole(EcsRamRole),
    /// A RAM role assumed with an OIDC token (RRSA).
    Oidc(Oidc),
}

/// `oss.credentials`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum CredentialChoice {
    /// The access key where there is one, else anonymous.
    Auto,
    /// See [`Credentials::Static`].
    Static,
    /// See [`Credentials::EcsRamRole`].
    EcsRamRole,
    /// See [`Credentials::Oidc`].
    Oidc,
    /// See [`Credentials::Anonymous`].
    Anonymous,
}

/// The RAM role of this ECS instance.
#[derive(Debug, Clone)]
pub struct EcsRamRole {
    /// `oss.ram_role`; `None`: the metadata service is asked for it.
    pub name: Option<String>,
    /// `oss.metadata`.
    pub metadata: Metadata,
    /// As in [`Settings`]: sandbox builds find the address of their metadata service below it.
    pub root: PathBuf,
}

/// `oss.metadata`: how the instance metadata service is asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Metadata {
    /// With a session token only.
    Hardened,
    /// Also without, where the service gives none.
    Normal,
}

/// A RAM role assumed with an OIDC token.
#[derive(Debug, Clone)]
pub struct Oidc {
    /// `oss.role_arn`.
    pub role_arn: String,
    /// `oss.oidc_provider_arn`.
    pub provider_arn: String,
    /// `oss.oidc_token_file`, with `root` applied.
    pub token_file: PathBuf,
    /// `oss.sts_endpoint`.
    pub sts_endpoint: Url,
}

/// `oss.signature`: how requests are signed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Signature {
    /// `OSS4-HMAC-SHA256`, bound to a region.
    V4,
    /// `OSS`, HMAC-SHA1.
    V1,
}

/// `oss.addressing`: where the bucket's name goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Addressing {
    /// In front of the endpoint's name; in the path where the endpoint is an address.
    Auto,
    /// In the path.
    Path,
    /// Nowhere: the endpoint is a domain of the bucket's own.
    Cname,
}

/// Access key of the object store.
pub struct OssCredentials {
    /// `MODEL_OSS_ACCESS_KEY_ID`.
    pub access_key_id: String,
    /// `MODEL_OSS_SECRET_ACCESS_KEY`.
    pub secret_access_key: Secret,
    /// `MODEL_OSS_SESSION_TOKEN`.
    pub session_token: Option<Secret>,
}

/// The model.
#[derive(Debug, Clone)]
pub struct Model {
    /// `MODEL_ENCRYPTION_METHOD`.
    pub encryption: Encryption,
    /// `MODEL_WAIT`.
    pub wait: Wait,
    /// `model.publisher_key` and `model.manifest_sha256`.
    pub pin: Pin,
}

/// The adapter to the vendor's runtime.
#[derive(Debug, Clone)]
pub struct Sam {
    /// `sam.adapter_sha256`.
    pub adapter_sha256: Option<[u8; 32]>,
    /// `sam.key_id`; the last part of `MODEL_OSS_BUCKET_PATH` by default.
    pub key_id: String,
    /// `sam.ready_timeout_secs`.
    pub ready_timeout: Duration,
}

/// How the ciphertext is encrypted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Encryption {
    /// gocryptfs v2 directory.
    Gocryptfs,
    /// The vendor's SAM format, through its adapter.
    Sam,
}

/// When the agent says it is ready.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Wait {
    /// As soon as the metadata is there and the mount can be read.
    Metadata,
    /// When every byte is local.
    Full,
}

/// The mount point.
#[derive(Debug, Clone)]
pub struct Mount {
    /// `MODEL_MOUNT_POINT`, with `root` applied.
    pub point: PathBuf,
    /// `mount.uid`: owner shown for every file.
    pub uid: u32,
    /// `mount.gid`: group shown for every file; the number of group `cai-model` by default, 0 where it does not exist.
    pub gid: u32,
    /// `mount.permissions`: permission bits of files; directories add `x` where `r` is.
    pub permissions: u32,
    /// `mount.mode`.
    pub mode: MountMode,
    /// `mount.memory_bytes`: most memory for decrypted files; 0 = derived from the machine's.
    pub memory_bytes: u64,
    /// `mount.idle_secs`: how long load mode keeps a file that nobody has open.
    pub idle: Duration,
    /// `mount.threads`: FUSE worker threads; 0 = one per core, but 16 to 64.
    pub threads: usize,
    /// `mount.readahead_kib`: kernel read-ahead of the mount in KiB.
    pub readahead_kib: u32,
    /// `mount.read_timeout_secs`: how long a read waits for its bytes before `EIO`.
    pub read_timeout: Duration,
}

impl Settings {
    /// Whether every byte is to be local before anything is shown: by wish, or because ram mode decrypts them all first.
    pub fn waits_for_all(&self) -> bool {
        self.model.wait == Wait::Full || self.mount.mode == MountMode::Ram
    }
}

/// `mount.mode`: how files are decrypted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum MountMode {
    /// [`MountMode::Load`] where the machine can, else [`MountMode::OnDemand`].
    Auto,
    /// Block by block as they are read.
    OnDemand,
    /// A weight file as a whole when it is opened.
    Load,
    /// The whole model before it is offered.
    Ram,
}

/// `cache.mode`: what is kept of the encrypted model on the disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum CacheMode {
    /// The first of the others that fits.
    Auto,
    /// All of it.
    Full,
    /// As much as fits.
    Bounded,
    /// Nothing.
    None,
}

/// Local ciphertext cache.
#[derive(Debug, Clone)]
pub struct Cache {
    /// `cache.dir`, with `root` applied.
    pub dir: PathBuf,
    /// `cache.mode`.
    pub mode: CacheMode,
    /// `cache.size_bytes`: most bytes kept; 0 = what is free.
    pub size_bytes: u64,
    /// `cache.reserve_bytes`: free space that is never taken.
    pub reserve_bytes: u64,
}

/// How this machine attests itself.
#[derive(Debug, Clone)]
pub struct Attest {
    /// `attest.tee`.
    pub tee: TeeChoice,
    /// `attest.quote`.
    pub quote: QuoteChoice,
    /// `attest.event_log`.
    pub event_log: EventLog,
    /// `attest.require_gpu`; `None` means where the machine has an NVIDIA GPU.
    pub require_gpu: Option<bool>,
}

/// `attest.quote`: where TDX quotes come from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum QuoteChoice {
    /// The first that works, in the order below.
    Auto,
    /// `/sys/kernel/config/tsm/report` (Linux 6.7 and back-ports).
    ConfigfsTsm,
    /// `/dev/tdx_guest` and the host's Quote Generation Service over vsock.
    Qgs,
    /// Intel's `libtdx_attest.so.1`.
    LibtdxAttest,
}

/// `attest.event_log`: whether the boot event log goes with the quote.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum EventLog {
    /// When it replays to the registers of the quote.
    Auto,
    /// Also when it does not.
    Always,
    /// Not at all.
    Never,
}

/// `attest.tee`: which attester to use.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum TeeChoice {
    /// Detect the TEE; none found is an error.
    Auto,
    /// Intel TDX.
    Tdx,
    /// Trustee's stand-in for tests; refused at load unless built with feature `sandbox`.
    Sample,
}
