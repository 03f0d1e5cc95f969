//! Claim: `cai status` fits a terminal of 80 columns; `--watch` follows the daemon through its coming and going, the terminal's size and
//! Ctrl-C, and gives the terminal back; `--json` is what `docs/status-schema.json` says.

#![cfg(feature = "sandbox")]

mod common;
#[path = "common/sandbox.rs"]
mod sandbox;
#[path = "common/world.rs"]
mod world;

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use common::{free, wait_until};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;
use world::World;

/// Runs its arguments in a terminal of 24 lines and 80 columns. Standard input: `r` makes it 40 columns wide, `c` types Ctrl-C.
/// Says at the end how the program ended, and whether the terminal is as it was.
const TERMINAL: &str = r#"
import fcntl, os, pty, select, struct, sys, termios
def size(fd, columns): fcntl.ioctl(fd, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
master, slave = pty.openpty()
size(slave, 80)
before = termios.tcgetattr(slave)
pid = os.fork()
if pid == 0:
    os.setsid()
    fcntl.ioctl(slave, termios.TIOCSCTTY, 0)
    for fd in range(3): os.dup2(slave, fd)
    os.close(master)
    os.execv(sys.argv[1], sys.argv[1:])
keys, ended = [master, 0], False
while True:
    ready = select.select(keys, [], [], 0.05)[0]
    if master in ready:
        os.write(1, os.read(master, 65536))
        continue
    if 0 in ready:
        key = os.read(0, 1)
        if key == b"r": size(master, 40)
        elif key == b"c": os.write(master, b"\x03")
        else: keys.remove(0)
    if ended: break
    done, status = os.waitpid(pid, os.WNOHANG)
    ended = done == pid
same = termios.tcgetattr(slave) == before
os.write(1, b"\nended %d, terminal %s\n" % (os.waitstatus_to_exitcode(status), b"as before" if same else b"CHANGED"))
"#;

/// A program in a terminal, and what it wrote there.
struct Terminal {
    child: Child,
    written: PathBuf,
}

impl Terminal {
    fn run(world: &World, arguments: &[&str]) -> Self {
        let written = world.path("terminal");
        let child = world
            .on_bus("python3")
            .args(["-c", TERMINAL, env!("CARGO_BIN_EXE_cai")])
            .args(arguments)
            .stdin(Stdio::piped())
            .stdout(fs::File::create(&written).unwrap())
            .spawn()
            .unwrap();
        Terminal { child, written }
    }

    fn text(&self) -> String {
        String::from_utf8_lossy(&fs::read(&self.written).unwrap()).into_owned()
    }

    /// Lines of the last frame that is whole.
    fn frame(&self) -> Vec<String> {
        let text = self.text();
        let whole = text.rsplit_once("\x1b[J").map_or("", |(whole, _)| whole);
        let frame = whole.rsplit("\x1b[H").next().unwrap_or_default().replace("\x1b[K", "");
        frame.lines().map(|line| line.trim_end_matches('\r').to_owned()).collect()
    }

    fn shows(&self, line: &str) -> bool {
        self.frame().iter().any(|shown| shown == line)
    }

    fn key(&mut self, key: &str) {
        self.child.stdin.as_mut().unwrap().write_all(key.as_bytes()).unwrap();
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn watch_follows_the_daemon_and_gives_the_terminal_back() {
    let Some(world) = World::with_small_model().await else { return };
    let mut terminal = Terminal::run(&world, &["status", "--watch"]);
    wait_until("nobody to be shown", || terminal.shows("cai is not running; waiting for it"));
    let mut agent = world.agent();
    wait_until("the model to be shown", || {
        terminal.shows("state        Serving")
            && terminal.frame().iter().any(|line| line.contains("] 100 % ("))
    });
    let frame = terminal.frame();
    assert!(frame.iter().all(|line| line.chars().count() <= 80), "{frame:#?}");
    assert!(frame.contains(&"model        conf-ai:/model/".to_owned()), "{frame:#?}");
    assert!(
        frame.iter().any(|line| line.starts_with("last minute  ") && line.ends_with("/s at most")),
        "{frame:#?}"
    );

    terminal.key("r");
    wait_until("40 columns", || {
        let frame = terminal.frame();
        frame.len() > 5 && frame.iter().all(|line| line.chars().count() <= 40)
    });
    assert_eq!(agent.stop().code(), Some(0));
    wait_until("nobody to be shown again", || terminal.shows("cai is not running; waiting for it"));
    terminal.key("c");
    assert!(terminal.child.wait().unwrap().success());
    let text = terminal.text();
    assert!(text.starts_with("\x1b[?1049h\x1b[?25l"), "{text:?}");
    assert!(text.ends_with("\x1b[?25h\x1b[?1049l\nended 0, terminal as before\n"), "{text:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn once_it_fits_eighty_columns_and_without_a_terminal_watch_prints_lines() {
    let Some(world) = World::with_small_model().await else { return };
    let mut agent = world.agent();
    world.wait_state(&mut agent, "Serving");
    let mut terminal = Terminal::run(&world, &["status"]);
    assert!(terminal.child.wait().unwrap().success());
    let text = terminal.text();
    assert!(
        text.contains("state        Serving\r\n") && text.contains("\nended 0, terminal as before\n"),
        "{text}"
    );
    assert!(text.lines().all(|line| line.trim_end().chars().count() <= 80), "{text}");

    let mut watch = world.on_bus(env!("CARGO_BIN_EXE_cai"));
    let mut watch = watch.args(["status", "--watch"]).stdout(Stdio::piped()).spawn().unwrap();
    let mut lines = BufReader::new(watch.stdout.take().unwrap()).lines().map(Result::unwrap);
    let first = lines.next().unwrap();
    assert!(first.starts_with("Serving: "), "{first}");
    assert_eq!(agent.stop().code(), Some(0));
    assert!(lines.any(|line| line == "cai is not running; waiting for it"));
    kill(Pid::from_raw(i32::try_from(watch.id()).unwrap()), Signal::SIGINT).unwrap();
    assert_eq!(watch.wait().unwrap().code(), Some(0));
    assert_eq!(lines.next(), None);
}

/// As much of JSON Schema as the schema uses: every word that it has must be one of these.
fn check(schema: &Value, value: &Value, at: &str) {
    for word in schema.as_object().unwrap().keys() {
        let known = ["$schema", "title", "description", "type", "properties", "required", "enum", "items"];
        assert!(known.contains(&word.as_str()) || word == "additionalProperties", "{at}: {word}");
    }
    let right = match schema["type"].as_str().unwrap() {
        "object" => value.is_object(),
        "array" => value.is_array(),
        "string" => value.is_string(),
        "integer" => value.is_u64(),
        "boolean" => value.is_boolean(),
        other => panic!("{at}: type {other}"),
    };
    assert!(right, "{at} is {value}");
    if let Some(words) = schema["enum"].as_array() {
        assert!(words.contains(value), "{at} is {value}");
    }
    for name in schema["required"].as_array().into_iter().flatten() {
        assert!(value.get(name.as_str().unwrap()).is_some(), "{at} lacks {name}: {value}");
    }
    for (name, inner) in value.as_object().into_iter().flatten() {
        let at = format!("{at}.{name}");
        match (schema["properties"].get(name), &schema["additionalProperties"]) {
            (Some(schema), _) => check(schema, inner, &at),
            (None, Value::Object(_)) => check(&schema["additionalProperties"], inner, &at),
            (None, _) => panic!("{at} is not in the schema"),
        }
    }
    for (index, inner) in value.as_array().into_iter().flatten().enumerate() {
        check(&schema["items"], inner, &format!("{at}[{index}]"));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn json_is_what_its_schema_says_while_pulling_serving_rotated_and_failing() {
    let Some(mut world) = World::with_small_model().await else { return };
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/status-schema.json");
    let schema: Value = serde_json::from_str(&fs::read_to_string(path).unwrap()).unwrap();
    let (peer, port, own) = (free(), free(), free().port());
    world.env += &format!("MODEL_WAIT=full\nMODEL_SHARING_PEER=\"{peer}\"\n");
    world.toml = format!(
        "[gateway]\nlisten = \"{port}\"\nbackend = \"127.0.0.1:9\"\n[peer]\nattestation = \"network\"\nport = {own}\n"
    );
    let mut agent = world.agent();
    wait_until("the model to be served", || {
        let status = world.status();
        status.iter().for_each(|status| check(&schema, status, ""));
        status.is_some_and(|status| status["State"] == "Serving")
    });
    assert!(world.cai(&["rotate"]).status.success());
    wait_until("the rotation to be over", || world.status().unwrap()["Rotations"]["unchanged"] == 1);
    let status = world.status().unwrap();
    check(&schema, &status, "");
    // Everything that it describes was there.
    for name in schema["properties"].as_object().unwrap().keys() {
        assert!(status.get(name).is_some(), "{name}");
    }
    for name in ["Gateway", "Rotation", "Progress", "ObjectStore"] {
        assert!(!status[name].as_object().unwrap().is_empty(), "{name}");
    }
    assert_eq!(status["Peers"][0]["Address"], peer.to_string());
    assert_eq!(agent.stop().code(), Some(0));

    common::write_config(&world.root(), "http://127.0.0.1:9/", &world.sandbox.oss, &world.env, &world.toml);
    let _agent = world::Agent::start(&world, &[]);
    let mut failing = Value::Null;
    wait_until("a failure", || {
        failing = world.status().unwrap_or_default();
        failing["LastError"]["Code"].is_string()
    });
    check(&schema, &failing, "");
    assert_eq!(failing["State"], "Attesting");
    assert_eq!(failing["Failures"][failing["LastError"]["Code"].as_str().unwrap()], 1);
}

/// python3 is on every machine that runs the agents' tests.
#[test]
fn terminal_of_these_tests_tells_a_changed_one() {
    let script =
        "import sys,termios; a=termios.tcgetattr(0); a[3] &= ~termios.ECHO; termios.tcsetattr(0, 0, a)";
    let python = Command::new("sh").args(["-c", "command -v python3"]).output().unwrap();
    let python = String::from_utf8(python.stdout).unwrap();
    let output =
        Command::new("python3").args(["-c", TERMINAL, python.trim(), "-c", script]).output().unwrap();
    assert!(String::from_utf8(output.stdout).unwrap().ends_with("ended 0, terminal CHANGED\n"));
}
