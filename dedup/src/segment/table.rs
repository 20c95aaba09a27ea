//! The segment table: the state, generation and placement of every segment.
//!
//! ```text
//!            open              seal               release
//!   Free ----------> Open ----------> Sealed ----------------> Released
//!    ^                                                             |
//!    |   c+1 durable, every operation begun                        | persisted
//!    |   before the release has ended, punched                     | by c
//!    +------------------------- Clearing <-------------------------+
//!                          (Free in checkpoint c+1)
//! ```
//!
//! * A segment freed by checkpoint *c* is reusable once *c + 1* is durable, so
//!   the root before *c* stays whole (R12).
//! * It is neither punched nor reused while any operation begun before its
//!   release is in flight; the caller proves that with epochs (R9).
//! * A frozen segment serves reads but no dedup hit may land there (R8, R20).
//!
//! The table lives in memory and is persisted, record by record, as a tree of
//! 64-byte records; [`SegmentTable::take_dirty`] yields what a checkpoint has
//! to write. A record is written whole, so there is no order within it.

use std::collections::BTreeSet;

use parking_lot::RwLock;
use tessera_raid::{LayoutId, SegmentId, SlotIndex, layout::Placement, sabotage::broken};

use super::record::{SEGMENT_RECORD_BYTES, SegmentRecord, SegmentState, Stream};
use crate::{Generation, SegmentDirectory, SegmentFacts, SummaryPlace};

/// How many segments are in each state.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct TableCounts {
    /// Allocatable now.
    pub free: u32,
    /// Being filled.
    pub open: u32,
    /// Full.
    pub sealed: u32,
    /// Released and not yet allocatable.
    pub releasing: u32,
    /// Logical bytes of the chunks of the data stream's segments.
    pub logical_bytes: u64,
    /// Their stored bytes.
    pub stored_bytes: u64,
}

#[derive(Debug, Clone, Copy, Default)]
struct Slot {
    record: SegmentRecord,
    frozen: bool,
    /// The summary is durable where the record says.
    summary_readable: bool,
    phase: ReleasePhase,
    /// The epoch in which it was released.
    epoch: u64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
enum ReleasePhase {
    #[default]
    None,
    /// Released; not yet in a durable checkpoint.
    Fresh,
    /// The checkpoint being written says Released.
    Persisting,
    /// A durable checkpoint says Released.
    Persisted,
    /// The checkpoint being written says Free.
    Clearing,
    /// A durable checkpoint says Free; may be punched once operations ended.
    Cleared,
    /// Being punched by whoever took it from [`SegmentTable::take_punchable`].
    Punching,
}

#[derive(Debug)]
struct Inner {
    slots: Vec<Slot>,
    cursor: usize,
    dirty: BTreeSet<u32>,
    /// The commit that the records taken next will be part of.
    commit: u64,
    counts: TableCounts,
}

/// The table. Changed under the engine's append lock, read by everyone.
#[derive(Debug)]
pub struct SegmentTable {
    inner: RwLock<Inner>,
    layout: LayoutId,
}

impl SegmentTable {
    /// A table of `count` free segments whose new segments get `layout`.
    pub fn new(count: u32, layout: LayoutId) -> Self {
        let slots = vec![Slot::default(); usize::try_from(count).expect("a segment count fits")];
        let counts = TableCounts {
            free: count,
            ..TableCounts::default()
        };
        Self {
            inner: RwLock::new(Inner {
                slots,
                cursor: 0,
                dirty: BTreeSet::new(),
                commit: 0,
                counts,
            }),
            layout,
        }
    }

    /// Segments there are, in any state.
    pub fn len(&self) -> u32 {
        u32::try_from(self.inner.read().slots.len()).expect("made from a u32")
    }

    /// True when the pool has no room for a single segment.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Puts a record that was read from a checkpoint or the journal in place,
    /// without marking it dirty. False when the segment does not exist.
    pub fn load(&self, segment: SegmentId, record: SegmentRecord) -> bool {
        let mut inner = self.inner.write();
        let phase = match record.state {
            SegmentState::Released => ReleasePhase::Persisted,
            _ => ReleasePhase::None,
        };
        let readable = record.summary.blocks > 0;
        let Some(slot) = inner.slots.get_mut(index(segment)) else {
            return false;
        };
        let slot = std::mem::replace(
            slot,
            Slot {
                record,
                phase,
                summary_readable: readable,
                ..Slot::default()
            },
        );
        inner.uncount(&slot);
        inner.count(segment);
        true
    }

    /// Takes a free segment for `stream`. `None` when there is none.
    pub fn open(
        &self,
        stream: Stream,
        generation: Generation,
        sequence: u64,
    ) -> Option<(SegmentId, SegmentRecord)> {
        let mut inner = self.inner.write();
        let total = inner.slots.len();
        let found = (0..total)
            .map(|step| (inner.cursor + step) % total)
            .find(|at| inner.slots[*at].is_free())?;
        inner.cursor = (found + 1) % total;
        let number = u32::try_from(found).expect("made from a u32");
        let record = SegmentRecord {
            generation,
            state: SegmentState::Open,
            stream: stream as u8,
            layout: self.layout,
            slot: SlotIndex(number),
            opened_sequence: sequence,
            ..SegmentRecord::default()
        };
        let segment = SegmentId(number);
        inner.change(segment, |slot| {
            *slot = Slot {
                record,
                ..Slot::default()
            }
        });
        Some((segment, record))
    }

    /// The record as it is now.
    pub fn record(&self, segment: SegmentId) -> Option<SegmentRecord> {
        self.inner
            .read()
            .slots
            .get(index(segment))
            .map(|slot| slot.record)
    }

    /// Changes the record of a live segment and marks it dirty.
    pub fn update(&self, segment: SegmentId, change: impl FnOnce(&mut SegmentRecord)) {
        self.inner
            .write()
            .change(segment, |slot| change(&mut slot.record));
    }

    /// Says that the summary can be read back from where the record points.
    pub fn summary_is_readable(&self, segment: SegmentId, generation: Generation) {
        let mut inner = self.inner.write();
        if let Some(slot) = inner.slots.get_mut(index(segment))
            && slot.record.generation == generation
        {
            slot.summary_readable = true;
        }
    }

    /// True when a dedup hit may name this segment (R8).
    pub fn accepts_hits(&self, segment: SegmentId, generation: Generation) -> bool {
        self.inner
            .read()
            .slots
            .get(index(segment))
            .is_some_and(|slot| {
                slot.is_live() && !slot.frozen && slot.record.generation == generation
            })
    }

    /// Freezes the given segments: no new hit may land there (R20).
    pub fn freeze(&self, segments: &[SegmentId]) {
        let mut inner = self.inner.write();
        if broken("R20.freeze") {
            return;
        }
        for segment in segments {
            inner.slots[index(*segment)].frozen = true;
        }
    }

    /// Lifts the freeze of the given segments.
    pub fn thaw(&self, segments: &[SegmentId]) {
        let mut inner = self.inner.write();
        for segment in segments {
            inner.slots[index(*segment)].frozen = false;
        }
    }

    /// Gives a sealed segment up. `epoch` is that of operations which may still
    /// be reading it.
    pub fn release(&self, segment: SegmentId, epoch: u64) {
        self.inner.write().change(segment, |slot| {
            assert_eq!(
                slot.record.state,
                SegmentState::Sealed,
                "only sealed segments are freed"
            );
            slot.record.state = SegmentState::Released;
            slot.phase = ReleasePhase::Fresh;
            slot.epoch = epoch;
        });
    }

    /// The records taken from now on become durable with this commit of the
    /// array, or a later one: seals that no commit has recorded get its number.
    pub fn set_commit(&self, commit: u64) {
        self.inner.write().commit = commit;
    }

    /// The records a checkpoint has to write, encoded; later changes are dirty
    /// again. Moves released segments one step on.
    pub fn take_dirty(&self) -> Vec<(SegmentId, [u8; SEGMENT_RECORD_BYTES])> {
        let mut inner = self.inner.write();
        let mut moved = Vec::new();
        for (number, slot) in inner.slots.iter_mut().enumerate() {
            slot.phase = match slot.phase {
                ReleasePhase::Fresh => ReleasePhase::Persisting,
                ReleasePhase::Persisted => {
                    moved.push(u32::try_from(number).expect("made from a u32"));
                    ReleasePhase::Clearing
                }
                other => other,
            };
        }
        inner.dirty.extend(moved);
        inner.take_dirty_where(|_| true)
    }

    /// Like [`Self::take_dirty`] for segments of one stream, without moving
    /// released segments on: what a checkpoint opened while it ran.
    pub fn take_dirty_of(&self, stream: Stream) -> Vec<(SegmentId, [u8; SEGMENT_RECORD_BYTES])> {
        self.inner
            .write()
            .take_dirty_where(|slot| slot.record.stream == stream as u8 && slot.is_live())
    }

    /// The checkpoint whose records were taken last is durable.
    pub fn checkpoint_is_durable(&self) {
        for slot in &mut self.inner.write().slots {
            slot.phase = match slot.phase {
                ReleasePhase::Persisting if broken("R12.reuse") => ReleasePhase::Cleared,
                ReleasePhase::Persisting => ReleasePhase::Persisted,
                ReleasePhase::Clearing => ReleasePhase::Cleared,
                other => other,
            };
        }
    }

    /// The checkpoint whose records were taken last was given up.
    pub fn checkpoint_failed(&self) {
        for slot in &mut self.inner.write().slots {
            slot.phase = match slot.phase {
                ReleasePhase::Persisting => ReleasePhase::Fresh,
                ReleasePhase::Clearing => ReleasePhase::Persisted,
                other => other,
            };
        }
    }

    /// Has the records of these segments written by the next checkpoint.
    pub fn mark_dirty(&self, segments: &[SegmentId]) {
        self.inner
            .write()
            .dirty
            .extend(segments.iter().map(|segment| segment.0));
    }

    /// True while a checkpoint would bring released segments closer to reuse.
    pub fn wants_checkpoint(&self) -> bool {
        self.inner
            .read()
            .slots
            .iter()
            .any(|slot| matches!(slot.phase, ReleasePhase::Fresh | ReleasePhase::Persisted))
    }

    /// True while segments will be free without another checkpoint: once the
    /// operations that may read them have ended, and they have been punched.
    pub fn awaits_readers(&self) -> bool {
        self.inner
            .read()
            .slots
            .iter()
            .any(|slot| matches!(slot.phase, ReleasePhase::Cleared | ReleasePhase::Punching))
    }

    /// Takes the segments that may be punched now: cleared, and
    /// `quiesced(epoch)` says that every operation begun before their release
    /// has ended. Each goes to one caller, who punches it and then calls
    /// [`Self::make_free`]: a second one could still be punching when the
    /// segment is in use again (R9).
    pub fn take_punchable(&self, quiesced: impl Fn(u64) -> bool) -> Vec<(SegmentId, Placement)> {
        let mut inner = self.inner.write();
        let mut taken = Vec::new();
        for (number, slot) in (0u32..).zip(&mut inner.slots) {
            let ended = quiesced(slot.epoch) || broken("R9.epochs");
            if slot.phase == ReleasePhase::Cleared && ended {
                slot.phase = ReleasePhase::Punching;
                taken.push((SegmentId(number), slot.record.placement()));
            }
        }
        taken
    }

    /// Makes a segment from [`Self::take_punchable`] allocatable.
    pub fn make_free(&self, segment: SegmentId) {
        let mut inner = self.inner.write();
        let was = inner.slots[index(segment)];
        assert_eq!(
            was.phase,
            ReleasePhase::Punching,
            "only punched segments become free"
        );
        inner.uncount(&was);
        inner.slots[index(segment)] = Slot::default();
        inner.count(segment);
    }

    /// Segments by state, and the bytes they hold.
    pub fn counts(&self) -> TableCounts {
        self.inner.read().counts
    }

    /// Every segment that is not free, with its record.
    pub fn live(&self) -> Vec<(SegmentId, SegmentRecord)> {
        let inner = self.inner.read();
        let used = inner
            .slots
            .iter()
            .enumerate()
            .filter(|(_, slot)| slot.is_live());
        used.map(|(number, slot)| {
            (
                SegmentId(u32::try_from(number).expect("made from a u32")),
                slot.record,
            )
        })
        .collect()
    }
}

impl SegmentDirectory for SegmentTable {
    fn facts(&self, segment: SegmentId) -> Option<SegmentFacts> {
        let inner = self.inner.read();
        let slot = inner.slots.get(index(segment))?;
        // A released segment still serves reads begun before its release.
        if slot.record.state == SegmentState::Free {
            return None;
        }
        let extent = slot.record.summary;
        let holder = inner.slots.get(index(extent.segment));
        let summary = (slot.summary_readable && extent.blocks > 0)
            .then_some(holder)
            .flatten()
            .map(|holder| SummaryPlace {
                segment: extent.segment,
                placement: holder.record.placement(),
                offset: extent.offset,
                blocks: u32::from(extent.blocks),
            });
        Some(SegmentFacts {
            generation: slot.record.generation,
            placement: slot.record.placement(),
            frozen: slot.frozen || !slot.is_live(),
            summary,
        })
    }
}

impl Slot {
    fn is_free(&self) -> bool {
        self.record.state == SegmentState::Free && self.phase == ReleasePhase::None
    }

    /// Logical and stored bytes, of live data segments only.
    fn data_bytes(&self) -> (u64, u64) {
        if self.is_live() && self.record.stream == Stream::Data as u8 {
            (
                self.record.logical_bytes,
                u64::from(self.record.stored_bytes),
            )
        } else {
            (0, 0)
        }
    }

    fn is_live(&self) -> bool {
        matches!(self.record.state, SegmentState::Open | SegmentState::Sealed)
    }
}

impl TableCounts {
    fn of(&mut self, slot: &Slot) -> &mut u32 {
        match slot.record.state {
            SegmentState::Free => &mut self.free,
            SegmentState::Open => &mut self.open,
            SegmentState::Sealed => &mut self.sealed,
            SegmentState::Released => &mut self.releasing,
        }
    }
}

impl Inner {
    fn change(&mut self, segment: SegmentId, change: impl FnOnce(&mut Slot)) {
        let was = self.slots[index(segment)];
        self.uncount(&was);
        change(&mut self.slots[index(segment)]);
        self.count(segment);
        self.dirty.insert(segment.0);
    }

    fn count(&mut self, segment: SegmentId) {
        let slot = self.slots[index(segment)];
        let (logical, stored) = slot.data_bytes();
        *self.counts.of(&slot) += 1;
        self.counts.logical_bytes += logical;
        self.counts.stored_bytes += stored;
    }

    fn uncount(&mut self, slot: &Slot) {
        let (logical, stored) = slot.data_bytes();
        *self.counts.of(slot) -= 1;
        self.counts.logical_bytes -= logical;
        self.counts.stored_bytes -= stored;
    }

    fn take_dirty_where(
        &mut self,
        wanted: impl Fn(&Slot) -> bool,
    ) -> Vec<(SegmentId, [u8; SEGMENT_RECORD_BYTES])> {
        let numbers: Vec<u32> = self
            .dirty
            .iter()
            .copied()
            .filter(|number| wanted(&self.slots[index(SegmentId(*number))]))
            .collect();
        for number in &numbers {
            let record = &mut self.slots[index(SegmentId(*number))].record;
            if record.state == SegmentState::Sealed && record.sealed_at == 0 {
                record.sealed_at = self.commit;
            }
        }
        let encode = |number: u32| {
            let slot = &self.slots[index(SegmentId(number))];
            let record = match slot.phase {
                ReleasePhase::Clearing | ReleasePhase::Cleared | ReleasePhase::Punching => {
                    SegmentRecord::default()
                }
                _ => slot.record,
            };
            (SegmentId(number), record.encode())
        };
        let records = numbers.iter().map(|number| encode(*number)).collect();
        for number in numbers {
            self.dirty.remove(&number);
        }
        records
    }
}

fn index(segment: SegmentId) -> usize {
    usize::try_from(segment.0).expect("a segment number fits")
}
