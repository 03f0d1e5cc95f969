//! What cai's requests to services of the verifier's side share: whose certificates count, and bounded answers.
//!
//! Owns: the rule that trust comes from the configuration alone: the public roots are compiled in, a CA bundle replaces
//! them, and nothing of the environment is read. Must not know: which service, what is asked. No threads, no locks. Tested
//! through its users: `tests/kbs_protocol.rs`, `tests/ratls_verifier.rs`.

use std::error::Error;
use std::sync::Arc;

use hyper_rustls::ConfigBuilderExt as _;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject as _;
use zeroize::Zeroizing;

/// TLS cannot be set up.
#[derive(Debug, thiserror::Error)]
pub(crate) enum RootsError {
    /// Not PEM, or no certificate that can be a root in it.
    #[error("there is no certificate in it that can be a root")]
    Content,
    /// The TLS library refuses its own defaults.
    #[error("setting up TLS")]
    Tls(#[source] rustls::Error),
}

/// TLS that trusts the roots in `pem`, or the web's.
///
/// # Errors
/// [`RootsError`].
pub(crate) fn client_config(pem: Option<&[u8]>) -> Result<rustls::ClientConfig, RootsError> {
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let builder = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(RootsError::Tls)?;
    let Some(pem) = pem else {
        return Ok(builder.with_webpki_roots().with_no_client_auth());
    };
    let mut roots = rustls::RootCertStore::empty();
    for certificate in CertificateDer::pem_slice_iter(pem) {
        let certificate = certificate.map_err(|_| RootsError::Content)?;
        roots.add(certificate).map_err(|_| RootsError::Content)?;
    }
    if roots.is_empty() {
        return Err(RootsError::Content);
    }
    Ok(builder.with_root_certificates(roots).with_no_client_auth())
}

/// The body up to `limit` bytes, and whether that is all of it. It may hold a token, so it is wiped.
pub(crate) async fn read_bounded(
    response: &mut reqwest::Response,
    limit: usize,
) -> Result<(Zeroizing<Vec<u8>>, bool), reqwest::Error> {
    let mut body = Zeroizing::new(Vec::new());
    while let Some(chunk) = response.chunk().await? {
        let room = limit.saturating_sub(body.len());
        body.extend_from_slice(chunk.get(..room).unwrap_or(&chunk));
        if chunk.len() > room {
            return Ok((body, false));
        }
    }
    Ok((body, true))
}

/// Whether TLS failed on the server's certificate, somewhere down the chain. An `io::Error` skips what it wraps when asked
/// for its source, so it is asked for that instead.
pub(crate) fn is_certificate_error(error: &(dyn Error + 'static)) -> bool {
    if let Some(rustls::Error::InvalidCertificate(_)) = error.downcast_ref() {
        return true;
    }
    let inner: Option<&(dyn Error + 'static)> = match error.downcast_ref::<std::io::Error>() {
        Some(error) => error.get_ref().map(|wrapped| wrapped as _),
        None => error.source(),
    };
    inner.is_some_and(is_certificate_error)
}
