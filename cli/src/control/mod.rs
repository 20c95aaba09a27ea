//! The control socket: management of a served pool from other processes.
//!
//! A serving process listens on `DIR/control.sock`, a Unix socket of mode
//! 0600, and answers HTTP/1.1 with JSON bodies; `docs/control-api.md` lists
//! the requests. One request a connection, a few connections at a time, every
//! length and every wait bounded.
//!
//! ```text
//!   client ──connect──▶ server: peer's user id ──▶ http: bytes to request
//!                                                     │
//!   client ◀─answer──── http: response to bytes ◀── routes: Management
//! ```

pub(crate) mod client;
mod http;
mod routes;
pub(crate) mod server;
mod wire;

use std::{
    io,
    os::{fd::OwnedFd, unix::ffi::OsStrExt},
    path::{Path, PathBuf},
};

use rustix::{
    fs::{Mode, OFlags},
    net::SocketAddrUnix,
};

/// The socket's name within the pool's directory.
pub(crate) const SOCKET_NAME: &str = "control.sock";

/// A socket's address below the pool's directory, whatever the directory's
/// length: an address holds at most 107 bytes, so a longer path goes through
/// a descriptor of the directory.
struct Address {
    address: SocketAddrUnix,
    /// Keeps the descriptor that the address may name open.
    _directory: Option<OwnedFd>,
}

impl Address {
    fn in_directory(dir: &Path) -> io::Result<Self> {
        const LONGEST: usize = 107;
        let path = dir.join(SOCKET_NAME);
        if path.as_os_str().as_bytes().len() <= LONGEST {
            return Ok(Self {
                address: SocketAddrUnix::new(&path)?,
                _directory: None,
            });
        }
        use std::os::fd::AsRawFd;
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let directory = rustix::fs::open(dir, flags, Mode::empty())?;
        let path = PathBuf::from(format!(
            "/proc/self/fd/{}/{SOCKET_NAME}",
            directory.as_raw_fd()
        ));
        Ok(Self {
            address: SocketAddrUnix::new(&path)?,
            _directory: Some(directory),
        })
    }
}
