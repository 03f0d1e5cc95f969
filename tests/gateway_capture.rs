//! Claim: connections that are redirected to the gateway reach what they dialled, over IPv4 and IPv6, also where that listens
//! on loopback alone; whoever dials the gateway's own port reaches nothing.

#![cfg(feature = "sandbox")]

#[path = "common/backend.rs"]
mod backend;
mod common;
#[path = "common/port.rs"]
mod port;
#[path = "common/two_hosts.rs"]
mod two_hosts;

use std::io::Read;
use std::net::SocketAddr;
use std::sync::Arc;

use cai::config::CertificateRule::Auto;
use cai::config::Entrance;
use cai::gateway::Gateway;
use cai::ratls::identity::Identity;
use two_hosts::{Hosts, SERVER_V4, SERVER_V6};

const SERVICE: u16 = 8080;
const CAPTURE: u16 = 40_000;

/// The redirect alone; what `cai gate` adds to it has its own tests.
const REDIRECT: &str = "table inet cai_test {
    chain pre {
        type nat hook prerouting priority -110; policy accept;
        fib daddr type local tcp dport 8080 redirect to :40000
    }
}
";

fn role_argument() -> Option<String> {
    std::env::var("CAI_ROLE").ok()
}

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap()
}

/// The server: a gateway that captures, and a backend on every address in the argument.
#[test]
fn role_server() {
    let Some(backends) = role_argument() else { return };
    runtime().block_on(async {
        let identity =
            Identity::start(port::recipe(Auto), std::time::Duration::from_secs(600)).await.unwrap();
        let entrance = Entrance::Capture { port: CAPTURE, service_port: SERVICE };
        let _gateway = Gateway::start(&port::settings(Auto, &[]), &entrance, identity.fresh()).unwrap();
        let listeners: Vec<_> =
            backends.split(' ').map(|at| std::net::TcpListener::bind(at).unwrap()).collect();
        for listener in listeners {
            // Greets with the address that was dialled, and ends.
            std::thread::spawn(move || {
                for stream in listener.incoming() {
                    let mut stream = stream.unwrap();
                    let at = stream.local_addr().unwrap().to_string();
                    let _ = std::io::Write::write_all(&mut stream, at.as_bytes());
                }
            });
        }
        println!("READY .");
        tokio::task::spawn_blocking(|| std::io::stdin().read_to_end(&mut Vec::new())).await.unwrap().unwrap();
    });
}

/// The client: says what each address in the argument answers through a tunnel, or that it does not.
#[test]
fn role_client() {
    let Some(addresses) = role_argument() else { return };
    runtime().block_on(async {
        for at in addresses.split(' ') {
            let at: SocketAddr = at.parse().unwrap();
            let greeting = match port::tls(at, &["h2"], true).await {
                Ok((tls, _)) => {
                    let (send, connection) = h2::client::handshake(tls).await.unwrap();
                    let tunnel = port::Tunnel { send, connection: tokio::spawn(connection) };
                    let mut stream = tunnel.open().await.unwrap();
                    String::from_utf8(stream.read_to_end().await.unwrap()).unwrap()
                }
                Err(_) => "refused".to_owned(),
            };
            println!("GREETED {greeting}");
        }
    });
}

fn greetings(hosts: &Arc<Hosts>, backends: &str, dialled: &[String]) -> Vec<String> {
    let mut server = hosts.play("server", "role_server", backends);
    server.says("READY");
    let mut client = hosts.play("client", "role_client", &dialled.join(" "));
    let found = dialled.iter().map(|_| client.says("GREETED")).collect();
    assert!(client.end() && server.end());
    found
}

#[test]
fn redirected_connections_reach_what_they_dialled_and_nobody_else_reaches_anything() {
    let Some(hosts) = Hosts::new("capture").map(Arc::new) else { return };
    hosts.nft("server", REDIRECT);
    let (v4, v6) = (format!("{SERVER_V4}:{SERVICE}"), format!("[{SERVER_V6}]:{SERVICE}"));
    let own = [format!("{SERVER_V4}:{CAPTURE}"), format!("[{SERVER_V6}]:{CAPTURE}")];
    let dialled = [vec![v4.clone(), v6.clone()], own.to_vec()].concat();
    // A backend everywhere sees the address that the client dialled.
    let everywhere = greetings(&hosts, &format!("0.0.0.0:{SERVICE} {v6}"), &dialled);
    assert_eq!(everywhere, [v4.as_str(), &v6, "refused", "refused"]);
    // One on loopback is reached there.
    let loopback = [format!("127.0.0.1:{SERVICE}"), format!("[::1]:{SERVICE}")];
    let found = greetings(&hosts, &loopback.join(" "), &dialled);
    assert_eq!(found, [loopback[0].as_str(), &loopback[1], "refused", "refused"]);
}
