//! Claim: credentials are renewed before they end, once for everybody, without anybody waiting while the old one is good; and
//! none of them is ever in a log or an error.
#![cfg(feature = "sandbox")]

#[path = "common/log.rs"]
mod log;
#[path = "common/raw_http.rs"]
mod raw_http;
#[path = "common/sandbox.rs"]
mod sandbox;

use std::path::{Path, PathBuf};
use std::time::Duration;

use bytes::Bytes;
use cai::config::{Credentials, EcsRamRole, Metadata, Oidc, Oss, OssCredentials};
use cai::error::{ErrorClass, Fault};
use cai::keyring::Secret;
use cai::oss::{Client, OssError, Reason};
use futures_util::future::join_all;
use log::Log;
use raw_http::{Script, answer};
use sandbox::{BUCKET, Builder, REGION, Sandbox};
use serde_json::{Value, json};

/// Everything that this thread logs from now on, at every level.
fn logged() -> (Log, tracing::subscriber::DefaultGuard) {
    let log = Log::default();
    let writer = log.clone();
    let subscriber = tracing_subscriber::fmt()
        .with_max_level(tracing::Level::TRACE)
        .with_ansi(false)
        .with_writer(move || writer.clone())
        .finish();
    (log, tracing::subscriber::set_default(subscriber))
}

/// How often `what` was logged.
fn count(log: &Log, what: &str) -> usize {
    log.text().matches(what).count()
}

struct Scene {
    sandbox: Sandbox,
    directory: tempfile::TempDir,
}

fn scene() -> Scene {
    let directory = tempfile::tempdir().unwrap();
    let scene = Scene { sandbox: Sandbox::start(Builder::default()), directory };
    std::fs::create_dir_all(scene.directory.path().join("etc/cai")).unwrap();
    std::fs::write(scene.directory.path().join("etc/cai/sandbox-metadata"), &scene.sandbox.cloud).unwrap();
    scene
}

impl Scene {
    fn config(&self, credentials: Credentials) -> Oss {
        Oss {
            region: Some(REGION.into()),
            credentials,
            ..Oss::anonymous(self.sandbox.oss.parse().unwrap(), BUCKET)
        }
    }

    fn role(&self, name: Option<&str>, metadata: Metadata) -> Client {
        let root = self.directory.path().to_owned();
        let role = EcsRamRole { name: name.map(str::to_owned), metadata, root };
        Client::new(&self.config(Credentials::EcsRamRole(role))).unwrap()
    }

    fn oidc(&self) -> Client {
        let oidc = Oidc {
            role_arn: "acs:ram::1234567890123456:role/reader".into(),
            provider_arn: "acs:ram::1234567890123456:oidc-provider/ack".into(),
            token_file: self.path("token"),
            sts_endpoint: self.sandbox.cloud.parse().unwrap(),
        };
        Client::new(&self.config(Credentials::Oidc(oidc))).unwrap()
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    /// Write `key` as an operator would.
    fn write_env(&self, key: &Value) -> PathBuf {
        let field = |name: &str| key[name].as_str().unwrap().to_owned();
        let text = format!(
            "MODEL_OSS_ACCESS_KEY_ID={}\nMODEL_OSS_SECRET_ACCESS_KEY={}\nMODEL_OSS_SESSION_TOKEN='{}'\n",
            field("AccessKeyId"),
            field("AccessKeySecret"),
            field("SecurityToken")
        );
        let path = self.path("cai.env");
        std::fs::write(&path, text).unwrap();
        std::fs::set_permissions(&path, std::os::unix::fs::PermissionsExt::from_mode(0o640)).unwrap();
        path
    }

    fn fixed(&self, key: &Value, env_file: &Path) -> Client {
        let secret = |name: &str| Secret::copy_of(key[name].as_str().unwrap().as_bytes()).unwrap();
        let credentials = Credentials::Static(OssCredentials {
            access_key_id: key["AccessKeyId"].as_str().unwrap().to_owned(),
            secret_access_key: secret("AccessKeySecret"),
            session_token: Some(secret("SecurityToken")),
        });
        Client::new(&Oss { env_file: Some(env_file.to_owned()), ..self.config(credentials) }).unwrap()
    }

    /// Requests to the metadata service: sessions, role names, keys.
    async fn asked(&self) -> [u64; 3] {
        let log = self.sandbox.log().await;
        ["cloud.token", "cloud.role", "cloud.credential"].map(|op| log["counts"][op].as_u64().unwrap_or(0))
    }

    /// Answers of OSS with this status.
    async fn answered(&self, status: u64) -> usize {
        let log = self.sandbox.log().await;
        let of_oss = |entry: &&Value| entry["server"] == "oss" && entry["status"] == status;
        log["requests"].as_array().unwrap().iter().filter(of_oss).count()
    }
}

async fn put_x(client: &Client) -> String {
    client.put("m/x", Bytes::from_static(b"content")).await.unwrap();
    client.head("m/x").await.unwrap().etag.unwrap()
}

/// `count` reads at once.
async fn read(client: &Client, etag: &str, count: usize) -> Vec<Result<Vec<u8>, OssError>> {
    let reads = (0..count)
        .map(|_| async { client.get_range("m/x", etag, 0..7, 7).await.map(|got| got.frames.concat()) });
    join_all(reads).await
}

fn all_read(results: Vec<Result<Vec<u8>, OssError>>) {
    for result in results {
        assert_eq!(result.unwrap(), b"content");
    }
}

#[tokio::test]
async fn key_renewed_in_its_file_is_taken_once_for_all_in_the_middle_of_a_pull() {
    let scene = scene();
    let (log, _guard) = logged();
    let old = scene.sandbox.issue_key().await;
    let path = scene.write_env(&old);
    let client = scene.fixed(&old, &path);
    let etag = put_x(&client).await;
    assert_eq!(client.access().borrow().credentials, "STS");
    scene.sandbox.expire_keys().await;
    let new = scene.sandbox.issue_key().await;
    scene.write_env(&new);
    all_read(read(&client, &etag, 16).await);
    assert_eq!(count(&log, "credentials for OSS: STS"), 1, "{}", log.text());
    let refused = scene.answered(403).await;
    assert!((1..=16).contains(&refused), "{refused}");
    // Nobody uses the old one afterwards.
    all_read(read(&client, &etag, 16).await);
    assert_eq!(scene.answered(403).await, refused);
    for key in [&old, &new] {
        for secret in ["AccessKeySecret", "SecurityToken"] {
            assert!(!log.text().contains(key[secret].as_str().unwrap()), "{secret} is in the log");
        }
    }
}

#[tokio::test]
async fn key_that_is_not_renewed_fails_with_a_hint_and_is_looked_for_again() {
    let scene = scene();
    let (log, _guard) = logged();
    let old = scene.sandbox.issue_key().await;
    let path = scene.write_env(&old);
    let client = scene.fixed(&old, &path);
    let etag = put_x(&client).await;
    scene.sandbox.expire_keys().await;
    for result in read(&client, &etag, 8).await {
        let error = result.unwrap_err();
        assert!(
            matches!(&error, OssError::Refused(refusal) if refusal.reason == Reason::Credentials),
            "{error}"
        );
        assert_eq!((error.class(), error.code()), (ErrorClass::Denied, "oss.credentials"));
        assert!(error.hint().contains("in cai.env, which cai reads again by itself"), "{}", error.hint());
    }
    // One look for all who had asked before it.
    let looked = count(&log, "there is no newer one");
    assert!((1..8).contains(&looked), "{looked}: {}", log.text());
    // A file that cannot be read changes nothing either.
    std::fs::remove_file(&path).unwrap();
    assert!(read(&client, &etag, 1).await.remove(0).is_err());
    assert_eq!(count(&log, "no new credential: reading the access key again"), 1, "{}", log.text());
    scene.write_env(&scene.sandbox.issue_key().await);
    all_read(read(&client, &etag, 4).await);
}

#[tokio::test]
async fn role_is_asked_for_once_and_then_held() {
    let scene = scene();
    let (log, _guard) = logged();
    let owner = Client::new(&scene.sandbox.oss_config()).unwrap();
    let etag = put_x(&owner).await;
    let client = scene.role(None, Metadata::Hardened);
    all_read(read(&client, &etag, 32).await);
    assert_eq!(scene.asked().await, [1, 1, 1]);
    all_read(read(&client, &etag, 32).await);
    assert_eq!(scene.asked().await, [1, 1, 1]);
    let access = client.access().borrow().clone();
    assert_eq!(access.credentials, "RAM role of this machine");
    let left = access.expires.unwrap().duration_since(std::time::SystemTime::now()).unwrap();
    assert!(left > Duration::from_secs(3500) && left <= Duration::from_secs(3600), "{left:?}");
    // The service may be gone: nobody asks it while the credential is valid.
    scene.sandbox.faults(json!([{"do": "cloud_drop"}])).await;
    all_read(read(&client, &etag, 32).await);
    assert_eq!(scene.sandbox.fired().await, [0]);
    assert!(!log.text().contains("CAIS+"), "a token is in the log");

    let named = scene.role(Some("cai-reader"), Metadata::Hardened);
    scene.sandbox.faults(json!([])).await;
    all_read(read(&named, &etag, 1).await);
    assert_eq!(scene.asked().await, [2, 1, 2]);
}

#[tokio::test]
async fn role_that_oss_refuses_is_renewed_once_for_all() {
    let scene = scene();
    let etag = put_x(&Client::new(&scene.sandbox.oss_config()).unwrap()).await;
    let client = scene.role(None, Metadata::Hardened);
    all_read(read(&client, &etag, 1).await);
    scene.sandbox.expire_keys().await;
    all_read(read(&client, &etag, 16).await);
    assert_eq!(scene.asked().await, [2, 2, 2]);
    let refused = scene.answered(403).await;
    all_read(read(&client, &etag, 16).await);
    assert_eq!(scene.answered(403).await, refused);
}

#[tokio::test]
async fn role_is_renewed_ahead_of_its_end_and_the_old_one_serves_meanwhile() {
    let scene = scene();
    scene.sandbox.cloud_rules(json!({"life_secs": 4})).await;
    let etag = put_x(&Client::new(&scene.sandbox.oss_config()).unwrap()).await;
    let client = scene.role(None, Metadata::Hardened);
    let mut access = client.access();
    all_read(read(&client, &etag, 1).await);
    let first = access.borrow_and_update().expires;
    // The first renewal fails; nobody notices.
    scene
        .sandbox
        .faults(json!([{"do": {"cloud_status": {"status": 500}}, "on": ["token"], "times": 1}]))
        .await;
    let renewed = async {
        while access.borrow_and_update().expires == first {
            access.changed().await.unwrap();
        }
    };
    let reading = async {
        loop {
            all_read(read(&client, &etag, 1).await);
            // A pace, so that the log stays readable.
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::select! {
        () = renewed => {}
        () = reading => {}
        () = tokio::time::sleep(Duration::from_secs(30)) => panic!("never renewed"),
    }
    assert_eq!(scene.sandbox.fired().await, [1]);
    assert_eq!(scene.answered(403).await, 0);
}

#[tokio::test]
async fn metadata_without_sessions_is_believed_only_by_choice() {
    let scene = scene();
    let etag = put_x(&Client::new(&scene.sandbox.oss_config()).unwrap()).await;
    scene.sandbox.cloud_rules(json!({"mode": "normal"})).await;
    let error = read(&scene.role(None, Metadata::Hardened), &etag, 1).await.remove(0).unwrap_err();
    assert_eq!((error.class(), error.code()), (ErrorClass::Denied, "oss.credential-refused"));
    assert!(error.hint().contains("oss.metadata = \"normal\""), "{}", error.hint());
    assert_eq!(scene.asked().await, [1, 0, 0]);
    all_read(read(&scene.role(None, Metadata::Normal), &etag, 1).await);
    assert_eq!(scene.asked().await, [2, 1, 1]);
    // Where there are sessions they are used, also by choice of less.
    scene.sandbox.cloud_rules(json!({"mode": "hardened"})).await;
    all_read(read(&scene.role(None, Metadata::Normal), &etag, 1).await);
    // No answer is no refusal.
    scene.sandbox.faults(json!([{"do": "cloud_drop", "on": ["token"]}])).await;
    let error = read(&scene.role(None, Metadata::Normal), &etag, 1).await.remove(0).unwrap_err();
    assert_eq!((error.class(), error.code()), (ErrorClass::Transient, "oss.credential-service"));
    assert_eq!(scene.asked().await, [4, 2, 2]);
}

#[tokio::test]
async fn metadata_that_is_down_is_left_alone_for_a_while() {
    let scene = scene();
    scene.sandbox.faults(json!([{"do": {"cloud_status": {"status": 503}}}])).await;
    let client = scene.role(None, Metadata::Hardened);
    for result in read(&client, "\"x\"", 16).await {
        let error = result.unwrap_err();
        assert_eq!((error.class(), error.code()), (ErrorClass::Transient, "oss.credential-refused"));
    }
    assert_eq!(scene.sandbox.fired().await, [1]);
    let wrong = scene.role(Some("another"), Metadata::Hardened);
    scene.sandbox.faults(json!([])).await;
    let error = read(&wrong, "\"x\"", 1).await.remove(0).unwrap_err();
    assert_eq!((error.class(), error.code()), (ErrorClass::Denied, "oss.credential-refused"));
}

#[tokio::test]
async fn metadata_that_answers_nonsense_is_refused() {
    let scene = scene();
    let key = |end: &str| {
        format!(
            "{{\"Code\":\"Success\",\"AccessKeyId\":\"a\",\"AccessKeySecret\":\"planted\",\"SecurityToken\":\"t\",\
             \"Expiration\":\"{end}\"}}"
        )
    };
    for (body, message) in [
        ("x".repeat(65 << 10), "is longer than 65536 bytes"),
        ("{}".into(), "answered with a wrong document"),
        ("{\"Code\":\"Failed\"}".into(), "answered with a wrong code"),
        (key("tomorrow"), "answered with a wrong expiration"),
        (key("2026-11-22T09:56:24Z").replace("planted", "pla nted"), "answered with a wrong access key"),
    ] {
        let script = Script::start(move |request| {
            let is_key = request.target.ends_with("/r");
            answer("200 OK", &[], if is_key { body.as_bytes() } else { b"session" })
        });
        std::fs::write(
            scene.path("etc/cai/sandbox-metadata"),
            script.endpoint().as_str().trim_end_matches('/'),
        )
        .unwrap();
        let error = scene.role(Some("r"), Metadata::Hardened).head("m/x").await.unwrap_err();
        let text = cai::error::chain(&error);
        assert!(text.contains(message), "{text}");
        assert!(!text.contains("nted"), "{text}");
        assert_eq!(error.code(), "oss.credential-answer");
        let requests = script.requests();
        assert_eq!(requests[0].headers["x-aliyun-ecs-metadata-token-ttl-seconds"], "180");
        assert_eq!(requests[1].headers["x-aliyun-ecs-metadata-token"], "session");
    }
}

#[tokio::test]
async fn oidc_token_is_read_again_for_each_renewal() {
    let scene = scene();
    let etag = put_x(&Client::new(&scene.sandbox.oss_config()).unwrap()).await;
    let client = scene.oidc();
    let error = read(&client, &etag, 1).await.remove(0).unwrap_err();
    assert_eq!((error.class(), error.code()), (ErrorClass::Config, "oss.oidc-token"));
    std::fs::write(scene.path("token"), "sandbox.oidc.token\n").unwrap();
    let client = scene.oidc();
    all_read(read(&client, &etag, 16).await);
    assert_eq!(scene.sandbox.count("cloud.assume").await, 1);
    assert_eq!(client.access().borrow().credentials, "RAM role by OIDC");
    scene.sandbox.cloud_rules(json!({"oidc_token": "rotated.oidc.token"})).await;
    std::fs::write(scene.path("token"), "rotated.oidc.token").unwrap();
    scene.sandbox.expire_keys().await;
    all_read(read(&client, &etag, 16).await);
    assert_eq!(scene.sandbox.count("cloud.assume").await, 2);
    // A token that STS does not take.
    std::fs::write(scene.path("token"), "planted.oidc.token").unwrap();
    let error = read(&scene.oidc(), &etag, 1).await.remove(0).unwrap_err();
    assert_eq!((error.class(), error.code()), (ErrorClass::Denied, "oss.credential-refused"));
    let text = cai::error::chain(&error);
    assert!(text.contains("400 AuthenticationFail.OIDCToken.Invalid (request id STS-REQUEST)"), "{text}");
    assert!(!text.contains("planted"), "{text}");
}

#[tokio::test]
async fn stand_in_refuses_what_the_metadata_service_refuses() {
    let scene = scene();
    let http = reqwest::Client::builder().no_proxy().build().unwrap();
    let base = &scene.sandbox.cloud;
    let role = format!("{base}/latest/meta-data/ram/security-credentials/cai-reader");
    let token = || http.put(format!("{base}/latest/api/token"));
    let ttl = "x-aliyun-ecs-metadata-token-ttl-seconds";
    let name = "x-aliyun-ecs-metadata-token";
    let status = async |request: reqwest::RequestBuilder| request.send().await.unwrap().status().as_u16();
    assert_eq!(status(token()).await, 400);
    assert_eq!(status(token().header(ttl, "21601")).await, 400);
    assert_eq!(status(token().header(ttl, "60").header("X-Forwarded-For", "10.0.0.1")).await, 403);
    let session = token().header(ttl, "60").send().await.unwrap();
    let session = String::from_utf8(session.bytes().await.unwrap().to_vec()).unwrap();
    assert_eq!(status(http.get(&role)).await, 403);
    assert_eq!(status(http.get(&role).header(name, "wrong")).await, 401);
    assert_eq!(status(http.get(&role).header(name, &session)).await, 200);
    assert_eq!(status(http.get(format!("{role}x")).header(name, &session)).await, 404);
}
