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
//! (`fallocate`). Volumes are made, renamed, resized and deleted by
//! management commands, never through the mount.
//!
//! The parts: [`inode`] numbers files, [`entry`] describes them, [`mod@file`]
//! reads and writes an open one, `filesystem` answers the kernel, `mountpoint`
//! looks at where to mount, [`Mount`] is the mount while it lives.

pub mod entry;
mod errno;
pub mod file;
mod filesystem;
pub mod inode;
mod mount;
mod mountpoint;
mod volumes;

pub use errno::{Errno, errno_of};
pub use mount::{Mount, MountOptions};
pub use mountpoint::{MountError, Mountpoint};
pub use volumes::{Space, Volumes};
