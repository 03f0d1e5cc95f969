//! Evidence of the NVIDIA GPUs: had through the helper, verified here, put into the form the operator's broker takes.
//!
//! Owns: what makes GPU evidence sound ([`verify()`]), and both forms. Must not know: NVML (the helper's child does), the
//! broker's messages. Nothing unverified leaves this module. No threads, no locks. Tested in `tests/attest_gpu.rs`.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::SystemTime;

use serde_json::value::RawValue;

use super::{AttestError, DeviceClaims, Devices, Digest};
use crate::config::{AttestSettings, GpuForm};
use crate::error::chain;
use crate::helper::Helper;
use crate::helper::protocol::Request;

mod error;
mod form;
#[cfg(not(feature = "sandbox"))]
pub(super) mod pin;
#[cfg(feature = "sandbox")]
#[path = "pin_sandbox.rs"]
pub(super) mod pin;
mod verify;

pub use error::GpuError;
pub use verify::{Expected, NVIDIA_ROOT, Root, Verified, verify};

/// PCI vendor of NVIDIA.
const NVIDIA: &str = "0x10de";
/// PCI classes of GPUs: VGA controller and 3D controller, without the programming interface.
const GPU_CLASSES: [&str; 2] = ["0x0300", "0x0302"];

/// The NVIDIA GPUs of this machine.
pub struct Gpus {
    root: PathBuf,
    helper: Arc<Helper>,
    form: GpuForm,
    required: Option<bool>,
    anchor: Root,
}

impl Gpus {
    /// The GPUs below `settings.root`, whose chains must end in `anchor`: [`NVIDIA_ROOT`], in tests another.
    pub fn new(settings: &AttestSettings, helper: &Arc<Helper>, anchor: Root) -> Self {
        Gpus {
            root: settings.root.clone(),
            helper: Arc::clone(helper),
            form: settings.gpu_evidence,
            required: settings.attest.require_gpu,
            anchor,
        }
    }

    /// Evidence bound to `digest`, and what it says; `None` where there is no GPU, or one that failed was not required.
    fn read(&self, digest: &Digest) -> Result<(Option<Verified>, DeviceClaims), AttestError> {
        match (self.collect(digest), self.required) {
            (Ok(None), Some(true)) => Err(GpuError::None.into()),
            (Ok(None), _) => Ok((None, DeviceClaims::default())),
            (Ok(Some(verified)), _) => {
                let claims = DeviceClaims { gpus: verified.claims(), notices: Vec::new() };
                Ok((Some(verified), claims))
            }
            (Err(error), Some(false)) => {
                tracing::warn!(event = "attest.gpu-not-attested", error = ?error, "serving without attested GPUs");
                let notice =
                    format!("the GPUs are not attested (attest.require_gpu = false): {}", chain(&error));
                Ok((None, DeviceClaims { gpus: Vec::new(), notices: vec![notice] }))
            }
            (Err(error), _) => Err(error.into()),
        }
    }

    fn collect(&self, digest: &Digest) -> Result<Option<Verified>, GpuError> {
        let gpus = on_pci(&self.root)?;
        if gpus == 0 {
            return Ok(None);
        }
        let Digest(bytes) = digest;
        let mut nonce = [0; 32];
        nonce.iter_mut().zip(bytes).for_each(|(to, from)| *to = *from);
        let (_, data) = self.helper.fetch(Request::GpuEvidence { nonce })?;
        let reports = serde_json::from_slice(&data).map_err(GpuError::Reply)?;
        verify(reports, &Expected { nonce, gpus, root: self.anchor, at: SystemTime::now() }).map(Some)
    }
}

impl Devices for Gpus {
    fn additional(&self, digest: &Digest) -> Result<Option<(String, DeviceClaims)>, AttestError> {
        if self.form != GpuForm::Upstream {
            return Ok(None);
        }
        let (verified, claims) = self.read(digest)?;
        let text = verified.as_ref().map(form::upstream).transpose()?.unwrap_or_default();
        Ok(Some((text, claims)))
    }

    fn embedded(&self, digest: &Digest) -> Result<(Option<Box<RawValue>>, DeviceClaims), AttestError> {
        let (verified, mut claims) = self.read(digest)?;
        if self.form == GpuForm::Upstream && verified.is_some() {
            claims.notices.push(
                "the GPUs were attested here and their evidence not sent: this protocol has no room for it in the form of \
                 trustee.gpu_evidence"
                    .to_owned(),
            );
        }
        let value = match self.form {
            GpuForm::Auto | GpuForm::Alibaba => {
                verified.map(|verified| form::alibaba(&verified, SystemTime::now())).transpose()?
            }
            GpuForm::Upstream | GpuForm::None => None,
        };
        Ok((value, claims))
    }
}

/// Number of NVIDIA GPUs on the PCI bus below `root`: what the driver does not show is there all the same.
///
/// # Errors
/// [`GpuError::Pci`] with the file that cannot be read.
pub fn on_pci(root: &Path) -> Result<usize, GpuError> {
    let bus = root.join("sys/bus/pci/devices");
    let failed = |path: &Path| {
        let path = path.to_owned();
        move |source| GpuError::Pci { path, source }
    };
    let entries = match std::fs::read_dir(&bus) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(0),
        entries => entries.map_err(failed(&bus))?,
    };
    let mut gpus = 0;
    for entry in entries {
        let device = entry.map_err(failed(&bus))?.path();
        let attribute = |name: &str| {
            let path = device.join(name);
            std::fs::read_to_string(&path).map_err(failed(&path))
        };
        let (vendor, class) = (attribute("vendor")?, attribute("class")?);
        let gpu = GPU_CLASSES.iter().any(|gpu| class.starts_with(gpu));
        gpus += usize::from(vendor.trim_end() == NVIDIA && gpu);
    }
    Ok(gpus)
}
