//! Who asks the running daemon: the command line.

use futures_util::stream::{Stream, StreamExt as _};
use zbus::Connection;
use zbus::fdo::PropertiesProxy;
use zbus::names::InterfaceName;

use super::values::Dict;
use super::{BusError, NAME, PATH};

/// The methods, as `agent` has them. polkit may ask whoever sits at the terminal.
#[zbus::proxy(
    interface = "com.alibaba.cai1.Agent",
    default_service = "com.alibaba.cai1",
    default_path = "/com/alibaba/cai1"
)]
trait Agent {
    #[zbus(allow_interactive_auth)]
    fn rotate(&self) -> zbus::Result<u32>;
    #[zbus(allow_interactive_auth)]
    fn reattest(&self) -> zbus::Result<()>;
    #[zbus(allow_interactive_auth)]
    fn reload(&self) -> zbus::Result<(Vec<String>, Vec<String>)>;
}

/// The running daemon.
pub struct Daemon {
    connection: Connection,
    agent: AgentProxy<'static>,
}

impl Daemon {
    /// Connect to the bus that it is on.
    ///
    /// # Errors
    /// [`BusError::Connect`].
    pub async fn on_the_bus() -> Result<Self, BusError> {
        let connection = Connection::system().await.map_err(BusError::Connect)?;
        let agent = AgentProxy::new(&connection).await.map_err(BusError::Connect)?;
        Ok(Daemon { connection, agent })
    }

    /// Every property of it, by name.
    ///
    /// # Errors
    /// [`BusError::NotRunning`], [`BusError::Ask`].
    pub async fn properties(&self) -> Result<Dict, BusError> {
        let proxy = PropertiesProxy::builder(&self.connection).destination(NAME).path(PATH).build().await;
        let interface = InterfaceName::try_from("com.alibaba.cai1.Agent").map_err(BusError::Ask)?;
        match proxy.map_err(BusError::Ask)?.get_all(interface).await {
            Ok(all) => Ok(all),
            Err(error) if is_nobody(&error) => Err(BusError::NotRunning),
            Err(error) => Err(BusError::Ask(error.into())),
        }
    }

    /// One for each time that it tells of changed properties.
    ///
    /// # Errors
    /// [`BusError::Ask`].
    pub async fn changes(&self) -> Result<impl Stream<Item = ()> + Unpin + use<>, BusError> {
        let proxy = PropertiesProxy::builder(&self.connection).destination(NAME).path(PATH).build().await;
        let told = proxy.map_err(BusError::Ask)?.receive_properties_changed().await;
        Ok(told.map_err(BusError::Ask)?.map(drop))
    }

    /// Begin a rotation; gives its number.
    ///
    /// # Errors
    /// [`BusError::NotRunning`], [`BusError::Refused`], [`BusError::Ask`].
    pub async fn rotate(&self) -> Result<u32, BusError> {
        self.agent.rotate().await.map_err(meaning)
    }

    /// Have it attest anew.
    ///
    /// # Errors
    /// As [`Daemon::rotate`].
    pub async fn reattest(&self) -> Result<(), BusError> {
        self.agent.reattest().await.map_err(meaning)
    }

    /// Have it read its configuration again: the keys in effect now, and those that need a restart.
    ///
    /// # Errors
    /// As [`Daemon::rotate`].
    pub async fn reload(&self) -> Result<(Vec<String>, Vec<String>), BusError> {
        self.agent.reload().await.map_err(meaning)
    }
}

/// What an error on the bus says.
fn meaning(error: zbus::Error) -> BusError {
    match &error {
        zbus::Error::MethodError(name, detail, _) => match name.strip_prefix("com.alibaba.cai1.Error.") {
            Some(name) => {
                BusError::Refused { name: name.to_owned(), detail: detail.clone().unwrap_or_default() }
            }
            None => BusError::Ask(error),
        },
        zbus::Error::FDO(fault) if is_nobody(fault) => BusError::NotRunning,
        _ => BusError::Ask(error),
    }
}

/// Whether nobody has the name.
fn is_nobody(error: &zbus::fdo::Error) -> bool {
    matches!(error, zbus::fdo::Error::ServiceUnknown(_) | zbus::fdo::Error::NameHasNoOwner(_))
}
