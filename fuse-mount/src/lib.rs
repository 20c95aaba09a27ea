//! The volumes of a pool as files: a FUSE mount.
//!
//! ```text
//!   MOUNTPOINT/
//!     volumes/
//!       vm1        a regular file, as long as the volume
//!       vm2
//! ```
//!
//! Every file is read and written past the kernel's page cache, so that what
//! the kernel acknowledges the pool has taken. `fsync`, `close` after a write
//! and O_SYNC make it durable. Holes can be found (`SEEK_HOLE`) and made
//! (`fallocate`). Creating, truncating, renaming and deleting a file does the
//! same to its volume; docs/fuse.md says what each means for a disk.
//!
//! The parts: [`inode`] numbers files, [`entry`] describes them, [`attribute`]
//! tells more of them, [`node`] knows how long they are, [`mod@file`] reads and
//! writes an open one, [`combine`] gathers reads, `shared` holds it all
//! together, `filesystem` answers the kernel, `mountpoint` looks at where to
//! mount, [`Mount`] is the mount while it lives.

pub mod attribute;
pub mod combine;
pub mod entry;
mod errno;
pub mod file;
mod filesystem;
pub mod inode;
mod mount;
mod mountpoint;
pub mod node;
mod shared;
mod volumes;

pub use errno::{Errno, errno_of, errno_of_management};
pub use mount::{Mount, MountOptions};
pub use mountpoint::{MountError, Mountpoint};
pub use volumes::{Ratios, Space, Volumes};
