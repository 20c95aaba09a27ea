//! What goes into and comes out of an array.

use std::{ops::Range, path::PathBuf, sync::Arc, time::Duration};

use uuid::Uuid;

use super::{Clock, Limits, SystemClock};
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
    /// How long a member may leave an operation without an answer; then the
    /// creation is refused. [`Limits::default`] has the usual one.
    pub stall_limit: Duration,
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
    /// How long to wait for a member's superblocks. One that takes longer
    /// refuses the opening: a pool must not be degraded by it.
    pub answer_patience: Duration,
    /// How long a member may stall in use before it can be failed (R4).
    pub stall_limit: Duration,
    /// More failed reads within an hour than this fail a member (R4).
    pub read_errors_per_hour: u32,
    /// What that hour is measured with.
    pub clock: Arc<dyn Clock>,
}

impl OpenOptions {
    pub(super) fn limits(&self) -> Limits {
        Limits {
            stall: self.stall_limit,
            read_errors_per_hour: self.read_errors_per_hour,
        }
    }
}

impl Default for OpenOptions {
    fn default() -> Self {
        Self {
            read_only: false,
            force: false,
            lock_patience: Duration::from_secs(5),
            answer_patience: Limits::default().stall,
            stall_limit: Limits::default().stall,
            read_errors_per_hour: Limits::default().read_errors_per_hour,
            clock: Arc::new(SystemClock::default()),
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
    /// Waits to replace one that fails.
    Spare,
    /// A target for a member that is not in use.
    Rebuilding {
        /// The member.
        of: MemberIndex,
    },
    /// A target for a member that is in use.
    Replacing {
        /// The member.
        of: MemberIndex,
    },
}

/// One member, spare or target.
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
    /// Its size when it became a member.
    pub size_bytes: u64,
    /// Failed reads since the array was opened.
    pub read_errors: u64,
    /// Failed writes and syncs since the array was opened.
    pub write_errors: u64,
    /// Verified rewrites that changed something, since the array was opened.
    pub repaired: u64,
    /// Why it is not in use, if it went since the array was opened.
    pub reason: Option<String>,
}

impl MemberStatus {
    /// Failed operations since the array was opened.
    pub fn errors(&self) -> u64 {
        self.read_errors + self.write_errors
    }
}

/// The array and its members.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ArrayStatus {
    /// Of the whole.
    pub state: ArrayState,
    /// In index order; rows that nobody has are left out.
    pub members: Vec<MemberStatus>,
    /// Why writes have stopped, if they have.
    pub stopped: Option<String>,
    /// The last member or target that failed since the array was opened, and
    /// why.
    pub last_failure: Option<String>,
}

/// Where a target comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Source {
    /// A spare of the pool.
    Spare(MemberIndex),
    /// A file or device that is not the pool's.
    NewDevice {
        /// Where it is.
        path: PathBuf,
        /// Overwrite it if it holds something already.
        force: bool,
    },
    /// The member itself, back from having been away.
    Returning {
        /// Where it is.
        path: PathBuf,
    },
}

/// A target that was attached.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Attached {
    /// Its row.
    pub target: MemberIndex,
    /// Its identity.
    pub uuid: Uuid,
    /// Everything that was synced before so many engine commits
    /// ([`crate::Array::commits`]) is on it already: it came back.
    pub since: Option<u64>,
}

/// A target that is written to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Target {
    /// Its row.
    pub target: MemberIndex,
    /// The member whose place it is to take.
    pub of: MemberIndex,
    /// Its identity.
    pub uuid: Uuid,
}

/// What a step of a rebuild did.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct CopyCounts {
    /// Bytes read from members in use.
    pub read_bytes: u64,
    /// Bytes written to the target.
    pub written_bytes: u64,
    /// Reads that failed; others gave what they should have.
    pub read_errors: u64,
    /// Blocks that nobody could give: they are zero on the target.
    pub lost_blocks: u64,
}

/// One direct copy of a range.
#[derive(Debug)]
pub struct CopyReading {
    /// The range's bytes; arbitrary where a part has an error.
    pub bytes: AlignedBuf,
    /// Who gave which of them, in order.
    pub parts: Vec<CopyPart>,
}

/// A part of a copy that one member holds.
#[derive(Debug)]
pub struct CopyPart {
    /// Within the copy's bytes.
    pub range: Range<u32>,
    /// The member.
    pub member: MemberIndex,
    /// Whether it could be read; `NotInUse` where the member is not in use.
    pub outcome: Result<(), RaidError>,
}

/// Whether a stripe's redundancy agrees with its data.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StripeCheck {
    /// The stripe within its segment.
    pub stripe: u32,
    /// What was found.
    pub state: StripeState,
}

/// See [`StripeCheck`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum StripeState {
    /// It does, as far as the members in use can tell.
    Consistent,
    /// It does not: the members whose parity, or whose mirror copy, is not
    /// what follows from the data.
    Mismatch(Vec<MemberIndex>),
    /// These members failed to read it.
    Unreadable(Vec<MemberIndex>),
    /// Too few members are in use for anything to compare.
    Unchecked,
}

/// What was found and mended of one member's superblock copies.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SuperblockScrub {
    /// The member, spare or target.
    pub member: MemberIndex,
    /// Copies read.
    pub checked: u64,
    /// What was wrong, one sentence a copy.
    pub wrong: Vec<String>,
    /// Copies that are right again.
    pub rewritten: u64,
}

/// A range of a segment whose plain read failed, and which was reconstructed.
/// Whoever can verify its bytes should put them back
/// ([`crate::Array::rewrite_verified`]), so that it can be read again.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Unreadable {
    /// The segment's placement.
    pub placement: Placement,
    /// First byte within the segment's data.
    pub offset: u32,
    /// Bytes.
    pub length: u32,
    /// Who failed to read it.
    pub member: MemberIndex,
}
