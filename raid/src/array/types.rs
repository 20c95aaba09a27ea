//! What goes into and comes out of an array.

use std::{path::PathBuf, sync::Arc, time::Duration};

use uuid::Uuid;

use crate::{Level, MemberIndex, Placement, RaidError, device::AlignedBuf};

/// Sizes that simulation makes tiny (R24).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Sizes {
    /// Data a segment is to hold, about; rounded down to whole stripes.
    /// Below [`Sizes::SEGMENT_DATA_BYTES_MAX`] after rounding.
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
        Self {
            segment_data_bytes_target: 8 << 20,
            journal_bytes: None,
        }
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
    /// The stripe's data, [`crate::Array::stripe_data_bytes`] long.
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
    /// Set by [`crate::Array::read`].
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
