//! The TLS roles that receive evidence, with OpenSSL: rustls takes no certificate of more than 64 KiB.
//!
//! A client, which shows evidence of its own where it has some and the server asks; and a server, which always does both.
//! Owns: TLS 1.3 only, no resumption, the peer's proof that it holds its certificate's key (CertificateVerify, which OpenSSL checks), the
//! bound of a certificate, and the rule, held by types, that a connection cannot be used before its peer is attested. Name,
//! validity and chain of the certificate say nothing and are not looked at. Must not know: who connects to whom and why.
//! Asynchronous, no locks. Tested in `tests/connect_hostile.rs` and, for peers, `tests/ratls_mutual.rs`.

use std::ffi::c_long;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::{Duration, Instant};

use openssl::ec::EcKey;
use openssl::error::ErrorStack;
use openssl::pkey::PKey;
use openssl::ssl::{
    self, AlpnError, Ssl, SslContext, SslContextBuilder, SslMethod, SslMode, SslOptions, SslRef,
    SslSessionCacheMode, SslVerifyMode, SslVersion,
};
use openssl::x509::X509;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::sync::watch;
use tokio_openssl::SslStream;

use super::Format;
use super::certificate::{CERTIFICATE_LIMIT, CertificateError};
use super::error::VerifyError;
use super::identity::Fresh;
use super::limit::set_max_cert_list;
use super::verifier::{Peer, Verifier};
use crate::error::{ErrorClass, Fault};
use crate::text::printable;

/// How long a handshake may take. A peer whose evidence is made for each connection needs seconds.
const TIMEOUT: Duration = Duration::from_secs(60);

/// How much of the name of a protocol that a peer wrote is shown, in characters.
const SHOWN: usize = 32;

/// TLS with a peer failed.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// OpenSSL refuses a setting.
    #[error("setting up TLS")]
    Setup(#[source] ErrorStack),
    /// The handshake failed.
    #[error("TLS handshake")]
    Handshake(#[source] ssl::Error),
    /// There is no evidence to show.
    #[error("there is no fresh evidence of this machine to show")]
    Stale,
    /// The key for the evidence cannot be used.
    #[error("using the key of this machine's certificate")]
    Key(#[source] CertificateError),
    /// It took too long.
    #[error("the TLS handshake took more than {} s", TIMEOUT.as_secs())]
    Slow,
    /// There is no certificate in a completed handshake.
    #[error("the peer showed no certificate")]
    NoCertificate,
    /// The peer does not speak what was offered.
    #[error("the peer chose the protocol {chosen}, expected one of {offered}")]
    Protocol {
        /// What it chose.
        chosen: String,
        /// What was offered.
        offered: String,
    },
}

impl Fault for TlsError {
    fn class(&self) -> ErrorClass {
        match self {
            TlsError::Setup(_) | TlsError::Key(_) => ErrorClass::Internal,
            TlsError::Stale | TlsError::Handshake(_) | TlsError::Slow => ErrorClass::Transient,
            TlsError::NoCertificate | TlsError::Protocol { .. } => ErrorClass::Corrupt,
        }
    }

    fn code(&self) -> &'static str {
        match self {
            TlsError::Setup(_) => "tls.setup",
            TlsError::Stale => "tls.stale",
            TlsError::Key(source) => source.code(),
            TlsError::Handshake(_) => "tls.handshake",
            TlsError::Slow => "tls.slow",
            TlsError::NoCertificate => "tls.no-certificate",
            TlsError::Protocol { .. } => "tls.protocol",
        }
    }

    fn hint(&self) -> String {
        match self {
            TlsError::Stale => "see in the log why the evidence could not be renewed".into(),
            TlsError::Key(source) => source.hint(),
            TlsError::Setup(_) => "report this as a defect in cai, with the version of OpenSSL".into(),
            TlsError::Handshake(_) | TlsError::NoCertificate => {
                "is a cai gateway or a TNG egress behind that port? plaintext is never sent to it".into()
            }
            TlsError::Slow => "the peer may be making evidence; try again, then look at its log".into(),
            TlsError::Protocol { .. } => {
                "multiplexing must be the same on both ends (cai connect --mode; TNG: rats_tls.multiplex)"
                    .into()
            }
        }
    }
}

/// Makes TLS connections to peers that show evidence.
#[derive(Debug, Clone)]
pub struct Client {
    context: SslContext,
    offered: &'static [&'static str],
    own: Option<watch::Receiver<Fresh>>,
}

impl Client {
    /// Set up, to offer these protocols (ALPN), the best first. One of them must be chosen by the peer.
    ///
    /// # Errors
    /// [`TlsError::Setup`].
    pub fn new(offered: &'static [&'static str]) -> Result<Self, TlsError> {
        let context = client_context(offered).map_err(TlsError::Setup)?;
        Ok(Client { context, offered, own: None })
    }

    /// Show evidence to peers that ask for it: the newest certificate in the current format.
    pub fn showing(self, own: watch::Receiver<Fresh>) -> Self {
        Client { own: Some(own), ..self }
    }

    /// Shake hands over `stream`. `name` goes out as SNI.
    ///
    /// # Errors
    /// [`TlsError`].
    pub async fn connect<S>(&self, stream: S, name: Option<&str>) -> Result<Unattested<S>, TlsError>
    where
        S: AsyncRead + AsyncWrite + Unpin,
    {
        let mut ssl = Ssl::new(&self.context).map_err(TlsError::Setup)?;
        if let Some(name) = name {
            ssl.set_hostname(name).map_err(TlsError::Setup)?;
        }
        if let Some(own) = &self.own {
            show(&mut ssl, own)?;
        }
        ssl.set_connect_state();
        shake(ssl, stream, self.offered).await
    }
}

/// Takes TLS connections from peers that show evidence, and shows its own. A peer without a certificate gets no connection.
#[derive(Debug, Clone)]
pub struct Server {
    context: SslContext,
    offered: &'static [&'static str],
    own: watch::Receiver<Fresh>,
}

impl Server {
    /// Set up, to take these protocols (ALPN), the best first, and show the newest certificate in the current format.
    ///
    /// # Errors
    /// [`TlsError::Setup`].
    pub fn new(offered: &'static [&'static str], own: watch::Receiver<Fresh>) -> Result<Self, TlsError> {
        let context = server_context(offered).map_err(TlsError::Setup)?;
        Ok(Server { context, offered, own })
    }

    /// Shake hands over `stream`.
    ///
    /// # Errors
    /// [`TlsError`].
    pub async fn accept<S>(&self, stream: S) -> Result<Unattested<S>, TlsError>
    where
        S: AsyncRead + AsyncWrite + Unpin,
    {
        let mut ssl = Ssl::new(&self.context).map_err(TlsError::Setup)?;
        show(&mut ssl, &self.own)?;
        ssl.set_accept_state();
        shake(ssl, stream, self.offered).await
    }
}

/// Take the newest certificate for a handshake.
fn show(ssl: &mut SslRef, own: &watch::Receiver<Fresh>) -> Result<(), TlsError> {
    let shown = own.borrow().shown(Format::Current, Instant::now()).cloned().ok_or(TlsError::Stale)?;
    let (certificate, key) = shown.parts();
    let private = key.private().map_err(TlsError::Key)?;
    let set = |ssl: &mut SslRef| {
        let certificate = X509::from_der(certificate)?;
        ssl.set_certificate(&certificate)?;
        // OpenSSL wipes its copy, and the DER wipes itself.
        let key = PKey::from_ec_key(EcKey::private_key_from_der(private.as_ref())?)?;
        ssl.set_private_key(&key)
    };
    set(ssl).map_err(TlsError::Setup)
}

async fn shake<S>(ssl: Ssl, stream: S, offered: &'static [&'static str]) -> Result<Unattested<S>, TlsError>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let mut stream = SslStream::new(ssl, Whole(stream)).map_err(TlsError::Setup)?;
    let handshake = tokio::time::timeout(TIMEOUT, Pin::new(&mut stream).do_handshake()).await;
    handshake.map_err(|_| TlsError::Slow)?.map_err(TlsError::Handshake)?;
    let certificate = stream.ssl().peer_certificate().ok_or(TlsError::NoCertificate)?;
    let certificate = certificate.to_der().map_err(TlsError::Setup)?;
    let protocol = known(stream.ssl().selected_alpn_protocol(), offered)?;
    Ok(Unattested { stream, certificate, protocol })
}

/// The one of our protocols that was chosen.
fn known(chosen: Option<&[u8]>, offered: &'static [&'static str]) -> Result<&'static str, TlsError> {
    let known = offered.iter().find(|offer| Some(offer.as_bytes()) == chosen);
    known.copied().ok_or_else(|| TlsError::Protocol {
        chosen: chosen
            .map_or_else(|| "(none)".into(), |name| printable(&String::from_utf8_lossy(name), SHOWN)),
        offered: offered.join(", "),
    })
}

fn client_context(offered: &[&str]) -> Result<SslContext, ErrorStack> {
    let mut builder = context(SslMethod::tls_client())?;
    // The chain is nobody's; the verdict on the leaf takes its place. CertificateVerify is checked all the same.
    builder.set_verify(SslVerifyMode::NONE);
    builder.set_alpn_protos(&wire(offered))?;
    Ok(builder.build())
}

fn server_context(offered: &'static [&'static str]) -> Result<SslContext, ErrorStack> {
    let mut builder = context(SslMethod::tls_server())?;
    // As for the client, but a server must ask for a certificate, and here it must get one.
    let required = SslVerifyMode::PEER | SslVerifyMode::FAIL_IF_NO_PEER_CERT;
    builder.set_verify_callback(required, |_, _| true);
    builder.set_num_tickets(0)?;
    let taken = wire(offered);
    builder.set_alpn_select_callback(move |_, offer| {
        let chosen = ssl::select_next_proto(&taken, offer);
        known(chosen, offered).map(str::as_bytes).map_err(|_| AlpnError::ALERT_FATAL)
    });
    Ok(builder.build())
}

/// What both roles have in common.
fn context(method: SslMethod) -> Result<SslContextBuilder, ErrorStack> {
    let mut builder = SslContext::builder(method)?;
    builder.set_min_proto_version(Some(SslVersion::TLS1_3))?;
    // Resumption would skip the certificate.
    builder.set_session_cache_mode(SslSessionCacheMode::OFF);
    builder.set_options(SslOptions::NO_TICKET);
    // As AsyncWrite promises: who was told to wait may come back with the bytes elsewhere, and more of them.
    builder.set_mode(SslMode::ENABLE_PARTIAL_WRITE | SslMode::ACCEPT_MOVING_WRITE_BUFFER);
    set_max_cert_list(&mut builder, c_long::try_from(CERTIFICATE_LIMIT).unwrap_or(c_long::MAX));
    Ok(builder)
}

/// Names of protocols as ALPN has them: each behind its length.
fn wire(offered: &[&str]) -> Vec<u8> {
    let mut names = Vec::new();
    for name in offered {
        names.push(u8::try_from(name.len()).unwrap_or(u8::MAX));
        names.extend_from_slice(name.as_bytes());
    }
    names
}

/// TLS over `S`.
pub type TlsStream<S> = SslStream<Whole<S>>;

/// A transport whose end is an error. TLS says itself when it is over (close_notify), and OpenSSL reads no further then; an
/// end without that is a cut, which OpenSSL 1.1.1 does not tell from it.
#[derive(Debug)]
pub struct Whole<S>(S);

impl<S: AsyncRead + Unpin> AsyncRead for Whole<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buffer.remaining();
        ready!(Pin::new(&mut self.0).poll_read(cx, buffer))?;
        let ended = before > 0 && buffer.remaining() == before;
        Poll::Ready(if ended { Err(io::ErrorKind::UnexpectedEof.into()) } else { Ok(()) })
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Whole<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.0).poll_write(cx, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_shutdown(cx)
    }
}

/// A connection whose peer holds the key of its certificate, and nothing more is known of it. It can be attested, and
/// dropped.
#[derive(Debug)]
pub struct Unattested<S> {
    stream: TlsStream<S>,
    certificate: Vec<u8>,
    protocol: &'static str,
}

/// A connection to a peer that was attested.
#[derive(Debug)]
pub struct Attested<S> {
    /// For application bytes.
    pub stream: TlsStream<S>,
    /// The protocol chosen among those offered.
    pub protocol: &'static str,
    /// The other end.
    pub peer: Peer,
    /// Its certificate in DER, to attest it again: see [`Verifier::verify`].
    pub certificate: Vec<u8>,
}

impl<S> Unattested<S> {
    /// Attest the peer.
    ///
    /// # Errors
    /// [`VerifyError`].
    pub async fn attest(self, verifier: &Verifier) -> Result<Attested<S>, VerifyError> {
        let Unattested { stream, certificate, protocol } = self;
        let peer = verifier.verify(&certificate).await?;
        Ok(Attested { stream, protocol, peer, certificate })
    }
}
