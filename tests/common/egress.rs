//! The server's end of a tunnel, written from the specification (tng.md 3, 4, 6) on OpenSSL and h2, strict about what the
//! client's end sends; and certificates with evidence of the sample TEE.
#![allow(dead_code, reason = "each test file uses its part")]

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use cai::ratls::Format;
use cai::ratls::evidence::{
    HashAlgorithm, TaggedEvidence, claims_buffer, current_runtime_data, legacy_runtime_data,
};
use openssl::pkey::{PKey, Private};
use openssl::ssl::{AlpnError, Ssl, SslContext, SslMethod, SslVersion, select_next_proto};
use openssl::x509::X509;
use rcgen::{CertificateParams, CustomExtension, DnType, KeyPair, PublicKeyData as _};
use sha2::{Digest as _, Sha384};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;
use tokio_openssl::SslStream;

/// A key and the certificate that is shown for it.
#[derive(Clone)]
pub struct Identity {
    pub key: PKey<Private>,
    /// DER.
    pub certificate: Vec<u8>,
}

/// What a certificate is to carry.
pub struct Evidence {
    pub format: Format,
    /// Further members of the runtime data.
    pub members: BTreeMap<String, String>,
    /// Length of the event log in it, in bytes.
    pub event_log: usize,
    /// SubjectPublicKeyInfo (DER) it is bound to; the certificate's own without.
    pub bound_to: Option<Vec<u8>>,
}

impl Default for Evidence {
    fn default() -> Self {
        Evidence { format: Format::Current, members: BTreeMap::new(), event_log: 0, bound_to: None }
    }
}

impl Evidence {
    pub fn blob(&self, spki: &[u8]) -> Vec<u8> {
        let spki = self.bound_to.as_deref().unwrap_or(spki);
        let (claims, runtime_data) = match self.format {
            Format::Legacy => {
                let claims = claims_buffer(spki);
                let runtime_data = legacy_runtime_data(&claims);
                (claims, runtime_data)
            }
            Format::Current => (Vec::new(), current_runtime_data(spki, &self.members)),
        };
        let log = (self.event_log > 0).then(|| "x".repeat(self.event_log));
        let evidence = serde_json::json!({
            "svn": "1",
            "report_data": STANDARD.encode(Sha384::digest(&runtime_data)),
            "measure_register": "0".repeat(64),
            "cc_eventlog": log,
        });
        TaggedEvidence {
            tee: "sample".to_owned(),
            evidence: evidence.to_string().into_bytes(),
            additional: None,
            runtime_data,
            hash: HashAlgorithm::Sha384,
            claims,
        }
        .encode()
    }

    /// A new key with a certificate for it that carries this.
    pub fn identity(&self) -> Identity {
        certified(|spki| Some(self.blob(spki)))
    }
}

/// A new key with a certificate whose evidence extension holds what `blob` says of the key; without one for `None`.
pub fn certified(blob: impl FnOnce(&[u8]) -> Option<Vec<u8>>) -> Identity {
    let pair = KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256).unwrap();
    let mut params = CertificateParams::new(Vec::new()).unwrap();
    params.distinguished_name.push(DnType::CommonName, "TNG");
    if let Some(blob) = blob(&pair.subject_public_key_info()) {
        let oid = [2, 23, 133, 5, 4, 9];
        params.custom_extensions.push(CustomExtension::from_oid_content(&oid, blob));
    }
    let certificate = params.self_signed(&pair).unwrap().der().to_vec();
    Identity { key: PKey::private_key_from_der(&pair.serialize_der()).unwrap(), certificate }
}

/// How the server's end is.
#[derive(Clone)]
pub struct Character {
    /// Protocols it takes, the best first; none is negotiated where there are none.
    pub alpn: &'static [&'static str],
    /// Newest TLS it speaks.
    pub newest: SslVersion,
    /// Status of its answer to CONNECT.
    pub status: u16,
    /// Streams of a connection at a time.
    pub streams: u32,
    /// It answers so once the first bytes of an upload have come, and takes no more; no backend is asked.
    pub early: Option<&'static str>,
}

impl Default for Character {
    fn default() -> Self {
        let alpn = &["h2", "rats-tls"];
        Character { alpn, newest: SslVersion::TLS1_3, status: 200, streams: 200, early: None }
    }
}

/// What the server's end has seen.
#[derive(Default)]
pub struct Seen {
    /// TLS connections whose handshake was completed.
    pub connections: AtomicUsize,
    /// Those of them that are over.
    pub ended: AtomicUsize,
    /// CONNECT streams.
    pub streams: AtomicUsize,
    /// Server names of the handshakes.
    pub names: Mutex<Vec<Option<String>>>,
    /// Bytes that came in through tunnels, and everything else that was wrong.
    pub bytes: AtomicUsize,
    pub wrong: Mutex<Vec<String>>,
}

impl Seen {
    pub fn connections(&self) -> usize {
        self.connections.load(Ordering::SeqCst)
    }

    pub fn ended(&self) -> usize {
        self.ended.load(Ordering::SeqCst)
    }

    pub fn streams(&self) -> usize {
        self.streams.load(Ordering::SeqCst)
    }

    pub fn bytes(&self) -> usize {
        self.bytes.load(Ordering::SeqCst)
    }
}

/// A running server's end; ends with this.
pub struct Egress {
    pub address: SocketAddr,
    pub seen: Arc<Seen>,
    /// Shown from the next handshake on.
    identity: Arc<Mutex<Identity>>,
    tasks: JoinSet<()>,
}

impl Egress {
    /// In front of `backend`.
    pub async fn start(identity: Identity, character: Character, backend: SocketAddr) -> Egress {
        Self::restart(identity, character, backend, "127.0.0.1:0".parse().unwrap()).await
    }

    /// As [`Egress::start`], where another one was.
    pub async fn restart(
        identity: Identity,
        character: Character,
        backend: SocketAddr,
        address: SocketAddr,
    ) -> Egress {
        let listener = TcpListener::bind(address).await.unwrap();
        let address = listener.local_addr().unwrap();
        let seen = Arc::new(Seen::default());
        let identity = Arc::new(Mutex::new(identity));
        let (watched, shown) = (seen.clone(), identity.clone());
        let mut tasks = JoinSet::new();
        tasks.spawn(async move {
            let mut connections = JoinSet::new();
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                let context = context(&shown.lock().unwrap().clone(), &character);
                connections.spawn(serve(stream, context, character.clone(), backend, watched.clone()));
            }
        });
        Egress { address, seen, identity, tasks }
    }

    pub fn show(&self, identity: Identity) {
        *self.identity.lock().unwrap() = identity;
    }

    /// End, with all connections.
    pub async fn stop(mut self) {
        self.tasks.shutdown().await;
    }
}

fn context(identity: &Identity, character: &Character) -> SslContext {
    let mut builder = SslContext::builder(SslMethod::tls_server()).unwrap();
    builder.set_max_proto_version(Some(character.newest)).unwrap();
    builder.set_certificate(&X509::from_der(&identity.certificate).unwrap()).unwrap();
    builder.set_private_key(&identity.key).unwrap();
    let names: &'static [&'static str] = character.alpn;
    if !names.is_empty() {
        let mut wire = Vec::new();
        for name in names {
            wire.push(u8::try_from(name.len()).unwrap());
            wire.extend_from_slice(name.as_bytes());
        }
        builder.set_alpn_select_callback(move |_, offered| {
            // The server's order counts, as in rustls.
            let chosen = select_next_proto(&wire, offered).ok_or(AlpnError::ALERT_FATAL)?;
            let position = offered.windows(chosen.len()).position(|part| part == chosen);
            position.and_then(|at| offered.get(at..at + chosen.len())).ok_or(AlpnError::ALERT_FATAL)
        });
    }
    builder.build()
}

async fn serve(
    stream: TcpStream,
    context: SslContext,
    character: Character,
    backend: SocketAddr,
    seen: Arc<Seen>,
) {
    let mut stream = SslStream::new(Ssl::new(&context).unwrap(), stream).unwrap();
    if Pin::new(&mut stream).accept().await.is_err() {
        return;
    }
    seen.connections.fetch_add(1, Ordering::SeqCst);
    let name = stream.ssl().servername(openssl::ssl::NameType::HOST_NAME).map(str::to_owned);
    seen.names.lock().unwrap().push(name);
    match stream.ssl().selected_alpn_protocol() {
        Some(b"h2") => multiplexed(stream, character, backend, seen.clone()).await,
        _ => raw(stream, character, backend, seen.clone()).await,
    }
    seen.ended.fetch_add(1, Ordering::SeqCst);
}

async fn raw(mut stream: SslStream<TcpStream>, character: Character, backend: SocketAddr, seen: Arc<Seen>) {
    let mut first = [0; 1];
    let Ok(n) = stream.read(&mut first).await else { return };
    seen.bytes.fetch_add(n, Ordering::SeqCst);
    if let Some(answer) = character.early {
        // The end of it too; what has not been read makes the kernel reset the connection.
        let _ = stream.write_all(answer.as_bytes()).await;
        let _ = stream.shutdown().await;
        return;
    }
    let Ok(mut backend) = TcpStream::connect(backend).await else { return };
    if backend.write_all(&first[..n]).await.is_err() {
        return;
    }
    let _ = tokio::io::copy_bidirectional(&mut stream, &mut backend).await;
}

async fn multiplexed(
    stream: SslStream<TcpStream>,
    character: Character,
    backend: SocketAddr,
    seen: Arc<Seen>,
) {
    let mut builder = h2::server::Builder::new();
    builder.max_concurrent_streams(character.streams);
    let Ok(mut connection) = builder.handshake(stream).await else { return };
    let status = character.status;
    let mut streams = JoinSet::new();
    while let Some(Ok((request, mut respond))) = connection.accept().await {
        seen.streams.fetch_add(1, Ordering::SeqCst);
        let uri = request.uri();
        let as_told = request.method() == http::Method::CONNECT
            && uri.authority().is_some_and(|authority| authority == "tng.internal")
            && uri.scheme().is_none()
            && request.headers().is_empty();
        if !as_told {
            seen.wrong.lock().unwrap().push(format!("{request:?}"));
        }
        let answer = http::Response::builder().status(status).body(()).unwrap();
        let Ok(send) = respond.send_response(answer, status != 200) else { continue };
        if let Some(answer) = character.early {
            streams.spawn(early(request.into_body(), send, answer));
        } else if status == 200 {
            streams.spawn(relay(request.into_body(), send, backend, seen.clone()));
        }
    }
}

/// The whole answer to the beginning of an upload; then h2 resets the stream with NO_ERROR (RFC 9113 section 8.1).
async fn early(mut from: h2::RecvStream, mut to: h2::SendStream<Bytes>, answer: &'static str) {
    if let Some(Ok(_)) = from.data().await {
        let _ = to.send_data(answer.into(), true);
    }
}

async fn relay(
    mut from: h2::RecvStream,
    mut to: h2::SendStream<Bytes>,
    backend: SocketAddr,
    seen: Arc<Seen>,
) {
    let Ok(backend) = TcpStream::connect(backend).await else {
        to.send_reset(h2::Reason::CONNECT_ERROR);
        return;
    };
    let (mut read, mut write) = backend.into_split();
    let up = async {
        while let Some(Ok(chunk)) = from.data().await {
            seen.bytes.fetch_add(chunk.len(), Ordering::SeqCst);
            let _ = from.flow_control().release_capacity(chunk.len());
            if write.write_all(&chunk).await.is_err() {
                return;
            }
        }
        let _ = write.shutdown().await;
    };
    // Whether it was to the end.
    let down = async {
        let mut buffer = vec![0; 64 << 10];
        while let Ok(n) = read.read(&mut buffer).await {
            let mut chunk = Bytes::copy_from_slice(&buffer[..n]);
            if n == 0 {
                return to.send_data(Bytes::new(), true).is_ok();
            }
            while !chunk.is_empty() {
                to.reserve_capacity(chunk.len());
                let part = match std::future::poll_fn(|cx| to.poll_capacity(cx)).await {
                    Some(Ok(room)) => chunk.split_to(room.min(chunk.len())),
                    _ => return false,
                };
                if to.send_data(part, false).is_err() {
                    return false;
                }
            }
        }
        to.send_reset(h2::Reason::CONNECT_ERROR);
        false
    };
    tokio::pin!(up, down);
    tokio::select! {
        // A backend that broke off ends both.
        whole = &mut down => if whole { up.await },
        () = &mut up => drop(down.await),
    }
}

/// A context that signs with another key than that of the certificate it shows.
pub fn mismatched(identity: &Identity) -> SslContext {
    context(&Identity { key: mismatched_key(identity), ..identity.clone() }, &Character::default())
}

/// The identity's key, which is not that of its certificate, so that OpenSSL does not notice.
pub fn mismatched_key(identity: &Identity) -> PKey<Private> {
    // OpenSSL compares the two, except for a key whose public half it is told: the certificate's, with the other's private.
    let group = openssl::ec::EcGroup::from_curve_name(openssl::nid::Nid::X9_62_PRIME256V1).unwrap();
    let certificate = X509::from_der(&identity.certificate).unwrap();
    let public = certificate.public_key().unwrap().ec_key().unwrap();
    let private = identity.key.ec_key().unwrap();
    let key = openssl::ec::EcKey::from_private_components(&group, private.private_key(), public.public_key())
        .unwrap();
    PKey::from_ec_key(key).unwrap()
}

/// Whether a handshake as the server is completed.
pub async fn handshake(stream: TcpStream, context: SslContext) -> bool {
    let mut stream = SslStream::new(Ssl::new(&context).unwrap(), stream).unwrap();
    Pin::new(&mut stream).accept().await.is_ok()
}
