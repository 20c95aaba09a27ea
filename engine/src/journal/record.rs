//! Records: what a journal batch says happened, in order.
//!
//! ```text
//!   0        1       4         8
//!   | type   | 0 0 0 | length  | body of `length` bytes ...
//! ```
//! Little-endian. Records follow each other without gaps; a body's length is
//! checked against what is left before anything is taken.

use tessera_dedup::{
    ENTRY_BYTES, Entry, EntryKind, Fingerprint, Generation, Owner, SummaryRecord,
    segment::{SEGMENT_RECORD_BYTES, SegmentRecord},
};
use tessera_raid::SegmentId;

use crate::{
    catalogue::{VOLUME_RECORD_BYTES, VolumeRecord},
    snapshot::{SNAPSHOT_RECORD_BYTES, SnapshotRecord},
};

const HEADER_BYTES: usize = 8;

const TYPE_MAP: u8 = 1;
const TYPE_FILL: u8 = 2;
const TYPE_BYTES: u8 = 3;
const TYPE_APPENDED: u8 = 4;
const TYPE_SEGMENT_OPENED: u8 = 5;
const TYPE_SEGMENT_SEALED: u8 = 6;
const TYPE_VOLUME_PUT: u8 = 7;
const TYPE_VOLUME_DELETED: u8 = 8;
const TYPE_SNAPSHOT_TAKEN: u8 = 9;
const TYPE_SNAPSHOT_DELETED: u8 = 10;
const TYPE_ROLLED_BACK: u8 = 11;
const TYPE_CLONED: u8 = 12;

/// One decoded record.
#[derive(Debug, Clone, PartialEq)]
pub enum Record<'a> {
    /// Consecutive chunks of a volume now have these entries.
    Map {
        /// The volume.
        volume: u64,
        /// The first chunk.
        first: u64,
        /// The entries.
        entries: Vec<Entry>,
    },
    /// A range of chunks now is a hole or zeroes.
    Fill {
        /// The volume.
        volume: u64,
        /// The first chunk.
        first: u64,
        /// Chunks.
        count: u64,
        /// [`Entry::HOLE`] or [`Entry::ZERO`].
        entry: Entry,
    },
    /// A verbatim copy of bytes of a stripe that is not closed and synced.
    Bytes {
        /// The segment.
        segment: SegmentId,
        /// Its generation.
        generation: Generation,
        /// Where in the segment.
        position: u32,
        /// The bytes.
        bytes: &'a [u8],
    },
    /// A chunk was appended: what the segment's summary will say of it.
    Appended(SummaryRecord),
    /// A data segment was opened.
    SegmentOpened(SegmentId, SegmentRecord),
    /// A data segment was sealed.
    SegmentSealed(SegmentId, SegmentRecord),
    /// A volume was created or changed.
    VolumePut(Box<VolumeRecord>),
    /// A volume was deleted, and all its snapshots.
    VolumeDeleted(u64),
    /// A snapshot holds what its volume holds at this place in the order. Its
    /// record has no map.
    SnapshotTaken(Box<SnapshotRecord>),
    /// A snapshot was deleted.
    SnapshotDeleted(u64),
    /// A volume holds what its snapshot does, and has its size.
    RolledBack {
        /// The volume.
        volume: u64,
        /// The snapshot.
        snapshot: u64,
    },
    /// A volume was created that holds what a snapshot does. Its record has no
    /// map.
    Cloned {
        /// The new volume.
        record: Box<VolumeRecord>,
        /// The snapshot.
        snapshot: u64,
    },
}

/// Encodes records one after the other.
#[derive(Debug, Default)]
pub struct RecordBuffer {
    bytes: Vec<u8>,
}

impl RecordBuffer {
    /// Bytes encoded so far.
    pub fn len(&self) -> usize {
        self.bytes.len()
    }

    /// True when nothing was encoded.
    pub fn is_empty(&self) -> bool {
        self.bytes.is_empty()
    }

    /// The encoded records.
    pub fn as_slice(&self) -> &[u8] {
        &self.bytes
    }

    /// Moves all records of `newer` behind these.
    pub fn append(&mut self, newer: &mut Self) {
        if self.bytes.is_empty() {
            std::mem::swap(&mut self.bytes, &mut newer.bytes);
        } else {
            self.bytes.append(&mut newer.bytes);
        }
    }

    /// Forgets the records, keeping the memory if it is small.
    pub fn clear(&mut self) {
        self.bytes.clear();
        self.bytes.shrink_to(4 << 20);
    }

    fn begin(&mut self, kind: u8, body: usize) {
        let length = u32::try_from(body).expect("a record is smaller than 4 GiB");
        self.bytes.extend_from_slice(&[kind, 0, 0, 0]);
        self.bytes.extend_from_slice(&length.to_le_bytes());
    }

    fn u64(&mut self, value: u64) {
        self.bytes.extend_from_slice(&value.to_le_bytes());
    }

    fn u32(&mut self, value: u32) {
        self.bytes.extend_from_slice(&value.to_le_bytes());
    }

    /// See [`Record::Map`].
    pub fn map(&mut self, volume: u64, first: u64, entries: &[Entry]) {
        self.begin(TYPE_MAP, 16 + entries.len() * ENTRY_BYTES);
        self.u64(volume);
        self.u64(first);
        for entry in entries {
            self.bytes.extend_from_slice(&entry.encode());
        }
    }

    /// See [`Record::Fill`].
    pub fn fill(&mut self, volume: u64, first: u64, count: u64, entry: Entry) {
        self.begin(TYPE_FILL, 24 + ENTRY_BYTES);
        self.u64(volume);
        self.u64(first);
        self.u64(count);
        self.bytes.extend_from_slice(&entry.encode());
    }

    /// See [`Record::Bytes`].
    pub fn bytes(&mut self, segment: SegmentId, generation: Generation, at: u32, bytes: &[u8]) {
        self.begin(TYPE_BYTES, 16 + bytes.len());
        self.u32(segment.0);
        self.u32(at);
        self.u64(generation.0);
        self.bytes.extend_from_slice(bytes);
    }

    /// See [`Record::Appended`].
    pub fn appended(&mut self, record: &SummaryRecord) {
        self.begin(TYPE_APPENDED, APPENDED_BYTES);
        self.bytes.extend_from_slice(&record.entry.encode());
        self.bytes
            .extend_from_slice(&record.fingerprint.unwrap_or(Fingerprint([0; 32])).0);
        self.u64(record.owner.tree);
        self.u64(record.owner.index);
        self.u32(record.logical);
        let flags = [
            record.owner.level,
            u8::from(record.fingerprint.is_some()),
            0,
            0,
        ];
        self.bytes.extend_from_slice(&flags);
    }

    /// See [`Record::SegmentOpened`].
    pub fn segment_opened(&mut self, segment: SegmentId, record: &SegmentRecord) {
        self.segment(TYPE_SEGMENT_OPENED, segment, record);
    }

    /// See [`Record::SegmentSealed`].
    pub fn segment_sealed(&mut self, segment: SegmentId, record: &SegmentRecord) {
        self.segment(TYPE_SEGMENT_SEALED, segment, record);
    }

    fn segment(&mut self, kind: u8, segment: SegmentId, record: &SegmentRecord) {
        self.begin(kind, 8 + SEGMENT_RECORD_BYTES);
        self.u32(segment.0);
        self.u32(0);
        self.bytes.extend_from_slice(&record.encode());
    }

    /// See [`Record::VolumePut`].
    pub fn volume_put(&mut self, record: &VolumeRecord) {
        self.begin(TYPE_VOLUME_PUT, VOLUME_RECORD_BYTES);
        self.bytes.extend_from_slice(&record.encode());
    }

    /// See [`Record::VolumeDeleted`].
    pub fn volume_deleted(&mut self, volume: u64) {
        self.begin(TYPE_VOLUME_DELETED, 8);
        self.u64(volume);
    }

    /// See [`Record::SnapshotTaken`].
    pub fn snapshot_taken(&mut self, record: &SnapshotRecord) {
        self.begin(TYPE_SNAPSHOT_TAKEN, SNAPSHOT_RECORD_BYTES);
        self.bytes.extend_from_slice(&record.encode());
    }

    /// See [`Record::SnapshotDeleted`].
    pub fn snapshot_deleted(&mut self, snapshot: u64) {
        self.begin(TYPE_SNAPSHOT_DELETED, 8);
        self.u64(snapshot);
    }

    /// See [`Record::RolledBack`].
    pub fn rolled_back(&mut self, volume: u64, snapshot: u64) {
        self.begin(TYPE_ROLLED_BACK, 16);
        self.u64(volume);
        self.u64(snapshot);
    }

    /// See [`Record::Cloned`].
    pub fn cloned(&mut self, record: &VolumeRecord, snapshot: u64) {
        self.begin(TYPE_CLONED, 8 + VOLUME_RECORD_BYTES);
        self.u64(snapshot);
        self.bytes.extend_from_slice(&record.encode());
    }
}

const APPENDED_BYTES: usize = ENTRY_BYTES + 32 + 8 + 8 + 4 + 4;

/// Decodes records one after the other; an item `None` means that the rest is
/// malformed, and is the last.
#[derive(Debug)]
pub struct Records<'a> {
    rest: &'a [u8],
}

impl<'a> Records<'a> {
    /// The records in `bytes`.
    pub fn new(bytes: &'a [u8]) -> Self {
        Self { rest: bytes }
    }

    fn take(&mut self) -> Option<Record<'a>> {
        let (header, after) = self.rest.split_at_checked(HEADER_BYTES)?;
        let length = usize::try_from(u32::from_le_bytes(header[4..].try_into().ok()?)).ok()?;
        let (body, after) = after.split_at_checked(length)?;
        let record = decode(header[0], body)?;
        (header[1..4] == [0; 3]).then(|| self.rest = after)?;
        Some(record)
    }
}

impl<'a> Iterator for Records<'a> {
    type Item = Option<Record<'a>>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.rest.is_empty() {
            return None;
        }
        let record = self.take();
        if record.is_none() {
            self.rest = &[];
        }
        Some(record)
    }
}

fn u64_at(body: &[u8], at: usize) -> Option<u64> {
    Some(u64::from_le_bytes(body.get(at..at + 8)?.try_into().ok()?))
}

fn u32_at(body: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_le_bytes(body.get(at..at + 4)?.try_into().ok()?))
}

fn entry_at(body: &[u8], at: usize) -> Option<Entry> {
    Entry::decode(body.get(at..at + ENTRY_BYTES)?.try_into().ok()?)
}

fn decode(kind: u8, body: &[u8]) -> Option<Record<'_>> {
    Some(match kind {
        TYPE_MAP => {
            let (entries, rest) = body.get(16..)?.as_chunks::<ENTRY_BYTES>();
            if !rest.is_empty() {
                return None;
            }
            Record::Map {
                volume: u64_at(body, 0)?,
                first: u64_at(body, 8)?,
                entries: entries.iter().map(Entry::decode).collect::<Option<_>>()?,
            }
        }
        TYPE_FILL => {
            let entry = entry_at(body, 24)?;
            if entry.is_stored() || body.len() != 24 + ENTRY_BYTES {
                return None;
            }
            Record::Fill {
                volume: u64_at(body, 0)?,
                first: u64_at(body, 8)?,
                count: u64_at(body, 16)?,
                entry,
            }
        }
        TYPE_BYTES => Record::Bytes {
            segment: SegmentId(u32_at(body, 0)?),
            position: u32_at(body, 4)?,
            generation: Generation(u64_at(body, 8)?),
            bytes: body.get(16..)?,
        },
        TYPE_APPENDED => {
            let body: &[u8; APPENDED_BYTES] = body.try_into().ok()?;
            let hash: [u8; 32] = body[ENTRY_BYTES..ENTRY_BYTES + 32].try_into().ok()?;
            let at = ENTRY_BYTES + 32;
            Record::Appended(SummaryRecord {
                entry: entry_at(body, 0).filter(|entry| entry.kind != EntryKind::Hole)?,
                fingerprint: (body[at + 21] == 1).then_some(Fingerprint(hash)),
                owner: Owner {
                    tree: u64_at(body, at)?,
                    index: u64_at(body, at + 8)?,
                    level: body[at + 20],
                },
                logical: u32_at(body, at + 16)?,
            })
        }
        TYPE_SEGMENT_OPENED | TYPE_SEGMENT_SEALED => {
            let segment = SegmentId(u32_at(body, 0)?);
            let record = SegmentRecord::decode(body.get(8..)?.try_into().ok()?)?;
            if kind == TYPE_SEGMENT_OPENED {
                Record::SegmentOpened(segment, record)
            } else {
                Record::SegmentSealed(segment, record)
            }
        }
        TYPE_VOLUME_PUT => {
            Record::VolumePut(Box::new(VolumeRecord::decode(body.try_into().ok()?)?))
        }
        TYPE_VOLUME_DELETED if body.len() == 8 => Record::VolumeDeleted(u64_at(body, 0)?),
        TYPE_SNAPSHOT_TAKEN => {
            Record::SnapshotTaken(Box::new(SnapshotRecord::decode(body.try_into().ok()?)?))
        }
        TYPE_SNAPSHOT_DELETED if body.len() == 8 => Record::SnapshotDeleted(u64_at(body, 0)?),
        TYPE_ROLLED_BACK if body.len() == 16 => Record::RolledBack {
            volume: u64_at(body, 0)?,
            snapshot: u64_at(body, 8)?,
        },
        TYPE_CLONED => Record::Cloned {
            snapshot: u64_at(body, 0)?,
            record: Box::new(VolumeRecord::decode(body.get(8..)?.try_into().ok()?)?),
        },
        _ => return None,
    })
}
