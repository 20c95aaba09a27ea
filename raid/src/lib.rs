//! RAID layouts over files and block devices: members, superblocks, stripes.

pub mod device;
pub mod layout;
pub mod parity;
mod units;

pub use units::*;
