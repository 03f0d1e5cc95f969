//! The containers that cai replaces: two of each would fight over the mount point, the port and the GPUs' state.

use std::io::{self, Read as _, Write as _};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use serde::Deserialize;

use super::context::{AS_ROOT, Context};
use super::finding::Finding;
use crate::error::ErrorClass;

/// Docker's socket, below the root.
const SOCKET: &str = "run/docker.sock";
/// How long Docker may take for each step of an answer.
const PATIENCE: Duration = Duration::from_secs(5);
/// Longest list of containers that is read, in bytes: a container has about 2 KiB in it.
const ANSWER: u64 = 4 << 20;

/// The services of the vendor's compose file.
const SERVICES: [&str; 5] = ["attestation-agent", "confidential-data-hub", "oss", "cachefs", "tng"];
/// How their containers are called, before the service's name, where they are started from the vendor's own directory.
const PROJECT: &str = "cai-docker-";
/// Label that says the service of a compose file.
const LABEL: &str = "com.docker.compose.service";
/// Programs that run in them and nowhere else, by the first 15 bytes of their names (proc(5), `comm`).
const PROGRAMS: [&str; 3] = ["attestation-age", "confidential-da", "cachefs"];

/// One container of Docker's list.
#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Container {
    #[serde(default)]
    names: Vec<String>,
    #[serde(default)]
    labels: std::collections::HashMap<String, String>,
}

pub(super) async fn check(context: Arc<Context>) -> Vec<Finding> {
    super::blocking("containers.old", move || vec![look(&context.root.join(SOCKET), &processes())]).await
}

fn look(socket: &Path, programs: &[String]) -> Finding {
    let old = match ask(socket) {
        Ok(list) => list.iter().filter_map(old).collect(),
        Err(error) if [io::ErrorKind::NotFound, io::ErrorKind::ConnectionRefused].contains(&error.kind()) => {
            Vec::new()
        }
        Err(_) if !programs.is_empty() => programs.to_vec(),
        Err(error) => {
            let found = format!("Docker cannot be asked ({error}), and no old process is seen");
            return Finding::unseen("containers.old", found, AS_ROOT);
        }
    };
    let old: Vec<String> = if old.is_empty() { programs.to_vec() } else { old };
    if old.is_empty() {
        return Finding::ok("containers.old", "none of the containers that cai replaces is running");
    }
    Finding::error(
        "containers.old",
        ErrorClass::Config,
        format!("still running: {}", old.join(", ")),
        "they and cai fight over the mount point, the service port and the GPUs",
    )
    .fixed_by("docker compose down, in the directory of the old docker-compose.yml; see docker ps")
}

/// The name of a container that cai replaces.
fn old(container: &Container) -> Option<String> {
    let name = container.names.first()?.trim_start_matches('/').to_owned();
    let service = container.labels.get(LABEL).map(String::as_str);
    let is_old = name.starts_with(PROJECT) || service.is_some_and(|service| SERVICES.contains(&service));
    is_old.then_some(name)
}

/// The running containers.
fn ask(socket: &Path) -> io::Result<Vec<Container>> {
    let mut docker = UnixStream::connect(socket)?;
    docker.set_read_timeout(Some(PATIENCE))?;
    docker.set_write_timeout(Some(PATIENCE))?;
    // HTTP/1.0: the answer ends with the connection.
    docker.write_all(b"GET /containers/json HTTP/1.0\r\nHost: docker\r\n\r\n")?;
    let mut answer = Vec::new();
    docker.take(ANSWER).read_to_end(&mut answer)?;
    parse(&answer)
}

fn parse(answer: &[u8]) -> io::Result<Vec<Container>> {
    let wrong = |what: &str| io::Error::new(io::ErrorKind::InvalidData, what.to_owned());
    let text = std::str::from_utf8(answer).map_err(|_| wrong("its answer is not text"))?;
    let (head, body) =
        text.split_once("\r\n\r\n").ok_or_else(|| wrong("its answer has no end of its head"))?;
    let status = head.split_whitespace().nth(1).unwrap_or_default();
    if status != "200" {
        return Err(wrong(&format!("it answers {status}")));
    }
    serde_json::from_str(body).map_err(|_| wrong("its answer is no list of containers"))
}

/// Programs of the old containers among the processes that can be seen.
fn processes() -> Vec<String> {
    let entries = std::fs::read_dir("/proc").into_iter().flatten().flatten();
    let names = entries.filter_map(|entry| super::read(&entry.path().join("comm")));
    let mut old: Vec<String> =
        names.map(|name| name.trim().to_owned()).filter(|name| PROGRAMS.contains(&name.as_str())).collect();
    old.sort();
    old.dedup();
    old
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixListener;

    use super::*;
    use crate::doctor::Level;

    const LIST: &str = r#"[
        {"Names": ["/cai-docker-oss-1"], "Labels": {}},
        {"Names": ["/root-tng-1"], "Labels": {"com.docker.compose.service": "tng"}},
        {"Names": ["/vllm"], "Labels": {"com.docker.compose.service": "inference"}},
        {"Names": ["/my-oss"]}, {}]"#;

    /// What is found with a Docker that answers `answer`.
    fn with(answer: String) -> Finding {
        let root = tempfile::tempdir().unwrap();
        let path = root.path().join("docker.sock");
        let listener = UnixListener::bind(&path).unwrap();
        let docker = std::thread::Builder::new().spawn(move || {
            let (mut line, _) = listener.accept().unwrap();
            let mut asked = [0; 1024];
            let len = line.read(&mut asked).unwrap();
            assert!(asked[..len].starts_with(b"GET /containers/json HTTP/1.0\r\n"));
            line.write_all(answer.as_bytes()).unwrap();
        });
        let finding = look(&path, &[]);
        docker.unwrap().join().unwrap();
        finding
    }

    #[test]
    fn old_containers_are_named_and_others_are_not() {
        let finding = with(format!("HTTP/1.0 200 OK\r\nContent-Type: application/json\r\n\r\n{LIST}"));
        assert_eq!(finding.level, Level::Error);
        assert_eq!(finding.found, "still running: cai-docker-oss-1, root-tng-1");
        assert_eq!(with("HTTP/1.0 200 OK\r\n\r\n[]".to_owned()).level, Level::Ok);
    }

    #[test]
    fn docker_that_answers_something_else_is_unseen() {
        for answer in ["HTTP/1.0 403 Forbidden\r\n\r\n[]", "HTTP/1.0 200 OK\r\n\r\n{}", "HTTP/1.0 200", ""] {
            assert_eq!(with(answer.to_owned()).level, Level::Unseen, "{answer}");
        }
        let nowhere = Path::new("/nonexistent/docker.sock");
        assert_eq!(look(nowhere, &[]).level, Level::Ok);
        assert_eq!(look(nowhere, &["cachefs".to_owned()]).found, "still running: cachefs");
    }
}
