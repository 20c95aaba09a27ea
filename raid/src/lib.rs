//! RAID layouts over files and block devices: members, superblocks, stripes.
//!
//! An [`Array`] turns members into segments of whole stripes, a journal ring
//! and one replicated record, and keeps them through the loss of as many
//! members as the level survives. Nothing here knows what is stored.

pub mod array;
pub mod device;
mod error;
pub mod layout;
pub mod parity;
mod units;
pub mod witness;

pub use array::{
    Alternative, Array, ArrayState, ArrayStatus, CreateSpec, ENGINE_RECORD_BYTES,
    MemberDescription, MemberState, MemberStatus, OpenOptions, SegmentRead, Sizes, StripeWrite,
    describe_member,
};
pub use error::{Kind, RaidError};
pub use layout::{Layout, Placement};
pub use units::*;
pub use witness::{MemoryWitness, PoolFile, Witness, WitnessMember, WitnessRecord};
