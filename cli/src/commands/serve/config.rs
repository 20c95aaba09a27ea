//! The configuration file of `tessera serve`, in TOML.
//!
//! Every key is known or refused, with the line it is in. Paths are relative to
//! the file's own directory. Reading it opens nothing else, so that checking a
//! file disturbs no server.

use std::{
    collections::BTreeMap,
    fmt,
    fs::File,
    io::Read,
    num::NonZeroUsize,
    path::{Path, PathBuf, absolute},
};

use anyhow::{Context, bail};
use serde::{
    Deserialize, Deserializer, Serialize,
    de::{self, Visitor},
};

use clap::ValueEnum;

use crate::{args::IoArg, logging::Level, size, suggest};

/// The most a file may hold: one that is longer is something else.
const LONGEST_BYTES: u64 = 1 << 20;

/// A configuration, as it is written.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Config {
    /// The pool's directory.
    pub(crate) pool: PathBuf,
    #[serde(default)]
    pub(crate) read_only: bool,
    pub(crate) memory: Option<Memory>,
    pub(crate) io: Option<IoArg>,
    pub(crate) drain_timeout_seconds: Option<u32>,
    pub(crate) log: Option<Level>,
    pub(crate) log_file: Option<PathBuf>,
    #[serde(default)]
    pub(crate) nbd: NbdConfig,
    #[serde(default)]
    pub(crate) tls: TlsConfig,
    pub(crate) mount: Option<MountConfig>,
}

/// Where NBD clients connect.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct NbdConfig {
    /// Unix sockets.
    pub(crate) sockets: Vec<PathBuf>,
    /// `HOST:PORT` each.
    pub(crate) listen: Vec<String>,
    pub(crate) max_connections: Option<NonZeroUsize>,
    /// Listen to other machines without requiring TLS.
    pub(crate) insecure: bool,
}

/// Encryption for clients over TCP.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct TlsConfig {
    pub(crate) mode: Option<TlsModeArg>,
    /// The server's, then those that lead to its authority.
    pub(crate) certificate: Option<PathBuf>,
    pub(crate) key: Option<PathBuf>,
    /// Authorities for clients.
    pub(crate) client_authority: Option<PathBuf>,
    /// By export, the names in certificates that may use it.
    pub(crate) clients: BTreeMap<String, Vec<String>>,
}

/// Whether clients over TCP use TLS.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum TlsModeArg {
    /// Nobody
    Off,
    /// Those that ask for it
    Allowed,
    /// Everybody
    Required,
}

/// Where the volumes are files.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct MountConfig {
    pub(crate) path: PathBuf,
    #[serde(default)]
    pub(crate) allow_other: bool,
}

/// A size in bytes, written as a number or as on the command line.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(transparent)]
pub(crate) struct Memory(pub(crate) u64);

impl<'de> Deserialize<'de> for Memory {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Size;
        impl Visitor<'_> for Size {
            type Value = Memory;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a size such as \"512M\", or a number of bytes")
            }

            fn visit_str<E: de::Error>(self, text: &str) -> Result<Memory, E> {
                size::parse(text).map(Memory).map_err(E::custom)
            }

            fn visit_i64<E: de::Error>(self, bytes: i64) -> Result<Memory, E> {
                let bytes = u64::try_from(bytes);
                bytes
                    .map(Memory)
                    .map_err(|_| E::custom("a size is not negative"))
            }
        }
        deserializer.deserialize_any(Size)
    }
}

impl Config {
    /// Reads a file.
    ///
    /// # Errors
    /// It cannot be read, or something in it is wrong: the sentence names file,
    /// line and key.
    pub(crate) fn read(path: &Path) -> anyhow::Result<Self> {
        let unreadable = || format!("The configuration {} cannot be read", path.display());
        let mut text = String::new();
        let file = File::open(path).with_context(unreadable)?;
        file.take(LONGEST_BYTES + 1)
            .read_to_string(&mut text)
            .with_context(unreadable)?;
        if text.len() as u64 > LONGEST_BYTES {
            bail!("{} is too long for a configuration", path.display());
        }
        let path = absolute(path).with_context(unreadable)?;
        let mut config =
            Self::parse(&text).map_err(|wrong| anyhow::anyhow!("{} {wrong}", path.display()))?;
        // A file has a name, so its path has a parent.
        config.resolve(path.parent().unwrap_or(Path::new("/")));
        Ok(config)
    }

    /// What `text` says, or what is wrong in which line.
    fn parse(text: &str) -> Result<Self, String> {
        toml::from_str(text).map_err(|error| {
            let said = error.message().split_whitespace().collect::<Vec<_>>();
            let said = said.join(" ");
            let hint =
                meant(&said).map_or(String::new(), |meant| format!("; did you mean {meant}?"));
            match error.span() {
                Some(span) => {
                    let before = text.get(..span.start).unwrap_or(text);
                    let line = before.bytes().filter(|byte| *byte == b'\n').count() + 1;
                    format!("line {line}: {said}{hint}")
                }
                None => format!("is no configuration: {said}{hint}"),
            }
        })
    }

    /// Makes its paths absolute.
    fn resolve(&mut self, base: &Path) {
        let mount = self.mount.iter_mut().map(|mount| &mut mount.path);
        let paths = [&mut self.pool]
            .into_iter()
            .chain(&mut self.log_file)
            .chain(&mut self.nbd.sockets)
            .chain(&mut self.tls.certificate)
            .chain(&mut self.tls.key)
            .chain(&mut self.tls.client_authority)
            .chain(mount);
        for path in paths {
            *path = base.join(&*path);
        }
    }
}

/// What the first of the names that a parser's message quotes may have been
/// meant to be, out of the others.
fn meant(message: &str) -> Option<&str> {
    let mut quoted = message.split('`').skip(1).step_by(2);
    let wrong = quoted.next()?;
    suggest::closest(wrong, quoted)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::commands::config::EXAMPLE;

    #[test]
    fn the_example_is_a_good_configuration_that_shows_every_key() {
        let shown = Config::parse(EXAMPLE).unwrap();
        assert_eq!(shown.pool, Path::new("/srv/tessera/tank"));
        // The keys that are only shown are behind a '#'.
        let all = EXAMPLE.replace("\n#", "\n");
        let all: String = all
            .lines()
            .filter(|line| line.contains(" = ") || line.starts_with('['))
            .map(|line| format!("{line}\n"))
            .collect();
        let config = Config::parse(&all).unwrap_or_else(|error| panic!("{error}:\n{all}"));
        let json = serde_json::to_value(&config).unwrap();
        fn no_null(value: &serde_json::Value, path: &str) {
            assert!(!value.is_null(), "{path} is not shown");
            for (key, value) in value.as_object().into_iter().flatten() {
                no_null(value, &format!("{path}.{key}"));
            }
        }
        no_null(&json, "");
    }

    #[test]
    fn paths_are_relative_to_the_file() {
        let mut config = Config::parse(
            "pool = 'tank'\nnbd.sockets = ['a.sock', '/run/b.sock']\nmount.path = '../m'",
        )
        .unwrap();
        config.resolve(Path::new("/etc/tessera"));
        assert_eq!(config.pool, Path::new("/etc/tessera/tank"));
        assert_eq!(
            config.nbd.sockets,
            [Path::new("/etc/tessera/a.sock"), Path::new("/run/b.sock")]
        );
        assert_eq!(config.mount.unwrap().path, Path::new("/etc/tessera/../m"));
    }

    #[test]
    fn sizes_are_written_as_on_the_command_line_or_as_numbers() {
        for (memory, bytes) in [("'1.5G'", 3 << 29), ("536870912", 512 << 20)] {
            let config = Config::parse(&format!("pool = 'p'\nmemory = {memory}")).unwrap();
            assert_eq!(config.memory, Some(Memory(bytes)));
        }
    }

    #[test]
    fn what_is_wrong_is_named_with_its_line() {
        for (text, line, names) in [
            (
                "pool = 'p'\nmemroy = '1G'\n",
                "line 2: ",
                "did you mean memory?",
            ),
            (
                "pool = 'p'\n\n[nbd]\nlisten = 'x'\n",
                "line 4: ",
                "sequence",
            ),
            (
                "pool = 'p'\n[nbd]\nsocket = 'x'\n",
                "line 3: ",
                "did you mean sockets?",
            ),
            ("pool = 'p'\n[tsl]\n", "line 2: ", "did you mean tls?"),
            ("pool = 'p'\nlog = 'loud'\n", "line 2: ", "loud"),
            ("pool = 'p'\nmemory = '12Q'\n", "line 2: ", "1.5T"),
            ("pool = 'p'\nmemory = -1\n", "line 2: ", "not negative"),
            ("pool = 'p'\ndrain_timeout_seconds = 'x'\n", "line 2: ", "x"),
            (
                "pool = 'p'\n[nbd]\nmax_connections = 0\n",
                "line 3: ",
                "zero",
            ),
            ("pool = 'p'\npool = 'q'\n", "line 2: ", "duplicate"),
            ("read_only = true\n", "", "pool"),
            ("pool = \n", "line 1: ", ""),
            ("\u{0}", "line 1: ", ""),
        ] {
            let sentence = Config::parse(text).expect_err(text);
            assert!(sentence.starts_with(line), "{text:?}: {sentence}");
            assert!(sentence.contains(names), "{text:?}: {sentence}");
            assert!(!sentence.contains('\n'), "{text:?}: {sentence}");
        }
    }
}
