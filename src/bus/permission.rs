//! Who may act: root, and whom polkit allows it.
//!
//! The caller is the process at the other end of the message, as the bus names it: never who runs the bus, and never a number
//! that the message carries. Anything but a clear yes is a no, also where polkit does not run.

use zbus::Connection;
use zbus::fdo::DBusProxy;
use zbus::message::{Flags, Header};
use zbus::names::BusName;
use zbus_polkit::policykit1::{AuthorityProxy, CheckAuthorizationFlags, Subject};

use crate::agent::audit;

/// What polkit is asked about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Action {
    /// `Prefetch`.
    Prefetch,
    /// `Rotate`.
    Rotate,
    /// `Reattest`.
    Reattest,
    /// `Reload`.
    Reload,
}

impl Action {
    /// As `systemd/com.alibaba.cai1.policy` declares it.
    pub(super) const fn id(self) -> &'static str {
        match self {
            Action::Prefetch => "com.alibaba.cai1.prefetch",
            Action::Rotate => "com.alibaba.cai1.rotate",
            Action::Reattest => "com.alibaba.cai1.reattest",
            Action::Reload => "com.alibaba.cai1.reload",
        }
    }
}

/// Whether the sender of `header` may do `action`; why not, in words.
pub(super) async fn check(
    connection: &Connection,
    header: &Header<'_>,
    action: Action,
) -> Result<(), String> {
    let refuse = |caller: Option<u32>, why: String| {
        audit::request_refused(action.id(), caller, &why);
        Err(why)
    };
    let Some(sender) = header.sender() else { return refuse(None, "the message has no sender".into()) };
    let bus = DBusProxy::new(connection).await;
    let uid = match bus {
        Ok(bus) => bus.get_connection_unix_user(BusName::from(sender.clone())).await,
        Err(error) => return refuse(None, format!("the bus does not answer: {error}")),
    };
    let caller = match uid {
        Ok(0) => return Ok(()),
        Ok(uid) => Some(uid),
        Err(error) => return refuse(None, format!("the bus does not know the caller: {error}")),
    };
    match ask_polkit(connection, header, action).await {
        Ok(true) => Ok(()),
        Ok(false) => {
            refuse(caller, format!("polkit does not allow {} to this process; root may", action.id()))
        }
        Err(error) => {
            refuse(caller, format!("polkit cannot be asked about {}: {error}; root may", action.id()))
        }
    }
}

async fn ask_polkit(
    connection: &Connection,
    header: &Header<'_>,
    action: Action,
) -> Result<bool, Box<dyn std::error::Error + Send + Sync>> {
    let authority = AuthorityProxy::new(connection).await?;
    let subject = Subject::new_for_message_header(header)?;
    // Only a caller that said so waits for somebody to type a password.
    let may_ask = header.primary().flags().contains(Flags::ALLOW_INTERACTIVE_AUTH);
    let flags = match may_ask {
        true => CheckAuthorizationFlags::ALLOW_USER_INTERACTION,
        false => CheckAuthorizationFlags::empty(),
    };
    let result = authority.check_authorization(&subject, action.id(), &Default::default(), flags, "").await?;
    Ok(result.is_authorized)
}
