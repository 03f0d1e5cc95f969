//! The engine: one chunk as one blob of iroh-blobs, over any stream.
//!
//! The blob exists while it is asked for: its hash is computed from the chunk as it is read, so nothing is kept beside the
//! store's own files. The hash shows that what arrives is what the sender meant to send, 16 KiB at a time.

use std::io;
use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use bao_tree::io::BaoContentItem;
use bytes::{Bytes, BytesMut};
use iroh::endpoint::VarInt;
use iroh_blobs::get::fsm::{AtConnected, BlobContentNext, ConnectedNext, RequestCounters};
use iroh_blobs::protocol::{ChunkRanges, ChunkRangesExt, GetRequest};
use iroh_blobs::provider::events::EventSender;
use iroh_blobs::provider::{StreamPair, handle_stream};
use iroh_blobs::store::readonly_mem::ReadonlyMemStore;
use iroh_blobs::util::{AsyncReadRecvStream, AsyncReadRecvStreamExtra, SendStream};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, BufWriter};
use tokio::sync::{Notify, mpsc};

use super::error::PeerError;
use super::transport::Wire;
use super::wire::REQUEST_LIMIT;
use crate::store::PeerFailed;

/// What a leaf's bytes are gathered to before they are handed on: few enough to come often, enough for a hand-over to cost nothing.
const FRAME: usize = 256 << 10;

/// How long the other end may pause.
pub const STALL: Duration = Duration::from_secs(10);

/// Bytes that are not said to the socket one by one: a pair of hashes has 64.
const WRITE_BUFFER: usize = 64 << 10;

/// Lets what readers wait for go first.
#[derive(Default)]
pub struct Gate {
    urgent: std::sync::atomic::AtomicUsize,
    opened: Notify,
}

/// Somebody waits, as long as this lives.
pub struct Ahead<'a>(&'a Gate);

impl Gate {
    /// From now on the others wait.
    pub fn pass(&self) -> Ahead<'_> {
        self.urgent.fetch_add(1, std::sync::atomic::Ordering::SeqCst);
        Ahead(self)
    }

    /// Wait until nobody is before us, and not for ever.
    async fn wait(&self) {
        let opened = self.opened.notified();
        if self.urgent.load(std::sync::atomic::Ordering::SeqCst) > 0 {
            let _ = tokio::time::timeout(STALL / 10, opened).await;
        }
    }
}

impl Drop for Ahead<'_> {
    fn drop(&mut self) {
        self.0.urgent.fetch_sub(1, std::sync::atomic::Ordering::SeqCst);
        self.0.opened.notify_waiters();
    }
}

/// A chunk, ready to be given.
pub struct Blob {
    store: ReadonlyMemStore,
    /// Its BLAKE3 hash.
    pub hash: [u8; 32],
}

impl Blob {
    /// Of these bytes. Needs a runtime; hashes, so not on one of its workers.
    pub fn new(bytes: Vec<u8>) -> Self {
        let hash = *blake3::hash(&bytes).as_bytes();
        Blob { store: ReadonlyMemStore::new([bytes]), hash }
    }

    /// Read one request and answer it.
    ///
    /// # Errors
    /// [`PeerError`]; the connection is of no use then.
    pub async fn give(self, stream: &mut dyn Wire, gate: Option<Arc<Gate>>) -> Result<(), PeerError> {
        let len = stream.read_u32_le().await.map_err(PeerError::Broken)?;
        if len > REQUEST_LIMIT {
            let got = format!("one of {len} bytes");
            return Err(PeerError::Protocol { expected: "a request of up to 1024 bytes", got });
        }
        let mut request = vec![0; usize::try_from(len).unwrap_or(0)];
        stream.read_exact(&mut request).await.map_err(PeerError::Broken)?;
        let out = Out { writer: BufWriter::with_capacity(WRITE_BUFFER, &mut *stream), gate, broken: false };
        // The engine takes the end of a stream for the end of a request.
        let pair = StreamPair::new(0, Bytes::from(request), out, EventSender::DEFAULT);
        let served = handle_stream(pair, (*self.store).clone()).await;
        served.map_err(|error| PeerError::Broken(io::Error::other(error.to_string())))?;
        stream.flush().await.map_err(PeerError::Broken)
    }
}

/// Where an answer goes.
struct Out<W: AsyncWrite> {
    writer: BufWriter<W>,
    gate: Option<Arc<Gate>>,
    broken: bool,
}

impl<W: AsyncWrite + Unpin + Send> Out<W> {
    async fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        if self.broken {
            return Err(io::ErrorKind::BrokenPipe.into());
        }
        if let Some(gate) = &self.gate {
            gate.wait().await;
        }
        match tokio::time::timeout(STALL, self.writer.write_all(bytes)).await {
            Ok(written) => written,
            Err(_) => Err(io::ErrorKind::TimedOut.into()),
        }
    }
}

impl<W: AsyncWrite + Unpin + Send> SendStream for Out<W> {
    async fn send_bytes(&mut self, bytes: Bytes) -> io::Result<()> {
        self.write(&bytes).await
    }

    async fn send(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.write(bytes).await
    }

    async fn sync(&mut self) -> io::Result<()> {
        self.writer.flush().await
    }

    fn reset(&mut self, _: VarInt) -> io::Result<()> {
        // There is one stream in a connection, and no way to say it but to end both.
        self.broken = true;
        Ok(())
    }

    async fn stopped(&mut self) -> io::Result<Option<VarInt>> {
        std::future::pending().await
    }

    fn id(&self) -> u64 {
        0
    }
}

/// Ask for `range` of the blob `hash`, which has `size` bytes, and hand its bytes on as they are verified.
///
/// # Errors
/// [`PeerError`]; the connection is of no use then. Also where nobody takes the bytes any more.
pub async fn take(
    stream: &mut dyn Wire,
    hash: [u8; 32],
    range: Range<u64>,
    size: u64,
    frames: &mpsc::Sender<Result<Bytes, PeerFailed>>,
    mut begun: impl FnMut(),
) -> Result<(), PeerError> {
    let request = GetRequest::blob_ranges(hash.into(), ChunkRanges::bytes(range.clone()));
    let (mut reader, mut writer) = tokio::io::split(stream);
    let answer = AsyncReadRecvStream::new(In(&mut reader));
    let at = AtConnected::new(
        std::time::Instant::now().into(),
        answer,
        Ask(&mut writer),
        request,
        RequestCounters::default(),
    );
    let ConnectedNext::StartRoot(root) = within(at.next()).await? else {
        return Err(PeerError::Protocol { expected: "a blob", got: "something else".into() });
    };
    let (mut content, told) = within(root.next().next()).await?;
    if told != size {
        return Err(PeerError::Protocol {
            expected: "a blob as long as the chunk",
            got: format!("{told} bytes"),
        });
    }
    // Ranges of blobs are whole KiB: what is around the one that is wanted comes too.
    let (mut wanted, mut frame) = (range, BytesMut::new());
    loop {
        // Never `AtClosing::next`: it waits for the end of the stream, which goes on.
        let BlobContentNext::More((next, item)) = waited(content.next()).await? else { break };
        content = next;
        let item = item.map_err(|error| PeerError::Broken(io::Error::other(error.to_string())))?;
        let BaoContentItem::Leaf(leaf) = item else { continue };
        let end = leaf.offset.saturating_add(u64::try_from(leaf.data.len()).unwrap_or(u64::MAX));
        let (from, to) = (wanted.start.max(leaf.offset), wanted.end.min(end));
        if from >= to {
            continue;
        }
        let within = |at: u64| usize::try_from(at.saturating_sub(leaf.offset)).unwrap_or(usize::MAX);
        frame.extend_from_slice(leaf.data.get(within(from)..within(to)).unwrap_or_default());
        wanted.start = to;
        begun();
        if frame.len() >= FRAME {
            hand_on(frames, &mut frame).await?;
        }
    }
    if !frame.is_empty() {
        hand_on(frames, &mut frame).await?;
    }
    Ok(())
}

async fn hand_on(
    frames: &mpsc::Sender<Result<Bytes, PeerFailed>>,
    frame: &mut BytesMut,
) -> Result<(), PeerError> {
    let taken = frames.send(Ok(frame.split().freeze())).await;
    taken.map_err(|_| PeerError::Broken(io::Error::other("nobody waits for it any more")))
}

/// The next step of the engine, in time.
async fn within<T, E: std::error::Error>(step: impl Future<Output = Result<T, E>>) -> Result<T, PeerError> {
    waited(step).await?.map_err(|error| PeerError::Broken(io::Error::other(error.to_string())))
}

async fn waited<T>(step: impl Future<Output = T>) -> Result<T, PeerError> {
    tokio::time::timeout(STALL, step).await.map_err(|_| PeerError::Silent { secs: STALL.as_secs() })
}

struct In<'a, R>(&'a mut R);

impl<R: AsyncRead + Unpin + Send> AsyncReadRecvStreamExtra for In<'_, R> {
    fn inner(&mut self) -> &mut (impl AsyncRead + Unpin + Send) {
        &mut self.0
    }

    fn stop(&mut self, _: VarInt) -> io::Result<()> {
        Ok(())
    }

    fn id(&self) -> u64 {
        0
    }
}

/// Puts a request behind its length.
struct Ask<'a, W>(&'a mut W);

impl<W: AsyncWrite + Unpin + Send> SendStream for Ask<'_, W> {
    async fn send_bytes(&mut self, bytes: Bytes) -> io::Result<()> {
        self.send(&bytes).await
    }

    async fn send(&mut self, bytes: &[u8]) -> io::Result<()> {
        let len = u32::try_from(bytes.len()).unwrap_or(u32::MAX);
        self.0.write_all(&[&len.to_le_bytes()[..], bytes].concat()).await?;
        self.0.flush().await
    }

    async fn sync(&mut self) -> io::Result<()> {
        self.0.flush().await
    }

    fn reset(&mut self, _: VarInt) -> io::Result<()> {
        Ok(())
    }

    async fn stopped(&mut self) -> io::Result<Option<VarInt>> {
        Ok(None)
    }

    fn id(&self) -> u64 {
        0
    }
}
