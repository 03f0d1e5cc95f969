//! The control plane on D-Bus: `com.alibaba.cai1`, documented in README.md, "D-Bus".
//!
//! Owns: the interface object, its change signals and (`client`) who asks the running daemon. Must not know: how anything it shows comes about;
//! it reads one `watch<Status>`, and hands what it is asked to do to the agent's desk once the caller may ask for it. No secret
//! ever crosses the bus. Tested in `tests/lifecycle.rs` and `tests/bus_prefetch.rs`.

mod agent;
mod client;
mod json;
mod permission;
mod values;

pub use client::Daemon;
pub use json::{to_json, to_legible_json};
pub use values::Dict;

use std::path::PathBuf;

use tokio::sync::watch;
use zbus::Connection;
use zbus::fdo::RequestNameFlags;
use zbus::object_server::{Interface as _, InterfaceRef};

use crate::agent::command::Desk;
use crate::agent::status::Status;
use crate::error::{ErrorClass, Fault};
use agent::AgentInterface;

/// Well-known bus name. A breaking change would be `cai2`, served beside it.
pub const NAME: &str = "com.alibaba.cai1";
/// The only object.
pub const PATH: &str = "/com/alibaba/cai1";

/// The control plane could not be offered or reached.
#[derive(Debug, thiserror::Error)]
pub enum BusError {
    /// No system bus.
    #[error("connecting to the D-Bus system bus")]
    Connect(#[source] zbus::Error),
    /// The interface could not be put on the connection.
    #[error("offering {PATH} on the bus")]
    Serve(#[source] zbus::Error),
    /// Another process has the name: another cai.
    #[error("the bus name {NAME} is taken: another cai is running")]
    NameTaken,
    /// The bus refused the name.
    #[error("requesting the bus name {NAME}")]
    Name(#[source] zbus::Error),
    /// The daemon does not answer.
    #[error("asking {NAME}")]
    Ask(#[source] zbus::Error),
    /// The daemon does not do what it was asked to.
    #[error("{detail}")]
    Refused {
        /// The last part of the error's name on the bus.
        name: String,
        /// Why, in its words.
        detail: String,
    },
    /// Nobody has the name.
    #[error("nobody answers to {NAME} on the system bus")]
    NotRunning,
}

impl Fault for BusError {
    fn class(&self) -> ErrorClass {
        match self {
            BusError::Connect(_) | BusError::Serve(_) | BusError::Ask(_) => ErrorClass::Transient,
            BusError::NameTaken | BusError::Name(_) => ErrorClass::Config,
            BusError::Refused { name, .. } => match name.as_str() {
                "NotAuthorized" | "Denied" => ErrorClass::Denied,
                "InvalidConfiguration" => ErrorClass::Config,
                _ => ErrorClass::Transient,
            },
            BusError::NotRunning => ErrorClass::Transient,
        }
    }

    fn code(&self) -> &'static str {
        match self {
            BusError::Connect(_) => "bus.connect",
            BusError::Serve(_) => "bus.serve",
            BusError::NameTaken => "bus.second-instance",
            BusError::Name(_) => "bus.name",
            BusError::Ask(_) => "bus.ask",
            BusError::Refused { .. } => "bus.refused",
            BusError::NotRunning => "bus.not-running",
        }
    }

    fn hint(&self) -> String {
        match self {
            BusError::Connect(_) | BusError::Serve(_) => "is dbus running? systemctl status dbus".into(),
            BusError::NameTaken => {
                "stop the other one first: busctl status com.alibaba.cai1 shows its process".into()
            }
            BusError::Name(_) => {
                "install com.alibaba.cai1.conf in /usr/share/dbus-1/system.d and reload dbus".into()
            }
            BusError::Ask(_) => "see its log: journalctl -u cai".into(),
            BusError::Refused { name, .. } => match name.as_str() {
                "NotAuthorized" => {
                    "run it with sudo, or allow it to the user in /etc/polkit-1/rules.d".into()
                }
                "InvalidConfiguration" => "see all of it: cai check-config".into(),
                _ => "see what it is doing: cai status; and its log: journalctl -u cai".into(),
            },
            BusError::NotRunning => "start it: systemctl start cai; then: journalctl -u cai".into(),
        }
    }
}

/// The interface on the bus. The connection lives as long as this value.
pub struct Bus {
    interface: InterfaceRef<AgentInterface>,
    connection: Connection,
    status: watch::Receiver<Status>,
}

impl Bus {
    /// Put the interface on the system bus, then take the name: whoever sees the name can use the object.
    ///
    /// # Errors
    /// Any [`BusError`] but `Ask` and `NotRunning`.
    pub async fn serve(status: watch::Receiver<Status>, desk: Desk) -> Result<Self, BusError> {
        let connection = Connection::system().await.map_err(BusError::Connect)?;
        let server = connection.object_server();
        server.at(PATH, AgentInterface::new(status.clone(), desk)).await.map_err(BusError::Serve)?;
        let interface = server.interface(PATH).await.map_err(BusError::Serve)?;
        match connection.request_name_with_flags(NAME, RequestNameFlags::DO_NOT_QUEUE).await {
            Ok(_) => Ok(Bus { interface, connection, status }),
            Err(zbus::Error::NameTaken) => Err(BusError::NameTaken),
            Err(error) => Err(BusError::Name(error)),
        }
    }

    /// Emit change signals for every new status until the agent is gone.
    pub async fn announce(mut self) {
        let mut shown = self.status.borrow_and_update().clone();
        while self.status.changed().await.is_ok() {
            let status = self.status.borrow_and_update().clone();
            if let Err(error) = agent::emit_changes(&self.interface, &shown, &status).await {
                tracing::warn!(event = "bus.emit", error = ?error, "emitting change signals");
            }
            shown = status;
        }
        // Last words: the name goes before the connection, so that a waiting successor sees a clean hand-over.
        if let Err(error) = self.connection.release_name(NAME).await {
            tracing::debug!(event = "bus.release", error = ?error, "releasing the name");
        }
    }
}

/// The interface as introspection shows it, for its manual page.
pub fn introspection() -> String {
    let (_, status) = watch::channel(Status::new(String::new(), PathBuf::new(), Vec::new()));
    let (desk, _) = crate::agent::command::desk();
    let mut xml = String::new();
    AgentInterface::new(status, desk).introspect_to_writer(&mut xml, 0);
    xml
}
