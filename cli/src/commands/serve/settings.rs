//! What `tessera serve` is to do: the command line, and for what it leaves
//! open the configuration file, and for what that leaves open the defaults.

use std::{
    net::SocketAddr,
    num::NonZeroUsize,
    os::unix::ffi::OsStrExt,
    path::{Path, PathBuf, absolute},
    time::Duration,
};

use anyhow::Context;
use serde::Serialize;
use tessera_nbd::{ServerOptions, Tls};

use super::{
    Serve,
    config::{Config, Memory, MountConfig, NbdConfig, TlsConfig},
    tls::{self, TlsSettings},
};
use crate::{
    args::{Globals, IoArg},
    failure::{Failure, Kind},
    logging::Level,
};

/// The NBD socket's name within the pool's directory.
const SOCKET_NAME: &str = "nbd.sock";
/// Memory for caches, buffers and the index.
const DEFAULT_MEMORY_BYTES: u64 = 512 << 20;
/// How long a drain waits for clients that do not take their answers.
const DEFAULT_DRAIN_SECONDS: u32 = 30;
/// The longest drain that makes sense.
const LONGEST_DRAIN_SECONDS: u32 = 24 * 60 * 60;
/// The longest path a Unix socket's address holds.
const LONGEST_SOCKET_PATH: usize = 107;

/// Where NBD clients connect.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Endpoint {
    /// A Unix socket at this absolute path.
    Socket(PathBuf),
    /// `HOST:PORT`.
    Listen(String),
}

/// Everything that can be set, resolved.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(crate) struct Settings {
    /// The pool's directory.
    pub(crate) pool: PathBuf,
    /// Clients can only read, and nothing is written.
    pub(crate) read_only: bool,
    /// Memory for caches, buffers and the index.
    pub(crate) memory_bytes: u64,
    /// The device implementation asked for.
    pub(crate) io: Option<IoArg>,
    /// How long a drain waits for clients that do not take their answers.
    pub(crate) drain_timeout_seconds: u32,
    /// How much is told.
    pub(crate) log: Level,
    /// Where it is told, in the background.
    pub(crate) log_file: Option<PathBuf>,
    /// Where NBD clients connect. Empty: nothing was asked for.
    pub(crate) endpoints: Vec<Endpoint>,
    /// NBD connections at a time.
    pub(crate) max_connections: NonZeroUsize,
    /// Other machines are listened to although they need no TLS.
    pub(crate) insecure: bool,
    /// Encryption, if there is any.
    pub(crate) tls: Option<TlsSettings>,
    /// Where the volumes are files.
    pub(crate) mount: Option<MountConfig>,
}

impl Settings {
    /// What the command line and its configuration file, read now, ask for.
    ///
    /// # Errors
    /// One sentence on what is wrong in the file or with a value.
    pub(crate) fn read(command: &Serve, globals: &Globals) -> anyhow::Result<Self> {
        let config = match (&command.config, &command.dir) {
            (Some(path), _) => Config::read(path)?,
            (None, Some(dir)) => nothing_but(dir),
            (None, None) => unreachable!("the command line requires one of them"),
        };
        let asked = Asked {
            read_only: command.read_only,
            memory: command.memory.map(Memory),
            io: globals.io_asked(),
            drain_timeout_seconds: command.drain_timeout,
            log_file: command.log_file.clone(),
            nbd: NbdConfig {
                sockets: command.socket.clone(),
                listen: command.listen.clone(),
                max_connections: None,
                insecure: command.insecure,
            },
            tls: TlsConfig {
                mode: command.tls,
                certificate: command.tls_cert.clone(),
                key: command.tls_key.clone(),
                client_authority: command.tls_client_ca.clone(),
                clients: tls::lists(&command.tls_allow),
            },
            mount: command.mount.clone().map(|path| MountConfig {
                path,
                allow_other: command.allow_other,
            }),
        };
        Self::resolve(config, asked)
    }

    /// What a configuration file alone asks for.
    ///
    /// # Errors
    /// As [`Settings::read`].
    pub(crate) fn of_file(path: &Path) -> anyhow::Result<Self> {
        Self::resolve(Config::read(path)?, Asked::default())
    }

    fn resolve(config: Config, asked: Asked) -> anyhow::Result<Self> {
        let default = ServerOptions::default();
        // Endpoints on the command line replace all of the file's.
        let nbd = if asked.nbd.sockets.is_empty() && asked.nbd.listen.is_empty() {
            &config.nbd
        } else {
            &asked.nbd
        };
        let tls = TlsSettings::resolve(config.tls, asked.tls)?;
        let insecure = asked.nbd.insecure || config.nbd.insecure;
        let settings = Self {
            endpoints: endpoints(nbd)?,
            insecure,
            tls,
            pool: config.pool,
            read_only: asked.read_only || config.read_only,
            memory_bytes: asked
                .memory
                .or(config.memory)
                .map_or(DEFAULT_MEMORY_BYTES, |memory| memory.0),
            io: asked.io.or(config.io),
            drain_timeout_seconds: asked
                .drain_timeout_seconds
                .or(config.drain_timeout_seconds)
                .unwrap_or(DEFAULT_DRAIN_SECONDS),
            log: config.log.unwrap_or_default(),
            log_file: asked.log_file.or(config.log_file),
            max_connections: config
                .nbd
                .max_connections
                .or(NonZeroUsize::new(default.max_connections))
                .expect("the server has room for a connection"),
            mount: asked.mount.or(config.mount),
        };
        settings.refuse_in_the_clear()?;
        if settings.drain_timeout_seconds > LONGEST_DRAIN_SECONDS {
            return Err(wrong("A drain takes at most 86400 seconds".to_owned()));
        }
        Ok(settings)
    }

    /// Others could read along, and write. A name is only known to be one of
    /// another machine when it is listened on, which refuses it then.
    fn refuse_in_the_clear(&self) -> anyhow::Result<()> {
        if self.insecure || self.tls.as_ref().is_some_and(|tls| tls.required) {
            return Ok(());
        }
        for endpoint in &self.endpoints {
            let Endpoint::Listen(address) = endpoint else {
                continue;
            };
            if address
                .parse::<SocketAddr>()
                .is_ok_and(|at| !at.ip().is_loopback())
            {
                return Err(wrong(format!(
                    "{address} can be reached from other machines: require TLS (--tls required), \
                     or say --insecure (insecure = true) if serving in the clear is meant"
                )));
            }
        }
        Ok(())
    }

    /// Reads certificates and keys, and checks that they fit and are valid.
    ///
    /// # Errors
    /// One sentence on what is wrong with which file.
    pub(crate) fn load_tls(&self) -> anyhow::Result<Option<Tls>> {
        self.tls.as_ref().map(TlsSettings::load).transpose()
    }

    /// The endpoints, or the one that is there when none is asked for.
    pub(crate) fn endpoints_or_default(&self) -> anyhow::Result<Vec<Endpoint>> {
        if self.endpoints.is_empty() {
            return Ok(vec![Endpoint::Socket(usable(
                &self.pool.join(SOCKET_NAME),
            )?)]);
        }
        Ok(self.endpoints.clone())
    }

    /// How long a drain waits for clients that do not take their answers.
    pub(crate) fn drain_patience(&self) -> Duration {
        Duration::from_secs(u64::from(self.drain_timeout_seconds))
    }

    /// The settings in which `new` differs that are only taken over at a start.
    pub(crate) fn needing_a_start(&self, new: &Self) -> Vec<&'static str> {
        [
            ("pool", self.pool != new.pool),
            ("read_only", self.read_only != new.read_only),
            ("memory", self.memory_bytes != new.memory_bytes),
            ("io", self.io != new.io),
            ("log_file", self.log_file != new.log_file),
            (
                "nbd.max_connections",
                self.max_connections != new.max_connections,
            ),
            ("nbd.insecure", self.insecure != new.insecure),
            (
                "tls.mode",
                self.tls.as_ref().map(|tls| tls.required)
                    != new.tls.as_ref().map(|tls| tls.required),
            ),
            ("mount", self.mount != new.mount),
        ]
        .into_iter()
        .filter_map(|(name, differs)| differs.then_some(name))
        .collect()
    }
}

/// What the command line says of what a file can say, too.
#[derive(Debug, Default)]
struct Asked {
    read_only: bool,
    memory: Option<Memory>,
    io: Option<IoArg>,
    drain_timeout_seconds: Option<u32>,
    log_file: Option<PathBuf>,
    nbd: NbdConfig,
    tls: TlsConfig,
    mount: Option<MountConfig>,
}

fn nothing_but(dir: &Path) -> Config {
    Config {
        pool: dir.to_owned(),
        read_only: false,
        memory: None,
        io: None,
        drain_timeout_seconds: None,
        log: None,
        log_file: None,
        nbd: NbdConfig::default(),
        tls: TlsConfig::default(),
        mount: None,
    }
}

fn endpoints(nbd: &NbdConfig) -> anyhow::Result<Vec<Endpoint>> {
    let mut endpoints = Vec::new();
    for path in &nbd.sockets {
        endpoints.push(Endpoint::Socket(usable(path)?));
    }
    for address in &nbd.listen {
        let port = address
            .rsplit_once(':')
            .map(|(_, port)| port.parse::<u16>());
        if !matches!(port, Some(Ok(_))) {
            return Err(wrong(format!(
                "{address:?} is not an address of the form HOST:PORT"
            )));
        }
        endpoints.push(Endpoint::Listen(address.clone()));
    }
    for (index, endpoint) in endpoints.iter().enumerate() {
        if endpoints[..index].contains(endpoint) {
            let at = match endpoint {
                Endpoint::Socket(path) => path.display().to_string(),
                Endpoint::Listen(address) => address.clone(),
            };
            return Err(wrong(format!("{at} is to be listened on twice")));
        }
    }
    Ok(endpoints)
}

/// Absolute, because clients use the URI from directories of their own.
fn usable(path: &Path) -> anyhow::Result<PathBuf> {
    let path =
        absolute(path).with_context(|| format!("{} is not a usable path", path.display()))?;
    if path.as_os_str().as_bytes().len() > LONGEST_SOCKET_PATH {
        return Err(wrong(format!(
            "The socket path {} is longer than {LONGEST_SOCKET_PATH} bytes: choose a shorter one",
            path.display()
        )));
    }
    Ok(path)
}

/// What is wrong with a value.
pub(super) fn wrong(message: String) -> anyhow::Error {
    Failure::new(Kind::InvalidArgument, message).into()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::commands::serve::config::TlsModeArg;

    fn config() -> Config {
        let mut config = nothing_but(Path::new("/pool"));
        config.memory = Some(Memory(1 << 30));
        config.nbd.sockets = vec!["/run/a.sock".into()];
        config.nbd.listen = vec!["127.0.0.1:10809".into()];
        config
    }

    #[test]
    fn the_command_line_has_the_last_word() {
        let from_file = Settings::resolve(config(), Asked::default()).unwrap();
        assert_eq!(from_file.memory_bytes, 1 << 30);
        assert_eq!(from_file.endpoints.len(), 2);
        let asked = Asked {
            memory: Some(Memory(2 << 30)),
            nbd: NbdConfig {
                listen: vec!["[::1]:0".into()],
                ..NbdConfig::default()
            },
            ..Asked::default()
        };
        let both = Settings::resolve(config(), asked).unwrap();
        assert_eq!(both.memory_bytes, 2 << 30);
        assert_eq!(both.endpoints, [Endpoint::Listen("[::1]:0".into())]);
    }

    #[test]
    fn what_is_asked_for_nowhere_has_a_default() {
        let settings =
            Settings::resolve(nothing_but(Path::new("/pool")), Asked::default()).unwrap();
        assert_eq!(settings.memory_bytes, DEFAULT_MEMORY_BYTES);
        assert_eq!(settings.drain_patience(), Duration::from_secs(30));
        assert_eq!(
            settings.endpoints_or_default().unwrap(),
            [Endpoint::Socket("/pool/nbd.sock".into())]
        );
    }

    #[test]
    fn endpoints_that_cannot_be_are_refused() {
        for listen in ["nowhere", "", "host:", "host:99999", "host:http"] {
            let mut wrong = config();
            wrong.nbd.listen = vec![listen.into()];
            assert!(
                Settings::resolve(wrong, Asked::default()).is_err(),
                "{listen}"
            );
        }
        let mut twice = config();
        twice.nbd.sockets = vec!["/run/a.sock".into(), "/run/a.sock".into()];
        assert!(Settings::resolve(twice, Asked::default()).is_err());
        let mut long = config();
        long.nbd.sockets = vec!["/".into(), format!("/{}", "x".repeat(107)).into()];
        assert!(Settings::resolve(long, Asked::default()).is_err());
    }

    #[test]
    fn other_machines_need_tls_or_to_be_meant() {
        let exposed = |tls: TlsConfig, insecure: bool| {
            let mut config = config();
            config.nbd.listen = vec!["0.0.0.0:10809".into(), "localhost:1".into()];
            config.nbd.insecure = insecure;
            config.tls = tls;
            Settings::resolve(config, Asked::default())
        };
        let given = TlsConfig {
            certificate: Some("c".into()),
            key: Some("k".into()),
            ..TlsConfig::default()
        };
        let allowed = TlsConfig {
            mode: Some(TlsModeArg::Allowed),
            ..given.clone()
        };
        assert!(exposed(TlsConfig::default(), false).is_err());
        assert!(exposed(allowed.clone(), false).is_err());
        assert!(exposed(allowed, true).is_ok());
        // A certificate without a mode means that it is required.
        assert!(exposed(given, false).unwrap().tls.unwrap().required);
    }

    #[test]
    fn what_needs_a_start_is_named() {
        let old = Settings::resolve(config(), Asked::default()).unwrap();
        let mut new = old.clone();
        new.log = Level::Debug;
        new.drain_timeout_seconds = 5;
        new.endpoints.clear();
        assert_eq!(old.needing_a_start(&new), [""; 0]);
        new.memory_bytes += 1;
        new.read_only = true;
        assert_eq!(old.needing_a_start(&new), ["read_only", "memory"]);
    }
}
