//! `tessera serve`: serve a pool's volumes as disks over NBD, and as files if
//! asked to, until told to stop.
//!
//! Start: look at the mount point, open and recover the pool (which takes its
//! lock), listen for NBD clients, mount, listen on the control socket, tell the
//! URIs and the mount on stdout.
//!
//! Stop, in this order, so that nothing acknowledged is lost and no client
//! finds half a server: (1) the mount goes; (2) NBD connections finish what has
//! arrived and close; (3) the control socket finishes its requests and goes;
//! (4) the pool flushes and closes clean, which gives up the lock.

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
use tessera_fuse::{Mount as Mounted, MountOptions, Mountpoint};
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
/// can connect. With --mount the volumes are files as well, as 'tessera mount'
/// shows them, in the same process. SIGTERM and SIGINT finish what is in flight, flush and close
/// the pool; a second one ends the process at once.
///
/// Over TCP there is neither encryption nor authentication: listen on a
/// trusted network only.
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  \
    tessera serve tank\n  \
    tessera serve tank --listen 127.0.0.1:10809 --memory 2G\n  \
    tessera serve tank --mount /mnt/tank\n  \
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
    /// Show the volumes as files too, on an existing directory
    #[arg(long, value_name = "MOUNTPOINT")]
    mount: Option<PathBuf>,
    /// Let other users see the mount; only root and the owner can open files
    #[arg(long, requires = "mount")]
    allow_other: bool,
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
        let mountpoint = match &self.mount {
            Some(path) => {
                let mountpoint = Mountpoint::prepare(path)?;
                mountpoint.refuse_to_hide(&self.dir)?;
                Some(mountpoint)
            }
            None => None,
        };
        let mut signals = StopSignals::install()?;

        let options = PoolOptions {
            read_only: self.read_only,
            memory_bytes: self.memory,
            io: globals.io(),
        };
        let pool = Pool::open(&self.dir, &options).map_err(Failure::from)?;
        logging::warn_from_now_on();
        warn_of_members(&pool.status());
        let served = self.serve(&pool, mountpoint.as_ref(), &mut signals);
        let closed = pool.close().map_err(Failure::from);
        served?;
        closed?;
        Ok(())
    }

    fn serve(
        &self,
        pool: &Arc<Pool>,
        mountpoint: Option<&Mountpoint>,
        signals: &mut StopSignals,
    ) -> anyhow::Result<()> {
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
        let mounted = match self.mount_on(pool, mountpoint) {
            Ok(mounted) => mounted,
            Err(error) => {
                server.shutdown(Duration::ZERO);
                return Err(error);
            }
        };
        let mut lines: Vec<String> = endpoints
            .iter()
            .map(|uri| format!("listening on {uri}\n"))
            .collect();
        let description = {
            let (server, read_only) = (Arc::clone(&server), self.read_only);
            let open_files = mounted.as_ref().map(Mounted::open_files);
            let mut endpoints = endpoints;
            if let Some(mounted) = &mounted {
                let path = mounted.path().display().to_string();
                lines.push(format!("mounted on {path}\n"));
                endpoints.push(path);
            }
            move || {
                let files = open_files.as_ref().map_or(0, |open_files| open_files());
                describe(&server, read_only, &endpoints, files as u64)
            }
        };
        let management = Arc::new(LocalPool::served(Arc::clone(pool), description));
        let control = match ControlServer::start(&self.dir, management) {
            Ok(control) => control,
            Err(failure) => {
                let ended = mounted.map_or(Ok(()), Mounted::end);
                server.shutdown(Duration::ZERO);
                ended?;
                return Err(failure.into());
            }
        };
        let told = lines.iter().try_for_each(|line| output::print(line));
        if told.is_ok() {
            notify("READY=1");
            signals.wait();
            notify("STOPPING=1");
            tracing::info!("stopping: finishing what is in flight");
        }
        let ended = mounted.map_or(Ok(()), Mounted::end);
        let drained = server.shutdown(DRAIN_PATIENCE);
        if drained.cut > 0 {
            tracing::warn!(
                connections = drained.cut,
                "clients did not take their answers in time and were disconnected"
            );
        }
        control.shutdown();
        told?;
        ended?;
        Ok(())
    }

    fn mount_on(
        &self,
        pool: &Arc<Pool>,
        mountpoint: Option<&Mountpoint>,
    ) -> anyhow::Result<Option<Mounted>> {
        let Some(mountpoint) = mountpoint else {
            return Ok(None);
        };
        for member in pool.status().members {
            mountpoint.refuse_to_hide(Path::new(&member.path))?;
        }
        let options = MountOptions {
            read_only: self.read_only,
            allow_other: self.allow_other,
        };
        // Whoever unmounts it wants no files any more, and may still want disks.
        let gone = || tracing::info!("the mount has ended");
        let mounted = Mounted::start(Arc::clone(pool) as _, mountpoint, options, gone)?;
        Ok(Some(mounted))
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

fn describe(server: &Server, read_only: bool, endpoints: &[String], open_files: u64) -> ServerInfo {
    ServerInfo {
        pid: std::process::id(),
        version: env!("CARGO_PKG_VERSION").to_owned(),
        endpoints: endpoints.to_vec(),
        read_only,
        connections: server.stats().connections_open + open_files,
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
