//! The boot event log (`CCEL`): read, cut to what is used, replayed to the registers it explains.
//!
//! A TCG2 crypto-agile log: one header in the old format that names the digests' algorithms, then events, then unused space
//! of 0xFF or 0x00. The log itself is not protected; only that it replays to the quote's registers makes it believable.
//! Source: kbs.md section 7.1.2, and the TCG PC Client Platform Firmware Profile 1.06, section 10.

use std::borrow::Cow;

use sha2::{Digest as _, Sha384};

use super::cursor::Cursor;

/// Longest log that is looked at, in bytes: firmware reserves 64 KiB, td-shim a MiB.
pub const LOG_LIMIT: usize = 2 << 20;

/// Eight bytes 0xFF: where every verifier stops reading.
pub const END_MARK: [u8; 8] = [0xff; 8];

/// Most algorithms a header may name, and digests an event may have: TCG has assigned fewer.
const MAX_ALGORITHMS: u32 = 16;

/// `EV_NO_ACTION`: the header, and remarks of the firmware.
const NO_ACTION: u32 = 3;

/// TCG's number of SHA-384, the only algorithm of TDX registers, and its length in bytes.
const SHA_384: (u16, usize) = (0x000c, 48);

/// The header of a log that has no boot events: algorithms SHA-384 and SM3, as Trustee's own agent writes it (69 bytes).
const EMPTY_LOG: &[u8; 69] = b"\0\0\0\0\x03\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\x25\0\0\0\
    Spec ID Event03\0\0\0\0\0\0\x02\0\x02\x02\0\0\0\x0c\0\x30\0\x12\0\x20\0\0";

/// Bytes that are no event log.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum EventLogError {
    /// More than [`LOG_LIMIT`].
    #[error("the event log has {len} bytes, more than {LOG_LIMIT}")]
    TooLong {
        /// Its length.
        len: usize,
    },
    /// It does not start as a TCG2 log does.
    #[error("the event log does not start with a TCG2 header")]
    Header,
    /// Event number `index` (from 0, after the header) is cut, or has a digest the header does not name.
    #[error("event {index} of the event log cannot be read")]
    Event {
        /// Its place.
        index: usize,
    },
}

/// One measured event.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Event<'a> {
    /// 0 = MRTD, 1 to 4 = RTMR0 to RTMR3.
    pub register: u32,
    /// TCG's number of the kind of event.
    pub kind: u32,
    /// What the register was extended with, where the event has a SHA-384 digest.
    pub digest: Option<[u8; 48]>,
    /// What the event says.
    pub data: &'a [u8],
}

impl Event<'_> {
    /// A remark in the form of the header. Verifiers of the old generation take it for another header.
    pub fn is_remark(&self) -> bool {
        self.kind == NO_ACTION
    }
}

/// A log and its events.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EventLog<'a> {
    used: Cow<'a, [u8]>,
    events: Vec<Event<'a>>,
}

impl<'a> EventLog<'a> {
    /// Read a log up to its unused space.
    ///
    /// # Errors
    /// [`EventLogError`] with the event that cannot be read.
    pub fn parse(log: &'a [u8]) -> Result<Self, EventLogError> {
        if log.len() > LOG_LIMIT {
            return Err(EventLogError::TooLong { len: log.len() });
        }
        let mut rest = Cursor(log);
        let algorithms = header(&mut rest).ok_or(EventLogError::Header)?;
        let events = events(&mut rest, &algorithms)?;
        let used = log.get(..log.len() - rest.0.len()).unwrap_or_default();
        Ok(EventLog { used: used.into(), events })
    }

    /// A log without boot events, for agents' events to be appended to.
    pub fn empty() -> Self {
        EventLog { used: EMPTY_LOG.as_slice().into(), events: Vec::new() }
    }

    /// Append events as they stand in a file, without a header (kbs.md 7.1.3, binary form).
    ///
    /// # Errors
    /// [`EventLogError::Event`], counted from the first appended event.
    pub fn append(&mut self, agents: &'a [u8]) -> Result<(), EventLogError> {
        if agents.len() > LOG_LIMIT {
            return Err(EventLogError::TooLong { len: agents.len() });
        }
        let mut rest = Cursor(agents);
        self.events.extend(events(&mut rest, &[SHA_384])?);
        self.used.to_mut().extend_from_slice(agents.get(..agents.len() - rest.0.len()).unwrap_or_default());
        Ok(())
    }

    /// Its events, in order.
    pub fn events(&self) -> &[Event<'a>] {
        &self.events
    }

    /// The log as it is sent: without unused space, with an end mark.
    pub fn trimmed(&self) -> Vec<u8> {
        [&self.used, END_MARK.as_slice()].concat()
    }

    /// RTMR0 to RTMR3 as the events leave them. Remarks are replayed as well where they name a register: that is what
    /// verifiers do.
    pub fn replay(&self) -> [[u8; 48]; 4] {
        let mut registers = [[0; 48]; 4];
        for Event { register, digest, .. } in &self.events {
            let index = register.checked_sub(1).and_then(|index| usize::try_from(index).ok());
            if let Some((state, digest)) = index.and_then(|index| registers.get_mut(index)).zip(*digest) {
                *state = extended(state, &digest);
            }
        }
        registers
    }
}

/// What a register holds after it was extended.
pub(super) fn extended(state: &[u8; 48], digest: &[u8; 48]) -> [u8; 48] {
    Sha384::new().chain_update(state).chain_update(digest).finalize().into()
}

/// The algorithms that the header names, with the lengths of their digests.
fn header(rest: &mut Cursor<'_>) -> Option<Vec<(u16, usize)>> {
    let (_register, kind) = (rest.u32()?, rest.u32()?);
    let _sha1 = rest.take(20)?;
    let mut spec_id = Cursor(rest.sized()?);
    let signature = spec_id.take(16)?;
    let _class_version_and_word_size = spec_id.take(8)?;
    let count = spec_id.u32()?;
    if kind != NO_ACTION || signature != b"Spec ID Event03\0" || count > MAX_ALGORITHMS {
        return None;
    }
    let algorithms: Option<Vec<_>> =
        (0..count).map(|_| Some((spec_id.u16()?, usize::from(spec_id.u16()?)))).collect();
    let [vendor_len] = spec_id.array()?;
    (spec_id.0.len() == usize::from(vendor_len)).then_some(algorithms)?
}

/// Events up to the end or to eight bytes of fill.
fn events<'a>(rest: &mut Cursor<'a>, algorithms: &[(u16, usize)]) -> Result<Vec<Event<'a>>, EventLogError> {
    let mut events = Vec::new();
    while !at_end(rest.0) {
        let read = event(rest, algorithms).ok_or(EventLogError::Event { index: events.len() })?;
        events.push(read);
    }
    Ok(events)
}

/// Whether only unused space follows.
fn at_end(rest: &[u8]) -> bool {
    let next = rest.get(..8).unwrap_or(rest);
    next.iter().all(|byte| *byte == 0xff) || next.iter().all(|byte| *byte == 0)
}

fn event<'a>(rest: &mut Cursor<'a>, algorithms: &[(u16, usize)]) -> Option<Event<'a>> {
    let (register, kind, count) = (rest.u32()?, rest.u32()?, rest.u32()?);
    if count > MAX_ALGORITHMS {
        return None;
    }
    let mut sha_384 = None;
    for _ in 0..count {
        let algorithm = rest.u16()?;
        let (_, len) = algorithms.iter().find(|(known, _)| *known == algorithm)?;
        let digest = rest.take(*len)?;
        if algorithm == SHA_384.0 {
            sha_384 = Some(digest.try_into().ok()?);
        }
    }
    Some(Event { register, kind, digest: sha_384, data: rest.sized()? })
}

#[cfg(test)]
pub(super) mod tests {
    use proptest::prelude::*;

    use super::*;

    /// A header that names SHA-384 alone.
    pub fn header_384() -> Vec<u8> {
        let mut log = vec![0; 28];
        log[4] = 3;
        log.extend(33u32.to_le_bytes());
        log.extend(b"Spec ID Event03\0");
        log.extend([0, 0, 0, 0, 0, 2, 0, 2, 1, 0, 0, 0, 0x0c, 0, 48, 0, 0]);
        log
    }

    /// One event with a SHA-384 digest.
    pub fn entry(register: u32, kind: u32, digest: [u8; 48], data: &[u8]) -> Vec<u8> {
        let mut entry = [register, kind, 1].map(u32::to_le_bytes).concat();
        entry.extend([0x0c, 0]);
        entry.extend(digest);
        entry.extend(u32::try_from(data.len()).unwrap().to_le_bytes());
        entry.extend(data);
        entry
    }

    fn log() -> Vec<u8> {
        [header_384(), entry(1, 4, [7; 48], b"first"), entry(3, 13, [9; 48], b"")].concat()
    }

    #[test]
    fn log_is_read_up_to_fill_of_either_kind_or_its_end() {
        let used = log();
        for fill in [&[0xff; 64][..], &[0; 64], &[0xff; 8], &[0xff; 3], &[]] {
            let filled = [used.as_slice(), fill].concat();
            let read = EventLog::parse(&filled).unwrap();
            assert_eq!(read.events().len(), 2);
            assert_eq!(read.events()[0].data, b"first");
            assert_eq!(read.trimmed(), [used.as_slice(), &[0xff; 8]].concat());
        }
    }

    #[test]
    fn replay_extends_each_register_from_zero_in_order() {
        let log = [log(), entry(1, 4, [8; 48], b"second"), entry(5, 4, [8; 48], b"nowhere")].concat();
        let hash = |state: [u8; 48], digest: [u8; 48]| -> [u8; 48] {
            Sha384::digest([state, digest].concat()).into()
        };
        let expected = [hash(hash([0; 48], [7; 48]), [8; 48]), [0; 48], hash([0; 48], [9; 48]), [0; 48]];
        assert_eq!(EventLog::parse(&log).unwrap().replay(), expected);
    }

    #[test]
    fn event_with_several_digests_is_replayed_by_its_sha_384() {
        let mut bytes = EMPTY_LOG.to_vec();
        bytes.extend([1u32, 4, 2].map(u32::to_le_bytes).concat());
        bytes.extend([0x12, 0]);
        bytes.extend([1; 32]);
        bytes.extend([0x0c, 0]);
        bytes.extend([2; 48]);
        bytes.extend([0; 4]);
        let read = EventLog::parse(&bytes).unwrap();
        assert_eq!(read.events()[0].digest, Some([2; 48]));
        assert_eq!(read.replay()[0], extended(&[0; 48], &[2; 48]));
    }

    #[test]
    fn empty_log_is_one_that_we_read_ourselves() {
        let empty = EventLog::parse(EMPTY_LOG).unwrap();
        assert_eq!(empty, EventLog::empty());
        assert_eq!(empty.replay(), [[0; 48]; 4]);
    }

    #[test]
    fn appended_events_follow_the_used_part_and_end_at_their_own_fill() {
        let (boot, agents) = (log(), entry(4, 6, [5; 48], b"tag"));
        let filled = [boot.as_slice(), &[0xff; 32]].concat();
        let with_mark = [agents.as_slice(), &[0xff; 8]].concat();
        let mut read = EventLog::parse(&filled).unwrap();
        read.append(&with_mark).unwrap();
        assert_eq!(read.trimmed(), [boot.as_slice(), &agents, &[0xff; 8]].concat());
        assert_eq!(read.replay()[3], extended(&[0; 48], &[5; 48]));
        assert_eq!(read.append(b"not an event"), Err(EventLogError::Event { index: 0 }));
    }

    #[test]
    fn log_cut_within_an_event_is_refused_naming_it() {
        let bytes = log();
        let (start, second) = (header_384().len(), header_384().len() + entry(1, 4, [0; 48], b"first").len());
        for end in 0..bytes.len() {
            let expected = match end {
                end if end < start => Err(EventLogError::Header),
                end if end == start => Ok(0),
                end if end < second => Err(EventLogError::Event { index: 0 }),
                end if end == second => Ok(1),
                _ => Err(EventLogError::Event { index: 1 }),
            };
            let read = EventLog::parse(&bytes[..end]).map(|log| log.events().len());
            assert_eq!(read, expected, "cut at {end}");
        }
    }

    #[test]
    fn headers_that_are_none_are_refused() {
        for (at, byte) in [(4, 4), (32, b's'), (56, 17), (64, 1)] {
            let mut bytes = log();
            bytes[at] = byte;
            assert_eq!(EventLog::parse(&bytes).unwrap_err(), EventLogError::Header, "byte {at}");
        }
        let long = vec![0; LOG_LIMIT + 1];
        assert_eq!(EventLog::parse(&long).unwrap_err(), EventLogError::TooLong { len: LOG_LIMIT + 1 });
    }

    #[test]
    fn event_with_an_algorithm_the_header_does_not_name_or_too_many_is_refused() {
        for (at, byte) in [(header_384().len() + 12, 0x0b), (header_384().len() + 8, 17)] {
            let mut bytes = log();
            bytes[at] = byte;
            assert_eq!(EventLog::parse(&bytes).unwrap_err(), EventLogError::Event { index: 0 });
        }
    }

    proptest! {
        #[test]
        fn any_bytes_are_read_or_refused(tail in prop::collection::vec(any::<u8>(), 0..600), headed: bool) {
            let bytes = if headed { [header_384(), tail].concat() } else { tail };
            if let Ok(read) = EventLog::parse(&bytes) {
                let trimmed = read.trimmed();
                prop_assert!(bytes.starts_with(&trimmed[..trimmed.len() - 8]));
                let again = EventLog::parse(&trimmed).unwrap();
                prop_assert_eq!(again.events(), read.events());
                prop_assert_eq!(again.replay(), read.replay());
            }
        }
    }
}
