//! Intel TDX: a quote over the challenge, with the logs that explain its registers and the devices' evidence beside it.

use std::collections::HashMap;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::ThreadId;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::Serialize;
use serde_json::value::{RawValue, to_raw_value};

use super::error::{Attempt, SourceError};
use super::logs::{Logs, Selected, select};
use super::quote::{Quote, td_report_data};
use super::{AttestError, Attester, Claims, DeviceClaims, Devices, Digest, Evidence, Tee, Verifier, qgs};
use crate::config::{AttestSettings, EventLog, QuoteChoice};
use crate::error::chain;
use crate::helper::protocol::{EventLogs, Request};
use crate::helper::{Helper, HelperError};

/// What [`is_here`] looks for, for people.
pub(super) const LOOKED_FOR: &str =
    "/sys/kernel/config/tsm/report, /dev/tdx_guest and libtdx_attest.so.1, any of which a TDX guest has";

/// The same, below the root. Whether configfs-tsm's provider is TDX shows when a quote is asked for: only root may look.
const SIGNS: [&str; 4] = [
    "sys/kernel/config/tsm/report",
    "dev/tdx_guest",
    "usr/lib64/libtdx_attest.so.1",
    "usr/lib/x86_64-linux-gnu/libtdx_attest.so.1",
];

/// Whether this looks like a TDX guest.
pub(super) fn is_here(root: &Path) -> bool {
    SIGNS.iter().any(|sign| root.join(sign).exists())
}

/// The attester of a TDX guest.
pub struct Tdx {
    root: std::path::PathBuf,
    quote: QuoteChoice,
    event_log: EventLog,
    helper: Arc<Helper>,
    devices: Option<Arc<dyn Devices>>,
    /// Quotes are made one at a time: the host has one line for them.
    quoting: Mutex<()>,
    /// What the devices said for the evidence that a thread asks for next, if they were read for it already: several collect
    /// evidence side by side, each on a thread of its own from the first question to the second.
    additional: Mutex<HashMap<ThreadId, DeviceClaims>>,
}

/// Where quotes come from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Source {
    ConfigfsTsm,
    Qgs,
    LibtdxAttest,
}

impl Source {
    /// In the order of preference: the kernel's own way first, the vendor's library last.
    const ALL: [Source; 3] = [Source::ConfigfsTsm, Source::Qgs, Source::LibtdxAttest];

    const fn provider(self) -> &'static str {
        match self {
            Source::ConfigfsTsm => "configfs-tsm",
            Source::Qgs => "qgs",
            Source::LibtdxAttest => "libtdx-attest",
        }
    }

    const fn is_chosen(self, choice: QuoteChoice) -> bool {
        match choice {
            QuoteChoice::Auto => true,
            QuoteChoice::ConfigfsTsm => matches!(self, Source::ConfigfsTsm),
            QuoteChoice::Qgs => matches!(self, Source::Qgs),
            QuoteChoice::LibtdxAttest => matches!(self, Source::LibtdxAttest),
        }
    }
}

/// The evidence object (kbs.md 7.1.1, 7.2.3).
#[derive(Serialize)]
struct Object {
    quote: String,
    cc_eventlog: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    aa_eventlog: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    gpu_evidence: Option<Box<RawValue>>,
}

impl Tdx {
    /// The attester below `settings.root`, with `devices` beside the TD.
    pub fn new(settings: &AttestSettings, helper: Arc<Helper>, devices: Option<Arc<dyn Devices>>) -> Self {
        Tdx {
            root: settings.root.clone(),
            quote: settings.attest.quote,
            event_log: settings.attest.event_log,
            helper,
            devices,
            quoting: Mutex::new(()),
            additional: Mutex::default(),
        }
    }

    /// A quote from the first source that gives one over `report_data`, and which source that was.
    fn any_quote(&self, report_data: [u8; 64]) -> Result<(Source, Vec<u8>, Quote), AttestError> {
        let _one_at_a_time = self.quoting.lock().unwrap_or_else(PoisonError::into_inner);
        let mut attempts = Vec::new();
        for source in Source::ALL.into_iter().filter(|source| source.is_chosen(self.quote)) {
            match self.quote(source, report_data) {
                Ok((bytes, quote)) => return Ok((source, bytes, quote)),
                Err(error) => {
                    let provider = source.provider();
                    tracing::debug!(event = "attest.no-quote", provider, error = %chain(&error));
                    attempts.push(Attempt { provider, error });
                }
            }
        }
        Err(AttestError::NoQuote { attempts })
    }

    /// A quote from `source`, seen to be over `report_data`.
    fn quote(&self, source: Source, report_data: [u8; 64]) -> Result<(Vec<u8>, Quote), SourceError> {
        let bytes = match source {
            Source::ConfigfsTsm => self.helper.fetch(Request::TsmQuote { report_data })?.1,
            Source::LibtdxAttest => self.helper.fetch(Request::LibraryQuote { report_data })?.1,
            Source::Qgs => {
                let (_, report) = self.helper.fetch(Request::TdxReport { report_data })?;
                if td_report_data(&report) != Some(report_data) {
                    return Err(SourceError::Report);
                }
                qgs::quote(&self.root, &report.try_into().map_err(|_| SourceError::Report)?)?
            }
        };
        let quote = Quote::parse(&bytes)?;
        if quote.report_data != report_data {
            return Err(SourceError::ReportData {
                asked: hex::encode(report_data),
                got: hex::encode(quote.report_data),
            });
        }
        Ok((bytes, quote))
    }

    /// The logs that go with `quote`. Logs that the helper cannot read are left out with a notice, unless demanded.
    fn logs(&self, quote: &Quote, verifier: Verifier) -> Result<Selected, AttestError> {
        if self.event_log == EventLog::Never {
            return Ok(select(&Logs::default(), quote, verifier, self.event_log));
        }
        match self.read_logs() {
            Ok(logs) => Ok(select(&logs, quote, verifier, self.event_log)),
            Err(error) if self.event_log == EventLog::Always => Err(error.into()),
            Err(error) => Ok(Selected {
                notices: vec![format!("event logs are left out: {}", chain(&error))],
                ..Selected::default()
            }),
        }
    }

    fn read_logs(&self) -> Result<Logs, HelperError> {
        let (_, json) = self.helper.fetch(Request::EventLogs)?;
        let broken = |source: std::io::Error| HelperError::Line { verb: Request::EventLogs, source };
        let EventLogs { ccel, aael } = serde_json::from_slice(&json).map_err(|error| broken(error.into()))?;
        let decode = |log: Option<String>| {
            log.map(|log| STANDARD.decode(log).map_err(std::io::Error::other)).transpose().map_err(broken)
        };
        Ok(Logs { ccel: decode(ccel)?, aael: decode(aael)? })
    }

    /// What was said through [`Attester::device_evidence`] for the evidence asked for now. Taken whatever comes of that, so
    /// that no later handshake takes it for its own.
    fn take_additional(&self) -> Option<DeviceClaims> {
        self.additional().remove(&std::thread::current().id())
    }

    fn additional(&self) -> MutexGuard<'_, HashMap<ThreadId, DeviceClaims>> {
        self.additional.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The devices' evidence for the inside of the object, and what they claim.
    fn embedded(&self, digest: &Digest) -> Result<(Option<Box<RawValue>>, DeviceClaims), AttestError> {
        match &self.devices {
            Some(devices) => devices.embedded(digest),
            None => Ok((None, DeviceClaims::default())),
        }
    }
}

impl Attester for Tdx {
    fn tee(&self) -> Tee {
        Tee::Tdx
    }

    fn device_evidence(&self, digest: &Digest) -> Result<String, AttestError> {
        let Some(devices) = &self.devices else { return Ok(String::new()) };
        let (text, claims) = devices.additional(digest)?.unzip();
        drop(self.take_additional());
        self.additional().extend(claims.map(|claims| (std::thread::current().id(), claims)));
        Ok(text.unwrap_or_default())
    }

    fn evidence(&self, digest: &Digest, verifier: Verifier) -> Result<Evidence, AttestError> {
        let additional = self.take_additional();
        let (source, bytes, quote) = self.any_quote(padded(digest))?;
        if quote.debug() {
            return Err(AttestError::DebugTd { td_attributes: hex::encode(quote.td_attributes) });
        }
        let Selected { cc, aa, boot, mut notices } = self.logs(&quote, verifier)?;
        let (gpu_evidence, devices) = match additional {
            Some(claims) => (None, claims),
            None => self.embedded(digest)?,
        };
        notices.extend(devices.notices);
        let object = Object {
            quote: STANDARD.encode(bytes),
            cc_eventlog: cc.map(|log| STANDARD.encode(log)),
            aa_eventlog: aa,
            gpu_evidence,
        };
        let claims = Claims {
            provider: source.provider(),
            report_data: hex::encode(quote.report_data),
            tdx: Some(super::TdxClaims { boot, ..quote.claims() }),
            gpus: devices.gpus,
            notices,
            ..Claims::default()
        };
        Ok(Evidence::new(to_raw_value(&object)?, claims))
    }
}

/// A digest as a TD binds it: zeros up to 64 bytes.
fn padded(digest: &Digest) -> [u8; 64] {
    let mut report_data = [0; 64];
    for (to, from) in report_data.iter_mut().zip(digest.0) {
        *to = from;
    }
    report_data
}
