//! The record of a segment, as the segment table is persisted.

use tessera_raid::{
    LayoutId, SegmentId, SlotIndex,
    layout::{Placement, Slots},
};

use crate::Generation;

/// Bytes of an encoded record.
pub const SEGMENT_RECORD_BYTES: usize = 64;

/// What a segment is used for. Separate streams keep data of different
/// lifetimes apart, so that segments die whole.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[repr(u8)]
pub enum Stream {
    /// Chunks written by clients.
    Data = 0,
    /// Pages of trees and summaries of segments that are not full.
    Map = 1,
}

impl Stream {
    /// Every stream, in order.
    pub const ALL: [Stream; 2] = [Stream::Data, Stream::Map];

    /// The stream's position in [`Stream::ALL`].
    pub fn index(self) -> usize {
        match self {
            Stream::Data => 0,
            Stream::Map => 1,
        }
    }

    fn from_code(code: u8) -> Option<Self> {
        Self::ALL.into_iter().find(|stream| *stream as u8 == code)
    }
}

/// Where a segment is in its life.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
#[repr(u8)]
pub enum SegmentState {
    /// Allocatable. Encoded as the all-zero record.
    #[default]
    Free = 0,
    /// Being filled.
    Open = 1,
    /// Never written again.
    Sealed = 2,
    /// Holds nothing live; waits for checkpoints and operations in flight.
    Released = 3,
}

/// Where a segment's summary is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct SummaryExtent {
    /// The segment that holds the summary: itself, or one of the map stream.
    pub segment: SegmentId,
    /// First byte in that segment's data space.
    pub offset: u32,
    /// Length in 4 KiB blocks; 0: there is no summary.
    pub blocks: u16,
}

/// One segment as the table tree stores it.
///
/// ```text
///   0  generation                                   u64
///   8  state u8 | stream u8 | layout u16 | slot u32
///  16  closed bytes u32      | summary segment u32
///  24  summary offset u32    | summary blocks u16 | slots form u8 (0: equal) | 0
///  32  chunks u32            | stored bytes u32
///  40  logical bytes                                u64
///  48  sequence at opening                          u64
///  56  sealed at: the commit that recorded the seal  u64
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct SegmentRecord {
    /// Never repeats; 0 when free.
    pub generation: Generation,
    /// Where it is in its life.
    pub state: SegmentState,
    /// What it is used for; meaningless when free.
    pub stream: u8,
    /// The layout its stripes have.
    pub layout: LayoutId,
    /// The slot it has on every member of the layout.
    pub slot: SlotIndex,
    /// Bytes of its data space that lie in closed stripes.
    pub closed_bytes: u32,
    /// Where its summary is.
    pub summary: SummaryExtent,
    /// Chunks (or pages) it holds, dead ones included.
    pub chunks: u32,
    /// Their stored bytes.
    pub stored_bytes: u32,
    /// Their logical bytes.
    pub logical_bytes: u64,
    /// The write sequence when it was opened.
    pub opened_sequence: u64,
    /// The number of the array's commit that first recorded the seal; 0 before
    /// that. A member that knew this commit has all of the segment (re-add).
    pub sealed_at: u64,
}

impl SegmentRecord {
    /// Where its stripes are.
    pub fn placement(&self) -> Placement {
        Placement {
            layout: self.layout,
            slots: Slots::Equal(self.slot),
        }
    }

    /// The 64 bytes as stored.
    pub fn encode(&self) -> [u8; SEGMENT_RECORD_BYTES] {
        let mut bytes = [0; SEGMENT_RECORD_BYTES];
        if self.state == SegmentState::Free {
            return bytes;
        }
        let mut put = |at: usize, field: &[u8]| bytes[at..at + field.len()].copy_from_slice(field);
        put(0, &self.generation.0.to_le_bytes());
        put(8, &[self.state as u8, self.stream]);
        put(10, &self.layout.0.to_le_bytes());
        put(12, &self.slot.0.to_le_bytes());
        put(16, &self.closed_bytes.to_le_bytes());
        put(20, &self.summary.segment.0.to_le_bytes());
        put(24, &self.summary.offset.to_le_bytes());
        put(28, &self.summary.blocks.to_le_bytes());
        put(32, &self.chunks.to_le_bytes());
        put(36, &self.stored_bytes.to_le_bytes());
        put(40, &self.logical_bytes.to_le_bytes());
        put(48, &self.opened_sequence.to_le_bytes());
        put(56, &self.sealed_at.to_le_bytes());
        bytes
    }

    /// Decodes a record; `None` when no encoder can have made it.
    pub fn decode(bytes: &[u8; SEGMENT_RECORD_BYTES]) -> Option<Self> {
        if bytes.iter().all(|byte| *byte == 0) {
            return Some(Self::default());
        }
        let u16_at = |at: usize| Some(u16::from_le_bytes(bytes[at..at + 2].try_into().ok()?));
        let u32_at = |at: usize| Some(u32::from_le_bytes(bytes[at..at + 4].try_into().ok()?));
        let u64_at = |at: usize| Some(u64::from_le_bytes(bytes[at..at + 8].try_into().ok()?));
        let record = Self {
            generation: Generation(u64_at(0)?),
            state: match bytes[8] {
                1 => SegmentState::Open,
                2 => SegmentState::Sealed,
                3 => SegmentState::Released,
                _ => return None,
            },
            stream: Stream::from_code(bytes[9])? as u8,
            layout: LayoutId(u16_at(10)?),
            slot: SlotIndex(u32_at(12)?),
            closed_bytes: u32_at(16)?,
            summary: SummaryExtent {
                segment: SegmentId(u32_at(20)?),
                offset: u32_at(24)?,
                blocks: u16_at(28)?,
            },
            chunks: u32_at(32)?,
            stored_bytes: u32_at(36)?,
            logical_bytes: u64_at(40)?,
            opened_sequence: u64_at(48)?,
            sealed_at: u64_at(56)?,
        };
        (record.generation.0 != 0 && bytes[30..32] == [0, 0]).then_some(record)
    }

    /// The stream as a type.
    pub fn stream(&self) -> Option<Stream> {
        Stream::from_code(self.stream)
    }
}
