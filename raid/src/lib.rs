//! RAID layouts over files and block devices: members, superblocks, stripes.
//!
//! An [`Array`] turns members into segments of whole stripes, a journal ring
//! and one replicated record, and keeps them through the loss of as many
//! members as the level survives. Nothing here knows what is stored.
//!
//! ```
//! use std::sync::Arc;
//! use tessera_raid::{
//!     Array, CreateSpec, Level, Limits, MemoryWitness, Placement, SegmentRead, Sizes,
//!     SlotIndex, StripeWrite,
//!     device::{AlignedBuf, sim::SimWorld},
//! };
//!
//! # fn main() -> Result<(), tessera_raid::RaidError> {
//! let world = SimWorld::new(1);
//! let members = ["a", "b", "c"].map(|name| name.into()).to_vec();
//! for path in &members {
//!     world.add_device(path, 64 << 20);
//! }
//! let spec = CreateSpec {
//!     level: Level::Raid5,
//!     stripe_unit_bytes: 64 << 10,
//!     members,
//!     force: false,
//!     sizes: Sizes::default(),
//!     stall_limit: Limits::default().stall,
//! };
//! let witness = Box::new(MemoryWitness::new());
//! let array = Array::create(world.backend(), &spec, b"engine's own", witness)?;
//!
//! // Nothing may be written while the superblocks say clean.
//! array.commit(b"engine's own", false)?;
//! let placement = Placement::equal(array.current_layout().id, SlotIndex(0));
//! let data = Arc::new(AlignedBuf::zeroed(array.stripe_data_bytes() as usize));
//! array.write_stripes(&[StripeWrite { placement: placement.clone(), stripe: 0, data }])?;
//! array.sync()?;
//!
//! let buffer = AlignedBuf::zeroed(4096);
//! let mut reads = [SegmentRead { placement, offset: 0, buffer, outcome: Ok(()) }];
//! array.read(&mut reads);
//! assert!(reads[0].outcome.is_ok());
//! # Ok(())
//! # }
//! ```

pub mod array;
pub mod device;
mod error;
#[doc(hidden)]
pub mod fuzzing;
pub mod layout;
mod member;
mod membership;
pub mod parity;
#[doc(hidden)]
pub mod sabotage;
mod superblock;
mod units;
pub mod witness;

pub use array::{
    Alternative, Array, ArrayState, ArrayStatus, Attached, Clock, CopyCounts, CopyPart,
    CopyReading, CreateSpec, ENGINE_RECORD_BYTES, Limits, ManualClock, MemberState, MemberStatus,
    OpenOptions, SegmentRead, Sizes, Source, StripeCheck, StripeState, StripeWrite,
    SuperblockScrub, SystemClock, Target, Unreadable,
};
pub use error::{Kind, RaidError};
pub use layout::{Layout, Placement};
pub use member::{MemberDescription, describe_member};
pub use units::*;
pub use witness::{MemoryWitness, PoolFile, Witness, WitnessMember, WitnessRecord};
