//! How much distinct data the volumes map.
//!
//! Segments also hold chunks that nothing maps any more, so what was appended
//! says little about what is there. A walk over the checkpointed maps counts
//! every stored chunk once; its result stands until the next checkpoint. For
//! volumes too large to be walked while somebody waits, the segments' own
//! totals, dead chunks included, take its place.

use roaring::RoaringTreemap;

use super::{checkpoint::Roots, engine::Engine, pages::Pages};
use crate::{
    error::EngineError,
    map::{Visit, Walker},
};

/// Mapped chunks up to which a walk is worth it: about two seconds.
const CHUNKS_MAX: u64 = 32 << 20;

const PAGES_PER_STEP: usize = 256;

/// Distinct chunks that volumes map, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Usage {
    /// Before compression.
    pub(crate) unique_bytes: u64,
    /// After compression, before parity.
    pub(crate) stored_bytes: u64,
}

/// The newest count and the checkpoint it belongs to.
#[derive(Debug, Default)]
pub(crate) struct Accounting {
    counted: Option<(u64, Usage)>,
}

impl Engine {
    /// Counts, or repeats the count of the same checkpoint.
    pub(crate) fn usage(&self) -> Usage {
        let roots = self.roots();
        let mut accounting = self.accounting.lock();
        if let Some((checkpoint, usage)) = accounting.counted
            && checkpoint == roots.page.checkpoint
        {
            return usage;
        }
        let mapped: u64 = {
            let volumes = self.volumes.read();
            volumes
                .by_id
                .values()
                .map(|volume| volume.state.read().stored_chunks)
                .sum()
        };
        let counted = if mapped <= CHUNKS_MAX {
            self.count(&roots)
        } else {
            Ok(None)
        };
        match counted {
            Ok(Some(usage)) => {
                accounting.counted = Some((roots.page.checkpoint, usage));
                usage
            }
            Ok(None) => self.totals(),
            Err(error) => {
                tracing::warn!(%error, "Distinct chunks cannot be counted");
                self.totals()
            }
        }
    }

    fn totals(&self) -> Usage {
        let counts = self.table.counts();
        Usage {
            unique_bytes: counts.logical_bytes,
            stored_bytes: counts.stored_bytes,
        }
    }

    /// `None` when a newer checkpoint's frees may have overtaken the walk.
    fn count(&self, roots: &Roots) -> Result<Option<Usage>, EngineError> {
        let pages = Pages(&self.reader);
        let mut seen = RoaringTreemap::new();
        let mut usage = Usage::default();
        // A walk over one root needs its segments kept: reclaim frees under
        // this lock only.
        let Some(_no_reclaim) = self.reclaim.try_lock() else {
            return Ok(None);
        };
        for tree in &roots.volumes {
            let chunk_bytes = {
                let volumes = self.volumes.read();
                let Some(volume) = volumes.by_id.get(&tree.id) else {
                    continue;
                };
                u64::from(volume.chunk_bytes)
            };
            let mut walker = Walker::new(*tree);
            let mut visit = |visit: Visit<'_>| {
                if let Visit::Entry { entry, .. } = visit {
                    let place = u64::from(entry.segment.0) << 24 | u64::from(entry.position);
                    if seen.insert(place) {
                        usage.unique_bytes += chunk_bytes;
                        usage.stored_bytes += u64::from(entry.stored);
                    }
                }
            };
            while !walker.step(&pages, PAGES_PER_STEP, &mut visit)? {}
        }
        Ok(Some(usage))
    }
}
