//! The table of every configuration key: what messages, suggestions, built-in values and the shipped files agree on.
//!
//! Two lists: [`ENV`], the variables of `cai.env`, and [`TOML`], the tuning keys of `cai.toml`. `tests/config_files.rs`
//! holds the shipped files against them, both directions.

use std::borrow::Cow;
use std::fmt;

use super::report::{Place, Problem, shown};
use super::values;

/// One configuration key.
#[derive(Debug)]
pub struct Key {
    /// Variable name, or dotted key with its section.
    pub name: &'static str,
    /// What a value looks like.
    pub form: Form,
    /// What holds when the key is not set.
    pub default: Default,
    /// Unit of the value, where it has one.
    pub unit: Option<&'static str>,
    /// What the key does, one or two sentences.
    pub effect: &'static str,
    /// A good value, written as in the file (with quotes where the file has them).
    pub example: &'static str,
}

/// What holds when a key is not set.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Default {
    /// Nothing: the key must be set.
    Required,
    /// This value, written as in the file.
    Is(&'static str),
    /// Something that is found out or left out, in words.
    Derived(&'static str),
}

/// What a value looks like.
#[derive(Debug, Clone, Copy)]
pub enum Form {
    /// Text with a grammar of its own, described for messages.
    Text(&'static str),
    /// Text that must never be shown.
    Secret(&'static str),
    /// One of these words.
    Word(&'static [&'static str]),
    /// `true` or `false`.
    Flag,
    /// A whole number in this range, ends included.
    Whole(i64, i64),
    /// An absolute path.
    Path,
    /// Octal permission bits.
    Mode,
    /// A number of bytes, with or without binary unit.
    Size,
    /// Texts in brackets, each with a grammar described for messages.
    List(&'static str),
}

impl fmt::Display for Form {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Form::Text(description) | Form::Secret(description) | Form::List(description) => {
                f.write_str(description)
            }
            Form::Word(words) => write!(f, "one of {}", words.join(", ")),
            Form::Flag => f.write_str("true or false"),
            Form::Whole(least, most) => write!(f, "a whole number from {least} to {most}"),
            Form::Path => f.write_str("an absolute path without .. in it"),
            Form::Mode => f.write_str("octal read bits in quotes, some of \"0444\""),
            Form::Size => f.write_str("a whole number of bytes, or one with KiB, MiB, GiB or TiB in quotes"),
        }
    }
}

impl Form {
    /// Whether `value` of a TOML file has this form; what is wrong otherwise.
    pub(super) fn check(&self, value: &toml_edit::Value) -> Result<(), Cow<'static, str>> {
        let text = value.as_str();
        match self {
            Form::Text(_) | Form::Secret(_) => text.map(drop).ok_or("is not text in quotes".into()),
            Form::Word(words) => match text {
                Some(word) if words.contains(&word) => Ok(()),
                Some(_) => Err("is none of the words it can be".into()),
                None => Err("is not a word in quotes".into()),
            },
            Form::Flag => value.as_bool().map(drop).ok_or("is neither true nor false".into()),
            Form::Whole(least, most) => match value.as_integer() {
                Some(number) if (*least..=*most).contains(&number) => Ok(()),
                Some(_) => Err("is out of range".into()),
                None => Err("is not a whole number".into()),
            },
            Form::Path => values::path(text.ok_or("is not a path in quotes")?).map(drop),
            Form::Mode => values::permissions(text.ok_or("is not octal digits in quotes")?).map(drop),
            Form::Size => match (value.as_integer(), text) {
                (Some(number), _) => u64::try_from(number).map(drop).map_err(|_| "is negative".into()),
                (None, Some(text)) => values::size(text).map(drop),
                (None, None) => Err("is neither a number nor a size in quotes".into()),
            },
            Form::List(_) => match value.as_array() {
                Some(list) if list.iter().all(toml_edit::Value::is_str) => Ok(()),
                _ => Err("is not a list of texts in quotes".into()),
            },
        }
    }
}

impl Key {
    /// A problem with this key. `got` is shown only where it cannot be a secret.
    pub(super) fn problem(&self, at: &Place, flaw: &str, got: Option<&str>) -> Problem {
        let got = match self.form {
            Form::Secret(_) => got.map(|_| "(not shown: it is a secret)".to_owned()),
            _ => got.map(shown),
        };
        Problem {
            at: at.clone(),
            message: format!("{} {flaw}", self.name),
            expected: self.form.to_string(),
            got,
            example: Some(self.example_line()),
        }
    }

    /// The key set to its example, as a line of its file.
    pub fn example_line(&self) -> String {
        match self.name.rsplit_once('.') {
            Some((section, leaf)) => format!("{leaf} = {} in section [{section}]", self.example),
            None => format!("{}={}", self.name, self.example),
        }
    }
}

/// `TRUSTEE_URL`
pub(super) static TRUSTEE_URL: Key = Key {
    name: "TRUSTEE_URL",
    form: Form::Text("an http:// or https:// URL with a host, without user, query, fragment and /kbs/v0"),
    default: Default::Required,
    unit: None,
    effect: "Base URL of the Trustee that releases the model key. With http the Trustee is not authenticated: whoever \
             sits in between can answer in its place. Use https where you can.",
    example: "\"https://trustee.example.com/cai\"",
};
/// `MODEL_KEY_ID`
pub(super) static MODEL_KEY_ID: Key = Key {
    name: "MODEL_KEY_ID",
    form: Form::Text(
        "kbs:///REPOSITORY/TYPE/TAG, each of letters, digits, _ and -, and of dots after the first letter",
    ),
    default: Default::Required,
    unit: None,
    effect: "Resource ID of the model key in the Trustee. With the KMS back end the last part names the KMS secret.",
    example: "\"kbs:///default/aliyun/model-decryption-key\"",
};
/// `MODEL_OSS_BUCKET_PATH`
pub(super) static MODEL_OSS_BUCKET_PATH: Key = Key {
    name: "MODEL_OSS_BUCKET_PATH",
    form: Form::Text(
        "BUCKET:/PATH/, the bucket 3 to 63 of a-z 0-9 and (inside) -, the path without // and .. in it",
    ),
    default: Default::Required,
    unit: None,
    effect: "Bucket and directory in Alibaba Cloud OSS that hold the encrypted model.",
    example: "\"conf-ai:/qwen3-32b-gocryptfs/\"",
};
/// `MODEL_OSS_ENDPOINT`
pub(super) static MODEL_OSS_ENDPOINT: Key = Key {
    name: "MODEL_OSS_ENDPOINT",
    form: Form::Text(
        "an http:// or https:// URL of the region's endpoint without bucket and path, or its bare host",
    ),
    default: Default::Required,
    unit: None,
    effect: "OSS endpoint of the bucket's region; inside the region's VPC the -internal one. A bare host means https.",
    example: "\"https://oss-cn-beijing-internal.aliyuncs.com\"",
};
/// `MODEL_OSS_ACCESS_KEY_ID`
pub(super) static MODEL_OSS_ACCESS_KEY_ID: Key = Key {
    name: "MODEL_OSS_ACCESS_KEY_ID",
    form: Form::Text("printable ASCII without spaces"),
    default: Default::Derived("anonymous access"),
    unit: None,
    effect: "AccessKey ID that may list and read the model's objects. Needs MODEL_OSS_SECRET_ACCESS_KEY.",
    example: "\"LTAI5tExample\"",
};
/// `MODEL_OSS_SECRET_ACCESS_KEY`
pub(super) static MODEL_OSS_SECRET_ACCESS_KEY: Key = Key {
    name: "MODEL_OSS_SECRET_ACCESS_KEY",
    form: Form::Secret("the AccessKey secret, printable ASCII without spaces"),
    default: Default::Derived("anonymous access"),
    unit: None,
    effect: "AccessKey secret that belongs to MODEL_OSS_ACCESS_KEY_ID. Keep this file readable by root and cai only.",
    example: "\"the-AccessKey-secret\"",
};
/// `MODEL_OSS_SESSION_TOKEN`
pub(super) static MODEL_OSS_SESSION_TOKEN: Key = Key {
    name: "MODEL_OSS_SESSION_TOKEN",
    form: Form::Secret("the STS session token, printable ASCII without spaces"),
    default: Default::Derived("no token: the AccessKey is a permanent one"),
    unit: None,
    effect: "Session token, only with temporary (STS) credentials. It expires: prefer a RAM user that can only read.",
    example: "\"the-session-token\"",
};
/// `MODEL_OSS_REGION`
pub(super) static MODEL_OSS_REGION: Key = Key {
    name: "MODEL_OSS_REGION",
    form: Form::Text("a region ID of a-z 0-9 and -, without the prefix oss-"),
    default: Default::Derived("read from MODEL_OSS_ENDPOINT where its name holds the region"),
    unit: None,
    effect: "Region of the bucket, part of every signed request. Needed with acceleration, finance-cloud, own-domain \
             and IP endpoints, unless access is anonymous.",
    example: "\"cn-beijing\"",
};
/// `MODEL_ENCRYPTION_METHOD`
pub(super) static MODEL_ENCRYPTION_METHOD: Key = Key {
    name: "MODEL_ENCRYPTION_METHOD",
    form: Form::Word(&["gocryptfs", "sam"]),
    default: Default::Is("\"gocryptfs\""),
    unit: None,
    effect: "How the model is encrypted.",
    example: "\"gocryptfs\"",
};
/// `MODEL_MOUNT_POINT`
pub(super) static MODEL_MOUNT_POINT: Key = Key {
    name: "MODEL_MOUNT_POINT",
    form: Form::Text("an absolute path without .. in it, neither / nor a directory of the system"),
    default: Default::Required,
    unit: None,
    effect: "Where the decrypted model appears, read-only. Created when it is missing.",
    example: "/tmp/model",
};
/// `MODEL_WAIT`
pub(super) static MODEL_WAIT: Key = Key {
    name: "MODEL_WAIT",
    form: Form::Word(&["metadata", "full"]),
    default: Default::Is("\"metadata\""),
    unit: None,
    effect: "When cai is ready: once every file can be opened (metadata; bytes stream in as they are read), or once \
             every byte is local (full).",
    example: "\"full\"",
};
/// `MODEL_SERVICE_PORT`
pub(super) static MODEL_SERVICE_PORT: Key = Key {
    name: "MODEL_SERVICE_PORT",
    form: Form::Whole(1, 65535),
    default: Default::Derived("no port is protected"),
    unit: Some("TCP port"),
    effect: "Port of the inference service whose traffic is to be encrypted and attested.",
    example: "8080",
};
/// `TRUSTEE_POLICY`
pub(super) static TRUSTEE_POLICY: Key = Key {
    name: "TRUSTEE_POLICY",
    form: Form::Text("one policy ID of letters, digits, dots, _ and -"),
    default: Default::Is("\"default\""),
    unit: None,
    effect: "Attestation policy of the Trustee that peers and clients must satisfy.",
    example: "\"default\"",
};
/// `MODEL_SHARING_PEER`
pub(super) static MODEL_SHARING_PEER: Key = Key {
    name: "MODEL_SHARING_PEER",
    form: Form::Text("IP addresses, each with or without :PORT, separated by spaces or commas"),
    default: Default::Derived("no peers"),
    unit: None,
    effect: "Machines that share the encrypted model with this one. The port is 5390 where none is given.",
    example: "\"172.30.24.146 172.30.24.144:5390\"",
};

/// Every variable of `cai.env`, in the order of the shipped file.
pub static ENV: &[&Key] = &[
    &TRUSTEE_URL,
    &MODEL_KEY_ID,
    &MODEL_OSS_BUCKET_PATH,
    &MODEL_OSS_ENDPOINT,
    &MODEL_OSS_REGION,
    &MODEL_OSS_ACCESS_KEY_ID,
    &MODEL_OSS_SECRET_ACCESS_KEY,
    &MODEL_OSS_SESSION_TOKEN,
    &MODEL_ENCRYPTION_METHOD,
    &MODEL_MOUNT_POINT,
    &MODEL_WAIT,
    &MODEL_SERVICE_PORT,
    &TRUSTEE_POLICY,
    &MODEL_SHARING_PEER,
];

/// Shorthand for a row of [`TOML`].
const fn tuning(
    name: &'static str,
    form: Form,
    default: Default,
    unit: Option<&'static str>,
    effect: &'static str,
    example: &'static str,
) -> Key {
    Key { name, form, default, unit, effect, example }
}

/// Every key of `cai.toml`, in the order of the shipped file. Upper bounds are sanity limits: a value above one is a slip.
#[rustfmt::skip]
pub static TOML: &[Key] = &[
    tuning("trustee.require_https", Form::Flag, Default::Is("false"), None,
        "Refuse a TRUSTEE_URL that is plain http.", "true"),
    tuning("trustee.ca_file", Form::Path, Default::Derived("the public certificate authorities"), None,
        "PEM file with the certificate authorities trusted for the Trustee, instead of the public ones.",
        "\"/etc/cai/trustee-ca.pem\""),
    tuning("trustee.protocol", Form::Word(&["auto", "0.1.0", "0.1.1", "0.2.0", "0.4.0"]),
        Default::Is("\"auto\""), None,
        "Protocol of the key broker. auto starts at 0.4.0 and follows what the server answers; a fixed one keeps \
         whoever can answer in the server's place from choosing an older one.", "\"0.4.0\""),
    tuning("trustee.key_algorithm", Form::Word(&["auto", "ECDH-ES+A256KW", "RSA-OAEP-256", "RSA1_5"]),
        Default::Is("\"auto\""), None,
        "How the model key is encrypted to this machine. auto is ECDH-ES+A256KW where the protocol has it, RSA1_5 \
         where it has nothing else.", "\"RSA-OAEP-256\""),
    tuning("trustee.token_cert", Form::Path, Default::Derived("the token's signature is not checked"), None,
        "PEM file with the certificates that sign attestation tokens, or with the authorities that issued them. A \
         token signed by anybody else is refused.", "\"/etc/cai/trustee-token.pem\""),
    tuning("trustee.gpu_evidence", Form::Word(&["auto", "alibaba", "upstream", "none"]), Default::Is("\"auto\""), None,
        "How GPU evidence is sent: as Alibaba's Trustee reads it, as upstream's does, or not at all. auto is alibaba, \
         which other servers ignore. Alibaba's refuses the form of upstream.", "\"upstream\""),
    tuning("trustee.timeout_secs", Form::Whole(1, 3600), Default::Is("60"), Some("seconds"),
        "How long one request to the Trustee may take, connecting included.", "30"),
    tuning("trustee.retry_limit_secs", Form::Whole(0, 86_400), Default::Is("600"), Some("seconds"),
        "How long passing failures of the Trustee are retried before cai gives up (exit status 69). 0 means never.",
        "60"),
    tuning("trustee.reattest_interval_secs", Form::Whole(0, 604_800), Default::Is("0"), Some("seconds"),
        "How often this machine attests again while it serves, and asks whether the key would still be released. A \
         denial ends cai at once; without an answer it goes on, Degraded, for trustee.grace_secs. 0 means never.",
        "3600"),
    tuning("trustee.grace_secs", Form::Whole(0, 604_800), Default::Is("3600"), Some("seconds"),
        "How long cai serves on while the Trustee does not answer about a new attestation.", "600"),
    tuning("attest.tee", Form::Word(&["auto", "tdx", "sample"]), Default::Is("\"auto\""), None,
        "Which trusted execution environment attests this machine. sample proves nothing and exists in sandbox \
         builds only.", "\"tdx\""),
    tuning("attest.quote", Form::Word(&["auto", "configfs-tsm", "qgs", "libtdx-attest"]), Default::Is("\"auto\""), None,
        "Where TDX quotes come from: the kernel's configfs-tsm, the host's Quote Generation Service over vsock, or \
         Intel's library. auto takes the first that works, in this order.", "\"qgs\""),
    tuning("attest.event_log", Form::Word(&["auto", "always", "never"]), Default::Is("\"auto\""), None,
        "Whether the boot event log goes with the quote. auto leaves it out when it does not replay to the quote's \
         registers, which a verifier would refuse; policies then miss the boot measurements.", "\"always\""),
    tuning("attest.require_gpu", Form::Flag, Default::Derived("true where the machine has an NVIDIA GPU"), None,
        "Whether attestation fails without sound evidence of every GPU: confidential mode on, report signed by \
         NVIDIA's chain, bound to the challenge.", "true"),
    tuning("model.publisher_key", Form::Text("an Ed25519 public key in base64, as cai keygen prints it, or in 64 hexadecimal digits"),
        Default::Derived("nobody vouches for the model, and the status says so"), None,
        "Public key that must have signed the model's manifest. A model without one, or signed by anybody else, is \
         refused.", "\"11qYAYKxCrfVS/7TyWQHOg7hcvPapiMlrwIaaPcHURo=\""),
    tuning("model.manifest_sha256", Form::Text("a model identity of 64 hexadecimal digits, as cai manifest prints it"),
        Default::Derived("any revision that the publisher signed"), None,
        "The one model that is accepted, by the SHA-256 of its signed manifest. For those who change this file with \
         every new revision.", "\"9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08\""),
    tuning("sam.adapter_sha256", Form::Text("64 hexadecimal digits, as sha256sum prints them"),
        Default::Derived("any program that only root can have put there"), None,
        "SHA-256 of the adapter, /usr/libexec/cai/decryptor.d/sam, that decrypts models with MODEL_ENCRYPTION_METHOD=sam. \
         Any other is refused.", "\"9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08\""),
    tuning("sam.key_id", Form::Text("8 to 48 printable ASCII characters without spaces, the first no -"),
        Default::Derived("the last part of MODEL_OSS_BUCKET_PATH"), None,
        "Name of the key that a SAM model was packaged with, as its adapter is told it.", "\"LD_Demo_0001\""),
    tuning("sam.ready_timeout_secs", Form::Whole(1, 3600), Default::Is("60"), Some("seconds"),
        "How long the adapter may take from its start until it says that the model can be read.", "300"),
    tuning("oss.credentials", Form::Word(&["auto", "static", "ecs-ram-role", "oidc", "anonymous"]), Default::Is("\"auto\""),
        None, "Who cai is for OSS. static: the MODEL_OSS_ACCESS_KEY_ID of cai.env. ecs-ram-role: the RAM role of this \
         machine. oidc: a RAM role for a service account's token (RRSA). anonymous: nobody. auto: static where the keys are \
         set, else anonymous; a role is never looked for unasked.", "\"ecs-ram-role\""),
    tuning("oss.ram_role", Form::Text("the name of a RAM role: at most 64 letters, digits, dots, _ and -"),
        Default::Derived("the role that the metadata service names"), None,
        "RAM role of this machine, with oss.credentials = \"ecs-ram-role\".", "\"cai-model-reader\""),
    tuning("oss.metadata", Form::Word(&["hardened", "normal"]), Default::Is("\"hardened\""), None,
        "How the instance metadata service is asked. hardened: with a session token only. normal: without one where the \
         service gives none.", "\"normal\""),
    tuning("oss.role_arn", Form::Text("acs:ram::ACCOUNT:role/NAME"), Default::Derived("none; oidc needs one"), None,
        "RAM role to be assumed, with oss.credentials = \"oidc\".", "\"acs:ram::1234567890123456:role/cai-model-reader\""),
    tuning("oss.oidc_provider_arn", Form::Text("acs:ram::ACCOUNT:oidc-provider/NAME"),
        Default::Derived("none; oidc needs one"), None,
        "Identity provider that the role trusts, with oss.credentials = \"oidc\".",
        "\"acs:ram::1234567890123456:oidc-provider/ack-rrsa\""),
    tuning("oss.oidc_token_file", Form::Path, Default::Derived("none; oidc needs one"), None,
        "File with the service account's token, with oss.credentials = \"oidc\". Read again for every renewal.",
        "\"/var/run/secrets/ack.alibabacloud.com/rrsa-tokens/token\""),
    tuning("oss.sts_endpoint", Form::Text("an https:// URL without path (http:// for a loopback address only)"),
        Default::Is("\"https://sts.aliyuncs.com\""), None,
        "Security Token Service, with oss.credentials = \"oidc\". Inside a VPC the sts-vpc one of the region.",
        "\"https://sts-vpc.cn-beijing.aliyuncs.com\""),
    tuning("oss.signature", Form::Word(&["v4", "v1"]), Default::Is("\"v4\""), None,
        "How requests are signed. v1 needs no region; OSS refuses it for new accounts and buckets.", "\"v1\""),
    tuning("oss.addressing", Form::Word(&["auto", "path", "cname"]), Default::Is("\"auto\""), None,
        "Where the bucket's name goes. auto: in front of the endpoint's name, in the path where that is an address. path: in \
         the path (PrivateLink). cname: nowhere, the endpoint is a domain of the bucket's own.", "\"cname\""),
    tuning("oss.proxy", Form::Text("an http:// URL of host and port alone, without user name and password"),
        Default::Derived("none"), None,
        "HTTP proxy that requests to OSS go to, such as a Dragonfly dfdaemon. It sees and may cache what goes to an http endpoint, \
         and only forwards (CONNECT) what goes to an https endpoint. STS and the metadata service are asked directly.",
        "\"http://127.0.0.1:4001\""),
    tuning("oss.ca_file", Form::Path, Default::Derived("the public certificate authorities"), None,
        "PEM file with the certificate authorities trusted for OSS and STS, instead of the public ones.",
        "\"/etc/cai/oss-ca.pem\""),
    tuning("oss.concurrency", Form::Whole(1, 256), Default::Is("32"), Some("requests"),
        "How many requests are in flight at most, all objects together. While OSS throttles they are fewer.", "64"),
    tuning("oss.bandwidth_limit", Form::Size, Default::Is("0"), Some("bytes per second"),
        "How fast cai receives from OSS at most, all requests together. 0 means no limit.", "\"500MiB\""),
    tuning("oss.timeout_secs", Form::Whole(1, 3600), Default::Is("60"), Some("seconds"),
        "How long one request to OSS may go without a byte of progress.", "30"),
    tuning("mount.uid", Form::Whole(0, 4_294_967_294), Default::Is("0"), Some("user number"),
        "Owner of every file under the mount point.", "1000"),
    tuning("mount.gid", Form::Whole(0, 4_294_967_294), Default::Derived("the group cai-model, 0 where it does not exist"),
        Some("group number"), "Group of every file under the mount point.", "1000"),
    tuning("mount.permissions", Form::Mode, Default::Is("\"0440\""), Some("octal permission bits"),
        "Who may read the model's files; directories get x where they have r. \"0444\" lets every local user read \
         the decrypted model.", "\"0444\""),
    tuning("mount.mode", Form::Word(&["auto", "on-demand", "load", "ram"]), Default::Is("\"auto\""), None,
        "How files are decrypted. on-demand: block by block as they are read, on every kernel. load: a weight file as a \
         whole when it is opened, into memory that its readers share (Linux 6.9 and newer); on demand where that cannot \
         be. ram: the whole model into memory before it is offered. auto: load where the machine can, else on-demand; \
         the status says which and why.", "\"on-demand\""),
    tuning("mount.memory_bytes", Form::Size, Default::Is("0"), Some("bytes"),
        "Most memory for decrypted files in modes load and ram. 0 means half of the available memory for load, and all \
         but a sixteenth of the machine's for ram.", "\"96GiB\""),
    tuning("mount.idle_secs", Form::Whole(1, 86_400), Default::Is("300"), Some("seconds"),
        "How long load mode keeps a file that nobody has open.", "60"),
    tuning("mount.threads", Form::Whole(0, 1024), Default::Is("0"), Some("threads"),
        "Threads that serve the mount, each with at most 1.2 MiB of buffers, 3.2 MiB while it reads what is not local. \
         0 means one per processor, but 16 to 64.", "8"),
    tuning("mount.readahead_kib", Form::Whole(0, 1_048_576), Default::Is("4096"), Some("KiB"),
        "How far the kernel reads ahead in a file under the mount point.", "1024"),
    tuning("mount.read_timeout_secs", Form::Whole(1, 86_400), Default::Is("300"), Some("seconds"),
        "How long a read waits for bytes that are not local yet before it fails with EIO.", "60"),
    tuning("cache.dir", Form::Path, Default::Is("\"/var/cache/cai\""), None,
        "Directory of the local copy of the encrypted model.", "\"/data/cai\""),
    tuning("cache.mode", Form::Word(&["auto", "full", "bounded", "none"]), Default::Is("\"auto\""), None,
        "What is kept of the encrypted model on the disk. full: all of it, or the start fails. bounded: as much as fits; \
         what was read longest ago goes first. none: nothing, every read fetches. auto: the first of these that fits; the \
         status says which. MODEL_WAIT=full and mount.mode = \"ram\" need all of it.", "\"full\""),
    tuning("cache.size_bytes", Form::Size, Default::Is("0"), Some("bytes"),
        "Most of the encrypted model that is kept on the disk. 0 means what is free beside cache.reserve_bytes.",
        "\"200GiB\""),
    tuning("cache.reserve_bytes", Form::Size, Default::Is("\"1GiB\""), Some("bytes"),
        "Free space of the cache's file system that cai never takes.", "\"20GiB\""),
    tuning("gateway.listen", Form::Text("ADDRESS:PORT, IPv6 addresses in brackets"),
        Default::Derived("connections to MODEL_SERVICE_PORT are redirected to the gateway"), None,
        "Where the gateway listens for attested clients, where nothing is to be redirected. Needs gateway.backend.",
        "\"0.0.0.0:8443\""),
    tuning("gateway.backend", Form::Text("ADDRESS:PORT, IPv6 addresses in brackets"),
        Default::Derived("what a redirected client dialled"), None,
        "Inference service that gets the plaintext of gateway.listen. On another machine, that network sees it.",
        "\"127.0.0.1:8080\""),
    tuning("gateway.capture_port", Form::Whole(1, 65535), Default::Is("40000"), Some("TCP port"),
        "Where connections to MODEL_SERVICE_PORT are redirected to. No client dials it.", "40001"),
    tuning("gateway.certificate", Form::Word(&["auto", "legacy", "current"]), Default::Is("\"auto\""), None,
        "Which certificate clients are shown: legacy for TNG up to 2.2.6, current for TNG from 2.3.0 on and cai connect. \
         auto tells them apart by their TLS, but takes TNG 2.3.0 to 2.6.0 for older ones: they need current.", "\"current\""),
    tuning("gateway.refresh_secs", Form::Whole(10, 10_800), Default::Is("600"), Some("seconds"),
        "How often the gateway makes a new key and collects new evidence for it. What a client sees is never older than \
         this, or 6 hours while it fails.", "300"),
    tuning("gateway.plaintext_paths", Form::List("paths in quotes, between brackets"), Default::Is("[]"), None,
        "Paths that anybody may GET in plaintext, for health checks: one request without a body and its answer, then the \
         connection is closed.", "[\"/health\"]"),
    tuning("gateway.drain_secs", Form::Whole(0, 3600), Default::Is("30"), Some("seconds"),
        "How long open connections may take to end by themselves when cai is stopped. The port is shut at once.", "5"),
    tuning("peer.attestation", Form::Word(&["required", "network"]), Default::Is("\"required\""), None,
        "Which of the machines in MODEL_SHARING_PEER take part. required: those whose evidence the Trustee affirms under \
         TRUSTEE_POLICY. network: whoever has one of the addresses; the ciphertext crosses in the open.", "\"network\""),
    tuning("peer.port", Form::Whole(1, 65535), Default::Is("5390"), Some("TCP port"),
        "Where this machine listens for its peers. Only addresses in MODEL_SHARING_PEER are let in.", "5391"),
    tuning("peer.upload_limit", Form::Size, Default::Is("0"), Some("bytes per second"),
        "How fast cai sends to peers at most, all of them together. 0 means no limit.", "\"1GiB\""),
    tuning("metrics.listen", Form::Text("a loopback ADDRESS:PORT, or unix: and an absolute path without .. in it"),
        Default::Derived("no metrics"), None,
        "Where cai tells its metrics to Prometheus, at /metrics. A port is open to every local user; a socket to user \
         and group cai.", "\"127.0.0.1:9464\""),
];

/// The known name nearest to `name`, if any is near enough to be what was meant.
///
/// Three ways to be near, in this order: the same leaf in another section; the same words with some left out
/// (`MODEL_OSS_SECRET_KEY`); at most a third of the name mistyped.
pub(super) fn nearest<'a>(name: &str, known: impl Iterator<Item = &'a str> + Clone) -> Option<&'a str> {
    let leaf = |name: &str| name.rsplit_once('.').map(|(_, leaf)| leaf.to_owned());
    if let Some(moved) =
        known.clone().find(|candidate| leaf(candidate).is_some() && leaf(candidate) == leaf(name))
    {
        return Some(moved);
    }
    let folded = name.to_ascii_uppercase();
    known
        .map(|candidate| {
            let upper = candidate.to_ascii_uppercase();
            let shortened =
                folded.contains('_') && folded.split('_').all(|word| upper.split('_').any(|w| w == word));
            (!shortened, edits(&folded, &upper), candidate)
        })
        .min()
        .filter(|(typed, edits, candidate)| !typed || *edits <= (candidate.len() / 3).max(2))
        .map(|(.., candidate)| candidate)
}

/// Levenshtein distance: least number of characters inserted, deleted or replaced.
fn edits(a: &str, b: &str) -> usize {
    let mut row: Vec<usize> = (0..=b.chars().count()).collect();
    for (i, from) in a.chars().enumerate() {
        let mut next = vec![i + 1];
        for ((to, above_left), above) in b.chars().zip(&row).zip(row.iter().skip(1)) {
            let left = next.last().copied().unwrap_or_default();
            next.push((above_left + usize::from(from != to)).min(above + 1).min(left + 1));
        }
        row = next;
    }
    row.last().copied().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn edits_counts_insertions_deletions_and_replacements() {
        for (a, b, expected) in
            [("", "", 0), ("", "abc", 3), ("abc", "", 3), ("kitten", "sitting", 3), ("ab", "ba", 2)]
        {
            assert_eq!(edits(a, b), expected, "{a} -> {b}");
        }
    }

    #[test]
    fn nearest_finds_slips_and_moved_keys_and_nothing_far_away() {
        let env = || ENV.iter().map(|key| key.name);
        assert_eq!(nearest("MODEL_KEYID", env()), Some("MODEL_KEY_ID"));
        assert_eq!(nearest("model_mount_point", env()), Some("MODEL_MOUNT_POINT"));
        assert_eq!(nearest("MODEL_OSS_SECRET_KEY", env()), Some("MODEL_OSS_SECRET_ACCESS_KEY"));
        assert_eq!(nearest("HTTP_PROXY", env()), None);
        let toml = || TOML.iter().map(|key| key.name);
        assert_eq!(nearest("oss.readahead_kib", toml()), Some("mount.readahead_kib"));
        assert_eq!(nearest("trustee.time_out_secs", toml()), Some("trustee.timeout_secs"));
    }

    #[test]
    fn every_row_has_a_unique_name_and_a_value_of_its_own_form() {
        let mut names: Vec<_> =
            ENV.iter().map(|key| key.name).chain(TOML.iter().map(|key| key.name)).collect();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), ENV.len() + TOML.len());
        for key in TOML {
            let default = if let Default::Is(text) = key.default { text } else { key.example };
            for text in [default, key.example] {
                let value: toml_edit::Value = text.parse().unwrap();
                assert_eq!(key.form.check(&value), Ok(()), "{} = {text}", key.name);
            }
        }
    }

    #[test]
    fn form_refuses_other_types_and_values_out_of_range() {
        let refused = [
            (Form::Flag, "1"),
            (Form::Flag, "\"true\""),
            (Form::Whole(1, 256), "0"),
            (Form::Whole(1, 256), "257"),
            (Form::Whole(1, 256), "32.0"),
            (Form::Whole(1, 256), "\"32\""),
            (Form::Word(&["auto", "tdx"]), "\"Auto\""),
            (Form::Word(&["auto", "tdx"]), "true"),
            (Form::Path, "\"var/cache\""),
            (Form::Path, "[\"/var\"]"),
            (Form::Mode, "0o440"),
            (Form::Mode, "\"0640\""),
            (Form::Size, "-1"),
            (Form::Size, "\"1GB\""),
            (Form::Size, "{ GiB = 1 }"),
            (Form::List("paths"), "\"/health\""),
            (Form::List("paths"), "[1]"),
        ];
        for (form, text) in refused {
            let value: toml_edit::Value = text.parse().unwrap();
            assert!(form.check(&value).is_err(), "{form:?} took {text}");
        }
    }
}
