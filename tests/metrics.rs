//! Claim: what cai tells Prometheus is what its status says, in a form that a real Prometheus takes without a word; every expression
//! of the dashboard and of the alerts gives an answer there; and nobody who scrapes, slowly or in a crowd, is more than that.

#![cfg(feature = "sandbox")]

#[path = "common/backend.rs"]
mod backend;
mod common;
#[path = "common/port.rs"]
mod port;
#[path = "common/sandbox.rs"]
mod sandbox;
#[path = "common/world.rs"]
mod world;

use std::fs;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use backend::Backend;
use bytes::Bytes;
use cai::config::{self, FileKind, SourceFile};
use cai::metrics::FAMILIES;
use common::{available, free, wait_until};
use serde_json::Value;
use world::World;

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// Where setup.sh put Prometheus' programs.
fn tools() -> Option<PathBuf> {
    let directory = root().join(".tools/prometheus");
    let present = directory.join("prometheus").exists() && directory.join("promtool").exists();
    available("prometheus", present, "no Prometheus; run scripts/setup.sh test").then_some(directory)
}

/// What comes back for a request, to the end of the connection.
fn answer(mut stream: impl Read + Write, request: &str) -> String {
    stream.write_all(request.as_bytes()).unwrap();
    let mut text = String::new();
    stream.read_to_string(&mut text).unwrap();
    text
}

fn scrape(stream: impl Read + Write) -> String {
    let text = answer(stream, "GET /metrics HTTP/1.1\r\nHost: cai\r\n\r\n");
    let (head, body) = text.split_once("\r\n\r\n").unwrap();
    assert!(head.starts_with("HTTP/1.1 200 OK\r\n"), "{head}");
    assert!(head.contains("content-type: text/plain; version=0.0.4; charset=utf-8"), "{head}");
    body.to_owned()
}

/// The value of the only sample with this name and these labels.
fn value(text: &str, sample: &str) -> u64 {
    let line = text.lines().find_map(|line| line.strip_prefix(sample)?.strip_prefix(' '));
    line.unwrap_or_else(|| panic!("no {sample} in\n{text}")).parse().unwrap()
}

fn promtool(tools: &Path, arguments: &[&str], input: &str) {
    let mut command = Command::new(tools.join("promtool"));
    command.args(arguments).current_dir(root()).stdin(Stdio::piped());
    let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    child.stdin.take().unwrap().write_all(input.as_bytes()).unwrap();
    let output = child.wait_with_output().unwrap();
    let said = [output.stdout, output.stderr].concat();
    assert!(output.status.success(), "promtool {arguments:?}: {}", String::from_utf8_lossy(&said));
    // Of bad names and units it only warns.
    assert!(arguments != ["check", "metrics"] || said.is_empty(), "{}", String::from_utf8_lossy(&said));
}

/// A Prometheus that scrapes one agent, with the alerts that we ship.
struct Prometheus {
    child: Child,
    at: SocketAddr,
    _directory: tempfile::TempDir,
}

impl Drop for Prometheus {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Prometheus {
    fn start(tools: &Path, target: SocketAddr) -> Self {
        let (directory, at) = (tempfile::tempdir().unwrap(), free());
        let config = directory.path().join("prometheus.yml");
        let rules = root().join("packaging/prometheus/cai.rules.yml");
        let text = format!(
            "global: {{scrape_interval: 200ms, evaluation_interval: 200ms}}\n\
             rule_files: [\"{}\"]\n\
             scrape_configs: [{{job_name: cai, static_configs: [{{targets: [\"{target}\"]}}]}}]\n",
            rules.display()
        );
        fs::write(&config, text).unwrap();
        let log = fs::File::create(directory.path().join("log")).unwrap();
        let child = Command::new(tools.join("prometheus"))
            .arg(format!("--config.file={}", config.display()))
            .arg(format!("--storage.tsdb.path={}", directory.path().join("data").display()))
            .arg(format!("--web.listen-address={at}"))
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .unwrap();
        Prometheus { child, at, _directory: directory }
    }

    /// `None` while it does not answer yet.
    async fn get(&self, path: &str, query: &[(&str, &str)]) -> Option<Value> {
        let url = url::Url::parse_with_params(&format!("http://{}/api/v1/{path}", self.at), query).unwrap();
        let text = reqwest::get(url).await.ok()?.text().await.ok()?;
        serde_json::from_str(&text).ok()
    }

    /// Samples that an expression gives now.
    async fn query(&self, expression: &str) -> Vec<Value> {
        let answer = self.get("query", &[("query", expression)]).await.unwrap_or_default();
        assert!(answer.is_null() || answer["status"] == "success", "{expression}\n{answer}");
        answer["data"]["result"].as_array().cloned().unwrap_or_default()
    }

    async fn wait_for(&self, expression: &str) {
        for _ in 0..600 {
            if !self.query(expression).await.is_empty() {
                return;
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        panic!("waited 30 s for {expression}");
    }
}

/// Every expression of the dashboard, as Grafana would ask it.
fn dashboard() -> Vec<String> {
    let text = fs::read_to_string(root().join("packaging/grafana/cai.json")).unwrap();
    let dashboard: Value = serde_json::from_str(&text).unwrap();
    let variables = dashboard["templating"]["list"].as_array().unwrap();
    let names: Vec<_> = variables.iter().map(|variable| variable["name"].as_str().unwrap()).collect();
    assert_eq!(names, ["datasource", "instance"]);
    let panels = dashboard["panels"].as_array().unwrap();
    let rows = panels.iter().filter(|panel| panel["type"] == "row").map(|row| row["title"].as_str().unwrap());
    assert_eq!(rows.collect::<Vec<_>>(), ["State", "Pull", "Reads", "Attestation", "Service port", "Peers"]);
    let targets = panels.iter().filter_map(|panel| panel["targets"].as_array()).flatten();
    let asked = |target: &Value| {
        let expression = target["expr"].as_str().unwrap();
        expression.replace("$instance", ".+").replace("$__rate_interval", "10s")
    };
    targets.map(asked).collect()
}

/// An agent with a service port, a peer that is not there, and metrics at a port.
async fn whole_world(backend: SocketAddr) -> Option<(World, SocketAddr, SocketAddr)> {
    let mut world = World::with_small_model().await?;
    let (metrics, gateway, peers, nobody) = (free(), free(), free(), free());
    world.env += &format!("MODEL_SHARING_PEER=\"{nobody}\"\n");
    world.toml = format!(
        "[metrics]\nlisten = \"{metrics}\"\n[gateway]\nlisten = \"{gateway}\"\nbackend = \"{backend}\"\n\
         [peer]\nattestation = \"network\"\nport = {}\n",
        peers.port()
    );
    Some((world, metrics, gateway))
}

#[tokio::test(flavor = "multi_thread")]
async fn real_prometheus_answers_every_expression_of_dashboard_and_alerts() {
    let Some(tools) = tools() else { return };
    let echo = Backend::echo().await;
    let Some((world, metrics, gateway)) = whole_world(echo.at).await else { return };
    let mut agent = world.agent();
    world.wait_state(&mut agent, "Serving");
    let prometheus = Prometheus::start(&tools, metrics);
    world.assert_model_is_readable();
    let mut stream = port::tunnel(gateway).await.open().await.unwrap();
    stream.send(Bytes::from_static(b"twelve bytes"), true).await.unwrap();
    assert_eq!(stream.read_to_end().await.unwrap(), b"twelve bytes");
    assert!(world.cai(&["rotate"]).status.success());
    wait_until("all that happened to be told", || {
        let text = scrape(TcpStream::connect(metrics).unwrap());
        text.contains("cai_rotations_total{outcome=\"unchanged\"} 1")
            && text.contains("cai_gateway_sent_bytes_total 12")
            && value(&text, "cai_model_local_bytes") == value(&text, "cai_model_bytes")
    });

    let text = scrape(TcpStream::connect(metrics).unwrap());
    promtool(&tools, &["check", "metrics"], &text);
    assert_is_the_status(&text, &world);
    // Two scrapes with everything in them make a rate.
    prometheus.wait_for("count_over_time(cai_rotations_total[10s]) >= 3").await;
    let mut asked = 0;
    for expression in dashboard() {
        let found = prometheus.query(&expression).await;
        // There is no failure in this world, and no credential that expires.
        let none = ["cai_failures_total", "credentials_expire"].iter().any(|name| expression.contains(name));
        assert_eq!(found.is_empty(), none, "{expression}");
        asked += 1;
    }
    assert!(asked > 40, "{asked}");
    prometheus.wait_for("ALERTS or vector(1)").await;
    let rules = prometheus.get("rules", &[]).await.unwrap();
    let rules = rules["data"]["groups"][0]["rules"].as_array().unwrap().clone();
    assert_eq!(rules.len(), 11);
    for rule in rules {
        assert_eq!((&rule["health"], &rule["state"]), (&"ok".into(), &"inactive".into()), "{rule}");
    }
    assert_eq!(agent.stop().code(), Some(0));
    prometheus.wait_for("up == 0").await;
}

/// What is told is what `cai status --json` says, and what this world knows besides; and none of it is a name or a secret.
fn assert_is_the_status(text: &str, world: &World) {
    let status = world.status().unwrap();
    let number = |name: &str, field: &str| status[name][field].as_u64().unwrap();
    assert_eq!(value(text, "cai_state{state=\"Serving\"}"), 1);
    assert_eq!(value(text, "cai_state{state=\"Failed\"}"), 0);
    assert_eq!(value(text, "cai_model_bytes"), number("Progress", "BytesTotal"));
    // The first reads of the two weight files that are not here fetch what they ask for, beside the chunk.
    let (fetched, total) =
        (value(text, "cai_ciphertext_bytes_total{source=\"oss\"}"), number("Progress", "BytesTotal"));
    assert!((total..total + (8 << 20)).contains(&fetched), "{fetched} of {total}");
    assert_eq!(value(text, "cai_attested_timestamp_seconds"), status["AttestedAt"].as_u64().unwrap());
    assert_eq!(value(text, "cai_keys_released_total"), status["KeyGeneration"].as_u64().unwrap());
    let revision = status["ModelRevision"].as_str().unwrap();
    assert!(text.contains(&format!("revision=\"{revision}\"")), "{text}");
    let plain: usize = world.model.values().map(Vec::len).sum();
    assert!(value(text, "cai_mount_read_bytes_total") >= plain as u64);
    assert!(value(text, "cai_decrypt_bytes_total") >= plain as u64);
    let reads = |data: &str| value(text, &format!("cai_mount_read_seconds_count{{data=\"{data}\"}}"));
    assert!(reads("local") + reads("remote") > 3, "{text}");
    assert_eq!(value(text, "cai_mount_read_errors_total"), 0);
    assert_eq!(value(text, "cai_gateway_received_bytes_total"), 12);
    assert_eq!(value(text, "cai_gateway_handshakes_total"), 1);
    let peer = status["Peers"][0]["Address"].as_str().unwrap();
    assert_eq!(value(text, &format!("cai_peer_connected{{peer=\"{peer}\"}}")), 0);
    for secret in ["Tr0ub4dor", sandbox::ACCESS_KEY_SECRET, "safetensors", "tokenizer"] {
        assert!(!text.contains(secret), "{secret} is told");
    }
}

#[test]
fn shipped_alerts_fire_where_they_should() {
    let Some(tools) = tools() else { return };
    promtool(&tools, &["check", "rules", "packaging/prometheus/cai.rules.yml"], "");
    promtool(&tools, &["check", "config", "packaging/prometheus/prometheus.yml"], "");
    promtool(&tools, &["test", "rules", "tests/metrics/rules.test.yml"], "");
}

#[tokio::test(flavor = "multi_thread")]
async fn socket_is_for_owner_and_group_replaces_a_dead_one_and_goes_with_the_agent() {
    let Some(mut world) = World::with_small_model().await else { return };
    let directory = world.root().join("run");
    fs::create_dir_all(&directory).unwrap();
    fs::set_permissions(&directory, fs::Permissions::from_mode(0o777)).unwrap();
    let path = directory.join("metrics.sock");
    world.toml = "[metrics]\nlisten = \"unix:/run/metrics.sock\"\n".into();

    // In use, then dead, then no socket at all.
    let used = UnixListener::bind(&path).unwrap();
    let refused = |what: &str| {
        let mut agent = world.agent();
        assert_eq!(agent.wait().code(), Some(78));
        let log = agent.log();
        assert!(log.contains(what) && log.contains("[metrics.occupied]"), "{log}");
    };
    refused("there is a socket that somebody uses already");
    drop(used);
    fs::set_permissions(&path, fs::Permissions::from_mode(0o666)).unwrap();
    let mut agent = world.agent();
    world.wait_state(&mut agent, "Serving");
    let found = fs::symlink_metadata(&path).unwrap();
    let user = nix::unistd::User::from_name("cai").unwrap().unwrap();
    assert_eq!((found.uid(), found.gid()), (user.uid.as_raw(), user.gid.as_raw()));
    assert_eq!(found.permissions().mode() & 0o7777, 0o660);
    assert_crowd_is_bounded(&world, &path);
    assert_eq!(agent.stop().code(), Some(0));
    assert!(!path.exists());
    fs::write(&path, "mine").unwrap();
    refused("there is something that is no socket already");
    assert_eq!(fs::read_to_string(&path).unwrap(), "mine");
}

/// Four who say nothing take all places, for ten seconds, and nothing else; the fifth comes after them.
fn assert_crowd_is_bounded(world: &World, path: &Path) {
    let connect = || UnixStream::connect(path).unwrap();
    let idle: Vec<_> = (0..4).map(|_| connect()).collect();
    let mut fifth = connect();
    fifth.set_read_timeout(Some(Duration::from_millis(200))).unwrap();
    fifth.write_all(b"GET /metrics HTTP/1.1\r\nHost: cai\r\n\r\n").unwrap();
    assert!(fifth.read(&mut [0]).is_err(), "the fifth was served beside four others");
    assert_eq!(world.status().unwrap()["State"], "Serving");
    fifth.set_read_timeout(Some(Duration::from_secs(30))).unwrap();
    let mut text = String::new();
    fifth.read_to_string(&mut text).unwrap();
    assert!(text.contains("cai_state{state=\"Serving\"} 1"), "{text}");
    for mut stream in idle {
        stream.set_read_timeout(Some(Duration::from_secs(30))).unwrap();
        assert_eq!(stream.read(&mut [0]).unwrap(), 0, "who says nothing is told nothing");
    }

    let first = |request: &str| answer(connect(), request).lines().next().unwrap_or_default().to_owned();
    assert_eq!(first("GET / HTTP/1.1\r\nHost: cai\r\n\r\n"), "HTTP/1.1 404 Not Found");
    assert_eq!(first("POST /metrics HTTP/1.0\r\n\r\n"), "HTTP/1.0 405 Method Not Allowed");
    assert!(first("\u{0}nonsense\r\n\r\n").contains("400 Bad Request"));
    let head = answer(connect(), "HEAD /metrics HTTP/1.1\r\nHost: cai\r\n\r\n");
    assert!(head.starts_with("HTTP/1.1 200 OK\r\n") && head.ends_with("\r\n\r\n"), "{head}");
}

#[test]
fn other_machines_are_kept_out_by_the_configuration() {
    let problem = |listen: &str| {
        let text = format!("[metrics]\nlisten = \"{listen}\"\n");
        let file = |name: &str, kind, text: &str| SourceFile {
            name: name.into(),
            kind,
            text: text.to_owned().into(),
            mode: Some(0o640),
        };
        let env = "TRUSTEE_URL=https://trustee.example.com/cai\nMODEL_KEY_ID=kbs:///default/aliyun/key\n\
            MODEL_OSS_BUCKET_PATH=conf-ai:/qwen/\nMODEL_OSS_ENDPOINT=https://oss-cn-beijing.aliyuncs.com\n\
            MODEL_MOUNT_POINT=/tmp/model\n";
        let files = [file("cai.toml", FileKind::Toml, &text), file("cai.env", FileKind::Env, env)];
        let facts = config::Facts { model_gid: Some(990), sandbox: false };
        let Err(found) = config::parse(&files, Path::new("/"), &facts) else { return String::new() };
        found.problems.iter().map(|problem| problem.message.clone()).collect::<Vec<_>>().join("; ")
    };
    assert_eq!(problem("0.0.0.0:9464"), "metrics.listen is 0.0.0.0:9464, which other machines reach");
    assert_eq!(
        problem("[2001:db8::1]:9464"),
        "metrics.listen is [2001:db8::1]:9464, which other machines reach"
    );
    for neither in ["9464", "127.0.0.1:0", "localhost:9464", "/run/metrics.sock"] {
        assert_eq!(problem(neither), "metrics.listen is neither ADDRESS:PORT nor unix: and a path");
    }
    assert!(problem("unix:metrics.sock").starts_with("metrics.listen "));
    for right in ["127.0.0.1:9464", "[::1]:9464", "unix:/run/cai-metrics/metrics.sock"] {
        assert_eq!(problem(right), "");
    }
}

#[test]
fn page_has_every_metric_and_no_other_and_the_package_has_the_rest() {
    let page = fs::read_to_string(root().join("docs/metrics.md")).unwrap();
    let rows: Vec<_> = page.lines().filter(|line| line.starts_with("| `cai_")).collect();
    let described = FAMILIES.iter().map(|family| {
        let labels = if family.labels.is_empty() {
            String::new()
        } else {
            format!("{{{}}}", family.labels.join(", "))
        };
        format!("| `{}{labels}` | {} | {} |", family.name, family.kind.name(), family.help)
    });
    assert_eq!(rows, described.collect::<Vec<_>>());
    let expressions = dashboard().join("\n");
    for family in FAMILIES {
        assert!(expressions.contains(family.name), "no panel shows {}", family.name);
    }
    let spec = fs::read_to_string(root().join("packaging/cai.spec")).unwrap();
    assert!(spec.contains(" packaging/prometheus packaging/grafana\n"));
}
