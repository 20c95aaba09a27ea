//! How much distinct data the volumes map, and the snapshots besides.
//!
//! Segments also hold chunks that nothing maps any more, so what was appended
//! says little about what is there. A walk over the checkpointed maps counts
//! every stored chunk once; its result stands until the next checkpoint. For
//! volumes too large to be walked while somebody waits, the segments' own
//! totals, dead chunks included, take its place.

use roaring::RoaringTreemap;

use super::{
    engine::Engine,
    pages::Pages,
    roots::{Root, RootKind, Roots, Visited},
};
use crate::{
    error::EngineError,
    map::{PageOwner, Pointer, Visit, Walker},
};

/// Mapped chunks up to which a walk is worth it: about two seconds.
const CHUNKS_MAX: u64 = 32 << 20;

const PAGES_PER_STEP: usize = 256;

/// Pages of snapshots up to which the same holds.
const SNAPSHOT_PAGES_MAX: u64 = CHUNKS_MAX / 256;

/// Distinct chunks that volumes map, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Usage {
    /// Before compression.
    pub(crate) unique_bytes: u64,
    /// After compression, before parity.
    pub(crate) stored_bytes: u64,
    /// What only snapshots map, after compression, before parity.
    pub(crate) snapshot_bytes: u64,
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
                .map(|volume| volume.state.read().view.stored_chunks)
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
            snapshot_bytes: 0,
        }
    }

    /// `None` when a newer checkpoint's frees may have overtaken the walk.
    fn count(&self, roots: &Roots) -> Result<Option<Usage>, EngineError> {
        // A walk over one root needs its segments kept: reclaim frees under
        // this lock only.
        let Some(_no_reclaim) = self.reclaim.try_lock() else {
            return Ok(None);
        };
        let mut count = Count::default();
        for root in roots.of_volumes() {
            self.count_root(root, &mut count)?;
        }
        let mut usage = count.usage;
        count.pages = 0;
        for root in roots.of_snapshots() {
            if count.pages > SNAPSHOT_PAGES_MAX {
                return Ok(None);
            }
            self.count_root(root, &mut count)?;
        }
        usage.snapshot_bytes = count.usage.stored_bytes - usage.stored_bytes;
        Ok(Some(usage))
    }

    fn count_root(&self, root: Root, count: &mut Count) -> Result<(), EngineError> {
        let chunk_bytes = {
            let volumes = self.volumes.read();
            match root.kind {
                RootKind::Table => None,
                RootKind::Volume(id) => volumes.by_id.get(&id).map(|of| of.chunk_bytes),
                RootKind::Snapshot(id) => volumes.snapshots.get(&id).map(|of| of.disk.chunk_bytes),
            }
        };
        let Some(chunk_bytes) = chunk_bytes.map(u64::from) else {
            return Ok(());
        };
        let pages = Pages(&self.reader);
        let Count {
            visited,
            seen,
            usage,
            pages: read,
        } = count;
        let mut enter = |pointer: &Pointer, _: PageOwner| visited.enter(pointer);
        let mut visit = |visit: Visit<'_>| match visit {
            Visit::Page { .. } => *read += 1,
            Visit::Entry { entry, .. } => {
                let place = u64::from(entry.segment.0) << 24 | u64::from(entry.position);
                if seen.insert(place) {
                    usage.unique_bytes += chunk_bytes;
                    usage.stored_bytes += u64::from(entry.stored);
                }
            }
            Visit::Lost { .. } | Visit::Record { .. } => {}
        };
        let mut walker = Walker::new(root.tree);
        while !walker.step_if(&pages, PAGES_PER_STEP, &mut enter, &mut visit)? {}
        Ok(())
    }
}

/// A count under way.
#[derive(Default)]
struct Count {
    visited: Visited,
    /// Places of chunks.
    seen: RoaringTreemap,
    usage: Usage,
    pages: u64,
}
