//! Claim: who cai is for the object store is what the operator wrote; nothing is guessed, and what contradicts itself is
//! refused.

use std::path::Path;

use cai::config::{
    self, Addressing, Credentials, FileKind, Metadata, Notice, Problems, Settings, Signature, SourceFile,
};

const FACTS: config::Facts = config::Facts { model_gid: Some(990), sandbox: false };

/// Complete but for an access key.
const NOBODY: &str = "TRUSTEE_URL=https://trustee.example.com/cai\n\
    MODEL_KEY_ID=kbs:///default/aliyun/key\n\
    MODEL_OSS_BUCKET_PATH=conf-ai:/qwen/\n\
    MODEL_OSS_ENDPOINT=https://oss-cn-beijing.aliyuncs.com\n\
    MODEL_MOUNT_POINT=/tmp/model\n";
const KEY: &str = "MODEL_OSS_ACCESS_KEY_ID=LTAI5t\nMODEL_OSS_SECRET_ACCESS_KEY=hunter2\n";
const OIDC: &str = "credentials = \"oidc\"\n\
    role_arn = \"acs:ram::1234567890123456:role/reader\"\n\
    oidc_provider_arn = \"acs:ram::1234567890123456:oidc-provider/ack-rrsa\"\n\
    oidc_token_file = \"/run/token\"\n";

type Parsed = Result<(Settings, Vec<Notice>), Problems>;

/// Settings from `NOBODY` with `env` behind it, and section `oss` of `cai.toml`.
fn parse(env: &str, oss: &str) -> Parsed {
    let file = |name: &str, kind, text: String| SourceFile {
        name: name.to_owned(),
        kind,
        text: text.into(),
        mode: Some(0o640),
    };
    let toml = file("cai.toml", FileKind::Toml, format!("[oss]\n{oss}"));
    config::parse(&[toml, file("cai.env", FileKind::Env, format!("{NOBODY}{env}"))], Path::new("/"), &FACTS)
}

fn credentials(env: &str, oss: &str) -> Credentials {
    parse(env, oss).unwrap().0.oss.credentials
}

fn problems(parsed: Parsed) -> Vec<String> {
    let Err(problems) = parsed else { panic!("no problem was found") };
    problems.problems.iter().map(|problem| format!("{}: {}", problem.at, problem.message)).collect()
}

fn notices(parsed: Parsed) -> Vec<String> {
    parsed.unwrap().1.iter().map(|notice| format!("{} {}", notice.at, notice.code)).collect()
}

#[test]
fn auto_is_the_access_key_or_nobody() {
    assert!(matches!(credentials(KEY, ""), Credentials::Static(key) if key.access_key_id == "LTAI5t"));
    assert!(matches!(credentials("", ""), Credentials::Anonymous));
    assert_eq!(notices(parse("", "")), ["cai.env config.oss-anonymous"]);
    // What was chosen needs no notice.
    assert!(matches!(credentials("", "credentials = \"anonymous\""), Credentials::Anonymous));
    assert_eq!(notices(parse("", "credentials = \"anonymous\"")), [""; 0]);
    assert!(matches!(credentials(KEY, "credentials = \"static\""), Credentials::Static(_)));
}

#[test]
fn choice_and_access_key_that_contradict_each_other_are_refused() {
    assert_eq!(
        problems(parse("", "credentials = \"static\"")),
        ["cai.toml:2: oss.credentials is static, and MODEL_OSS_ACCESS_KEY_ID is not set"]
    );
    for other in ["ecs-ram-role", "oidc", "anonymous"] {
        assert_eq!(
            problems(parse(KEY, &format!("credentials = \"{other}\""))),
            [
                "cai.env:6: MODEL_OSS_ACCESS_KEY_ID is set, and oss.credentials in cai.toml:2 chooses another way"
            ]
        );
    }
    assert_eq!(
        problems(parse("", "credentials = \"env\"")),
        ["cai.toml:2: oss.credentials is none of the words it can be"]
    );
}

#[test]
fn ram_role_is_asked_for_or_named() {
    let Credentials::EcsRamRole(role) = credentials("", "credentials = \"ecs-ram-role\"") else { panic!() };
    assert_eq!((role.name, role.metadata), (None, Metadata::Hardened));
    let more = "credentials = \"ecs-ram-role\"\nram_role = \"cai-model-reader\"\nmetadata = \"normal\"";
    let Credentials::EcsRamRole(role) = credentials("", more) else { panic!() };
    assert_eq!((role.name.as_deref(), role.metadata), (Some("cai-model-reader"), Metadata::Normal));
    let effective: Vec<_> = parse("", more).unwrap().0.effective();
    for (name, value) in [
        ("oss.credentials", "ecs-ram-role"),
        ("oss.ram_role", "cai-model-reader"),
        ("oss.metadata", "normal"),
    ] {
        assert!(effective.contains(&(name, value.to_owned())), "{name}");
    }
    let base = parse("", "credentials = \"ecs-ram-role\"").unwrap().0.fingerprint;
    assert_ne!(base, parse("", more).unwrap().0.fingerprint);
    for bad in ["", "a/b", "..", "a b", &"x".repeat(65)] {
        let oss = format!("credentials = \"ecs-ram-role\"\nram_role = \"{bad}\"");
        assert_eq!(
            problems(parse("", &oss)),
            ["cai.toml:3: oss.ram_role is not the name of a RAM role"],
            "{bad}"
        );
    }
}

#[test]
fn oidc_needs_all_of_its_keys_and_a_protected_sts() {
    let Credentials::Oidc(oidc) = credentials("", OIDC) else { panic!() };
    assert_eq!(oidc.role_arn, "acs:ram::1234567890123456:role/reader");
    assert_eq!(oidc.provider_arn, "acs:ram::1234567890123456:oidc-provider/ack-rrsa");
    assert_eq!(oidc.token_file, Path::new("/run/token"));
    assert_eq!(oidc.sts_endpoint.as_str(), "https://sts.aliyuncs.com/");
    assert_eq!(
        problems(parse("", "credentials = \"oidc\"")),
        [
            "built-in values: oss.role_arn is not set, and oss.credentials is oidc",
            "built-in values: oss.oidc_provider_arn is not set, and oss.credentials is oidc",
            "built-in values: oss.oidc_token_file is not set, and oss.credentials is oidc",
        ]
    );
    for (url, flaw) in [
        ("http://sts.aliyuncs.com", "is plain http"),
        ("http://10.0.0.1", "is plain http"),
        ("https://sts.aliyuncs.com/x", "has a path"),
    ] {
        let oss = format!("{OIDC}sts_endpoint = \"{url}\"");
        assert_eq!(problems(parse("", &oss)), [format!("cai.toml:6: oss.sts_endpoint {flaw}")]);
    }
    assert!(parse("", &format!("{OIDC}sts_endpoint = \"http://127.0.0.1:9\"")).is_ok());
    let swapped = OIDC.replace("role/reader", "user/reader");
    assert_eq!(problems(parse("", &swapped)), ["cai.toml:3: oss.role_arn is not acs:ram::ACCOUNT:role/NAME"]);
}

#[test]
fn key_of_another_choice_is_noticed() {
    let found = notices(parse(KEY, "ram_role = \"r\"\nmetadata = \"normal\"\nrole_arn = \"x\""));
    assert_eq!(found, ["cai.toml:2 config.unused", "cai.toml:3 config.unused", "cai.toml:4 config.unused"]);
}

#[test]
fn signature_v1_needs_no_region_and_cname_no_other_name() {
    let opaque = format!("{KEY}MODEL_OSS_ENDPOINT=https://models.example.com\n");
    assert_eq!(problems(parse(&opaque, "")).len(), 1);
    let (settings, _) = parse(&opaque, "signature = \"v1\"\naddressing = \"cname\"").unwrap();
    let oss = settings.oss;
    assert_eq!((oss.signature, oss.addressing, oss.region), (Signature::V1, Addressing::Cname, None));
    let role = format!("{NOBODY}MODEL_OSS_ENDPOINT=https://models.example.com\n");
    assert!(
        problems(parse(&role, "credentials = \"ecs-ram-role\""))[0].contains("MODEL_OSS_REGION is not set")
    );
}

#[test]
fn access_key_is_read_again_and_nothing_else_of_the_file() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("cai.env");
    let write = |text: &str| std::fs::write(&path, text).unwrap();
    write(&format!("half a line\nMODEL_OSS_WRONG=1\n{KEY}MODEL_OSS_SESSION_TOKEN=t2\n"));
    let (key, _) = config::reread_access_key(&path).unwrap();
    assert!(key.unwrap().session_token.unwrap().with(|token| token == b"t2"));
    write(NOBODY);
    assert!(config::reread_access_key(&path).unwrap().0.is_none());
    write("MODEL_OSS_ACCESS_KEY_ID=LTAI5t\n");
    let Err(error) = config::reread_access_key(&path) else { panic!() };
    assert_eq!(
        error.problems[0].message,
        "MODEL_OSS_SECRET_ACCESS_KEY is not set, and MODEL_OSS_ACCESS_KEY_ID is"
    );
    write(KEY);
    std::fs::set_permissions(&path, std::os::unix::fs::PermissionsExt::from_mode(0o644)).unwrap();
    let (_, notices) = config::reread_access_key(&path).unwrap();
    assert_eq!(notices.iter().map(|notice| notice.code).collect::<Vec<_>>(), ["config.secrets-readable"]);
    std::fs::remove_file(&path).unwrap();
    assert!(config::reread_access_key(&path).is_err());
}
