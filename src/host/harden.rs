//! From root to an ordinary user, and no way for its memory to leave.

use std::io;
use std::path::{Path, PathBuf};

use nix::fcntl::AtFlags;
use nix::sys::prctl;
use nix::sys::resource::{Resource, setrlimit};
use nix::unistd::{Gid, Uid, fchownat, setgid, setgroups, setresuid};

use super::directory::{self, DirectoryError};

use crate::error::{ErrorClass, Fault};

/// An account of this machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct User {
    /// User number.
    pub uid: Uid,
    /// Its primary group.
    pub gid: Gid,
}

impl User {
    /// Look `name` up; `None` if there is no such user.
    ///
    /// # Errors
    /// What the system's user database says.
    pub fn find(name: &str) -> io::Result<Option<Self>> {
        Ok(nix::unistd::User::from_name(name)?.map(|user| User { uid: user.uid, gid: user.gid }))
    }
}

/// The process could not be put into the state it must run in.
#[derive(Debug, thiserror::Error)]
pub enum HardenError {
    /// No account to drop to.
    #[error("user {name} does not exist")]
    NoUser {
        /// Account name.
        name: &'static str,
    },
    /// The user database cannot be read.
    #[error("looking up user {name}")]
    Lookup {
        /// Account name.
        name: &'static str,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// A directory of the daemon could not be prepared.
    #[error("preparing {}", path.display())]
    Directory {
        /// The directory.
        path: PathBuf,
        /// Why.
        #[source]
        source: DirectoryError,
    },
    /// A directory of the daemon is there already and belongs to somebody else.
    #[error("{} belongs to uid {uid}, expected {name}", path.display())]
    Foreign {
        /// The directory.
        path: PathBuf,
        /// Its owner.
        uid: u32,
        /// Account name of the daemon.
        name: &'static str,
    },
    /// A process attribute could not be set.
    #[error("setting {what}")]
    Process {
        /// Which.
        what: &'static str,
        /// What the system said.
        #[source]
        source: nix::Error,
    },
}

impl Fault for HardenError {
    fn class(&self) -> ErrorClass {
        match self {
            HardenError::NoUser { .. }
            | HardenError::Lookup { .. }
            | HardenError::Directory { .. }
            | HardenError::Foreign { .. } => ErrorClass::Config,
            HardenError::Process { .. } => ErrorClass::Internal,
        }
    }

    fn code(&self) -> &'static str {
        match self {
            HardenError::NoUser { .. } | HardenError::Lookup { .. } => "host.user",
            HardenError::Directory { .. } | HardenError::Foreign { .. } => "host.directory",
            HardenError::Process { .. } => "host.process",
        }
    }

    fn hint(&self) -> String {
        match self {
            HardenError::NoUser { name } | HardenError::Lookup { name, .. } => {
                format!("create it: useradd --system --no-create-home --shell /usr/sbin/nologin {name}")
            }
            HardenError::Directory { path, .. } => {
                format!("{} and what is above it must be real directories of root or cai", path.display())
            }
            HardenError::Foreign { path, name, .. } => {
                format!("choose another directory, or after a look at it: chown {name} {}", path.display())
            }
            HardenError::Process { .. } => "this is a defect: please report it with the journal".into(),
        }
    }
}

/// Keep this process's memory out of core dumps and away from debuggers of other processes.
///
/// # Errors
/// [`HardenError::Process`].
pub fn forbid_dumps() -> Result<(), HardenError> {
    let fail = |what| move |source| HardenError::Process { what, source };
    setrlimit(Resource::RLIMIT_CORE, 0, 0).map_err(fail("the core dump limit"))?;
    prctl::set_dumpable(false).map_err(fail("undumpable"))?;
    prctl::set_no_new_privs().map_err(fail("no new privileges"))
}

/// Create `directories` for the user `name`, then become that user for good. Called as root, before any thread starts.
///
/// # Errors
/// Any [`HardenError`]; the process must then end, it may be half-way.
pub fn become_user(name: &'static str, directories: &[&Path]) -> Result<(), HardenError> {
    let user = User::find(name)
        .map_err(|source| HardenError::Lookup { name, source })?
        .ok_or(HardenError::NoUser { name })?;
    for path in directories {
        prepare_directory(path, name, user)?;
    }
    let fail = |what| move |source| HardenError::Process { what, source };
    setgroups(&[user.gid]).map_err(fail("the groups"))?;
    setgid(user.gid).map_err(fail("the group"))?;
    setresuid(user.uid, user.uid, user.uid).map_err(fail("the user"))
}

/// A directory for `user` alone. Only one that was made here is given away: root must not hand over what is there already.
fn prepare_directory(path: &Path, name: &'static str, user: User) -> Result<(), HardenError> {
    let fail = |source| HardenError::Directory { path: path.to_path_buf(), source };
    let directory = directory::open_or_create(path, &[user.uid]).map_err(fail)?;
    if directory.created {
        let flags = AtFlags::AT_EMPTY_PATH;
        return fchownat(&directory.descriptor, "", Some(user.uid), Some(user.gid), flags)
            .map_err(|error| fail(DirectoryError::Io { path: path.to_path_buf(), source: error.into() }));
    }
    let uid = directory.stat.st_uid;
    if uid == user.uid.as_raw() {
        Ok(())
    } else {
        Err(HardenError::Foreign { path: path.to_path_buf(), uid, name })
    }
}
