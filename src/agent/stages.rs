//! What the stages of a start have in common.

use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::sync::Arc;

use super::state::State;
use super::status::Failure;
use crate::error::{ErrorClass, Fault};
use crate::gocryptfs::CONF_NAME;
use crate::helper::protocol::Request;
use crate::helper::{Helper, HelperError};

/// What a stage found wrong that is nobody else's error.
#[derive(Debug, thiserror::Error)]
pub(super) enum StageError {
    #[error("{model} holds no {CONF_NAME}")]
    NoConf { model: String, inside: Option<String> },
    #[error("{model} holds no file")]
    Empty { model: String },
    #[error("the mount at {} cannot be reached by the daemon's user", point.display())]
    Unreachable {
        point: PathBuf,
        #[source]
        source: nix::Error,
    },
    #[error("the helper gave no descriptor")]
    NoDevice,
    #[error("the private memory does not say its size")]
    Memory(#[source] std::io::Error),
    #[error("a blocking stage panicked")]
    Panicked,
}

impl Fault for StageError {
    fn class(&self) -> ErrorClass {
        match self {
            StageError::NoConf { .. } | StageError::Empty { .. } | StageError::Unreachable { .. } => {
                ErrorClass::Config
            }
            StageError::NoDevice | StageError::Memory(_) | StageError::Panicked => ErrorClass::Internal,
        }
    }

    fn code(&self) -> &'static str {
        match self {
            StageError::NoConf { .. } => "model.no-conf",
            StageError::Empty { .. } => "model.empty",
            StageError::Unreachable { .. } => "mount.unreachable",
            StageError::NoDevice => "helper.no-device",
            StageError::Memory(_) => "memory.size",
            StageError::Panicked => "agent.panicked",
        }
    }

    fn hint(&self) -> String {
        match self {
            StageError::NoConf { inside: Some(directory), .. } => {
                format!("{directory}/{CONF_NAME} exists: is MODEL_OSS_BUCKET_PATH one directory too high?")
            }
            StageError::NoConf { inside: None, .. } => {
                "point MODEL_OSS_BUCKET_PATH at the directory that holds gocryptfs.conf; upload it with: cai upload".into()
            }
            StageError::Empty { .. } => {
                "point MODEL_OSS_BUCKET_PATH at the directory that the vendor's packager made".into()
            }
            StageError::Unreachable { .. } => {
                "every directory above MODEL_MOUNT_POINT must let user cai pass (chmod o+x), as its readers need it too; below /home \
                 cai.service also needs ProtectHome=read-only (systemctl edit cai)"
                    .into()
            }
            StageError::NoDevice | StageError::Memory(_) | StageError::Panicked => "this is a defect: please report it with the journal".into(),
        }
    }
}

/// Run what blocks, off the runtime's workers.
pub(super) async fn blocking<T: Send + 'static>(
    stage: State,
    work: impl FnOnce() -> Result<T, Failure> + Send + 'static,
) -> Result<T, Failure> {
    match tokio::task::spawn_blocking(work).await {
        Ok(result) => result,
        Err(_) => Err(Failure::new(stage, &StageError::Panicked)),
    }
}

/// Ask the helper, which blocks.
pub(super) async fn ask(
    helper: &Arc<Helper>,
    request: Request,
) -> Result<(String, Option<OwnedFd>), HelperError> {
    let helper = helper.clone();
    match tokio::task::spawn_blocking(move || helper.ask(request)).await {
        Ok(answer) => answer,
        Err(error) => Err(HelperError::Line { verb: request, source: std::io::Error::other(error) }),
    }
}
