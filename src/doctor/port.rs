//! The service port: the gate in front of it, and who listens where.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::Path;
use std::sync::Arc;

use super::context::{AS_ROOT, Agent, Context};
use super::finding::Finding;
use crate::config::{Entrance, Settings};
use crate::error::ErrorClass;
use crate::gateway::Gate;

/// The kernel's tables of TCP sockets (proc(5)): of this process's network namespace, which is the daemon's.
const TABLES: [&str; 2] = ["/proc/self/net/tcp", "/proc/self/net/tcp6"];
/// State of a listening socket in them (`TCP_LISTEN`, Linux include/net/tcp_states.h).
const LISTEN: &str = "0A";

pub(super) async fn check(context: Arc<Context>) -> Vec<Finding> {
    let Some(settings) = context.settings().cloned() else { return Vec::new() };
    let agent = context.agent().await;
    super::blocking("port.gate", move || {
        let listening: Vec<SocketAddr> = TABLES
            .iter()
            .filter_map(|path| super::read(Path::new(path)))
            .flat_map(|table| listeners(&table))
            .collect();
        let mut findings = gateway(&settings, &listening, agent, context.is_root());
        if !settings.peer.addresses.is_empty() {
            findings.push(own("port.peer", "peer.port", settings.peer.port, &listening, agent));
        }
        findings
    })
    .await
}

fn gateway(settings: &Settings, listening: &[SocketAddr], agent: Agent, is_root: bool) -> Vec<Finding> {
    match settings.gateway.entrance {
        None => vec![
            Finding::note("port.gate", "no service port is protected")
                .meaning("prompts reach the inference service as the network carries them")
                .fixed_by("MODEL_SERVICE_PORT in cai.env"),
        ],
        Some(Entrance::Mapping { listen, .. }) => {
            vec![own("port.listen", "gateway.listen", listen.port(), listening, agent)]
        }
        Some(Entrance::Capture { port, service_port }) => {
            let gate = Gate::of(&settings.gateway).map(|gate| shut(gate, service_port, port, is_root));
            let capture = own("port.listen", "gateway.capture_port", port, listening, agent);
            gate.into_iter().chain([service(service_port, listening), capture]).collect()
        }
    }
}

/// Whether the rules are loaded.
fn shut(gate: Gate, service_port: u16, capture_port: u16, is_root: bool) -> Finding {
    if !is_root {
        return Finding::unseen("port.gate", "rules of the kernel are root's to see", AS_ROOT);
    }
    match Gate::loaded() {
        Ok(Some(rules)) if gate.is_in(&rules) => Finding::ok(
            "port.gate",
            format!("shut: port {service_port} leads to the gateway at {capture_port}"),
        ),
        Ok(Some(_)) => Finding::error(
            "port.gate",
            ErrorClass::Config,
            "the rules that are loaded are for another port",
            format!("port {service_port} takes plaintext from everywhere"),
        )
        .fixed_by("systemctl reload cai-gate"),
        Ok(None) => Finding::warning(
            "port.gate",
            format!("open: port {service_port} takes plaintext from everywhere"),
            "the agent shuts it when it starts to serve; until then the service is not protected",
        )
        .fixed_by("systemctl start cai-gate"),
        Err(error) => Finding::fault("port.gate", &error, "the service port cannot be protected"),
    }
}

/// Who serves the model.
fn service(port: u16, listening: &[SocketAddr]) -> Finding {
    let at: Vec<String> =
        listening.iter().filter(|at| at.port() == port).map(|at| at.ip().to_string()).collect();
    if at.is_empty() {
        return Finding::note("port.service", format!("nobody listens on port {port}"))
            .meaning("clients get no answer until the inference service is up");
    }
    Finding::ok("port.service", format!("somebody listens on port {port} at {}", at.join(" ")))
}

/// A port that is the agent's to listen on.
fn own(id: &'static str, key: &str, port: u16, listening: &[SocketAddr], agent: Agent) -> Finding {
    let taken = listening.iter().any(|at| at.port() == port);
    match (taken, agent) {
        (true, Agent::Serving | Agent::Starting) => {
            Finding::ok(id, format!("the agent listens on port {port} ({key})"))
        }
        (false, Agent::Absent | Agent::Starting) => Finding::ok(id, format!("port {port} ({key}) is free")),
        (true, Agent::Absent) => Finding::error(
            id,
            ErrorClass::Config,
            format!("somebody listens on port {port} ({key}), and the agent does not run"),
            "the agent cannot listen there",
        )
        .fixed_by(format!("ss -ltnp 'sport = :{port}'; stop it, or set {key} in cai.toml")),
        (false, Agent::Serving) => Finding::warning(
            id,
            format!("the agent serves, and nobody listens on port {port} ({key})"),
            "this process lives in another network namespace, or the configuration has changed",
        )
        .fixed_by("systemctl restart cai"),
    }
}

/// Every listening socket in one of the kernel's tables.
fn listeners(table: &str) -> Vec<SocketAddr> {
    let row = |line: &str| {
        let mut fields = line.split_whitespace();
        let local = fields.nth(1)?;
        (fields.nth(1)? == LISTEN).then(|| address(local))?
    };
    table.lines().skip(1).filter_map(row).collect()
}

/// `0100007F:1F90`: words of four bytes in the machine's order, the port as a number.
fn address(text: &str) -> Option<SocketAddr> {
    let (host, port) = text.split_once(':')?;
    let port = u16::from_str_radix(port, 16).ok()?;
    let words = hex::decode(host).ok()?;
    // Little-endian, as on every machine that cai is built for.
    let bytes: Vec<u8> = words.chunks(4).flat_map(|word| word.iter().rev().copied()).collect();
    let ip = match <[u8; 4]>::try_from(bytes.as_slice()) {
        Ok(four) => IpAddr::V4(Ipv4Addr::from(four)),
        Err(_) => IpAddr::V6(Ipv6Addr::from(<[u8; 16]>::try_from(bytes.as_slice()).ok()?)),
    };
    Some(SocketAddr::new(ip, port))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::doctor::Level;

    const TABLE: &str = "  sl  local_address rem_address   st tx_queue\n   \
        0: 0100007F:1F90 00000000:0000 0A 00000000:00000000 00:00000000\n   \
        1: 0100007F:1F91 0100007F:C350 01 00000000:00000000 00:00000000\n   \
        2: 00000000000000000000000001000000:0016 00000000000000000000000000000000:0000 0A 0\n   \
        3: xyz 0 0A\n   4: 0100:1F90 0 0A\n\n";

    #[test]
    fn listening_sockets_are_read_from_the_kernels_table_and_nothing_else_is() {
        let expected: Vec<SocketAddr> = vec!["127.0.0.1:8080".parse().unwrap(), "[::1]:22".parse().unwrap()];
        assert_eq!(listeners(TABLE), expected);
    }

    #[test]
    fn own_listener_is_seen_in_the_kernels_table() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let table = std::fs::read_to_string(TABLES[0]).unwrap();
        assert!(listeners(&table).contains(&listener.local_addr().unwrap()));
    }

    #[test]
    fn port_of_the_agent_is_right_when_it_is_taken_while_it_serves() {
        let listening: Vec<SocketAddr> = vec!["0.0.0.0:40000".parse().unwrap()];
        let level = |port, agent| own("port.listen", "k", port, &listening, agent).level;
        assert_eq!((level(40_000, Agent::Serving), level(40_001, Agent::Absent)), (Level::Ok, Level::Ok));
        assert_eq!((level(40_000, Agent::Starting), level(40_001, Agent::Starting)), (Level::Ok, Level::Ok));
        assert_eq!(
            (level(40_000, Agent::Absent), level(40_001, Agent::Serving)),
            (Level::Error, Level::Warning)
        );
        assert_eq!(
            (service(40_000, &listening).level, service(1, &listening).level),
            (Level::Ok, Level::Note)
        );
    }
}
