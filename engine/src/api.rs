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
    /// Waits to replace one that fails.
    Spare,
    /// Being filled to take the place of a member that is not in use.
    Rebuilding,
    /// Being filled to take the place of a member that is in use meanwhile.
    Replacing,
}

/// One member.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MemberStatus {
    /// Position in the layout, from 0; spares and replacements come behind.
    pub index: u32,
    /// Where it was found, or last seen.
    pub path: String,
    /// Its state.
    pub state: MemberState,
    /// The member whose place it is to take.
    pub of: Option<u32>,
    /// Its identity.
    pub uuid: String,
    /// Bytes it had when it became a member.
    pub size_bytes: u64,
    /// Failed operations since the pool was opened.
    pub errors: u64,
    /// Of these, reads.
    pub read_errors: u64,
    /// Of these, writes and syncs.
    pub write_errors: u64,
    /// Reads of this member that failed verification and were mended.
    pub repaired: u64,
    /// Why it is not in use, if it went since the pool was opened.
    pub reason: Option<String>,
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
    /// What nothing names any more in full segments, before parity: reclaim
    /// gives it back. `None` while it is not known.
    pub reclaimable_bytes: Option<u64>,
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
    /// Snapshots in the pool.
    pub snapshots: u64,
    /// Of what is stored, before parity, what only snapshots hold: bytes that
    /// come back when all of them are deleted.
    pub snapshot_bytes: u64,
    /// When what is stored was counted, in milliseconds since 1970; `None`
    /// while it has not been.
    pub counted_unix_ms: Option<u64>,
    /// The count is exact for the checkpoint it was made of; an estimate if not.
    pub counted_exactly: bool,
    /// What an administrator should know of.
    pub warnings: Vec<Warning>,
    /// Fingerprints known to the index, approximately.
    pub index_entries: u64,
    /// `ready`, or `rebuilding` while old segments are read in again.
    pub index_state: String,
    /// More about the index.
    pub index: IndexInfo,
    /// Segments in each state.
    pub segments: SegmentCounts,
    /// The counter that membership changes and checkpoints advance.
    pub sequence: u64,
    /// The last member that failed since the pool was opened, and why.
    pub last_failure: Option<String>,
    /// Why the pool has stopped accepting writes, if it has.
    pub stopped: Option<String>,
    /// What cannot be read any more; looked for when too many members are gone.
    pub losses: Option<LossReport>,
    /// Jobs under way, and the newest of each kind.
    pub jobs: Vec<JobInfo>,
}

/// The fingerprint index at this moment. Sizes are bytes.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct IndexInfo {
    /// `ready`; `rebuilding` while old segments are read in again; `dropped`;
    /// `closed` where the pool is open only for a look.
    pub state: String,
    /// How far a rebuild is, 0 to 1.
    pub progress: f64,
    /// Segments that a rebuild has read in.
    pub segments_done: u64,
    /// Segments that it reads in.
    pub segments_total: u64,
    /// Fingerprints known, approximately.
    pub entries: u64,
    /// One of so many fingerprints is looked up, by the memory given.
    pub sampled_one_in: u64,
    /// One of so many fingerprints is kept, by the disk given.
    pub kept_one_in: u64,
    /// Memory in use.
    pub memory_bytes: u64,
    /// Memory it may use.
    pub memory_limit_bytes: u64,
    /// Disk in use.
    pub disk_bytes: u64,
    /// Disk it may use; 0: no limit.
    pub disk_limit_bytes: u64,
    /// Memory that a TiB of unique 4 KiB chunks takes at the present rate.
    pub memory_bytes_per_tib: u64,
    /// Disk that it takes.
    pub disk_bytes_per_tib: u64,
}

/// What a warning is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum WarningKind {
    /// Less is free than was asked to be told of.
    LowSpace,
    /// Clients are refused new data.
    Full,
}

/// Something an administrator should know of.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Warning {
    /// What it is about.
    pub kind: WarningKind,
    /// One sentence.
    pub message: String,
}

/// What a volume or a snapshot takes, map pages (a 256th, about) not included.
/// All `None` while it is not known; `counted_unix_ms` of the pool's status
/// says when it was counted.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SpaceUse {
    /// Distinct chunks, before compression.
    pub unique_bytes: Option<u64>,
    /// The same after compression, before parity.
    pub stored_bytes: Option<u64>,
    /// Of these, what no other volume or snapshot holds: deleting this one
    /// alone frees it.
    pub exclusive_bytes: Option<u64>,
    /// Of these, the rest.
    pub shared_bytes: Option<u64>,
}

impl SpaceUse {
    /// What has been counted.
    pub const fn known(unique: u64, stored: u64, exclusive: u64) -> Self {
        Self {
            unique_bytes: Some(unique),
            stored_bytes: Some(stored),
            exclusive_bytes: Some(exclusive),
            shared_bytes: Some(stored.saturating_sub(exclusive)),
        }
    }
}

/// Bytes of a volume.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct LostRange {
    /// The first.
    pub offset: u64,
    /// How many.
    pub length: u64,
}

/// What a volume has lost.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct VolumeLoss {
    /// Its name.
    pub volume: String,
    /// Bytes in all ranges.
    pub bytes: u64,
    /// Where they are, ascending.
    pub ranges: Vec<LostRange>,
}

/// What of all volumes cannot be read, as of the last checkpoint.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct LossReport {
    /// Volumes that have lost something.
    pub volumes: Vec<VolumeLoss>,
    /// False when there is more than is told here.
    pub complete: bool,
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
    /// By a job, later: writes neither hash nor look anything up.
    Post,
    /// Never, by no job either.
    Off,
}

impl DedupMode {
    /// Every mode.
    pub const ALL: [Self; 3] = [Self::Inline, Self::Post, Self::Off];

    /// What users call it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Inline => "inline",
            Self::Post => "post",
            Self::Off => "off",
        }
    }
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

/// What to change of a volume in use; `None` leaves it as it is. Writes that
/// begin after the answer follow it, and what is stored stays as it is.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct VolumeChange {
    /// Deduplication of new writes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub dedup: Option<DedupMode>,
    /// Compression of new writes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub compression: Option<Compression>,
    /// Whether it may be made smaller through a mount.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub allow_shrink: Option<bool>,
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
    /// It may be made smaller through a mount.
    pub allow_shrink: bool,
    /// What it takes.
    #[serde(flatten)]
    pub space: SpaceUse,
}

/// One snapshot as shown.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SnapshotInfo {
    /// Its volume.
    pub volume: String,
    /// Its own name: `VOLUME@NAME` in full.
    pub name: String,
    /// Never reused within a pool, by snapshots or volumes.
    pub id: u64,
    /// Bytes that the volume had.
    pub size_bytes: u64,
    /// Bytes mapped, as of the last checkpoint.
    pub logical_bytes: u64,
    /// When it was taken, in milliseconds since 1970.
    pub taken_unix_ms: u64,
    /// What it takes.
    #[serde(flatten)]
    pub space: SpaceUse,
}

/// Bytes that may read differently.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct ChangedRange {
    /// The first.
    pub offset: u64,
    /// How many.
    pub length: u64,
}

/// What changed from a snapshot to another snapshot or a volume.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SnapshotDiff {
    /// `VOLUME@SNAPSHOT`.
    pub from: String,
    /// `VOLUME@SNAPSHOT` or `VOLUME`.
    pub to: String,
    /// Size of the one.
    pub from_bytes: u64,
    /// Size of the other; no range goes beyond it.
    pub to_bytes: u64,
    /// Bytes in all ranges.
    pub changed_bytes: u64,
    /// Ascending, and apart from each other.
    pub ranges: Vec<ChangedRange>,
    /// Everything below has been compared, from where the search began.
    pub end: u64,
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

/// What an administrator can set while the pool is in use.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct PoolSettings {
    /// Most bytes that rebuilds copy in a second; 0: no limit.
    pub rebuild_bytes_per_second: u64,
    /// Most bytes that a scrub reads in a second; 0: no limit.
    pub scrub_bytes_per_second: u64,
    /// A member with more failed reads within an hour is failed.
    pub read_errors_per_hour: u32,
    /// How long a member may stall before it is failed, in milliseconds.
    pub stall_limit_ms: u32,
    /// A scrub starts by itself this long after the one before; 0: never.
    pub scrub_interval_seconds: u64,
    /// Most bytes of the fingerprint index on disk; 0: no limit. What does not
    /// fit is left out by sampling.
    pub index_disk_bytes: u64,
    /// Below this part of the capacity, free space is warned of; 0: not so.
    pub warn_free_percent: u32,
    /// Below this, free space is warned of; 0: not so. One of the two is 0.
    pub warn_free_bytes: u64,
    /// Most bytes that a reclaim moves in a second; 0: no limit.
    pub reclaim_bytes_per_second: u64,
    /// Most bytes that a deduplication reads in a second; 0: no limit.
    pub dedup_bytes_per_second: u64,
    /// When a deduplication starts by itself.
    pub dedup_every: DedupSchedule,
}

/// When a deduplication starts by itself: in a pool with a volume of mode
/// `post`, and only if something has been written since the last one.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum DedupSchedule {
    /// Never.
    #[default]
    Off,
    /// When nothing has been written for some seconds.
    Idle,
    /// So many seconds after the end of the one before.
    Seconds(u32),
}

/// What to change in [`PoolSettings`]; `None` leaves a setting as it is.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct SettingsChange {
    /// See [`PoolSettings`].
    pub rebuild_bytes_per_second: Option<u64>,
    /// See [`PoolSettings`].
    pub scrub_bytes_per_second: Option<u64>,
    /// See [`PoolSettings`].
    pub read_errors_per_hour: Option<u32>,
    /// See [`PoolSettings`].
    pub stall_limit_ms: Option<u32>,
    /// See [`PoolSettings`].
    pub scrub_interval_seconds: Option<u64>,
    /// See [`PoolSettings`].
    pub reclaim_bytes_per_second: Option<u64>,
    /// See [`PoolSettings`].
    pub dedup_bytes_per_second: Option<u64>,
    /// See [`PoolSettings`].
    pub dedup_every: Option<DedupSchedule>,
    /// See [`PoolSettings`].
    pub index_disk_bytes: Option<u64>,
    /// See [`PoolSettings`]; takes the place of a number of bytes.
    pub warn_free_percent: Option<u32>,
    /// See [`PoolSettings`]; takes the place of a percentage.
    pub warn_free_bytes: Option<u64>,
}

/// What a job does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum JobKind {
    /// Fills a new, spare or returning member.
    Rebuild,
    /// Verifies every copy of everything, and mends it.
    Scrub,
    /// Frees what nothing names, and moves the rest together.
    Reclaim,
    /// Finds and merges duplicates of what was stored without looking for any.
    Dedup,
}

impl JobKind {
    /// Every kind.
    pub const ALL: [Self; 4] = [Self::Rebuild, Self::Scrub, Self::Reclaim, Self::Dedup];
}

/// Where a job is in its life.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum JobState {
    /// Never begun, or cancelled.
    Idle,
    /// At work, or waiting for its turn.
    Running,
    /// Stopped until it is told to go on.
    Paused,
    /// Came to its end.
    Done,
    /// Could not go on; see the message.
    Failed,
}

/// What a job found on one member.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct JobMember {
    /// Position in the layout.
    pub index: u32,
    /// Pieces that were read from it and compared.
    pub checked: u64,
    /// Of these, wrong or unreadable ones.
    pub found: u64,
    /// Of these, put right.
    pub repaired: u64,
}

/// A job as shown.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct JobInfo {
    /// Never reused within a pool; 0: there is no such job yet.
    pub id: u64,
    /// What it does.
    pub kind: JobKind,
    /// Where it is in its life.
    pub state: JobState,
    /// 0 to 1.
    pub progress: f64,
    /// Bytes dealt with.
    pub bytes_done: u64,
    /// Bytes in all, as far as is known.
    pub bytes_total: u64,
    /// Over the last seconds; 0 when it is not running.
    pub bytes_per_second: u64,
    /// Until the end at this rate, while it is running.
    pub eta_seconds: Option<u64>,
    /// Milliseconds since 1970; 0: not begun.
    pub started_unix_ms: u64,
    /// The same; 0: not ended.
    pub ended_unix_ms: u64,
    /// Why it ended, or what it waits for; may be empty.
    pub message: String,
    /// The member that a rebuild is for.
    pub member: Option<u32>,
    /// Chunks, pages, blocks and copies compared; of a deduplication, chunks
    /// hashed.
    pub checked: u64,
    /// Wrong or unreadable copies; of a deduplication, duplicates.
    pub found: u64,
    /// Of these, put right; of a deduplication, merged.
    pub repaired: u64,
    /// Things that no copy verifies of.
    pub lost: u64,
    /// Stored bytes of the duplicates that a deduplication has merged.
    pub merged_bytes: u64,
    /// What they were to volumes, one sentence each, of the last scrub of this
    /// process; things that no volume uses any more are not among them.
    pub losses: Vec<String>,
    /// By member.
    pub members: Vec<JobMember>,
}

impl JobInfo {
    /// A job that has never been.
    pub fn none(kind: JobKind) -> Self {
        Self {
            id: 0,
            kind,
            state: JobState::Idle,
            progress: 0.0,
            bytes_done: 0,
            bytes_total: 0,
            bytes_per_second: 0,
            eta_seconds: None,
            started_unix_ms: 0,
            ended_unix_ms: 0,
            message: String::new(),
            member: None,
            checked: 0,
            found: 0,
            repaired: 0,
            lost: 0,
            merged_bytes: 0,
            losses: Vec::new(),
            members: Vec::new(),
        }
    }
}

/// What a repair would do, or has done.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct RepairReport {
    /// One sentence each.
    pub actions: Vec<String>,
    /// What cannot be put right, one sentence each.
    pub problems: Vec<String>,
    /// Copies that were put right.
    pub repaired: u64,
    /// The fingerprint index says nothing of what was found.
    pub index_is_stale: bool,
    /// The actions were taken; false for a plan, or when there were none.
    pub applied: bool,
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
