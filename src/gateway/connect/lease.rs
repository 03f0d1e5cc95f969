//! How long connections to an attested server may stay open: as long as the attestation service affirms its certificate.
//!
//! Owns: the watch over each verdict while there are connections under it. When it ends, the service is asked again about the
//! certificate that was shown, which needs no handshake: who holds its key is known of an open connection. A service that
//! cannot be reached is tried again for a while; any other answer than yes cuts everything that is open. Must not know: how
//! connections are made and what goes through them. A task for each certificate of a server; locks: the table of leases and
//! the term of each, never held across an await. Tested below and in `tests/connect_reattest.rs`.

use std::collections::HashMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use sha2::{Digest as _, Sha256};
use tokio::time::{Instant, sleep};
use tokio_util::sync::{CancellationToken, WaitForCancellationFutureOwned};

use super::destination::Destination;
use crate::error::{ErrorClass, Fault as _, chain};
use crate::ratls::{Term, Verifier, VerifyError};
use crate::task::Tasks;

/// How long after the end of a verdict a service that gives none is tried again. The last try may take its own minute.
const GRACE: Duration = Duration::from_secs(60);

/// How long between two tries.
const RETRY: Duration = Duration::from_secs(5);

/// A server, and the SHA-256 of a certificate that it showed.
type Shown = (Destination, [u8; 32]);

/// All leases.
pub(super) struct Leases {
    verifier: Arc<Verifier>,
    running: Mutex<HashMap<Shown, Weak<Lease>>>,
    tasks: Mutex<Tasks>,
}

/// What all connections to a server under one certificate depend on.
pub(super) struct Lease {
    term: Mutex<Term>,
    /// Bytes of applications may be on their way in so many tunnels.
    tunnels: AtomicUsize,
    cut: CancellationToken,
}

/// A tunnel's place under a lease.
pub(super) struct Place(Arc<Lease>);

impl Leases {
    pub(super) fn new(verifier: Verifier) -> Self {
        Leases { verifier: Arc::new(verifier), running: Mutex::default(), tasks: Mutex::default() }
    }

    pub(super) fn verifier(&self) -> &Verifier {
        &self.verifier
    }

    /// The lease of a server that showed `certificate` (DER) and was attested for that `term`.
    pub(super) fn grant(&self, to: &Destination, certificate: Vec<u8>, term: Term) -> Arc<Lease> {
        let shown = (to.clone(), Sha256::digest(&certificate).into());
        let mut running = lock(&self.running);
        if let Some(lease) = running.get(&shown).and_then(Weak::upgrade)
            && !lease.cut.is_cancelled()
        {
            lease.renew(term);
            return lease;
        }
        running.retain(|_, lease| lease.strong_count() > 0);
        let cut = CancellationToken::new();
        let lease =
            Arc::new(Lease { term: Mutex::new(term), tunnels: AtomicUsize::new(0), cut: cut.clone() });
        running.insert(shown, Arc::downgrade(&lease));
        let (verifier, certificate) = (self.verifier.clone(), Arc::new(certificate));
        let attest = move || {
            let (verifier, certificate) = (verifier.clone(), certificate.clone());
            async move { verifier.verify(&certificate).await.map(|peer| peer.term) }
        };
        let mut tasks = lock(&self.tasks);
        tasks.reap();
        tasks.supervise("connect-lease", watch(Arc::downgrade(&lease), cut, to.clone(), attest));
        lease
    }
}

impl Lease {
    /// Take a place. Whether the verdict holds is to be asked after that: then it is renewed at its end, and not let go.
    pub(super) fn enter(self: &Arc<Self>) -> Place {
        self.tunnels.fetch_add(1, Ordering::SeqCst);
        Place(self.clone())
    }

    /// Whether the verdict holds.
    pub(super) fn holds(&self) -> bool {
        !self.cut.is_cancelled() && self.term().holds()
    }

    /// Wait until everything under it is to be cut.
    pub(super) async fn cut(&self) {
        self.cut.cancelled().await;
    }

    fn term(&self) -> Term {
        *lock(&self.term)
    }

    fn renew(&self, term: Term) {
        *lock(&self.term) = term;
    }
}

impl Drop for Lease {
    /// Nothing is under it any more: the watch ends.
    fn drop(&mut self) {
        self.cut.cancel();
    }
}

impl Place {
    /// Ready once the tunnel is to be cut.
    pub(super) fn cut(&self) -> WaitForCancellationFutureOwned {
        self.0.cut.clone().cancelled_owned()
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.0.tunnels.fetch_sub(1, Ordering::SeqCst);
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Renew the lease each time its verdict ends, or cut what is under it.
async fn watch<F>(lease: Weak<Lease>, cut: CancellationToken, to: Destination, attest: impl Fn() -> F)
where
    F: Future<Output = Result<Term, VerifyError>>,
{
    while let Some(term) = lease.upgrade().map(|lease| lease.term()) {
        let renewing = async {
            term.ended().await;
            match lease.upgrade() {
                // A new connection has renewed it, or there is nothing left.
                Some(lease) if lease.term().holds() => return true,
                None => return false,
                // An open connection that nobody uses is not worth a question.
                Some(lease) if lease.tunnels.load(Ordering::SeqCst) == 0 => return false,
                Some(_) => {}
            }
            match renewed(&to, &attest).await {
                Ok(term) => lease.upgrade().is_some_and(|lease| {
                    lease.renew(term);
                    true
                }),
                Err(error) => {
                    tracing::warn!(
                        event = "connect.cut",
                        %to,
                        code = error.code(),
                        hint = error.hint(),
                        "the verdict on {to} has ended and there is no new one, its connections are cut: {}",
                        chain(&error)
                    );
                    false
                }
            }
        };
        tokio::select! {
            () = cut.cancelled() => return,
            stays = renewing => if !stays {
                return cut.cancel();
            },
        }
    }
}

/// A new verdict on a server whose last one has just ended.
async fn renewed<F>(to: &Destination, attest: impl Fn() -> F) -> Result<Term, VerifyError>
where
    F: Future<Output = Result<Term, VerifyError>>,
{
    let last_try = Instant::now() + GRACE;
    let mut told = false;
    loop {
        match attest().await {
            // Not a verdict, but the lack of one.
            Err(error) if error.class() == ErrorClass::Transient && Instant::now() + RETRY < last_try => {
                if !told {
                    let reason = chain(&error);
                    tracing::warn!(event = "connect.late", %to, reason, "the verdict on {to} has ended: asking again");
                    told = true;
                }
                sleep(RETRY).await;
            }
            verdict => return verdict,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::SystemTime;

    use super::*;
    use crate::ratls::verdict::Refused;

    /// A lease of five minutes with a tunnel under it, whose renewals end as `answer` says of the number of each.
    async fn watched(answer: impl Fn(usize) -> Result<Term, VerifyError>) -> (bool, usize, u64) {
        let cut = CancellationToken::new();
        let term = Mutex::new(Term::until(SystemTime::now() + Duration::from_secs(300)));
        let lease = Arc::new(Lease { term, tunnels: AtomicUsize::new(0), cut: cut.clone() });
        let _place = lease.enter();
        let asked = AtomicUsize::new(0);
        let begin = Instant::now();
        let attest = || std::future::ready(answer(asked.fetch_add(1, Ordering::SeqCst)));
        let to = Destination::parse("model.example:8080", None).unwrap();
        let limit = Duration::from_secs(1000);
        let watching = tokio::time::timeout(limit, watch(Arc::downgrade(&lease), cut.clone(), to, attest));
        let ended = watching.await.is_ok();
        assert_eq!(ended, cut.is_cancelled());
        (ended, asked.load(Ordering::SeqCst), begin.elapsed().as_secs())
    }

    fn renewal() -> Result<Term, VerifyError> {
        Ok(Term::until(SystemTime::now() + Duration::from_secs(300)))
    }

    fn outage() -> Result<Term, VerifyError> {
        Err(VerifyError::Denied { url: String::new(), status: 503, detail: String::new() })
    }

    #[tokio::test(start_paused = true)]
    async fn connections_stay_as_long_as_the_service_says_yes() {
        assert_eq!(watched(|_| renewal()).await, (false, 3, 1000));
    }

    #[tokio::test(start_paused = true)]
    async fn another_answer_than_yes_cuts_at_once() {
        let claim =
            || Refused::Claim { claim: "x".into(), expected: "y".into(), found: "z".into(), hint: "" };
        let (cut, asked, secs) = watched(|_| Err(VerifyError::Verdict(claim()))).await;
        assert_eq!((cut, asked), (true, 1));
        assert!((299..=301).contains(&secs), "{secs}");
    }

    #[tokio::test(start_paused = true)]
    async fn service_that_cannot_be_reached_is_tried_again_for_a_minute() {
        let (cut, asked, _) = watched(|n| if (1..=11).contains(&n) { outage() } else { renewal() }).await;
        assert_eq!((cut, asked), (false, 14));
        let (cut, asked, secs) = watched(|_| outage()).await;
        assert_eq!((cut, asked), (true, 12));
        assert!((354..=356).contains(&secs), "{secs}");
    }
}
