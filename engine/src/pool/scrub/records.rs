//! What a segment holds: from its summary, from memory while it is open, and,
//! where there is no summary, from whoever names it.

use std::collections::{BTreeMap, HashMap, HashSet};

use tessera_dedup::{
    Entry, Owner, SummaryRecord,
    segment::{SegmentRecord, SegmentState},
};
use tessera_raid::SegmentId;

use crate::{
    error::EngineError,
    map::{PageOwner, Pointer, Visit, Walker},
    pool::{CheckpointKind, engine::Engine, pages::Pages, roots::Visited},
};

/// Pages that a walk reads between two looks at whether the pool goes on.
const PAGES_PER_STEP: usize = 256;

/// What the trees name in segments that no summary describes, by place.
#[derive(Debug, Default)]
pub(crate) struct Undescribed {
    by_segment: HashMap<SegmentId, BTreeMap<u32, SummaryRecord>>,
}

impl Undescribed {
    pub(super) fn records(&self, segment: SegmentId) -> Vec<SummaryRecord> {
        let found = self.by_segment.get(&segment);
        found.map_or_else(Vec::new, |of| of.values().copied().collect())
    }

    fn note(&mut self, entry: Entry) {
        if let Some(of) = self.by_segment.get_mut(&entry.segment) {
            of.insert(
                entry.position,
                SummaryRecord {
                    fingerprint: None,
                    entry,
                    logical: entry.stored,
                    owner: Owner::default(),
                },
            );
        }
    }
}

impl Engine {
    /// Walks all trees for what they name in segments that no readable summary
    /// describes: after a crash those that were open are such.
    pub(super) fn undescribed(&self) -> Result<Undescribed, EngineError> {
        let open: HashSet<SegmentId> = {
            let state = self.state.lock();
            let positions = state.appender.positions();
            positions.iter().map(|position| position.segment).collect()
        };
        let lacking: Vec<SegmentId> = self
            .table
            .live()
            .into_iter()
            .filter(|(id, record)| {
                !open.contains(id)
                    && (record.summary.blocks == 0 || self.read_summary(*id, record).is_none())
            })
            .map(|(id, _)| id)
            .collect();
        let mut found = Undescribed::default();
        if lacking.is_empty() {
            return Ok(found);
        }
        for id in lacking {
            found.by_segment.insert(id, BTreeMap::new());
        }
        self.checkpoint_now(CheckpointKind::Normal)?;
        // Reclaim frees under this lock only: the roots' segments stay.
        let _no_reclaim = self.reclaim.lock();
        let roots = self.roots();
        if let Some(root) = &roots.pointer {
            found.note(root.entry);
        }
        let pages = Pages(&self.reader);
        let mut visited = Visited::default();
        for root in roots.all() {
            let mut walker = Walker::new(root.tree);
            let mut enter = |pointer: &Pointer, _: PageOwner| visited.enter(pointer);
            let mut visit = |visit: Visit<'_>| match visit {
                Visit::Page { pointer, .. } => found.note(pointer.entry),
                Visit::Entry { entry, .. } => found.note(entry),
                Visit::Lost { .. } | Visit::Record { .. } => {}
            };
            loop {
                self.check_usable()?;
                match walker.step_if(&pages, PAGES_PER_STEP, &mut enter, &mut visit) {
                    Ok(true) => break,
                    Ok(false) => {}
                    // Named as a loss when its own segment's turn comes.
                    Err(error) => tracing::warn!(%error, "A scrub passes over a damaged page"),
                }
            }
        }
        Ok(found)
    }

    /// The records of the stream's open segment, if it is this one.
    pub(super) fn open_records(
        &self,
        id: SegmentId,
        record: &SegmentRecord,
    ) -> Option<Vec<SummaryRecord>> {
        if record.state != SegmentState::Open {
            return None;
        }
        let summary = self
            .state
            .lock()
            .appender
            .partial_summary(record.stream()?)?;
        let same = summary.segment == id && summary.generation == record.generation;
        same.then_some(summary.records)
    }
}
