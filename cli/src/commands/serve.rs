//! `tessera serve`: serve a pool's volumes as disks over NBD until told to stop.
//!
//! Start: open and recover the pool (which takes its lock), listen on the
//! control socket, listen for NBD clients, tell their URIs on stdout.
//!
//! Stop, in this order, so that nothing acknowledged is lost and no client
//! finds half a server: (1) NBD connections finish what has arrived and
//! close; (2) the control socket finishes its requests and goes; (3) the pool
//! flushes and closes clean, which gives up the lock.

use std::{
    path::{Path, PathBuf, absolute},
    sync::Arc,
    time::Duration,
};

use anyhow::Context;
use clap::Args;
use tessera_engine::{
    api::{MemberState, PoolStatus},
    pool::{Pool, PoolOptions},
};
use tessera_nbd::{Server, ServerOptions};

use crate::{
    access::{self, LocalPool, ServerInfo},
    args::Globals,
    control::server::ControlServer,
    failure::Failure,
    logging,
    notify::notify,
    output,
    signals::StopSignals,
    size,
};

/// The NBD socket's name within the pool's directory.
const SOCKET_NAME: &str = "nbd.sock";
/// How long the drain waits for clients that do not take their answers.
const DRAIN_PATIENCE: Duration = Duration::from_secs(30);

/// Serve a pool's volumes as disks over NBD
///
/// Every volume is an export of its name; where there is exactly one, it is
/// the default export too. Without --socket and --listen, DIR/nbd.sock is
/// listened on. Prints one line 'listening on URI' per endpoint once clients
/// can connect. SIGTERM and SIGINT finish what is in flight, flush and close
/// the pool; a second one ends the process at once.
///
/// Over TCP there is neither encryption nor authentication: listen on a
/// trusted network only.
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  \
    tessera serve tank\n  \
    tessera serve tank --listen 127.0.0.1:10809 --memory 2G\n  \
    tessera serve tank --socket /run/tank.sock --read-only")]
pub(crate) struct Serve {
    /// The pool's directory
    dir: PathBuf,
    /// Listen on a Unix socket at PATH
    #[arg(long, value_name = "PATH")]
    socket: Option<PathBuf>,
    /// Listen on TCP; port 0 takes a free one
    #[arg(long, value_name = "HOST:PORT")]
    listen: Option<String>,
    /// Let clients read only, and write nothing to the members
    #[arg(long)]
    read_only: bool,
    /// Memory for caches, buffers and the index
    #[arg(long, value_name = "SIZE", default_value = "512M", value_parser = size::parse)]
    memory: u64,
}

impl Serve {
    pub(crate) fn run(self, globals: &Globals) -> anyhow::Result<()> {
        // Before the first thread: all of them inherit it. It keeps memory
        // reclaim from waiting for writes to our own disk; where it is not
        // permitted, there is no such disk to fear either.
        if let Err(error) = rustix::process::configure_io_flusher_behavior(true) {
            tracing::debug!(%error, "not marked as an I/O flusher");
        }
        access::refuse_if_served(&self.dir, "serving it again")?;
        let mut signals = StopSignals::install()?;

        let options = PoolOptions {
            read_only: self.read_only,
            memory_bytes: self.memory,
            io: globals.io(),
        };
        let pool = Pool::open(&self.dir, &options).map_err(Failure::from)?;
        logging::warn_from_now_on();
        warn_of_members(&pool.status());
        let served = self.serve(&pool, &mut signals);
        let closed = pool.close().map_err(Failure::from);
        served?;
        closed?;
        Ok(())
    }

    fn serve(&self, pool: &Arc<Pool>, signals: &mut StopSignals) -> anyhow::Result<()> {
        let server = Arc::new(Server::new(
            pool.catalog(),
            ServerOptions {
                read_only: self.read_only,
                ..ServerOptions::default()
            },
        ));
        let endpoints = match self.listen_all(&server) {
            Ok(endpoints) => endpoints,
            Err(error) => {
                server.shutdown(Duration::ZERO);
                return Err(error);
            }
        };
        let description = {
            let (server, read_only, endpoints) =
                (Arc::clone(&server), self.read_only, endpoints.clone());
            move || describe(&server, read_only, &endpoints)
        };
        let management = Arc::new(LocalPool::served(Arc::clone(pool), description));
        let control = match ControlServer::start(&self.dir, management) {
            Ok(control) => control,
            Err(failure) => {
                server.shutdown(Duration::ZERO);
                return Err(failure.into());
            }
        };
        let told = endpoints
            .iter()
            .try_for_each(|uri| output::print(&format!("listening on {uri}\n")));
        if told.is_ok() {
            notify("READY=1");
            signals.wait();
            notify("STOPPING=1");
            tracing::info!("stopping: finishing what is in flight");
        }
        let drained = server.shutdown(DRAIN_PATIENCE);
        if drained.cut > 0 {
            tracing::warn!(
                connections = drained.cut,
                "clients did not take their answers in time and were disconnected"
            );
        }
        control.shutdown();
        told
    }

    fn listen_all(&self, server: &Server) -> anyhow::Result<Vec<String>> {
        let mut endpoints = Vec::new();
        let default = self.dir.join(SOCKET_NAME);
        let socket = match (&self.socket, &self.listen) {
            (Some(path), _) => Some(path.as_path()),
            (None, None) => Some(default.as_path()),
            (None, Some(_)) => None,
        };
        if let Some(path) = socket {
            endpoints.push(listen_unix(server, path)?);
        }
        if let Some(address) = &self.listen {
            endpoints.push(server.listen_tcp(address)?);
        }
        Ok(endpoints)
    }
}

fn listen_unix(server: &Server, path: &Path) -> anyhow::Result<String> {
    // Absolute, because clients use the URI from directories of their own.
    let path =
        absolute(path).with_context(|| format!("{} is not a usable path", path.display()))?;
    Ok(server.listen_unix(&path)?)
}

fn describe(server: &Server, read_only: bool, endpoints: &[String]) -> ServerInfo {
    ServerInfo {
        pid: std::process::id(),
        version: env!("CARGO_PKG_VERSION").to_owned(),
        endpoints: endpoints.to_vec(),
        read_only,
        connections: server.stats().connections_open,
    }
}

/// A degraded pool serves like any other, so its operator has to be told.
fn warn_of_members(status: &PoolStatus) {
    for member in &status.members {
        let state = match member.state {
            MemberState::Online => continue,
            MemberState::Failed => "failed",
            MemberState::Missing => "missing",
        };
        tracing::warn!(
            index = member.index,
            path = member.path,
            "a member is {state}"
        );
    }
}
