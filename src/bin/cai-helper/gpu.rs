//! NVIDIA's management library, opened in the vendor child: evidence of the GPUs, and their ready state.
//!
//! nvml-wrapper slices the driver's buffers with the driver's sizes; one that is too large is a panic, which ends this
//! child and is an ordinary error in the helper.

use std::path::Path;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use cai::helper::protocol::{GpuReport, GpuReports};
use nvml_wrapper::error::{NvmlError, nvml_try};
use nvml_wrapper::{Device, Nvml};
use nvml_wrapper_sys::bindings::{
    NVML_CC_SYSTEM_DEVTOOLS_MODE_OFF, NVML_CC_SYSTEM_ENVIRONMENT_PROD, NVML_CC_SYSTEM_FEATURE_ENABLED,
    NVML_CC_SYSTEM_MULTIGPU_PROTECTED_PCIE, nvmlSystemConfComputeSettings_v1_t,
};

use crate::session::Refusal;
use crate::vendor::library;

/// Soname of the library.
const LIBRARY: &str = "libnvidia-ml.so.1";

/// Report and certificates of every GPU over `nonce`, as JSON.
pub(crate) fn evidence(root: &Path, nonce: &[u8]) -> Result<String, Refusal> {
    let nonce = nonce.try_into().map_err(|_| data("the nonce", "it has not 32 bytes"))?;
    let nvml = open(root)?;
    let Some(mode) = mode(&nvml)? else {
        return encode(&GpuReports { driver_version: version(&nvml)?, ..off() });
    };
    let mut reports = GpuReports {
        driver_version: version(&nvml)?,
        cc_enabled: mode.ccFeature == NVML_CC_SYSTEM_FEATURE_ENABLED,
        protected_pcie: mode.multiGpuMode == NVML_CC_SYSTEM_MULTIGPU_PROTECTED_PCIE,
        dev_tools: mode.devToolsMode != NVML_CC_SYSTEM_DEVTOOLS_MODE_OFF,
        production: mode.environment == NVML_CC_SYSTEM_ENVIRONMENT_PROD,
        ..off()
    };
    // Without the feature there are no reports to ask for.
    if reports.cc_enabled {
        let count = nvml.device_count().map_err(|error| failed("counting the GPUs", error))?;
        reports.gpus = (0..count).map(|index| report(&nvml, index, nonce)).collect::<Result<_, _>>()?;
    }
    encode(&reports)
}

/// Let the GPUs accept work, or refuse it: what was done.
pub(crate) fn set_ready(root: &Path, ready: bool) -> Result<String, Refusal> {
    let nvml = open(root)?;
    let state = if ready { "ready" } else { "not ready" };
    match set_state(&nvml, ready) {
        Ok(()) => Ok(format!("the GPUs are {state}")),
        Err(NvmlError::NotSupported) if !ready => {
            Ok("the GPUs are not in confidential mode, which alone has a ready state".into())
        }
        Err(error) => Err(failed(&format!("setting the GPUs {state}"), error)),
    }
}

/// Set the ready state, which is the system's. Not through a device, as nvml-wrapper does it: the one it takes may be lost,
/// and the others must be held back all the same.
#[allow(unsafe_code)]
fn set_state(nvml: &Nvml, ready: bool) -> Result<(), NvmlError> {
    let set = nvml.lib().nvmlSystemSetConfComputeGpusReadyState.as_ref();
    let set = set.map_err(|error| NvmlError::FailedToLoadSymbol(error.to_string()))?;
    // JUSTIFICATION: as above. SAFETY: the symbol is NVML's function of that name, which takes one unsigned number.
    nvml_try(unsafe { set(u32::from(ready)) })
}

fn open(root: &Path) -> Result<Nvml, Refusal> {
    let library = library(root, LIBRARY);
    Nvml::builder().lib_path(library.as_os_str()).init().map_err(|error| match error {
        NvmlError::LibloadingError(error) => Refusal::new(
            "gpu.no-library",
            format!("opening {}: {error}", library.display()),
            "install the NVIDIA driver's libraries (the package with libnvidia-ml.so.1), version 550 or later",
        ),
        error => failed("starting NVML", error),
    })
}

/// Confidential-computing settings of the system; `None` where its GPUs have no such feature.
#[allow(unsafe_code)]
fn mode(nvml: &Nvml) -> Result<Option<nvmlSystemConfComputeSettings_v1_t>, Refusal> {
    let ask = "asking for the confidential-computing settings";
    let get = nvml.lib().nvmlSystemGetConfComputeSettings.as_ref();
    let get = get.map_err(|error| failed(ask, NvmlError::FailedToLoadSymbol(error.to_string())))?;
    let mut settings = nvmlSystemConfComputeSettings_v1_t {
        // NVML_STRUCT_VERSION(SystemConfComputeSettings, 1) of nvml.h: size, and version in the top byte.
        version: 20 | 1 << 24,
        environment: 0,
        ccFeature: 0,
        devToolsMode: 0,
        multiGpuMode: 0,
    };
    // JUSTIFICATION: nvml-wrapper tells the environment only mixed with the ready state. SAFETY: the symbol is NVML's
    // function of that name and signature; `settings` is its version 1, five unsigned numbers, and outlives the call.
    match nvml_try(unsafe { get(&mut settings) }) {
        Ok(()) => Ok(Some(settings)),
        Err(NvmlError::NotSupported) => Ok(None),
        Err(error) => Err(failed(ask, error)),
    }
}

/// What there is to say of GPUs without the feature.
fn off() -> GpuReports {
    GpuReports {
        driver_version: String::new(),
        cc_enabled: false,
        protected_pcie: false,
        dev_tools: false,
        production: false,
        gpus: Vec::new(),
    }
}

fn version(nvml: &Nvml) -> Result<String, Refusal> {
    nvml.sys_driver_version().map_err(|error| failed("asking for the driver's version", error))
}

fn report(nvml: &Nvml, index: u32, nonce: [u8; 32]) -> Result<GpuReport, Refusal> {
    let about = |what: &str| format!("asking GPU {index} for its {what}");
    let device =
        nvml.device_by_index(index).map_err(|error| failed(&format!("opening GPU {index}"), error))?;
    let report = device
        .confidential_compute_gpu_attestation_report(nonce)
        .map_err(|error| failed(&about("attestation report"), error))?;
    let chains = device
        .confidential_compute_gpu_certificate()
        .map_err(|error| failed(&about("certificates"), error))?;
    Ok(GpuReport {
        uuid: device.uuid().map_err(|error| failed(&about("UUID"), error))?,
        name: device.name().map_err(|error| failed(&about("name"), error))?,
        arch: architecture(&device).map_err(|error| failed(&about("architecture"), error))?,
        vbios_version: device.vbios_version().map_err(|error| failed(&about("VBIOS version"), error))?,
        report: STANDARD.encode(report.attestation_report),
        attestation_chain: text(chains.attestation_cert_chain, &about("attestation certificates"))?,
        device_chain: text(chains.cert_chain, &about("device certificates"))?,
    })
}

/// As Trustee and NVIDIA's services spell it: in capitals. One that is newer than this program gets its number.
fn architecture(device: &Device<'_>) -> Result<String, NvmlError> {
    match device.architecture() {
        Ok(architecture) => Ok(architecture.to_string().to_uppercase()),
        Err(NvmlError::UnexpectedVariant(number)) => Ok(format!("NVML-{number}")),
        Err(error) => Err(error),
    }
}

/// PEM, without the zeros some drivers count as part of it.
fn text(bytes: Vec<u8>, what: &str) -> Result<String, Refusal> {
    let text = String::from_utf8(bytes).map_err(|_| data(what, "not text"))?;
    Ok(text.trim_end_matches('\0').to_owned())
}

fn encode(reports: &GpuReports) -> Result<String, Refusal> {
    serde_json::to_string(reports).map_err(|error| data("the evidence", &error.to_string()))
}

fn data(what: &str, why: &str) -> Refusal {
    Refusal::new("gpu.data", format!("{what}: {why}"), "update the NVIDIA driver")
}

fn failed(what: &str, error: NvmlError) -> Refusal {
    let (code, hint) = match &error {
        NvmlError::FailedToLoadSymbol(_) | NvmlError::FunctionNotFound => {
            ("gpu.driver-old", "install NVIDIA driver 550 or later: this one knows no GPU attestation")
        }
        NvmlError::DriverNotLoaded | NvmlError::LibRmVersionMismatch => (
            "gpu.driver",
            "load the kernel module of the installed driver's version: `modprobe nvidia`, or reboot",
        ),
        NvmlError::NotSupported => (
            "gpu.not-supported",
            "see `nvidia-smi conf-compute -f`: confidential mode is switched on by the host",
        ),
        _ => ("gpu.device", "see `dmesg` for what the NVIDIA driver says, and `nvidia-smi -q`"),
    };
    Refusal::new(code, format!("{what}: {error}"), hint)
}
