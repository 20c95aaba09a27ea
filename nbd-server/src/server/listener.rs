//! Listening sockets and the thread that accepts on each.

use std::fmt::Write as _;
use std::io;
use std::net::{SocketAddr, TcpListener, ToSocketAddrs};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::thread::JoinHandle;
use std::time::Duration;

use rustix::event::{EventfdFlags, PollFd, PollFlags, eventfd};
use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, accept_with, sockopt};

use super::connection;
use super::error::ListenError;
use super::exports::Client;
use super::outbox::{Outbox, poll_for};
use super::shared::Shared;
use super::tls::TlsMode;

/// `sockaddr_un` holds 108 bytes, one of them the final NUL.
const UNIX_PATH_BYTES: usize = 107;
/// Clients that may wait to be accepted.
const BACKLOG: i32 = 1024;
/// A pause after an accept that failed for lack of descriptors or memory.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// A bound, listening socket.
pub(crate) struct Bound {
    socket: OwnedFd,
    family: AddressFamily,
    uri: String,
    socket_file: Option<SocketFile>,
}

/// The file of a Unix socket; removed when dropped, if it still is ours.
struct SocketFile {
    path: PathBuf,
    device: u64,
    inode: u64,
}

impl Drop for SocketFile {
    fn drop(&mut self) {
        let ours = std::fs::symlink_metadata(&self.path)
            .is_ok_and(|file| file.dev() == self.device && file.ino() == self.inode);
        if ours && let Err(error) = std::fs::remove_file(&self.path) {
            tracing::warn!(path = %self.path.display(), %error, "cannot remove the socket");
        }
    }
}

impl Bound {
    pub(crate) fn uri(&self) -> &str {
        &self.uri
    }
}

/// Binds a Unix socket, in place of one that nobody listens on any more.
pub(crate) fn bind_unix(path: &Path) -> Result<Bound, ListenError> {
    if path.as_os_str().len() > UNIX_PATH_BYTES {
        return Err(ListenError::PathTooLong {
            path: path.into(),
            limit: UNIX_PATH_BYTES,
        });
    }
    let unix = |source| ListenError::Unix {
        path: path.into(),
        source,
    };
    match std::fs::symlink_metadata(path) {
        Ok(file) if !file.file_type().is_socket() => {
            return Err(ListenError::NotASocket(path.into()));
        }
        Ok(_) => match UnixStream::connect(path) {
            Ok(_) => return Err(ListenError::SocketInUse(path.into())),
            Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {
                std::fs::remove_file(path).map_err(unix)?;
            }
            // A full queue means that somebody is there, only slow.
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                return Err(ListenError::SocketInUse(path.into()));
            }
            Err(error) => return Err(unix(error)),
        },
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(unix(error)),
    }
    let listener = UnixListener::bind(path).map_err(|error| match error.kind() {
        io::ErrorKind::AddrInUse => ListenError::SocketInUse(path.into()),
        _ => unix(error),
    })?;
    let file = std::fs::symlink_metadata(path).map_err(unix)?;
    rustix::net::listen(&listener, BACKLOG).map_err(|error| unix(error.into()))?;
    Ok(Bound {
        socket: listener.into(),
        family: AddressFamily::UNIX,
        uri: unix_uri(path.as_os_str().as_bytes()),
        socket_file: Some(SocketFile {
            path: path.into(),
            device: file.dev(),
            inode: file.ino(),
        }),
    })
}

/// Binds the first address that the name stands for and that can be bound.
///
/// What goes over a network is to be encrypted: without `tls` being required,
/// or `in_the_clear` saying that it is meant, only the machine itself is
/// listened to.
pub(crate) fn bind_tcp(
    address: &str,
    tls: Option<TlsMode>,
    in_the_clear: bool,
) -> Result<Bound, ListenError> {
    let candidates: Vec<SocketAddr> = address
        .to_socket_addrs()
        .map_err(|source| ListenError::BadAddress {
            address: address.into(),
            source,
        })?
        .collect();
    refuse_in_the_clear(address, &candidates, tls, in_the_clear)?;
    let tcp = |source: io::Error| match source.kind() {
        io::ErrorKind::AddrInUse => ListenError::AddressInUse(address.into()),
        _ => ListenError::Tcp {
            address: address.into(),
            source,
        },
    };
    let listener = TcpListener::bind(candidates.as_slice()).map_err(tcp)?;
    let local = listener.local_addr().map_err(tcp)?;
    rustix::net::listen(&listener, BACKLOG).map_err(|error| tcp(error.into()))?;
    Ok(Bound {
        socket: listener.into(),
        family: if local.is_ipv4() {
            AddressFamily::INET
        } else {
            AddressFamily::INET6
        },
        uri: tcp_uri(&local, tls),
        socket_file: None,
    })
}

/// Takes over a socket that somebody else has made listen; its file, if it has
/// one, is theirs. What goes over a network is treated as in [`bind_tcp`].
pub(crate) fn adopt(
    socket: OwnedFd,
    tls: Option<TlsMode>,
    in_the_clear: bool,
) -> Result<Bound, ListenError> {
    let resources = |errno: Errno| ListenError::Resources(errno.into());
    if !sockopt::socket_type(&socket).is_ok_and(|kind| kind == SocketType::STREAM) {
        return Err(ListenError::Unusable("it is no stream socket"));
    }
    if !sockopt::socket_acceptconn(&socket).map_err(resources)? {
        return Err(ListenError::Unusable("it does not listen"));
    }
    let address = rustix::net::getsockname(&socket).map_err(resources)?;
    let family = address.address_family();
    let uri = if family == AddressFamily::UNIX {
        SocketAddrUnix::try_from(address)
            .ok()
            .and_then(|address| address.path_bytes().map(unix_uri))
            .ok_or(ListenError::Unusable("it has no path"))?
    } else {
        let address = SocketAddr::try_from(address)
            .map_err(|_| ListenError::Unusable("it is neither a Unix socket nor one of TCP"))?;
        refuse_in_the_clear(&address.to_string(), &[address], tls, in_the_clear)?;
        tcp_uri(&address, tls)
    };
    Ok(Bound {
        socket,
        family,
        uri,
        socket_file: None,
    })
}

/// Others could read along, and write.
fn refuse_in_the_clear(
    asked: &str,
    addresses: &[SocketAddr],
    tls: Option<TlsMode>,
    in_the_clear: bool,
) -> Result<(), ListenError> {
    let exposed = addresses.iter().any(|at| !at.ip().is_loopback());
    if exposed && tls != Some(TlsMode::Required) && !in_the_clear {
        return Err(ListenError::InTheClear(asked.into()));
    }
    Ok(())
}

fn tcp_uri(address: &SocketAddr, tls: Option<TlsMode>) -> String {
    let scheme = match tls {
        Some(TlsMode::Required) => "nbds",
        Some(TlsMode::Allowed) | None => "nbd",
    };
    format!("{scheme}://{address}")
}

fn unix_uri(path: &[u8]) -> String {
    format!("nbd+unix:///?socket={}", percent_encoded(path))
}

fn percent_encoded(path: &[u8]) -> String {
    let mut text = String::new();
    for byte in path {
        match byte {
            b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'/' | b'.' | b'_' | b'-' | b'~' => {
                text.push(char::from(*byte));
            }
            _ => write!(text, "%{byte:02X}").expect("writing to a string succeeds"),
        }
    }
    text
}

/// A thread that accepts clients.
pub(crate) struct Listener {
    uri: String,
    wake: Arc<OwnedFd>,
    thread: JoinHandle<()>,
    socket_file: Option<SocketFile>,
}

impl Listener {
    pub(crate) fn start(shared: &Arc<Shared>, bound: Bound) -> Result<Self, ListenError> {
        let resources = |error: Errno| ListenError::Resources(error.into());
        let wake = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK);
        let wake = Arc::new(wake.map_err(resources)?);
        rustix::io::ioctl_fionbio(&bound.socket, true).map_err(resources)?;
        let Bound {
            socket,
            family,
            uri,
            socket_file,
        } = bound;
        let thread = std::thread::Builder::new()
            .name("nbd-accept".into())
            .spawn({
                let uri = uri.clone();
                let shared = Arc::clone(shared);
                let wake = Arc::clone(&wake);
                move || {
                    if let Err(error) = accept_all(&shared, &socket, family, &wake) {
                        tracing::error!(%uri, %error, "stopped listening");
                    }
                }
            })
            .map_err(ListenError::Resources)?;
        Ok(Self {
            uri,
            wake,
            thread,
            socket_file,
        })
    }

    /// The default export's URI.
    pub(crate) fn uri(&self) -> &str {
        &self.uri
    }

    /// Closes the socket and removes its file.
    pub(crate) fn stop(self) {
        let _ = rustix::io::write(&*self.wake, &1u64.to_ne_bytes());
        if self.thread.join().is_err() {
            tracing::error!("A listener has panicked");
        }
        drop(self.socket_file);
    }
}

fn accept_all(
    shared: &Arc<Shared>,
    socket: &OwnedFd,
    family: AddressFamily,
    wake: &OwnedFd,
) -> io::Result<()> {
    loop {
        let mut polled = [
            PollFd::new(socket, PollFlags::IN),
            PollFd::from_borrowed_fd(wake.as_fd(), PollFlags::IN),
        ];
        poll_for(&mut polled, None)?;
        if !polled[1].revents().is_empty() {
            return Ok(());
        }
        match accept_with(socket, SocketFlags::CLOEXEC) {
            Ok(client) => welcome(shared, client, family),
            Err(Errno::MFILE | Errno::NFILE | Errno::NOBUFS | Errno::NOMEM) => {
                tracing::warn!("out of descriptors or memory for new connections");
                std::thread::sleep(ACCEPT_PAUSE);
            }
            // The client has gone again, or another error that was its own.
            Err(_) => {}
        }
    }
}

/// Gives a client a thread, or drops it.
fn welcome(shared: &Arc<Shared>, client: OwnedFd, family: AddressFamily) {
    let refuse = || {
        shared
            .stats
            .connections_refused
            .fetch_add(1, Ordering::Relaxed);
    };
    if !shared.has_room() {
        return refuse();
    }
    if family != AddressFamily::UNIX
        && let Err(error) = prepare_tcp(&client)
    {
        tracing::debug!(%error, "cannot set socket options");
    }
    let from = match family {
        AddressFamily::UNIX => Client::Local,
        _ => Client::Network(Vec::new()),
    };
    let outbox = match Outbox::new(client) {
        Ok(outbox) => Arc::new(outbox),
        Err(error) => {
            tracing::warn!(%error, "no descriptor for a new connection");
            return refuse();
        }
    };
    let Some(seat) = shared.seat(&outbox) else {
        return refuse();
    };
    let spawned = std::thread::Builder::new()
        .name("nbd-client".into())
        .spawn({
            let shared = Arc::clone(shared);
            move || {
                // Given up last, also when serving panics.
                let _seat = seat;
                connection::serve(&shared, &outbox, from);
            }
        });
    if let Err(error) = spawned {
        tracing::warn!(%error, "no thread for a new connection");
        refuse();
    }
}

/// Small replies leave at once, and a client whose machine has vanished does
/// not keep its place for ever.
fn prepare_tcp(client: &OwnedFd) -> Result<(), Errno> {
    sockopt::set_tcp_nodelay(client, true)?;
    sockopt::set_socket_keepalive(client, true)?;
    sockopt::set_tcp_keepidle(client, Duration::from_secs(60))?;
    sockopt::set_tcp_keepintvl(client, Duration::from_secs(10))?;
    sockopt::set_tcp_keepcnt(client, 6)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn socket_paths_are_percent_encoded_in_uris() {
        assert_eq!(
            percent_encoded(b"/run/a b&c?.sock"),
            "/run/a%20b%26c%3F.sock"
        );
    }
}
