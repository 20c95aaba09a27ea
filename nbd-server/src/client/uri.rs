//! Addresses of exports, in the form of the NBD URI specification
//! (`doc/uri.md` of <https://github.com/NetworkBlockDevice/nbd>).

use std::{fmt, path::PathBuf, str::FromStr};

use super::ClientError;

const DEFAULT_PORT: u16 = 10809;

/// Where an export is: `nbd://HOST[:PORT]/EXPORT` or
/// `nbd+unix:///EXPORT?socket=PATH`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Uri {
    pub(super) place: Place,
    pub(super) export: String,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Place {
    Tcp(String, u16),
    Unix(PathBuf),
}

impl Uri {
    /// Whether text was meant as an NBD address.
    pub fn looks_like(text: &str) -> bool {
        ["nbd:", "nbds:", "nbd+unix:", "nbds+unix:"]
            .iter()
            .any(|scheme| text.starts_with(scheme))
    }

    /// The same for the same export, however its address was written: a socket's
    /// path is made absolute.
    pub fn identity(&self) -> String {
        let export = &self.export;
        match &self.place {
            Place::Tcp(host, port) => format!("nbd {host} {port} {export}"),
            Place::Unix(path) => {
                let path = std::path::absolute(path).unwrap_or_else(|_| path.clone());
                format!("nbd {} {export}", path.display())
            }
        }
    }
}

impl FromStr for Uri {
    type Err = ClientError;

    fn from_str(text: &str) -> Result<Self, ClientError> {
        let wrong = |why| ClientError::Uri(text.to_owned(), why);
        if text.starts_with("nbds") {
            return Err(wrong(
                "TLS is not spoken here; use a Unix socket of the server",
            ));
        }
        if let Some(rest) = text.strip_prefix("nbd+unix://") {
            let (path, query) = rest
                .split_once('?')
                .ok_or_else(|| wrong("it needs ?socket=PATH"))?;
            let socket = query
                .split('&')
                .find_map(|pair| pair.strip_prefix("socket="))
                .ok_or_else(|| wrong("it needs ?socket=PATH"))?;
            let export = path
                .strip_prefix('/')
                .ok_or_else(|| wrong("it has no host: write nbd+unix:///EXPORT?socket=PATH"))?;
            let socket = decoded(socket).ok_or_else(|| wrong("its escapes are malformed"))?;
            return Ok(Self {
                place: Place::Unix(socket.into()),
                export: decoded(export).ok_or_else(|| wrong("its escapes are malformed"))?,
            });
        }
        let rest = text
            .strip_prefix("nbd://")
            .ok_or_else(|| wrong("write nbd://HOST/EXPORT or nbd+unix:///EXPORT?socket=PATH"))?;
        let (authority, export) = rest.split_once('/').unwrap_or((rest, ""));
        let (host, port) = match authority.rsplit_once(':') {
            // An IPv6 address without a port ends in a bracket.
            Some((host, port)) if !authority.ends_with(']') => (
                host,
                port.parse().map_err(|_| wrong("its port is no number"))?,
            ),
            _ => (authority, DEFAULT_PORT),
        };
        let host = host.trim_start_matches('[').trim_end_matches(']');
        if host.is_empty() {
            return Err(wrong("it names no host"));
        }
        Ok(Self {
            place: Place::Tcp(host.to_owned(), port),
            export: decoded(export).ok_or_else(|| wrong("its escapes are malformed"))?,
        })
    }
}

impl fmt::Display for Uri {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.place {
            Place::Tcp(host, port) => write!(f, "{host}:{port}"),
            Place::Unix(path) => write!(f, "{}", path.display()),
        }
    }
}

fn decoded(text: &str) -> Option<String> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.bytes();
    while let Some(byte) = rest.next() {
        if byte == b'%' {
            let digit = |b: u8| char::from(b).to_digit(16);
            let value = digit(rest.next()?)? * 16 + digit(rest.next()?)?;
            bytes.push(u8::try_from(value).ok()?);
        } else {
            bytes.push(byte);
        }
    }
    String::from_utf8(bytes).ok()
}
