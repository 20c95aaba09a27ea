//! What the threads of a server share: options, counters, and who is connected.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex, RwLock};
use tessera_engine::disk::DiskCatalog;

use super::ServerOptions;
use super::buffers::BufferPool;
use super::helpers::Helpers;
use super::outbox::Outbox;
use super::stats::Stats;
use super::tls::Tls;

/// Shared state.
pub(crate) struct Shared {
    pub(crate) catalog: Arc<dyn DiskCatalog>,
    pub(crate) options: ServerOptions,
    pub(crate) stats: Arc<Stats>,
    pub(crate) pool: Arc<BufferPool>,
    pub(crate) helpers: Helpers,
    draining: AtomicBool,
    /// What clients that come now get; replaced when certificates are renewed.
    tls: RwLock<Option<Arc<Tls>>>,
    registry: Mutex<Registry>,
    left: Condvar,
}

#[derive(Default)]
struct Registry {
    connections: HashMap<u64, Arc<Outbox>>,
    next: u64,
}

/// A place among the connections; given back when dropped, also by a panic.
pub(crate) struct Seat {
    shared: Arc<Shared>,
    id: u64,
}

impl Shared {
    pub(crate) fn new(catalog: Arc<dyn DiskCatalog>, options: ServerOptions) -> Arc<Self> {
        let tls = options.tls.clone().map(Arc::new);
        let pool = BufferPool::new(options.window_bytes, options.buffer_bytes);
        Arc::new(Self {
            catalog,
            options,
            stats: Arc::default(),
            pool,
            helpers: Helpers::new(),
            draining: AtomicBool::new(false),
            tls: RwLock::new(tls),
            registry: Mutex::default(),
            left: Condvar::new(),
        })
    }

    /// TLS as it is now.
    pub(crate) fn tls(&self) -> Option<Arc<Tls>> {
        self.tls.read().clone()
    }

    /// Puts other certificates and lists in place of those in use; the mode
    /// stays. Tells whether there is TLS at all.
    pub(crate) fn renew_tls(&self, mut new: Tls) -> bool {
        let mut tls = self.tls.write();
        let Some(old) = tls.as_ref() else {
            return false;
        };
        new.mode = old.mode;
        *tls = Some(Arc::new(new));
        true
    }

    /// Whether the server is shutting down.
    pub(crate) fn is_draining(&self) -> bool {
        self.draining.load(Ordering::Acquire)
    }

    /// Whether one more connection is allowed.
    pub(crate) fn has_room(&self) -> bool {
        self.registry.lock().connections.len() < self.options.max_connections
    }

    /// Registers a connection; `None` when there are too many or it is too late.
    pub(crate) fn seat(self: &Arc<Self>, outbox: &Arc<Outbox>) -> Option<Seat> {
        let mut registry = self.registry.lock();
        if self.is_draining() || registry.connections.len() >= self.options.max_connections {
            return None;
        }
        let id = registry.next;
        registry.next += 1;
        registry.connections.insert(id, Arc::clone(outbox));
        self.stats
            .connections_accepted
            .fetch_add(1, Ordering::Relaxed);
        self.stats.connections_open.fetch_add(1, Ordering::Relaxed);
        Some(Seat {
            shared: Arc::clone(self),
            id,
        })
    }

    /// Tells every connection to finish.
    pub(crate) fn begin_drain(&self) {
        // Under the lock, so that no seat is taken between the two steps.
        let registry = self.registry.lock();
        self.draining.store(true, Ordering::Release);
        for outbox in registry.connections.values() {
            outbox.wake();
        }
    }

    /// Cuts every connection; how many there were.
    pub(crate) fn disconnect_all(&self) -> usize {
        let registry = self.registry.lock();
        for outbox in registry.connections.values() {
            outbox.disconnect();
        }
        registry.connections.len()
    }

    /// Waits until all connections have ended; `false` when the time is over.
    pub(crate) fn wait_until_empty(&self, timeout: Duration) -> bool {
        let end = Instant::now() + timeout;
        let mut registry = self.registry.lock();
        while !registry.connections.is_empty() {
            if self.left.wait_until(&mut registry, end).timed_out() {
                return registry.connections.is_empty();
            }
        }
        true
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        let outbox = self.shared.registry.lock().connections.remove(&self.id);
        self.shared
            .stats
            .connections_open
            .fetch_sub(1, Ordering::Relaxed);
        if let Some(outbox) = outbox {
            outbox.close();
        }
        self.shared.left.notify_all();
    }
}
