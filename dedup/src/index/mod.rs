//! The fingerprint index: a hint where a chunk with given contents may be.
//!
//! Public skeleton; bodies follow.
#![allow(unused_variables, missing_docs)]

use std::{path::PathBuf, sync::Arc};

use tessera_raid::{Array, SegmentId};
use uuid::Uuid;

use crate::{Entry, Fingerprint, Generation, SegmentDirectory, summary::Summary};

/// A chunk that may be used in place of writing the same bytes again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Hit {
    /// The pointer to it.
    pub entry: Entry,
    /// Its segment's incarnation.
    pub generation: Generation,
    /// Its length before compression, bytes.
    pub logical: u32,
}

/// How to open an index.
#[derive(Debug, Clone)]
pub struct IndexOptions {
    /// Directory of the database; `None` for one that lives in memory.
    pub dir: Option<PathBuf>,
    /// The pool the index is for. One stamped with another pool is discarded.
    pub pool: Uuid,
    /// What the index may use in all, bytes.
    pub memory_bytes: usize,
}

/// What background work the index still has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum IndexState {
    /// Every sealed segment is covered.
    Ready,
    /// Segments are read in again.
    Rebuilding {
        /// Segments read in.
        done: u64,
        /// Segments to read in all.
        total: u64,
    },
}

/// Why an index cannot be opened even in memory.
#[derive(Debug, thiserror::Error)]
pub enum IndexError {
    /// The budget is below [`IndexOptions::MEMORY_BYTES_MIN`].
    #[error("Index memory of {actual} bytes is below the least of {least}")]
    Memory {
        /// Bytes given.
        actual: usize,
        /// Bytes needed.
        least: usize,
    },
}

impl IndexOptions {
    /// The least memory an index works with.
    pub const MEMORY_BYTES_MIN: usize = 1 << 20;
}

/// See the module.
pub struct FingerprintIndex {}

impl FingerprintIndex {
    pub fn open(options: IndexOptions, array: Arc<Array>) -> Result<Self, IndexError> {
        todo!()
    }
    /// Before the append lock: looks the batch up. `found[i]` is set only when
    /// it was `None` and a hit was verified as R8 says.
    pub fn probe(
        &self,
        fingerprints: &[Fingerprint],
        directory: &dyn SegmentDirectory,
        found: &mut [Option<Hit>],
    ) {
        todo!()
    }
    /// Under the append lock: a chunk appended since the probe. Checked
    /// against the directory, so a hit is live and not frozen.
    pub fn fresh_get(
        &self,
        fingerprint: &Fingerprint,
        directory: &dyn SegmentDirectory,
    ) -> Option<Hit> {
        todo!()
    }
    /// Only once its bytes are in the stripe buffer (R8).
    pub fn fresh_insert(&self, fingerprint: Fingerprint, hit: Hit) {
        todo!()
    }
    /// The segment and its summary are durable.
    pub fn segment_sealed(&self, summary: Arc<Summary>) {
        todo!()
    }
    /// The segment is free: nothing of this generation is offered any more.
    pub fn segment_freed(&self, segment: SegmentId, generation: Generation) {
        todo!()
    }
    /// One piece of background work; true if there may be more at once.
    pub fn step(&self) -> bool {
        todo!()
    }
    /// Writes out everything queued, for a clean stop. Never fails: what
    /// cannot be written is read in again at the next start.
    pub fn flush(&self) {
        todo!()
    }
    /// At open: of all sealed segments, those whose generation is not covered
    /// are read in again by [`Self::rebuild_step`].
    pub fn rebuild_begin(&self, sealed: &mut dyn Iterator<Item = (SegmentId, Generation)>) {
        todo!()
    }
    /// Reads in a few uncovered segments; true while there are more.
    pub fn rebuild_step(&self, directory: &dyn SegmentDirectory) -> bool {
        todo!()
    }
    pub fn entries(&self) -> u64 {
        todo!()
    }
    pub fn state(&self) -> IndexState {
        todo!()
    }
    pub fn memory_bytes(&self) -> usize {
        todo!()
    }
}
