//! How much may be open at a time, in all and for one client, and how long each step may take.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv6Addr};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::refusal::Refusal;

/// One client may have this part of what may be open: no client proves anything to the server, so a single host could
/// otherwise take the whole port. Clients behind one translated address count as one.
const SHARE: usize = 4;

/// What the clients of a gateway may take.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// Connections open at a time.
    pub connections: usize,
    /// Connections at a time that are not tunnels yet.
    pub pending: usize,
    /// Tunnelled connections to the backend at a time, in all tunnels.
    pub streams: usize,
    /// How long a new connection may say nothing.
    pub first_byte: Duration,
    /// How long the ClientHello may take.
    pub hello: Duration,
    /// How long a connection may take from its first byte to a tunnel: the client asks its verifier meanwhile, which may
    /// have to fetch collateral first (tng.md 3.4).
    pub handshake: Duration,
    /// How long a tunnel without streams is kept. A client whose tunnel is gone makes a new one.
    ///
    /// A stream without bytes has no limit of its own: a model may think for long, an application may keep its connection,
    /// and the backend has its own idea of how long. That the client is there, TCP's probes find out.
    pub idle: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Limits {
            // Room for 10,000 clients that keep an idle tunnel, at some 30 KB each.
            connections: 16_384,
            // Each holds our certificate (a hundred KB and more with an event log) until the client has taken it, and a
            // client up to TNG 2.2.4 asks its verifier meanwhile: at 2 s each, 500 a second.
            pending: 1_024,
            // Each may hold a send buffer and a chunk for a client that does not read, 1.6 GB if all do, and a window of
            // bytes for a backend that does not read, 8.6 GB if it reads nothing at all.
            streams: 8_192,
            // TNG from 2.2.3 on says so.
            first_byte: Duration::from_secs(5),
            hello: Duration::from_secs(10),
            handshake: Duration::from_secs(60),
            idle: Duration::from_secs(15 * 60),
        }
    }
}

/// Places of one kind.
pub(super) struct Places {
    what: &'static str,
    limit: usize,
    free: Arc<Semaphore>,
    /// Held for a look-up, over nothing that waits.
    taken: Mutex<HashMap<IpAddr, usize>>,
}

/// One of them, until dropped.
pub(super) struct Place {
    places: Arc<Places>,
    client: IpAddr,
    _permit: OwnedSemaphorePermit,
}

impl Places {
    pub(super) fn new(what: &'static str, limit: usize) -> Arc<Self> {
        Arc::new(Places { what, limit, free: Arc::new(Semaphore::new(limit)), taken: Mutex::default() })
    }

    /// Take a place for whoever is at `address`.
    ///
    /// # Errors
    /// [`Refusal::TooMany`]: the client has its share, or all are taken.
    pub(super) fn take(self: &Arc<Self>, address: IpAddr) -> Result<Place, Refusal> {
        let too_many = |limit, whose| Refusal::TooMany { what: self.what, limit, whose };
        let client = client_of(address);
        let share = (self.limit / SHARE).max(1);
        let mut taken = self.taken.lock().unwrap_or_else(PoisonError::into_inner);
        let has = taken.get(&client).copied().unwrap_or_default();
        if has >= share {
            return Err(too_many(share, "one client"));
        }
        let Ok(permit) = Arc::clone(&self.free).try_acquire_owned() else {
            return Err(too_many(self.limit, "all clients"));
        };
        taken.insert(client, has + 1);
        Ok(Place { places: Arc::clone(self), client, _permit: permit })
    }

    /// Wait until none is taken.
    pub(super) async fn all_free(&self) {
        let all = u32::try_from(self.limit).unwrap_or(u32::MAX);
        drop(self.free.acquire_many(all).await);
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut taken = self.places.taken.lock().unwrap_or_else(PoisonError::into_inner);
        match taken.get_mut(&self.client) {
            Some(others) if *others > 1 => *others -= 1,
            _ => drop(taken.remove(&self.client)),
        }
    }
}

/// Who counts as one client: an IPv4 address, and the network of an IPv6 address, in which every host may take any.
fn client_of(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V4(address) => address.into(),
        IpAddr::V6(address) => Ipv6Addr::from_bits(address.to_bits() & !u128::from(u64::MAX)).into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn client_has_a_quarter_and_all_have_the_whole() {
        let places = Places::new("stream", 8);
        let from = |address: &str| places.take(address.parse().unwrap());
        let mut held: Vec<_> = (0..2).map(|_| from("192.0.2.1").ok().unwrap()).collect();
        let refusal = from("192.0.2.1").err().unwrap().to_string();
        assert_eq!(refusal, "is one stream too many (limit 2 for one client)");
        // The same in a socket of IPv6.
        assert!(from("::ffff:192.0.2.1").is_err());
        for address in ["192.0.2.2", "2001:db8::1", "2001:db8:0:1::1"] {
            held.extend((0..2).map(|_| from(address).ok().unwrap()));
        }
        assert!(from("2001:db8::2").err().unwrap().to_string().ends_with("(limit 2 for one client)"));
        assert!(from("192.0.2.3").err().unwrap().to_string().ends_with("(limit 8 for all clients)"));
        // A place that is given back is there for anybody.
        drop(held.swap_remove(0));
        held.push(from("192.0.2.3").ok().unwrap());
        assert!(from("192.0.2.1").is_err());
        drop(held);
        assert!(places.taken.lock().unwrap().is_empty());
        assert!(from("192.0.2.1").is_ok());
    }

    #[test]
    fn few_places_are_a_share_of_one() {
        let places = Places::new("stream", 2);
        let address = "192.0.2.1".parse().unwrap();
        let held = places.take(address).ok().unwrap();
        assert!(places.take(address).is_err());
        drop(held);
        assert!(places.take(address).is_ok());
    }

    #[tokio::test]
    async fn whoever_waits_for_all_to_be_free_waits_for_the_last() {
        let places = Places::new("connection", 8);
        let held: Vec<_> =
            ["::1", "::1"].iter().map(|at| places.take(at.parse().unwrap()).ok().unwrap()).collect();
        let mut waiting = Box::pin(places.all_free());
        assert!(futures_util::poll!(&mut waiting).is_pending());
        drop(held);
        waiting.await;
    }
}
