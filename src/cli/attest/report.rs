//! What is shown of evidence: one set of facts, as JSON and as text for 80 columns.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::Serialize;
use serde_json::Value;

use super::super::page::{COLUMNS, wrapped};
use super::{AttestCliError, Collected};
use crate::attest::{Claims, Digest, GpuClaims, ReferenceValues, TdxClaims, Tee, Verifier};

/// Column at which values begin.
const INDENT: usize = 14;

/// Hexadecimal digits in one line: 24 bytes, half of a SHA-384.
const HEX_LINE: usize = 48;

/// Documentation of [`Report`]; only additive change.
pub(super) const JSON_HELP: &str = "\
The object of --json (names are only ever added):
  tee               tdx, or sample (proves nothing)
  verifier          legacy (protocol 0.1.x) or current: who could read this evidence
  nonce             what the evidence is bound to, 48 bytes
  debug             the TD can be looked into by its host; null without a TD
  event_log_bytes   length of the boot event log that is sent; null when none is (see claims.notices for why)
  agent_log_bytes   length of the agents' event log that is sent as text of its own, likewise
  additional_evidence  evidence of devices is sent beside the TEE's
  claims.provider   where the quote came from
  claims.report_data  what the quote says it is bound to, 64 bytes for tdx
  claims.evidence_sha256  SHA-256 of the primary evidence: the file evidence.json of --save, and F_EVIDENCE in the journal
  claims.tdx        mrtd, rtmrs (four), mr_config_id, mr_owner, mr_owner_config, xfam, td_attributes, tee_tcb_svn,
                    mr_seam, boot (names of the RVPS to digests); null without a TD
  claims.gpus       uuid, name, arch, driver_version, vbios_version, confidential of every GPU attested
  claims.notices    what an operator should know
  reference_values  names to lists of values, as --reference-values prints them
Binary values are in hexadecimal.";

/// The facts. Their names are part of the interface: see [`JSON_HELP`].
#[derive(Serialize)]
pub(super) struct Report<'a> {
    tee: &'static str,
    verifier: &'static str,
    nonce: String,
    debug: Option<bool>,
    event_log_bytes: Option<usize>,
    agent_log_bytes: Option<usize>,
    additional_evidence: bool,
    claims: &'a Claims,
    reference_values: &'a ReferenceValues,
}

impl<'a> Report<'a> {
    /// The facts about `collected`, whose reference values are `values`.
    pub(super) fn new(collected: &'a Collected, values: &'a ReferenceValues) -> Result<Self, AttestCliError> {
        let Collected { tee, nonce: Digest(nonce), verifier, evidence, additional, logs: _ } = collected;
        let object: Value = serde_json::from_str(evidence.object.get()).map_err(AttestCliError::Json)?;
        let text = |name: &str| object.get(name).and_then(Value::as_str);
        Ok(Report {
            tee: tee.name(),
            verifier: match verifier {
                Verifier::Legacy => "legacy",
                Verifier::Current => "current",
            },
            nonce: hex::encode(nonce),
            debug: evidence.claims.tdx.as_ref().and_then(debug),
            event_log_bytes: text("cc_eventlog")
                .and_then(|log| STANDARD.decode(log).ok())
                .map(|log| log.len()),
            agent_log_bytes: text("aa_eventlog").map(str::len),
            additional_evidence: !additional.is_empty(),
            claims: &evidence.claims,
            reference_values: values,
        })
    }

    /// For people, in 80 columns.
    pub(super) fn text(&self) -> String {
        let mut page = Page::default();
        page.field("TEE", self.tee);
        if self.tee == Tee::Sample.name() {
            page.field("", "THIS MACHINE PROVES NOTHING: sample evidence is for the sandbox");
        }
        page.field("quote from", self.claims.provider);
        page.field("for verifier", &format!("{} generation", self.verifier));
        page.field("nonce", &self.nonce);
        page.field("report data", &self.claims.report_data);
        if let Some(tdx) = &self.claims.tdx {
            self.tdx(&mut page, tdx);
        }
        for gpu in &self.claims.gpus {
            page.gpu(gpu);
        }
        for notice in &self.claims.notices {
            page.field("notice", notice);
        }
        self.policy(&mut page);
        page.text
    }

    fn tdx(&self, page: &mut Page, tdx: &TdxClaims) {
        page.field("MRTD", &tdx.mrtd);
        for (index, rtmr) in tdx.rtmrs.iter().enumerate() {
            page.field(&format!("RTMR{index}"), rtmr);
        }
        page.field("MRSEAM", &tdx.mr_seam);
        page.field("XFAM", &tdx.xfam);
        let debug = match self.debug {
            Some(true) => "DEBUG: THE HOST CAN READ THIS MACHINE",
            Some(false) => "not DEBUG",
            None => "DEBUG not known",
        };
        page.field("attributes", &format!("{} {debug}", tdx.td_attributes));
        page.field("TCB SVN", &tdx.tee_tcb_svn);
        page.field("event log", &sent(self.event_log_bytes));
        if self.agent_log_bytes.is_some() {
            page.field("agents' log", &sent(self.agent_log_bytes));
        }
        for (name, digests) in &tdx.boot {
            page.field("measured", &format!("{name} {}", digests.join(" ")));
        }
    }

    /// What an operator can write a policy on.
    fn policy(&self, page: &mut Page) {
        page.field("policy", &format!("can match tee {}, and by reference value:", self.tee));
        let names: Vec<&str> = self.reference_values.keys().map(String::as_str).collect();
        if names.is_empty() {
            page.field("", "nothing: this TEE measures nothing");
        } else {
            page.field("", &names.join(" "));
            page.field("", "their values: cai attest --reference-values");
        }
    }
}

fn sent(bytes: Option<usize>) -> String {
    bytes.map_or_else(|| "not sent".to_owned(), |bytes| format!("sent, {bytes} bytes"))
}

/// Bit 0 of the attributes, which are little endian (kbs.md section 7.1.4).
fn debug(tdx: &TdxClaims) -> Option<bool> {
    let attributes = hex::decode(&tdx.td_attributes).ok()?;
    attributes.first().map(|byte| byte & 1 == 1)
}

/// Labelled values, wrapped.
#[derive(Default)]
struct Page {
    text: String,
}

impl Page {
    /// One value. Words are kept whole, but digits too long for a line are broken in equal parts.
    fn field(&mut self, label: &str, value: &str) {
        let words: Vec<&str> = value.split_whitespace().flat_map(pieces).collect();
        self.text.push_str(&wrapped(label, INDENT, &words.join(" ")));
    }

    fn gpu(&mut self, gpu: &GpuClaims) {
        let confidential = if gpu.confidential { "confidential" } else { "NOT CONFIDENTIAL" };
        self.field("GPU", &format!("{} {}", gpu.name, gpu.uuid));
        let GpuClaims { arch, driver_version, vbios_version, .. } = gpu;
        self.field("", &format!("{arch}, driver {driver_version}, VBIOS {vbios_version}, {confidential}"));
    }
}

/// A word, or the lines of digits it is broken into.
fn pieces(word: &str) -> Vec<&str> {
    if word.len() <= COLUMNS - INDENT || !word.is_ascii() {
        return vec![word];
    }
    let starts = (0..word.len()).step_by(HEX_LINE);
    starts.filter_map(|start| word.get(start..word.len().min(start + HEX_LINE))).collect()
}

#[cfg(test)]
#[path = "report_tests.rs"]
mod tests;
