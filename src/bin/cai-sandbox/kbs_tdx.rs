//! Verification of a *stand-in* TD quote: everything in it but the signature.
//!
//! A stand-in has no Intel root behind it, so the ECDSA signature over the quote is not verified here, and this says
//! nothing about the machine. All else is held as strictly as a verifier does: form, TEE type, report data, debug
//! attribute, replay of the event logs. Stateless. Tested in `tests/sandbox_tdx.rs`.
//!
//! Source: `kbs.md` 7.1.1 to 7.1.4; TCG PC Client Platform Firmware Profile 10.2 (event log).

use aws_lc_rs::digest::{SHA384, digest};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde::Deserialize;
use serde_json::{Value, json};

use crate::kbs_evidence::Verified;
use crate::kbs_gpu::{self, GpuEvidence};
use crate::kbs_server::Protocol;

const REGISTER_LEN: usize = 48;
/// The value of a register that nothing extended.
const RESET: [u8; REGISTER_LEN] = [0; REGISTER_LEN];
const SHA384_ID: u16 = 0x000c;
const EV_NO_ACTION: u32 = 3;
/// Digests in one event: more than there are algorithms.
const DIGESTS: u32 = 16;

#[derive(Deserialize)]
struct Evidence {
    quote: String,
    #[serde(default)]
    cc_eventlog: Option<String>,
    #[serde(default)]
    aa_eventlog: Option<String>,
    #[serde(default)]
    gpu_evidence: Option<GpuEvidence>,
}

type Register = [u8; REGISTER_LEN];

/// The fields of a quote that are looked at.
struct Quote {
    report_data: [u8; 64],
    mrtd: Register,
    rtmrs: [Register; 4],
    xfam: [u8; 8],
    debug: bool,
}

/// Verifies TDX evidence that must be bound to `bound`, a SHA-384.
///
/// # Errors
/// The verifier's words.
pub(crate) fn verify(protocol: Protocol, evidence: Value, bound: &[u8]) -> Result<Verified, String> {
    let evidence: Evidence =
        serde_json::from_value(evidence).map_err(|e| format!("Deserialize Quote failed: {e}"))?;
    let raw = STANDARD.decode(&evidence.quote).map_err(|_| "base64 decode quote failed".to_owned())?;
    let quote = Quote::parse(&raw).ok_or("Parse TD quote failed")?;
    let mut expected = [0; 64];
    let filled = expected.get_mut(..bound.len()).ok_or("digest longer than REPORT_DATA")?;
    filled.copy_from_slice(bound);
    if quote.report_data != expected {
        return Err("REPORT_DATA is different from that in TDX Quote".to_owned());
    }
    if quote.debug {
        return Err("TD attributes: the TD is debuggable".to_owned());
    }
    if let Some(log) = &evidence.cc_eventlog {
        let log = STANDARD.decode(log).map_err(|_| "base64 decode CCEL failed".to_owned())?;
        let replayed = replay(&log).ok_or("Parse CC Eventlog failed")?;
        let compared = if protocol.is_legacy() { 3 } else { 4 };
        if !replayed.iter().zip(&quote.rtmrs).take(compared).all(|(log, quote)| log == quote) {
            let names = if compared == 3 { "0, 1, 2" } else { "0, 1, 2, 3" };
            return Err(format!(
                "RTMR {names} values from TD quote is not equal with the values from EventLog"
            ));
        }
    }
    // Servers with the whole replay have no use for the agents' text.
    if let (true, Some(text), [.., rtmr_3]) = (protocol.is_legacy(), &evidence.aa_eventlog, &quote.rtmrs) {
        replay_text(text, rtmr_3)?;
    }
    if let Some(gpus) = &evidence.gpu_evidence {
        kbs_gpu::check_embedded(gpus, bound)?;
    }
    Ok(quote.verified())
}

impl Quote {
    /// Versions 4, and 5 with a TDX 1.0 or 1.5 body; `None` when it is no TD quote.
    fn parse(raw: &[u8]) -> Option<Quote> {
        let mut rest = Bytes(raw);
        let (version, key_type, tee_type) = (rest.u16()?, rest.u16()?, rest.u32()?);
        rest.take(40)?; // reserved, QE vendor, user data: the header is 48 bytes
        if key_type != 2 || tee_type != 0x81 {
            return None;
        }
        let body_len = match version {
            4 => 584,
            5 => match (rest.u16()?, rest.u32()?) {
                (2, 584) => 584,
                (3, 648) => 648,
                _ => return None,
            },
            _ => return None,
        };
        let mut body = Bytes(rest.take(body_len)?);
        let signature_len = usize::try_from(rest.u32()?).ok()?;
        let signature = rest.take(signature_len)?;
        body.take(16 + 48 + 48 + 8)?; // TEE_TCB_SVN, MRSEAM, MRSIGNERSEAM, SEAMATTRIBUTES
        let attributes = body.take(8)?;
        let xfam = body.array()?;
        let mrtd = body.array()?;
        body.take(3 * REGISTER_LEN)?; // MRCONFIGID, MROWNER, MROWNERCONFIG
        let rtmrs = [body.array()?, body.array()?, body.array()?, body.array()?];
        let debug = attributes.first()? & 1 == 1;
        let quote = Quote { report_data: body.array()?, mrtd, rtmrs, xfam, debug };
        (!signature.is_empty()).then_some(quote)
    }

    fn verified(&self) -> Verified {
        let [rtmr_0, rtmr_1, rtmr_2, rtmr_3] = self.rtmrs.map(hex::encode);
        let body = json!({
            "mr_td": hex::encode(self.mrtd),
            "rtmr_0": rtmr_0,
            "rtmr_1": rtmr_1,
            "rtmr_2": rtmr_2,
            "rtmr_3": rtmr_3,
            "xfam": hex::encode(self.xfam),
            "report_data": hex::encode(self.report_data),
        });
        let claims = json!({"quote": {"header": {"tee_type": "81000000"}, "body": body}});
        Verified { tee: "tdx", claims, report_data: STANDARD.encode(self.report_data) }
    }
}

/// RTMR0 to RTMR3 as a TCG2 crypto-agile log gives them; `None` when it is none.
fn replay(log: &[u8]) -> Option<[Register; 4]> {
    let mut rest = Bytes(log);
    // The first event is in the form of TPM 1.2 and says that the others are not.
    let (_, kind, _) = (rest.u32()?, rest.u32()?, rest.take(20)?);
    let header_len = usize::try_from(rest.u32()?).ok()?;
    let header = rest.take(header_len)?;
    if kind != EV_NO_ACTION || !header.starts_with(b"Spec ID Event03\0") {
        return None;
    }
    let mut registers = [RESET; 4];
    while !rest.is_spent() {
        let (index, kind, count) = (rest.u32()?, rest.u32()?, rest.u32()?);
        if count > DIGESTS {
            return None;
        }
        let mut measured = None;
        for _ in 0..count {
            let algorithm = rest.u16()?;
            let digest = rest.take(digest_len(algorithm)?)?;
            measured = measured.or((algorithm == SHA384_ID).then_some(digest));
        }
        let data_len = usize::try_from(rest.u32()?).ok()?;
        rest.take(data_len)?;
        // 0 is MRTD, which no event extends.
        let register = index.checked_sub(1).and_then(|at| registers.get_mut(usize::try_from(at).ok()?));
        if let (Some(register), true) = (register, kind != EV_NO_ACTION) {
            *register = extended(register, measured?);
        }
    }
    Some(registers)
}

fn digest_len(algorithm: u16) -> Option<usize> {
    match algorithm {
        0x0004 => Some(20),          // SHA-1
        0x000b | 0x0012 => Some(32), // SHA-256, SM3
        SHA384_ID => Some(REGISTER_LEN),
        0x000d => Some(64), // SHA-512
        _ => None,
    }
}

fn extended(register: &Register, with: &[u8]) -> Register {
    let hash = digest(&SHA384, &[register, with].concat());
    let mut next = RESET;
    next.copy_from_slice(hash.as_ref());
    next
}

/// The agents' log of the first generation: its first line is the register's initial value, each other one event.
fn replay_text(text: &str, rtmr_3: &Register) -> Result<(), String> {
    let mut lines = text.lines();
    let first = lines.next().ok_or("at least one line should be included in AAEL")?;
    let initial = first.strip_prefix("INIT sha384/").and_then(|value| hex::decode(value).ok());
    let initial: Option<Register> = initial.and_then(|value| value.try_into().ok());
    let mut register = initial.ok_or("AA eventlog: INIT entry is malformed")?;
    for line in lines {
        register = extended(&register, digest(&SHA384, line.as_bytes()).as_ref());
    }
    if register == *rtmr_3 { Ok(()) } else { Err("AA eventlog does not pass check".to_owned()) }
}

/// What is left of some bytes.
struct Bytes<'a>(&'a [u8]);

impl<'a> Bytes<'a> {
    fn take(&mut self, len: usize) -> Option<&'a [u8]> {
        let (taken, rest) = self.0.split_at_checked(len)?;
        self.0 = rest;
        Some(taken)
    }

    fn array<const LEN: usize>(&mut self) -> Option<[u8; LEN]> {
        self.take(LEN)?.try_into().ok()
    }

    fn u16(&mut self) -> Option<u16> {
        self.array().map(u16::from_le_bytes)
    }

    fn u32(&mut self) -> Option<u32> {
        self.array().map(u32::from_le_bytes)
    }

    /// Nothing is left, or only what firmware fills unused space with.
    fn is_spent(&self) -> bool {
        let next = self.0.get(..8).unwrap_or(self.0);
        next.iter().all(|byte| *byte == 0xff) || next.iter().all(|byte| *byte == 0)
    }
}
