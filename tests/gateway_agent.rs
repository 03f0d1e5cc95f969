//! Claim: `cai run` opens the service port once the model can be read and before it says so, shows whose evidence it gives and
//! how old that is, and shuts the port first of all when it stops or fails.

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

use std::net::SocketAddr;

use backend::{Backend, until};
use bytes::Bytes;
use cai::ratls::certificate::parse;
use cai::ratls::evidence::TaggedEvidence;
use common::free;
use nix::sys::signal::Signal;
use tokio::net::TcpStream;
use world::World;

/// A world whose agent has its service port at the address, in front of `backend`; the model is signed.
async fn with_port(backend: SocketAddr) -> Option<(World, SocketAddr, String)> {
    let mut world = World::new(sandbox::Builder::default())?;
    let cipher = world.upload(world::small_model()).await;
    let identity = world::sign(&cipher, &world.sandbox).await.identity().to_string();
    let at = free();
    world.toml = format!("[gateway]\nlisten = \"{at}\"\nbackend = \"{backend}\"\ndrain_secs = 20\n");
    Some((world, at, identity))
}

#[tokio::test(flavor = "multi_thread")]
async fn agent_serves_the_port_names_the_model_in_its_evidence_and_drains_before_it_unmounts() {
    let echo = Backend::echo().await;
    let Some((world, at, identity)) = with_port(echo.at).await else { return };
    let mut agent = world.agent();
    let status = world.wait_state(&mut agent, "Serving");
    // Serving: so the port is open.
    let tunnel = port::tunnel(at).await;
    let mut stream = tunnel.open().await.unwrap();
    let shown = &status["Gateway"];
    assert_eq!((&shown["Mode"], &shown["Listen"][0]), (&"mapping".into(), &at.to_string().into()));
    assert_eq!((&shown["Backend"], &shown["RefreshSeconds"]), (&echo.at.to_string().into(), &600.into()));
    for format in ["legacy", "current"] {
        let age = std::time::UNIX_EPOCH.elapsed().unwrap().as_secs()
            - shown["EvidenceAt"][format].as_u64().unwrap();
        assert!(age < 60, "{format} evidence is {age} s old");
    }
    until("the tunnel in the status", || world.status().unwrap()["Gateway"]["Streams"] == 1).await;
    let text = world.cai(&["status"]);
    let text = String::from_utf8(text.stdout).unwrap();
    let line = text.lines().find(|line| line.starts_with("service port ")).unwrap();
    assert!(line.contains(&format!("{at} (mapping) to {}; evidence ", echo.at)), "{line}");

    assert_eq!(status["ModelRevision"], identity);
    let (_, der) = port::tls(at, &["rats-tls"], true).await.unwrap();
    let read = parse(&der).unwrap();
    let bound = TaggedEvidence::decode(&read.blob).unwrap().bound(read.key.spki()).unwrap();
    assert_eq!(bound["model-identity"], identity);

    agent.signal(Signal::SIGTERM);
    until("the port to be shut", || std::net::TcpStream::connect(at).is_err()).await;
    // The inference service may still need the model for what it is answering.
    world.assert_model_is_readable();
    assert_eq!(world.status().unwrap()["State"], "Stopping");
    stream.send(Bytes::from_static(b"last words"), true).await.unwrap();
    assert_eq!(stream.read_to_end().await.unwrap(), b"last words");
    assert_eq!(agent.wait().code(), Some(0));
    world.assert_nothing_mounted();
}

#[tokio::test(flavor = "multi_thread")]
async fn failure_cuts_off_what_is_open() {
    let echo = Backend::echo().await;
    let Some((world, at, _)) = with_port(echo.at).await else { return };
    let mut agent = world.agent();
    world.wait_state(&mut agent, "Serving");
    let mut stream = port::tunnel(at).await.open().await.unwrap();
    nix::mount::umount2(&world.mount_point(), nix::mount::MntFlags::MNT_DETACH).unwrap();
    assert!(stream.read_to_end().await.is_err());
    assert_eq!(agent.wait().code(), Some(69));
    assert!(TcpStream::connect(at).await.is_err());
    assert!(agent.log().contains("[mount.lost]"), "{}", agent.log());
}

#[tokio::test(flavor = "multi_thread")]
async fn port_that_is_taken_fails_the_start_and_leaves_no_mount() {
    let echo = Backend::echo().await;
    let Some((world, at, _)) = with_port(echo.at).await else { return };
    let _taken = std::net::TcpListener::bind(at).unwrap();
    let mut agent = world.agent();
    assert_eq!(agent.wait().code(), Some(78));
    let log = agent.log();
    assert!(log.contains(&format!("listening on {at}: Address already in use")), "{log}");
    assert!(log.contains("[gateway.listen]") && log.contains("another tng or cai"), "{log}");
    assert!(!agent.notifications().contains(&"READY=1".to_owned()));
    world.assert_nothing_mounted();
}
