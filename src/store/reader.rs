//! Reads: the [`Ciphertext`] side of the store. Blocking; FUSE threads come in here.

use std::io;
use std::ops::Range;
use std::time::Instant;

use super::Store;
use super::engine::{Lookup, Slot};
use super::flight::{Failure, Ready};
use super::layout::{ChunkKey, ObjectIndex, Piece};
use super::memory::copy_frames;
use super::source::SourceError;
use super::state::ObjectState;
use crate::ahead;
use crate::ciphertext::{Ciphertext, Entry, EntryId, ReadError};

/// Times a chunk is read before its disk is given up for this read: once as it was found, once after the disk took it
/// again, and once more because the file may have been lost between the two.
const READ_BACKS: u32 = 3;

impl Ciphertext for Store {
    fn entries(&self) -> &[Entry] {
        &self.tree.entries
    }

    fn read_at(&self, id: EntryId, offset: u64, buf: &mut [u8]) -> Result<(), ReadError> {
        let len = buf.len() as u64;
        let started = Instant::now();
        let outside = || ReadError::OutOfRange { path: self.path_of(id), offset, len };
        let (object, slot) = self.object_of(id).ok_or_else(outside)?;
        let pieces = slot.layout.pieces(offset, len).ok_or_else(outside)?;
        // All that goes directly is asked for before anything is waited for.
        let pieces: Vec<_> = pieces
            .map(|piece| {
                let key = ChunkKey { object, chunk: piece.chunk };
                let direct = self.ask_direct(slot, key, &piece);
                (key, piece, direct)
            })
            .collect();
        let mut rest = buf;
        for (key, piece, direct) in pieces {
            let len = usize::try_from(piece.len).unwrap_or(usize::MAX);
            let (now, later) = rest.split_at_mut_checked(len).ok_or_else(outside)?;
            if !direct.is_some_and(|direct| direct.fill(now)) {
                self.read_piece(slot, key, &piece, started, now)?;
            }
            rest = later;
        }
        Ok(())
    }

    fn is_complete(&self, id: EntryId) -> bool {
        let Some((object, _)) = self.object_of(id) else { return false };
        let state = self.engine.lock();
        // What a bounded cache has now it may have let go a moment later.
        state.room.limit().is_none() && state.object(object).is_some_and(ObjectState::is_complete)
    }

    fn will_need(&self, id: EntryId) {
        let Some((object, slot)) = self.object_of(id) else { return };
        let mut state = self.engine.lock();
        state.plan.prefer(object);
        let complete = state.object(object).is_some_and(ObjectState::is_complete);
        drop(state);
        // What is still to come is in the page cache when it has come.
        let len = slot.object.len;
        if complete
            && len >= ahead::SHORTEST
            && let Ok(file) = slot.file.existing_file()
        {
            self.ahead.want(u64::from(id.0), file, len);
        }
    }

    fn doubt(&self, id: EntryId, range: Range<u64>) -> bool {
        self.distrust(id, range);
        true
    }
}

impl Store {
    /// The object behind a file entry.
    pub(super) fn object_of(&self, id: EntryId) -> Option<(ObjectIndex, &Slot)> {
        let index = usize::try_from(id.0).ok()?;
        let object = (*self.tree.objects.get(index)?)?;
        Some((object, self.engine.slot(object)?))
    }

    /// Fetch the files `ids` before everything else that nobody waits for, in this order.
    pub fn prefetch(&self, ids: &[EntryId]) {
        // The last one that is preferred is the first to come.
        for id in ids.iter().rev() {
            if let Some((object, _)) = self.object_of(*id) {
                self.engine.lock().room.forgive(object);
            }
            self.will_need(*id);
        }
        self.engine.work.notify_waiters();
        self.engine.landed.notify_waiters();
    }

    /// Bytes of the files `ids` that are still to be fetched. What was left by an earlier run and not looked at yet counts as here.
    pub fn missing(&self, ids: &[EntryId]) -> u64 {
        let objects = ids.iter().filter_map(|id| self.object_of(*id));
        let state = self.engine.lock();
        let missing =
            objects.filter_map(|(object, slot)| Some(slot.missing_bytes(&state.object(object)?.map)));
        missing.fold(0, u64::saturating_add)
    }

    fn path_of(&self, id: EntryId) -> String {
        let entry = usize::try_from(id.0).ok().and_then(|index| self.tree.entries.get(index));
        entry.map_or_else(|| format!("entry {}", id.0), |entry| entry.path.display().to_string())
    }

    fn read_piece(
        &self,
        slot: &Slot,
        key: ChunkKey,
        piece: &Piece,
        started: Instant,
        buf: &mut [u8],
    ) -> Result<(), ReadError> {
        let mut attempt = 0;
        loop {
            let failed = match self.locate(slot, key, piece.offset, started)? {
                Ready::Disk(place) => match slot.file.read_at(place, piece.offset, buf) {
                    Ok(true) => return Ok(()),
                    // Another chunk was let go, or this one: it is asked for again, within the same deadline.
                    Ok(false) if started.elapsed() < self.engine.options.read_timeout => continue,
                    Ok(false) => io::ErrorKind::TimedOut.into(),
                    Err(error) => {
                        self.engine.forget(key, place.generation, &error);
                        error
                    }
                },
                Ready::Memory(frames) => {
                    let within = usize::try_from(piece.within).unwrap_or(usize::MAX);
                    if copy_frames(&frames, within, buf) {
                        return Ok(());
                    }
                    io::ErrorKind::UnexpectedEof.into()
                }
            };
            attempt += 1;
            if attempt == READ_BACKS {
                return Err(ReadError::Io { path: slot.path.clone(), source: failed });
            }
        }
    }

    /// Wait until `key` is somewhere.
    fn locate(&self, slot: &Slot, key: ChunkKey, offset: u64, started: Instant) -> Result<Ready, ReadError> {
        let flight = match self.engine.look_up(key) {
            Lookup::Here(ready) => return Ok(ready),
            Lookup::Failed(failure) => return Err(read_error(slot, offset, started, failure)),
            Lookup::Coming(flight) => flight,
        };
        let path = slot.path.clone();
        match flight.wait_until(started + self.engine.options.read_timeout) {
            Some(Ok(ready)) => Ok(ready),
            Some(Err(failure)) => Err(read_error(slot, offset, started, failure)),
            None => Err(ReadError::Unavailable { path, offset, waited_secs: started.elapsed().as_secs() }),
        }
    }
}

fn read_error(slot: &Slot, offset: u64, started: Instant, failure: Failure) -> ReadError {
    let path = slot.path.clone();
    match failure {
        Failure::Source(SourceError::Changed { .. }) => ReadError::Changed { path },
        Failure::Source(SourceError::Gone { .. }) => ReadError::Gone { path },
        Failure::Source(SourceError::Denied { .. } | SourceError::Unavailable { .. }) | Failure::Closed => {
            ReadError::Unavailable { path, offset, waited_secs: started.elapsed().as_secs() }
        }
        Failure::Corrupt => {
            let source =
                io::Error::new(io::ErrorKind::InvalidData, "the object does not have the origin's checksum");
            ReadError::Io { path, source }
        }
    }
}
