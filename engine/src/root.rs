//! What a checkpoint leaves: the engine record in the superblocks, and the
//! root page it points to.
//!
//! Engine record (in every superblock, little-endian):
//! ```text
//!   0  magic "TSRENGIN"          |   8  version u32 | stream count u32
//!  16  checkpoint number u64     |  24  sequence u64
//!  32  generation limit u64      |  40  journal epoch, 16 bytes
//!  56  journal offset u64        |  64  journal batch number u64
//!  72  previous checksum, 16 bytes
//!  88  root entry, 16 bytes      | 104  root generation u64
//! 112  stream positions, 16 bytes each, 2: segment u32, closed bytes u32,
//!      generation u64 (generation 0: the stream has no open segment)
//! 144  root placement, length u32, then its codec's bytes
//! ```
//! Root page (4 KiB, verified by the checksum in the root entry):
//! ```text
//!   0  magic "TSRROOT1"          |   8  version u32 | overlay count u32
//!  16  pool uuid, 16 bytes       |  32  checkpoint number u64
//!  40  sequence u64              |  48  next volume id u64
//!  56  catalogue tree, 48 bytes  | 104  segment table tree, 48 bytes
//! 152  job tree, 48 bytes            | 200  settings, 40 bytes
//! 240  next job id u64              | 248  snapshot tree, 48 bytes
//! 296  settings of the index, 16 bytes | 312  space below which is warned, u64
//! 320  overlay: segment u32, 0 u32, record 64 bytes; 52 of them
//!4064  settings of reclaim and deduplication, 24 bytes; zero
//! ```
//! The overlay holds the records of map segments that changed while the
//! segment table's own pages were being written; it goes over the table.

use tessera_dedup::{
    ENTRY_BYTES, Entry, EntryKind, Generation,
    segment::{SEGMENT_RECORD_BYTES, SegmentRecord, Stream},
};
use tessera_raid::{SegmentId, layout::Placement};
use uuid::Uuid;

use crate::{
    catalogue::{CATALOGUE_TREE, FIRST_VOLUME_ID, JOB_TREE, SEGMENT_TREE, SNAPSHOT_TREE},
    journal::{ChainPoint, Epoch, batch::ChainChecksum},
    map::{PAGE_BYTES, PageBytes, TREE_BYTES, Tree, TreeShape},
    settings::{INDEX_SETTINGS_BYTES, JOB_SETTINGS_BYTES, SETTINGS_BYTES, Settings},
};

const RECORD_MAGIC: &[u8; 8] = b"TSRENGIN";
const ROOT_MAGIC: &[u8; 8] = b"TSRROOT1";
const VERSION: u32 = 1;
const ROOT_VERSION: u32 = 3;
const STREAMS: usize = Stream::ALL.len();
const STREAM_BYTES: usize = 16;
const AT_STREAMS: usize = 112;
const AT_PLACEMENT: usize = AT_STREAMS + STREAMS * STREAM_BYTES;
const AT_TREES: usize = 56;
const AT_SETTINGS: usize = AT_TREES + 3 * TREE_BYTES;
const AT_NEXT_JOB: usize = AT_SETTINGS + SETTINGS_BYTES;
const AT_SNAPSHOTS: usize = AT_NEXT_JOB + 8;
const AT_INDEX_SETTINGS: usize = AT_SNAPSHOTS + TREE_BYTES;
const AT_WARN_FREE: usize = AT_INDEX_SETTINGS + INDEX_SETTINGS_BYTES;
const AT_OVERLAY: usize = 320;
const _: () = assert!(AT_WARN_FREE == 312 && AT_WARN_FREE + 8 == AT_OVERLAY);
const OVERLAY_BYTES: usize = 8 + SEGMENT_RECORD_BYTES;
/// Most records the overlay takes.
pub const OVERLAY_MAX: usize = (AT_JOB_SETTINGS - AT_OVERLAY) / OVERLAY_BYTES;
const AT_JOB_SETTINGS: usize = 4064;
const _: () = assert!(AT_JOB_SETTINGS + JOB_SETTINGS_BYTES <= PAGE_BYTES && OVERLAY_MAX == 52);

/// Where a clean stop left a stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct StreamEnd {
    /// The open segment; meaningless when the generation is 0.
    pub segment: SegmentId,
    /// Its generation; 0: none is open.
    pub generation: Generation,
    /// Where the next stripe goes.
    pub closed_bytes: u32,
}

/// Points to the root page, without the segment table's help (bootstrap).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RootPointer {
    /// The page.
    pub entry: Entry,
    /// Its segment's generation.
    pub generation: Generation,
    /// Where its segment is.
    pub placement: Placement,
}

/// The engine's part of a superblock.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EngineRecord {
    /// Counts checkpoints.
    pub checkpoint: u64,
    /// Every write up to this sequence is in the root.
    pub sequence: u64,
    /// Generations at or above this were never issued (R9).
    pub generation_limit: u64,
    /// Where the journal goes on from.
    pub journal: ChainPoint,
    /// `None` in a new pool.
    pub root: Option<RootPointer>,
    /// Of each stream; trusted only after a clean stop.
    pub streams: [StreamEnd; STREAMS],
}

impl EngineRecord {
    /// The bytes as stored.
    pub fn encode(&self) -> Vec<u8> {
        let mut bytes = vec![0; AT_PLACEMENT];
        let mut put = |at: usize, field: &[u8]| bytes[at..at + field.len()].copy_from_slice(field);
        put(0, RECORD_MAGIC);
        put(8, &VERSION.to_le_bytes());
        put(12, &u32::try_from(STREAMS).expect("few").to_le_bytes());
        put(16, &self.checkpoint.to_le_bytes());
        put(24, &self.sequence.to_le_bytes());
        put(32, &self.generation_limit.to_le_bytes());
        put(40, &self.journal.epoch.0);
        put(56, &self.journal.offset.to_le_bytes());
        put(64, &self.journal.number.to_le_bytes());
        put(72, &self.journal.previous.0);
        for (at, end) in (AT_STREAMS..).step_by(STREAM_BYTES).zip(&self.streams) {
            put(at, &end.segment.0.to_le_bytes());
            put(at + 4, &end.closed_bytes.to_le_bytes());
            put(at + 8, &end.generation.0.to_le_bytes());
        }
        let placement = self.root.as_ref().map(|root| {
            put(88, &root.entry.encode());
            put(104, &root.generation.0.to_le_bytes());
            let mut bytes = Vec::new();
            root.placement.encode(&mut bytes);
            bytes
        });
        let placement = placement.unwrap_or_default();
        let length = u32::try_from(placement.len()).expect("a placement is short");
        bytes.extend_from_slice(&length.to_le_bytes());
        bytes.extend_from_slice(&placement);
        bytes
    }

    /// Decodes what [`Self::encode`] made; `None` for anything else.
    pub fn decode(bytes: &[u8]) -> Option<Self> {
        if bytes.get(..8)? != RECORD_MAGIC || u32_at(bytes, 8)? != VERSION {
            return None;
        }
        let entry = entry_at(bytes, 88)?;
        let length = usize::try_from(u32_at(bytes, AT_PLACEMENT)?).ok()?;
        let placement = bytes.get(AT_PLACEMENT + 4..AT_PLACEMENT + 4 + length)?;
        let root = if entry.kind == EntryKind::Page {
            Some(RootPointer {
                entry,
                generation: Generation(u64_at(bytes, 104)?),
                placement: Placement::decode(placement).ok()?.0,
            })
        } else {
            None
        };
        let mut streams = [StreamEnd::default(); STREAMS];
        for (at, end) in (AT_STREAMS..).step_by(STREAM_BYTES).zip(&mut streams) {
            *end = StreamEnd {
                segment: SegmentId(u32_at(bytes, at)?),
                closed_bytes: u32_at(bytes, at + 4)?,
                generation: Generation(u64_at(bytes, at + 8)?),
            };
        }
        Some(Self {
            checkpoint: u64_at(bytes, 16)?,
            sequence: u64_at(bytes, 24)?,
            generation_limit: u64_at(bytes, 32)?,
            journal: ChainPoint {
                epoch: Epoch(bytes.get(40..56)?.try_into().ok()?),
                offset: u64_at(bytes, 56)?,
                number: u64_at(bytes, 64)?,
                previous: ChainChecksum(bytes.get(72..88)?.try_into().ok()?),
            },
            root,
            streams,
        })
    }
}

/// The root of everything a checkpoint holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct RootPage {
    /// The pool.
    pub pool: Uuid,
    /// Counts checkpoints.
    pub checkpoint: u64,
    /// The sequence it holds exactly.
    pub sequence: u64,
    /// The id the next volume or snapshot gets.
    pub next_volume_id: u64,
    /// Volume records.
    pub catalogue: Tree,
    /// Segment records.
    pub segments: Tree,
    /// Job records.
    pub jobs: Tree,
    /// Snapshot records.
    pub snapshots: Tree,
    /// What the administrator set.
    pub settings: Settings,
    /// The id the next job gets.
    pub next_job_id: u64,
    /// Segment records that go over the table.
    pub overlay: Vec<(SegmentId, SegmentRecord)>,
}

impl RootPage {
    /// The root of a pool without volumes.
    pub fn empty(pool: Uuid) -> Self {
        Self {
            pool,
            checkpoint: 0,
            sequence: 0,
            next_volume_id: FIRST_VOLUME_ID,
            catalogue: Tree::empty(CATALOGUE_TREE, TreeShape::CATALOGUE),
            segments: Tree::empty(SEGMENT_TREE, TreeShape::SEGMENT_TABLE),
            jobs: Tree::empty(JOB_TREE, TreeShape::JOBS),
            snapshots: Tree::empty(SNAPSHOT_TREE, TreeShape::SNAPSHOTS),
            settings: Settings::default(),
            next_job_id: 1,
            overlay: Vec::new(),
        }
    }

    /// The page as stored.
    ///
    /// # Panics
    /// If the overlay holds more than [`OVERLAY_MAX`] records.
    pub fn encode(&self) -> PageBytes {
        let mut bytes = [0; PAGE_BYTES];
        assert!(
            self.overlay.len() <= OVERLAY_MAX,
            "few segments are opened for a table"
        );
        let mut put = |at: usize, field: &[u8]| bytes[at..at + field.len()].copy_from_slice(field);
        put(0, ROOT_MAGIC);
        put(8, &ROOT_VERSION.to_le_bytes());
        put(
            12,
            &u32::try_from(self.overlay.len())
                .expect("few")
                .to_le_bytes(),
        );
        put(16, self.pool.as_bytes());
        put(32, &self.checkpoint.to_le_bytes());
        put(40, &self.sequence.to_le_bytes());
        put(48, &self.next_volume_id.to_le_bytes());
        let trees = [&self.catalogue, &self.segments, &self.jobs];
        for (at, tree) in (AT_TREES..).step_by(TREE_BYTES).zip(trees) {
            put(at, &tree.encode());
        }
        put(AT_SETTINGS, &self.settings.encode());
        put(AT_NEXT_JOB, &self.next_job_id.to_le_bytes());
        put(AT_SNAPSHOTS, &self.snapshots.encode());
        put(AT_INDEX_SETTINGS, &self.settings.encode_index());
        put(
            AT_WARN_FREE,
            &self.settings.encode_warn_free().to_le_bytes(),
        );
        for (at, (segment, record)) in (AT_OVERLAY..).step_by(OVERLAY_BYTES).zip(&self.overlay) {
            put(at, &segment.0.to_le_bytes());
            put(at + 8, &record.encode());
        }
        put(AT_JOB_SETTINGS, &self.settings.encode_of_jobs());
        bytes
    }

    /// Decodes what [`Self::encode`] made; `None` for anything else.
    pub fn decode(bytes: &PageBytes) -> Option<Self> {
        if bytes[..8] != ROOT_MAGIC[..] || u32_at(bytes, 8)? != ROOT_VERSION {
            return None;
        }
        let count = usize::try_from(u32_at(bytes, 12)?).ok()?;
        if count > OVERLAY_MAX {
            return None;
        }
        let overlay = |at: usize| {
            let record = bytes[at + 8..at + OVERLAY_BYTES].try_into().ok()?;
            Some((
                SegmentId(u32_at(bytes, at)?),
                SegmentRecord::decode(record)?,
            ))
        };
        let tree_at = |at: usize| Tree::decode(bytes[at..at + TREE_BYTES].try_into().ok()?);
        let root = Self {
            pool: Uuid::from_bytes(bytes[16..32].try_into().ok()?),
            checkpoint: u64_at(bytes, 32)?,
            sequence: u64_at(bytes, 40)?,
            next_volume_id: u64_at(bytes, 48)?,
            catalogue: tree_at(AT_TREES)?,
            segments: tree_at(AT_TREES + TREE_BYTES)?,
            jobs: tree_at(AT_TREES + 2 * TREE_BYTES)?,
            snapshots: tree_at(AT_SNAPSHOTS)?,
            settings: Settings::decode(
                bytes[AT_SETTINGS..AT_SETTINGS + SETTINGS_BYTES]
                    .try_into()
                    .ok()?,
            )?
            .with_those_of_jobs(
                bytes[AT_JOB_SETTINGS..AT_JOB_SETTINGS + JOB_SETTINGS_BYTES]
                    .try_into()
                    .ok()?,
            )?
            .with_index(
                bytes[AT_INDEX_SETTINGS..AT_INDEX_SETTINGS + INDEX_SETTINGS_BYTES]
                    .try_into()
                    .ok()?,
            )?
            .with_warn_free(u64_at(bytes, AT_WARN_FREE)?)?,
            next_job_id: u64_at(bytes, AT_NEXT_JOB)?,
            overlay: (AT_OVERLAY..)
                .step_by(OVERLAY_BYTES)
                .take(count)
                .map(overlay)
                .collect::<Option<_>>()?,
        };
        let sound = root.catalogue.id == CATALOGUE_TREE
            && root.catalogue.shape == TreeShape::CATALOGUE
            && root.segments.id == SEGMENT_TREE
            && root.segments.shape == TreeShape::SEGMENT_TABLE
            && root.jobs.id == JOB_TREE
            && root.jobs.shape == TreeShape::JOBS
            && root.snapshots.id == SNAPSHOT_TREE
            && root.snapshots.shape == TreeShape::SNAPSHOTS;
        sound.then_some(root)
    }
}

fn u64_at(bytes: &[u8], at: usize) -> Option<u64> {
    Some(u64::from_le_bytes(bytes.get(at..at + 8)?.try_into().ok()?))
}

fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_le_bytes(bytes.get(at..at + 4)?.try_into().ok()?))
}

fn entry_at(bytes: &[u8], at: usize) -> Option<Entry> {
    Entry::decode(bytes.get(at..at + ENTRY_BYTES)?.try_into().ok()?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::PoolSettings;

    /// Every field differs from every other.
    fn sample() -> RootPage {
        let mut page = RootPage::empty(Uuid::from_u128(0x0102_0304_0506_0708_090a_0b0c_0d0e_0f10));
        page.checkpoint = 0x1112;
        page.sequence = 0x2122;
        page.next_volume_id = 0x3132;
        page.settings = Settings {
            kept: PoolSettings {
                rebuild_bytes_per_second: 0x4142,
                scrub_bytes_per_second: 0x5152,
                read_errors_per_hour: 0x61,
                stall_limit_ms: 0x7172,
                scrub_interval_seconds: 0x8182,
                warn_free_percent: 0,
                warn_free_bytes: 0xe1e2,
                ..Settings::default().kept
            },
            scrub_due_ms: 0x9192,
            index_dropped: false,
        };
        page.next_job_id = 0xa1a2;
        let record = SegmentRecord {
            generation: Generation(0xb1b2),
            state: tessera_dedup::segment::SegmentState::Sealed,
            sealed_at: 0xc1c2,
            ..SegmentRecord::default()
        };
        page.overlay = vec![(SegmentId(0xd1), record)];
        page
    }

    #[test]
    fn the_stored_form_of_a_root_page_does_not_change() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/testdata/format/root-3.bin");
        let golden = std::fs::read(path).unwrap();
        assert_eq!(sample().encode()[..], golden[..]);
        let page: &PageBytes = golden[..].try_into().unwrap();
        assert_eq!(RootPage::decode(page), Some(sample()));
    }

    #[test]
    fn a_root_page_keeps_the_settings_of_the_index() {
        let mut page = sample();
        page.settings.kept.index_disk_bytes = u64::MAX;
        page.settings.index_dropped = true;
        assert_eq!(RootPage::decode(&page.encode()), Some(page));
    }

    #[test]
    fn a_full_overlay_leaves_room_for_the_settings_of_jobs() {
        let mut page = sample();
        let (_, record) = page.overlay[0];
        page.overlay = (0..OVERLAY_MAX)
            .map(|number| (SegmentId(u32::try_from(number).unwrap()), record))
            .collect();
        page.settings.kept.reclaim_bytes_per_second = 0xe1e2;
        page.settings.kept.dedup_bytes_per_second = 0xf1f2;
        page.settings.kept.dedup_every = crate::api::DedupSchedule::Idle;
        assert_eq!(RootPage::decode(&page.encode()), Some(page));
    }

    #[test]
    fn a_root_page_of_another_version_is_refused() {
        let mut page = sample().encode();
        page[8] = 1;
        assert_eq!(RootPage::decode(&page), None);
    }
}
