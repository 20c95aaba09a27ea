//! Summaries that a checkpoint puts into the map stream: of the data segment that
//! is being filled, and of sealed segments that have got hashes since.

use std::{collections::BTreeMap, sync::Arc};

use tessera_dedup::{
    Generation, Owner,
    segment::{SegmentRecord, SegmentState, SummaryExtent},
};
use tessera_raid::SegmentId;

use crate::{
    catalogue::SUMMARY_TREE,
    error::EngineError,
    pool::{engine::Engine, pages::MapAppender},
};

impl Engine {
    /// Puts the summary so far of an open segment into the map stream and its
    /// place into the segment's record.
    pub(super) fn write_partial_summary(
        &self,
        sink: &mut MapAppender<'_>,
        summary: &tessera_dedup::Summary,
        segments: &mut BTreeMap<u64, Vec<u8>>,
    ) -> Result<(), EngineError> {
        let owner = Owner {
            tree: SUMMARY_TREE,
            index: 0,
            level: 0,
        };
        let extent = sink.append_run(owner, &tessera_dedup::summary::encode_blocks(summary))?;
        let id = summary.segment;
        // Unless it has been sealed since, with a summary at its own end.
        let lacks_its_own = |record: &SegmentRecord| {
            record.generation == summary.generation
                && (record.state == SegmentState::Open
                    || record.summary.blocks == 0
                    || record.summary.segment != id)
        };
        {
            let mut state = self.state.lock();
            if self
                .table
                .record(id)
                .is_some_and(|record| lacks_its_own(&record))
            {
                state.appender.set_partial_summary(id, extent);
                self.table.update(id, |record| record.summary = extent);
            }
        }
        let captured = segments
            .get(&u64::from(id.0))
            .and_then(|bytes| SegmentRecord::decode(bytes.as_slice().try_into().ok()?));
        if let Some(mut record) = captured.filter(lacks_its_own) {
            record.summary = extent;
            segments.insert(u64::from(id.0), record.encode().to_vec());
        }
        Ok(())
    }

    /// Puts a new summary of a sealed segment into the map stream, and its place
    /// into the record that this checkpoint stores. `None` for a segment that
    /// has been given up.
    pub(super) fn write_new_summary(
        &self,
        sink: &mut MapAppender<'_>,
        summary: &tessera_dedup::Summary,
        segments: &mut BTreeMap<u64, Vec<u8>>,
    ) -> Result<Option<(SegmentId, Generation, SummaryExtent)>, EngineError> {
        let (id, key) = (summary.segment, u64::from(summary.segment.0));
        let captured = segments
            .get(&key)
            .and_then(|bytes| SegmentRecord::decode(bytes.as_slice().try_into().ok()?));
        let record = captured.or_else(|| self.table.record(id));
        let fits = |record: &SegmentRecord| {
            record.generation == summary.generation && record.state == SegmentState::Sealed
        };
        let Some(mut record) = record.filter(fits) else {
            return Ok(None);
        };
        let owner = Owner {
            tree: SUMMARY_TREE,
            index: 0,
            level: 0,
        };
        record.summary = sink.append_run(owner, &tessera_dedup::summary::encode_blocks(summary))?;
        segments.insert(key, record.encode().to_vec());
        Ok(Some((id, summary.generation, record.summary)))
    }

    /// The checkpoint that has them is durable: from now on new summaries are
    /// read, and the index may forget the old ones.
    pub(super) fn point_to_summaries(&self, rehashed: &[(SegmentId, Generation, SummaryExtent)]) {
        for (id, generation, extent) in rehashed {
            self.table.update(*id, |record| {
                if record.generation == *generation && record.state == SegmentState::Sealed {
                    record.summary = *extent;
                }
            });
            self.index.summary_replaced(*id);
        }
    }

    /// A segment that will not be continued has its summary in the map stream:
    /// the index may have it.
    pub(super) fn announce_sealed(&self, summary: tessera_dedup::Summary) {
        let sealed = |record: &SegmentRecord| {
            record.state == SegmentState::Sealed
                && record.generation == summary.generation
                && record.summary.segment != summary.segment
        };
        if self
            .table
            .record(summary.segment)
            .is_some_and(|record| sealed(&record))
        {
            self.table
                .summary_is_readable(summary.segment, summary.generation);
            self.index.segment_sealed(Arc::new(summary));
        }
    }
}
