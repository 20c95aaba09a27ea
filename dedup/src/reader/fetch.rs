//! Getting verified stored bytes from the members.

use std::sync::atomic::Ordering;

use tessera_raid::{RaidError, SegmentRead, device::AlignedBuf};

use super::{
    ChunkReader, ReadError,
    plan::{Run, Want, blocks_of, cut_at_units, plan},
};
use crate::{
    Entry, Fingerprint, decompress, fingerprint,
    load::{SummaryRequest, load},
    segment::summary::SummaryId,
};

/// Receives a chunk, the length of the run it was read in, and its verified
/// stored bytes.
pub(super) type Deliver<'a> = dyn FnMut(&Want, usize, Result<&[u8], ReadError>) + 'a;

impl ChunkReader {
    /// Reads and verifies all; delivers each exactly once, in any order.
    pub(super) fn fetch(&self, wants: &mut [Want], deliver: &mut Deliver<'_>) {
        let unit = self.array.unit_bytes();
        let runs = cut_at_units(&plan(wants), wants, unit);
        let mut rest = runs.as_slice();
        while !rest.is_empty() {
            // A bounded piece, all of its buffers in one call (R23).
            let mut bytes = 0;
            let count = rest
                .iter()
                .take_while(|run| {
                    let fits = bytes == 0 || bytes + run.bytes() <= self.piece_bytes;
                    bytes += run.bytes();
                    fits
                })
                .count();
            let (piece, tail) = rest.split_at(count);
            self.fetch_piece(wants, piece, deliver);
            rest = tail;
        }
    }

    fn fetch_piece(&self, wants: &[Want], runs: &[Run], deliver: &mut Deliver<'_>) {
        let lengths: Vec<usize> = runs.iter().map(Run::bytes).collect();
        let buffers = self.buffers.take_many(&lengths);
        let mut reads: Vec<SegmentRead> = runs
            .iter()
            .zip(buffers)
            .map(|(run, buffer)| SegmentRead {
                placement: wants[run.first].placement.clone(),
                offset: run.start,
                buffer,
                outcome: Ok(()),
            })
            .collect();
        self.array.read(&mut reads);
        let mut suspects = Vec::new();
        for (run, read) in runs.iter().zip(&reads) {
            for want in &wants[run.first..run.last] {
                let stored = &read.buffer[within(&want.entry, run.start)];
                match &read.outcome {
                    Ok(()) if verifies(&want.entry, stored) => {
                        deliver(want, run.joined, Ok(stored));
                    }
                    Ok(()) => suspects.push((want, None)),
                    Err(error) => suspects.push((want, Some(error.clone()))),
                }
            }
        }
        // Their buffers go back before more are needed.
        drop(reads);
        for (want, error) in suspects {
            match self.recover(want, error) {
                Ok(buffer) => {
                    let (start, _) = blocks_of(&want.entry);
                    deliver(want, buffer.len(), Ok(&buffer[within(&want.entry, start)]));
                }
                Err(error) => deliver(want, 0, Err(error)),
            }
        }
    }

    /// What to do when the plain read of a chunk failed or did not verify.
    /// Returns the chunk's blocks.
    #[cold]
    fn recover(&self, want: &Want, failed: Option<RaidError>) -> Result<AlignedBuf, ReadError> {
        let Entry {
            segment,
            position,
            stored,
            ..
        } = want.entry;
        let (start, end) = blocks_of(&want.entry);
        let range = within(&want.entry, start);
        if failed.is_some() {
            // It may have been the fault of another chunk in the same run.
            let mut alone = [SegmentRead {
                placement: want.placement.clone(),
                offset: start,
                buffer: AlignedBuf::zeroed((end - start) as usize),
                outcome: Ok(()),
            }];
            self.array.read(&mut alone);
            let [
                SegmentRead {
                    buffer, outcome, ..
                },
            ] = alone;
            if outcome.is_ok() && verifies(&want.entry, &buffer[range.clone()]) {
                return Ok(buffer);
            }
        }
        self.counters.mismatches.fetch_add(1, Ordering::Relaxed);
        let identity = self.identity(want);
        let mut accept = |bytes: &[u8]| {
            let stored = &bytes[range.clone()];
            verifies(&want.entry, stored)
                && identity
                    .as_ref()
                    .is_none_or(|(hash, logical)| is_chunk(&want.entry, stored, hash, *logical))
        };
        let found = self
            .array
            .alternatives(&want.placement, start, end - start, &mut accept);
        let damaged = |source| ReadError::Damaged {
            segment,
            position,
            stored,
            source,
        };
        match found {
            Ok(Some(buffer)) => {
                self.counters.mended.fetch_add(1, Ordering::Relaxed);
                // R7: only the bytes that were verified. The rest of the
                // blocks may be another chunk's, whose good copy is the one
                // that is on the members now.
                let bytes = &buffer[range.clone()];
                match self
                    .array
                    .rewrite_verified(&want.placement, position, bytes)
                {
                    Ok(()) => {
                        tracing::warn!(segment = segment.0, position, stored, "mended a chunk");
                    }
                    Err(error) => {
                        tracing::warn!(segment = segment.0, position, %error, "cannot mend");
                    }
                }
                Ok(buffer)
            }
            Ok(None) => Err(damaged(failed)),
            Err(error) => Err(damaged(Some(error))),
        }
    }

    #[cfg(test)]
    pub(super) fn recover_for_test(&self, want: &Want) -> Result<AlignedBuf, ReadError> {
        self.recover(want, None)
    }

    /// The fingerprint and length of a chunk, where its segment's summary has
    /// them.
    fn identity(&self, want: &Want) -> Option<(Fingerprint, u32)> {
        let segment = want.entry.segment;
        let facts = self.directory.facts(segment)?;
        if facts.generation != want.generation {
            return None;
        }
        let place = facts.summary?;
        let id = SummaryId {
            pool: self.pool,
            segment,
            generation: want.generation,
        };
        let request = SummaryRequest {
            id,
            first: 0,
            count: place.blocks,
            place,
        };
        let blocks = load(self.array.as_ref(), &[request]);
        let record = blocks
            .iter()
            .flatten()
            .flatten()
            .flat_map(|block| &block.records)
            .find(|record| record.entry == want.entry)?;
        Some((record.fingerprint?, record.logical))
    }
}

/// Where a chunk is in a buffer that begins at `start` of its segment.
fn within(entry: &Entry, start: u32) -> std::ops::Range<usize> {
    let at = (entry.position - start) as usize;
    at..at + entry.stored as usize
}

fn verifies(entry: &Entry, stored: &[u8]) -> bool {
    crc32c::crc32c(stored) == entry.checksum
}

fn is_chunk(entry: &Entry, stored: &[u8], hash: &Fingerprint, logical: u32) -> bool {
    let mut chunk = vec![0; logical as usize];
    decompress(stored, entry.kind, &mut chunk).is_ok() && fingerprint(&chunk) == *hash
}
