//! The array: members behind one layout, written in whole stripes.
//!
//! Public skeleton; bodies follow.
#![allow(unused_variables)]

use std::{
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use uuid::Uuid;

use crate::{
    LayoutId, Level, MemberIndex, RaidError,
    device::{AlignedBuf, Backend},
    layout::{Layout, Placement},
    witness::Witness,
};

/// Room for the engine's record in a superblock.
pub const ENGINE_RECORD_BYTES: usize = 1536;

/// Sizes that simulation makes tiny (R24).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Sizes {
    /// Data a segment is to hold, about; rounded down to whole stripes.
    /// At most [`Sizes::SEGMENT_DATA_BYTES_MAX`].
    pub segment_data_bytes_target: u32,
    /// Length of the journal ring on each member, a multiple of 4 KiB;
    /// `None` for a 64th of the smallest member within 4 to 256 MiB.
    pub journal_bytes: Option<u64>,
}

impl Sizes {
    /// Largest segment, exclusive bound 2^24 of a position (design section 6).
    pub const SEGMENT_DATA_BYTES_MAX: u32 = 16 << 20;
}

impl Default for Sizes {
    fn default() -> Self {
        Self { segment_data_bytes_target: 8 << 20, journal_bytes: None }
    }
}

/// What to create.
#[derive(Debug, Clone)]
pub struct CreateSpec {
    /// The level.
    pub level: Level,
    /// Consecutive bytes on one member, a multiple of 4 KiB.
    pub stripe_unit_bytes: u32,
    /// The members in index order.
    pub members: Vec<PathBuf>,
    /// Overwrite members that hold something already.
    pub force: bool,
    /// Segment and journal sizes.
    pub sizes: Sizes,
}

/// How to open.
#[derive(Debug, Clone)]
pub struct OpenOptions {
    /// Write nothing.
    pub read_only: bool,
    /// Trust the user that members not given did not go on alone (R3).
    pub force: bool,
    /// How long to wait for a lock that another process holds.
    pub lock_patience: Duration,
    /// How long a member may stall before it can be failed (R4).
    pub stall_limit: Duration,
}

impl Default for OpenOptions {
    fn default() -> Self {
        Self {
            read_only: false,
            force: false,
            lock_patience: Duration::from_secs(5),
            stall_limit: Duration::from_secs(30),
        }
    }
}

/// A whole stripe to write.
#[derive(Debug, Clone)]
pub struct StripeWrite {
    /// The segment's placement.
    pub placement: Placement,
    /// The stripe within the segment.
    pub stripe: u32,
    /// The stripe's data, [`Array::stripe_data_bytes`] long.
    pub data: Arc<AlignedBuf>,
}

/// A range of a segment to read.
#[derive(Debug)]
pub struct SegmentRead {
    /// The segment's placement.
    pub placement: Placement,
    /// First byte within the segment's data, block-aligned.
    pub offset: u32,
    /// In: as long as the range, a block multiple. Out: filled.
    pub buffer: AlignedBuf,
    /// Set by [`Array::read`].
    pub outcome: Result<(), RaidError>,
}

/// Bytes obtained other than by the plain read, and accepted by the caller.
#[derive(Debug)]
pub struct Alternative {
    /// The accepted bytes.
    pub bytes: AlignedBuf,
    /// The members whose own blocks differ from them.
    pub differing: Vec<MemberIndex>,
}

/// The state of the whole array.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ArrayState {
    /// Every member is in use.
    Online,
    /// Members are missing or failed; everything works.
    Degraded,
    /// Writes have stopped; reads still try.
    Failed,
}

/// The state of one member.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MemberState {
    /// In use and current.
    Online,
    /// Failed in use, or behind the others.
    Failed,
    /// Not found when the array was opened.
    Missing,
}

/// One member.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MemberStatus {
    /// Its position.
    pub index: MemberIndex,
    /// Its identity.
    pub uuid: Uuid,
    /// Where it is, or was last seen; empty if nobody knows.
    pub path: PathBuf,
    /// Its state.
    pub state: MemberState,
    /// Failed operations since the array was opened.
    pub errors: u64,
    /// Verified rewrites that changed something, since the array was opened.
    pub repaired: u64,
}

/// The array and its members.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ArrayStatus {
    /// Of the whole.
    pub state: ArrayState,
    /// In index order.
    pub members: Vec<MemberStatus>,
    /// Why writes have stopped, if they have.
    pub stopped: Option<String>,
}

/// What a member's superblock says about it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MemberDescription {
    /// The pool it belongs to.
    pub pool: Uuid,
    /// Its identity.
    pub member: Uuid,
    /// Its position.
    pub index: MemberIndex,
    /// How many members the pool has.
    pub member_count: usize,
    /// The pool's level.
    pub level: Level,
    /// The pool's sequence as this member knows it.
    pub sequence: u64,
}

/// Reads a member's superblock, for `import`. Writes nothing.
pub fn describe_member(
    backend: &Arc<dyn Backend>,
    path: &Path,
) -> Result<MemberDescription, RaidError> {
    todo!()
}

/// An open array. All methods may be called from several threads at once.
pub struct Array {
    layouts: Vec<Layout>,
}

impl Array {
    /// Makes a new array and opens it for writing.
    pub fn create(
        backend: Arc<dyn Backend>,
        spec: &CreateSpec,
        engine_record: &[u8],
        witness: Box<dyn Witness>,
    ) -> Result<Array, RaidError> {
        todo!()
    }

    /// Opens an array from its members, given in any order (R1 to R4).
    pub fn open(
        backend: Arc<dyn Backend>,
        members: &[PathBuf],
        witness: Box<dyn Witness>,
        options: &OpenOptions,
    ) -> Result<Array, RaidError> {
        todo!()
    }

    /// The pool.
    pub fn uuid(&self) -> Uuid {
        todo!()
    }
    /// The level of the current layout.
    pub fn level(&self) -> Level {
        todo!()
    }
    /// Whether the array was opened read-only.
    pub fn read_only(&self) -> bool {
        todo!()
    }
    /// A layout by its id.
    pub fn layout(&self, id: LayoutId) -> Option<&Layout> {
        todo!()
    }
    /// The layout for new segments.
    pub fn current_layout(&self) -> &Layout {
        todo!()
    }
    /// Data bytes in one stripe of the current layout.
    pub fn stripe_data_bytes(&self) -> u32 {
        todo!()
    }
    /// Stripes in one segment.
    pub fn stripes_per_segment(&self) -> u32 {
        todo!()
    }
    /// Data bytes in one segment; below 2^24.
    pub fn segment_data_bytes(&self) -> u32 {
        todo!()
    }
    /// Segments the members can hold.
    pub fn slot_count(&self) -> u32 {
        todo!()
    }
    /// Data bytes the members can hold.
    pub fn data_capacity_bytes(&self) -> u64 {
        todo!()
    }
    /// Writes whole stripes with their parity on all in-sync members. Not
    /// durable before [`Array::sync`].
    pub fn write_stripes(&self, writes: &[StripeWrite]) -> Result<(), RaidError> {
        todo!()
    }
    /// Reads ranges, reconstructing what missing or failing members hold.
    pub fn read(&self, reads: &mut [SegmentRead]) {
        todo!()
    }
    /// Offers every reading of the range that the redundancy allows until one
    /// is accepted.
    pub fn read_alternatives(
        &self,
        placement: &Placement,
        offset: u32,
        length: u32,
        accept: &mut dyn FnMut(&[u8]) -> bool,
    ) -> Result<Option<Alternative>, RaidError> {
        todo!()
    }
    /// Puts verified bytes (any byte range of a segment) back on the members
    /// that hold them; no other byte changes (R7).
    pub fn rewrite_verified(
        &self,
        placement: &Placement,
        offset: u32,
        bytes: &[u8],
    ) -> Result<(), RaidError> {
        todo!()
    }
    /// Makes everything written before durable on all in-sync members.
    pub fn sync(&self) -> Result<(), RaidError> {
        todo!()
    }
    /// The segment's contents no longer matter.
    pub fn discard_segment(&self, placement: &Placement) {
        todo!()
    }
    /// Length of the journal ring.
    pub fn journal_bytes(&self) -> u64 {
        todo!()
    }
    /// Writes to the journal's copies (R16), durable on return.
    pub fn journal_write(&self, position: u64, data: &Arc<AlignedBuf>) -> Result<(), RaidError> {
        todo!()
    }
    /// The in-sync members, whose rings recovery reads.
    pub fn journal_members(&self) -> Vec<MemberIndex> {
        todo!()
    }
    /// Reads a member's ring.
    pub fn journal_read(
        &self,
        member: MemberIndex,
        position: u64,
        buffer: AlignedBuf,
    ) -> Result<AlignedBuf, RaidError> {
        todo!()
    }
    /// The engine's record as of the last superblock.
    pub fn engine_record(&self) -> Vec<u8> {
        todo!()
    }
    /// Whether the superblock that was opened was marked clean.
    pub fn was_clean(&self) -> bool {
        todo!()
    }
    /// Advances the sequence with a new engine record, durable on every
    /// in-sync member on return (R1).
    pub fn commit(&self, engine_record: &[u8], clean: bool) -> Result<(), RaidError> {
        todo!()
    }
    /// The one counter of superblocks (R1).
    pub fn sequence(&self) -> u64 {
        todo!()
    }
    /// How many membership changes there were.
    pub fn membership_epoch(&self) -> u64 {
        todo!()
    }
    /// The array and its members.
    pub fn status(&self) -> ArrayStatus {
        todo!()
    }
    /// Fails a member; on `Ok` the degrade barrier is durable (R2).
    pub fn fail_member(&self, member: MemberIndex, reason: &str) -> Result<(), RaidError> {
        todo!()
    }
    /// Which device implementation is in use.
    pub fn io_engine(&self) -> &'static str {
        todo!()
    }
    /// Reads every superblock copy; how many, and what is wrong with them.
    pub fn check_superblocks(&self) -> (u64, Vec<String>) {
        todo!()
    }
    /// Closes the devices, as dropping does.
    pub fn close(self) {}
}
