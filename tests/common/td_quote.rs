//! Stand-in TD quotes and event logs, byte by byte from the layouts in the specification. The signature is no signature.

#![allow(dead_code)] // Each test binary uses its part of it.

use sha2::{Digest as _, Sha384};

pub type Register = [u8; 48];

/// What a stand-in quote says.
#[derive(Clone)]
pub struct Td {
    pub version: u16,
    pub tee_type: u32,
    pub attributes: [u8; 8],
    pub mrtd: Register,
    pub rtmrs: [Register; 4],
}

impl Default for Td {
    fn default() -> Self {
        Td { version: 4, tee_type: 0x81, attributes: [0; 8], mrtd: [0xa1; 48], rtmrs: [[0; 48]; 4] }
    }
}

impl Td {
    /// The quote, bound to `report_data`.
    pub fn quote(&self, report_data: &[u8; 64]) -> Vec<u8> {
        let mut quote = Vec::new();
        quote.extend(self.version.to_le_bytes());
        quote.extend(2_u16.to_le_bytes());
        quote.extend(self.tee_type.to_le_bytes());
        quote.extend([0; 40]);
        if self.version == 5 {
            quote.extend(2_u16.to_le_bytes());
            quote.extend(584_u32.to_le_bytes());
        }
        quote.extend([0; 120]); // TEE_TCB_SVN to SEAMATTRIBUTES
        quote.extend(self.attributes);
        quote.extend([0xe7, 2, 6, 0, 0, 0, 0, 0]); // XFAM
        quote.extend(self.mrtd);
        quote.extend([0; 144]); // MRCONFIGID, MROWNER, MROWNERCONFIG
        self.rtmrs.iter().for_each(|rtmr| quote.extend(rtmr));
        quote.extend(report_data);
        quote.extend(4_u32.to_le_bytes());
        quote.extend(b"none");
        quote
    }
}

/// A register after `digest` was measured into it.
pub fn extended(register: &Register, digest: &[u8]) -> Register {
    Sha384::new().chain_update(register).chain_update(digest).finalize().into()
}

/// A TCG2 log of events (register index as the log counts, digest), followed by what firmware fills the table with.
pub fn event_log(events: &[(u32, Register)]) -> Vec<u8> {
    let mut header = b"Spec ID Event03\0".to_vec();
    header.extend([0, 0, 0, 0, 0, 2, 0, 2]);
    header.extend(1_u32.to_le_bytes());
    header.extend(0x0c_u16.to_le_bytes());
    header.extend(48_u16.to_le_bytes());
    header.push(0);
    let mut log = Vec::new();
    log.extend(1_u32.to_le_bytes());
    log.extend(3_u32.to_le_bytes());
    log.extend([0; 20]);
    log.extend(u32::try_from(header.len()).unwrap().to_le_bytes());
    log.extend(header);
    for (index, digest) in events {
        log.extend(index.to_le_bytes());
        log.extend(0xd_u32.to_le_bytes()); // EV_IPL
        log.extend(1_u32.to_le_bytes());
        log.extend(0x0c_u16.to_le_bytes());
        log.extend(digest);
        log.extend(5_u32.to_le_bytes());
        log.extend(b"event");
    }
    log.extend([0xff; 512]);
    log
}
