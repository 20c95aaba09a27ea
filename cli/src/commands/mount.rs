//! `tessera mount`: show a pool's volumes as files until told to stop.
//!
//! Start: look at the mount point, open and recover the pool (which takes its
//! lock), mount, listen on the control socket, tell the path on stdout.
//!
//! Stop, in this order, so that nothing acknowledged is lost: (1) unmount, and
//! cut off who does not leave; (2) the control socket finishes its requests
//! and goes; (3) the pool flushes and closes clean, which gives up the lock.

use std::{
    path::{Path, PathBuf},
    sync::Arc,
};

use clap::Args;
use tessera_engine::pool::{Pool, PoolOptions};
use tessera_fuse::{Mount as Mounted, MountOptions, Mountpoint};

use crate::{
    access::{LocalPool, Management, ServerInfo},
    args::Globals,
    control::{client::Client, server::ControlServer},
    daemon,
    failure::{Failure, Kind},
    logging,
    notify::notify,
    output,
    signals::StopSignals,
    size,
};

/// Show a pool's volumes as files
///
/// Every volume is a regular file, MOUNTPOINT/volumes/NAME, as long as the
/// volume and readable by who mounts it. Creating, truncating, renaming and
/// deleting a file does the same to its volume. Prints one line 'mounted on
/// PATH' once it can be used and stays in the foreground, or goes to the
/// background then (--daemon). SIGTERM and SIGINT unmount, flush and close the
/// pool, and so does unmounting it; a second signal ends the process at once.
/// What a killed process left mounted is replaced.
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  \
    tessera mount tank /mnt/tank\n  \
    tessera mount tank /mnt/tank --daemon\n  \
    truncate -s 20G /mnt/tank/volumes/vm2\n  \
    cp --sparse=always /mnt/tank/volumes/vm1 vm1.raw\n  \
    losetup --find --show --direct-io=on --sector-size 4096 /mnt/tank/volumes/vm1")]
pub(crate) struct Mount {
    /// The pool's directory
    dir: PathBuf,
    /// An existing directory to mount on
    mountpoint: PathBuf,
    /// Stay in the foreground, as without it
    #[arg(long, conflicts_with = daemon::DAEMON)]
    foreground: bool,
    /// Go to the background once the mount can be used
    #[arg(long)]
    daemon: bool,
    /// This is the process in the background
    #[arg(long, hide = true, conflicts_with = daemon::DAEMON)]
    detached: bool,
    /// Let files be read only, and write nothing to the members
    #[arg(long)]
    read_only: bool,
    /// Let other users see the mount; only root and the owner can open files
    #[arg(long)]
    allow_other: bool,
    /// Memory for caches, buffers and the index
    #[arg(long, value_name = "SIZE", default_value = "512M", value_parser = size::parse)]
    memory: u64,
}

impl Mount {
    pub(crate) fn run(self, globals: &Globals) -> anyhow::Result<()> {
        if self.daemon {
            return daemon::start();
        }
        if self.detached {
            daemon::leave_session()?;
        }
        // Before the first thread: all of them inherit it. The kernel may need
        // this process to write back pages before it has memory to give; where
        // it is not permitted, that is only less likely to go well.
        if let Err(error) = rustix::process::configure_io_flusher_behavior(true) {
            tracing::debug!(%error, "not marked as an I/O flusher");
        }
        refuse_if_served(&self.dir)?;
        let mountpoint = Mountpoint::prepare(&self.mountpoint)?;
        mountpoint.refuse_to_hide(&self.dir)?;
        let mut signals = StopSignals::install()?;

        let options = PoolOptions {
            read_only: self.read_only,
            memory_bytes: self.memory,
            io: globals.io(),
        };
        let pool = Pool::open(&self.dir, &options).map_err(Failure::from)?;
        logging::warn_from_now_on();
        let served = self.serve(&pool, &mountpoint, &mut signals);
        let closed = pool.close().map_err(Failure::from);
        served?;
        closed?;
        Ok(())
    }

    fn serve(
        &self,
        pool: &Arc<Pool>,
        mountpoint: &Mountpoint,
        signals: &mut StopSignals,
    ) -> anyhow::Result<()> {
        for member in pool.status().members {
            mountpoint.refuse_to_hide(Path::new(&member.path))?;
        }
        let options = MountOptions {
            read_only: self.read_only,
            allow_other: self.allow_other,
        };
        let mounted = Mounted::start(
            Arc::clone(pool) as _,
            mountpoint,
            options,
            signals.stopper(),
        )?;
        let path = mounted.path().display().to_string();
        let (endpoint, read_only) = (path.clone(), self.read_only);
        let open_files = mounted.open_files();
        let description = move || ServerInfo {
            pid: std::process::id(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            endpoints: vec![endpoint.clone()],
            read_only,
            connections: open_files() as u64,
        };
        let management = Arc::new(LocalPool::served(Arc::clone(pool), description));
        let control = match ControlServer::start(&self.dir, management) {
            Ok(control) => control,
            Err(failure) => {
                mounted.end()?;
                return Err(failure.into());
            }
        };
        let told = output::print(&format!("mounted on {path}\n")).and_then(|()| {
            if self.detached {
                daemon::leave_output()?;
            }
            Ok(())
        });
        if told.is_ok() {
            notify("READY=1");
            signals.wait();
            notify("STOPPING=1");
            tracing::info!("stopping: unmounting");
        }
        let ended = mounted.end();
        control.shutdown();
        told?;
        ended?;
        Ok(())
    }
}

/// One process at a time has a pool open; says which, and how to reach it.
fn refuse_if_served(dir: &Path) -> anyhow::Result<()> {
    let Some(client) = Client::connect(dir)? else {
        return Ok(());
    };
    let how = match client.status()?.server {
        Some(server) => format!(
            " at {} by process {}",
            server.endpoints.join(" and "),
            server.pid
        ),
        None => String::new(),
    };
    let message = format!(
        "The pool {} is being served{how}: stop that before mounting it",
        dir.display()
    );
    Err(Failure::new(Kind::Busy, message).into())
}
