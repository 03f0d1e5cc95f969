//! `cai status --watch`: the same facts, again and again. On a terminal in place, with a graph of the last minute; elsewhere a line
//! whenever the daemon's own line changes.
//!
//! Drawn without raw mode: the terminal needs nothing back but its cursor and its first screen, and Ctrl-C stays Ctrl-C.

use std::collections::VecDeque;
use std::io::{IsTerminal as _, Write as _};
use std::time::{Duration, Instant};

use futures_util::stream::StreamExt as _;
use indicatif::HumanBytes;
use serde_json::Value as Json;
use tokio::signal::unix::{SignalKind, signal};

use super::run::RuntimeError;
use super::status::{render, wrapped};
use crate::bus::{self, BusError, Daemon};
use crate::error::Fault;

/// How often it is drawn at most, and at least.
const FRAMES: (Duration, Duration) = (Duration::from_millis(250), Duration::from_secs(1));

/// Seconds in the graph.
const SPAN: usize = 60;

/// To another screen, without a cursor; and back.
const ENTER: &str = "\x1b[?1049h\x1b[?25l";
const LEAVE: &str = "\x1b[?25h\x1b[?1049l";

/// What is shown while nobody answers.
const GONE: &str = "cai is not running; waiting for it";

/// Show it until SIGINT or SIGTERM.
pub(super) async fn watch() -> Result<(), Box<dyn Fault>> {
    let on = |kind| signal(kind).map_err(RuntimeError);
    let mut interrupt = on(SignalKind::interrupt())?;
    let mut terminate = on(SignalKind::terminate())?;
    let mut resized = on(SignalKind::window_change())?;
    let daemon = Daemon::on_the_bus().await?;
    let mut changes = daemon.changes().await?;
    let mut view = View::new();
    loop {
        let status = match daemon.properties().await {
            Ok(properties) => Some(bus::to_legible_json(&properties)),
            // It may come back.
            Err(BusError::NotRunning) => None,
            Err(error) => return Err(error.into()),
        };
        if !view.show(status.as_ref()) {
            return Ok(());
        }
        let pause = async {
            tokio::time::sleep(FRAMES.0).await;
            let _ = tokio::time::timeout(FRAMES.1 - FRAMES.0, changes.next()).await;
        };
        tokio::select! {
            _ = interrupt.recv() => return Ok(()),
            _ = terminate.recv() => return Ok(()),
            _ = resized.recv() => {}
            () = pause => {}
        }
    }
}

/// What was shown so far.
struct View {
    terminal: Option<console::Term>,
    rates: Rates,
    said: String,
}

impl View {
    fn new() -> Self {
        let terminal = std::io::stdout().is_terminal().then(console::Term::stdout);
        let view = View { terminal, rates: Rates::default(), said: String::new() };
        if view.terminal.is_some() {
            view.write(ENTER);
        }
        view
    }

    /// Show `status`, or that there is none; whether somebody still looks.
    fn show(&mut self, status: Option<&Json>) -> bool {
        let Some(terminal) = &self.terminal else {
            let text = |status: &Json| {
                status.get("StatusText").and_then(Json::as_str).unwrap_or_default().to_owned()
            };
            let line = status.map_or_else(|| GONE.to_owned(), text);
            let news = line != self.said;
            self.said.clone_from(&line);
            return !news || self.write(&format!("{line}\n"));
        };
        let (rows, columns) = terminal.size();
        let rate =
            status.and_then(|status| status.pointer("/Progress/BytesPerSecond")).and_then(Json::as_u64);
        self.rates.note(Instant::now(), rate.unwrap_or(0));
        let frame = frame(status, &self.rates, usize::from(rows), usize::from(columns));
        self.write(&frame)
    }

    fn write(&self, text: &str) -> bool {
        let mut out = std::io::stdout().lock();
        out.write_all(text.as_bytes()).and_then(|()| out.flush()).is_ok()
    }
}

impl Drop for View {
    fn drop(&mut self) {
        if self.terminal.is_some() {
            self.write(LEAVE);
        }
    }
}

/// One frame: every line cleared to its end, and what is below.
fn frame(status: Option<&Json>, rates: &Rates, rows: usize, columns: usize) -> String {
    let text = match status {
        None => format!("{GONE}\n"),
        // What may be cut off below are notices and attestation facts, not what moves.
        Some(status) => {
            let graph = format!("\nlast minute  {}\nlocal        ", rates.graph(columns.saturating_sub(13)));
            render(status, true).replacen("\nlocal        ", &graph, 1)
        }
    };
    let lines = wrapped(&text, columns);
    let lines: Vec<_> = lines.lines().take(rows.saturating_sub(1)).collect();
    format!("\x1b[H{}\x1b[K\r\n\x1b[J", lines.join("\x1b[K\r\n"))
}

/// Bytes per second, one for each of the last [`SPAN`] seconds.
#[derive(Default)]
struct Rates {
    seconds: VecDeque<u64>,
    last: Option<Instant>,
}

impl Rates {
    fn note(&mut self, now: Instant, rate: u64) {
        if self.last.is_some_and(|last| now.duration_since(last) < Duration::from_secs(1)) {
            return;
        }
        self.last = Some(now);
        self.seconds.push_back(rate);
        if self.seconds.len() > SPAN {
            self.seconds.pop_front();
        }
    }

    /// Blocks as high as the rates, the newest last, and the highest of them; in at most `columns`.
    fn graph(&self, columns: usize) -> String {
        let most = self.seconds.iter().copied().max().unwrap_or(0);
        let most_said = format!(" {}/s at most", HumanBytes(most));
        let room = columns.saturating_sub(most_said.chars().count());
        let skip = self.seconds.len().saturating_sub(room);
        let graph: String = self.seconds.iter().skip(skip).map(|rate| block(*rate, most)).collect();
        graph + &most_said
    }
}

/// An eighth to eight eighths; nothing is a blank.
fn block(rate: u64, most: u64) -> char {
    let eighths = (u128::from(rate) * 8).div_ceil(u128::from(most.max(1)));
    match eighths {
        0 => ' ',
        1 => '▁',
        2 => '▂',
        3 => '▃',
        4 => '▄',
        5 => '▅',
        6 => '▆',
        7 => '▇',
        _ => '█',
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn graph_scales_to_its_highest_and_keeps_the_newest() {
        let (mut rates, start) = (Rates::default(), Instant::now());
        for (second, rate) in (0..).zip([0, 1024, 512, 4096]) {
            rates.note(start + Duration::from_secs(second), rate);
            // Within the same second nothing is added.
            rates.note(start + Duration::from_secs(second) + Duration::from_millis(250), 9999);
        }
        assert_eq!(rates.graph(60), " ▂▁█ 4.00 KiB/s at most");
        assert_eq!(rates.graph(21), "▁█ 4.00 KiB/s at most");
    }

    #[test]
    fn frame_fits_the_terminal() {
        let status = serde_json::json!({"State": "Fetching", "Stage": "word ".repeat(100)});
        for (rows, columns) in [(24, 80), (5, 40), (1, 1)] {
            let frame = frame(Some(&status), &Rates::default(), rows, columns);
            let lines: Vec<_> = frame.trim_start_matches("\x1b[H").split("\x1b[K\r\n").collect();
            assert!(lines.len() <= rows.max(2), "{frame:?}");
            assert!(
                lines.iter().all(|line| line.trim_end_matches("\x1b[J").chars().count() <= columns.max(14))
            );
        }
    }
}
