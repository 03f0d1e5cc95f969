//! Where an application wants to go.

use std::fmt;
use std::net::{IpAddr, Ipv6Addr};

/// A host and a port, as applications name them: `model.example:8080`, `[2001:db8::1]:8080`.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Destination {
    /// Name or address; an IPv6 address without brackets.
    host: String,
    port: u16,
}

impl Destination {
    /// From the text `HOST:PORT`; with `default`, the port may be left out.
    ///
    /// # Errors
    /// A sentence for people.
    pub fn parse(text: &str, default: Option<u16>) -> Result<Self, String> {
        let wanted = || format!("expected HOST:PORT, got {text:?}");
        let (host, port) = match text.strip_prefix('[') {
            Some(rest) => {
                let (host, rest) = rest.split_once(']').ok_or_else(wanted)?;
                host.parse::<Ipv6Addr>().map_err(|_| wanted())?;
                (host, if rest.is_empty() { None } else { Some(rest.strip_prefix(':').ok_or_else(wanted)?) })
            }
            None => match text.split_once(':') {
                Some((host, port)) => (host, Some(port)),
                None => (text, None),
            },
        };
        let port = match port {
            Some(port) if port.bytes().all(|digit| digit.is_ascii_digit()) => port.parse().ok(),
            Some(_) => None,
            None => default,
        };
        Self::new(host.to_owned(), port.ok_or_else(wanted)?).ok_or_else(wanted)
    }

    /// From its parts; `None` if the host cannot be one.
    pub fn new(host: String, port: u16) -> Option<Self> {
        let letter = |byte: u8| byte.is_ascii_alphanumeric() || b"-._".contains(&byte);
        let is_name = (1..=253).contains(&host.len()) && host.bytes().all(letter);
        (port != 0 && (is_name || host.parse::<IpAddr>().is_ok())).then_some(Destination { host, port })
    }

    /// Name or address, and port, to be looked up.
    pub fn parts(&self) -> (&str, u16) {
        (&self.host, self.port)
    }

    /// The name, if it is not an address.
    pub fn name(&self) -> Option<&str> {
        self.host.parse::<IpAddr>().is_err().then_some(&self.host)
    }
}

impl fmt::Display for Destination {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Destination { host, port } = self;
        if host.contains(':') { write!(f, "[{host}]:{port}") } else { write!(f, "{host}:{port}") }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_form_of_a_destination_is_read_and_written_back() {
        for text in ["model.example:8080", "127.0.0.1:1", "[::1]:65535", "a_b-c:80"] {
            assert_eq!(Destination::parse(text, None).unwrap().to_string(), text);
        }
        assert_eq!(Destination::parse("host", Some(80)).unwrap().to_string(), "host:80");
        assert_eq!(Destination::parse("[::1]", Some(80)).unwrap().to_string(), "[::1]:80");
        assert_eq!(Destination::parse("host:80", None).unwrap().name(), Some("host"));
        assert_eq!(Destination::parse("[::1]:80", None).unwrap().name(), None);
    }

    #[test]
    fn what_is_no_destination_is_refused() {
        for text in [
            "",
            "host",
            ":80",
            "host:",
            "host:0",
            "host:65536",
            "host:+80",
            "host:80:80",
            "::1:80",
            "[::1]80",
            "[::1",
            "[host]:80",
            "ho st:80",
            "h\u{f6}st:80",
            "host\r\n:80",
        ] {
            assert_eq!(Destination::parse(text, None), Err(format!("expected HOST:PORT, got {text:?}")));
        }
        assert_eq!(Destination::new("a".repeat(254), 80), None);
    }
}
