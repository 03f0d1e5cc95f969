//! Peers, and the addresses by which the others see this machine.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio::net::{TcpStream, UdpSocket, lookup_host};
use url::Url;

use super::context::Context;
use super::finding::Finding;

/// How long a connection to a peer may take: peers are near.
const DIAL: Duration = Duration::from_secs(3);

/// Whether every peer can be reached.
pub(super) async fn peers(context: Arc<Context>) -> Vec<Finding> {
    let Some(settings) = context.settings() else { return Vec::new() };
    let peers = &settings.peer.addresses;
    if peers.is_empty() {
        return vec![Finding::note("peers.reach", "none are configured (MODEL_SHARING_PEER)")];
    }
    futures_util::future::join_all(peers.iter().map(|peer| dial(*peer))).await
}

async fn dial(peer: SocketAddr) -> Finding {
    let failed = |why: String| {
        let meaning = "its chunks come from OSS instead";
        Finding::warning("peers.reach", format!("{peer}: {why}"), meaning).fixed_by(
            "systemctl status cai there (its own address may be listed too); security group: open the port to this machine",
        )
    };
    match tokio::time::timeout(DIAL, TcpStream::connect(peer)).await {
        Ok(Ok(_)) => Finding::ok("peers.reach", format!("{peer} takes connections")),
        Ok(Err(error)) => failed(error.to_string()),
        Err(_) => failed(format!("no answer within {} s", DIAL.as_secs())),
    }
}

/// Where this machine's requests come from, as its own routes say. Nobody is asked: no packet is sent but to the name server.
pub(super) async fn egress(context: Arc<Context>) -> Vec<Finding> {
    let Some(settings) = context.settings() else { return Vec::new() };
    let store = settings.oss.proxy.as_ref().unwrap_or(&settings.oss.endpoint);
    let (trustee, oss) = tokio::join!(towards("the Trustee", &settings.trustee.url), towards("OSS", store));
    vec![trustee, oss]
}

async fn towards(whom: &str, url: &Url) -> Finding {
    let host = url.host_str().unwrap_or_default().trim_matches(['[', ']']).to_owned();
    let port = url.port_or_known_default().unwrap_or(443);
    match source(&host, port).await {
        Ok((to, from)) => Finding::note("egress.address", format!("towards {whom} ({to}) from {from}"))
            .meaning("for access lists and bucket policies; NAT on the way may show another address"),
        Err(error) => Finding::warning(
            "egress.address",
            format!("no way to {whom} ({host}): {error}"),
            "the name does not resolve, or there is no route",
        )
        .fixed_by(format!("getent ahosts {host}; ip route get ADDRESS")),
    }
}

/// The first address of `host`, and the local one that packets to it carry.
async fn source(host: &str, port: u16) -> std::io::Result<(std::net::IpAddr, std::net::IpAddr)> {
    let to = lookup_host((host, port)).await?.next().ok_or(std::io::ErrorKind::NotFound)?;
    let any = if to.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" };
    let socket = UdpSocket::bind(any).await?;
    // Sends nothing: it only chooses the route.
    socket.connect(to).await?;
    Ok((to.ip(), socket.local_addr()?.ip()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::doctor::Level;

    #[tokio::test]
    async fn peer_that_listens_is_reached_and_one_that_does_not_is_named() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let at = listener.local_addr().unwrap();
        assert_eq!(dial(at).await, Finding::ok("peers.reach", format!("{at} takes connections")));
        drop(listener);
        let finding = dial(at).await;
        assert_eq!(finding.level, Level::Warning);
        assert!(finding.found.starts_with(&format!("{at}: Connection refused")), "{}", finding.found);
    }

    #[tokio::test]
    async fn address_towards_loopback_is_loopback_and_a_name_of_nobody_is_a_warning() {
        let finding = towards("OSS", &Url::parse("http://127.0.0.1:9").unwrap()).await;
        assert_eq!(finding.found, "towards OSS (127.0.0.1) from 127.0.0.1");
        // No label has more than 63 letters, so nobody is asked.
        let nowhere = format!("http://{}.invalid", "x".repeat(70));
        let finding = towards("OSS", &Url::parse(&nowhere).unwrap()).await;
        assert_eq!(finding.level, Level::Warning);
    }
}
