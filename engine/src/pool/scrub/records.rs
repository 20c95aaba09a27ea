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
    map::Visit,
    pool::{
        CheckpointKind,
        engine::Engine,
        walk::{Found, TreesWalk},
    },
};

/// Summaries that one step reads: some megabytes.
const SUMMARIES_PER_STEP: usize = 16;

fn is_live(record: &SegmentRecord) -> bool {
    matches!(record.state, SegmentState::Open | SegmentState::Sealed)
}

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

/// Finding them, step by step.
#[derive(Debug)]
pub(super) struct Describing {
    /// Segments whose summary is still to be looked for.
    unseen: Vec<SegmentId>,
    segments: usize,
    found: Undescribed,
    walk: Option<TreesWalk>,
}

impl Describing {
    /// How far it is, for people.
    pub(super) fn message(&self) -> String {
        match self.walk {
            None => format!(
                "Reads summaries: {} of {}",
                self.segments - self.unseen.len(),
                self.segments
            ),
            Some(_) => "Looks through all maps for what no summary describes".to_owned(),
        }
    }
}

impl Engine {
    /// Begins to look for what is named in segments that no readable summary
    /// describes: after a crash those that were open are such.
    pub(super) fn begin_describing(&self) -> Describing {
        let open: HashSet<SegmentId> = {
            let state = self.state.lock();
            let positions = state.appender.positions();
            positions.iter().map(|position| position.segment).collect()
        };
        let live = self.table.live().into_iter();
        let unseen: Vec<SegmentId> = live
            .map(|(id, _)| id)
            .filter(|id| !open.contains(id))
            .collect();
        Describing {
            segments: unseen.len(),
            unseen,
            found: Undescribed::default(),
            walk: None,
        }
    }

    /// One step of it; what was found, at the end.
    pub(super) fn describing_step(
        &self,
        describing: &mut Describing,
    ) -> Result<Option<Undescribed>, EngineError> {
        let Describing {
            unseen,
            found,
            walk,
            ..
        } = describing;
        if !unseen.is_empty() {
            let _guard = self.epochs.enter();
            let rest = unseen.len().saturating_sub(SUMMARIES_PER_STEP);
            for id in unseen.drain(rest..) {
                let lacks = |record: &SegmentRecord| {
                    record.summary.blocks == 0 || self.read_summary(id, record).is_none()
                };
                // Freed meanwhile: nothing names it any more.
                let live = self.table.record(id).filter(is_live);
                if live.is_some_and(|record| lacks(&record)) {
                    found.by_segment.insert(id, BTreeMap::new());
                }
            }
            return Ok(None);
        }
        if found.by_segment.is_empty() {
            return Ok(Some(Undescribed::default()));
        }
        let walk = match walk {
            Some(walk) => walk,
            None => {
                self.checkpoint_now(CheckpointKind::Normal)?;
                if let Some(root) = &self.roots().pointer {
                    found.note(root.entry);
                }
                walk.insert(TreesWalk::default())
            }
        };
        let done = self.walk_trees(walk, &mut |_, seen| {
            match seen {
                Found::Visit(Visit::Page { pointer, .. }) => found.note(pointer.entry),
                Found::Visit(Visit::Entry { entry, .. }) => found.note(entry),
                Found::Visit(Visit::Lost { .. } | Visit::Record { .. }) => {}
                // Named as a loss when its own segment's turn comes.
                Found::Damaged(error) => {
                    tracing::warn!(%error, "A scrub passes over a damaged page");
                }
            }
            false
        });
        Ok(done.then(|| std::mem::take(found)))
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
