//! Why a server cannot listen.

use std::io;
use std::path::PathBuf;

use thiserror::Error;

/// Why a server cannot listen.
#[derive(Debug, Error)]
pub enum ListenError {
    /// Somebody answers at this socket.
    #[error("Another server is listening on {0}: stop it or choose another socket")]
    SocketInUse(PathBuf),
    /// The path exists and is no socket.
    #[error("{0} exists and is not a socket: choose another path")]
    NotASocket(PathBuf),
    /// Longer than the operating system permits.
    #[error("The socket path {path} is longer than {limit} bytes: choose a shorter one")]
    PathTooLong {
        /// The path.
        path: PathBuf,
        /// The longest path that works.
        limit: usize,
    },
    /// The socket cannot be made or probed.
    #[error("Cannot listen on {path}")]
    Unix {
        /// The path.
        path: PathBuf,
        /// What the operating system says.
        source: io::Error,
    },
    /// The address is not `HOST:PORT`, or the name does not resolve.
    #[error("{address} is not an address of the form HOST:PORT")]
    BadAddress {
        /// What was asked for.
        address: String,
        /// What the operating system says.
        source: io::Error,
    },
    /// Others could read along.
    #[error(
        "{0} can be reached from other machines: require TLS, or say that serving in the clear is meant"
    )]
    InTheClear(String),
    /// The port is taken.
    #[error("The address {0} is in use: stop the other server or choose another port")]
    AddressInUse(String),
    /// The address cannot be bound.
    #[error("Cannot listen on {address}")]
    Tcp {
        /// What was asked for.
        address: String,
        /// What the operating system says.
        source: io::Error,
    },
    /// What was handed on is no listening stream socket.
    #[error("The socket handed on by the service manager cannot be used: {0}")]
    Unusable(&'static str),
    /// A thread or descriptor is missing.
    #[error("Cannot start a listener")]
    Resources(#[source] io::Error),
    /// The server has been shut down.
    #[error("The server is shutting down")]
    ShuttingDown,
}
