//! Appending chunks and pages to open segments.
//!
//! ```text
//!   data space of a segment:
//!   |stripe 0       |stripe 1       | ...            |        summary blocks|
//!   |c c c cc c c...|c ccc c c      |                |                      |
//!                    ^ open stripe ^ fill            ^ summary_start(records)
//! ```
//!
//! The appender runs under the engine's append lock and never blocks: stripe
//! buffers are brought along by the caller, closed stripes go to a queue whose
//! length those buffers bound. A chunk lies within one stripe. A closed stripe
//! is never extended or rewritten (R14). Everything put into the queue gets a
//! ticket, in order; when the stripe writer reports a ticket durable, so is
//! everything before it.
//!
//! A segment is sealed when the next chunk and the then necessary summary
//! would no longer fit. The summary's first stripe may be the last data stripe.

use std::sync::Arc;

use crossbeam::channel::Sender;
use tessera_raid::{
    SegmentId,
    device::{AlignedBuf, BLOCK_BYTES},
    layout::Placement,
    sabotage::broken,
};
use uuid::Uuid;

use super::{
    SegmentRecord, SegmentState, SegmentTable, Stream, Stripe, SummaryExtent, UnwrittenStripes,
};
use crate::{Entry, EntryKind, Fingerprint, Generation, Owner, Summary, SummaryRecord};

/// The sizes of segments and stripes, in bytes of data.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct StripeGeometry {
    /// Data one stripe holds.
    pub stripe_bytes: u32,
    /// Data one segment holds, summary included; a multiple of the stripe.
    pub segment_bytes: u32,
}

impl StripeGeometry {
    /// Stripe buffers with which `chunks` chunks of at most `chunk_bytes`
    /// can certainly be appended.
    pub fn stripes_for(&self, chunks: usize, chunk_bytes: usize) -> usize {
        let (stripe, segment) = (self.stripe_bytes as usize, self.segment_bytes as usize);
        // A stripe closes only when the next chunk does not fit,
        let filled = (stripe - chunk_bytes.min(stripe) + BLOCK_BYTES).min(stripe);
        let by_bytes = (chunks * chunk_bytes).div_ceil(filled);
        // or when its segment is sealed: the one that is open, perhaps at once,
        // and further ones after as much as an empty one certainly takes.
        let taken = (segment.saturating_sub(stripe + 2 * BLOCK_BYTES)).max(chunk_bytes);
        let seals = 1 + (chunks * (chunk_bytes + CHUNK_RECORD_BYTES_MAX)).div_ceil(taken);
        // A chunk begins at most one stripe.
        (by_bytes + seals + 1).min(chunks)
    }
}

/// More than a chunk's record takes of its segment's summary.
const CHUNK_RECORD_BYTES_MAX: usize = 128;

/// Something to append.
#[derive(Debug, Clone, Copy)]
pub struct NewChunk<'a> {
    /// How it is stored.
    pub kind: EntryKind,
    /// The stored bytes.
    pub bytes: &'a [u8],
    /// CRC32C of `bytes`.
    pub checksum: u32,
    /// Bytes it stands for.
    pub logical_bytes: u32,
    /// The BLAKE3 of what it stands for, if computed.
    pub fingerprint: Option<Fingerprint>,
    /// What it is written for.
    pub owner: Owner,
}

/// Where an appended chunk went.
#[derive(Debug, Clone, Copy)]
pub struct Appended {
    /// The pointer to it.
    pub entry: Entry,
    /// The segment's whole generation.
    pub generation: Generation,
}

/// A change of a segment that the journal records (data stream only).
#[derive(Debug, Clone, Copy)]
pub enum SegmentEvent {
    /// A segment was opened.
    Opened(SegmentId, SegmentRecord),
    /// A segment was sealed; its summary is in the queue.
    Sealed(SegmentId, SegmentRecord),
}

/// No segment is free.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("No segment is free")]
pub struct OutOfSegments;

/// Counts what was put into the queue; see the module's text.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
pub struct Ticket(pub u64);

/// What the stripe writer gets.
#[derive(Debug)]
pub(super) enum Closed {
    Stripe {
        ticket: Ticket,
        placement: Placement,
        stripe: Arc<Stripe>,
    },
    Summary(SealJob),
}

#[derive(Debug)]
pub(super) struct SealJob {
    pub(super) ticket: Ticket,
    pub(super) placement: Placement,
    pub(super) summary: Arc<Summary>,
    pub(super) extent: SummaryExtent,
    /// The stripe that the summary shares with the last chunks.
    pub(super) shared: Option<Arc<Stripe>>,
}

/// The unwritten end of a stream: what a flush puts into the journal.
#[derive(Debug)]
pub struct Tail {
    /// The open segment.
    pub segment: SegmentId,
    /// Its generation.
    pub generation: Generation,
    /// Where `bytes` lie in the segment.
    pub position: u32,
    /// The bytes.
    pub bytes: Vec<u8>,
}

/// Where a stream stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct StreamPosition {
    /// The stream.
    pub stream: Stream,
    /// Its open segment.
    pub segment: SegmentId,
    /// That segment's generation.
    pub generation: Generation,
    /// Stripes below this byte are closed.
    pub closed_bytes: u32,
}

#[derive(Debug)]
struct OpenSegment {
    id: SegmentId,
    record: SegmentRecord,
    /// Where the next chunk may go.
    fill: u32,
    /// The stripe holding `fill`, once it has a first byte.
    stripe: Option<Arc<Stripe>>,
    /// Bytes below this have been given to the journal or lie in closed stripes.
    journalled: u32,
    records: Vec<SummaryRecord>,
}

/// Generations to issue, below a durable high-water mark (R9).
#[derive(Debug, Clone, Copy)]
pub struct Generations {
    next: u64,
    limit: u64,
}

impl Generations {
    /// Issues `next` and up, staying below `limit`.
    pub fn new(next: u64, limit: u64) -> Self {
        Self { next, limit }
    }

    /// The next generation that will be issued.
    pub fn next(&self) -> u64 {
        self.next
    }

    /// A higher mark has become durable.
    pub fn raise_limit(&mut self, limit: u64) {
        self.limit = self.limit.max(limit);
    }

    fn issue(&mut self) -> Generation {
        assert!(
            self.next < self.limit || broken("R9.high_water"),
            "generations stay below the durable high-water mark (R9)"
        );
        self.next += 1;
        Generation(self.next - 1)
    }
}

/// The open segments of all streams.
#[derive(Debug)]
pub struct Appender {
    pool: Uuid,
    geometry: StripeGeometry,
    table: Arc<SegmentTable>,
    unwritten: Arc<UnwrittenStripes>,
    queue: Sender<Closed>,
    open: [Option<OpenSegment>; Stream::ALL.len()],
    generations: Generations,
    last_ticket: Ticket,
    events: Vec<SegmentEvent>,
}

impl Appender {
    pub(super) fn new(
        pool: Uuid,
        geometry: StripeGeometry,
        table: Arc<SegmentTable>,
        unwritten: Arc<UnwrittenStripes>,
        queue: Sender<Closed>,
        generations: Generations,
    ) -> Self {
        Self {
            pool,
            geometry,
            table,
            unwritten,
            queue,
            open: [None, None],
            generations,
            last_ticket: Ticket(0),
            events: Vec::new(),
        }
    }

    /// Continues a segment that a clean stop left open, at a stripe that was
    /// never written.
    pub fn resume(
        &mut self,
        stream: Stream,
        id: SegmentId,
        record: SegmentRecord,
        records: Vec<SummaryRecord>,
    ) {
        assert_eq!(
            record.closed_bytes % self.geometry.stripe_bytes,
            0,
            "stripes are whole"
        );
        let fill = record.closed_bytes;
        self.open[stream.index()] = Some(OpenSegment {
            id,
            record,
            fill,
            stripe: None,
            journalled: fill,
            records,
        });
    }

    /// The generations still to issue.
    pub fn generations_mut(&mut self) -> &mut Generations {
        &mut self.generations
    }

    /// The newest ticket.
    pub fn last_ticket(&self) -> Ticket {
        self.last_ticket
    }

    /// What happened to data segments since the last call, in order.
    pub fn take_events(&mut self) -> Vec<SegmentEvent> {
        std::mem::take(&mut self.events)
    }

    /// Appends a chunk. `spare` brings at least one stripe buffer for every
    /// stripe that may be begun (see [`StripeGeometry::stripes_for`]).
    ///
    /// # Errors
    /// [`OutOfSegments`]; nothing was appended then.
    pub fn append(
        &mut self,
        stream: Stream,
        chunk: &NewChunk<'_>,
        spare: &mut Vec<AlignedBuf>,
        sequence: u64,
    ) -> Result<Appended, OutOfSegments> {
        let length = u32::try_from(chunk.bytes.len()).expect("a chunk is small");
        assert!(
            length > 0 && length <= self.geometry.stripe_bytes,
            "a chunk fits a stripe"
        );
        let (position, length) = loop {
            if self.open[stream.index()].is_none() {
                self.open_segment(stream, sequence)?;
            }
            let open = self.open[stream.index()].as_ref().expect("opened above");
            let position = self.place(open.fill, chunk.kind, length);
            if position + length <= self.summary_start(open.records.len() + 1) {
                break (position, length);
            }
            assert!(!open.records.is_empty(), "an empty segment takes any chunk");
            self.seal(stream);
        };
        let open = self.open[stream.index()].as_ref().expect("opened above");
        let stripe_index = position / self.geometry.stripe_bytes;
        if open
            .stripe
            .as_ref()
            .is_some_and(|stripe| stripe.index != stripe_index)
        {
            self.close_stripe(stream);
        }
        let stripe_bytes = self.geometry.stripe_bytes;
        let open = self.open[stream.index()].as_mut().expect("opened above");
        let stripe = open.stripe.get_or_insert_with(|| {
            let buffer = spare
                .pop()
                .expect("the caller brings enough stripe buffers (R23)");
            assert_eq!(
                buffer.len(),
                stripe_bytes as usize,
                "stripe buffers are of stripe size"
            );
            let stripe = Arc::new(Stripe::new(
                open.id,
                open.record.generation,
                stripe_index,
                buffer,
            ));
            self.unwritten.insert(&stripe);
            open.fill = stripe_index * stripe_bytes;
            open.journalled = open.fill;
            stripe
        });
        let start = (position % stripe_bytes) as usize;
        let gap = (open.fill % stripe_bytes) as usize;
        if start > gap {
            stripe.clear(gap, start);
        }
        stripe.fill(start, chunk.bytes);
        open.fill = position + length;
        let entry = Entry {
            kind: chunk.kind,
            segment: open.id,
            position,
            stored: length,
            generation: open.record.generation.low(),
            checksum: chunk.checksum,
        };
        open.records.push(SummaryRecord {
            fingerprint: chunk.fingerprint,
            entry,
            logical: chunk.logical_bytes,
            owner: chunk.owner,
        });
        open.record.chunks += 1;
        open.record.stored_bytes += length;
        open.record.logical_bytes += u64::from(chunk.logical_bytes);
        Ok(Appended {
            entry,
            generation: open.record.generation,
        })
    }

    /// Closes the open stripe, padded with zeroes, and puts it into the queue.
    ///
    /// Where the summary would share that stripe, the segment is sealed: a
    /// closed stripe is never extended or rewritten (R14), so the summary
    /// could not be added later.
    pub fn close_stripe(&mut self, stream: Stream) {
        let Some(open) = self.open[stream.index()].as_ref() else {
            return;
        };
        let summary_stripe = self.summary_start(open.records.len()) / self.geometry.stripe_bytes;
        if open
            .stripe
            .as_ref()
            .is_some_and(|stripe| stripe.index >= summary_stripe)
            && !broken("R14.closed_is_closed")
        {
            self.seal(stream);
            return;
        }
        let open = self.open[stream.index()].as_mut().expect("checked above");
        if let Some(stripe) = open.stripe.take() {
            let stripe_bytes = self.geometry.stripe_bytes;
            let end = (stripe.index + 1) * stripe_bytes;
            let filled = open.fill - stripe.index * stripe_bytes;
            stripe.clear(filled as usize, stripe_bytes as usize);
            open.fill = end;
            open.journalled = end;
            open.record.closed_bytes = end;
            let placement = open.record.placement();
            self.last_ticket.0 += 1;
            let closed = Closed::Stripe {
                ticket: self.last_ticket,
                placement,
                stripe,
            };
            self.queue
                .send(closed)
                .expect("the writer lives as long as the appender");
        }
        let (id, record) = (open.id, open.record);
        self.table.update(id, |kept| copy_progress(kept, &record));
    }

    /// Ends the open segment: its summary goes to its end.
    pub fn seal(&mut self, stream: Stream) {
        let Some(open) = self.open[stream.index()].as_ref() else {
            return;
        };
        let start = self.summary_start(open.records.len());
        let first = start / self.geometry.stripe_bytes;
        if open
            .stripe
            .as_ref()
            .is_some_and(|stripe| stripe.index != first)
        {
            self.close_stripe(stream);
        }
        let mut open = self.open[stream.index()].take().expect("checked above");
        let shared = open.stripe.take();
        if let Some(stripe) = &shared {
            let filled = open.fill - stripe.index * self.geometry.stripe_bytes;
            stripe.clear(filled as usize, self.geometry.stripe_bytes as usize);
            open.record.closed_bytes = self.geometry.segment_bytes;
        }
        let blocks = (self.geometry.segment_bytes - start) / BLOCK_BYTES as u32;
        let extent = SummaryExtent {
            segment: open.id,
            offset: start,
            blocks: u16::try_from(blocks).expect("a segment has fewer than 2^12 blocks"),
        };
        open.record.summary = extent;
        open.record.state = SegmentState::Sealed;
        let record = open.record;
        self.table.update(open.id, |kept| {
            copy_progress(kept, &record);
            kept.state = record.state;
            kept.summary = record.summary;
        });
        let summary = Arc::new(Summary {
            pool: self.pool,
            segment: open.id,
            generation: record.generation,
            records: open.records,
        });
        self.last_ticket.0 += 1;
        let placement = record.placement();
        let job = SealJob {
            ticket: self.last_ticket,
            placement,
            summary,
            extent,
            shared,
        };
        self.queue
            .send(Closed::Summary(job))
            .expect("the writer lives as long as the appender");
        if stream == Stream::Data {
            self.events.push(SegmentEvent::Sealed(open.id, record));
        }
    }

    /// Makes sure that the next `blocks` raw blocks go, without a gap but for
    /// stripe ends, to one open segment; seals the present one if need be.
    /// Used for summaries in the map stream, which are read as one extent.
    ///
    /// # Errors
    /// [`OutOfSegments`], or more blocks than a segment can take.
    pub fn reserve_run(&mut self, stream: Stream, blocks: u32) -> Result<(), OutOfSegments> {
        let bytes = blocks * BLOCK_BYTES as u32;
        for _ in 0..2 {
            if let Some(open) = self.open[stream.index()].as_ref() {
                let records = open.records.len() + blocks as usize;
                let start = open.fill.next_multiple_of(BLOCK_BYTES as u32);
                if start + bytes <= self.summary_start(records) {
                    return Ok(());
                }
                if open.records.is_empty() {
                    return Err(OutOfSegments);
                }
                self.seal(stream);
            }
            self.open_segment(stream, 0)?;
        }
        Err(OutOfSegments)
    }

    /// The bytes of the open stripe that no earlier call returned.
    pub fn take_tail(&mut self, stream: Stream) -> Option<Tail> {
        let open = self.open[stream.index()].as_mut()?;
        let stripe = open.stripe.as_ref()?;
        if open.journalled >= open.fill {
            return None;
        }
        if broken("R14.bytes") {
            return None;
        }
        let position = open.journalled;
        let mut bytes = vec![0; (open.fill - position) as usize];
        stripe.copy((position % self.geometry.stripe_bytes) as usize, &mut bytes);
        open.journalled = open.fill;
        Some(Tail {
            segment: open.id,
            generation: open.record.generation,
            position,
            bytes,
        })
    }

    /// Where every stream with an open segment stands.
    pub fn positions(&self) -> Vec<StreamPosition> {
        let position = |stream: &Stream| {
            let open = self.open[stream.index()].as_ref()?;
            Some(StreamPosition {
                stream: *stream,
                segment: open.id,
                generation: open.record.generation,
                closed_bytes: open.record.closed_bytes,
            })
        };
        Stream::ALL.iter().filter_map(position).collect()
    }

    /// The summary so far of a stream's open segment, unless it is empty.
    pub fn partial_summary(&self, stream: Stream) -> Option<Summary> {
        let open = self.open[stream.index()].as_ref()?;
        (!open.records.is_empty()).then(|| Summary {
            pool: self.pool,
            segment: open.id,
            generation: open.record.generation,
            records: open.records.clone(),
        })
    }

    /// The summary of an open segment was written elsewhere.
    pub fn set_partial_summary(&mut self, segment: SegmentId, extent: SummaryExtent) {
        for open in self
            .open
            .iter_mut()
            .flatten()
            .filter(|open| open.id == segment)
        {
            open.record.summary = extent;
        }
    }

    fn open_segment(&mut self, stream: Stream, sequence: u64) -> Result<(), OutOfSegments> {
        // Issue the generation only with a segment in hand; it never repeats.
        if self.table.counts().free == 0 {
            return Err(OutOfSegments);
        }
        let generation = self.generations.issue();
        let (id, record) = self
            .table
            .open(stream, generation, sequence)
            .ok_or(OutOfSegments)?;
        self.open[stream.index()] = Some(OpenSegment {
            id,
            record,
            fill: 0,
            stripe: None,
            journalled: 0,
            records: Vec::new(),
        });
        if stream == Stream::Data {
            self.events.push(SegmentEvent::Opened(id, record));
        }
        Ok(())
    }

    /// Where a chunk goes: aligned as its kind demands, within one stripe.
    fn place(&self, fill: u32, kind: EntryKind, length: u32) -> u32 {
        let stripe = self.geometry.stripe_bytes;
        let position = crate::chunk::place(fill, kind, length);
        if position / stripe == (position + length - 1) / stripe {
            position
        } else {
            position.next_multiple_of(stripe)
        }
    }

    fn summary_start(&self, records: usize) -> u32 {
        let blocks = u32::try_from(crate::summary::blocks_for(records)).expect("few blocks");
        self.geometry
            .segment_bytes
            .saturating_sub(blocks * BLOCK_BYTES as u32)
    }
}

fn copy_progress(kept: &mut SegmentRecord, now: &SegmentRecord) {
    kept.closed_bytes = now.closed_bytes;
    kept.chunks = now.chunks;
    kept.stored_bytes = now.stored_bytes;
    kept.logical_bytes = now.logical_bytes;
}
