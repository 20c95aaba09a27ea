//! RAID layouts over files and block devices: members, superblocks, stripes.
//!
//! An [`Array`] turns members into segments of whole stripes, a journal ring
//! and one replicated record, and keeps them through the loss of as many
//! members as the level survives. Nothing here knows what is stored.

pub mod array;
pub mod device;
mod error;
pub mod layout;
mod member;
mod membership;
pub mod parity;
mod superblock;
mod units;
pub mod witness;

pub use array::{
    Alternative, Array, ArrayState, ArrayStatus, CreateSpec, ENGINE_RECORD_BYTES, MemberState,
    MemberStatus, OpenOptions, SegmentRead, Sizes, StripeWrite,
};
pub use error::{Kind, RaidError};
pub use layout::{Layout, Placement};
pub use member::{MemberDescription, describe_member};
pub use units::*;
pub use witness::{MemoryWitness, PoolFile, Witness, WitnessMember, WitnessRecord};
