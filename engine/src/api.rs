//! What management operations take and return: plain data, the same through
//! the library, the control socket and `--json`.

use serde::{Deserialize, Serialize};

/// The state of the pool as a whole.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum PoolState {
    /// Every member is in use.
    Online,
    /// Members are missing or failed; all data is readable and writable.
    Degraded,
    /// Too few members, or a commit step failed: no more writes.
    Failed,
}

/// The state of one member.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum MemberState {
    /// In use and current.
    Online,
    /// Failed while in use, or behind the others.
    Failed,
    /// Not found when the pool was opened.
    Missing,
}

/// One member.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MemberStatus {
    /// Position in the layout, from 0.
    pub index: u32,
    /// Where it was found, or last seen.
    pub path: String,
    /// Its state.
    pub state: MemberState,
    /// Its identity.
    pub uuid: String,
    /// Failed operations since the pool was opened.
    pub errors: u64,
    /// Reads of this member that failed verification and were mended.
    pub repaired: u64,
}

/// What `tessera pool status` shows. Sizes are bytes.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct PoolStatus {
    /// The pool's identity.
    pub uuid: String,
    /// `raid0`, `raid1`, `raid5`, `raid6`, `raid10` or `single`.
    pub level: String,
    /// The pool's state.
    pub state: PoolState,
    /// Members in index order.
    pub members: Vec<MemberStatus>,
    /// Stripe unit per member.
    pub stripe_unit_bytes: u64,
    /// Data the segments can hold, after parity, before reserves.
    pub capacity_bytes: u64,
    /// Unique data still writable, after parity and reserves.
    pub free_bytes: u64,
    /// Mapped by volumes.
    pub logical_bytes: u64,
    /// Distinct chunks before compression.
    pub unique_bytes: u64,
    /// Distinct chunks after compression, before parity.
    pub stored_bytes: u64,
    /// `logical_bytes / unique_bytes`; 1 for an empty pool.
    pub dedup_ratio: f64,
    /// `unique_bytes / stored_bytes`; 1 for an empty pool.
    pub compression_ratio: f64,
    /// `io_uring`, `threads` or `simulated`.
    pub io_engine: String,
    /// Whether a process serves the pool.
    pub served: bool,
    /// Volumes in the pool.
    pub volumes: u64,
    /// Fingerprints known to the index, approximately.
    pub index_entries: u64,
    /// `ready`, or `rebuilding` while old segments are read in again.
    pub index_state: String,
    /// Segments in each state.
    pub segments: SegmentCounts,
    /// The counter that membership changes and checkpoints advance.
    pub sequence: u64,
}

/// Segments by state.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SegmentCounts {
    /// Never used or reusable.
    pub free: u64,
    /// Being filled.
    pub open: u64,
    /// Full.
    pub sealed: u64,
    /// Freed, waiting for the next checkpoint.
    pub releasing: u64,
    /// Bytes of data one segment holds.
    pub segment_bytes: u64,
}

/// How a volume deduplicates new writes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum DedupMode {
    /// In the write path.
    Inline,
    /// Never.
    Off,
}

/// How a volume compresses new writes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Compression {
    /// LZ4 where it saves at least an eighth.
    Lz4,
    /// Never.
    None,
}

/// What a new volume is to be.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct VolumeSpec {
    /// 1 to 128 characters of `A-Z a-z 0-9 . _ -`, not starting with `.` or `-`.
    pub name: String,
    /// Bytes; at least one, at most 8 EiB - 1.
    pub size_bytes: u64,
    /// 4096, 8192, 16384, 32768 or 65536.
    pub chunk_bytes: u32,
    /// Deduplication.
    pub dedup: DedupMode,
    /// Compression.
    pub compression: Compression,
}

/// One volume as shown.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct VolumeInfo {
    /// Its name.
    pub name: String,
    /// Never reused within a pool.
    pub id: u64,
    /// Bytes.
    pub size_bytes: u64,
    /// Bytes mapped, as of the last checkpoint.
    pub logical_bytes: u64,
    /// Bytes per chunk.
    pub chunk_bytes: u32,
    /// Deduplication.
    pub dedup: DedupMode,
    /// Compression.
    pub compression: Compression,
}

/// How a pool is laid out at creation.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PoolSpec {
    /// The RAID level.
    pub level: tessera_raid::Level,
    /// Bytes each member contributes to a stripe; a power of two, 4 KiB to 1 MiB.
    pub stripe_unit_bytes: u32,
    /// Member files or block devices, in layout order.
    pub members: Vec<std::path::PathBuf>,
    /// When set, the members are created as sparse files of this size.
    pub create_files_bytes: Option<u64>,
    /// Use members that seem to hold other data or another pool.
    pub force: bool,
}

/// What `tessera pool check` found.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct CheckReport {
    /// Superblock copies read and good.
    pub superblocks_checked: u64,
    /// Journal batches verified.
    pub journal_batches_checked: u64,
    /// Map, catalogue and table pages verified.
    pub pages_checked: u64,
    /// Pointers checked against the segment table.
    pub pointers_checked: u64,
    /// Chunks read and verified (with `--data`).
    pub chunks_checked: u64,
    /// Bytes of them, as stored.
    pub bytes_checked: u64,
    /// One sentence for each damaged object; empty means healthy.
    pub problems: Vec<String>,
    /// Things worth knowing that are no damage (a missing member, an unclean stop).
    pub notes: Vec<String>,
}
