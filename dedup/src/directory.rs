//! What the chunk store asks about segments: the seam to the segment table.

use std::sync::Arc;

use tessera_raid::{SegmentId, layout::Placement};

use crate::Generation;

/// Where a segment's summary is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SummaryPlace {
    /// The segment that holds the summary: the summarised one once it is
    /// sealed, a map segment before.
    pub segment: SegmentId,
    /// Placement of that segment.
    pub placement: Placement,
    /// First byte of the summary within that segment's data, block-aligned.
    pub offset: u32,
    /// Blocks of 4 KiB.
    pub blocks: u32,
}

/// What is known of a live segment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SegmentFacts {
    /// Its incarnation.
    pub generation: Generation,
    /// Where it lies on the members.
    pub placement: Placement,
    /// Chosen for reclaim: readable, but no hit may land here (R20).
    pub frozen: bool,
    /// Its summary, if one has been written.
    pub summary: Option<SummaryPlace>,
}

/// Answers questions about segments. Called on the data path: it must not
/// block for I/O.
pub trait SegmentDirectory: Send + Sync {
    /// The facts of a live segment; `None` when it is free.
    fn facts(&self, segment: SegmentId) -> Option<SegmentFacts>;
}

impl<T: SegmentDirectory + ?Sized> SegmentDirectory for Arc<T> {
    fn facts(&self, segment: SegmentId) -> Option<SegmentFacts> {
        (**self).facts(segment)
    }
}
