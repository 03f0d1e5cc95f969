//! Claim: a user's configuration files mean what the table of keys says, the shipped ones included; every problem is
//! listed at once; and no secret leaves the loader in a message.

use std::collections::BTreeMap;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use cai::config::keys::{self, Default as Absent, Form, Key};
use cai::config::{
    self, Credentials, Encryption, FileKind, Notice, OssCredentials, OssOverrides, Problem, Problems,
    Protocol, Settings, SourceFile, TeeChoice, Wait,
};
use cai::error::{ErrorClass, Fault};

const FACTS: config::Facts = config::Facts { model_gid: Some(990), sandbox: false };

/// The shortest env file that is complete and draws no notice.
const MINIMAL: &str = "TRUSTEE_URL=https://trustee.example.com/cai\n\
    MODEL_KEY_ID=kbs:///default/aliyun/key\n\
    MODEL_OSS_BUCKET_PATH=conf-ai:/qwen/\n\
    MODEL_OSS_ENDPOINT=https://oss-cn-beijing.aliyuncs.com\n\
    MODEL_OSS_ACCESS_KEY_ID=LTAI5t\n\
    MODEL_OSS_SECRET_ACCESS_KEY=hunter2\n\
    MODEL_MOUNT_POINT=/tmp/model\n";

fn file(name: &str, kind: FileKind, text: &str) -> SourceFile {
    SourceFile { name: name.to_owned(), kind, text: text.to_owned().into(), mode: Some(0o640) }
}

fn env(text: &str) -> SourceFile {
    file("cai.env", FileKind::Env, text)
}

fn toml(text: &str) -> SourceFile {
    file("cai.toml", FileKind::Toml, text)
}

type Parsed = Result<(Settings, Vec<Notice>), Problems>;

fn parse(files: &[SourceFile]) -> Parsed {
    config::parse(files, Path::new("/"), &FACTS)
}

/// Settings from the minimal env file with `lines` behind it.
fn parse_env(lines: &str) -> Parsed {
    parse(&[env(&format!("{MINIMAL}{lines}"))])
}

fn parse_toml(text: &str) -> Parsed {
    parse(&[toml(text), env(MINIMAL)])
}

/// `place: message` of every problem.
fn problems<T>(parsed: Result<T, Problems>) -> Vec<String> {
    let Err(problems) = parsed else { panic!("no problem was found") };
    problems.problems.iter().map(|problem| format!("{}: {}", problem.at, problem.message)).collect()
}

/// `place code` of every notice.
fn notices(parsed: &Parsed) -> Vec<String> {
    let notices = match parsed {
        Ok((_, notices)) => notices,
        Err(problems) => &problems.notices,
    };
    notices.iter().map(|notice| format!("{} {}", notice.at, notice.code)).collect()
}

/// The access key that the settings hold.
fn key(settings: Settings) -> OssCredentials {
    access_key(settings.oss.credentials)
}

fn access_key(credentials: Credentials) -> OssCredentials {
    match credentials {
        Credentials::Static(key) => key,
        Credentials::Anonymous | Credentials::EcsRamRole(_) | Credentials::Oidc(_) => panic!("no access key"),
    }
}

fn shipped(name: &str) -> String {
    std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("etc/cai").join(name)).unwrap()
}

// ---- The shipped files against the table ---------------------------------------------------------------------------

/// What the comment above a key must say, word for word.
fn comment(key: &Key) -> String {
    let unit = key.unit.map(|unit| format!(" Unit: {unit}.")).unwrap_or_default();
    let default = match key.default {
        Absent::Required => "Must be set.".to_owned(),
        Absent::Is(value) => format!("Default: {value}."),
        Absent::Derived(words) => format!("Default: {words}."),
    };
    format!("{} Form: {}.{unit} {default}", key.effect, key.form)
}

/// Name, comment and value line of every key of a shipped file: a key follows its comment, commented out or not.
fn documented(text: &str, separator: &str) -> Vec<(String, String, String)> {
    let (mut section, mut words, mut found) = (String::new(), Vec::new(), Vec::new());
    for line in text.lines() {
        let assignment = line.trim_start_matches('#').split_once(separator);
        if let Some(name) = line.strip_prefix('[') {
            section = format!("{}.", name.trim_end_matches(']'));
        } else if let Some(rest) = line.strip_prefix("# ") {
            words.push(rest.to_owned());
        } else if let Some((name, value)) = assignment {
            found.push((format!("{section}{name}"), words.join(" "), value.to_owned()));
            words.clear();
        } else {
            words.clear();
        }
    }
    found
}

#[test]
fn shipped_toml_has_every_key_of_the_table_and_no_other() {
    let expected: Vec<_> = keys::TOML
        .iter()
        .map(|key| {
            let value = if let Absent::Is(default) = key.default { default } else { key.example };
            (key.name.to_owned(), comment(key), value.to_owned())
        })
        .collect();
    assert_eq!(documented(&shipped("cai.toml"), " = "), expected);
}

#[test]
fn shipped_env_has_every_variable_of_the_table_and_no_other() {
    let text = shipped("cai.env");
    let expected: Vec<_> = keys::ENV
        .iter()
        .map(|key| {
            let value = if key.default == Absent::Required { "\"\"" } else { key.example };
            (key.name.to_owned(), comment(key), value.to_owned())
        })
        .collect();
    assert_eq!(documented(&text, "="), expected);
    for key in keys::ENV {
        let set = text.lines().any(|line| line.starts_with(&format!("{}=", key.name)));
        assert_eq!(set, key.default == Absent::Required, "{}", key.name);
    }
}

#[test]
fn shipped_files_ask_for_the_required_variables_and_nothing_else() {
    let parsed = parse(&[toml(&shipped("cai.toml")), env(&shipped("cai.env"))]);
    let required = keys::ENV.iter().filter(|key| key.default == Absent::Required);
    let expected: Vec<_> = required.map(|key| format!("{} is not set", key.name)).collect();
    let found: Vec<_> =
        problems(parsed).iter().map(|line| line.rsplit_once(": ").unwrap().1.to_owned()).collect();
    assert_eq!(found, expected);
}

#[test]
fn shipped_files_with_every_line_switched_on_are_valid() {
    let uncomment = |text: String| {
        let on = |line: &str| match line.strip_prefix('#') {
            Some(rest) if !rest.starts_with([' ', '#']) => rest.to_owned(),
            _ => line.to_owned(),
        };
        text.lines().map(|line| on(line) + "\n").collect::<String>()
    };
    let mut text = uncomment(shipped("cai.env"));
    for key in keys::ENV.iter().filter(|key| key.default == Absent::Required) {
        text = text.replace(&format!("{}=\"\"", key.name), &format!("{}={}", key.name, key.example));
    }
    let (settings, _) = parse(&[toml(&uncomment(shipped("cai.toml"))), env(&text)]).unwrap();
    assert_eq!(settings.mount.read_timeout.as_secs(), 300);
    assert_eq!(settings.service_port, Some(8080));
    assert_eq!(key(settings).session_token.unwrap().len(), "the-session-token".len());
}

/// Keys that take effect together; `tests/config_credentials.rs` has them.
const OF_CREDENTIALS: [&str; 7] = [
    "oss.credentials",
    "oss.ram_role",
    "oss.metadata",
    "oss.role_arn",
    "oss.oidc_provider_arn",
    "oss.oidc_token_file",
    "oss.sts_endpoint",
];

/// Keys that mean something together only; `tests/config_gateway.rs` has them.
const OF_MAPPING: [&str; 2] = ["gateway.listen", "gateway.backend"];

#[test]
fn example_of_every_tuning_key_takes_effect() {
    let defaults: BTreeMap<_, _> = parse_toml("").unwrap().0.effective().into_iter().collect();
    for key in
        keys::TOML.iter().filter(|key| !OF_CREDENTIALS.contains(&key.name) && !OF_MAPPING.contains(&key.name))
    {
        let (settings, _) = parse_toml(&format!("{} = {}", key.name, key.example)).unwrap();
        let values: BTreeMap<_, _> = settings.effective().into_iter().collect();
        for (name, value) in &values {
            assert_eq!(*value != defaults[name], *name == key.name, "{} = {}: {name}", key.name, key.example);
        }
        if let Absent::Is(text) = key.default
            && key.name != "cache.reserve_bytes"
        {
            assert_eq!(defaults[key.name], text.trim_matches('"'), "{}", key.name);
        }
    }
    assert_eq!(defaults["cache.reserve_bytes"], (1u64 << 30).to_string());
}

#[test]
fn effective_names_every_key_of_the_table_once_and_in_order() {
    let names: Vec<_> = parse_env("").unwrap().0.effective().into_iter().map(|(name, _)| name).collect();
    let expected: Vec<_> =
        keys::ENV.iter().map(|key| key.name).chain(keys::TOML.iter().map(|key| key.name)).collect();
    assert_eq!(names, expected);
}

#[test]
fn fingerprint_changes_with_every_key_but_secrets() {
    let fingerprint = |parsed: Parsed| parsed.unwrap().0.fingerprint;
    let base = fingerprint(parse_env(""));
    assert_eq!(base.len(), 64);
    assert_eq!(base, fingerprint(parse_env("# comment\n")));
    assert_eq!(base, fingerprint(parse_env("MODEL_OSS_SECRET_ACCESS_KEY=other\n")));
    for key in
        keys::TOML.iter().filter(|key| !OF_CREDENTIALS.contains(&key.name) && !OF_MAPPING.contains(&key.name))
    {
        let changed = fingerprint(parse_toml(&format!("{} = {}", key.name, key.example)));
        assert_ne!(base, changed, "{}", key.name);
    }
    for key in keys::ENV.iter().filter(|key| !matches!(key.form, Form::Secret(_))) {
        let same = match key.name {
            "MODEL_ENCRYPTION_METHOD" => "sam",
            "MODEL_MOUNT_POINT" => "/tmp/other",
            "TRUSTEE_POLICY" => "strict",
            "MODEL_OSS_REGION" => "cn-shanghai",
            "TRUSTEE_URL" | "MODEL_OSS_ENDPOINT" => "https://oss-cn-hangzhou.aliyuncs.com",
            _ => key.example,
        };
        // Only such a model has to name its key.
        let parsed = match same {
            "sam" => parse(&[
                env(&format!("{MINIMAL}{}={same}\n", key.name)),
                toml("sam.key_id = \"LD_Demo_0001\""),
            ]),
            _ => parse_env(&format!("{}={same}\n", key.name)),
        };
        assert_ne!(base, fingerprint(parsed), "{}", key.name);
    }
}

// ---- A user's file -------------------------------------------------------------------------------------------------

/// The example of the solution's document, step 5, with a bucket filled in.
const DOCUMENT: &str = r#"# Configurations for model decryption
TRUSTEE_URL="http://alb-xxxxxxxxx.cn-beijing.alb.aliyuncsslb.com/xxxx/" # URL of the Trustee service
MODEL_KEY_ID="kbs:///default/aliyun/model-decryption-key" # The resource ID of the model decryption key configured on Trustee. For example, the ID for the secret named model-decryption-key is kbs:///default/aliyun/model-decryption-key

# Configurations for encrypted model distribution
MODEL_OSS_BUCKET_PATH="conf-ai:/qwen3-32b-gocryptfs/" # The path of the model ciphertext stored in Alibaba Cloud OSS. For example, conf-ai:/qwen3-32b-gocryptfs/
MODEL_OSS_ENDPOINT="https://oss-cn-beijing-internal.aliyuncs.com" # The OSS URL where the model ciphertext is stored
# MODEL_OSS_ACCESS_KEY_ID="" # The AccessKey ID used to access the OSS bucket.
# MODEL_OSS_SECRET_ACCESS_KEY="" # The AccessKey secret used to access the OSS bucket.
# MODEL_OSS_SESSION_TOKEN="" # The session token used to access the OSS bucket.
MODEL_ENCRYPTION_METHOD="gocryptfs" # The encryption method used. Valid values: "gocryptfs" and "sam". Default value: "gocryptfs".
MODEL_MOUNT_POINT=/tmp/model # The mount point for the decrypted model plaintext.

# Configurations for large model service communication encryption
MODEL_SERVICE_PORT=8080 # The TCP port used by the service. Communication on this port is transparently encrypted.

# Configurations for P2P model distribution acceleration. You can ignore this by default.
TRUSTEE_POLICY="default"
# MODEL_SHARING_PEER="172.30.24.146 172.30.24.144"
"#;

#[test]
fn example_of_the_solutions_document_works_as_it_is() {
    let parsed = parse(&[env(DOCUMENT)]);
    assert_eq!(notices(&parsed), ["cai.env config.oss-anonymous", "cai.env:2 config.trustee-http"]);
    let (settings, _) = parsed.unwrap();
    assert_eq!(settings.trustee.url.as_str(), "http://alb-xxxxxxxxx.cn-beijing.alb.aliyuncsslb.com/xxxx");
    assert_eq!(settings.trustee.key_id, "kbs:///default/aliyun/model-decryption-key");
    assert_eq!(
        (settings.oss.bucket.as_str(), settings.oss.prefix.as_str()),
        ("conf-ai", "qwen3-32b-gocryptfs/")
    );
    assert_eq!(settings.oss.endpoint.as_str(), "https://oss-cn-beijing-internal.aliyuncs.com/");
    assert_eq!(settings.oss.region.as_deref(), Some("cn-beijing"));
    assert!(matches!(settings.oss.credentials, Credentials::Anonymous));
    assert_eq!((settings.model.encryption, settings.model.wait), (Encryption::Gocryptfs, Wait::Metadata));
    assert_eq!(settings.mount.point, Path::new("/tmp/model"));
    assert_eq!((settings.mount.gid, settings.mount.permissions), (990, 0o440));
    assert_eq!(settings.service_port, Some(8080));
    assert_eq!(settings.trustee.policy, "default");
    assert_eq!(settings.peer.addresses, []);
}

#[test]
fn example_with_crlf_bom_and_export_means_the_same_and_is_noticed_once() {
    let text = format!("\u{feff}{}", DOCUMENT.replace('\n', "\r\n").replace("MODEL_M", "export MODEL_M"));
    let parsed = parse(&[env(&text)]);
    assert!(notices(&parsed).contains(&"cai.env:1 config.line-ends".to_owned()), "{:?}", notices(&parsed));
    assert_eq!(notices(&parsed).len(), 3);
    assert_eq!(parsed.unwrap().0.fingerprint, parse(&[env(DOCUMENT)]).unwrap().0.fingerprint);
}

#[test]
fn placeholders_of_the_document_are_named_as_such() {
    let text = DOCUMENT.replace("conf-ai:/qwen3-32b-gocryptfs/\" #", "<bucket-name>:<model-path>\" #");
    assert_eq!(
        problems(parse(&[env(&text)])),
        ["cai.env:6: MODEL_OSS_BUCKET_PATH still holds a placeholder in < >"]
    );
}

#[test]
fn minimal_file_draws_no_notice_and_keeps_the_secret() {
    let parsed = parse_env("");
    assert_eq!(notices(&parsed), Vec::<String>::new());
    let credentials = key(parsed.unwrap().0);
    assert_eq!(credentials.access_key_id, "LTAI5t");
    assert!(credentials.secret_access_key.with(|bytes| bytes == b"hunter2"));
}

#[test]
fn duplicate_variable_takes_the_last_value_with_a_notice() {
    let parsed = parse_env("MODEL_MOUNT_POINT='/srv/m/'\n");
    assert_eq!(notices(&parsed), ["cai.env:8 config.duplicate"]);
    assert_eq!(parsed.unwrap().0.mount.point, Path::new("/srv/m"));
}

#[test]
fn empty_variable_is_the_same_as_none() {
    let parsed =
        parse_env("MODEL_WAIT=\nMODEL_SERVICE_PORT=\"\"\nMODEL_SHARING_PEER=' '\nMODEL_OSS_SESSION_TOKEN=\n");
    let (settings, _) = parsed.unwrap();
    assert_eq!((settings.model.wait, settings.service_port), (Wait::Metadata, None));
    assert!(key(settings).session_token.is_none());
    assert_eq!(problems(parse_env("TRUSTEE_URL=\n")), ["cai.env:8: TRUSTEE_URL is not set"]);
}

#[test]
fn every_problem_of_all_files_is_listed_at_once() {
    let env = env("TRUSTEE_URL=trustee.example.com\n\
         MODEL_KEYID=kbs:///a/b/c\n\
         MODEL_OSS_BUCKET_PATH=oss://conf-ai/qwen\n\
         MODEL_OSS_ENDPOINT=https://oss-cn-beijing.aliyuncs.com/qwen\n\
         MODEL_OSS_ACCESS_KEY_ID=LTAI5t\n\
         MODEL_ENCRYPTION_METHOD=aes\n\
         MODEL_MOUNT_POINT=tmp\n\
         MODEL_WAIT=yes\n\
         MODEL_SERVICE_PORT=0\n\
         TRUSTEE_POLICY=a b\n\
         MODEL_SHARING_PEER=node1\n\
         model_service_port=80\n\
         what is this\n\
         HTTP_PROXY=http://proxy\n");
    let toml = toml(
        "oss.concurrency = 0\n[mount]\npermissions = \"0644\"\nreadahead = 4\n[trustees]\nrequire_https = true\n",
    );
    let drop_in = file("10.toml", FileKind::Toml, "[cache\n");
    let parsed = parse(&[toml, drop_in, env]);
    assert_eq!(notices(&parsed), ["cai.env:14 config.foreign"]);
    assert_eq!(
        problems(parsed),
        [
            "10.toml:1: not TOML: unclosed table, expected `]`",
            "cai.env: MODEL_KEY_ID is not set",
            "cai.env:1: TRUSTEE_URL does not begin with http:// or https://",
            "cai.env:2: MODEL_KEYID is not a variable of cai; did you mean MODEL_KEY_ID?",
            "cai.env:3: MODEL_OSS_BUCKET_PATH is a URL instead of BUCKET:/PATH/",
            "cai.env:4: MODEL_OSS_ENDPOINT has a path, which belongs into MODEL_OSS_BUCKET_PATH",
            "cai.env:5: MODEL_OSS_SECRET_ACCESS_KEY is not set, and MODEL_OSS_ACCESS_KEY_ID is",
            "cai.env:6: MODEL_ENCRYPTION_METHOD is none of the words it can be",
            "cai.env:7: MODEL_MOUNT_POINT is not an absolute path",
            "cai.env:8: MODEL_WAIT is none of the words it can be",
            "cai.env:9: MODEL_SERVICE_PORT is not a port",
            "cai.env:10: TRUSTEE_POLICY is not one policy ID",
            "cai.env:11: MODEL_SHARING_PEER holds `node1`, which is not the address of a machine",
            "cai.env:12: model_service_port is not a variable of cai; did you mean MODEL_SERVICE_PORT?",
            "cai.env:13: this line has no `=`",
            "cai.toml:1: oss.concurrency is out of range",
            "cai.toml:3: mount.permissions has other bits than read, on a read-only mount",
            "cai.toml:4: mount.readahead is not a tuning key; did you mean mount.readahead_kib?",
            "cai.toml:6: trustees.require_https is not a tuning key; did you mean trustee.require_https?",
        ]
    );
}

#[test]
fn problem_says_what_was_expected_what_came_and_what_would_be_right() {
    let Err(Problems { problems, .. }) = parse_toml("[oss]\nconcurrency = 1000 # many\n") else { panic!() };
    let expected = Problem {
        at: config::Place::line("cai.toml", 2),
        message: "oss.concurrency is out of range".into(),
        expected: "a whole number from 1 to 256".into(),
        got: Some("1000".into()),
        example: Some("concurrency = 64 in section [oss]".into()),
    };
    assert_eq!(problems, [expected]);
    let problems = parse_env("MODEL_WAIT=later\n").err().unwrap();
    assert_eq!(problems.class(), ErrorClass::Config);
    assert_eq!(problems.code(), "config.invalid");
    assert_eq!(
        problems.to_string(),
        "the configuration has 1 problem\ncai.env:8: MODEL_WAIT is none of the words it can be\n    \
         expected: one of metadata, full\n    got:      later\n    example:  MODEL_WAIT=\"full\""
    );
}

// ---- Rules between values ------------------------------------------------------------------------------------------

#[test]
fn credentials_must_be_complete() {
    let without = |names: &[&str], more: &str| {
        let kept = MINIMAL.lines().filter(|line| !names.iter().any(|name| line.starts_with(name)));
        parse(&[env(&(kept.collect::<Vec<_>>().join("\n") + "\n" + more))])
    };
    let id = "MODEL_OSS_ACCESS_KEY_ID";
    let secret = "MODEL_OSS_SECRET_ACCESS_KEY";
    assert_eq!(problems(without(&[id], "")), [format!("cai.env:5: {id} is not set, and {secret} is")]);
    assert_eq!(problems(without(&[secret], "")), [format!("cai.env:5: {secret} is not set, and {id} is")]);
    assert_eq!(
        problems(without(&[id, secret], "MODEL_OSS_SESSION_TOKEN=t")),
        [format!("cai.env:6: {id} is not set, and MODEL_OSS_SESSION_TOKEN is")]
    );
    assert_eq!(notices(&without(&[id, secret], "")), ["cai.env config.oss-anonymous"]);
}

#[test]
fn region_must_be_known_for_signed_requests_only() {
    let opaque = "MODEL_OSS_ENDPOINT=http://127.0.0.1:9000\n";
    let message = "MODEL_OSS_REGION is not set, and MODEL_OSS_ENDPOINT does not hold the region that signed requests need";
    assert_eq!(problems(parse_env(opaque)), [format!("cai.env: {message}")]);
    let (settings, _) = parse_env(&format!("{opaque}MODEL_OSS_REGION=cn-beijing\n")).unwrap();
    assert_eq!(settings.oss.region.as_deref(), Some("cn-beijing"));
    let anonymous = format!("{opaque}MODEL_OSS_ACCESS_KEY_ID=\nMODEL_OSS_SECRET_ACCESS_KEY=\n");
    assert_eq!(parse_env(&anonymous).unwrap().0.oss.region, None);
    let (settings, _) = parse_env("MODEL_OSS_REGION=cn-shanghai\n").unwrap();
    assert_eq!(
        settings.oss.region.as_deref(),
        Some("cn-shanghai"),
        "the variable wins over the endpoint's name"
    );
}

#[test]
fn endpoint_that_holds_the_bucket_is_refused() {
    assert_eq!(
        problems(parse_env("MODEL_OSS_ENDPOINT=https://conf-ai.oss-cn-beijing.aliyuncs.com\n")),
        [
            "cai.env:8: MODEL_OSS_ENDPOINT begins with the bucket, which belongs into MODEL_OSS_BUCKET_PATH only"
        ]
    );
}

#[test]
fn plain_http_is_noticed_and_refused_where_https_is_required() {
    let http =
        "TRUSTEE_URL=http://trustee.example.com\nMODEL_OSS_ENDPOINT=http://oss-cn-beijing.aliyuncs.com\n";
    let files = |tuning: &str| parse(&[toml(tuning), env(&format!("{MINIMAL}{http}"))]);
    let codes =
        |parsed: &Parsed| notices(parsed).into_iter().filter(|n| n.contains("http")).collect::<Vec<_>>();
    assert_eq!(codes(&files("")), ["cai.env:8 config.trustee-http", "cai.env:9 config.oss-http"]);
    assert_eq!(
        problems(files("trustee.require_https = true")),
        ["cai.env:8: TRUSTEE_URL is plain http, and trustee.require_https is set"]
    );
    assert!(parse_toml("trustee.require_https = true").unwrap().0.trustee.require_https);
}

#[test]
fn mount_and_cache_must_not_lie_in_each_other() {
    for cache in ["/tmp/model", "/tmp/model/cache", "/tmp"] {
        assert_eq!(
            problems(parse_toml(&format!("cache.dir = \"{cache}\""))),
            [format!("cai.env:7: MODEL_MOUNT_POINT and cache.dir ({cache}) lie in each other")]
        );
    }
    assert!(parse_toml("cache.dir = \"/tmp/model2\"").is_ok());
}

#[test]
fn sample_attester_is_refused_outside_sandbox_builds_and_noticed_in_them() {
    let files = || [toml("[attest]\ntee = \"sample\"\n"), env(MINIMAL)];
    assert_eq!(
        problems(parse(&files())),
        ["cai.toml:2: attest.tee is sample, which exists in sandbox builds only"]
    );
    let sandbox = config::Facts { sandbox: true, ..FACTS };
    let parsed = config::parse(&files(), Path::new("/"), &sandbox);
    assert_eq!(notices(&parsed), ["cai.toml:2 config.sample-tee"]);
    assert_eq!(parsed.unwrap().0.attest.tee, TeeChoice::Sample);
    assert_eq!(config::Facts::here().sandbox, cfg!(feature = "sandbox"));
}

#[test]
fn who_may_read_the_model_is_noticed_when_it_is_everybody_or_only_root() {
    assert_eq!(notices(&parse_toml("mount.permissions = \"0444\"")), ["cai.toml:1 config.world-readable"]);
    let no_group = config::Facts { model_gid: None, ..FACTS };
    let parsed = config::parse(&[env(MINIMAL)], Path::new("/"), &no_group);
    assert_eq!(notices(&parsed), ["built-in values config.no-model-group"]);
    assert_eq!(parsed.unwrap().0.mount.gid, 0);
    let (settings, found) =
        config::parse(&[toml("mount.gid = 7"), env(MINIMAL)], Path::new("/"), &no_group).unwrap();
    assert_eq!((settings.mount.gid, found), (7, vec![]));
}

#[test]
fn secrets_in_a_file_that_everybody_reads_are_noticed() {
    let readable = |text: &str| SourceFile { mode: Some(0o644), ..env(text) };
    assert_eq!(notices(&parse(&[readable(MINIMAL)])), ["cai.env config.secrets-readable"]);
    let anonymous = format!("{MINIMAL}MODEL_OSS_ACCESS_KEY_ID=\nMODEL_OSS_SECRET_ACCESS_KEY=\n");
    let codes = notices(&parse(&[readable(&anonymous)]));
    assert!(!codes.iter().any(|code| code.contains("secrets_readable")), "{codes:?}");
}

#[test]
fn what_has_no_effect_yet_is_noticed() {
    assert_eq!(notices(&parse_env("TRUSTEE_POLICY=strict\n")), ["cai.env:8 config.unused"]);
    // The policy is for peers.
    let parsed = parse_env("MODEL_SHARING_PEER=10.0.0.1\nTRUSTEE_POLICY=strict\n");
    assert_eq!(notices(&parsed), Vec::<String>::new());
    let (settings, _) = parsed.unwrap();
    assert_eq!(settings.peer.addresses, ["10.0.0.1:5390".parse().unwrap()]);
}

#[test]
fn model_in_a_format_of_a_vendor_is_said_to_be_one() {
    let sam = |toml_text| parse(&[env(&format!("{MINIMAL}MODEL_ENCRYPTION_METHOD=sam\n")), toml(toml_text)]);
    let parsed = sam("sam.key_id = \"LD_Demo_0001\"");
    assert_eq!(notices(&parsed), ["cai.env:8 config.sam"]);
    let (settings, _) = parsed.unwrap();
    assert_eq!((settings.model.encryption, settings.sam.key_id.as_str()), (Encryption::Sam, "LD_Demo_0001"));
    for (toml, flaw) in [
        ("sam.key_id = \"seven77\"", "sam.key_id is \"seven77\""),
        ("sam.adapter_sha256 = \"00\"", "sam.adapter_sha256 has not 64 hexadecimal digits"),
        ("sam.key_id = \"LD_Demo_0001\"\nmount.mode = \"ram\"", "mount.mode is load or ram"),
    ] {
        let found = problems(sam(toml));
        assert!(found.len() == 1 && found[0].contains(flaw), "{found:?}");
    }
}

#[test]
fn variable_that_compose_would_expand_is_refused() {
    let found = problems(parse_env("MODEL_OSS_BUCKET_PATH=\"${BUCKET}:/qwen\"\n"));
    assert_eq!(found.len(), 1);
    assert!(
        found[0].starts_with("cai.env:8: MODEL_OSS_BUCKET_PATH holds a $ that docker compose"),
        "{found:?}"
    );
    assert_eq!(notices(&parse_env("PATH_OF_MINE=$HOME\n")), ["cai.env:8 config.foreign"]);
}

// ---- Order of the files --------------------------------------------------------------------------------------------

#[test]
fn later_file_wins_key_by_key() {
    let first = toml("[oss]\nconcurrency = 2\ntimeout_secs = 2\n[mount]\nthreads = 2\n");
    let second = file("10.toml", FileKind::Toml, "[oss]\ntimeout_secs = 3\n[mount]\nthreads = 3\n");
    let third = file("20.toml", FileKind::Toml, "mount.threads = 4\n");
    let (settings, _) = parse(&[first, second, third, env(MINIMAL)]).unwrap();
    assert_eq!(settings.oss.concurrency, 2);
    assert_eq!(settings.oss.timeout.as_secs(), 3);
    assert_eq!(settings.mount.threads, 4);
    assert_eq!(settings.trustee.protocol, Protocol::Auto);
}

#[test]
fn wrong_value_is_a_problem_even_where_a_later_file_replaces_it() {
    let first = toml("oss.concurrency = 0\n");
    let second = file("10.toml", FileKind::Toml, "oss.concurrency = 1\n");
    assert_eq!(
        problems(parse(&[first, second, env(MINIMAL)])),
        ["cai.toml:1: oss.concurrency is out of range"]
    );
}

// ---- Files on disk -------------------------------------------------------------------------------------------------

/// A root directory with `etc/cai` and these files in it.
fn root(files: &[(&str, &[u8])]) -> tempfile::TempDir {
    let root = tempfile::tempdir().unwrap();
    let directory = root.path().join("etc/cai");
    std::fs::create_dir_all(directory.join("cai.toml.d")).unwrap();
    for (name, bytes) in files {
        let path = directory.join(name);
        std::fs::write(&path, bytes).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o640)).unwrap();
    }
    root
}

/// Problems of loading `root`, with its path cut off.
fn load_problems(root: &Path) -> Vec<String> {
    let prefix = format!("{}/etc/cai/", root.display());
    problems(config::load(root)).iter().map(|line| line.replace(&prefix, "")).collect()
}

#[test]
fn load_reads_below_root_in_the_documented_order_and_puts_root_before_every_path() {
    let root = root(&[
        ("cai.env", MINIMAL.as_bytes()),
        ("cai.toml", b"[mount]\nthreads = 1\nuid = 1\n[trustee]\nca_file = \"/etc/ca.pem\"\n"),
        ("cai.toml.d/20-b.toml", b"mount.threads = 3\n"),
        ("cai.toml.d/10-a.toml", b"mount.threads = 2\nmount.readahead_kib = 2\n"),
        ("cai.toml.d/.hidden.toml", b"mount.threads = 9\n"),
        ("cai.toml.d/30.toml.rpmnew", b"mount.threads = 9\n"),
    ]);
    let (settings, _) = config::load(root.path()).unwrap();
    assert_eq!((settings.mount.uid, settings.mount.readahead_kib, settings.mount.threads), (1, 2, 3));
    assert_eq!(settings.root, root.path());
    assert_eq!(settings.mount.point, root.path().join("tmp/model"));
    assert_eq!(settings.cache.dir, root.path().join("var/cache/cai"));
    assert_eq!(settings.trustee.ca_file, Some(root.path().join("etc/ca.pem")));
}

#[test]
fn missing_env_file_is_one_problem_that_says_what_to_do() {
    let root = root(&[("cai.toml", b"oss.concurrency = 0\n")]);
    let problems = config::load(root.path()).err().unwrap().problems;
    assert_eq!(
        load_problems(root.path()),
        ["cai.env: does not exist", "cai.toml:1: oss.concurrency is out of range"]
    );
    let path = root.path().join("etc/cai/cai.env");
    assert_eq!(problems[0].example, Some(format!("install -m 0640 -g cai ~/cai.env {}", path.display())));
}

#[test]
fn files_that_cannot_be_used_are_each_one_problem() {
    let large = vec![b'#'; 64 * 1024 + 1];
    let full = [MINIMAL.as_bytes(), &vec![b'#'; 64 * 1024 - MINIMAL.len()]].concat();
    let cases: [(&[u8], &str); 3] = [
        (&large, "cai.env: is too large"),
        (b"A=1\nMODEL_KEY_ID=\xff\n", "cai.env:2: is not UTF-8 text"),
        (b"\x00", "cai.env:1: this line has no `=`"),
    ];
    for (bytes, expected) in cases {
        let root = root(&[("cai.env", bytes)]);
        assert!(load_problems(root.path()).iter().any(|found| found == expected), "{expected}");
    }
    assert!(config::load(root(&[("cai.env", &full)]).path()).is_ok(), "a file of exactly the limit is read");
}

#[test]
fn what_is_no_regular_file_is_refused_without_waiting_for_it() {
    let root = root(&[]);
    let path = root.path().join("etc/cai/cai.env");
    nix::unistd::mkfifo(&path, nix::sys::stat::Mode::S_IRUSR).unwrap();
    assert_eq!(load_problems(root.path()), ["cai.env: is not a regular file"]);
    std::fs::remove_file(&path).unwrap();
    std::os::unix::fs::symlink("cai.env", &path).unwrap();
    let found = load_problems(root.path());
    assert_eq!(found.len(), 1);
    assert!(found[0].starts_with("cai.env: cannot be read: "), "{found:?}");
}

#[test]
fn drop_in_directory_with_too_many_files_or_none_is_handled() {
    let root = root(&[("cai.env", MINIMAL.as_bytes())]);
    let directory = root.path().join("etc/cai/cai.toml.d");
    for index in 0..65 {
        std::fs::write(directory.join(format!("{index:02}.toml")), "").unwrap();
    }
    assert_eq!(load_problems(root.path()), ["cai.toml.d: holds 65 files"]);
    std::fs::remove_dir_all(&directory).unwrap();
    assert!(config::load(root.path()).is_ok());
}

// ---- The object store alone ----------------------------------------------------------------------------------------

#[test]
fn object_store_alone_needs_only_its_own_variables() {
    let root = root(&[(
        "cai.env",
        b"MODEL_OSS_BUCKET_PATH=conf-ai:/a\nMODEL_OSS_ENDPOINT=oss-cn-beijing.aliyuncs.com\n",
    )]);
    let (oss, found) = config::load_oss(root.path(), None, OssOverrides::default()).unwrap();
    assert_eq!((oss.bucket.as_str(), oss.prefix.as_str(), oss.concurrency), ("conf-ai", "a/", 32));
    assert_eq!(found.iter().map(|notice| notice.code).collect::<Vec<_>>(), ["config.oss-anonymous"]);
}

#[test]
fn object_store_options_win_over_the_file_and_are_named_in_problems() {
    let root = root(&[("owner.env", MINIMAL.as_bytes()), ("cai.toml", b"oss.concurrency = 4\n")]);
    let file = root.path().join("etc/cai/owner.env");
    let overrides = OssOverrides {
        bucket_path: Some("other:/b".to_owned()),
        endpoint: Some("https://oss-cn-hangzhou.aliyuncs.com".to_owned()),
        region: None,
    };
    let (oss, _) = config::load_oss(root.path(), Some(&file), overrides).unwrap();
    assert_eq!((oss.bucket.as_str(), oss.prefix.as_str(), oss.concurrency), ("other", "b/", 4));
    assert_eq!(oss.region.as_deref(), Some("cn-hangzhou"));
    assert!(access_key(oss.credentials).secret_access_key.with(|bytes| bytes == b"hunter2"));
    let overrides = OssOverrides { endpoint: Some("ftp://x".to_owned()), ..Default::default() };
    assert_eq!(
        problems(config::load_oss(root.path(), Some(&file), overrides)),
        ["option --endpoint: MODEL_OSS_ENDPOINT is neither http nor https"]
    );
}

#[test]
fn object_store_without_file_takes_the_options_and_a_named_file_must_exist() {
    let root = root(&[]);
    let overrides = OssOverrides {
        bucket_path: Some("conf-ai:/a".to_owned()),
        endpoint: Some("http://127.0.0.1:9000".to_owned()),
        region: Some("cn-beijing".to_owned()),
    };
    let (oss, _) = config::load_oss(root.path(), None, overrides.clone()).unwrap();
    assert_eq!(oss.region.as_deref(), Some("cn-beijing"));
    assert_eq!(
        problems(config::load_oss(root.path(), None, OssOverrides::default())),
        [
            "options and cai.env: MODEL_OSS_BUCKET_PATH is not set",
            "options and cai.env: MODEL_OSS_ENDPOINT is not set"
        ]
    );
    let missing = root.path().join("no.env");
    let found = problems(config::load_oss(root.path(), Some(&missing), overrides));
    assert_eq!(found, [format!("{}: does not exist", missing.display())]);
}

// ---- Secrets -------------------------------------------------------------------------------------------------------

/// Everything that could be printed or logged about a configuration.
fn everything_said(parsed: &Parsed) -> String {
    match parsed {
        Ok((settings, notices)) => {
            format!("{:?} {notices:?} {}", settings.effective(), serde_json::to_string(notices).unwrap())
        }
        Err(problems) => {
            let json = serde_json::to_string(&(&problems.problems, &problems.notices)).unwrap();
            format!("{problems} {problems:?} {json} {}", problems.hint())
        }
    }
}

#[test]
fn no_secret_is_ever_said_wherever_it_was_put() {
    let secret = "S3cr3tS3cr3t";
    let places = [
        format!("MODEL_OSS_SECRET_ACCESS_KEY={secret}\n"),
        format!("MODEL_OSS_SECRET_ACCESS_KEY=\"{secret}\n"),
        format!("MODEL_OSS_SECRET_ACCESS_KEY={secret} x\n"),
        format!("MODEL_OSS_SECRET_ACCESS_KEY=\"{secret}\u{7}\"\n"),
        format!("MODEL_OSS_SECRET_ACCESS_KEY=\"{secret}\" \"{secret}\"\n"),
        format!("MODEL_OSS_SECRET_ACCESS_KEY=${{{secret}}}\n"),
        format!("MODEL_OSS_SESSION_TOKEN=é{secret}\n"),
        format!("MODEL_OSS_SECRET_KEY={secret}\n"),
        format!("OSS_SECRET={secret}\n"),
        format!("MODEL_OSS_SECRET_ACCESS_KEY\n{secret}\n"),
        format!("MODEL_OSS_SESSION_TOKEN=half\n{secret}==\n"),
        format!("MODEL_OSS_ENDPOINT=https://id:{secret}@oss-cn-beijing.aliyuncs.com\n"),
        format!("MODEL_OSS_ENDPOINT=https://oss-cn-beijing.aliyuncs.com/?Signature={secret}\n"),
        format!("TRUSTEE_URL=http://u:{secret}@host:99999/\n"),
        format!("TRUSTEE_URL=http://h/?token={secret}\n"),
    ];
    for place in places {
        let said = everything_said(&parse_env(&place));
        assert!(!said.contains(secret), "{place} was said in: {said}");
    }
    for place in [format!("oss.secret = \"{secret}\""), format!("[oss]\nsecret_access_key = {secret}\n")] {
        let said = everything_said(&parse_toml(&place));
        assert!(!said.contains(secret), "{place} was said in: {said}");
    }
}

proptest::proptest! {
    #[test]
    fn any_files_are_settled_without_panic_and_never_say_the_secret(
        noise in "[A-Z_=\"'#$ \n\r\t.\\[\\]é]{0,60}",
        tuning in "(\\[[a-z]{0,8}\\]\n)?([a-z_.]{1,12} = [0-9a-z\"\\[\\]{}]{0,8}\n){0,3}",
    ) {
        let text = format!("{MINIMAL}MODEL_OSS_SECRET_ACCESS_KEY=S3cr3t\n{noise}");
        let parsed = parse(&[toml(&tuning), env(&text)]);
        proptest::prop_assert!(!everything_said(&parsed).contains("S3cr3t"));
        if let Err(problems) = &parsed {
            proptest::prop_assert!(!problems.problems.is_empty());
        }
    }
}

#[test]
fn pins_of_the_model_are_read_in_their_forms_and_refused_in_others() {
    let key = "11qYAYKxCrfVS/7TyWQHOg7hcvPapiMlrwIaaPcHURo=";
    let hex = "d75a980182b10ab7d54bfed3c964073a0ee172f3daa62325af021a68f707511a";
    let pin = |toml: &str| parse_toml(toml).map(|(settings, _)| settings.model.pin);
    let pinned = pin(&format!("model.publisher_key = \"{key}\"")).unwrap();
    assert_eq!(pinned.publisher.unwrap().to_string(), key);
    assert_eq!(pin(&format!("model.publisher_key = \"{hex}\"")).unwrap(), pinned);
    let identity = pin(&format!("model.manifest_sha256 = \"{hex}\"")).unwrap();
    assert_eq!((identity.publisher, identity.identity.unwrap().to_string()), (None, hex.to_owned()));
    assert_eq!(pin("").unwrap(), cai::manifest::Pin::default());
    assert_eq!(
        problems(parse_toml("[model]\npublisher_key = \"AAAA\"\nmanifest_sha256 = \"ab\"\n")),
        [
            "cai.toml:2: model.publisher_key is no Ed25519 public key",
            "cai.toml:3: model.manifest_sha256 has not 64 hexadecimal digits",
        ]
    );
}

#[test]
fn what_needs_the_whole_model_needs_a_disk_that_keeps_it() {
    for (words, why) in [("bounded", "MODEL_WAIT is full"), ("none", "MODEL_WAIT is full")] {
        let cache = toml(&format!("cache.mode = \"{words}\"\n"));
        let flaw =
            format!("cai.toml:1: cache.mode is {words}, and {why}, which needs the whole model on the disk");
        assert_eq!(problems(parse(&[cache, env(&format!("{MINIMAL}MODEL_WAIT=full\n"))])), [flaw]);
    }
    let flaw =
        "cai.toml:2: cache.mode is none, and mount.mode is ram, which needs the whole model on the disk";
    assert_eq!(problems(parse_toml("mount.mode = \"ram\"\ncache.mode = \"none\"\n")), [flaw]);
    for sound in
        ["mount.mode = \"ram\"\n", "mount.mode = \"ram\"\ncache.mode = \"full\"\n", "cache.mode = \"none\"\n"]
    {
        assert!(parse_toml(sound).is_ok(), "{sound}");
    }
}
