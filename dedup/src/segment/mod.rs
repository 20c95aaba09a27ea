//! Segments: the unit of allocation, writing and reclaim.

mod appender;
mod record;
mod stripe;
pub mod summary;
mod table;
#[cfg(test)]
mod tests;
mod writer;

use std::sync::Arc;

use tessera_raid::Array;

pub use appender::{
    Appended, Appender, Generations, NewChunk, OutOfSegments, SegmentEvent, StreamPosition,
    StripeGeometry, Tail, Ticket,
};
pub use record::{SEGMENT_RECORD_BYTES, SegmentRecord, SegmentState, Stream, SummaryExtent};
pub use stripe::{Stripe, UnwrittenStripes};
pub use table::{SegmentTable, TableCounts};
pub use writer::StripeWriter;

/// Builds an appender and the writer that takes its stripes to the members.
pub fn pipeline(
    array: &Arc<Array>,
    table: &Arc<SegmentTable>,
    generations: Generations,
) -> (Appender, Arc<StripeWriter>, Arc<UnwrittenStripes>) {
    let geometry = StripeGeometry {
        stripe_bytes: array.stripe_data_bytes(),
        segment_bytes: array.segment_data_bytes(),
    };
    // The queue's length is bounded by the stripe buffers its senders hold.
    let (sender, receiver) = crossbeam::channel::unbounded();
    let unwritten = Arc::new(UnwrittenStripes::new(geometry.stripe_bytes));
    let appender = Appender::new(
        array.uuid(),
        geometry,
        Arc::clone(table),
        Arc::clone(&unwritten),
        sender,
        generations,
    );
    let writer = StripeWriter::new(
        Arc::clone(array),
        Arc::clone(&unwritten),
        receiver,
        geometry.stripe_bytes,
    );
    (appender, Arc::new(writer), unwritten)
}
