//! The few items of CBOR (RFC 8949) that the evidence needs, in their one shortest form.
//!
//! Written here because a reader of everything CBOR can say (indefinite lengths, tags anywhere, five ways to write a number)
//! is more than may stand in front of an unauthenticated peer. Lengths are believed only as far as there are bytes, so
//! nothing is allocated for what is not there.

/// Major types (RFC 8949 section 3.1).
const UINT: u8 = 0;
const BYTES: u8 = 2;
const TEXT: u8 = 3;
const ARRAY: u8 = 4;
const MAP: u8 = 5;
const TAG: u8 = 6;
const SIMPLE: u8 = 7;

/// Simple value `null`.
const NULL: u8 = 0xf6;

/// How deep an item that is passed over may be nested. What TNG writes is flat.
const DEPTH_LIMIT: u8 = 8;

/// Not the item that was expected.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("expected {expected} at byte {at}")]
pub struct CborError {
    /// Offset from the beginning of the bytes read.
    pub at: usize,
    /// What should have been there.
    pub expected: &'static str,
}

/// What is left to read.
#[derive(Debug, Clone, Copy)]
pub(super) struct Reader<'a> {
    all: &'a [u8],
    at: usize,
}

impl<'a> Reader<'a> {
    pub(super) fn new(all: &'a [u8]) -> Self {
        Reader { all, at: 0 }
    }

    pub(super) fn expected<T>(&self, expected: &'static str) -> Result<T, CborError> {
        Err(CborError { at: self.at, expected })
    }

    fn take(&mut self, len: u64) -> Option<&'a [u8]> {
        let end = self.at.checked_add(usize::try_from(len).ok()?)?;
        let taken = self.all.get(self.at..end)?;
        self.at = end;
        Some(taken)
    }

    /// Major type and argument of the next item, where both are there and the argument is in its shortest form.
    fn head(&mut self) -> Option<(u8, u64)> {
        let mut ahead = *self;
        let &[first] = ahead.take(1)? else { return None };
        let (major, info) = (first >> 5, first & 0x1f);
        let (len, least) = match info {
            0..=23 => (0, 0),
            24 => (1, 24),
            25 => (2, 1 << 8),
            26 => (4, 1 << 16),
            27 => (8, 1 << 32),
            // Indefinite lengths, and what is not assigned.
            _ => return None,
        };
        let argument = match len {
            0 => u64::from(info),
            _ => ahead.take(len)?.iter().fold(0, |sum, byte| sum << 8 | u64::from(*byte)),
        };
        // A floating-point number has all its bytes, whatever they are.
        if major != SIMPLE && argument < least {
            return None;
        }
        *self = ahead;
        Some((major, argument))
    }

    /// Argument of the next item, which must be of that type.
    fn argument(&mut self, of: u8, expected: &'static str) -> Result<u64, CborError> {
        let mut ahead = *self;
        match ahead.head() {
            Some((major, argument)) if major == of => {
                *self = ahead;
                Ok(argument)
            }
            _ => self.expected(expected),
        }
    }

    fn string(&mut self, of: u8, expected: &'static str) -> Result<&'a [u8], CborError> {
        let mut ahead = *self;
        let len = ahead.argument(of, expected)?;
        let Some(taken) = ahead.take(len) else { return self.expected(expected) };
        *self = ahead;
        Ok(taken)
    }

    pub(super) fn uint(&mut self) -> Result<u64, CborError> {
        self.argument(UINT, "an unsigned number")
    }

    pub(super) fn bytes(&mut self) -> Result<&'a [u8], CborError> {
        self.string(BYTES, "a byte string")
    }

    pub(super) fn text(&mut self) -> Result<&'a str, CborError> {
        let mut ahead = *self;
        let bytes = ahead.string(TEXT, "a text")?;
        let Ok(text) = std::str::from_utf8(bytes) else { return self.expected("a text in UTF-8") };
        *self = ahead;
        Ok(text)
    }

    /// Number of elements that follow.
    pub(super) fn array(&mut self) -> Result<u64, CborError> {
        self.argument(ARRAY, "an array")
    }

    /// Number of pairs that follow.
    pub(super) fn map(&mut self) -> Result<u64, CborError> {
        self.argument(MAP, "a map")
    }

    pub(super) fn tag(&mut self) -> Result<u64, CborError> {
        self.argument(TAG, "a tag")
    }

    /// Take a `null`, if that is what is next.
    pub(super) fn null(&mut self) -> bool {
        let is_null = self.all.get(self.at) == Some(&NULL);
        self.at += usize::from(is_null);
        is_null
    }

    /// Pass over one item, whatever it is.
    pub(super) fn skip(&mut self) -> Result<(), CborError> {
        self.skip_nested(DEPTH_LIMIT)
    }

    fn skip_nested(&mut self, depth: u8) -> Result<(), CborError> {
        let start = *self;
        let Some((major, argument)) = self.head() else { return start.expected("an item of CBOR") };
        let inner = match major {
            BYTES | TEXT => match self.take(argument) {
                Some(_) => 0,
                None => return start.expected("a string as long as it says"),
            },
            ARRAY => argument,
            MAP => argument.saturating_mul(2),
            TAG => 1,
            _ => 0,
        };
        let Some(depth) = depth.checked_sub(u8::from(inner > 0)) else {
            return start.expected("an item nested less deeply");
        };
        // Every item is at least a byte: a count that is a lie ends with the bytes.
        (0..inner).try_for_each(|_| self.skip_nested(depth))
    }

    /// That there is nothing more.
    pub(super) fn end(&self) -> Result<(), CborError> {
        if self.at == self.all.len() { Ok(()) } else { self.expected("the end") }
    }
}

/// Items one after the other.
#[derive(Debug, Default)]
pub(super) struct Writer(pub(super) Vec<u8>);

impl Writer {
    fn head(&mut self, major: u8, argument: u64) {
        let all = argument.to_be_bytes();
        let [.., b4, b5, b6, b7] = all;
        let major = major << 5;
        match argument {
            0..=23 => self.0.push(major | b7),
            24..=0xff => self.0.extend([major | 24, b7]),
            0x100..=0xffff => self.0.extend([major | 25, b6, b7]),
            0x1_0000..=0xffff_ffff => self.0.extend([major | 26, b4, b5, b6, b7]),
            _ => {
                self.0.push(major | 27);
                self.0.extend(all);
            }
        }
    }

    fn string(&mut self, major: u8, bytes: &[u8]) {
        // No slice is longer than a u64 can say.
        self.head(major, u64::try_from(bytes.len()).unwrap_or(u64::MAX));
        self.0.extend_from_slice(bytes);
    }

    pub(super) fn uint(&mut self, number: u64) {
        self.head(UINT, number);
    }

    pub(super) fn bytes(&mut self, bytes: &[u8]) {
        self.string(BYTES, bytes);
    }

    pub(super) fn text(&mut self, text: &str) {
        self.string(TEXT, text.as_bytes());
    }

    pub(super) fn array(&mut self, elements: u64) {
        self.head(ARRAY, elements);
    }

    pub(super) fn map(&mut self, pairs: u64) {
        self.head(MAP, pairs);
    }

    pub(super) fn tag(&mut self, tag: u64) {
        self.head(TAG, tag);
    }

    pub(super) fn null(&mut self) {
        self.0.push(NULL);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_size_of_argument_is_written_in_its_shortest_form_and_read_back() {
        for (number, hex) in [
            (0, "00"),
            (23, "17"),
            (24, "1818"),
            (255, "18ff"),
            (256, "190100"),
            (65_535, "19ffff"),
            (65_536, "1a00010000"),
            (u64::from(u32::MAX), "1affffffff"),
            (1 << 32, "1b0000000100000000"),
            (u64::MAX, "1bffffffffffffffff"),
        ] {
            let mut writer = Writer::default();
            writer.uint(number);
            assert_eq!(hex::encode(&writer.0), hex);
            let mut reader = Reader::new(&writer.0);
            assert_eq!((reader.uint(), reader.end()), (Ok(number), Ok(())));
        }
    }

    #[test]
    fn longer_forms_indefinite_lengths_and_short_strings_are_refused() {
        for bytes in ["1817", "1900ff", "1a0000ffff", "1b00000000ffffffff", "1f", "1c", "", "18"] {
            let bytes = hex::decode(bytes).unwrap();
            let mut reader = Reader::new(&bytes);
            assert_eq!(reader.uint(), Err(CborError { at: 0, expected: "an unsigned number" }), "{bytes:?}");
        }
        for bytes in ["5f4101ff", "5bffffffffffffffff00", "4201", "60"] {
            let bytes = hex::decode(bytes).unwrap();
            assert_eq!(
                Reader::new(&bytes).bytes(),
                Err(CborError { at: 0, expected: "a byte string" }),
                "{bytes:?}"
            );
        }
        assert_eq!(Reader::new(b"\x61\xff").text(), Err(CborError { at: 0, expected: "a text in UTF-8" }));
    }

    #[test]
    fn any_item_is_passed_over_but_not_one_that_is_too_deep_or_cut() {
        for (bytes, rest) in
            [("f6", ""), ("fb3ff0000000000000", ""), ("a2616101616282f4f5", ""), ("c10a0b", "0b")]
        {
            let bytes = hex::decode(bytes).unwrap();
            let mut reader = Reader::new(&bytes);
            reader.skip().unwrap();
            assert_eq!(hex::encode(&bytes[reader.at..]), rest);
        }
        let nested = |depth| [vec![0x81; depth], vec![0]].concat();
        assert_eq!(Reader::new(&nested(8)).skip(), Ok(()));
        let deep = nested(9);
        assert_eq!(
            Reader::new(&deep).skip(),
            Err(CborError { at: 8, expected: "an item nested less deeply" })
        );
        for (bytes, at) in [("9bffffffffffffffff00", 10), ("8201", 2), ("a101", 2)] {
            let bytes = hex::decode(bytes).unwrap();
            assert_eq!(
                Reader::new(&bytes).skip(),
                Err(CborError { at, expected: "an item of CBOR" }),
                "{bytes:?}"
            );
        }
        assert_eq!(
            Reader::new(b"\x42\x01").skip(),
            Err(CborError { at: 0, expected: "a string as long as it says" })
        );
    }
}
