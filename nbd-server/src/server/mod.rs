//! The server: listeners, connections, and an orderly end.

mod batch;
mod buffers;
mod connection;
mod error;
mod exports;
mod handshake;
mod helpers;
mod inbox;
mod listener;
mod outbox;
mod plan;
mod shared;
mod stats;
mod tls;
mod transport;

use std::os::fd::OwnedFd;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tessera_engine::disk::DiskCatalog;

pub use error::ListenError;
pub use stats::StatsSnapshot;
pub use tls::{Tls, TlsError, TlsFiles, TlsMode};

use crate::protocol::Instance;
use listener::Listener;
use shared::Shared;

/// How a server behaves.
#[derive(Debug, Clone)]
pub struct ServerOptions {
    /// Export every disk read-only.
    pub read_only: bool,
    /// Connections at a time; more are closed at once. Each takes a thread and
    /// two descriptors.
    pub max_connections: usize,
    /// How long a client may take to choose an export.
    pub handshake_timeout: Duration,
    /// How long a client may take to accept the answer to a batch.
    pub reply_timeout: Duration,
    /// Memory for transfers beyond the 160 KiB that every busy connection may
    /// have: up to this much for windows, and as much again for single replies
    /// too large for one.
    pub buffer_bytes: usize,
    /// A window: what a connection with much to move receives, or reads from
    /// the disk, at a time. Larger ones give the disk more to do at once,
    /// smaller ones stay in the CPU's cache.
    pub window_bytes: usize,
    /// TLS for clients over TCP.
    pub tls: Option<Tls>,
    /// Listen also to other machines without requiring TLS.
    pub in_the_clear: bool,
    /// Which run of the server this is, to be told to clients that ask.
    pub instance: Option<Instance>,
}

impl Default for ServerOptions {
    fn default() -> Self {
        Self {
            read_only: false,
            max_connections: 1024,
            handshake_timeout: Duration::from_secs(10),
            reply_timeout: Duration::from_secs(60),
            buffer_bytes: 64 << 20,
            // Two reads of 1 MiB and their headers. With eight such reads at a
            // time there is one window to send and three to execute; windows
            // of twice the size, with one to execute, were a sixth slower.
            window_bytes: (2 << 20) + (64 << 10),
            tls: None,
            in_the_clear: false,
            instance: None,
        }
    }
}

/// How a shutdown went.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Drained {
    /// Connections that did not finish in time and were cut.
    pub cut: usize,
    /// Connections whose threads are still inside the disk.
    pub stuck: usize,
}

/// An NBD server for the disks of a catalogue.
pub struct Server {
    shared: Arc<Shared>,
    listeners: Mutex<Vec<Listener>>,
}

/// How long a cut connection may take to notice.
const CUT_GRACE: Duration = Duration::from_secs(2);
/// Descriptors kept for everything that is not a connection.
const OTHER_DESCRIPTORS: u64 = 512;

impl Server {
    /// Makes a server that does not listen yet. Raises the process's soft limit
    /// on descriptors as far as its connections need and the hard limit allows.
    pub fn new(catalog: Arc<dyn DiskCatalog>, options: ServerOptions) -> Self {
        raise_descriptor_limit(options.max_connections);
        Self {
            shared: Shared::new(catalog, options),
            listeners: Mutex::default(),
        }
    }

    /// Listens on a Unix socket. A socket left behind by a dead server is
    /// replaced. Returns the URI of the default export.
    pub fn listen_unix(&self, path: &Path) -> Result<String, ListenError> {
        self.listen(|| listener::bind_unix(path))
    }

    /// Listens on a TCP address `HOST:PORT`; port 0 chooses a free one. Returns
    /// the URI of the default export with the real port. An address that other
    /// machines can reach needs [`TlsMode::Required`], or
    /// [`ServerOptions::in_the_clear`].
    pub fn listen_tcp(&self, address: &str) -> Result<String, ListenError> {
        let options = &self.shared.options;
        let tls = options.tls.as_ref().map(|tls| tls.mode);
        self.listen(|| listener::bind_tcp(address, tls, options.in_the_clear))
    }

    /// Takes over a socket that listens already, such as one a service manager
    /// has handed on. A Unix socket's file is not ours and stays. Returns the
    /// URI of the default export. What [`Server::listen_tcp`] says of other
    /// machines holds here, too.
    pub fn listen_socket(&self, socket: OwnedFd) -> Result<String, ListenError> {
        let options = &self.shared.options;
        let tls = options.tls.as_ref().map(|tls| tls.mode);
        self.listen(|| listener::adopt(socket, tls, options.in_the_clear))
    }

    /// Puts other certificates, authorities and lists of clients in place of
    /// those in use, for clients that come from now on; the mode stays as it
    /// was. Tells whether the server speaks TLS at all.
    pub fn renew_tls(&self, tls: Tls) -> bool {
        self.shared.renew_tls(tls)
    }

    /// Stops accepting at the endpoint of this URI, as it was returned when
    /// listening began. Clients that are connected stay. Tells whether there
    /// was such an endpoint.
    pub fn stop_listening(&self, uri: &str) -> bool {
        let mut listeners = self.listeners.lock();
        let Some(index) = listeners.iter().position(|one| one.uri() == uri) else {
            return false;
        };
        listeners.swap_remove(index).stop();
        true
    }

    fn listen(
        &self,
        bind: impl FnOnce() -> Result<listener::Bound, ListenError>,
    ) -> Result<String, ListenError> {
        let mut listeners = self.listeners.lock();
        if self.shared.is_draining() {
            return Err(ListenError::ShuttingDown);
        }
        let bound = bind()?;
        let uri = bound.uri().to_owned();
        listeners.push(Listener::start(&self.shared, bound)?);
        Ok(uri)
    }

    /// The counters.
    pub fn stats(&self) -> StatsSnapshot {
        self.shared.stats.snapshot()
    }

    /// Ends in order: stops accepting, tells clients that negotiate, lets every
    /// connection execute and answer what it has received, and waits until all
    /// are closed. After `drain_timeout` the rest is cut off. Writes that were
    /// answered but not flushed are still the caller's to flush.
    pub fn shutdown(&self, drain_timeout: Duration) -> Drained {
        let mut listeners = self.listeners.lock();
        // First, so that a client that gets through meets a draining server.
        self.shared.begin_drain();
        listeners.drain(..).for_each(Listener::stop);
        drop(listeners);
        if self.shared.wait_until_empty(drain_timeout) {
            return Drained { cut: 0, stuck: 0 };
        }
        let cut = self.shared.disconnect_all();
        let stuck = if self.shared.wait_until_empty(CUT_GRACE) {
            0
        } else {
            self.shared.disconnect_all()
        };
        Drained { cut, stuck }
    }
}

impl Drop for Server {
    /// Cuts whatever has not been shut down.
    fn drop(&mut self) {
        self.shutdown(Duration::ZERO);
    }
}

fn raise_descriptor_limit(connections: usize) {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let limit = getrlimit(Resource::Nofile);
    let Some(current) = limit.current else { return };
    let connections = u64::try_from(connections).unwrap_or(u64::MAX);
    let wanted = connections
        .saturating_mul(2)
        .saturating_add(OTHER_DESCRIPTORS);
    let wanted = limit.maximum.map_or(wanted, |maximum| wanted.min(maximum));
    if wanted > current
        && let Err(error) = setrlimit(
            Resource::Nofile,
            Rlimit {
                current: Some(wanted),
                maximum: limit.maximum,
            },
        )
    {
        tracing::warn!(%error, "cannot raise the limit on open files");
    }
}
