//! `cai status`: what the running daemon says of itself, over D-Bus.

use std::fmt::Write as _;
use std::io::{IsTerminal, Write as _};
use std::time::SystemTime;

use indicatif::{HumanBytes, HumanDuration};
use serde_json::Value as Json;

use super::run::RuntimeError;
use super::{act, watch};
use crate::agent::status::unix_seconds;
use crate::bus;
use crate::error::Fault;
use crate::text::printable_json;

/// Arguments of `cai status`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Print one JSON object with every property, for machines, as docs/status-schema.json describes it.
    #[arg(long)]
    json: bool,
    /// Show it live until Ctrl-C, with a graph of the last minute. Where the output is no terminal: a line whenever something changes.
    #[arg(long, conflicts_with = "json")]
    watch: bool,
}

/// Columns of the progress bar: with percent and bytes behind it, a line of 80.
const BAR: usize = 30;

/// Files on their way that are shown one by one.
const FILES: usize = 4;

/// Columns that a label takes.
const LABEL: usize = 13;

pub(super) fn run(args: &Args) -> Result<(), Box<dyn Fault>> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(RuntimeError)?;
    if args.watch {
        return runtime.block_on(watch::watch());
    }
    let properties = runtime.block_on(async { bus::Daemon::on_the_bus().await?.properties().await })?;
    let text = match (args.json, std::io::stdout().is_terminal()) {
        (true, _) => format!("{}\n", printable_json(&format!("{:#}", bus::to_json(&properties)))),
        (false, false) => render(&bus::to_legible_json(&properties), false),
        (false, true) => {
            let columns = usize::from(console::Term::stdout().size().1);
            wrapped(&render(&bus::to_legible_json(&properties), true), columns)
        }
    };
    // A closed pipe (`cai status | head`) is not our failure.
    let _ = std::io::stdout().write_all(text.as_bytes());
    Ok(())
}

/// Lines for people; with a bar on a terminal.
pub(super) fn render(status: &Json, terminal: bool) -> String {
    let text = |name: &str| status.get(name).and_then(Json::as_str).unwrap_or_default().to_owned();
    let mut out = String::new();
    let _ = writeln!(out, "state        {}", text("State"));
    let _ = writeln!(out, "stage        {}", text("Stage"));
    let _ = writeln!(out, "model        {}", text("Model"));
    let _ = writeln!(out, "mount point  {}", text("MountPoint"));
    let _ = writeln!(
        out,
        "local        {}",
        progress_line(status.get("Progress").unwrap_or(&Json::Null), terminal)
    );
    for progress in ["/Progress/Fetching", "/Rotation/Progress/Fetching"] {
        let files = status.pointer(progress).and_then(Json::as_array);
        for line in files.into_iter().flat_map(|files| fetching_lines(files)) {
            let _ = writeln!(out, "fetching     {line}");
        }
    }
    let store = status.get("ObjectStore").unwrap_or(&Json::Null);
    let line = object_store_line(store, SystemTime::now());
    if !line.is_empty() {
        let _ = writeln!(out, "object store {line}");
    }
    let line = service_port_line(status.get("Gateway").unwrap_or(&Json::Null), SystemTime::now());
    if !line.is_empty() {
        let _ = writeln!(out, "service port {line}");
    }
    if let Some(rotation) = status.get("Rotation").filter(|rotation| rotation.get("Number").is_some()) {
        let _ = writeln!(out, "rotation     {}", act::progress(rotation));
    }
    for peer in status.get("Peers").and_then(Json::as_array).into_iter().flatten() {
        let _ = writeln!(out, "peer         {}", peer_line(peer));
    }
    if let Some(facts) = status.get("Attestation").and_then(Json::as_object).filter(|facts| !facts.is_empty())
    {
        let facts: Vec<String> = facts
            .iter()
            .map(|(name, value)| format!("{name} {}", value.as_str().unwrap_or_default()))
            .collect();
        let _ = writeln!(out, "attestation  {}", facts.join(", "));
    }
    for notice in status.get("Notices").and_then(Json::as_array).into_iter().flatten() {
        let _ = writeln!(out, "notice       {}", notice.as_str().unwrap_or_default());
    }
    if let Some(error) = status.get("LastError").filter(|error| error.get("Code").is_some()) {
        let field = |name: &str| error.get(name).and_then(Json::as_str).unwrap_or_default();
        let _ = writeln!(out, "last error   {} [{}] in {}", field("Detail"), field("Code"), field("Stage"));
        let _ = writeln!(out, "  hint       {}", field("Hint"));
    }
    out
}

/// `text` with its lines broken where they are longer than `columns`: between words where that leaves something, and what follows
/// below the first line's text.
pub(super) fn wrapped(text: &str, columns: usize) -> String {
    // Narrower than this nothing is readable, and nothing would fit beside the labels.
    let columns = columns.max(LABEL + 1);
    let mut out = String::new();
    for line in text.lines() {
        let mut rest: Vec<char> = line.chars().collect();
        while rest.len() > columns {
            let space = rest.iter().take(columns + 1).rposition(|c| *c == ' ').filter(|at| *at > LABEL);
            let below = rest.split_off(space.unwrap_or(columns));
            out.extend(rest.iter().chain(&['\n']));
            rest = vec![' '; LABEL];
            rest.extend(below.iter().skip(usize::from(space.is_some())));
        }
        out.extend(rest.iter().chain(&['\n']));
    }
    out
}

/// `STS, 41 min left, through http://127.0.0.1:4001; throttled 3 times, 8 requests at once`; empty before the store is used.
fn object_store_line(store: &Json, now: SystemTime) -> String {
    let number = |name: &str| store.get(name).and_then(Json::as_u64);
    let mut line = store.get("Credentials").and_then(Json::as_str).unwrap_or_default().to_owned();
    if let Some(end) = number("CredentialsExpire") {
        let left = end.saturating_sub(unix_seconds(now));
        let _ = match left / 60 {
            0 if left == 0 => write!(line, ", expired"),
            minutes => write!(line, ", {minutes} min left"),
        };
    }
    if let Some(proxy) = store.get("Proxy").and_then(Json::as_str) {
        let _ = write!(line, ", through {proxy}");
    }
    if let Some(times) = number("Throttled").filter(|times| *times > 0) {
        let slots = number("Concurrency").unwrap_or(0);
        let _ = write!(line, "; throttled {times} times, {slots} requests at once");
    }
    line
}

/// `0.0.0.0:40000 (capture) to port 8080 as dialled; evidence 42 s old, renewed every 600 s; 3 connections, 2 streams, 10
/// handshakes, 1 refused`; empty while the port is shut.
fn service_port_line(port: &Json, now: SystemTime) -> String {
    let text = |name: &str| port.get(name).and_then(Json::as_str).unwrap_or_default();
    let number = |name: &str| port.get(name).and_then(Json::as_u64).unwrap_or(0);
    let mut line = String::new();
    let Some(listen) = port.get("Listen").and_then(Json::as_array) else { return line };
    let listen: Vec<_> = listen.iter().filter_map(Json::as_str).collect();
    let _ = write!(line, "{} ({}) to {}; ", listen.join(" "), text("Mode"), text("Backend"));
    let evidence = port.get("EvidenceAt").and_then(Json::as_object);
    let oldest = evidence.and_then(|evidence| evidence.values().filter_map(Json::as_u64).min());
    let _ = match oldest {
        Some(at) => write!(line, "evidence {} s old", unix_seconds(now).saturating_sub(at)),
        None => write!(line, "NO EVIDENCE that is new enough"),
    };
    let _ = write!(line, ", renewed every {} s", number("RefreshSeconds"));
    if !text("RefreshError").is_empty() {
        let _ = write!(line, " (failing: {})", text("RefreshError"));
    }
    let _ = write!(
        line,
        "; {} connections, {} streams, {} handshakes, {} refused",
        number("Connections"),
        number("Streams"),
        number("Handshakes"),
        number("Refused")
    );
    line
}

/// `10.0.0.2:5390 connected, 120 chunks; 1.00 GiB from it, 2.00 GiB to it`, with what is wrong with it.
fn peer_line(peer: &Json) -> String {
    let text = |name: &str| peer.get(name).and_then(Json::as_str).unwrap_or_default();
    let number = |name: &str| peer.get(name).and_then(Json::as_u64).unwrap_or(0);
    let mut line = format!("{} {}", text("Address"), text("State"));
    if !text("Code").is_empty() {
        let _ = write!(line, ": {} [{}]", text("Detail"), text("Code"));
    }
    let (from, to) = (number("BytesReceived"), number("BytesSent"));
    if text("State") == "connected" || from > 0 || to > 0 {
        let chunks = number("Chunks");
        let _ = write!(line, ", {chunks} chunks; {} from it, {} to it", HumanBytes(from), HumanBytes(to));
    }
    let (wrong, failed) = (number("WrongChunks"), number("FailedChunks"));
    if wrong > 0 {
        let _ = write!(line, "; {wrong} WRONG CHUNKS");
    }
    if peer.get("Distrusted").and_then(Json::as_bool) == Some(true) {
        let _ = write!(line, ", not asked for now");
    }
    if failed > 0 {
        let _ = write!(line, "; {failed} did not come");
    }
    line
}

/// A line for each of the first files, and one for the rest.
fn fetching_lines(files: &[Json]) -> Vec<String> {
    let line = |file: &Json| {
        let number = |name: &str| file.get(name).and_then(Json::as_u64).unwrap_or(0);
        let (done, total) = (number("BytesDone"), number("BytesTotal"));
        let path = file.get("Path").and_then(Json::as_str).unwrap_or_default();
        format!("{} % of {}, {path}", percent(done, total), HumanBytes(total))
    };
    let mut lines: Vec<String> = files.iter().take(FILES).map(line).collect();
    lines.extend(files.len().checked_sub(FILES).filter(|more| *more > 0).map(|more| format!("{more} more")));
    lines
}

fn percent(done: u64, total: u64) -> u64 {
    u64::try_from(u128::from(done) * 100 / u128::from(total.max(1))).unwrap_or(100)
}

fn progress_line(progress: &Json, terminal: bool) -> String {
    let number = |name: &str| progress.get(name).and_then(Json::as_u64).unwrap_or(0);
    let (done, total) = (number("BytesDone"), number("BytesTotal"));
    let percent = percent(done, total);
    let mut line = String::new();
    if terminal {
        let filled = usize::try_from(percent).unwrap_or(0).min(100) * BAR / 100;
        let _ = write!(line, "[{}{}] ", "#".repeat(filled), ".".repeat(BAR - filled));
    }
    let _ = write!(line, "{percent} % ({} of {})", HumanBytes(done), HumanBytes(total));
    if done < total {
        let _ = write!(line, ", {}/s", HumanBytes(number("BytesPerSecond")));
        if let Some(secs) = progress.get("EtaSeconds").and_then(Json::as_u64) {
            let _ = write!(line, ", {} left", HumanDuration(std::time::Duration::from_secs(secs)));
        }
    }
    line
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn sample() -> Json {
        json!({
            "State": "Serving", "Stage": "5 files at /tmp/model", "Model": "conf-ai:/m/", "MountPoint": "/tmp/model",
            "Progress": {"BytesDone": 1_048_576, "BytesTotal": 4_194_304, "BytesPerSecond": 1_048_576, "EtaSeconds": 3},
            "Attestation": {"server": "NOT AUTHENTICATED (plain http)"},
            "Notices": ["TRUSTEE_URL is plain http"],
            "LastError": {},
        })
    }

    #[test]
    fn plain_output_has_no_bar_and_names_the_unauthenticated_server() {
        let text = render(&sample(), false);
        assert!(
            text.contains("local        25 % (1.00 MiB of 4.00 MiB), 1.00 MiB/s, 3 seconds left\n"),
            "{text}"
        );
        assert!(text.contains("attestation  server NOT AUTHENTICATED (plain http)\n"), "{text}");
        assert!(!text.contains('#') && !text.contains("last error"), "{text}");
    }

    #[test]
    fn files_on_their_way_are_shown_one_by_one_and_the_rest_counted() {
        let file = |number| json!({"Path": format!("shard-{number}"), "BytesDone": 1024, "BytesTotal": 4096});
        let mut status = sample();
        status["Progress"]["Fetching"] = (1..=6).map(file).collect();
        let text = render(&status, false);
        let lines: Vec<_> = text.lines().filter_map(|line| line.strip_prefix("fetching     ")).collect();
        let mut expected: Vec<_> =
            (1..=4).map(|number| format!("25 % of 4.00 KiB, shard-{number}")).collect();
        expected.push("2 more".into());
        assert_eq!(lines, expected);
    }

    #[test]
    fn object_store_line_says_what_is_left_of_the_credential() {
        let now = std::time::UNIX_EPOCH + std::time::Duration::from_secs(10_000);
        let line = |store: Json| object_store_line(&store, now);
        assert_eq!(line(json!({})), "");
        assert_eq!(line(json!({"Credentials": "AccessKey", "Throttled": 0, "Concurrency": 32})), "AccessKey");
        let sts = |end: u64| json!({"Credentials": "STS", "CredentialsExpire": end});
        assert_eq!(line(sts(10_000 + 41 * 60 + 59)), "STS, 41 min left");
        assert_eq!(line(sts(10_030)), "STS, 0 min left");
        assert_eq!(line(sts(9_000)), "STS, expired");
        assert_eq!(
            line(json!({"Credentials": "anonymous", "Throttled": 3, "Concurrency": 8})),
            "anonymous; throttled 3 times, 8 requests at once"
        );
        let mut status = sample();
        status["ObjectStore"] = sts(0);
        assert!(render(&status, false).contains("\nobject store STS, expired\n"));
    }

    #[test]
    fn service_port_line_tells_the_age_of_the_evidence_and_that_it_cannot_be_renewed() {
        let now = std::time::UNIX_EPOCH + std::time::Duration::from_secs(1_000);
        let line = |port: &Json| service_port_line(port, now);
        assert_eq!(line(&json!({})), "");
        let mut port = json!({
            "Mode": "capture", "Listen": ["0.0.0.0:40000", "[::]:40000"], "Backend": "port 8080 as dialled",
            "RefreshSeconds": 600, "EvidenceAt": {"legacy": 958, "current": 960}, "RefreshError": "",
            "Connections": 3, "Streams": 2, "Handshakes": 10, "Refused": 1,
        });
        let counts = "3 connections, 2 streams, 10 handshakes, 1 refused";
        let place = "0.0.0.0:40000 [::]:40000 (capture) to port 8080 as dialled";
        assert_eq!(line(&port), format!("{place}; evidence 42 s old, renewed every 600 s; {counts}"));
        port["EvidenceAt"] = json!({});
        port["RefreshError"] = json!("no quote");
        let expected = format!(
            "{place}; NO EVIDENCE that is new enough, renewed every 600 s (failing: no quote); {counts}"
        );
        assert_eq!(line(&port), expected);
    }

    #[test]
    fn terminal_output_draws_the_bar_to_the_percent() {
        let text = render(&sample(), true);
        assert!(text.contains("[#######.......................] 25 %"), "{text}");
    }

    #[test]
    fn long_lines_go_on_below_their_text() {
        let text = "state        Serving\nmodel        one two three\nnotice       0123456789abcdef\n";
        let expected = "state        Serving\nmodel        one two\n             three\nnotice       0123456\n             789abcd\n             ef\n";
        assert_eq!(wrapped(text, 20), expected);
        assert_eq!(wrapped(text, 80), text);
        let mut status = sample();
        status["Stage"] = json!("x".repeat(300));
        status["Notices"] = json!(["word ".repeat(60)]);
        assert!(wrapped(&render(&status, true), 80).lines().all(|line| line.chars().count() <= 80));
    }

    #[test]
    fn last_error_is_shown_with_its_hint() {
        let mut status = sample();
        status["LastError"] =
            json!({"Code": "kbs.denied", "Stage": "ReleasingKey", "Detail": "no", "Hint": "ask"});
        let text = render(&status, false);
        assert!(text.contains("last error   no [kbs.denied] in ReleasingKey\n  hint       ask\n"), "{text}");
    }
}
