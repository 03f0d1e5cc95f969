//! TLS as TNG's clients expect it: 1.3 only, no resumption, the certificate of the generation that asks.

use std::sync::Arc;
use std::time::Instant;

use rustls::crypto::aws_lc_rs;
use rustls::server::{ClientHello, NoServerSessionStorage, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use rustls::{NamedGroup, ServerConfig};
use tokio::sync::watch;

use crate::config::CertificateRule;
use crate::ratls::Format;
use crate::ratls::identity::Fresh;

/// ALPN of the tunnel in HTTP/2: every TNG up to 2.6.0, newer ones with `multiplex`.
pub(super) const H2: &[u8] = b"h2";
/// ALPN of the raw tunnel: TNG after 2.6.0.
pub(super) const RATS_TLS: &[u8] = b"rats-tls";

/// The formats that clients may be shown under `rule`.
pub(super) fn formats(rule: CertificateRule) -> Vec<Format> {
    match rule {
        CertificateRule::Auto => vec![Format::Legacy, Format::Current],
        CertificateRule::Legacy => vec![Format::Legacy],
        CertificateRule::Current => vec![Format::Current],
    }
}

/// The format for a client that offers these protocols and groups (tng.md 14, R1).
///
/// Clients of 2.3.0 to 2.6.0 look like those of 2.2.6 and before, and get what those need; they are why the rule can be
/// overridden.
fn format_for(rule: CertificateRule, offers_raw: bool, groups: &[NamedGroup]) -> Format {
    match rule {
        CertificateRule::Legacy => Format::Legacy,
        CertificateRule::Current => Format::Current,
        CertificateRule::Auto if offers_raw || groups.contains(&NamedGroup::X25519MLKEM768) => {
            Format::Current
        }
        CertificateRule::Auto => Format::Legacy,
    }
}

/// Picks the certificate by ClientHello, from what is fresh.
#[derive(Debug)]
struct Picker {
    rule: CertificateRule,
    fresh: watch::Receiver<Fresh>,
}

impl ResolvesServerCert for Picker {
    fn resolve(&self, hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        let offers_raw = hello.alpn().is_some_and(|mut names| names.any(|name| name == RATS_TLS));
        let format = format_for(self.rule, offers_raw, hello.named_groups().unwrap_or_default());
        let fresh = self.fresh.borrow();
        let shown = fresh.shown(format, Instant::now());
        if shown.is_none() {
            tracing::error!(
                event = "gateway.no-certificate",
                format = format.name(),
                "the evidence is too old to be shown: see why it could not be renewed"
            );
        }
        shown.map(|shown| shown.certified().clone())
    }
}

/// The server's side of every handshake.
///
/// # Errors
/// What rustls says; it has said so at the first start, or never will.
pub(super) fn config(
    rule: CertificateRule,
    fresh: watch::Receiver<Fresh>,
) -> Result<Arc<ServerConfig>, rustls::Error> {
    let builder = ServerConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
        .with_protocol_versions(&[&rustls::version::TLS13])?;
    let mut config = builder.with_no_client_auth().with_cert_resolver(Arc::new(Picker { rule, fresh }));
    config.alpn_protocols = vec![H2.to_vec(), RATS_TLS.to_vec()];
    // A resumed session would skip the evidence, and both ends of TNG build a new configuration per connection anyway.
    config.send_tls13_tickets = 0;
    config.session_storage = Arc::new(NoServerSessionStorage {});
    Ok(Arc::new(config))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn format_follows_what_the_client_offers_unless_the_operator_chose() {
        use CertificateRule::{Auto, Current, Legacy};
        let old = [NamedGroup::X25519, NamedGroup::secp256r1, NamedGroup::secp384r1];
        let new = [NamedGroup::X25519MLKEM768, NamedGroup::X25519];
        for (rule, raw, groups, expected) in [
            (Auto, false, &old[..], Format::Legacy),
            (Auto, false, &[][..], Format::Legacy),
            (Auto, false, &new[..], Format::Current),
            (Auto, true, &old[..], Format::Current),
            (Auto, true, &new[..], Format::Current),
            (Legacy, true, &new[..], Format::Legacy),
            (Current, false, &old[..], Format::Current),
        ] {
            assert_eq!(format_for(rule, raw, groups), expected, "{rule:?} {raw} {groups:?}");
        }
        assert_eq!(formats(Auto), [Format::Legacy, Format::Current]);
    }
}
