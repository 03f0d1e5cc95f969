//! Variables and tuning -> [`Settings`]: each value parsed, then the values held against each other. Pure.
//!
//! Every part is looked at even when another one failed, so that one run lists every problem.

use std::net::SocketAddr;
use std::path::Path;
use std::time::Duration;

use super::keys::{self, Key};
use super::report::{Findings, Problem, Reported};
use super::settings::{
    Attest, Cache, CacheMode, Encryption, Lease, Model, Mount, MountMode, Oss, Peer, Sam, Settings,
    TeeChoice, Trustee, Wait,
};
use super::tuning::{Size, Tuning};
use super::values;
use super::variables::Variables;
use super::{Facts, STATE_DIR, check_oss, gateway, metrics, summary, under};
use crate::manifest::{Identity, Pin, PublicKey};

/// The settings, or what stands against them among `findings`.
pub(super) fn settings(
    variables: &Variables,
    tuning: Result<Tuning, Reported>,
    root: &Path,
    facts: &Facts,
    findings: &mut Findings,
) -> Result<Settings, Reported> {
    let tuning = tuning.as_ref().map_err(|reported| *reported);
    let service_port = variables.optional(&keys::MODEL_SERVICE_PORT, findings, values::port);
    let peers = variables.optional(&keys::MODEL_SHARING_PEER, findings, values::peers);
    let peer = tuning.and_then(|tuning| peer(peers, tuning, findings));
    let model = model(variables, tuning, findings);
    let trustee = trustee(variables, tuning, root, findings);
    let oss = check_oss::oss(variables, tuning, root, findings);
    let mount = mount(variables, tuning, root, facts, findings);
    let attest = tuning.and_then(|tuning| attest(tuning, facts, findings));
    let cache = tuning.and_then(|tuning| cache(tuning, root, findings));
    let gateway = match (tuning, &service_port) {
        (Ok(tuning), Ok(port)) => gateway::gateway(*port, variables, tuning, findings),
        (Err(reported), _) | (Ok(_), &Err(reported)) => Err(reported),
    };
    let metrics = tuning.and_then(|tuning| metrics::place(tuning, root, findings));
    let (mount, cache) = apart(mount?, cache?, variables, findings)?;
    let (model, oss) = (model?, oss?);
    all_kept(&model, &mount, &cache, tuning?, findings)?;
    let sam = sam(&model, &mount, &oss, variables, tuning?, findings)?;
    let mut settings = Settings {
        root: root.to_owned(),
        trustee: trustee?,
        oss,
        model,
        sam,
        mount,
        cache,
        state_dir: under(root, Path::new(STATE_DIR)),
        attest: attest?,
        service_port: service_port?,
        gateway: gateway?,
        peer: peer?,
        metrics: metrics?,
        fingerprint: String::new(),
    };
    notice_unused(&settings, variables, findings);
    settings.fingerprint = summary::fingerprint(&settings);
    Ok(settings)
}

/// What is accepted, kept and without effect in this version. Said, because the operator counts on it.
fn notice_unused(settings: &Settings, variables: &Variables, findings: &mut Findings) {
    let mut unused = |key: &Key, what: &str| {
        let message = format!("{} is set, and {what} in this version of cai", key.name);
        let hint = "nothing to do; it takes effect with an update".to_owned();
        findings.notice(variables.at(key), "config.unused", message, hint);
    };
    // "default" is in every file made from the solution's document and means what cai does anyway.
    if settings.trustee.policy != "default" && settings.peer.addresses.is_empty() {
        unused(&keys::TRUSTEE_POLICY, "the policy is not used");
    }
}

fn peer(
    peers: Result<Option<Vec<SocketAddr>>, Reported>,
    tuning: &Tuning,
    findings: &mut Findings,
) -> Result<Peer, Reported> {
    let upload_limit = bytes(&tuning.peer.upload_limit, "peer.upload_limit", tuning, findings);
    Ok(Peer {
        addresses: peers?.unwrap_or_default(),
        attestation: tuning.peer.attestation,
        port: tuning.peer.port,
        upload_limit: upload_limit?,
    })
}

fn trustee(
    variables: &Variables,
    tuning: Result<&Tuning, Reported>,
    root: &Path,
    findings: &mut Findings,
) -> Result<Trustee, Reported> {
    let url = variables.get(&keys::TRUSTEE_URL, findings, values::trustee_url);
    let key_id = variables.get(&keys::MODEL_KEY_ID, findings, values::key_id);
    let policy = variables.get(&keys::TRUSTEE_POLICY, findings, values::policy);
    let at = variables.at(&keys::TRUSTEE_URL);
    if let Ok(url) = &url
        && url.scheme() == "http"
    {
        findings.notice(
            at.clone(),
            "config.trustee-http",
            "TRUSTEE_URL is plain http: the server is not authenticated".to_owned(),
            "whoever sits in between can answer in the Trustee's place; use an https URL and set \
             trustee.require_https = true"
                .to_owned(),
        );
        if tuning.is_ok_and(|tuning| tuning.trustee.require_https) {
            let flaw = "is plain http, and trustee.require_https is set";
            findings.problem(keys::TRUSTEE_URL.problem(&at, flaw, Some(url.as_str())));
        }
    }
    let tuning = &tuning?.trustee;
    Ok(Trustee {
        url: url?,
        key_id: key_id?,
        policy: policy?,
        require_https: tuning.require_https,
        ca_file: tuning.ca_file.as_deref().map(|path| under(root, path)),
        protocol: tuning.protocol,
        key_algorithm: tuning.key_algorithm,
        token_cert: tuning.token_cert.as_deref().map(|path| under(root, path)),
        gpu_evidence: tuning.gpu_evidence,
        timeout: Duration::from_secs(tuning.timeout_secs),
        retry_limit: Duration::from_secs(tuning.retry_limit_secs),
        lease: Lease {
            interval: Some(Duration::from_secs(tuning.reattest_interval_secs))
                .filter(|every| !every.is_zero()),
            grace: Duration::from_secs(tuning.grace_secs),
        },
    })
}

fn model(
    variables: &Variables,
    tuning: Result<&Tuning, Reported>,
    findings: &mut Findings,
) -> Result<Model, Reported> {
    let encryption = variables.get(&keys::MODEL_ENCRYPTION_METHOD, findings, |text| match text {
        "gocryptfs" => Ok(Encryption::Gocryptfs),
        "sam" => Ok(Encryption::Sam),
        _ => Err("is none of the words it can be".into()),
    });
    let wait = variables.get(&keys::MODEL_WAIT, findings, |text| match text {
        "metadata" => Ok(Wait::Metadata),
        "full" => Ok(Wait::Full),
        _ => Err("is none of the words it can be".into()),
    });
    let pin = tuning.and_then(|tuning| pin(tuning, findings));
    Ok(Model { encryption: encryption?, wait: wait?, pin: pin? })
}

fn pin(all: &Tuning, findings: &mut Findings) -> Result<Pin, Reported> {
    let mut problem = |name, flaw| findings.problem(tuning_problem(name, all, flaw));
    let publisher = all.model.publisher_key.as_deref().map(|text| {
        PublicKey::parse(text).ok_or_else(|| problem("model.publisher_key", "is no Ed25519 public key"))
    });
    let publisher = publisher.transpose();
    let identity = all.model.manifest_sha256.as_deref().map(|text| {
        Identity::parse(text).ok_or_else(|| problem("model.manifest_sha256", "has not 64 hexadecimal digits"))
    });
    Ok(Pin { identity: identity.transpose()?, publisher: publisher? })
}

/// Read permission of users that are neither the owner nor in the group.
const OTHERS_READ: u32 = 0o004;

fn mount(
    variables: &Variables,
    tuning: Result<&Tuning, Reported>,
    root: &Path,
    facts: &Facts,
    findings: &mut Findings,
) -> Result<Mount, Reported> {
    let point = variables.get(&keys::MODEL_MOUNT_POINT, findings, values::mount_point);
    let all = tuning?;
    let tuning = &all.mount;
    let permissions = values::permissions(&tuning.permissions)
        .map_err(|flaw| findings.problem(tuning_problem("mount.permissions", all, &flaw)))?;
    let memory_bytes = bytes(&tuning.memory_bytes, "mount.memory_bytes", all, findings)?;
    if permissions & OTHERS_READ != 0 {
        findings.notice(
            all.at("mount.permissions"),
            "config.world-readable",
            format!("mount.permissions is {permissions:04o}: every local user can read the decrypted model"),
            "put the inference service's user into group cai-model and use \"0440\"".to_owned(),
        );
    }
    let gid = tuning.gid.or(facts.model_gid);
    if gid.is_none() {
        findings.notice(
            all.at("mount.gid"),
            "config.no-model-group",
            "group cai-model does not exist: the model's files belong to group 0".to_owned(),
            "create the group (systemd-sysusers does), or set mount.gid".to_owned(),
        );
    }
    Ok(Mount {
        point: under(root, &point?),
        uid: tuning.uid,
        gid: gid.unwrap_or(0),
        permissions,
        mode: tuning.mode,
        memory_bytes,
        idle: Duration::from_secs(tuning.idle_secs),
        threads: tuning.threads,
        readahead_kib: tuning.readahead_kib,
        read_timeout: Duration::from_secs(tuning.read_timeout_secs),
    })
}

fn cache(all: &Tuning, root: &Path, findings: &mut Findings) -> Result<Cache, Reported> {
    let reserve_bytes = bytes(&all.cache.reserve_bytes, "cache.reserve_bytes", all, findings)?;
    let size_bytes = bytes(&all.cache.size_bytes, "cache.size_bytes", all, findings)?;
    Ok(Cache { dir: under(root, &all.cache.dir), mode: all.cache.mode, size_bytes, reserve_bytes })
}

/// The number of bytes that the tuning key `name` has.
pub(super) fn bytes(size: &Size, name: &str, all: &Tuning, findings: &mut Findings) -> Result<u64, Reported> {
    let bytes = match size {
        Size::Bytes(bytes) => Ok(*bytes),
        Size::Text(text) => values::size(text),
    };
    bytes.map_err(|flaw| findings.problem(tuning_problem(name, all, &flaw)))
}

/// The attester; all that `cai attest` needs.
pub(super) fn attest(all: &Tuning, facts: &Facts, findings: &mut Findings) -> Result<Attest, Reported> {
    let tee = all.attest.tee;
    match tee {
        TeeChoice::Auto | TeeChoice::Tdx => {}
        TeeChoice::Sample if facts.sandbox => findings.notice(
            all.at("attest.tee"),
            "config.sample-tee",
            "attest.tee is sample: THIS MACHINE PROVES NOTHING, and only a test Trustee will believe it"
                .to_owned(),
            "never use this with a real model key; set attest.tee = \"auto\"".to_owned(),
        ),
        TeeChoice::Sample => {
            let flaw = "is sample, which exists in sandbox builds only";
            return Err(findings.problem(tuning_problem("attest.tee", all, flaw)));
        }
    }
    let super::tuning::Attest { tee: _, quote, event_log, require_gpu } = all.attest;
    Ok(Attest { tee, quote, event_log, require_gpu })
}

/// What waits for the whole model needs a disk that keeps it.
fn all_kept(
    model: &Model,
    mount: &Mount,
    cache: &Cache,
    all: &Tuning,
    findings: &mut Findings,
) -> Result<(), Reported> {
    let why = match (model.wait, mount.mode) {
        (Wait::Full, _) => "MODEL_WAIT is full",
        (_, MountMode::Ram) => "mount.mode is ram",
        _ => return Ok(()),
    };
    let flaw = match cache.mode {
        CacheMode::Auto | CacheMode::Full => return Ok(()),
        CacheMode::Bounded => format!("is bounded, and {why}, which needs the whole model on the disk"),
        CacheMode::None => format!("is none, and {why}, which needs the whole model on the disk"),
    };
    Err(findings.problem(tuning_problem("cache.mode", all, &flaw)))
}

/// Lengths in bytes that the vendor's packager takes for the ID of a key.
const KEY_ID_BYTES: std::ops::RangeInclusive<usize> = 8..=48;

/// Who decrypts a SAM model. Only such a model needs an ID of its key.
fn sam(
    model: &Model,
    mount: &Mount,
    oss: &Oss,
    variables: &Variables,
    all: &Tuning,
    findings: &mut Findings,
) -> Result<Sam, Reported> {
    let is_wanted = model.encryption == Encryption::Sam;
    let adapter_sha256 = all.sam.adapter_sha256.as_deref().map(|text| {
        let mut hash = [0; 32];
        hex::decode_to_slice(text, &mut hash).map(|()| hash).map_err(|_| {
            findings.problem(tuning_problem("sam.adapter_sha256", all, "has not 64 hexadecimal digits"))
        })
    });
    let adapter_sha256 = adapter_sha256.transpose()?;
    let derived = || oss.prefix.trim_end_matches('/').rsplit('/').next().unwrap_or_default().to_owned();
    let key_id = all.sam.key_id.clone().unwrap_or_else(derived);
    let sound = KEY_ID_BYTES.contains(&key_id.len())
        && key_id.bytes().all(|byte| byte.is_ascii_graphic())
        && !key_id.starts_with('-');
    if !sound && (is_wanted || all.sam.key_id.is_some()) {
        let flaw = match all.sam.key_id {
            Some(_) => format!("is {key_id:?}"),
            None => format!("is not set, and the last part of MODEL_OSS_BUCKET_PATH, {key_id:?}, is none"),
        };
        return Err(findings.problem(tuning_problem("sam.key_id", all, &flaw)));
    }
    if is_wanted && matches!(mount.mode, MountMode::Load | MountMode::Ram) {
        let flaw =
            "is load or ram, and MODEL_ENCRYPTION_METHOD is sam: the adapter decides how files are decrypted";
        return Err(findings.problem(tuning_problem("mount.mode", all, flaw)));
    }
    if is_wanted {
        findings.notice(
            variables.at(&keys::MODEL_ENCRYPTION_METHOD),
            "config.sam",
            "MODEL_ENCRYPTION_METHOD is sam: cai does not know the vendor's format and cannot check what its adapter shows"
                .to_owned(),
            "whether all of a model is encrypted, and what of it is authenticated, only the vendor can say; sign it with cai \
             manifest and set model.publisher_key, so that at least its ciphertext is the publisher's"
                .to_owned(),
        );
    }
    let ready_timeout = Duration::from_secs(all.sam.ready_timeout_secs);
    Ok(Sam { adapter_sha256, key_id, ready_timeout })
}

/// The mount must not hide the cache it is fed from, nor the cache lie in what the mount shows.
fn apart(
    mount: Mount,
    cache: Cache,
    variables: &Variables,
    findings: &mut Findings,
) -> Result<(Mount, Cache), Reported> {
    if mount.point.starts_with(&cache.dir) || cache.dir.starts_with(&mount.point) {
        let key = &keys::MODEL_MOUNT_POINT;
        let flaw = format!("and cache.dir ({}) lie in each other", cache.dir.display());
        return Err(findings.problem(key.problem(&variables.at(key), &flaw, mount.point.to_str())));
    }
    Ok((mount, cache))
}

/// A problem with a tuning key, found after merging.
pub(super) fn tuning_problem(name: &str, tuning: &Tuning, flaw: &str) -> Problem {
    let at = tuning.at(name);
    match keys::TOML.iter().find(|key| key.name == name) {
        Some(key) => key.problem(&at, flaw, None),
        None => Problem {
            at,
            message: format!("{name} {flaw}"),
            expected: String::new(),
            got: None,
            example: None,
        },
    }
}
