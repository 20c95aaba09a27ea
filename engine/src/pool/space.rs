//! Space: what a write may take, and what is kept back (R22).
//!
//! ```text
//!   free segments
//!   |<- reserve: one checkpoint, ->|<- map pages that  ->|<- admitted, not ->|<- free  ->
//!   |   one reclaim step, recovery |   changes will need |   yet appended    |   for data
//! ```
//! Acknowledging a write must never lead to a checkpoint that finds no room:
//! so a write is admitted with its worst-case data and its worst-case share of
//! the next checkpoint's pages. When that does not fit, the writer first takes
//! a checkpoint and runs reclaim passes itself, and moves chunks together; only
//! when that wins nothing does the client see "no space". Discards, zeroing,
//! flushes and reads are never stopped.

use std::sync::atomic::Ordering;

use tessera_dedup::summary;
use tessera_raid::{device::BLOCK_BYTES, sabotage::broken};

use super::{CheckpointKind, engine::Engine, snapshots::UNFOLDED_MAX};
use crate::{
    api::{Warning, WarningKind},
    error::{EngineError, ErrorKind},
};

/// Pages per change run besides its leaves: one for each inner level.
const INNER_PAGES: u64 = 3;

/// A share of the space, given back when dropped.
pub(crate) struct Admission<'a> {
    engine: &'a Engine,
    bytes: u64,
}

impl Drop for Admission<'_> {
    fn drop(&mut self) {
        self.engine
            .in_flight_bytes
            .fetch_sub(self.bytes, Ordering::Relaxed);
    }
}

/// Map pages that changing this many consecutive chunks may need.
pub(crate) fn pages_for(chunks: u64) -> u64 {
    chunks.div_ceil(256) + 1 + INNER_PAGES
}

/// More would let reclaim win no more at once than it can remember.
const MOVING_SEGMENTS_MAX: u64 = 256;

/// Map pages that a fill may need: the leaves at its two ends, and above.
pub(crate) const FILL_PAGES: u64 = 2 * (2 + INNER_PAGES);

impl Engine {
    /// Admits a write of `bytes` in `chunks` chunks that lie together, or says
    /// that the pool is full. Must be called without an epoch guard: it may
    /// wait for operations in flight to end.
    pub(crate) fn admit(&self, bytes: u64, chunks: u64) -> Result<Admission<'_>, EngineError> {
        let needed = bytes + pages_for(chunks) * BLOCK_BYTES as u64;
        self.in_flight_bytes.fetch_add(needed, Ordering::Relaxed);
        let admission = Admission {
            engine: self,
            bytes: needed,
        };
        if self.available_bytes().is_some() {
            return Ok(admission);
        }
        self.make_room()?;
        Ok(admission)
    }

    /// Reclaims until the admitted writes fit.
    fn make_room(&self) -> Result<(), EngineError> {
        loop {
            self.check_usable()?;
            if self.available_bytes().is_some() {
                return Ok(());
            }
            // A checkpoint turns the worst case of the layers into the truth.
            if self.state.lock().active_pages > 0 {
                self.checkpoint_now(CheckpointKind::Normal)?;
                if self.available_bytes().is_some() {
                    return Ok(());
                }
            }
            if !self.reclaim_pass()?
                && self.available_bytes().is_none()
                && !self.empty_some_segments()?
            {
                return Err(EngineError::new(ErrorKind::NoSpace, "The pool is full"));
            }
        }
    }

    /// Makes sure that the next checkpoint can hold one more fill although the
    /// pool may be full: fills may use half the reserve, and those that can
    /// empty whole segments three quarters, so that small ones never keep the
    /// one out that gives everything back. When even a checkpoint and a reclaim
    /// pass leave no room for pages, the fill cannot be recorded.
    pub(crate) fn make_room_for_fill(&self, bytes: u64) -> Result<(), EngineError> {
        let share = if bytes >= u64::from(self.geometry.segment_bytes) {
            4
        } else {
            2
        };
        let fits = || {
            // With those of the fill that asks: otherwise one fill after the
            // other would find that nothing fits into nothing, and checkpoints
            // would eat the half that reclaim needs.
            let pages = FILL_PAGES + {
                let state = self.state.lock();
                state.active_pages + state.frozen_pages
            };
            let free = u64::from(self.table.counts().free);
            let kept = self.reserve_segments().div_ceil(share);
            pages * BLOCK_BYTES as u64 <= free.saturating_sub(kept) * self.usable_segment_bytes()
        };
        if fits() {
            return Ok(());
        }
        // Only where it turns a worst case into the truth: a checkpoint takes
        // pages itself, and refused fills must not use the reserve up.
        if self.state.lock().active_pages > 0 {
            self.checkpoint_now(CheckpointKind::Normal)?;
        }
        if fits() || self.reclaim_pass()? && fits() {
            return Ok(());
        }
        Err(EngineError::new(
            ErrorKind::NoSpace,
            "The pool has no room left for map pages",
        ))
    }

    /// Bytes of unique data that can still be admitted; `None` when what has
    /// been admitted already exceeds what there is.
    pub(crate) fn available_bytes(&self) -> Option<u64> {
        let segments = u64::from(self.table.counts().free);
        let pages = {
            let state = self.state.lock();
            state.active_pages + state.frozen_pages
        };
        let taken = self.reserve_segments() * self.usable_segment_bytes()
            + pages * BLOCK_BYTES as u64
            + self.in_flight_bytes.load(Ordering::Relaxed);
        (segments * self.usable_segment_bytes()).checked_sub(taken)
    }

    /// Data of a segment that is left for chunks when every chunk is a raw
    /// 4 KiB one: what the summary takes is known then.
    pub(crate) fn usable_segment_bytes(&self) -> u64 {
        let bytes = u64::from(self.geometry.segment_bytes);
        let chunks = self.geometry.segment_bytes as usize / BLOCK_BYTES;
        bytes - (summary::blocks_for(chunks) * BLOCK_BYTES) as u64
    }

    /// Segments that only checkpoints, reclaim and recovery may use: one each
    /// for the streams to move to, and twice what a checkpoint of the segment
    /// table, the catalogue and the partial summaries takes, because a free
    /// needs a checkpoint and its follow-up.
    pub(crate) fn reserve_segments(&self) -> u64 {
        let table_pages = u64::from(self.table.len())
            .div_ceil(64)
            .div_ceil(4)
            .min(4096);
        if broken("R22.reserve") {
            return 0;
        }
        let (volumes, snapshots) = {
            let volumes = self.volumes.read();
            let snapshots = volumes.snapshots.len().min(UNFOLDED_MAX);
            (volumes.by_id.len() as u64, snapshots as u64)
        };
        let summary_pages = summary::blocks_for(self.geometry.segment_bytes as usize / 512) as u64;
        let pages = 2 * (table_pages + 2 * volumes + snapshots + summary_pages + 32);
        let checkpoint = (pages * BLOCK_BYTES as u64).div_ceil(self.usable_segment_bytes());
        4 + checkpoint + self.moving_segments()
    }

    /// Segments that only reclaim may move chunks to: with none it could not
    /// win any.
    pub(crate) fn moving_segments(&self) -> u64 {
        2 + u64::from(self.table.len() / 64).min(MOVING_SEGMENTS_MAX)
    }

    /// True when background reclaim should look for dead segments.
    pub(crate) fn is_low_on_space(&self) -> bool {
        let counts = self.table.counts();
        let total = u64::from(self.table.len());
        u64::from(counts.free) < self.reserve_segments() + total / 4
    }
}

/// Free space must rise this much beyond the mark, in percent of it, before
/// crossing the mark is news again.
const NEWS_PERCENT: u64 = 125;

/// What there is to say of the space.
impl Engine {
    /// What an administrator should know of.
    pub(crate) fn warnings(&self) -> Vec<Warning> {
        let (capacity, free) = self.space();
        let below = self.settings.lock().warn_free(capacity);
        if free > 0 && free >= below {
            return Vec::new();
        }
        let (kind, message) = match free {
            0 => (
                WarningKind::Full,
                "The pool is full: new data is refused. Delete or discard something, or add space"
                    .to_owned(),
            ),
            free => (
                WarningKind::LowSpace,
                format!(
                    "Space is low: {} MiB of unique data ({}%) can still be written, less than {} MiB",
                    free >> 20,
                    free / (capacity / 100).max(1),
                    below >> 20
                ),
            ),
        };
        vec![Warning { kind, message }]
    }

    /// Logs once when space becomes low, and once when it is no longer.
    pub(crate) fn watch_space(&self) {
        let (capacity, free) = self.space();
        let below = self.settings.lock().warn_free(capacity);
        let was_low = self.space_is_low.load(Ordering::Relaxed);
        let enough = free > 0 && free / NEWS_PERCENT * 100 >= below;
        match self.warnings().first() {
            Some(warning) if !was_low => {
                tracing::warn!("{}", warning.message);
                self.space_is_low.store(true, Ordering::Relaxed);
            }
            None if was_low && enough => {
                tracing::info!(free, "Space is no longer low");
                self.space_is_low.store(false, Ordering::Relaxed);
            }
            _ => {}
        }
    }
}
