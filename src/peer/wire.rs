//! What nodes say to each other beside the blob protocol: who they are, what they have, which chunk is meant. Pure.
//!
//! All numbers are little-endian. The dialling end begins with a [`Hello`], which the listening end answers with its own. A
//! connection for news then carries [`Have`]s one way; one for chunks carries an [`Ask`], an [`Answer`] and, if that names a
//! blob, one request of iroh-blobs behind its length (u32) and that protocol's response, over and over.

use std::ops::Range;

/// First bytes of a hello: name and version of the protocol.
const MAGIC: [u8; 8] = *b"caipeer1";

/// Length of a [`Hello`] in bytes.
pub const HELLO: usize = 8 + 16 + 32 + 1;
/// Length of what precedes the bitmap of a [`Have`].
pub const HAVE: usize = 8;
/// Length of an [`Ask`].
pub const ASK: usize = 4 + 8 + 8 + 8 + 1;
/// Length of an [`Answer`].
pub const ANSWER: usize = 1 + 32;
/// Longest request of the blob protocol that is taken: one hash and one range are some 50 bytes.
pub const REQUEST_LIMIT: u32 = 1024;

/// What a connection is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Purpose {
    /// To hear what the other end has.
    News,
    /// To get chunks.
    Chunks,
}

/// Who speaks, and of which model.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Hello {
    /// Random name of the process.
    pub node: [u8; 16],
    /// SHA-256 over the list of objects.
    pub model: [u8; 32],
    /// What the connection is for; the answer repeats it.
    pub purpose: Purpose,
}

impl Hello {
    /// As it is sent.
    pub fn encode(&self) -> Vec<u8> {
        let purpose = match self.purpose {
            Purpose::News => 0,
            Purpose::Chunks => 1,
        };
        [&MAGIC[..], &self.node, &self.model, &[purpose]].concat()
    }

    /// `None`: it is none.
    pub fn decode(bytes: &[u8; HELLO]) -> Option<Self> {
        let mut read = Reader(bytes);
        if read.array()? != MAGIC {
            return None;
        }
        let (node, model) = (read.array()?, read.array()?);
        let purpose = match read.array()? {
            [0] => Purpose::News,
            [1] => Purpose::Chunks,
            _ => return None,
        };
        Some(Hello { node, model, purpose })
    }
}

/// Which chunks of one object the sender has, all of them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Have {
    /// Number of the object in the list, sorted by path.
    pub object: usize,
    /// One bit for each chunk, the lowest of each byte first; those behind the last chunk are 0.
    pub bitmap: Vec<u8>,
}

impl Have {
    /// Of `chunks`, one `bool` each.
    pub fn of(object: usize, chunks: &[bool]) -> Self {
        let byte = |eight: &[bool]| {
            eight.iter().enumerate().fold(0u8, |byte, (bit, here)| byte | (u8::from(*here) << bit))
        };
        Have { object, bitmap: chunks.chunks(8).map(byte).collect() }
    }

    /// As it is sent.
    pub fn encode(&self) -> Vec<u8> {
        let number = |of: usize| u32::try_from(of).unwrap_or(u32::MAX).to_le_bytes();
        [&number(self.object)[..], &number(self.bitmap.len()), &self.bitmap].concat()
    }

    /// Object and length of the bitmap, from the bytes in front of it. `None` where that is not what an object of `chunks_of`
    /// chunks needs.
    pub fn decode_head(
        bytes: &[u8; HAVE],
        chunks_of: impl Fn(usize) -> Option<u64>,
    ) -> Option<(usize, usize)> {
        let mut read = Reader(bytes);
        let (object, len) = (u32::from_le_bytes(read.array()?), u32::from_le_bytes(read.array()?));
        let object = usize::try_from(object).ok()?;
        (chunks_of(object)?.div_ceil(8) == u64::from(len)).then_some((object, usize::try_from(len).ok()?))
    }
}

/// Bytes of a chunk are wanted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ask {
    /// Number of the object in the list.
    pub object: usize,
    /// Number of the chunk.
    pub chunk: u64,
    /// Which bytes of the chunk, from its first.
    pub range: Range<u64>,
    /// Somebody waits for them.
    pub urgent: bool,
}

impl Ask {
    /// As it is sent.
    pub fn encode(&self) -> Vec<u8> {
        let object = u32::try_from(self.object).unwrap_or(u32::MAX);
        let mut bytes = object.to_le_bytes().to_vec();
        for number in [self.chunk, self.range.start, self.range.end] {
            bytes.extend_from_slice(&number.to_le_bytes());
        }
        bytes.push(u8::from(self.urgent));
        bytes
    }

    /// `None`: it is none.
    pub fn decode(bytes: &[u8; ASK]) -> Option<Self> {
        let mut read = Reader(bytes);
        let object = usize::try_from(u32::from_le_bytes(read.array()?)).ok()?;
        let mut number = || read.array().map(u64::from_le_bytes);
        let (chunk, start, end) = (number()?, number()?, number()?);
        let urgent = match read.array()? {
            [0] => false,
            [1] => true,
            _ => return None,
        };
        (start < end).then_some(Ask { object, chunk, range: start..end, urgent })
    }
}

/// What becomes of an [`Ask`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Answer {
    /// The chunk is the blob of this hash.
    Blob([u8; 32]),
    /// It is not here.
    NotHere,
}

impl Answer {
    /// As it is sent.
    pub fn encode(&self) -> Vec<u8> {
        match self {
            Answer::Blob(hash) => [&[0][..], hash].concat(),
            Answer::NotHere => vec![1; ANSWER],
        }
    }

    /// `None`: it is none.
    pub fn decode(bytes: &[u8; ANSWER]) -> Option<Self> {
        let mut read = Reader(bytes);
        match read.array()? {
            [0] => Some(Answer::Blob(read.array()?)),
            [1] => Some(Answer::NotHere),
            _ => None,
        }
    }
}

struct Reader<'a>(&'a [u8]);

impl Reader<'_> {
    fn array<const N: usize>(&mut self) -> Option<[u8; N]> {
        let (now, later) = self.0.split_first_chunk()?;
        self.0 = later;
        Some(*now)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn what_is_said_is_heard(
            node: [u8; 16], model: [u8; 32], news: bool, object in 0usize..1 << 20, chunk: u64, start in 0u64..1 << 40,
            len in 1u64..1 << 24, urgent: bool, hash: [u8; 32], chunks in proptest::collection::vec(any::<bool>(), 0..70),
        ) {
            let purpose = if news { Purpose::News } else { Purpose::Chunks };
            let hello = Hello { node, model, purpose };
            prop_assert_eq!(Hello::decode(&hello.encode().try_into().unwrap()), Some(hello));
            let ask = Ask { object, chunk, range: start..start + len, urgent };
            prop_assert_eq!(Ask::decode(&ask.encode().try_into().unwrap()), Some(ask));
            for answer in [Answer::Blob(hash), Answer::NotHere] {
                prop_assert_eq!(Answer::decode(&answer.encode().try_into().unwrap()), Some(answer));
            }
            let have = Have::of(object, &chunks);
            let bytes = have.encode();
            let head: [u8; HAVE] = bytes[..HAVE].try_into().unwrap();
            let count = chunks.len() as u64;
            prop_assert_eq!(Have::decode_head(&head, |_| Some(count)), Some((object, chunks.len().div_ceil(8))));
            prop_assert_eq!(Have::decode_head(&head, |_| Some(count + 8)), None);
            prop_assert_eq!(Have::decode_head(&head, |_| None), None);
            for (at, here) in chunks.iter().enumerate() {
                prop_assert_eq!(have.bitmap[at / 8] >> (at % 8) & 1 == 1, *here);
            }
        }
    }

    #[test]
    fn other_bytes_are_nothing() {
        let hello = Hello { node: [1; 16], model: [2; 32], purpose: Purpose::News }.encode();
        for (at, byte) in [(0, b'C'), (HELLO - 1, 2)] {
            let mut bytes: [u8; HELLO] = hello.clone().try_into().unwrap();
            bytes[at] = byte;
            assert_eq!(Hello::decode(&bytes), None);
        }
        let empty = Ask { object: 0, chunk: 0, range: 5..5, urgent: false }.encode();
        assert_eq!(Ask::decode(&empty.try_into().unwrap()), None);
        assert_eq!(Answer::decode(&[2; ANSWER]), None);
    }
}
