//! `tessera serve`: serve a pool's volumes as disks over NBD, and as files if
//! asked to, until told to stop.
//!
//! Start: look at the mount point, open and recover the pool (which takes its
//! lock), listen for NBD clients, mount, listen on the control socket, tell the
//! URIs and the mount on stdout, then the service manager.
//!
//! SIGHUP: read the configuration again; a wrong one changes nothing.
//!
//! Stop, in this order, so that nothing acknowledged is lost and no client
//! finds half a server: (1) the mount goes; (2) NBD connections finish what has
//! arrived and close; (3) the control socket finishes its requests and goes;
//! (4) the pool flushes and closes clean, which gives up the lock.
//!
//! The parts: [`config`] is the file, [`settings`] what it and the command line
//! ask for together, [`tls`] the part of it that encrypts, [`endpoints`] what is
//! listened on.

pub(crate) mod config;
mod endpoints;
mod instance;
pub(crate) mod settings;
mod tls;

use std::{
    fs::File,
    os::fd::OwnedFd,
    path::{Path, PathBuf},
    sync::Arc,
};

use anyhow::{Context, bail};
use clap::Args;
use tessera_engine::{
    api::{MemberState, PoolStatus},
    pool::{Pool, PoolOptions},
};
use tessera_fuse::{Mount as Mounted, MountOptions, Mountpoint};
use tessera_nbd::{Instance, Server, ServerOptions, Tls};

use self::{config::TlsModeArg, endpoints::Endpoints, settings::Settings};
use crate::{
    access::{self, LocalPool, ServerInfo},
    activation,
    args::{Globals, IoArg},
    control::server::ControlServer,
    daemon,
    failure::Failure,
    logging,
    notify::{notify, notify_reloading},
    output,
    signals::{Asked, Hangup, StopSignals},
    size,
};

/// Serve a pool's volumes as disks over NBD
///
/// Every volume is an export of its name; where there is exactly one, it is
/// the default export too. Without --socket and --listen, DIR/nbd.sock is
/// listened on, unless a service manager hands sockets on (LISTEN_FDS). Prints
/// one line 'listening on URI' per endpoint once clients can connect, and tells
/// the service manager then (sd_notify). With --mount the volumes are files as
/// well, as 'tessera mount' shows them, in the same process.
///
/// SIGTERM and SIGINT finish what is in flight, for at most --drain-timeout,
/// flush and close the pool; a second one ends the process at once. SIGHUP does
/// the same, but reads the configuration again where there is one (--config).
///
/// Over TCP, --tls-cert and --tls-key encrypt, --tls-client-ca lets only clients
/// with a certificate in, and --tls-allow keeps an export for certain of them.
/// An address that other machines can reach is refused without TLS, unless
/// --insecure says that it is meant.
#[derive(Debug, Args)]
#[command(group = clap::ArgGroup::new(daemon::BACKGROUND).args([daemon::DAEMON, daemon::DETACHED]).multiple(true))]
#[command(after_help = "Examples:\n  \
    tessera serve tank\n  \
    tessera serve tank --daemon --log-file /var/log/tessera-tank.log\n  \
    tessera serve tank --listen 127.0.0.1:10809 --memory 2G\n  \
    tessera serve tank --listen 0.0.0.0:10809 --tls-cert server.pem --tls-key server.key \\\n    \
    --tls-client-ca clients.pem --tls-allow vm1=guest1\n  \
    tessera serve tank --mount /mnt/tank\n  \
    tessera serve tank --socket /run/tank.sock --read-only\n  \
    tessera config example > tank.toml && tessera serve --config tank.toml")]
pub(crate) struct Serve {
    /// The pool's directory
    #[arg(required_unless_present = "config", conflicts_with = "config")]
    dir: Option<PathBuf>,
    /// Do what this file says, and what the command line says otherwise
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Listen on a Unix socket at PATH; may be given several times
    #[arg(long, value_name = "PATH")]
    socket: Vec<PathBuf>,
    /// Listen on TCP; port 0 takes a free one; may be given several times
    #[arg(long, value_name = "HOST:PORT")]
    listen: Vec<String>,
    /// Who uses TLS over TCP [default: required, where a certificate is given]
    #[arg(long, value_name = "MODE", value_enum, help_heading = "TLS")]
    tls: Option<TlsModeArg>,
    /// The server's certificate, and those that lead to its authority (PEM)
    #[arg(long, value_name = "FILE", help_heading = "TLS")]
    tls_cert: Option<PathBuf>,
    /// The certificate's private key (PEM)
    #[arg(long, value_name = "FILE", help_heading = "TLS")]
    tls_key: Option<PathBuf>,
    /// Let in only clients with a certificate of these authorities (PEM)
    #[arg(long, value_name = "FILE", help_heading = "TLS")]
    tls_client_ca: Option<PathBuf>,
    /// Let only clients with this name in their certificate use EXPORT; may be
    /// given several times
    #[arg(long, value_name = "EXPORT=NAME", value_parser = allowed_client, help_heading = "TLS")]
    tls_allow: Vec<(String, String)>,
    /// Listen also to other machines without requiring TLS
    #[arg(long, help_heading = "TLS")]
    insecure: bool,
    /// Show the volumes as files too, on an existing directory
    #[arg(long, value_name = "MOUNTPOINT")]
    mount: Option<PathBuf>,
    /// Let other users see the mount; only root and the owner can open files
    #[arg(long, requires = "mount")]
    allow_other: bool,
    /// Let clients read only, and write nothing to the members
    #[arg(long)]
    read_only: bool,
    /// Memory for caches, buffers and the index [default: 512M]
    #[arg(long, value_name = "SIZE", value_parser = size::parse)]
    memory: Option<u64>,
    /// How long a stop waits for clients that do not take their answers [default: 30]
    #[arg(long, value_name = "SECONDS")]
    drain_timeout: Option<u32>,
    /// Stay in the foreground, as without it
    #[arg(long, conflicts_with = daemon::DAEMON)]
    foreground: bool,
    /// Go to the background once clients can connect
    #[arg(long)]
    daemon: bool,
    /// Where the process in the background tells what goes wrong
    #[arg(long, value_name = "FILE", requires = daemon::BACKGROUND)]
    log_file: Option<PathBuf>,
    /// This is the process in the background
    #[arg(long, hide = true, conflicts_with = daemon::DAEMON)]
    detached: bool,
}

impl Serve {
    pub(crate) fn run(self, globals: &Globals) -> anyhow::Result<()> {
        if self.daemon {
            if activation::meant_for_us() {
                bail!("A service manager that hands sockets on wants no --daemon: leave it out");
            }
            return daemon::start();
        }
        if self.detached {
            daemon::leave_session()?;
        }
        let settings = Settings::read(&self, globals)?;
        let tls = settings.load_tls()?;
        let handed_on = activation::sockets()?;
        // Before the first thread: all of them inherit it. It keeps memory
        // reclaim from waiting for writes to our own disk; where it is not
        // permitted, there is no such disk to fear either.
        if let Err(error) = rustix::process::configure_io_flusher_behavior(true) {
            tracing::debug!(%error, "not marked as an I/O flusher");
        }
        access::refuse_if_served(&settings.pool, "serving it again")?;
        let mountpoint = match &settings.mount {
            Some(mount) => {
                let mountpoint = Mountpoint::prepare(&mount.path)?;
                mountpoint.refuse_to_hide(&settings.pool)?;
                Some(mountpoint)
            }
            None => None,
        };
        // Whoever starts it from a terminal without a configuration wants it
        // to go when the terminal goes.
        let mut signals = StopSignals::install_with(match self.config {
            Some(_) => Hangup::Reloads,
            None => Hangup::Stops,
        })?;

        let options = PoolOptions {
            read_only: settings.read_only,
            memory_bytes: settings.memory_bytes,
            io: IoArg::choice(settings.io),
        };
        let pool = Pool::open(&settings.pool, &options).map_err(Failure::from)?;
        logging::tell_from_now_on(settings.log);
        warn_of_members(&pool.status());
        let directory = settings.pool.clone();
        // Who cannot write has been answered nothing that could be lost.
        let instance = (!settings.read_only).then(|| instance::begin(&directory));
        let serving = Serving {
            command: &self,
            globals,
            settings,
            tls,
            instance: instance.clone(),
            pool: &pool,
        };
        let served = serving.serve(mountpoint.as_ref(), handed_on, &mut signals);
        let closed = pool.close().map_err(Failure::from);
        served?;
        closed?;
        if let Some(instance) = instance
            && let Err(error) = instance::ended(&directory, &instance)
        {
            tracing::warn!(%error, "clients that wait will take this end for a crash");
        }
        Ok(())
    }
}

/// An entry of an export's list of clients.
fn allowed_client(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((export, name)) if !export.is_empty() && !name.is_empty() => {
            Ok((export.to_owned(), name.to_owned()))
        }
        _ => Err("an export and a name in a certificate are expected, as in vm1=guest1".to_owned()),
    }
}

/// A pool that is open, about to be served or being served.
struct Serving<'a> {
    /// What a reload resolves again.
    command: &'a Serve,
    globals: &'a Globals,
    settings: Settings,
    tls: Option<Tls>,
    instance: Option<Instance>,
    pool: &'a Arc<Pool>,
}

impl Serving<'_> {
    fn serve(
        mut self,
        mountpoint: Option<&Mountpoint>,
        handed_on: Vec<OwnedFd>,
        signals: &mut StopSignals,
    ) -> anyhow::Result<()> {
        // Before anything is started that would have to be stopped again.
        let log = self.log_file()?;
        let read_only = self.settings.read_only;
        let server = Arc::new(Server::new(
            self.pool.catalog(),
            ServerOptions {
                read_only,
                max_connections: self.settings.max_connections.get(),
                tls: self.tls.take(),
                in_the_clear: self.settings.insecure,
                instance: self.instance.take(),
                ..ServerOptions::default()
            },
        ));
        // Dropping the server shuts it down, whatever fails below.
        let wanted = if handed_on.is_empty() {
            self.settings.endpoints_or_default()?
        } else {
            self.settings.endpoints.clone()
        };
        let defaulted = self.settings.endpoints.is_empty();
        let mut endpoints = Endpoints::open(&server, handed_on, &wanted)?;
        let mounted = self.mount_on(mountpoint)?;
        let uris = endpoints.uris();
        let mut lines: Vec<String> = uris()
            .iter()
            .map(|uri| format!("listening on {uri}\n"))
            .collect();
        let path = mounted
            .as_ref()
            .map(|mounted| mounted.path().display().to_string());
        lines.extend(path.iter().map(|path| format!("mounted on {path}\n")));
        let open_files = mounted.as_ref().map(Mounted::open_files);
        let description = {
            let server = Arc::clone(&server);
            move || {
                let files = open_files.as_ref().map_or(0, |open_files| open_files());
                let endpoints = uris().into_iter().chain(path.clone()).collect();
                describe(&server, read_only, endpoints, files as u64)
            }
        };
        let management = Arc::new(LocalPool::served(Arc::clone(self.pool), description));
        let control = match ControlServer::start(&self.settings.pool, management) {
            Ok(control) => control,
            Err(failure) => {
                mounted.map_or(Ok(()), Mounted::end)?;
                return Err(failure.into());
            }
        };
        let told = lines
            .iter()
            .try_for_each(|line| output::print(line))
            .and_then(|()| match log {
                Some(log) => daemon::leave_output_to(&log),
                None => Ok(()),
            });
        if told.is_ok() {
            notify("READY=1");
            while signals.next() == Asked::Reload {
                notify_reloading();
                self.reload(&server, &mut endpoints, defaulted);
                notify("READY=1");
            }
            notify("STOPPING=1");
            tracing::info!("stopping: finishing what is in flight");
        }
        let ended = mounted.map_or(Ok(()), Mounted::end);
        let drained = server.shutdown(self.settings.drain_patience());
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

    /// Where a process in the background tells what goes wrong.
    fn log_file(&self) -> anyhow::Result<Option<File>> {
        if !self.command.detached {
            return Ok(None);
        }
        let path = match &self.settings.log_file {
            Some(path) => path,
            None => Path::new("/dev/null"),
        };
        let file = File::options().append(true).create(true).open(path);
        let file = file.with_context(|| format!("The log {} cannot be opened", path.display()))?;
        Ok(Some(file))
    }

    /// Reads the configuration again and does what it says as far as a server
    /// that serves can. Whatever is wrong leaves all as it was.
    fn reload(&mut self, server: &Server, endpoints: &mut Endpoints, defaulted: bool) {
        let unchanged = |error: &anyhow::Error| {
            tracing::warn!("the configuration was not taken over: {error:#}");
        };
        let read = Settings::read(self.command, self.globals)
            .and_then(|new| new.load_tls().map(|tls| (new, tls)));
        let (new, tls) = match read {
            Ok(read) => read,
            Err(error) => return unchanged(&error),
        };
        // What a start without any endpoint listened on stays until another is
        // asked for.
        let keep = defaulted && new.endpoints.is_empty();
        if !keep {
            match endpoints.change(&new.endpoints) {
                Ok(changed) => {
                    for uri in changed.opened {
                        tracing::warn!("listening on {uri}");
                    }
                    for uri in changed.closed {
                        tracing::warn!("no longer listening on {uri}");
                    }
                }
                Err(error) => return unchanged(&error.into()),
            }
        }
        if let Some(tls) = tls {
            // Where there was none, the mode is different, which is said below.
            server.renew_tls(tls);
        }
        for name in self.settings.needing_a_start(&new) {
            tracing::warn!("{name} is different in the configuration: restart for it");
        }
        // For a log that was rotated. One that cannot be opened stays.
        match self.log_file() {
            Ok(Some(log)) => {
                if let Err(error) = daemon::leave_output_to(&log) {
                    unchanged(&error);
                }
            }
            Ok(None) => {}
            Err(error) => unchanged(&error),
        }
        logging::tell_from_now_on(new.log);
        self.settings.log = new.log;
        self.settings.drain_timeout_seconds = new.drain_timeout_seconds;
        self.settings.endpoints = new.endpoints;
        tracing::info!("the configuration was read again");
    }

    fn mount_on(&self, mountpoint: Option<&Mountpoint>) -> anyhow::Result<Option<Mounted>> {
        let (Some(mountpoint), Some(mount)) = (mountpoint, &self.settings.mount) else {
            return Ok(None);
        };
        for member in self.pool.status().members {
            mountpoint.refuse_to_hide(Path::new(&member.path))?;
        }
        let options = MountOptions {
            read_only: self.settings.read_only,
            allow_other: mount.allow_other,
        };
        // Whoever unmounts it wants no files any more, and may still want disks.
        let gone = || tracing::info!("the mount has ended");
        let pool = Arc::clone(self.pool);
        Ok(Some(Mounted::start(pool as _, mountpoint, options, gone)?))
    }
}

fn describe(
    server: &Server,
    read_only: bool,
    endpoints: Vec<String>,
    open_files: u64,
) -> ServerInfo {
    ServerInfo {
        pid: std::process::id(),
        version: env!("CARGO_PKG_VERSION").to_owned(),
        endpoints,
        read_only,
        connections: server.stats().connections_open + open_files,
    }
}

/// A degraded pool serves like any other, so its operator has to be told.
fn warn_of_members(status: &PoolStatus) {
    for member in &status.members {
        let state = match member.state {
            // Not in use yet, and nothing is wrong with them.
            MemberState::Online
            | MemberState::Spare
            | MemberState::Rebuilding
            | MemberState::Replacing => continue,
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
