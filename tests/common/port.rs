//! The service port, served in the test's own process with sample evidence; and a client of it written from tng.md alone.
#![allow(dead_code, reason = "each test file uses its part")]

use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use cai::attest::sample_attester;
use cai::config::{self, CertificateRule, Entrance};
use cai::gateway::{Gateway, Limits};
use cai::ratls::identity::{Identity, Recipe};
use h2::Reason;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, aws_lc_rs};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{ClientConfig, DigitallySignedStruct, NamedGroup, SignatureScheme};
use tokio::net::{TcpSocket, TcpStream};
use tokio::task::JoinHandle;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

/// What the current format's runtime data says beside the key.
pub const MODEL_IDENTITY: &str = "6d6f64656c0000000000000000000000000000000000000000000000000000ff";

pub fn recipe(rule: CertificateRule) -> Recipe {
    Recipe {
        attester: sample_attester().unwrap(),
        formats: Gateway::formats(rule),
        members: [("model-identity".to_owned(), MODEL_IDENTITY.to_owned())].into(),
    }
}

pub fn settings(rule: CertificateRule, paths: &[&str]) -> config::Gateway {
    config::Gateway {
        entrance: None,
        capture_port: 40_000,
        certificate: rule,
        refresh: Duration::from_secs(600),
        plaintext_paths: paths.iter().map(|path| (*path).to_owned()).collect(),
        drain: Duration::ZERO,
    }
}

/// A gateway on a free port of loopback in front of `backend`, and the port.
pub async fn serve(rule: CertificateRule, backend: SocketAddr, paths: &[&str]) -> (Gateway, SocketAddr) {
    serve_within(Limits::default(), rule, backend, paths).await
}

pub async fn serve_within(
    limits: Limits,
    rule: CertificateRule,
    backend: SocketAddr,
    paths: &[&str],
) -> (Gateway, SocketAddr) {
    let identity = Identity::start(recipe(rule), Duration::from_secs(600)).await.unwrap();
    let entrance = Entrance::Mapping { listen: "127.0.0.1:0".parse().unwrap(), backend };
    let gateway = Gateway::start_within(limits, &settings(rule, paths), &entrance, identity.fresh()).unwrap();
    let at = gateway.listening()[0];
    (gateway, at)
}

/// Takes every certificate and keeps it.
#[derive(Debug, Default)]
pub struct Keeper(pub Mutex<Option<Vec<u8>>>);

impl ServerCertVerifier for Keeper {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _name: &ServerName<'_>,
        _ocsp: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        assert!(intermediates.is_empty());
        *self.0.lock().unwrap() = Some(end_entity.to_vec());
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _cert: &CertificateDer<'_>,
        _dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        panic!("TLS 1.2 was negotiated");
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = aws_lc_rs::default_provider().signature_verification_algorithms;
        rustls::crypto::verify_tls13_signature(message, cert, dss, &algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        vec![SignatureScheme::ECDSA_NISTP256_SHA256]
    }
}

/// A TLS client that offers these protocols; `new` ones offer the post-quantum group too (tng.md 14, R1).
pub fn client_config(alpn: &[&str], new: bool, keeper: Arc<Keeper>) -> ClientConfig {
    let mut provider: CryptoProvider = aws_lc_rs::default_provider();
    provider.kx_groups.retain(|group| new || group.name() != NamedGroup::X25519MLKEM768);
    let builder = ClientConfig::builder_with_provider(Arc::new(provider));
    let builder = builder.with_protocol_versions(&[&rustls::version::TLS13]).unwrap();
    let mut config = builder.dangerous().with_custom_certificate_verifier(keeper).with_no_client_auth();
    config.alpn_protocols = alpn.iter().map(|name| name.as_bytes().to_vec()).collect();
    config
}

/// A finished handshake, and the certificate that was shown in it.
pub async fn tls(
    at: SocketAddr,
    alpn: &[&str],
    new: bool,
) -> std::io::Result<(TlsStream<TcpStream>, Vec<u8>)> {
    tls_over(TcpStream::connect(at).await?, alpn, new).await
}

pub async fn tls_over(
    stream: TcpStream,
    alpn: &[&str],
    new: bool,
) -> std::io::Result<(TlsStream<TcpStream>, Vec<u8>)> {
    let keeper = Arc::new(Keeper::default());
    let connector = TlsConnector::from(Arc::new(client_config(alpn, new, keeper.clone())));
    let tls = connector.connect(ServerName::try_from("tng.internal").unwrap(), stream).await?;
    let certificate = keeper.0.lock().unwrap().take().unwrap();
    Ok((tls, certificate))
}

/// A connection from another address of loopback: another client.
pub async fn from(client: &str, at: SocketAddr) -> std::io::Result<TcpStream> {
    let socket = TcpSocket::new_v4()?;
    socket.bind(SocketAddr::new(client.parse().unwrap(), 0))?;
    socket.connect(at).await
}

/// A tunnel in HTTP/2.
pub struct Tunnel {
    pub send: h2::client::SendRequest<Bytes>,
    pub connection: JoinHandle<Result<(), h2::Error>>,
}

pub async fn tunnel(at: SocketAddr) -> Tunnel {
    tunnel_over(TcpStream::connect(at).await.unwrap()).await
}

pub async fn tunnel_over(stream: TcpStream) -> Tunnel {
    let (tls, _) = tls_over(stream, &["h2"], true).await.unwrap();
    let (send, connection) = h2::client::handshake(tls).await.unwrap();
    Tunnel { send, connection: tokio::spawn(connection) }
}

/// One stream: what is sent to the backend, and what comes from it.
pub struct Stream {
    pub send: h2::SendStream<Bytes>,
    pub body: h2::RecvStream,
}

impl Tunnel {
    /// CONNECT as TNG sends it.
    pub async fn open(&self) -> Result<Stream, h2::Error> {
        let mut send = self.send.clone().ready().await?;
        let request = http::Request::connect("tng.internal").body(()).unwrap();
        let (response, send) = send.send_request(request, false)?;
        let response = response.await?;
        assert_eq!(response.status(), 200);
        assert!(response.headers().is_empty(), "{:?}", response.headers());
        Ok(Stream { send, body: response.into_body() })
    }
}

impl Stream {
    /// Send all of it, as the windows allow.
    pub async fn send(&mut self, mut data: Bytes, end: bool) -> Result<(), h2::Error> {
        while !data.is_empty() {
            self.send.reserve_capacity(data.len());
            while self.send.capacity() == 0 {
                let more = std::future::poll_fn(|context| self.send.poll_capacity(context)).await;
                more.unwrap_or(Err(Reason::STREAM_CLOSED.into()))?;
            }
            let part = data.split_to(self.send.capacity().min(data.len()));
            self.send.send_data(part, false)?;
        }
        if end { self.send.send_data(Bytes::new(), true) } else { Ok(()) }
    }

    /// Everything to the end.
    pub async fn read_to_end(&mut self) -> Result<Vec<u8>, h2::Error> {
        let mut all = Vec::new();
        while let Some(data) = self.body.data().await {
            let data = match data {
                Ok(data) => data,
                // The answer is whole, and the rest of the request is not wanted (RFC 9113 section 8.1).
                Err(error) if error.reason() == Some(Reason::NO_ERROR) => break,
                Err(error) => return Err(error),
            };
            all.extend_from_slice(&data);
            self.body.flow_control().release_capacity(data.len())?;
        }
        Ok(all)
    }
}
