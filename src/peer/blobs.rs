//! The engine: one chunk as one blob, over any stream, as iroh-blobs carries it and bao-tree encodes it: the length (u64), then the
//! hashes of the tree and the bytes of the range in order.
//!
//! The blob exists while it is asked for: its hash is computed from the chunk as it is read, so nothing is kept beside the
//! store's own files. The hash shows that what arrives is what the sender meant to send, 16 KiB at a time.

use std::io;
use std::ops::Range;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use bao_tree::io::BaoContentItem;
use bao_tree::io::fsm::{ResponseDecoder, ResponseDecoderNext};
use bao_tree::io::outboard::PreOrderMemOutboard;
use bao_tree::io::round_up_to_chunks;
use bao_tree::io::sync::encode_ranges;
use bao_tree::{BaoTree, BlockSize, ByteRanges, ChunkRanges};
use bytes::{Bytes, BytesMut};
use iroh_io::AsyncStreamReader;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::sync::{Notify, mpsc};
use tokio::time::Instant;

use super::error::PeerError;
use super::transport::{Wire, within};
use crate::bandwidth::Bandwidth;
use crate::store::{AT_ONCE, PeerFailed, Urgency};

/// How long all of a chunk stays behind those that readers wait for.
const BEHIND: Duration = Duration::from_secs(1);

/// Bytes under one hash that is sent: 16 KiB, as iroh-blobs has them.
const GROUP: BlockSize = BlockSize::from_chunk_log(4);

/// What a leaf's bytes are gathered to before they are handed on: few enough to come often, enough for a hand-over to cost nothing.
const FRAME: usize = 256 << 10;

/// Most that is taken, in bytes, also when nobody waits for it any more: more than any request of a mount. A connection that is cut
/// off costs the next reader a handshake, which is dearer.
const HEARD_OUT: u64 = 1 << 20;

/// How long the other end may pause.
pub const STALL: Duration = Duration::from_secs(10);

/// What is written between two looks at who is to go first.
const PIECE: usize = 64 << 10;

/// Lets what readers wait for go first.
#[derive(Default)]
pub struct Gate {
    urgent: AtomicUsize,
    opened: Notify,
}

/// Somebody waits, as long as this lives.
pub struct Ahead<'a>(&'a Gate);

impl Gate {
    /// From now on the others wait.
    pub fn pass(&self) -> Ahead<'_> {
        self.urgent.fetch_add(1, Ordering::SeqCst);
        Ahead(self)
    }

    /// Wait until nobody is before us, and no longer than `limit`.
    async fn wait(&self, limit: Instant) {
        let opened = self.opened.notified();
        if self.urgent.load(Ordering::SeqCst) > 0 {
            let _ = tokio::time::timeout_at(limit, opened).await;
        }
    }
}

impl Drop for Ahead<'_> {
    fn drop(&mut self) {
        self.0.urgent.fetch_sub(1, Ordering::SeqCst);
        self.0.opened.notify_waiters();
    }
}

/// A range of a chunk, ready to be given.
pub struct Blob {
    /// The BLAKE3 hash of the chunk.
    pub hash: [u8; 32],
    encoded: Vec<u8>,
}

impl Blob {
    /// `range` of these bytes; `None` where it is not inside. Hashes: not for a worker of the runtime.
    pub fn new(bytes: &[u8], range: Range<u64>) -> Option<Self> {
        let len = u64::try_from(bytes.len()).ok().filter(|len| range.end <= *len && !range.is_empty())?;
        let outboard = PreOrderMemOutboard::create(bytes, GROUP);
        let mut encoded = len.to_le_bytes().to_vec();
        encode_ranges(bytes, &outboard, &ranges(range), &mut encoded).ok()?;
        Some(Blob { hash: *outboard.root.as_bytes(), encoded })
    }

    /// Send it, at the pace that `upload` allows. With a `gate`, behind whoever is ahead there.
    ///
    /// # Errors
    /// [`PeerError`]; the connection is of no use then.
    pub async fn give(
        &self,
        stream: &mut dyn Wire,
        gate: Option<&Gate>,
        upload: Option<&Bandwidth>,
    ) -> Result<(), PeerError> {
        let urgency = if gate.is_none() { &AT_ONCE } else { &Urgency::default() };
        let limit = Instant::now() + BEHIND;
        for piece in self.encoded.chunks(PIECE) {
            if let Some(gate) = gate {
                gate.wait(limit).await;
            }
            if let Some(upload) = upload {
                upload.take(piece.len(), urgency).await;
            }
            within(STALL, stream.write_all(piece)).await?.map_err(PeerError::Broken)?;
        }
        within(STALL, stream.flush()).await?.map_err(PeerError::Broken)
    }
}

/// The whole KiB around `range`, which is what the tree can show.
fn ranges(range: Range<u64>) -> ChunkRanges {
    round_up_to_chunks(&ByteRanges::from(range))
}

/// Take `range` of the blob `hash`, which has `size` bytes, and hand its bytes on as they are verified. `begun` is told of the
/// first.
///
/// # Errors
/// [`PeerError`]; the connection is of no use then. Also where nobody takes the bytes any more, and they are many.
pub async fn take(
    stream: &mut dyn Wire,
    hash: [u8; 32],
    range: Range<u64>,
    size: u64,
    frames: &mpsc::Sender<Result<Bytes, PeerFailed>>,
    mut begun: impl FnMut(),
) -> Result<(), PeerError> {
    let told = within(STALL, stream.read_u64_le()).await?.map_err(PeerError::Broken)?;
    if told != size {
        return Err(PeerError::Protocol {
            expected: "a blob as long as the chunk",
            got: format!("{told} bytes"),
        });
    }
    let tree = BaoTree::new(size, GROUP);
    let mut decoder = ResponseDecoder::new(hash.into(), ranges(range.clone()), tree, In(stream));
    let is_heard_out = range.end.saturating_sub(range.start) <= HEARD_OUT;
    let (mut wanted, mut frame) = (range, BytesMut::new());
    loop {
        let item = match within(STALL, decoder.next()).await? {
            ResponseDecoderNext::More((next, item)) => {
                decoder = next;
                item.map_err(|error| PeerError::Broken(io::Error::other(error)))?
            }
            ResponseDecoderNext::Done(_) => break,
        };
        let BaoContentItem::Leaf(leaf) = item else { continue };
        let end = leaf.offset.saturating_add(u64::try_from(leaf.data.len()).unwrap_or(u64::MAX));
        // What is around the range that is wanted comes too.
        let (from, to) = (wanted.start.max(leaf.offset), wanted.end.min(end));
        if from >= to {
            continue;
        }
        let place = |at: u64| usize::try_from(at.saturating_sub(leaf.offset)).unwrap_or(usize::MAX);
        frame.extend_from_slice(leaf.data.get(place(from)..place(to)).unwrap_or_default());
        wanted.start = to;
        begun();
        if frame.len() >= FRAME {
            hand_on(frames, &mut frame, is_heard_out).await?;
        }
    }
    if !frame.is_empty() {
        hand_on(frames, &mut frame, is_heard_out).await?;
    }
    Ok(())
}

/// Why an answer was not taken to its end.
pub fn abandoned() -> PeerError {
    PeerError::Broken(io::Error::other("nobody waits for it any more"))
}

async fn hand_on(
    frames: &mpsc::Sender<Result<Bytes, PeerFailed>>,
    frame: &mut BytesMut,
    is_heard_out: bool,
) -> Result<(), PeerError> {
    match frames.send(Ok(frame.split().freeze())).await {
        Err(_) if !is_heard_out => Err(abandoned()),
        Ok(()) | Err(_) => Ok(()),
    }
}

/// The end of a connection that bytes come from.
struct In<'a>(&'a mut dyn Wire);

impl AsyncStreamReader for In<'_> {
    async fn read_bytes(&mut self, len: usize) -> io::Result<Bytes> {
        // At most a group: the tree asks for no more at a time.
        let mut bytes = vec![0; len];
        self.0.read_exact(&mut bytes).await?;
        Ok(bytes.into())
    }

    async fn read<const L: usize>(&mut self) -> io::Result<[u8; L]> {
        let mut bytes = [0; L];
        self.0.read_exact(&mut bytes).await?;
        Ok(bytes)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// What arrives of `range` of `bytes` when `spoil` has been at what was sent.
    fn sent(
        bytes: &[u8],
        range: Range<u64>,
        spoil: impl FnOnce(&mut Vec<u8>),
    ) -> (Vec<u8>, Result<(), PeerError>) {
        let mut blob = Blob::new(bytes, range.clone()).unwrap();
        assert_eq!(blob.hash, *blake3::hash(bytes).as_bytes());
        spoil(&mut blob.encoded);
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let (mut ours, mut theirs) = tokio::io::duplex(4 << 20);
            blob.give(&mut ours, Some(&Gate::default()), None).await.unwrap();
            drop(ours);
            let (frames, mut coming) = mpsc::channel(100);
            let taken = take(&mut theirs, blob.hash, range, bytes.len() as u64, &frames, || ()).await;
            drop(frames);
            let mut all = Vec::new();
            while let Some(frame) = coming.recv().await {
                all.extend_from_slice(&frame.unwrap());
            }
            (all, taken)
        })
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(40))]
        #[test]
        fn any_range_arrives_and_a_wrong_bit_does_not(
            len in 1usize..100_000, a: prop::sample::Index, b: prop::sample::Index, at: prop::sample::Index, bit in 0u8..8,
        ) {
            let bytes: Vec<u8> = (0..=250).cycle().take(len).collect();
            let (a, b) = (a.index(len), b.index(len));
            let right = &bytes[a.min(b)..a.max(b) + 1];
            let range = a.min(b) as u64..a.max(b) as u64 + 1;
            let (all, taken) = sent(&bytes, range.clone(), |_| ());
            prop_assert!(taken.is_ok());
            prop_assert_eq!(&all, right);
            let (all, taken) = sent(&bytes, range, |encoded| {
                let at = at.index(encoded.len());
                encoded[at] ^= 1 << bit;
            });
            prop_assert!(taken.is_err());
            prop_assert!(right.starts_with(&all), "what came before it was right");
        }
    }

    #[tokio::test]
    async fn answer_that_nobody_waits_for_is_heard_out_unless_it_is_long() {
        for (len, is_heard_out) in [(HEARD_OUT, true), (HEARD_OUT + 1, false)] {
            let bytes = vec![7; usize::try_from(len).unwrap()];
            let blob = Blob::new(&bytes, 0..len).unwrap();
            let (mut ours, mut theirs) = tokio::io::duplex(4 << 20);
            blob.give(&mut ours, Some(&Gate::default()), None).await.unwrap();
            drop(ours);
            let (frames, nobody) = mpsc::channel(1);
            drop(nobody);
            let taken = take(&mut theirs, blob.hash, 0..len, len, &frames, || ()).await;
            assert_eq!(taken.is_ok(), is_heard_out, "{len} bytes");
            let mut left = Vec::new();
            tokio::io::AsyncReadExt::read_to_end(&mut theirs, &mut left).await.unwrap();
            assert_eq!(left.is_empty(), is_heard_out, "{len} bytes");
        }
    }

    #[test]
    fn cut_answers_and_ranges_outside_are_refused() {
        let bytes = vec![7; 50_000];
        for left in [0, 7, 8, 100, 49_000] {
            let (_, taken) = sent(&bytes, 0..50_000, |encoded| encoded.truncate(left));
            assert!(matches!(taken, Err(PeerError::Broken(_))), "{left}");
        }
        assert!(Blob::new(&bytes, 0..50_001).is_none() && Blob::new(&bytes, 5..5).is_none());
    }
}
