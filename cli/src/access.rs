//! Reaching a pool, served or not: the user need not know which.
//!
//! A served pool is locked by its serving process, which listens on
//! `DIR/control.sock`; management then goes through that socket. Otherwise
//! the pool is opened here for the moment of the command.

use std::{path::Path, sync::Arc};

use serde::{Deserialize, Serialize};
use tessera_engine::{
    api::{PoolStatus, VolumeInfo, VolumeSpec},
    pool::{IoChoice, Pool, PoolOptions},
};

use crate::{
    control::client::Client,
    failure::{Failure, Kind},
};

/// Memory for a pool that is opened only for the moment of a command.
const COMMAND_MEMORY_BYTES: u64 = 256 << 20;

/// The process that serves a pool.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct ServerInfo {
    /// Its process id.
    pub(crate) pid: u32,
    /// Its version of Tessera.
    pub(crate) version: String,
    /// Where NBD clients connect, and where volumes are mounted.
    pub(crate) endpoints: Vec<String>,
    /// Clients can only read.
    pub(crate) read_only: bool,
    /// NBD connections and open files at this moment.
    pub(crate) connections: u64,
}

/// A pool's status and, while it is served, by whom.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct StatusAnswer {
    /// The pool itself.
    #[serde(flatten)]
    pub(crate) pool: PoolStatus,
    /// The serving process, if any.
    pub(crate) server: Option<ServerInfo>,
}

/// A change of a volume's size.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Resize {
    /// The new size.
    pub(crate) size_bytes: u64,
    /// Shrinking, and so losing what lies beyond, is meant.
    pub(crate) force: bool,
}

/// What can be asked of a pool, wherever it is open.
pub(crate) trait Management: Send + Sync {
    /// The pool's health and space.
    fn status(&self) -> Result<StatusAnswer, Failure>;
    /// All volumes by name.
    fn volumes(&self) -> Result<Vec<VolumeInfo>, Failure>;
    /// One volume.
    fn volume(&self, name: &str) -> Result<VolumeInfo, Failure>;
    /// Makes a volume.
    fn create_volume(&self, spec: &VolumeSpec) -> Result<VolumeInfo, Failure>;
    /// Grows or shrinks a volume.
    fn resize_volume(&self, name: &str, resize: Resize) -> Result<VolumeInfo, Failure>;
    /// Gives a volume another name.
    fn rename_volume(&self, old: &str, new: &str) -> Result<VolumeInfo, Failure>;
    /// Deletes a volume.
    fn delete_volume(&self, name: &str) -> Result<(), Failure>;
}

/// A pool that is open in this process.
pub(crate) struct LocalPool {
    pool: Arc<Pool>,
    server: Option<Box<dyn Fn() -> ServerInfo + Send + Sync>>,
}

impl LocalPool {
    /// A pool opened for a command.
    fn for_command(pool: Arc<Pool>) -> Self {
        Self { pool, server: None }
    }

    /// A pool that this process serves.
    pub(crate) fn served(
        pool: Arc<Pool>,
        server: impl Fn() -> ServerInfo + Send + Sync + 'static,
    ) -> Self {
        Self {
            pool,
            server: Some(Box::new(server)),
        }
    }
}

impl Management for LocalPool {
    fn status(&self) -> Result<StatusAnswer, Failure> {
        let mut pool = self.pool.status();
        pool.served = self.server.is_some();
        Ok(StatusAnswer {
            pool,
            server: self.server.as_ref().map(|server| server()),
        })
    }

    fn volumes(&self) -> Result<Vec<VolumeInfo>, Failure> {
        Ok(self.pool.volumes())
    }

    fn volume(&self, name: &str) -> Result<VolumeInfo, Failure> {
        Ok(self.pool.volume(name)?)
    }

    fn create_volume(&self, spec: &VolumeSpec) -> Result<VolumeInfo, Failure> {
        Ok(self.pool.create_volume(spec)?)
    }

    fn resize_volume(&self, name: &str, resize: Resize) -> Result<VolumeInfo, Failure> {
        Ok(self
            .pool
            .resize_volume(name, resize.size_bytes, resize.force)?)
    }

    fn rename_volume(&self, old: &str, new: &str) -> Result<VolumeInfo, Failure> {
        Ok(self.pool.rename_volume(old, new)?)
    }

    fn delete_volume(&self, name: &str) -> Result<(), Failure> {
        Ok(self.pool.delete_volume(name)?)
    }
}

/// Whether a command changes the pool.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Intent {
    /// It only looks: a stopped pool is opened read-only and left as it is.
    Look,
    /// It changes something.
    Change,
}

/// Runs `action` on the pool in `dir`: in the serving process if there is
/// one, else by opening the pool here and closing it clean afterwards.
pub(crate) fn with_pool<T>(
    dir: &Path,
    intent: Intent,
    io: IoChoice,
    action: impl FnOnce(&dyn Management) -> anyhow::Result<T>,
) -> anyhow::Result<T> {
    if let Some(client) = Client::connect(dir)? {
        return action(&client);
    }
    let options = PoolOptions {
        read_only: intent == Intent::Look,
        memory_bytes: COMMAND_MEMORY_BYTES,
        io,
    };
    let pool = match Pool::open(dir, &options).map_err(Failure::from) {
        Ok(pool) => pool,
        Err(failure) if failure.kind == Kind::Busy => {
            // A server that was starting may answer by now.
            if let Some(client) = Client::connect(dir)? {
                return action(&client);
            }
            return Err(unreachable_holder(dir, &failure).into());
        }
        Err(failure) => return Err(failure.into()),
    };
    let done = action(&LocalPool::for_command(Arc::clone(&pool)));
    let closed = pool.close().map_err(Failure::from);
    let value = done?;
    closed?;
    Ok(value)
}

/// Refuses when the pool in `dir` is being served; `what` then cannot be done.
pub(crate) fn refuse_if_served(dir: &Path, what: &str) -> anyhow::Result<()> {
    if Client::connect(dir)?.is_some() {
        return Err(Failure::new(
            Kind::Busy,
            format!(
                "The pool {} is being served: stop the server before {what}",
                dir.display()
            ),
        )
        .into());
    }
    Ok(())
}

/// The pool is locked, yet nobody answers on its control socket.
fn unreachable_holder(dir: &Path, failure: &Failure) -> Failure {
    Failure::new(
        Kind::Busy,
        format!(
            "{failure}, and no server answers at {}: wait for that process or stop it",
            dir.join(crate::control::SOCKET_NAME).display()
        ),
    )
}
