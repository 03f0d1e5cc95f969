//! The service port: tunnels between attested machines, as TNG (Trusted Network Gateway) has them on the wire.

pub mod connect;
